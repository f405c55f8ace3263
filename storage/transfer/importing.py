"""Import the images of bundles into the writable store.

Each blob is copied once and hashed meanwhile, several at a time; further repositories get a link.
Content that a repository of the store has is not copied. So a stopped import resumes, and a bundle
of differences (`storage.transfer.exporting`) completes the images of its target. Content that only
another repository of the store has is not taken from there: a bundle that names a digest has not
shown that it has the content. Manifests follow the rules of a push. One repository after the other
gets its manifests as soon as everything they name is in place, children before parents, tags last.
So a pull meanwhile sees the old image or the new one, and a collector that runs meanwhile finds
little unreferenced content. The import runs beside a server on the same root.

An archive is imported whole or not at all: one that lacks content was cut short, or builds on
content that is not here. A registry's directory is a store like any: its damaged images are named,
the others imported. An index is imported with the manifests it names, so that no tag points at half
an image.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from mayfly.storage.bundle.diagnostics import Code, Diagnostic
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import (
    BlobUnknown,
    ContentCorrupt,
    DigestInvalid,
    Interrupted,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    SizeInvalid,
    StorageError,
)
from mayfly.storage.interface import Extent, LowerStore
from mayfly.storage.manifest import Descriptor, Manifest, parse
from mayfly.storage.reading import read_manifest, repositories, tags_at

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
"""Errors of a single manifest of the source; others are imported nevertheless."""

Progress = Callable[[int], None]
"""Called with the number of bytes copied since the last call."""


IsDirectory = Callable[[str], bool]
"""Whether a repository comes from a registry's directory: its damaged images are left out."""


class LeftOut(NamedTuple):
    """An image that is not imported.

    Attributes:
        repository: of the image.
        digest: of its manifest.
        code: the kind of fault.
        reason: for the operator.
        needs: the content that is missing or damaged, if it is known.
    """

    repository: str
    digest: Digest
    code: Code
    reason: str
    needs: Digest | None = None


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """The steps of an import.

    Attributes:
        copies: by blob, the first repository that needs it and where its bytes lie.
        links: (repository, blob) pairs to link once the bytes are in the store.
        incomplete: content, by repository, that neither the bundle nor the store has there;
            platforms that the bundle left out are not counted.
        refused: manifests that a push would reject, and damaged images of a registry's directory.
        is_directory: see `plan`.
    """

    copies: dict[Digest, tuple[str, Extent]]
    links: tuple[tuple[str, Digest], ...]
    incomplete: tuple[tuple[str, Digest], ...]
    refused: tuple[LeftOut, ...]
    is_directory: IsDirectory

    @property
    def size(self) -> int:
        """Bytes to copy."""
        return sum(extent.size for _, extent in self.copies.values())


class Imported(NamedTuple):
    """The outcome of an import.

    Attributes:
        names: of the images that are in the store now.
        left_out: images that are not: refused by the plan, or found damaged since.
    """

    names: list[str]
    left_out: list[LeftOut]


@dataclass(slots=True)
class _Draft:
    copies: dict[Digest, tuple[str, Extent]] = field(default_factory=dict)
    links: dict[tuple[str, Digest], None] = field(default_factory=dict)
    incomplete: dict[tuple[str, Digest], None] = field(default_factory=dict)


def plan(
    store: DistributionStore,
    source: LowerStore,
    is_directory: IsDirectory = lambda repository: False,
) -> ImportPlan:
    """Compare the source with the store; only manifests are read.

    Content that the store has gets a new age, so that collectors keep it during their grace.

    Args:
        store: to import into.
        source: the bundles.
        is_directory: see `IsDirectory`.
    """
    draft = _Draft()
    refused: list[LeftOut] = []
    for repository in repositories(source):
        for digest, manifest in _manifests(source, repository, refused):
            found: dict[Digest, Extent] = {}
            try:
                lacking = _find_blobs(store, source, repository, manifest, found)
            except (BundleInvalid, OSError) as error:
                if not is_directory(repository):
                    raise
                refused.append(LeftOut(repository, digest, _code(error), _reason(error)))
                continue
            if lacking and is_directory(repository):
                reason = f"{lacking[0]} is gone or damaged"
                code = Code.BLOBS_MISSING
                refused.append(LeftOut(repository, digest, code, reason, lacking[0]))
                continue
            draft.incomplete.update(((repository, blob), None) for blob in lacking)
            for blob, extent in found.items():
                first, _ = draft.copies.setdefault(blob, (repository, extent))
                if first != repository:
                    draft.links[repository, blob] = None
    return ImportPlan(
        draft.copies, tuple(draft.links), tuple(draft.incomplete), tuple(refused), is_directory
    )


