"""Verify and repair the writable store: hash every stored byte, follow every name, mend faults.

`verify` reports faults; `repair` mends one from a source that has the content, through an ordinary
upload: bytes are hashed as they are copied and published only if they match. A good blob without a
record of its size gets one. A bad one gets a record of its damage (`storage.directory.records`), so
that a server on the same root answers 404 for it and clients push it again.

A manifest that an index names and of which the repository has no trace was left out when the image
was copied, as other platforms often are, or deleted since. That is no fault, unless no part of the
index is here.

A manifest may name any digest. So a link is written again only if something is left of it, which
shows that the repository had the content; otherwise the content has to come from a source that has
it in that repository.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path

from mayfly.storage.digest import Digest
from mayfly.storage.directory.examine import hash_file
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.directory.uploads import DirectoryUpload
from mayfly.storage.errors import ManifestUnknown, StorageError
from mayfly.storage.images import resolve
from mayfly.storage.manifest import Descriptor, Manifest
from mayfly.storage.reading import find_blob, manifests_below, repositories, try_load, walk
from mayfly.storage.reference import split_stored
from mayfly.storage.text import counted
from mayfly.storage.upkeep.maintainable import Maintainable

_WINDOW = 64
"""Blobs queued at once: a store may have a million."""

_LINK_DAMAGED = "the manifest's link is damaged"
_FILE_GONE = "the manifest's file is gone"
_NOT_LINKED = "the manifest is not linked in the repository"
_TAG_DANGLES = "the tag points at a manifest that is gone"
_ABOUT_MANIFESTS = frozenset({_LINK_DAMAGED, _FILE_GONE, _NOT_LINKED, _TAG_DANGLES})
"""Reasons of findings about manifests."""


class Fault(StrEnum):
    """The kinds of faults."""

    CORRUPT = "corrupt"
    """A blob's bytes have another digest."""

    MISSING = "missing"
    """An image names content that the repository does not hold."""

    UNREADABLE = "unreadable"
    """The disk reports an error."""

    UNLINKED = "unlinked"
    """The bytes exist, but their link in the repository is lost or damaged."""

    TAG = "tag_lost"
    """The link of a tag is lost or damaged."""

    SIZE = "wrong_size"
    """A manifest gives another size than that of the blob, whose digest is right."""

    @property
    def text(self) -> str:
        """The name for people."""
        return self.value.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault.

    Attributes:
        fault: the kind.
        digest: of the content; None if that is not known.
        image: an affected image, ``repository:tag`` or ``repository@digest``; "" if there is none.
        others: further affected images.
        detail: a sentence with facts beyond the kind; "" if there is nothing to add.
    """

    fault: Fault
    digest: Digest | None
    image: str = ""
    others: tuple[str, ...] = field(default=(), compare=False)
    detail: str = field(default="", compare=False)

    @property
    def repository(self) -> str:
        """The repository of ``image``."""
        return split_stored(self.image)[0]


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome.

    Attributes:
        blobs: number of blobs that were read.
        size: of these, in bytes.
        findings: the faults.
        left_out: number of manifests that indexes name and that were left out or deleted.
    """

    blobs: int
    size: int
    findings: tuple[Finding, ...]
    left_out: int = 0


Fetch = Callable[[str, Digest, DirectoryUpload, int | None], bool]
"""Copies a blob of a repository into an upload, at most the given number of bytes; returns False if
the source does not have it."""

Holds = Callable[[str, Digest], bool]
"""Whether a source has content in this repository."""

Resolve = Callable[[str, str], Digest | None]
"""Returns the manifest that a tag points at in a source; None if it has no such tag."""


def verify(
    store: Maintainable,
    workers: int = 2,
    progress: Callable[[int], None] = lambda size: None,
    *,
    again: bool = True,
) -> Verified:
    """Hash every blob, and follow every tag and every manifest kept by its digest.

    Args:
        store: the store. Its own blobs are hashed; names are followed into the stores beneath.
        workers: blobs hashed at once.
        progress: called with the size in bytes of each blob that was read.
        again: also hash blobs that were found good before.
    """
    broken: dict[Digest, Fault] = {}
    blobs = size = 0
    upper = store.upper
    stored = (one for one in upper.stored_blobs() if again or not upper.is_verified(one[0]))
    for digest, found, fault in _hash_all(stored, workers):
        blobs += 1
        size += found
        progress(found)
        if fault is None:
            upper.record_verified(digest, found)
            continue
        broken[digest] = fault
        if fault is Fault.CORRUPT:
            upper.examine(digest)
    findings = _Findings()
    left_out = 0
    for repository in repositories(store):
        left_out += _Repository(store, repository, broken, findings).check()
    for path, reason in upper.unreadable_directories():
        findings.add(Fault.UNREADABLE, None, [path], reason)
    named = {finding.digest for finding in findings.found()}
    for digest, fault in broken.items():
        if digest not in named:
            findings.add(fault, digest, [])
    return Verified(blobs, size, findings.found(), left_out)


