"""Attacks on what the registry keeps of who pulled what."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
from pathlib import Path
from typing import Any

from mayfly.registry.control.client import ask
from mayfly.registry.coverage.states import State
from mayfly.storage import digest as digests
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.manifest import OCI_INDEX, parse_stored
from tests.hostile.harness import Hostile
from tests.support.images import descriptor, image_body, push, put

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
    assert matrix(state_dir)["app:1"] == {"127.0.0.1": State.SERVED}


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
    assert matrix(state_dir)["app:1"] == {"127.0.0.1": State.SERVED}