def _find_blobs(
    store: DistributionStore,
    source: LowerStore,
    repository: str,
    manifest: Manifest,
    found: dict[Digest, Extent],
) -> list[Digest]:
    """Add blobs to copy or link to ``found``, and return the blobs that neither side has.

    Raises:
        BundleInvalid: a blob of the source is known to be damaged.
    """
    lacking = []
    for blob in dict.fromkeys(manifest.blobs):
        if blob.digest in found or _has(store, repository, blob):
            continue
        try:
            found[blob.digest] = source.blob(repository, blob.digest)
        except BlobUnknown:
            lacking += [blob.digest] if blob.distributable else []
        except ContentCorrupt as error:
            raise BundleInvalid(f"blob {blob.digest} of {repository}: {error.message}") from None
    return lacking


def _has(store: DistributionStore, repository: str, blob: Descriptor) -> bool:
    try:
        # Either the manifest or the file is wrong: hash the file.
        size = store.touch(repository, blob.digest).size
    except BlobUnknown:
        return False
    if size != blob.size and not store.is_whole(blob.digest):
        return False
    if store.is_link_torn(repository, blob.digest):
        store.restore_link(repository, blob.digest, is_manifest=False)
    return True


def _reason(error: StorageError | OSError) -> str:
    return error.message if isinstance(error, StorageError) else error.strerror or str(error)


def _code(error: StorageError | OSError) -> Code:
    if isinstance(error, OSError):
        return Code.UNREADABLE
    if isinstance(error, ContentCorrupt | BundleInvalid):
        return Code.CONTENT_DAMAGED
    return Code.MANIFEST_MISSING if isinstance(error, ManifestUnknown) else Code.MANIFEST_REFUSED


def diagnostic(source: LowerStore, one: LeftOut) -> Diagnostic:
    """Return the facts about an image that is not imported, with the first of its tags."""
    first = next(tags_at(source, one.repository, one.digest), None)
    tag = f":{first}" if first else ""
    return Diagnostic(
        one.code,
        f"{one.repository}{tag}@{one.digest}: {one.reason}",
        image=f"{one.repository}{tag}",
        digest=one.digest,
        needs=one.needs,
        detail=one.reason,
    )


def carry_out(
    store: DistributionStore,
    source: LowerStore,
    planned: ImportPlan,
    progress: Progress = lambda size: None,
    workers: int = WORKERS,
) -> Imported:
    """Carry out a plan.

    Args:
        store: opened to take indexes with platforms left out.
        source: the bundles.
        planned: by `plan`.
        progress: called from several threads.
        workers: blobs copied at once.

    Raises:
        BundleInvalid: a blob of the source does not have its digest; nothing refers to it.
        BlobUnknown: a collector removed content that the import relied on.
        StorageFull: it does not fit, and nothing was begun; or the disk filled up meanwhile, and
            the next import does not copy content again that is in the store.
    """
    store.check_room(planned.size)
    stopping = threading.Event()

    def step(size: int) -> None:
        if stopping.is_set():
            raise Interrupted("the import was stopped")
        progress(size)

    done = Imported([], list(planned.refused))
    sharing: dict[Digest, list[str]] = {}
    for repository, digest in planned.links:
        sharing.setdefault(digest, []).append(repository)
    with ThreadPoolExecutor(workers, "import") as pool:
        try:
            # In the order of the repositories: the first are whole while others are copied.
            jobs: dict[tuple[str, Digest], Future[None]] = {}
            for digest, (repository, extent) in planned.copies.items():
                others = sharing.get(digest, ())
                job = pool.submit(_copy, store, source, repository, digest, extent, step, others)
                jobs.update(dict.fromkeys(((name, digest) for name in (repository, *others)), job))
            bad: dict[str, set[Digest]] = {}
            for one in planned.refused:
                bad.setdefault(one.repository, set()).add(one.digest)
            for repository in repositories(source):
                is_directory = planned.is_directory(repository)
                failed = _await_blobs(source, repository, jobs, is_directory)
                for found in _put_manifests(
                    store, source, repository, failed, bad.get(repository, set()), is_directory
                ):
                    if isinstance(found, LeftOut):
                        done.left_out.append(found)
                    else:
                        done.names.append(found)
        except BaseException:
            # Running copies are large, and a part of a blob is of no use.
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
    return done


