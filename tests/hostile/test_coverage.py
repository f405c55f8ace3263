"""Attacks on the registry's records of each node's pulls."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.control.client import ask
from mayfly.registry.coverage.pulls import SETTLED_SECONDS
from mayfly.registry.coverage.states import State
from mayfly.storage import digest as digests
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.manifest import OCI_INDEX, parse_stored
from tests.faults.flood_load import MIB
from tests.hostile.harness import Hostile
from tests.support.images import descriptor, image_body, push, put
from tests.support.process import PATIENCE, Mayfly, poll

AGENT = {"User-Agent": "containerd/v2.1.9"}
CONFIG, LAYER = b'{"os": "linux"}', b"layer" * 1000
CHILDREN = 18_000


def get(line: http.client.HTTPConnection, path: str) -> int:
    """The status of a GET on a connection that stays open; all of the answer is read."""
    line.request("GET", path, headers=AGENT)
    with line.getresponse() as answer:
        answer.read()
        return answer.status


def connect(host: str) -> http.client.HTTPConnection:
    name, _, port = host.rpartition(":")
    return http.client.HTTPConnection(name, int(port), timeout=60)


def upgrade(hostile: Hostile, place: Path) -> str:
    """A server that waits for one image at this host; the image's manifest."""
    store = DistributionStore(place / "root")
    for blob in (CONFIG, LAYER):
        push(store, "app", blob)
    _, digest = put(store, "app", image_body(CONFIG, [LAYER]), "1")
    store.close()
    images, nodes = place / "images", place / "nodes"
    images.write_text("app:1\nlater:1\n")
    nodes.write_text("127.0.0.1\n")
    hostile.serve(
        *("--until-pulled", str(images), "--nodes", str(nodes), "--drain-timeout", "1s"),
        root=place / "root",
    )
    return str(digest)


def matrix(state_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = ask(state_dir, "status", timeout=60)["coverage"]["matrix"]
    return found


def test_index_of_the_same_child(hostile: Hostile, tmp_path: Path) -> None:
    """An index that names one child many times costs no more than its length when it is pulled."""
    place = tmp_path / "place"
    upgrade(hostile, place)
    store = DistributionStore(place / "root")
    child, _ = put(store, "app", image_body(CONFIG, [LAYER], annotations={"a": "b"}))
    children = [descriptor(child.body, child.media_type)] * CHILDREN
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}).encode()
    digest = digests.of(body)
    # More than a push may have: stores from elsewhere hold such.
    store.put_manifest("app", parse_stored(body), digest, ("many",))
    store.close()
    name = f"an index with the same child {CHILDREN:,} times"
    with hostile.attack(name, before="each GET stalled 2.5 to 19 s") as under:
        line = connect(under.host)
        while under.going():
            assert get(line, f"/v2/app/manifests/{digest}") == 200
        line.close()


def test_blobs_that_do_not_exist(hostile: Hostile, tmp_path: Path) -> None:
    """Requests for made-up blobs leave no record, and real pulls are recorded beside them."""
    manifest = upgrade(hostile, tmp_path)
    with hostile.attack(
        "requests for blobs that do not exist",
        before="4,000 facts a second, until no pull was recorded any more",
    ) as under:
        line = connect(under.host)
        assert get(line, f"/v2/app/manifests/{manifest}") == 200
        state_dir = under.server.state_dir
        lines = (state_dir / "coverage.jsonl").read_text().count("\n")
        made_up = (hashlib.sha256(str(i).encode()).hexdigest() for i in itertools.count())
        asked = 0
        while under.going():
            for one in itertools.islice(made_up, 100):
                assert get(line, f"/v2/app/blobs/sha256:{one}") == 404
            asked += 100
        under.note(f"{asked} requests")
        assert (state_dir / "coverage.jsonl").read_text().count("\n") == lines
        for blob in (CONFIG, LAYER):
            assert get(line, f"/v2/app/blobs/{digests.of(blob)}") == 200
        line.close()
    _wait_until_served(state_dir)


def test_crumbs_of_a_blob(hostile: Hostile, tmp_path: Path) -> None:
    """A blob that is asked for byte by byte, every second of them, is no cheaper to attack by."""
    manifest = upgrade(hostile, tmp_path)
    with hostile.attack("a blob in crumbs", before="one fact, of the last part alone") as under:
        line = connect(under.host)
        assert get(line, f"/v2/app/manifests/{manifest}") == 200
        firsts = itertools.cycle(range(0, len(LAYER), 2))
        while under.going():
            for first in itertools.islice(firsts, 100):
                headers = AGENT | {"Range": f"bytes={first}-{first}"}
                line.request("GET", f"/v2/app/blobs/{digests.of(LAYER)}", headers=headers)
                with line.getresponse() as answer:
                    assert (answer.status, len(answer.read())) == (206, 1)
        state_dir = under.server.state_dir
        assert matrix(state_dir)["app:1"]["127.0.0.1"] != State.SERVED
        for blob in (CONFIG, LAYER):
            assert get(line, f"/v2/app/blobs/{digests.of(blob)}") == 200
        line.close()
        _wait_until_served(state_dir)


