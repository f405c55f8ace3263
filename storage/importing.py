"""Importing: the images of a bundle, or of any layer, into the writable store.

Each blob is copied once and hashed on the way, several at a time; further repositories get a link.
What a repository of the store has already is not copied, so an import that was stopped goes on
where it was, and a bundle of differences (`storage.exporting`) completes what is there. What only
another repository of the store has is not taken from there: a bundle that names a digest has not
shown that it has the content. Manifests are held to the rules of a push. One repository after the
other gets its manifests as soon as all they name is in place, children before parents, tags last:
who pulls meanwhile sees an image as it was or as it will be, and a collector at work beside this
finds little that nothing refers to yet. Runs beside a server on the same root.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from storage import digest as digests
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
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    SizeInvalid,
)
from storage.images import read, repositories
from storage.interface import Extent
from storage.manifest import MAX_SIZE, Descriptor, Manifest, parse

WORKERS = 4
"""Blobs copied and hashed at once."""

_REFUSED = (
    ManifestInvalid,
    DigestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    ContentCorrupt,
    BundleInvalid,
)
"""What can be wrong with one manifest of the source; the others are imported."""

Progress = Callable[[int], None]
"""Told how many bytes more were copied."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an import has to do.

    Attributes:
        copies: blob → the first repository that needs it, and where its bytes lie.
        links: (repository, blob) pairs to link once the bytes are in the store.
        incomplete: repository and content that neither the bundle nor the store has there;
            platforms that an index names but the bundle left out are not among them.
        refused: manifests that no push would be allowed to bring, which are left out, and why.
    """

    copies: dict[Digest, tuple[str, Extent]]
    links: tuple[tuple[str, Digest], ...]
    incomplete: tuple[tuple[str, Digest], ...]
    refused: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes to copy."""
        return sum(extent.size for _, extent in self.copies.values())


@dataclass(slots=True)
class _Draft:
    copies: dict[Digest, tuple[str, Extent]] = field(default_factory=dict)
    links: dict[tuple[str, Digest], None] = field(default_factory=dict)
    incomplete: dict[tuple[str, Digest], None] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def plan(store: DistributionStore, source: Layer) -> Plan:
    """Compare what the source has with what the store has; reads manifests only.

    What the store has is spared by collectors for the time of their grace, as if pushed now.
    """
    draft = _Draft()
    for repository in repositories(source):
        for _, manifest in _manifests(source, repository, draft.refused):
            for descriptor in manifest.blobs:
                _plan_blob(store, source, repository, descriptor, draft)
    return Plan(draft.copies, tuple(draft.links), tuple(draft.incomplete), tuple(draft.refused))


def _plan_blob(
    store: DistributionStore, source: Layer, repository: str, blob: Descriptor, draft: _Draft
) -> None:
    digest = blob.digest
    if (repository, digest) in draft.links or (repository, digest) in draft.incomplete:
        return
    try:
        # One of them is wrong about the size: the bytes tell.
        if store.hold(repository, digest).size == blob.size or store.is_whole(digest):
            return
    except BlobUnknown:
        pass
    extent: Extent | None = None
    try:
        extent = source.blob(repository, digest)
    except BlobUnknown:
        pass
    except ContentCorrupt as error:
        raise BundleInvalid(f"blob {digest} of {repository}: {error.message}") from None
    if extent is None:
        if blob.distributable:
            draft.incomplete[repository, digest] = None
    elif digest in draft.copies:
        draft.links[repository, digest] = None
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
    sharing: dict[Digest, list[str]] = {}
    for repository, digest in planned.links:
        sharing.setdefault(digest, []).append(repository)
    with ThreadPoolExecutor(workers, "import") as pool:
        try:
            # In the order of the repositories: the first are whole while others are copied.
            jobs = {
                digest: pool.submit(
                    _copy, store, repository, digest, extent, step, sharing.get(digest, ())
                )
                for digest, (repository, extent) in planned.copies.items()
            }
            for repository in repositories(source):
                _await_blobs(source, repository, jobs)
                names += _put_manifests(store, source, repository)
        except BaseException:
            # Those at work are large; what they have copied so far is of no use to anybody.
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
    return names


