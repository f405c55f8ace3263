"""The server is killed in the middle of what docker does, and started again on its port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.medium import Medium
from tests.clients.programs import Client, push_by_skopeo
from tests.clients.proxy import SlowProxy
from tests.support.commands import mayfly
from tests.support.process import Mayfly, Process

SLOW = 8_000_000
"""Bytes a second: a layer of 17 million is under way for long enough to be met."""

KILL_AFTER = 4_000_000
LOCAL = "mayfly-test/medium:1"


@pytest.fixture
def loaded(docker: Client, skopeo: Client, medium: Medium, scratch: Path) -> Iterator[str]:
    """The image in docker."""
    archive = scratch / "medium.tar"
    skopeo("copy", f"oci:{medium.layout}:medium", f"docker-archive:{archive}:{LOCAL}")
    docker("load", "--input", archive)
    yield LOCAL
    docker.run("image", "rm", "--force", LOCAL)


def begin(docker: Client, *args: str, log: Path) -> Process:
    """Start a docker command, its output going to a file."""
    return Process([docker.program, *docker.options, *args], log, env=docker.env)


def finish(docker: Client, running: Process, *args: str) -> None:
    """Wait for a command; if docker gave up it said why, and does it when told again."""
    if running.popen.wait(200) != 0:
        assert running.output().strip()
        docker(*args)


def assert_whole(server: Mayfly) -> None:
    """`mayfly verify` finds nothing wrong."""
    done = mayfly("verify", "--root", server.root)
    assert done.returncode == 0, done.stdout


def test_killed_during_a_pull(
    docker: Client,
    skopeo: Client,
    medium: Medium,
    start_mayfly: Callable[..., Mayfly],
    scratch: Path,
) -> None:
    """docker's pull ends with the image that was pushed, and resumes where it was."""
    server = start_mayfly()
    push_by_skopeo(skopeo, medium.layout, "medium", f"{server.host}/killed:1")
    with SlowProxy(server.host, SLOW) as proxy:
        pull = ("pull", f"{proxy.host}/killed:1")
        with begin(docker, *pull, log=scratch / "pull.log") as running:
            server.wait_for(lambda: proxy.passed > KILL_AFTER)
            server.kill()
            restarted = start_mayfly(listen=server.host)
            finish(docker, running, *pull)
        found = docker("image", "inspect", "--format={{.Id}}", pull[1]).strip()
        docker("image", "rm", pull[1])
    assert found == medium.id
    assert [asked for asked in proxy.ranges if not asked.startswith("bytes=0-")]
    assert_whole(restarted)


def test_killed_during_a_push(
    docker: Client, loaded: str, start_mayfly: Callable[..., Mayfly], skopeo: Client, scratch: Path
) -> None:
    """docker's push ends, and what was pushed is whole; the kill left nothing but sessions."""
    server = start_mayfly()
    reference = f"{server.host}/killed:1"
    docker("tag", loaded, reference)

    def under_way() -> bool:
        data = server.root.glob("docker/registry/v2/repositories/killed/_uploads/*/data")
        return any(path.stat().st_size > KILL_AFTER for path in data)

    with begin(docker, "push", reference, log=scratch / "push.log") as running:
        server.wait_for(under_way)
        server.kill()
        restarted = start_mayfly(listen=server.host)
        finish(docker, running, "push", reference)
    copied = f"dir:{scratch}/copied"
    skopeo("copy", "--src-tls-verify=false", f"docker://{reference}", copied)
    docker("image", "rm", reference)
    assert_whole(restarted)
    assert list(restarted.root.rglob("_mayfly/scratch/*/*")) == []
