"""`mayfly serve --upstream` as a process: kills, the end, rights, reports, settings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from mayfly.registry.control.client import ask
from mayfly.registry.coverage.pulls import SETTLED_SECONDS
from mayfly.registry.coverage.states import State
from mayfly.registry.upstream.credentials import Credentials
from tests.support.commands import mayfly
from tests.support.images import digest_of
from tests.support.process import PATIENCE, Mayfly
from tests.support.upstream import FakeUpstream, serving_upstream

LAYER = bytes(range(256)) * 16384  # 4 MiB
BLOB = f"/v2/docker.io/org/app/blobs/{digest_of(LAYER)}"
MANIFEST = "/v2/docker.io/org/app/manifests/1"


@pytest.fixture
async def hub() -> AsyncIterator[FakeUpstream]:
    """An upstream with one image."""
    async with serving_upstream() as made:
        made.push("org/app", "1", LAYER)
        yield made


def _serve(directory: Path, hub: FakeUpstream, *options: str) -> Mayfly:
    return Mayfly(
        directory / "root",
        directory / "state",
        "--upstream",
        f"docker.io={hub.url}",
        *options,
    )


async def _get(url: str) -> tuple[int, bytes]:
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
        return answer.status, await answer.read()


async def test_a_kill_in_the_middle(hub: FakeUpstream, tmp_path: Path) -> None:
    """Nothing is left of half a download; the next server fetches it anew."""
    hub.gate = asyncio.Event()
    server = _serve(tmp_path, hub)
    async with aiohttp.ClientSession() as session:
        assert (await _get(server.url + MANIFEST))[0] == 200
        async with session.get(server.url + BLOB) as answer:
            await answer.content.readexactly(len(LAYER) // 4)
            server.kill()
    hub.gate.set()
    with _serve(tmp_path, hub) as server:
        scratch = tmp_path / "root/docker/registry/v2/_mayfly/scratch"
        assert not [path for path in scratch.rglob("*") if path.is_file()]
        # The manifest is here: a kill loses nothing that was complete.
        gets = hub.count("GET", "/manifests/1")
        assert (await _get(server.url + MANIFEST))[0] == 200
        assert hub.count("GET", "/manifests/1") == gets
        assert await _get(server.url + BLOB) == (200, LAYER)
    done = await asyncio.to_thread(mayfly, "verify", "--root", str(tmp_path / "root"))
    assert done.returncode == 0, done.stdout + done.stderr


async def test_the_end(hub: FakeUpstream, tmp_path: Path) -> None:
    """A pull under way is finished; a download that nobody waits for does not delay the end."""
    hub.gate = asyncio.Event()
    server = _serve(tmp_path, hub)
    async with aiohttp.ClientSession() as session, session.get(server.url + BLOB) as answer:
        first = await answer.content.readexactly(len(LAYER) // 4)
        server.popen.terminate()
        await asyncio.sleep(0.3)
        assert server.running
        hub.gate.set()
        assert first + await answer.content.read() == LAYER
    assert await asyncio.to_thread(server.stop) == 0
    report = json.loads((tmp_path / "state/report.json").read_text())
    (record,) = report["upstreams"]
    assert (record["host"], record["downloads"], record["bytes"]) == ("docker.io", 1, len(LAYER))
    hub.gate = asyncio.Event()
    other = LAYER[::-1]
    hub.push("org/app", "2", other)
    server = _serve(tmp_path, hub)
    async with aiohttp.ClientSession() as session:
        url = server.url + BLOB.replace(digest_of(LAYER), digest_of(other))
        async with session.get(url) as answer:
            await answer.content.readexactly(1000)
            answer.close()
    assert await asyncio.to_thread(server.stop, 20) == 0


async def test_node_that_waits_for_the_upstream(hub: FakeUpstream, tmp_path: Path) -> None:
    """A node does not count as having an image whose last layer the upstream is slow to send."""
    late, config = LAYER[::-1], b'{"os":"linux"}'
    hub.push("org/app", "2", LAYER, late, config=config)
    asked = asyncio.Event()

    async def wait(request: web.Request) -> None:
        if request.path.endswith(digest_of(late)):
            asked.set()
            await asyncio.sleep(PATIENCE)

    hub.first = wait
    images, nodes = tmp_path / "images", tmp_path / "nodes"
    images.write_text("docker.io/org/app:2\n")
    nodes.write_text("127.0.0.1\n")
    options = ("--until-pulled", str(images), "--nodes", str(nodes), "--accept", "served")
    server = _serve(tmp_path, hub, *options)
    try:
        base = f"{server.url}/v2/docker.io/org/app"
        for path in ("manifests/2", f"blobs/{digest_of(config)}", f"blobs/{digest_of(LAYER)}"):
            assert (await _get(f"{base}/{path}"))[0] == 200
        waiting = asyncio.create_task(_get(f"{base}/blobs/{digest_of(late)}"))
        await asyncio.wait_for(asked.wait(), PATIENCE)
        await asyncio.sleep(SETTLED_SECONDS + 1)
        status = await asyncio.to_thread(ask, server.state_dir, "status", timeout=PATIENCE)
        assert status["coverage"]["matrix"]["docker.io/org/app:2"] == {"127.0.0.1": State.PULLING}
        waiting.cancel()
    finally:
        server.kill()


async def test_rights_come_before_the_upstream(hub: FakeUpstream, tmp_path: Path) -> None:
    """A caller without a right makes no request there."""
    with _serve(tmp_path, hub, "--auth", "auto") as server:
        for path in (MANIFEST, BLOB, "/v2/org/app/manifests/1?ns=docker.io"):
            assert (await _get(server.url + path))[0] == 401
        assert not hub.asked
        users = json.loads((tmp_path / "state/credentials.json").read_text())
        login = Credentials("pull", users["pull"]).basic
        assert login is not None
        async with (
            aiohttp.ClientSession(headers={"Authorization": login}) as session,
            session.get(server.url + MANIFEST) as answer,
        ):
            assert answer.status == 200
        assert hub.count("GET", "/manifests/1") == 1
        assert not any("Authorization" in headers for _, _, headers in hub.headers)


async def test_a_login_for_the_upstream(hub: FakeUpstream, tmp_path: Path) -> None:
    """It is that of the file for the mirror's own host, and no other file is read."""
    host = hub.url.removeprefix("http://")
    logins = tmp_path / "auth.json"
    logins.write_text(json.dumps({"auths": {host: {"auth": "bWU6c2VjcmV0"}}}))
    logins.chmod(0o600)
    asked: list[str | None] = []

    async def challenge(request: web.Request) -> web.StreamResponse | None:
        asked.append(request.headers.get("Authorization"))
        if asked[-1] is None:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
        return None

    hub.first = challenge
    with _serve(tmp_path, hub, "--upstream-auth", str(logins)) as server:
        assert (await _get(server.url + MANIFEST))[0] == 200
    assert asked == [None, "Basic bWU6c2VjcmV0"]
    assert "bWU6c2VjcmV0" not in server.output()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--upstream-default", "docker.io"], "also give --upstream docker.io"),
        (["--upstream", "docker.io", "--upstream", "index.docker.io"], "given once"),
        (["--upstream-ca", "/none"], "of no use without --upstream"),
        (["--upstream", "docker.io", "--upstream-ca", "/none"], "No such file"),
        (["--upstream", "docker.io", "--upstream-ca", "/etc/hostname"], "not a PEM file"),
        (["--upstream", "docker.io", "--upstream-auth", "/none"], "No such file"),
        (["--upstream", "docker.io", "--read-only"], "leave --read-only out"),
        (["--upstream", "a:b:c"], "expected a registry's HOST"),
    ],
)
def test_settings_that_do_not_go_together(options: list[str], problem: str, tmp_path: Path) -> None:
    """One line says so, with exit code 2."""
    places = ["--root", tmp_path / "root", "--state-dir", tmp_path / "state"]
    done = mayfly("serve", *places, "--listen", "127.0.0.1:0", *options)
    assert done.returncode == 2, done.stderr
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1