def _wait_until_served(state_dir: Path) -> None:
    """Wait for the client's host to have acknowledged the bytes."""
    poll(
        lambda: matrix(state_dir)["app:1"] == {"127.0.0.1": State.SERVED},
        lambda: matrix(state_dir),
    )


def _serve(place: Path, accept: str = "served") -> Mayfly:
    images, nodes = place / "images", place / "nodes"
    images.write_text("app:1\n")
    nodes.write_text("127.0.0.1\n")
    options = ("--until-pulled", str(images), "--nodes", str(nodes), "--accept", accept)
    return Mayfly(place / "root", place / "state", *options, "--drain-timeout", "1s")


def test_killed_between_two_requests(tmp_path: Path) -> None:
    """A start after a kill between a node's HEAD and its GET does not take the HEAD for a claim,
    and does not end as covered; the node's next HEAD with nothing after it counts."""
    store = DistributionStore(tmp_path / "root")
    for blob in (CONFIG, LAYER):
        push(store, "app", blob)
    put(store, "app", image_body(CONFIG, [LAYER]), "1")
    store.close()
    server = _serve(tmp_path, "claimed")
    with contextlib.closing(connect(server.host)) as line:
        line.request("HEAD", "/v2/app/manifests/1", headers=AGENT)
        assert line.getresponse().status == 200
    server.kill()
    server = _serve(tmp_path, "claimed")
    try:
        time.sleep(SETTLED_SECONDS + 1)
        assert matrix(server.state_dir)["app:1"] == {"127.0.0.1": State.PULLING}
        with contextlib.closing(connect(server.host)) as line:
            line.request("HEAD", "/v2/app/manifests/1", headers=AGENT)
            assert line.getresponse().status == 200
        assert server.popen.wait(PATIENCE) == 0
    finally:
        if server.running:
            server.kill()


def _begin(server: Mayfly, blob: bytes, count: int, first: int = 0) -> socket.socket:
    """Ask for a blob from an offset on, and read a number of bytes of it, no more."""
    host, _, port = server.host.rpartition(":")
    line = socket.socket()
    # Small: what the server has sent is not much more than what was read.
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    line.settimeout(60)
    line.connect((host, int(port)))
    head = f"GET /v2/app/blobs/{digests.of(blob)} HTTP/1.1\r\nHost: x\r\nRange: bytes={first}-\r\n"
    line.sendall(f"{head}User-Agent: {AGENT['User-Agent']}\r\n\r\n".encode())
    with line.makefile("rb") as reader:
        while reader.readline().strip():
            pass
        assert len(reader.read(count)) == count
    return line


@pytest.mark.parametrize(
    ("read", "resumed", "is_served"),
    [
        (1, -1, False),
        (MIB, -1, False),
        (30 * MIB, 30 * MIB, True),
        (MIB, MIB, True),
    ],
    ids=["one byte, then the last", "a MiB, then the last byte", "resumed late", "resumed early"],
)
def test_cut_by_a_kill(tmp_path: Path, read: int, resumed: int, is_served: bool) -> None:
    """A node that continues after a kill beyond what it was sent does not have the image by that,
    whatever it calls itself; one that resumes where it stood does."""
    layer = os.urandom(40 * MIB)
    resumed %= len(layer)
    store = DistributionStore(tmp_path / "root")
    for blob in (CONFIG, layer):
        push(store, "app", blob)
    put(store, "app", image_body(CONFIG, [layer]), "1")
    store.close()
    server = _serve(tmp_path)
    with contextlib.closing(connect(server.host)) as line:
        assert get(line, "/v2/app/manifests/1") == 200
        assert get(line, f"/v2/app/blobs/{digests.of(CONFIG)}") == 200
    held = _begin(server, layer, read)
    server.kill()
    held.close()
    server = _serve(tmp_path)
    try:
        for agent in ("containerd/v2.1.9", "docker/28.2", "containers/5.29"):
            with contextlib.closing(connect(server.host)) as line:
                line.request("HEAD", "/v2/app/manifests/1", headers={"User-Agent": agent})
                assert line.getresponse().status == 200
        _begin(server, layer, len(layer) - resumed, resumed).close()
        if is_served:
            assert server.popen.wait(PATIENCE) == 0
        else:
            # Longer than a node counts as busy after its last request.
            time.sleep(SETTLED_SECONDS + 1)
            poll(lambda: matrix(server.state_dir)["app:1"] != {"127.0.0.1": State.PULLING})
            assert matrix(server.state_dir)["app:1"] == {"127.0.0.1": State.FAILED}
    finally:
        if server.running:
            server.kill()
