"""Importing: the images of a bundle, or of any layer, into the writable store.

Each blob is copied once and hashed on the way, several at a time; further repositories get a link.
What the store has already is not copied, so an import that was stopped goes on where it was, and a
bundle of differences (`storage.exporting`) completes what is there. One repository after the other
gets its manifests as soon as all they name is in place, children before parents, tags last: who
pulls meanwhile sees an image as it was or as it will be, and a collector at work beside this finds
little that nothing refers to yet. Runs beside a server on the same root.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from storage.bundle.errors import BundleInvalid, Interrupted
from storage.bundle.layer import Layer
from storage.bundle.verified import BundleExtent
from storage.digest import Digest
from storage.distribution import DistributionStore
from storage.errors import (
    BlobUnknown,
    ContentCorrupt,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestUnknown,
)
from storage.images import load, repositories
from storage.interface import Extent
from storage.manifest import Descriptor, Manifest

WORKERS = 4
"""Blobs copied and hashed at once."""

Progress = Callable[[int], None]
"""Told how many bytes more were copied."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an import has to do.

    Attributes:
        copies: blob → the first repository that needs it, and where its bytes lie.
        links: (repository, blob) pairs to link once the bytes are in the store.
        incomplete: repository and content that neither the bundle nor the store has; platforms
            that an index names but the bundle left out are not among them.
    """

    copies: dict[Digest, tuple[str, Extent]]
    links: tuple[tuple[str, Digest], ...]
    incomplete: tuple[tuple[str, Digest], ...]

    @property
    def size(self) -> int:
        """Bytes to copy."""
        return sum(extent.size for _, extent in self.copies.values())


@dataclass(slots=True)
class _Draft:
    copies: dict[Digest, tuple[str, Extent]] = field(default_factory=dict)
    links: list[tuple[str, Digest]] = field(default_factory=list)
    incomplete: list[tuple[str, Digest]] = field(default_factory=list)


def plan(store: DistributionStore, source: Layer) -> Plan:
    """Compare what the source has with what the store has; reads manifests only.

    What the store has is spared by collectors for the time of their grace, as if pushed now.
    """
    draft = _Draft()
    for repository in repositories(source):
        for _, manifest in _manifests(source, repository):
            for descriptor in manifest.blobs:
                if descriptor.distributable:
                    _plan_blob(store, source, repository, descriptor, draft)
    return Plan(draft.copies, tuple(draft.links), tuple(draft.incomplete))


def _plan_blob(
    store: DistributionStore, source: Layer, repository: str, blob: Descriptor, draft: _Draft
) -> None:
    digest = blob.digest
    try:
        # One of them is wrong about the size: the bytes tell.
        if store.hold(repository, digest).size == blob.size or store.is_whole(digest):
            return
    except BlobUnknown:
        pass
    if digest in draft.copies or next(store.holders(digest), None) is not None:
        draft.links.append((repository, digest))
        return
    extent = source.content(digest)
    if extent is None:
        draft.incomplete.append((repository, digest))
    else:
        draft.copies[digest] = (repository, extent)


def carry_out(
    store: DistributionStore,
    source: Layer,
    planned: Plan,
    progress: Progress = lambda size: None,
    workers: int = WORKERS,
) -> list[str]:
    """Do what was planned; the names of the images that are now in the store.

    Args:
        store: opened to take indexes with platforms left out.
        progress: called from several threads.

    Raises:
        BundleInvalid: a blob of the source does not have its digest; nothing refers to it.
        BlobUnknown: a collector took what the import relied on.
        StorageFull: it does not fit, and nothing was begun; or the disk filled up meanwhile, and
            what was copied so far is not copied again by the next try.
    """
    store.check_room(planned.size)
    stopping = threading.Event()

    def step(size: int) -> None:
        if stopping.is_set():
            raise Interrupted("the import was stopped")
        progress(size)

    names: list[str] = []
    links: dict[str, dict[Digest, None]] = {}
    for repository, digest in planned.links:
        links.setdefault(repository, {})[digest] = None
    with ThreadPoolExecutor(workers, "import") as pool:
        try:
            # In the order of the repositories: the first are whole while others are copied.
            jobs = {
                digest: pool.submit(_copy, store, repository, digest, extent, step)
                for digest, (repository, extent) in planned.copies.items()
            }
            for repository in repositories(source):
                _await_blobs(source, repository, jobs)
                for digest in links.get(repository, ()):
                    _link(store, repository, digest)
                names += _put_manifests(store, source, repository)
        except BaseException:
            # Those at work are large; what they have copied so far is of no use to anybody.
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
    return names


def _copy(
    store: DistributionStore, repository: str, digest: Digest, extent: Extent, progress: Progress
) -> None:
    try:
        with store.copying(repository, digest.algorithm) as upload:
            upload.copy(extent, progress)
            upload.commit(digest)
    except (ContentCorrupt, DigestInvalid) as error:
        where = f"{extent.proof.bundle}: " if isinstance(extent, BundleExtent) else ""
        raise BundleInvalid(f"{where}blob {digest}: {error.message}") from None


def _await_blobs(source: Layer, repository: str, jobs: Mapping[Digest, Future[None]]) -> None:
    for _, manifest in _manifests(source, repository):
        for descriptor in manifest.blobs:
            if descriptor.digest in jobs:
                jobs[descriptor.digest].result()


def _link(store: DistributionStore, repository: str, digest: Digest) -> None:
    for holder in store.holders(digest):
        store.mount(repository, digest, holder)
        return
    raise _went_away(str(digest))


def _went_away(what: str) -> BlobUnknown:
    return BlobUnknown(f"{what} went away while it was imported (mayfly gc?): import again")


def _put_manifests(store: DistributionStore, source: Layer, repository: str) -> Iterator[str]:
    left = dict(_manifests(source, repository))
    tags: dict[Digest, list[str]] = {}
    for tag in source.tags(repository):
        try:
            tags.setdefault(source.tag(repository, tag), []).append(tag)
        except ManifestUnknown:
            continue  # a tag that leads nowhere in the bundle leads nowhere here
    while left:
        ready = [d for d, m in left.items() if not any(c.digest in left for c in m.manifests)]
        for digest in ready:
            wanted = tuple(tags.get(digest, ()))
            try:
                store.put_manifest(repository, left.pop(digest), digest, wanted)
            except ManifestBlobUnknown:
                raise _went_away(f"a blob of {repository}@{digest}") from None
            yield from (f"{repository}:{tag}" for tag in wanted)


def _manifests(source: Layer, repository: str) -> Iterator[tuple[Digest, Manifest]]:
    for digest in source.revisions(repository):
        yield digest, load(source, repository, digest)