class _Findings:
    """The findings, one for each kind, digest and repository."""

    def __init__(self) -> None:
        self._found: dict[tuple[Fault, Digest | None, str], tuple[dict[str, None], str]] = {}

    def add(
        self, fault: Fault, digest: Digest | None, images: Iterable[str], reason: str = ""
    ) -> None:
        names = dict.fromkeys(images)
        # Bytes are the same in every repository; links, tags and sizes in manifests are not.
        place = next((split_stored(name)[0] for name in names), "")
        if fault is Fault.TAG or digest is None:
            place = next(iter(names), "")
        elif fault in (Fault.CORRUPT, Fault.UNREADABLE):
            place = ""
        known, _ = self._found.setdefault((fault, digest, place), ({}, reason))
        known.update(names)

    def found(self) -> tuple[Finding, ...]:
        return tuple(
            Finding(fault, digest, next(iter(names), ""), tuple(names)[1:], reason)
            for (fault, digest, _), (names, reason) in self._found.items()
        )


class _Repository:
    """The check of one repository."""

    def __init__(
        self,
        store: Maintainable,
        name: str,
        broken: dict[Digest, Fault],
        findings: _Findings,
    ) -> None:
        self._store = store
        self._upper = store.upper
        self._name = name
        self._broken = broken
        self._findings = findings
        self._read: dict[Digest, Manifest | StorageError] = {}
        self._images: dict[Digest, list[str]] = {}
        """The images that each manifest is a part of."""

    def check(self) -> int:
        """Add the faults to the findings; return the number of manifests that were left out."""
        try:
            return self._check()
        except StorageError as error:
            self._findings.add(Fault.UNREADABLE, None, [self._name], error.message)
        except OSError as error:
            self._findings.add(Fault.UNREADABLE, None, [self._name], error.strerror or str(error))
        return 0

    def _check(self) -> int:
        tagged = set()
        for tag in self._store.tags(self._name):
            with contextlib.suppress(ManifestUnknown):
                digest = self._store.tag(self._name, tag)
                tagged.add(digest)
                self._follow(digest, f"{self._name}:{tag}")
        for tag, history in self._upper.lost_tags(self._name):
            candidate = history[0] if len(history) == 1 else None
            reason = "the tag's link is gone or damaged"
            self._findings.add(Fault.TAG, candidate, [f"{self._name}:{tag}"], reason)
        untagged = [d for d in self._store.revisions(self._name) if d not in self._images]
        below = {c.digest for d in untagged for c in self._children(d)}
        # A part of an index is named after the index.
        for digest in sorted(untagged, key=lambda digest: digest in below):
            if digest not in self._images:
                self._follow(digest, f"{self._name}@{digest}")
        return sum(self._check_manifest(d, images, tagged) for d, images in self._images.items())

    def _follow(self, root: Digest, image: str) -> None:
        """Note the image with every manifest below one, itself included."""
        for digest, _ in walk(self._manifest, root):
            self._images.setdefault(digest, []).append(image)

    def _manifest(self, digest: Digest) -> Manifest | StorageError:
        if digest not in self._read:
            self._read[digest] = try_load(self._store, self._name, digest)
        return self._read[digest]

    def _children(self, digest: Digest) -> tuple[Descriptor, ...]:
        found = self._manifest(digest)
        return () if isinstance(found, StorageError) else found.manifests

    def _check_manifest(self, digest: Digest, images: list[str], tagged: set[Digest]) -> bool:
        """Add the faults of one manifest; return whether it was left out instead."""
        if digest in self._broken and self._had(digest, tagged):
            self._findings.add(self._broken[digest], digest, images, "a manifest")
            return False
        manifest = self._manifest(digest)
        if isinstance(manifest, ManifestUnknown):
            return self._check_absent(digest, images, tagged)
        if isinstance(manifest, StorageError):
            return False  # odd, but it was pushed like that, and is served as it is
        if self._upper.is_link_torn(self._name, digest, is_manifest=True):
            self._findings.add(Fault.UNLINKED, digest, images, _LINK_DAMAGED)
        for descriptor in manifest.blobs:
            self._check_blob(digest, descriptor, images)
        if (
            manifest.manifests
            and not self._is_cached(digest)
            and not any(self._is_here(child.digest) for child in manifest.manifests)
        ):
            for child in manifest.manifests:
                self._findings.add(Fault.MISSING, child.digest, images, "no part of it is here")
        return False

    def _check_absent(self, digest: Digest, images: list[str], tagged: set[Digest]) -> bool:
        if self._upper.is_linked(self._name, digest):
            self._findings.add(Fault.MISSING, digest, images, _FILE_GONE)
        elif self._had(digest, tagged) and self._upper.content_size(digest) is not None:
            # An index may name blobs as well (BuildKit's cache does).
            if find_blob(self._store, self._name, digest) is None:
                self._findings.add(Fault.UNLINKED, digest, images, _NOT_LINKED)
        elif digest in tagged:
            self._findings.add(Fault.MISSING, digest, images, _TAG_DANGLES)
        else:
            return True
        return False

    def _had(self, digest: Digest, tagged: Collection[Digest] = ()) -> bool:
        return digest in tagged or self._upper.was_linked(self._name, digest)

    def _is_here(self, digest: Digest) -> bool:
        if not isinstance(self._manifest(digest), StorageError):
            return True  # perhaps beneath the upper store, whose links do not say so
        return self._upper.is_linked(self._name, digest) or (
            self._had(digest) and self._upper.content_size(digest) is not None
        )

    def _is_cached(self, manifest: Digest) -> bool:
        """Whether a manifest came from an upstream: its content is fetched when it is pulled."""
        return self._upper.cached.has_manifest(self._name, manifest)

    def _check_blob(self, manifest: Digest, blob: Descriptor, images: list[str]) -> None:
        digest = blob.digest
        had = self._had(digest)
        if digest in self._broken and had:
            self._findings.add(self._broken[digest], digest, images)
            return
        extent = find_blob(self._store, self._name, digest)
        if extent is None:
            if had and self._upper.content_size(digest) is not None:
                reason = "the blob's link in the repository is gone"
                self._findings.add(Fault.UNLINKED, digest, images, reason)
            elif blob.distributable and (had or not self._is_cached(manifest)):
                reason = "the blob's file is gone" if had else "the repository has no such blob"
                self._findings.add(Fault.MISSING, digest, images, reason)
            return
        size = extent.size
        if self._upper.is_link_torn(self._name, digest):
            reason = "the blob's link in the repository is damaged"
            self._findings.add(Fault.UNLINKED, digest, images, reason)
        if blob.size not in (None, size):
            given = counted(blob.size, "byte")
            reason = f"manifest {manifest} gives {given}, the blob has {size}"
            self._findings.add(Fault.SIZE, digest, images, reason)


