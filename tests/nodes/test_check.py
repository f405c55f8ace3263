"""`mayfly check`: what it finds on the registry and on nodes, and that it changes nothing."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.registry.cli import check
from mayfly.registry.control.readiness import Ready
from mayfly.registry.nodes.causes import Cause
from mayfly.registry.nodes.image_content import (
    ESTIMATED_RATIO,
    ImageContent,
    LayerSize,
    contents,
    needed,
)
from mayfly.registry.nodes.probe import Look, judge, probe_script
from mayfly.registry.nodes.script import images_of
from mayfly.registry.nodes.target import NodeCredential, parse
from mayfly.registry.pki.authority import ensure
from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.reader import DirectoryReader
from mayfly.storage.directory.store import DistributionStore
from tests.nodes.test_script import PASSWORD, SHELLS, STUBS
from tests.support.commands import environment, mayfly_here
from tests.support.images import image_body, push, put
from tests.support.process import Mayfly, need
from tests.support.trees import snapshot

IMAGES = ("docker.io/library/one:1", "quay.io/team/two:2", "quay.io/team/three:3")
AMD64 = json.dumps({"os": "linux", "architecture": "amd64"}).encode()
PLAIN = b"not compressed" * 1000
PACKED = gzip.compress(b"x" * 100_000)


def _script() -> str:
    target = parse("http://127.0.0.1:1", credential=NodeCredential("robot", PASSWORD))
    return probe_script(target, images_of(IMAGES, "127.0.0.1:1"))


def test_probe_is_clean_and_has_no_secret() -> None:
    """shellcheck has nothing to say about it but that functions for the work are not used."""
    need("shellcheck")
    text = _script()
    assert PASSWORD not in text
    done = subprocess.run(
        ["shellcheck", "-s", "sh", "-e", "SC2317,SC2034", "-"],
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_probe_in_each_shell(tmp_path: Path, shell: str) -> None:
    """It shows a node's facts and the images that it has, and leaves nothing behind."""
    need(SHELLS[shell][0])
    place, state = tmp_path / "bin", tmp_path / "state"
    place.mkdir()
    state.mkdir()
    for name in ("docker", "ctr", "crictl", "curl"):
        shutil.copy(STUBS, place / name)
        (place / name).chmod(0o755)
    (state / "img-docker.io_library_one:1").touch()
    text = _script().replace("tree=''\n", f"tree='{tmp_path}'\n", 1)
    done = subprocess.run(
        [*SHELLS[shell], "-s", "--"],
        input=text,
        env={"PATH": f"{place}:/usr/sbin:/usr/bin:/sbin:/bin", "STUB_STATE": str(state)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = Look()
    for line in done.stdout.splitlines():
        found.take(line.encode(), IMAGES)
    assert found.complete, done.stdout + done.stderr
    assert found.runtime == "docker"
    assert found.has == {IMAGES[0]}
    assert found.user == os.geteuid()
    assert found.time is not None
    assert abs(found.time - time.time()) < 60
    assert found.total is not None
    assert found.total > 0
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "state"}


def _look(**more: Any) -> Look:
    sound = {
        "time": 1000, "architecture": "amd64", "user": 0, "runtime": "containerd",
        "config_path": True, "total": 100, "free": 50, "sender": True, "reaches": True,
        "has": {IMAGES[0]}, "complete": True,
    }  # fmt: skip
    return Look(**{**sound, **more})


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        ({}, None),
        ({"user": 7}, Cause.NOT_ROOT),
        ({"runtime": "none"}, Cause.NO_RUNTIME),
        ({"time": 100}, Cause.CLOCK),
        ({"time": 9000}, Cause.CLOCK),
        ({"reaches": False}, Cause.NO_REGISTRY),
        ({"reaches": None}, None),
        ({"config_path": False}, Cause.NO_CONFIG_PATH),
        ({"sender": False}, Cause.NO_SENDER),
        # 85 of 100 may be used: 35 of the 50 that are free.
        ({"total": 100, "free": 45}, None),
        ({"total": 100, "free": 44}, Cause.NO_ROOM),
        ({"total": 100, "free": 5}, Cause.NO_ROOM),
        ({"total": 100, "free": 5, "has": set(IMAGES)}, None),
    ],
)
def test_judgement(more: dict[str, Any], cause: Cause | None) -> None:
    """One thing that is not in order is one finding."""

    def need(architecture: str, images: object) -> int:
        assert architecture == "amd64"
        return 15 * len(list(images))  # type: ignore[call-overload]

    found = judge(_look(**more), IMAGES, 1000.0, need)
    assert [one.cause for one in found] == ([] if cause is None else [cause])


