"""An upgrade as it is scripted: a registry for as long as it takes, real nodes, and a report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.images import Images
from tests.clients.programs import Client, Containerd, Dockerd, push_by_skopeo
from tests.clients.proxy import SlowProxy
from tests.support.process import PATIENCE, REPO, Mayfly, Process, find_program

APPLICATIONS = tuple(f"app{number}" for number in range(1, 6))

UPGRADE = """
set -eu
credentials() {
    "$PYTHON" -m mayfly credentials --node "$1" --name "$1" --format "$2"
}
for app in $APPLICATIONS; do
    "$SKOPEO" --insecure-policy copy --quiet --dest-tls-verify=false \
        "oci:$LAYOUT:small" "docker://$MAYFLY_HOST/upgrade/$app:2"
done
mkdir -p "$WORK/docker-node"
credentials docker-node docker > "$WORK/docker-node/config.json"
credentials containerd-node text > "$WORK/containerd-node"
login=$(paste -sd: "$WORK/containerd-node")
for app in $APPLICATIONS; do
    "$DOCKER" --config "$WORK/docker-node" --host "$DOCKERD" pull --quiet \
        "$MAYFLY_HOST/upgrade/$app:2"
    "$CTR" --address "$CONTAINERD" images pull --plain-http --user "$login" \
        "$MAYFLY_HOST/upgrade/$app:2" > /dev/null
done
"""


def _environment(work: Path, images: Images, **more: str) -> dict[str, str]:
    """The test's own, without settings of its user; scratch roots go below ``work``."""
    (work / "tmp").mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAYFLY_")}
    programs = {name.upper(): find_program(name) or "" for name in ("skopeo", "docker", "ctr")}
    return {
        **own,
        **programs,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(REPO),
        "TMPDIR": str(work / "tmp"),
        "WORK": str(work),
        "LAYOUT": str(images.layout),
        "APPLICATIONS": " ".join(APPLICATIONS),
        **more,
    }


@pytest.fixture(autouse=True)
def nothing_left_over(docker: Client, containerd: Containerd) -> Iterator[None]:
    """What the nodes pulled is removed: other tests count on having to fetch it."""
    yield
    for found in set(docker("images", "--quiet", "--filter", "reference=*/upgrade/*").split()):
        docker("image", "rm", "--force", found)
    for name in containerd.ctr("images", "ls", "--quiet").split():
        containerd.ctr("images", "rm", "--sync", name)


def test_upgrade_of_two_nodes(
    dockerd: Dockerd, containerd: Containerd, skopeo: Client, images: Images, scratch: Path
) -> None:
    """`mayfly run` around a script: push five images, two nodes pull them, and all is over.

    Nothing is left but the report, which says who has what.
    """
    (scratch / "upgrade.sh").write_text(UPGRADE)
    (scratch / "images.txt").write_text("".join(f"upgrade/{app}:2\n" for app in APPLICATIONS))
    (scratch / "nodes.txt").write_text("docker-node\ncontainerd-node\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mayfly", "run", "--ephemeral"),
            *("--state-dir", scratch / "state", "--listen", "127.0.0.1:0", "--auth", "auto"),
            *("--until-pulled", scratch / "images.txt", "--nodes", scratch / "nodes.txt"),
            *("--max-lifetime", "4m", "--report", scratch / "report.json"),
            *("--", "sh", scratch / "upgrade.sh"),
        ],
        env=_environment(
            scratch,
            images,
            DOCKERD=dockerd.docker.options[1],
            CONTAINERD=containerd.ctr.options[1],
        ),
        cwd=REPO,
        timeout=280,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    report = json.loads((scratch / "report.json").read_text())
    matrix = report["coverage"]["matrix"]
    assert matrix.keys() == {f"upgrade/{app}:2" for app in APPLICATIONS}, report
    for row in matrix.values():
        assert row.keys() == {"docker-node", "containerd-node"}, report
        # Claimed, if a test before this one left the layers on the node.
        assert set(row.values()) <= {"served", "claimed"}, report
    assert report["coverage"]["missing"] == []
    assert 0 < report["peak_memory"]["server"] < 96 * 2**20
    # Wiped: the scratch root, and with the server every credential it had made.
    assert [p.name for p in (scratch / "tmp").iterdir()] == []
    left = {path.name for path in (scratch / "state").iterdir()}
    assert not {"signing.key", "credentials.json", "ready.json", "control.sock"} & left
    assert not [name for name in left if name.startswith("run-")]