def repair(
    store: DistributionStore,
    finding: Finding,
    fetch: Fetch,
    resolve_tag: Resolve = lambda repository, tag: None,
    holds: Holds = lambda repository, digest: True,
) -> bool:
    """Mend one finding and return whether that was possible.

    Links are restored from the store's own records. Bytes come from the source. A tag points at the
    source's manifest again, otherwise at the only one it ever pointed at.

    Raises:
        DigestInvalid: the source's content does not have the digest either; nothing was changed.
        StorageFull: nothing was changed.
    """
    digest = finding.digest
    if finding.fault is Fault.TAG:
        repository, tag = split_stored(finding.image)
        target = resolve_tag(repository, tag) or digest
        return target is not None and store.restore_tag(repository, tag, target)
    if digest is None or finding.fault is Fault.SIZE:
        return False
    repository = finding.repository or next(iter(store.linked_in(digest)), "")
    if not repository:
        return False
    is_manifest = _is_manifest(store, repository, finding)
    if finding.fault is not Fault.UNLINKED:
        if not store.was_linked(repository, digest) and not holds(repository, digest):
            return False
        with store.copying(repository, digest.algorithm) as upload:
            size = _expected_size(store, repository, finding)
            if not fetch(repository, digest, upload, size):
                return False
            upload.commit(digest)
    for name in dict.fromkeys((finding.image, *finding.others)):
        store.restore_link(split_stored(name)[0] or repository, digest, is_manifest=is_manifest)
    return True


def _is_manifest(store: DistributionStore, repository: str, finding: Finding) -> bool:
    """Whether the damaged content is a manifest of the repository, not a blob."""
    assert finding.digest is not None
    if store.is_linked(repository, finding.digest):
        return True
    with contextlib.suppress(StorageError):
        top = resolve(store, finding.image)[1]
        return any(
            child.digest == finding.digest
            for manifest in _readable_manifests(store, repository, top)
            for child in manifest.manifests
        )
    # The image cannot be found at all: its own manifest is missing.
    return finding.detail in _ABOUT_MANIFESTS


def _readable_manifests(
    store: DistributionStore, repository: str, top: Digest
) -> Iterator[Manifest]:
    """Yield the readable manifests below one, itself included."""
    for _, manifest in manifests_below(store, repository, top):
        if isinstance(manifest, Manifest):
            yield manifest


def _expected_size(store: DistributionStore, repository: str, finding: Finding) -> int | None:
    """Return the size in bytes that the image gives its blob; None if it gives none."""
    with contextlib.suppress(StorageError):
        top = resolve(store, finding.image)[1]
        for manifest in _readable_manifests(store, repository, top):
            for descriptor in (*manifest.blobs, *manifest.manifests):
                if descriptor.digest == finding.digest:
                    return descriptor.size
    return None


def _hash_all(
    stored: Iterator[tuple[Digest, Path]], workers: int
) -> Iterator[tuple[Digest, int, Fault | None]]:
    with ThreadPoolExecutor(workers, "verify") as pool:
        while window := list(islice(stored, _WINDOW)):
            yield from pool.map(_hash, window)


def _hash(stored: tuple[Digest, Path]) -> tuple[Digest, int, Fault | None]:
    digest, path = stored
    try:
        actual, size = hash_file(path, digest.algorithm)
    except FileNotFoundError:
        return digest, 0, None  # collected meanwhile
    except OSError:
        return digest, 0, Fault.UNREADABLE
    return digest, size, None if actual == digest else Fault.CORRUPT
