"""Clients and commands that do as they like with a few names at once; then the books are read.

The server is a process of its own that collects every second. Beside it work the commands that may
(`mayfly rm`, `mayfly gc`): a second store on the same root.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from contextlib import closing

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import ManifestUnknown
from mayfly.storage.upkeep.collect import collect
from mayfly.storage.upkeep.verify import verify
from tests.faults.asking import WAYS, Asking
from tests.faults.history import History
from tests.faults.model import BLOBS, MANIFEST_BLOB_UNKNOWN, MANIFESTS, OK
from tests.support.images import all_succeed
from tests.support.process import Mayfly

SECONDS = float(os.environ.get("MAYFLY_SOAK_SECONDS", "4"))
CLIENTS = 6
COMMANDS = 2
REPOSITORIES = ("one/a", "two")
TAGS = ("x", "y")
GRACE = 3.0


def tag_keys(repository: str) -> list[tuple[str, ...]]:
    return [(repository, "tag", tag) for tag in TAGS]


def manifest_key(repository: str, digest: Digest) -> tuple[str, ...]:
    return repository, "manifest", str(digest)


CHILDREN = {child.digest for manifest in MANIFESTS.values() for child in manifest.manifests}
"""Manifests that an index names, and that clients delete beneath it."""


class Worker:
    """Chooses what to do next; everything goes into the history."""

    def __init__(self, history: History, seed: str) -> None:
        self.chance = random.Random(seed)
        self.history = history
        self.repository = REPOSITORIES[0]
        self.digest = next(iter(MANIFESTS))
        self.tag = TAGS[0]

    def work(self, until: float, actions: list[Callable[[], object]]) -> None:
        """Act until then."""
        while time.monotonic() < until:
            self.repository = self.chance.choice(REPOSITORIES)
            self.digest = self.chance.choice(list(MANIFESTS))
            self.tag = self.chance.choice(TAGS)
            self.chance.choice(actions)()

    def deleting_manifest(self, delete: Callable[[], bool]) -> None:
        """Delete a manifest and so the tags on it; ``delete`` says whether it was there."""
        keys = manifest_key(self.repository, self.digest), *tag_keys(self.repository)
        with self.history.during(*keys) as (manifest, *tags):
            for tag in tags:
                tag.only = str(self.digest)
            if not delete():
                manifest.is_read = True
                for tag in tags:
                    tag.failed = True

    def deleting_tag(self, delete: Callable[[], bool]) -> None:
        """Delete a tag; ``delete`` says whether it was there."""
        with self.history.during((self.repository, "tag", self.tag)) as (event,):
            event.is_read = not delete()


class Client(Worker):
    """Over HTTP."""

    def __init__(self, asking: Asking, history: History, seed: str) -> None:
        super().__init__(history, seed)
        self.ask = asking

    def actions(self) -> list[Callable[[], object]]:
        """What a client does, the more often the more it stands here."""
        pushes = [lambda: self.push(self.digest)] * 4
        return [*pushes, self.pull, self.pull, self.read, self.remove, self.remove_tag]

    def push(self, digest: Digest) -> bool:
        """As docker does: ask for a blob, try to mount it, send it; then the manifest."""
        manifest = MANIFESTS[digest]
        for child in manifest.manifests:
            if not self.push(child.digest):
                return False
        for blob in manifest.blobs:
            self._push_blob(blob.digest)
        by_digest = bool(self.chance.getrandbits(1))
        reference = f"{digest}?tag={self.tag}" if by_digest else self.tag
        keys = manifest_key(self.repository, digest), (self.repository, "tag", self.tag)
        with self.history.during(*keys) as events:
            target = f"/v2/{self.repository}/manifests/{reference}"
            kind = {"Content-Type": manifest.media_type}
            code = self.ask("PUT", target, manifest.body, kind).code
            # Another client may have deleted a child, the collector have taken what waited.
            assert code in (OK, MANIFEST_BLOB_UNKNOWN)
            for event in events:
                event.value, event.failed = str(digest), code != OK
        return code == OK

    def _push_blob(self, digest: Digest) -> None:
        if self.chance.getrandbits(1):
            if self.ask("HEAD", f"/v2/{self.repository}/blobs/{digest}").status == 200:
                return
            uploads = f"/v2/{self.repository}/blobs/uploads/"
            answer = self.ask("POST", f"{uploads}?mount={digest}")
            if answer.status == 201:
                return
            assert self.ask("DELETE", answer.headers["Location"]).status == 204
        way = self.chance.randrange(WAYS)
        assert self.ask.push(self.repository, BLOBS[digest], way).status == 201

    def pull(self) -> None:
        """By tag."""
        with self.history.during((self.repository, "tag", self.tag)) as (event,):
            event.is_read = True
            answer = self.ask("GET", f"/v2/{self.repository}/manifests/{self.tag}")
            event.value = str(digests.of(answer.body)) if answer.code == OK else None
            assert event.value == answer.headers.get("Docker-Content-Digest")

    def read(self) -> None:
        """By digest."""
        with self.history.during(manifest_key(self.repository, self.digest)) as (event,):
            event.is_read = True
            answer = self.ask("GET", f"/v2/{self.repository}/manifests/{self.digest}")
            event.value = str(digests.of(answer.body)) if answer.code == OK else None
            assert event.value in (None, str(self.digest))

    def remove(self) -> None:
        """The manifest."""
        target = f"/v2/{self.repository}/manifests/{self.digest}"
        self.deleting_manifest(lambda: self.ask("DELETE", target).status == 202)

    def remove_tag(self) -> None:
        """The tag."""
        target = f"/v2/{self.repository}/manifests/{self.tag}"
        self.deleting_tag(lambda: self.ask("DELETE", target).status == 202)


class Command(Worker):
    """Beside the server."""

    def __init__(self, store: DistributionStore, history: History, seed: str) -> None:
        super().__init__(history, seed)
        self.store = store

    def actions(self) -> list[Callable[[], object]]:
        """What an operator does."""
        return [self.remove, self.remove_tag, lambda: self.collect(), lambda: time.sleep(0.05)]

    def collect(self) -> None:
        """As `mayfly gc`."""
        collect(self.store, GRACE)

    def remove(self) -> None:
        """As `mayfly rm` by digest."""
        self.deleting_manifest(
            lambda: _was_there(lambda: self.store.delete_manifest(self.repository, self.digest))
        )

    def remove_tag(self) -> None:
        """As `mayfly rm` by tag."""
        self.deleting_tag(
            lambda: _was_there(lambda: self.store.delete_tag(self.repository, self.tag))
        )


def _was_there(delete: Callable[[], None]) -> bool:
    try:
        delete()
    except ManifestUnknown:
        return False
    return True


def test_every_answer_can_be(start_mayfly: Callable[..., Mayfly]) -> None:
    """No answer is one that no order of the requests gives; what a kill leaves is whole."""
    server = start_mayfly("--gc-interval", "1s", "--gc-grace", f"{GRACE:.0f}s")
    history = History()
    seed = random.randrange(2**32)
    until = time.monotonic() + SECONDS

    def client(number: int) -> None:
        with closing(Asking(server.host)) as asking:
            one = Client(asking, history, f"{seed} {number}")
            one.work(until, one.actions())

    def command(number: int) -> None:
        with closing(DistributionStore(server.root)) as store:
            one = Command(store, history, f"{seed} command {number}")
            one.work(until, one.actions())

    calls = [lambda n=n: client(n) for n in range(CLIENTS)]
    all_succeed([*calls, *[lambda n=n: command(n) for n in range(COMMANDS)]])

    with closing(Asking(server.host)) as asking:
        last = Client(asking, history, "last")
        for last.repository in REPOSITORIES:
            for last.tag in TAGS:
                last.pull()
            for last.digest in MANIFESTS:
                last.read()
            _assert_whole(asking, last.repository, seed)
    assert history.impossible() == [], f"seed {seed}"
    assert history.size > 100
    server.kill()
    with closing(DistributionStore(server.root)) as store:
        # Children of an index may have been deleted, and collected after that.
        lost = [one for one in verify(store).findings if one.digest not in CHILDREN]
        assert lost == [], f"seed {seed}"
    assert list(server.root.rglob("_uploads/*")) == []


def _assert_whole(asking: Asking, repository: str, seed: int) -> None:
    """Every tag that is listed leads to a manifest, and every manifest to its blobs.

    Nobody deletes a blob; children of an index may be deleted.
    """
    listed = asking("GET", f"/v2/{repository}/tags/list")
    tags = json.loads(listed.body)["tags"] if listed.code == OK else []
    for reference in (*tags, *map(str, MANIFESTS)):
        answer = asking("GET", f"/v2/{repository}/manifests/{reference}")
        assert answer.code == OK or reference not in tags, f"seed {seed}: {reference} is listed"
        if answer.code == OK:
            for blob in MANIFESTS[digests.of(answer.body)].blobs:
                body = asking("GET", f"/v2/{repository}/blobs/{blob.digest}").body
                assert digests.of(body) == blob.digest, f"seed {seed}: {reference}"
