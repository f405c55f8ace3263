"""Twenty clients at once, each with a connection of its own, against the app on a real socket."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from logging import ERROR
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.manifest import Manifest, parse
from tests.faults.asking import WAYS, Asking, OverHTTP, running_loop
from tests.faults.model import OK
from tests.storage.disk import skip_sync
from tests.support.client import Answer
from tests.support.images import all_succeed, image_body

CLIENTS = 20
LAYER = random.Random(20).randbytes(3_000_000)
VERSIONS = 25
PULLERS = 6


@pytest.fixture
def server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[OverHTTP]:
    """A server that nothing here may make log an error."""
    skip_sync(monkeypatch)
    root = tmp_path / "root"
    with running_loop() as loop:
        server = OverHTTP(root, lambda: DistributionStore(root), loop)
        yield server
        server.close()
    assert [record for record in caplog.get_records("call") if record.levelno >= ERROR] == []


def at_once(server: OverHTTP, ask: Callable[[Asking, int], Answer]) -> list[Answer]:
    """Twenty clients that each have a connection ask at the same moment; their answers."""
    answers: dict[int, Answer] = {}

    def client(number: int) -> None:
        with closing(Asking(server.host)) as asking:
            assert asking("GET", "/v2/").status == 200
            ready.wait()
            answers[number] = ask(asking, number)

    ready = threading.Barrier(CLIENTS)
    all_succeed([lambda n=n: client(n) for n in range(CLIENTS)])
    return [answers[number] for number in range(CLIENTS)]


def of_size(root: Path, size: int) -> list[Path]:
    """The files of a store that have this size."""
    return [path for path in root.rglob("*") if path.is_file() and path.stat().st_size == size]


def assert_tidy(server: OverHTTP) -> None:
    """Nothing half-made is left: no scratch file, no session."""
    assert server.left_over() == []
    assert server.sessions() == set()


def body_of(server: OverHTTP, target: str) -> bytes:
    """What the server answers now."""
    with closing(Asking(server.host)) as asking:
        answer = asking("GET", target)
    assert answer.code == OK, answer.body
    return answer.body


@pytest.mark.parametrize("spread", [1, CLIENTS], ids=["one repository", "twenty repositories"])
def test_one_blob_by_twenty(server: OverHTTP, spread: int) -> None:
    """Whether at once, by PUT or by a stream: each is told 201, and one copy lies on the disk."""
    layer = LAYER + b"%d" % spread * (spread + 1)
    digest = digests.of(layer)
    answers = at_once(server, lambda ask, n: ask.push(f"blob{n % spread}/x", layer, n % WAYS))
    assert [answer.status for answer in answers] == [201] * CLIENTS
    for number in range(spread):
        assert body_of(server, f"/v2/blob{number}/x/blobs/{digest}") == layer
    assert len(of_size(server.root, len(layer))) == 1
    assert_tidy(server)


def test_one_session_by_twenty(server: OverHTTP) -> None:
    """Of twenty that finish one session one is told 201, the others that it is over."""
    with closing(Asking(server.host)) as asking:
        location = asking.begin("session")
        assert asking("PATCH", location, LAYER).status == 202
    target = f"{location}?digest={digests.of(LAYER)}"
    codes = sorted(answer.code for answer in at_once(server, lambda ask, n: ask("PUT", target)))
    assert codes == [OK, *["BLOB_UPLOAD_UNKNOWN"] * (CLIENTS - 1)]
    assert body_of(server, f"/v2/session/blobs/{digests.of(LAYER)}") == LAYER
    assert_tidy(server)


def images(repository: str, server: OverHTTP, count: int) -> list[Manifest]:
    """Images of one layer that differ in their configuration, whose blobs are pushed."""
    found = []
    with closing(Asking(server.host)) as asking:
        assert asking.push(repository, LAYER, 0).status == 201
        for number in range(count):
            config = json.dumps({"number": number}).encode()
            assert asking.push(repository, config, 0).status == 201
            found.append(parse(image_body(config, [LAYER])))
    return found


def put(asking: Asking, repository: str, reference: str, manifest: Manifest) -> Answer:
    """Push a manifest."""
    headers = {"Content-Type": manifest.media_type}
    return asking("PUT", f"/v2/{repository}/manifests/{reference}", manifest.body, headers)


def test_one_manifest_by_twenty(server: OverHTTP) -> None:
    """The same manifest under the same tag: everyone is told 201, and one copy is there."""
    (image,) = images("same", server, 1)
    answers = at_once(server, lambda ask, n: put(ask, "same", "v1", image))
    assert [answer.status for answer in answers] == [201] * CLIENTS
    assert body_of(server, "/v2/same/manifests/v1") == image.body
    assert len(of_size(server.root, len(image.body))) == 1
    assert_tidy(server)


def test_one_tag_by_twenty(server: OverHTTP) -> None:
    """Different manifests under one tag: one of them has it, all are there."""
    pushed = images("contended", server, CLIENTS)
    answers = at_once(server, lambda ask, n: put(ask, "contended", "v1", pushed[n]))
    assert [answer.status for answer in answers] == [201] * CLIENTS
    assert body_of(server, "/v2/contended/manifests/v1") in [image.body for image in pushed]
    for image in pushed:
        target = f"/v2/contended/manifests/{digests.of(image.body)}"
        assert body_of(server, target) == image.body
    assert json.loads(body_of(server, "/v2/contended/tags/list"))["tags"] == ["v1"]
    assert_tidy(server)


@pytest.mark.parametrize("deleting", [False, True], ids=["kept", "deleted"])
def test_moving_tag_is_pulled_whole(server: OverHTTP, deleting: bool) -> None:
    """A tag moves without rest, what it left may be deleted at once: every pull gets an image.

    By HEAD and by GET, with the digest of the body that comes, and all its blobs.
    """
    repository = f"moving/{deleting}".lower()
    versions = images(repository, server, VERSIONS)
    known = {str(digests.of(image.body)): image for image in versions}
    moved = threading.Event()
    pulls: list[str] = []

    def move() -> None:
        with closing(Asking(server.host)) as asking:
            for before, after in pairwise(versions):
                assert put(asking, repository, "v1", after).status == 201
                old = f"/v2/{repository}/manifests/{digests.of(before.body)}"
                assert not deleting or asking("DELETE", old).status == 202
        moved.set()

    def pull() -> None:
        with closing(Asking(server.host)) as asking:
            while not moved.is_set():
                head = asking("HEAD", f"/v2/{repository}/manifests/v1")
                assert head.status == 200
                assert head.headers["Docker-Content-Digest"] in known
                answer = asking("GET", f"/v2/{repository}/manifests/v1")
                assert answer.code == OK
                digest = answer.headers["Docker-Content-Digest"]
                assert answer.body == known[digest].body
                pulls.append(digest)
                for blob in known[digest].blobs:
                    body = asking("GET", f"/v2/{repository}/blobs/{blob.digest}").body
                    assert digests.of(body) == blob.digest

    with closing(Asking(server.host)) as asking:
        assert put(asking, repository, "v1", versions[0]).status == 201
    all_succeed([move, *[pull] * PULLERS])
    assert len(set(pulls)) > 2
