"""All images of a store by name, damaged ones included, for `ls` and `export`.

A damaged entry hides no other: a name whose image cannot be read is a `Damaged` among the images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mayfly.storage.bundle.diagnostics import Code
from mayfly.storage.digest import Digest
from mayfly.storage.directory.reader import DirectoryReader
from mayfly.storage.errors import ContentCorrupt, ManifestUnknown
from mayfly.storage.images import Image, image, resolve
from mayfly.storage.interface import Reader
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
    try:
        found = image_of(reader, repository, tag)
    except ManifestUnknown:
        is_lost = reader.lost_history(repository, tag) is not None
        reason = "the tag's link is gone or damaged"
        return Damaged(f"{repository}:{tag}", Code.LINK_LOST, reason) if is_lost else None
    return damage(reader, found) or found if isinstance(found, Image) else found


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


def named(reader: Reader) -> Iterator[Image | Damaged]:
    """Yield the image of every tag of bundles or of a registry, in order of name.

    Tags whose own link is lost are not among them; see `Bundles.damaged_names`.
    """
    for repository in repositories(reader):
        for tag in reader.tags(repository):
            with contextlib.suppress(ManifestUnknown):  # deleted meanwhile, or lost
                found = image_of(reader, repository, tag)
                if found is not None:
                    yield found if isinstance(found, Damaged) else damage(reader, found) or found


def image_of(reader: Reader, repository: str, tag: str) -> Image | Damaged | None:
    """Return the image of a tag, or its damage if its manifest is gone; None if it is deleted now.

    Raises:
        ManifestUnknown: there is no such tag.
    """
    name, digest = f"{repository}:{tag}", reader.tag(repository, tag)
    try:
        return image(reader, repository, digest, name)
    except ManifestUnknown:
        if reader.tag(repository, tag) == digest:
            return Damaged(name, Code.MANIFEST_MISSING, f"manifest {digest} is gone or damaged")
        return None


def whole(found: Iterable[Image | Damaged], damaged: dict[str, Damaged]) -> Iterator[Image]:
    """Yield whole images as they come, and add the others to ``damaged`` by their names."""
    for one in found:
        if isinstance(one, Damaged):
            damaged[one.name] = one
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
