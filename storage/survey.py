"""All images of a store by name, damaged ones included, for `ls`, `du` and `export`.

A damaged entry hides no other: a name whose image cannot be read is a `Damaged` among the images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mayfly.storage.bundle.diagnostics import Code
from mayfly.storage.digest import Digest
from mayfly.storage.directory.reader import DirectoryReader
from mayfly.storage.errors import ContentCorrupt, ManifestUnknown, StorageError
from mayfly.storage.images import Image, image, resolve
from mayfly.storage.interface import Reader, RevisionReader
from mayfly.storage.reading import manifests_below, repositories
from mayfly.storage.reference import LATEST, parse_reference, split_stored


@dataclass(frozen=True, slots=True)
class Damaged:
    """A name whose image is gone or damaged.

    Attributes:
        name: ``repository:tag``, or the repository that cannot be read at all.
        code: the kind of damage.
        detail: a sentence about it, for the operator.
    """

    name: str
    code: Code
    detail: str


@dataclass(frozen=True, slots=True)
class Space:
    """How the bytes of a store are used. A blob that two uses share counts for the first.

    Attributes:
        images: number of tags with an image.
        logical: bytes that the images would take without sharing.
        stored: bytes that they take.
        untagged: number of manifests that no tag leads to.
        untagged_size: bytes that only these need.
        unused_size: bytes that nothing needs.
        damaged: names whose image is gone; the content of these images counts as unused.
    """

    images: int
    logical: int
    stored: int
    untagged: int
    untagged_size: int
    unused_size: int
    damaged: tuple[Damaged, ...]

    @property
    def saved(self) -> int:
        """Bytes saved by sharing."""
        return self.logical - self.stored


def tagged(reader: DirectoryReader) -> Iterator[Image | Damaged]:
    """Yield the image of every tag, by repository and tag."""
    for repository in repositories(reader):
        try:
            for tag in reader.tag_names(repository):
                found = _tagged(reader, repository, tag)
                if found is not None:
                    yield found
        except OSError as error:
            yield Damaged(repository, Code.UNREADABLE, f"cannot be read: {error.strerror}")
    for name, reason in reader.unreadable_directories():
        yield Damaged(name, Code.UNREADABLE, f"cannot be listed: {reason}")


def _tagged(reader: DirectoryReader, repository: str, tag: str) -> Image | Damaged | None:
    name = f"{repository}:{tag}"
    try:
        digest = reader.tag(repository, tag)
    except ManifestUnknown:
        is_lost = reader.lost_history(repository, tag) is not None
        reason = "the tag's link is gone or damaged"
        return Damaged(name, Code.LINK_LOST, reason) if is_lost else None
    try:
        found = image(reader, repository, digest, name)
    except ManifestUnknown:
        try:
            if reader.tag(repository, tag) == digest:
                reason = f"manifest {digest} is gone or damaged"
                return Damaged(name, Code.MANIFEST_MISSING, reason)
        except ManifestUnknown:
            pass
        return None  # deleted meanwhile
    return damage(reader, found) or found


def damage(reader: Reader, found: Image) -> Damaged | None:
    """Return which manifest of an image is damaged; None for a whole image.

    Odd manifests were pushed like that; one with another digest is damaged.
    """
    if found.faults:
        repository, _ = split_stored(found.name)
        for _, manifest in manifests_below(reader, repository, found.digest):
            if isinstance(manifest, ContentCorrupt):
                return Damaged(found.name, Code.CONTENT_DAMAGED, manifest.message)
    return None


def examined(reader: Reader, found: Iterable[Image], damaged: list[Damaged]) -> Iterator[Image]:
    """Yield whole images as they come, and add the others to ``damaged``."""
    for one in found:
        if (fault := damage(reader, one)) is not None:
            damaged.append(fault)
        else:
            yield one


def find(reader: DirectoryReader, text: str) -> tuple[str, Digest]:
    """Resolve an operator's image name; see `storage.images.resolve`.

    Raises:
        ContentCorrupt: the image exists, but its tag or manifest is damaged.
    """
    try:
        return resolve(reader, text)
    except ManifestUnknown:
        reference = parse_reference(text)
        for name in reference.stored_as:
            lost = _why_lost(reader, name, reference.tag or LATEST, reference.digest)
            if lost is not None:
                raise ContentCorrupt(
                    f"{text}: {lost}; mend it with mayfly verify --repair, or push it again"
                ) from None
        raise


def _why_lost(
    reader: DirectoryReader, repository: str, tag: str, digest: Digest | None
) -> str | None:
    """Return the reason why an image is damaged; None if there is no such image."""
    if digest is not None:
        is_lost = reader.is_linked(repository, digest)
        return f"manifest {digest} is gone or damaged" if is_lost else None
    found = _tagged(reader, repository, tag)
    return found.detail if isinstance(found, Damaged) else None


def untagged(reader: DirectoryReader) -> Iterator[Image | Damaged]:
    """Yield every manifest that no tag leads to, as ``repository@digest``, without its parts."""
    for repository in repositories(reader):
        try:
            loose = loose_manifests(reader, repository)
            below = {
                found
                for digest in loose
                for found, _ in manifests_below(reader, repository, digest)
                if found != digest
            }
            for digest in loose:
                if digest in below:
                    continue
                name = f"{repository}@{digest}"
                try:
                    found = image(reader, repository, digest, name)
                    yield damage(reader, found) or found
                except ManifestUnknown:
                    if reader.is_linked(repository, digest):
                        reason = "the manifest is gone or damaged"
                        yield Damaged(name, Code.MANIFEST_MISSING, reason)
        except OSError as error:
            yield Damaged(repository, Code.UNREADABLE, f"cannot be read: {error.strerror}")


def loose_manifests(reader: DirectoryReader, repository: str) -> list[Digest]:
    """Return the manifests of a repository that no tag leads to, in order of digest."""
    reached: set[Digest] = set()
    for digest in reader.tag_targets(repository):
        if digest not in reached:
            reached.update(found for found, _ in manifests_below(reader, repository, digest))
    return sorted(d for d in reader.revisions(repository) if d not in reached)


def space(reader: DirectoryReader) -> Space:
    """Measure the space of images, of untagged manifests and of unused blobs."""
    count = logical = loose = 0
    needed: dict[Digest, int] = {}
    damaged: list[Damaged] = []
    for one in tagged(reader):
        if isinstance(one, Damaged):
            damaged.append(one)
            continue
        count += 1
        logical += one.size
        needed.update(one.blobs)
    only: dict[Digest, int] = {}
    for one in untagged(reader):
        loose += 1
        if isinstance(one, Image):
            only.update((d, size) for d, size in one.blobs.items() if d not in needed)
    stored = sum(needed.values())
    unused = sum(
        path.stat().st_size
        for digest, path in reader.stored_blobs()
        if digest not in needed and digest not in only
    )
    return Space(count, logical, stored, loose, sum(only.values()), unused, tuple(damaged))


def space_of(reader: RevisionReader) -> Space:
    """Measure the space of the images of bundles or of a registry.

    Unreferenced blobs are not looked for.
    """
    count = logical = loose = 0
    needed: dict[Digest, int] = {}
    only: dict[Digest, int] = {}
    damaged: list[Damaged] = []
    for repository in repositories(reader):
        reached: set[Digest] = set()
        for tag in reader.tags(repository):
            with contextlib.suppress(ManifestUnknown):  # a tag that leads nowhere
                one = image(reader, repository, reader.tag(repository, tag), f"{repository}:{tag}")
                if (fault := damage(reader, one)) is not None:
                    damaged.append(fault)
                    reached.update(one.manifests)
                    continue
                count += 1
                logical += one.size
                needed.update(one.blobs)
                reached.update(one.manifests)
        for digest in reader.revisions(repository):
            if digest not in reached:
                with contextlib.suppress(StorageError):
                    found = image(reader, repository, digest, f"{repository}@{digest}")
                    loose += 1
                    only.update(found.blobs)
    only = {digest: size for digest, size in only.items() if digest not in needed}
    stored = sum(needed.values())
    return Space(count, logical, stored, loose, sum(only.values()), 0, tuple(damaged))
