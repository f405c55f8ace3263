"""Attacks by manifests that name very much, so that nothing else stays in memory."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from mayfly.registry.coverage.states import State
from mayfly.storage import digest as digests
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.manifest import OCI_MANIFEST, parse_stored
from tests.hostile.harness import LONG, Hostile
from tests.hostile.test_coverage import CONFIG, LAYER, connect, get, matrix
from tests.support.images import descriptor, image_body, push, put
from tests.support.process import REPO, poll

WIDE = 60 if LONG else 25
LAYERS = 10_000

ENDED = 25.0
"""Seconds: the drain's one, a few each for what is measured and read, and a slow machine."""


def wide_body(number: int) -> bytes:
    """A manifest of its own 10,000 layers."""
    kind = "application/vnd.oci.image.layer.v1.tar"
    layers = [
        {
            "mediaType": kind,
            "digest": "sha256:" + hashlib.sha256(f"{number} {i}".encode()).hexdigest(),
            "size": 9,
        }
        for i in range(LAYERS)
    ]
    config = descriptor(CONFIG, "application/vnd.oci.image.config.v1+json")
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    return json.dumps(document).encode()


class Wide(NamedTuple):
    """A store of one small image and wide ones.

    Attributes:
        options: of a server that waits for the small one.
        small: digest of its manifest.
        wide: digests of the others.
    """

    root: Path
    options: list[str]
    small: str
    wide: list[str]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Wide:
    """Made once, since that takes a while; nobody changes it."""
    place = tmp_path_factory.mktemp("wide")
    store = DistributionStore(place / "root", allow_sparse=True)
    for blob in (CONFIG, LAYER):
        push(store, "app", blob)
    _, small = put(store, "app", image_body(CONFIG, [LAYER]), "1")
    named = []
    for number in range(WIDE):
        body = wide_body(number)
        digest = digests.of(body)
        store.put_manifest("app", parse_stored(body), digest, ())
        named.append(str(digest))
    store.close()
    images, nodes = place / "images", place / "nodes"
    images.write_text("app:1\nlater:1\n")
    nodes.write_text("127.0.0.1\n")
    options = ["--until-pulled", str(images), "--nodes", str(nodes), "--drain-timeout", "1s"]
    return Wide(place / "root", options, str(small), named)


def pull_all(line: http.client.HTTPConnection, manifests: list[str]) -> None:
    for digest in manifests:
        assert get(line, f"/v2/app/manifests/{digest}") == 200


@pytest.mark.parametrize("how", ["stop", "SIGTERM"])
def test_end_after_wide_manifests(hostile: Hostile, wide: Wide, how: str) -> None:
    """The report waits for no manifest: images that cannot be read in time are left out of it."""
    hostile.serve(*wide.options, root=wide.root)
    with hostile.attack(
        f"{how} after {WIDE} manifests of {LAYERS:,} layers", before="over 30 s", may_end=True
    ) as under:
        line = connect(under.host)
        assert get(line, f"/v2/app/manifests/{wide.small}") == 200
        pull_all(line, wide.wide)
        while under.going():
            pull_all(line, wide.wide[:5])
        line.close()
        peak = under.costs.growth / 2**20
        begun = time.monotonic()
        if how == "stop":
            argv = [sys.executable, "-m", "mayfly", "stop"]
            argv += ["--state-dir", str(under.server.state_dir)]
            subprocess.run(argv, cwd=REPO, timeout=ENDED, capture_output=True)
        else:
            under.server.popen.send_signal(signal.SIGTERM)
        assert under.server.popen.wait(ENDED) == 3, under.server.describe()
        under.note(f"gone after {time.monotonic() - begun:.1f} s")
    assert peak < 128
    report = json.loads((under.server.state_dir / "report.json").read_text())
    assert len(report["images"]) + report["images_left_out"] == WIDE + 1
    assert report["peak_memory"]["server"] < 250 * 2**20


def test_blobs_between_wide_manifests(hostile: Hostile, wide: Wide) -> None:
    """To find the images above a blob, no manifest is read on the event loop."""
    hostile.serve(*wide.options, root=wide.root)
    with hostile.attack("blobs between wide manifests", before="stalled 20 s") as under:
        line = connect(under.host)
        assert get(line, f"/v2/app/manifests/{wide.small}") == 200
        while under.going():
            pull_all(line, wide.wide)
            for blob in (CONFIG, LAYER):
                assert get(line, f"/v2/app/blobs/{digests.of(blob)}") == 200
        # What a node was served before is found again.
        assert get(line, f"/v2/app/manifests/{wide.small}") == 200
        for blob in (CONFIG, LAYER):
            assert get(line, f"/v2/app/blobs/{digests.of(blob)}") == 200
        line.close()
        # The config is one of the wide manifests', too: it takes a quiet while to be sure.
        poll(
            lambda: matrix(under.server.state_dir)["app:1"] == {"127.0.0.1": State.SERVED},
            lambda: matrix(under.server.state_dir),
        )
