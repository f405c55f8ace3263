"""What clients were told, answer by answer, and what a store found after a power cut must hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import StorageError
from mayfly.storage.manifest import Manifest
from mayfly.storage.reading import read_unverified, repositories
from tests.faults.crash_model import Key, blobs_in
from tests.support.images import digest_of, push, put_image, read

Changes = dict[Key, str | None]


@dataclass
class Told:
    """What is known once a number of answers was given, and what the next request may change."""

    known: Changes
    doubt: Changes
    referrers: dict[tuple[str, str], set[str]]

    def allowed(self, key: Key) -> set[str | None]:
        """What may be found."""
        return {self.known.get(key)} | ({self.doubt[key]} if key in self.doubt else set())

    @property
    def keys(self) -> list[Key]:
        """Everything ever spoken of."""
        return list({**self.known, **self.doubt})


@dataclass
class Story:
    """What is told as requests are answered, one after another."""

    told: list[Told] = field(default_factory=list)
    known: Changes = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)

    @contextmanager
    def request(self, changes: Changes | None = None) -> Iterator[None]:
        """Around one request, or one command."""
        doubt = changes or {}
        self.told.append(Told(dict(self.known), doubt, self._referrers()))
        yield
        self.known.update(doubt)

    def end(self) -> list[Told]:
        """The story; the last part is what holds when nobody asks for anything any more."""
        return [*self.told, Told(dict(self.known), {}, self._referrers())]

    def blob(self, repository: str, content: bytes) -> Changes:
        """What pushing or mounting a blob changes."""
        return {Key("blob", repository, digest_of(content)): digest_of(content)}

    def manifest(self, repository: str, body: bytes, *tags: str) -> Changes:
        """What putting a manifest changes."""
        digest = digest_of(body)
        self.bodies[digest] = body
        changes: Changes = {Key("manifest", repository, digest): digest}
        return changes | {Key("tag", repository, tag): digest for tag in tags}

    def deletion(self, repository: str, digest: str) -> Changes:
        """What deleting a manifest changes: every tag on it goes too."""
        tags = [k for k, v in self.known.items() if v == digest and k.kind == "tag"]
        gone = [k for k in tags if k.repository == repository]
        return dict.fromkeys([*gone, Key("manifest", repository, digest)])

    def collection(self) -> Changes:
        """What a collection changes: the blobs that no manifest names."""
        named = {
            digest
            for key, value in self.known.items()
            if key.kind == "manifest" and value
            for digest in blobs_in(self.bodies[key.name])
        }
        held = [key for key, value in self.known.items() if key.kind == "blob" and value]
        return dict.fromkeys(key for key in held if key.name not in named)

    def _referrers(self) -> dict[tuple[str, str], set[str]]:
        found: dict[tuple[str, str], set[str]] = {}
        for key, value in self.known.items():
            subject = value and json.loads(self.bodies.get(key.name, b"{}")).get("subject")
            if key.kind == "manifest" and subject:
                found.setdefault((key.repository, subject["digest"]), set()).add(key.name)
        return found


def begun_again(told: list[Told]) -> list[Told]:
    """The story of one that does what another had done in part: how far that came is in doubt."""
    doubt: Changes = {}
    found = []
    for part in reversed(told):
        doubt = doubt | part.doubt
        found.append(Told(part.known, doubt, part.referrers))
    return found[::-1]


def check(root: Path, told: Told) -> None:
    """Open the store that a power cut left: it holds what clients were told, and nothing wrong."""
    store = DistributionStore(root)
    try:
        check_told(store, told)
        for (repository, subject), wanted in told.referrers.items():
            listed = list(store.referrers(repository, digests.parse(subject)))
            settled = {d for d in wanted if Key("manifest", repository, d) not in told.doubt}
            assert settled <= {str(d["digest"]) for d in listed}
        for digest, path in store.stored_blobs():
            assert digests.of(path.read_bytes(), digest.algorithm) == digest, f"{digest} is wrong"
        for repository in repositories(store):
            _check_images(store, repository)
        (scratch,) = (root / "docker/registry/v2/_mayfly/scratch").iterdir()
        assert list(scratch.iterdir()) == [], "temporary files are left"
        push(store, "after/the-cut", b"pushed")
        put_image(store, "after/the-cut", "v1")
    finally:
        store.close()


def check_told(store: DistributionStore, told: Told) -> None:
    """A store holds what clients were told."""
    for key in told.keys:
        found = _find(store, key)
        assert found in told.allowed(key), f"{key} is {found}, told {told.allowed(key)}"


def check_acknowledged(root: Path, told: Told) -> None:
    """As `check`, where another registry may have left anything: what was answered is right."""
    store = DistributionStore(root)
    try:
        check_told(store, Told(told.known, {}, {}))
    finally:
        store.close()


def _find(store: DistributionStore, key: Key) -> str | None:
    """What a store has under a key; the digest of the bytes, not the one it says."""
    try:
        if key.kind == "tag":
            return str(store.tag(key.repository, key.name))
        locate = store.blob if key.kind == "blob" else store.manifest
        return digest_of(read(locate(key.repository, digests.parse(key.name))))
    except StorageError:
        return None


def _check_images(store: DistributionStore, repository: str) -> None:
    """Every tag leads to a manifest, and every manifest to all that it names."""
    for tag in store.tags(repository):
        store.manifest(repository, store.tag(repository, tag))
    for digest in store.revisions(repository):
        manifest = _manifest(store, repository, digest)
        for blob in manifest.blobs:
            assert store.blob(repository, blob.digest).size == blob.size
        for child in manifest.manifests:
            store.manifest(repository, child.digest)


def _manifest(store: DistributionStore, repository: str, digest: Digest) -> Manifest:
    return manifests.parse(read_unverified(store, repository, digest))
