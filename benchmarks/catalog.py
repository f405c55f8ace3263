"""Many repositories: whether a page or a start costs more the more of them there are.

The store is written straight into the directory format of CNCF distribution, which Mayfly and
both distributions read; so all three serve the same files.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import time
from pathlib import Path

from benchmarks import load
from benchmarks.bench import Bench, Figures
from benchmarks.load import OCI_MANIFEST
from benchmarks.peers import Peer
from benchmarks.server import Server

MANY, FEW = 10_000, 100
TAGS = 10
PAGE = "first page ms"
LAST_PAGE = "last page ms"
TAGS_PAGE = "tags ms"
START = "start ms"
GROWTH = ", growth"
"""Ends the name of a figure: how many times that of `FEW` repositories it is."""

_REPEAT = 100
_PATIENCE = 3.0
"""Seconds after which a slow page is asked for no more."""

_LINKS = 30_000
"""Names that one file is given at most; ext4 allows 65,000."""


def measure(bench: Bench, peer: Peer, verify: bool) -> Figures:
    """Figures of many repositories, and their growth over few."""
    many_count = max(int(MANY * bench.scale), FEW)
    few = _measure(bench, peer, _store(bench, FEW), FEW)
    many = _measure(bench, peer, _store(bench, many_count), many_count)
    growth = {name + GROWTH: many[name] / few[name] for name in few}
    return {**many, **growth}


def _measure(bench: Bench, peer: Peer, root: Path, count: int) -> Figures:
    last, middle = _name(count - 101), _name(count // 2)
    scopes = ["registry:catalog:*", f"repository:{middle}:pull"]
    with bench.serve(peer, root) as server:
        authorization = load.token(server, scopes) if peer.authenticates else ""

        def page(path: str, key: str, entries: int) -> float:
            return _page(server, authorization, path, key, entries)

        return {
            PAGE: page("/v2/_catalog?n=100", "repositories", 100),
            LAST_PAGE: page(f"/v2/_catalog?n=100&last={last}", "repositories", 100),
            TAGS_PAGE: page(f"/v2/{middle}/tags/list", "tags", TAGS),
            START: server.ready_seconds * 1000,
        }


def _page(server: Server, authorization: str, path: str, key: str, entries: int) -> float:
    """Median milliseconds of a page; its number of entries is checked."""
    times: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    headers = {"Authorization": authorization} if authorization else {}
    began = time.monotonic()
    while len(times) < _REPEAT and time.monotonic() - began < _PATIENCE:
        asked = time.perf_counter()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        times.append(time.perf_counter() - asked)
        if answer.status != 200 or len(json.loads(body)[key]) != entries:
            raise RuntimeError(f"{path} answered {answer.status}: {body[:200]!r}")
    connection.close()
    return statistics.median(times) * 1000


def _name(number: int) -> str:
    return f"bench/r{number:06d}"


def _store(bench: Bench, count: int) -> Path:
    """A store of this number of repositories, made at the first call."""
    root = bench.directory / f"catalog-{count}"
    if not root.exists():
        registry = root / "docker" / "registry" / "v2"
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}
        body = json.dumps(document).encode()
        digest = load.sha256(body)
        _, _, encoded = digest.partition(":")
        blob = registry / "blobs" / "sha256" / encoded[:2] / encoded
        blob.mkdir(parents=True)
        (blob / "data").write_bytes(body)
        linker = _Linker(root / "link", digest)
        for number in range(count):
            _repository(registry / "repositories" / _name(number), encoded, linker)
    return root


def _repository(path: Path, encoded: str, linker: _Linker) -> None:
    manifests = path / "_manifests"
    (path / "_layers").mkdir(parents=True)  # by this distribution 2.8 tells a repository
    revision = manifests / "revisions" / "sha256" / encoded
    revision.mkdir(parents=True)
    linker.link(revision / "link")
    (manifests / "tags").mkdir()
    for number in range(TAGS):
        tag = manifests / "tags" / f"v{number}"
        tag.mkdir()
        (tag / "current").mkdir()
        linker.link(tag / "current" / "link")


class _Linker:
    """Gives one file many names: 110,000 files with the same text take their time."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._left = 0

    def link(self, to: Path) -> None:
        if not self._left:
            self._path.unlink(missing_ok=True)
            self._path.write_text(self._text)
            self._left = _LINKS
        os.link(self._path, to)
        self._left -= 1