def _copy(
    store: DistributionStore,
    source: LowerStore,
    repository: str,
    digest: Digest,
    extent: Extent,
    progress: Progress,
    sharing: Iterable[str],
) -> None:
    while True:
        try:
            with store.copying(repository, digest.algorithm) as upload:
                upload.copy(extent, progress)
                upload.commit(digest)
            break
        except (ContentCorrupt, DigestInvalid, OSError) as error:
            other = _good_copy(source, repository, digest, extent)
            if other == extent:
                raise  # the fault is the store's
            if other is None:
                where = f"{extent.proof.bundle}: " if extent.proof is not None else ""
                raise BundleInvalid(
                    f"{where}blob {digest} cannot be copied: {_reason(error)}; fetch the bundle "
                    "again and import it (content that is in the store already is not copied again)"
                ) from None
            extent = other
    # Now: an import that is stopped and resumed then copies it for none of them.
    for other_repository in sharing:
        store.mount(other_repository, digest, repository)


def _good_copy(
    source: LowerStore, repository: str, digest: Digest, extent: Extent
) -> Extent | None:
    """Return the extent if it is good, otherwise one of another bundle; None if there is none."""
    if extent.proof is not None:
        try:
            extent.proof.establish()
        except OSError:
            return None
        except StorageError:
            with contextlib.suppress(StorageError):
                # Corrupt content is skipped from now on.
                found = source.blob(repository, digest)
                return None if found == extent else found
            return None
    return extent


def _await_blobs(
    source: LowerStore,
    repository: str,
    jobs: Mapping[tuple[str, Digest], Future[None]],
    is_directory: bool,
) -> dict[Digest, str]:
    """Wait for the blobs of a repository; return the damaged ones of a directory, with reasons."""
    failed: dict[Digest, str] = {}
    for _, manifest in _manifests(source, repository):
        for descriptor in manifest.blobs:
            job = jobs.get((repository, descriptor.digest))
            if job is None:
                continue
            try:
                job.result()
            except BlobUnknown:
                raise _went_away(str(descriptor.digest)) from None
            except BundleInvalid as error:
                if not is_directory:
                    raise
                failed[descriptor.digest] = error.message
    return failed


def _went_away(what: str) -> BlobUnknown:
    return BlobUnknown(f"{what} went away while it was imported (mayfly gc?): import again")


def _put_manifests(
    store: DistributionStore,
    source: LowerStore,
    repository: str,
    failed: Mapping[Digest, str],
    bad: set[Digest],
    is_directory: bool,
) -> Iterator[str | LeftOut]:
    """Put the whole manifests of a repository, tag them, and yield their names.

    Args:
        store: to put them into.
        source: the bundles.
        repository: of the source.
        failed: blobs that could not be copied, with reasons.
        bad: manifests that are left out; those that name one of them are added.
        is_directory: whether others may be left out.
    """
    tags: dict[Digest, list[str]] = {}
    for tag in source.tags(repository):
        try:
            tags.setdefault(source.tag(repository, tag), []).append(tag)
        except ManifestUnknown:
            continue  # a tag without manifest in the bundle is not imported
    for digest in _children_first(source, repository):
        if digest in bad:
            continue
        manifest = _strict(source, repository, digest)
        needed = [blob.digest for blob in manifest.blobs if blob.digest in failed]
        below = [child.digest for child in manifest.manifests if child.digest in bad]
        wanted = tuple(tags.get(digest, ()))
        code = Code.PART_LEFT_OUT if below and not needed else Code.CONTENT_DAMAGED
        try:
            if needed:
                raise BundleInvalid(failed[needed[0]])
            if below:
                raise BundleInvalid(f"it names {below[0]}, which was not imported")
            store.put_manifest(repository, manifest, digest, wanted)
        except ManifestBlobUnknown:
            raise _went_away(f"a blob of {repository}@{digest}") from None
        except (BundleInvalid, SizeInvalid) as error:
            if not below and not is_directory:
                raise BundleInvalid(f"{repository}@{digest}: {error.message}") from None
            bad.add(digest)
            culprit = next(iter([*needed, *below]), None)
            yield LeftOut(repository, digest, code, error.message, culprit)
        else:
            yield from (f"{repository}:{tag}" for tag in wanted)


def _children_first(source: LowerStore, repository: str) -> Iterator[Digest]:
    """Yield the manifests of a repository, each after those it names; their bytes are not kept."""
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
    source: LowerStore, repository: str, refused: list[LeftOut] | None = None
) -> Iterator[tuple[Digest, Manifest]]:
    """Yield the manifests that a push would accept; add the others to ``refused``."""
    for digest in source.revisions(repository):
        try:
            manifest = _strict(source, repository, digest)
        except (*_REFUSED, OSError) as error:
            if refused is not None:
                refused.append(LeftOut(repository, digest, _code(error), _reason(error)))
        else:
            yield digest, manifest


def _strict(source: LowerStore, repository: str, digest: Digest) -> Manifest:
    return parse(read_manifest(source, repository, digest))