@given(st.lists(st.binary(max_size=80) | st.builds(
    lambda key, value: f"mayfly-check {key} {value}".encode(),
    st.sampled_from(["time", "machine", "user", "runtime", "space", "reach", "has", "sender"]),
    st.text(max_size=30) | st.integers().map(str),
)))  # fmt: skip
def test_any_output(lines: list[bytes]) -> None:
    """Whatever a node prints, it is judged without an error, and never found to have others."""
    found = Look()
    for line in lines:
        found.take(line, IMAGES)
    assert found.has <= set(IMAGES)
    judge(found, IMAGES, 1000.0, lambda architecture, images: 1)


def _fill(root: Path) -> None:
    """One whole image for amd64, one that lacks a layer, and none of the third."""
    with closing(DistributionStore(root, allow_sparse=True)) as store:
        for repository, layers, kept in (
            ("library/one", [PLAIN, PACKED], [PLAIN, PACKED]),
            ("team/two", [PLAIN, b"lost"], [PLAIN]),
        ):
            for data in (AMD64, *kept):
                push(store, repository, data)
            put(store, repository, image_body(AMD64, layers), "1" if "one" in repository else "2")


def test_layers_of_a_variant() -> None:
    """A node knows its architecture: that without a variant fits, else the newest variant."""
    layers: list[dict[Digest, LayerSize]] = [
        {digests.of(bytes([number])): LayerSize(number, number)} for number in range(3)
    ]
    names = ("linux/arm/v6", "linux/arm/v7", "linux/armada")
    found = ImageContent(dict(zip(names, layers, strict=True)), ())
    assert found.layers_for("arm") == layers[1]
    assert found.layers_for("arm64") is None
    platforms = {"linux/amd64/v3": layers[0], "linux/amd64": layers[1]}
    assert ImageContent(platforms, ()).layers_for("amd64") == layers[1]


def test_sizes(tmp_path: Path) -> None:
    """A layer counts as it is fetched and unpacked, once for images that share it."""
    _fill(tmp_path)
    images = images_of(IMAGES, "r:1")
    found = contents([DirectoryReader(tmp_path)], images)
    one, two, three = (found[name] for name in IMAGES)
    assert one is not None
    assert two is not None
    assert three is None
    assert not one.lacking
    assert len(two.lacking) == 1
    assert one.layers_for("arm64") is None
    layers = one.layers_for("amd64")
    assert layers is not None
    plain, packed = LayerSize(len(PLAIN), len(PLAIN)), LayerSize(len(PACKED), 100_000)
    assert list(layers.values()) == [plain, packed]
    lost = len(b"lost") * (1 + ESTIMATED_RATIO)
    assert needed(found, "amd64", IMAGES) == sum(plain) + sum(packed) + lost
    assert needed(found, "arm64", IMAGES) == 0


_RUNS_HERE = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
exec sh -c "$3"
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Mayfly]:
    """One with TLS and users, whose images are not all there, waiting for two nodes."""
    root = tmp_path / "root"
    root.mkdir()
    _fill(root)
    (tmp_path / "images").write_text("".join(f"{name}\n" for name in IMAGES))
    (tmp_path / "nodes").write_text("node-a\n")
    options = ["--auth", "auto", "--tls", "auto", "--until-pulled", str(tmp_path / "images")]
    options += ["--nodes", str(tmp_path / "nodes"), "--accept", "proven", "--allow-sparse"]
    running = Mayfly(root, tmp_path / "state", *options, env=environment())
    yield running
    if running.running:
        running.kill()