def _copy(
    store: DistributionStore,
    repository: str,
    digest: Digest,
    extent: Extent,
    progress: Progress,
    sharing: Iterable[str],
) -> None:
    try:
        with store.copying(repository, digest.algorithm) as upload:
            upload.copy(extent, progress)
            upload.commit(digest)
    except (ContentCorrupt, DigestInvalid) as error:
        where = f"{extent.proof.bundle}: " if isinstance(extent, BundleExtent) else ""
        raise BundleInvalid(f"{where}blob {digest}: {error.message}") from None
    # At once: an import that is stopped and begun again copies it for none of them.
    for other in sharing:
        store.mount(other, digest, repository)


def _await_blobs(source: Layer, repository: str, jobs: Mapping[Digest, Future[None]]) -> None:
    for _, manifest in _manifests(source, repository):
        for descriptor in manifest.blobs:
            if descriptor.digest in jobs:
                try:
                    jobs[descriptor.digest].result()
                except BlobUnknown:
                    raise _went_away(str(descriptor.digest)) from None


def _went_away(what: str) -> BlobUnknown:
    return BlobUnknown(f"{what} went away while it was imported (mayfly gc?): import again")


def _put_manifests(store: DistributionStore, source: Layer, repository: str) -> Iterator[str]:
    tags: dict[Digest, list[str]] = {}
    for tag in source.tags(repository):
        try:
            tags.setdefault(source.tag(repository, tag), []).append(tag)
        except ManifestUnknown:
            continue  # a tag that leads nowhere in the bundle leads nowhere here
    for digest in _children_first(source, repository):
        wanted = tuple(tags.get(digest, ()))
        try:
            store.put_manifest(repository, _strict(source, repository, digest), digest, wanted)
        except ManifestBlobUnknown:
            raise _went_away(f"a blob of {repository}@{digest}") from None
        except SizeInvalid as error:
            raise BundleInvalid(f"{repository}@{digest}: {error.message}") from None
        yield from (f"{repository}:{tag}" for tag in wanted)


def _children_first(source: Layer, repository: str) -> Iterator[Digest]:
    """The manifests of a repository, each after those it names. Their bytes are not kept."""
    children = {
        digest: dict.fromkeys(child.digest for child in manifest.manifests)
        for digest, manifest in _manifests(source, repository)
    }
    parents: dict[Digest, list[Digest]] = {}
    waits_for = {}
    for digest, named in children.items():
        here = [child for child in named if child in children]
        waits_for[digest] = len(here)
        for child in here:
            parents.setdefault(child, []).append(digest)
    ready = [digest for digest, count in waits_for.items() if count == 0]
    while ready:
        digest = ready.pop()
        yield digest
        for parent in parents.get(digest, ()):
            waits_for[parent] -= 1
            if waits_for[parent] == 0:
                ready.append(parent)


def _manifests(
    source: Layer, repository: str, refused: list[str] | None = None
) -> Iterator[tuple[Digest, Manifest]]:
    """The manifests that a push would be allowed to bring; the others are told."""
    for digest in source.revisions(repository):
        try:
            yield digest, _strict(source, repository, digest)
        except _REFUSED as error:
            if refused is not None:
                refused.append(f"{repository}@{digest}: {error.message}")


def _strict(source: Layer, repository: str, digest: Digest) -> Manifest:
    extent = source.manifest(repository, digest)
    if extent.size > MAX_SIZE:
        raise ManifestTooLarge(f"manifest is larger than {MAX_SIZE} bytes")
    body = read(extent)
    if digests.of(body, digest.algorithm) != digest:
        raise ContentCorrupt(f"manifest {digest} is damaged", {"digest": str(digest)})
    return parse(body)