def test_deadline_names_the_node_that_never_came(
    docker: Client,
    skopeo: Client,
    images: Images,
    start_mayfly: Callable[..., Mayfly],
    scratch: Path,
) -> None:
    """One of two nodes never pulls: the deadline ends it with exit code 3 and says which."""
    (scratch / "images.txt").write_text("upgrade/app:1\n")
    (scratch / "nodes.txt").write_text("127.0.0.1\nsilent-node\n")
    server = start_mayfly(
        *("--until-pulled", str(scratch / "images.txt"), "--nodes", str(scratch / "nodes.txt")),
        *("--max-lifetime", "30s"),
    )
    target = f"{server.host}/upgrade/app:1"
    push_by_skopeo(skopeo, images.layout, "small", target)
    docker("pull", "--quiet", target)
    assert server.popen.wait(PATIENCE) == 3, server.describe()
    report = json.loads((server.state_dir / "report.json").read_text())
    (gap,) = report["coverage"]["missing"]
    assert "silent-node" in str(gap)
    assert "upgrade/app:1" in str(gap)
    assert "silent-node" in server.output()


@pytest.fixture
def pull(
    docker: Client, skopeo: Client, images: Images, scratch: Path
) -> Iterator[Callable[[Mayfly, SlowProxy], Process]]:
    """Begins a docker pull of 140 MB through a slow line; back once bytes of a layer flow."""
    with ExitStack() as stack:

        def begin(server: Mayfly, line: SlowProxy) -> Process:
            push_by_skopeo(skopeo, images.layout, "debian", f"{server.host}/drain/debian:1")
            argv = [docker.program or "", *docker.options, "pull", f"{line.host}/drain/debian:1"]
            process = stack.enter_context(Process(argv, scratch / "pull.log", env=docker.env))
            process.wait_for(lambda: line.passed > 4 * 2**20)
            return process

        yield begin


def test_stop_lets_a_docker_pull_end(
    docker: Client,
    skopeo: Client,
    start_mayfly: Callable[..., Mayfly],
    pull: Callable[[Mayfly, SlowProxy], Process],
) -> None:
    """SIGTERM during a slow pull: it completes, a new one is refused, and the exit code is 0."""
    server = start_mayfly()
    with SlowProxy(server.host, bytes_per_second=12 * 2**20) as line:
        pulling = pull(server, line)
        server.popen.send_signal(signal.SIGTERM)
        server.wait_for(lambda: "stopping: " in server.output())
        refused = skopeo.fails(
            "inspect", "--tls-verify=false", f"docker://{server.host}/drain/debian:1"
        )
        assert "shutting down" in refused or "503" in refused, refused
        assert pulling.popen.wait(PATIENCE) == 0, pulling.describe()
    assert server.popen.wait(PATIENCE) == 0, server.describe()
    docker("image", "rm", f"{line.host}/drain/debian:1")


def test_drain_timeout_cuts_a_docker_pull(
    start_mayfly: Callable[..., Mayfly], pull: Callable[[Mayfly, SlowProxy], Process]
) -> None:
    """With a short --drain-timeout the slow pull is cut, and the exit code is 3."""
    server = start_mayfly("--drain-timeout", "1s")
    with SlowProxy(server.host, bytes_per_second=4 * 2**20) as line:
        pulling = pull(server, line)
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(PATIENCE) == 3, server.describe()
        pulling.kill()
    assert "cut: pull of drain/debian" in server.output()