def test_findings_and_nothing_changed(server: Mayfly, tmp_path: Path) -> None:
    """A line for each finding, exit code 3; the store, the state directory and the node stay."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(_RUNS_HERE)
    (tmp_path / "bin/ssh").chmod(0o755)
    (tmp_path / "home").mkdir()
    words = ("--state-dir", server.state_dir, "--root", server.root, "--via", "ssh", "--json")
    before = {name: snapshot(tmp_path / name) for name in ("root", "state", "home", "bin")}
    path = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path / "home")}
    done = mayfly_here("check", *words, env=path)
    assert {name: snapshot(tmp_path / name) for name in before} == before
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert found["images"] == 3
    assert found["nodes"] == 1
    codes = {one["code"]: one["images"] for one in found["findings"]}
    assert codes["absent"] == [IMAGES[2]]
    assert codes["incomplete"] == [IMAGES[1]]
    assert not codes.keys() & {"no_users", "unreachable", "certificate", "no_registry", "clock"}
    assert all(one["message"] for one in found["findings"])
    done = mayfly_here("check", *words[:-3], env=path)
    assert f"{IMAGES[2]}: the registry does not have it. To do: serve a bundle" in done.stdout
    assert "looked at 3 images and 0 nodes: 2 findings" in done.stdout


@pytest.mark.parametrize("option", ["--user", "--concurrency", "--nodes"])
def test_options_for_nodes_that_are_not_looked_at(tmp_path: Path, option: str) -> None:
    """They are refused; those of the environment may be for other commands."""
    state = ("--state-dir", tmp_path)
    done = mayfly_here("check", *state, option, "3")
    assert (done.returncode, f"{option} is for --via ssh alone" in done.stderr) == (2, True)
    assert (
        mayfly_here("check", *state, env={"MAYFLY_NODES": "x", "MAYFLY_USER": "x"}).returncode == 6
    )


def test_without_a_running_mayfly(tmp_path: Path) -> None:
    """Images, the root and nodes are looked at if the lists are named; else it says which."""
    root = tmp_path / "root"
    root.mkdir()
    _fill(root)
    (tmp_path / "images").write_text("".join(f"{name}\n" for name in IMAGES))
    (tmp_path / "nodes").write_text("node-a\n# not this\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(_RUNS_HERE)
    (tmp_path / "bin/ssh").chmod(0o755)
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path)}
    words = ("check", "--state-dir", tmp_path / "state", "--root", root, "--via", "ssh")
    lists = ("--images", tmp_path / "images", "--nodes", tmp_path / "nodes")
    for few in ((), lists[:2], lists[2:]):
        done = mayfly_here(*words, *few, env=env)
        assert done.returncode == 6
        assert "or name --images LIST, and --nodes FILE for --via ssh" in done.stderr
    done = mayfly_here(*words, *lists, "--json", env=env)
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert (found["images"], found["nodes"], found["registry"]) == (3, 1, False)
    codes = {one["code"] for one in found["findings"]}
    assert codes >= {"absent", "incomplete"}
    assert not codes & {"no_users", "unreachable", "certificate", "no_registry", "unreadable"}
    done = mayfly_here(*words, *lists, env=env)
    assert "1 node, not at the registry, as no Mayfly runs here: " in done.stdout


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        ([], "registry: the registry runs without users"),
        (
            ["--auth", "auto", "--tls", "auto", "--external-url", "https://127.0.0.1:1"],
            "registry: the registry does not answer at its own address: https://127.0.0.1:1",
        ),
    ],
    ids=["no users", "another address"],
)
def test_registry_that_nodes_cannot_use(tmp_path: Path, options: list[str], finding: str) -> None:
    """Without users nodes prove nothing, and a wrong address is found here already."""
    (tmp_path / "images").write_text(f"{IMAGES[0]}\n")
    options = ["--until-pulled", str(tmp_path / "images"), "--nodes", "1", *options]
    running = Mayfly(tmp_path / "root", tmp_path / "state", *options, env=environment())
    try:
        done = mayfly_here("check", "--state-dir", running.state_dir, "--root", running.root)
        assert finding in done.stdout
        assert done.returncode == 3
    finally:
        running.kill()


class _Shown:
    """A TLS server that shows a certificate to one client, and keeps the reason of a failure."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._socket.getsockname()[1]}"
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        connection.settimeout(30)
        try:
            with self._context.wrap_socket(connection, server_side=True) as secured:
                secured.recv(1)
        except OSError as error:
            self.failure = getattr(error, "reason", None) or str(error)

    def end(self) -> None:
        """Wait for the client to end."""
        self._thread.join(30)
        self._socket.close()


@pytest.mark.parametrize(
    ("names", "days", "code", "detail"),
    [
        (("127.0.0.1",), 0, None, ""),
        (("127.0.0.1",), -30, "certificate_time", "expired, and this host's clock says 20"),
        (("127.0.0.1",), 3, "certificate_time", "not yet valid, and this host's clock says 20"),
        (("127.0.0.1",), -6.5, "certificate_time", "it ends on 20"),
        (("r.example.com",), 0, "certificate", "certificate is not valid for '127.0.0.1'"),
    ],
    ids=["good", "expired", "not yet valid", "ends", "another name"],
)
def test_certificate(
    tmp_path: Path, names: tuple[str, ...], days: float, code: str | None, detail: str
) -> None:
    """A wrong time is told from a wrong name, and the server never sees a client without trust."""
    made = ensure(tmp_path, names, datetime.now(UTC) + timedelta(days=days))
    server = _Shown(made.certificate, made.key)
    found = list(check._of_connection(Ready(server.url, 1, ca=str(made.ca))))
    server.end()
    assert [one.code for one in found] == ([] if code is None else [code])
    assert all(detail in one.detail for one in found)
    assert "ALERT" not in str(server.failure)


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """A detail that ends in a full stop, as ssh's do, gets no second one."""
    finding = check.Finding("login", "load the key", "n1", detail="Permission denied (publickey).")
    check._print([finding], 1, 1)
    line = capsys.readouterr().out.splitlines()[0]
    assert line == "n1: it refuses the login: Permission denied (publickey). To do: load the key"