async def test_images_that_are_still_to_come(hub: FakeUpstream, tmp_path: Path) -> None:
    """At the start the log says that they are fetched; the node that pulls one then has it."""
    listed = tmp_path / "images.txt"
    listed.write_text("docker.io/org/app:1\n")
    agent = {"User-Agent": "containerd/v2.1.9"}
    server = _serve(tmp_path, hub, "--until-pulled", str(listed), "--nodes", "1")
    async with aiohttp.ClientSession(headers=agent) as session:
        async with session.head(server.url + MANIFEST) as answer:
            digest = answer.headers["Docker-Content-Digest"]
        image = server.url + MANIFEST.removesuffix("1") + digest
        async with session.get(image) as answer:
            blobs = json.loads(await answer.read())
        for blob in (blobs["config"], *blobs["layers"]):
            url = server.url + BLOB.replace(digest_of(LAYER), blob["digest"])
            async with session.get(url) as answer:
                assert digest_of(await answer.read()) == blob["digest"]
    assert await asyncio.to_thread(server.popen.wait, 60) == 0
    (line,) = [one for one in server.output().splitlines() if "docker.io/org/app:1;" in one]
    assert "INFO" in line and "fetched when it is pulled" in line
    report = json.loads((tmp_path / "state/report.json").read_text())
    assert report["reason"] == "covered"
    assert [*report["coverage"]["matrix"]["docker.io/org/app:1"].values()] == ["served"]
