"""What a store holds, seen as images: names, sizes, layer stacks, and what they share.

Reads any `storage.interface.Reader`. Sizes are those of the stored (compressed) blobs, in bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from storage.bundle.names import split_reference
from storage.digest import Digest
from storage.errors import (
    BlobUnknown,
    ContentCorrupt,
    ManifestUnknown,
    NameInvalid,
    StorageError,
)
from storage.interface import Extent, Reader
from storage.manifest import INDEX_TYPES, Manifest, parse_stored

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Image:
    """A tag and what it leads to.

    Attributes:
        name: ``repository:tag``.
        digest: of the manifest or index the tag points at.
        media_type: of the same.
        blobs: every blob below it → its size; the manifests themselves are among them.
        missing: content that it names and the repository does not hold.
    """

    name: str
    digest: Digest
    media_type: str
    blobs: dict[Digest, int]
    missing: tuple[Digest, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that a node without any of it would fetch."""
        return sum(self.blobs.values())


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a stack, bottom first.

    Attributes:
        created_by: the build step, from the config's history; "" where it does not say.
        shared_with: other images that have the same layer.
    """

    digest: Digest
    media_type: str
    size: int
    created_by: str = ""
    shared_with: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stack:
    """One image of a platform: its layers as the union mount would see them, bottom to top."""

    platform: str
    digest: Digest
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Space: ``logical`` is every image by itself, ``stored`` what their blobs take together."""

    images: int
    logical: int
    stored: int

    @property
    def saved(self) -> int:
        """Bytes saved by sharing."""
        return self.logical - self.stored


@dataclass(slots=True)
class _Found:
    blobs: dict[Digest, int] = field(default_factory=dict)
    missing: list[Digest] = field(default_factory=list)


def repositories(reader: Reader) -> Iterator[str]:
    """Every repository in lexical order."""
    after = ""
    while page := reader.repositories(after, _PAGE):
        yield from page
        after = page[-1]


def images(reader: Reader) -> Iterator[Image]:
    """Every tagged image, by name."""
    for repository in repositories(reader):
        for tag in reader.tags(repository):
            try:
                digest = reader.tag(repository, tag)
                yield image(reader, repository, digest, f"{repository}:{tag}")
            except ManifestUnknown:
                continue  # deleted meanwhile, or a tag that leads nowhere


def image(reader: Reader, repository: str, digest: Digest, name: str) -> Image:
    """What a manifest or index leads to.

    Raises:
        ManifestUnknown: it is not in the repository.
    """
    top = load(reader, repository, digest)
    found = _Found()
    _collect(reader, repository, digest, top, found)
    return Image(name, digest, top.media_type, found.blobs, tuple(found.missing))


def resolve(reader: Reader, text: str) -> tuple[str, Digest]:
    """The repository and digest that an operator's image name means.

    ``x``, ``library/x`` and ``docker.io/library/x`` are one; a registry's host is passed over.

    Raises:
        NameInvalid, TagInvalid, DigestInvalid: the text is no image name.
        ManifestUnknown: there is no such image.
    """
    reference = split_reference(text)
    tag = reference.tag or "latest"
    for repository in (reference.repository, reference.repository.removeprefix("library/")):
        try:
            digest = reference.digest or reader.tag(repository, tag)
            reader.manifest(repository, digest)
        except (ManifestUnknown, NameInvalid):
            continue
        return repository, digest
    raise ManifestUnknown(f"no image {text} here; mayfly ls lists them")


def load(reader: Reader, repository: str, digest: Digest) -> Manifest:
    """Read and understand a manifest.

    Raises:
        ManifestUnknown: it is not in the repository.
        ManifestInvalid: it cannot be understood.
    """
    return parse_stored(read(reader.manifest(repository, digest)))


def read(extent: Extent) -> bytes:
    """All bytes of a small extent.

    Raises:
        ManifestUnknown: the file went away meanwhile.
    """
    try:
        with extent.open() as file:
            return os.pread(file.fileno(), extent.size, extent.offset)
    except FileNotFoundError:
        raise ManifestUnknown("manifest unknown") from None


def find_blob(reader: Reader, repository: str, digest: Digest) -> Extent | None:
    """Where a blob's bytes lie; None when the repository has none that can be used."""
    try:
        return reader.blob(repository, digest)
    except (BlobUnknown, ContentCorrupt):
        return None


def stacks(reader: Reader, repository: str, digest: Digest, name: str) -> list[Stack]:
    """The layer stack of each platform of an image.

    Raises:
        ManifestUnknown: it is not in the repository.
    """
    users = _users(reader)
    found: list[Stack] = []
    for child in _platform_images(reader, repository, digest):
        manifest = load(reader, repository, child)
        config = _config(reader, repository, manifest)
        steps = [s for s in config.get("history", []) if not s.get("empty_layer")]
        layers = []
        for number, descriptor in enumerate(manifest.blobs[1:]):
            step = steps[number].get("created_by", "") if number < len(steps) else ""
            others = tuple(sorted(users.get(descriptor.digest, set()) - {name}))
            layers.append(
                Layer(descriptor.digest, descriptor.media_type, descriptor.size, step, others)
            )
        platform = "/".join(p for p in (config.get("os"), config.get("architecture")) if p)
        found.append(Stack(platform, child, tuple(layers)))
    return found


def usage(reader: Reader) -> Usage:
    """How much all images take, and would take without sharing."""
    count = logical = 0
    together: dict[Digest, int] = {}
    for one in images(reader):
        count += 1
        logical += one.size
        together.update(one.blobs)
    return Usage(count, logical, sum(together.values()))


def _collect(
    reader: Reader, repository: str, digest: Digest, manifest: Manifest, found: _Found
) -> None:
    if digest in found.blobs:
        return
    found.blobs[digest] = len(manifest.body)
    for descriptor in manifest.blobs:
        if find_blob(reader, repository, descriptor.digest) is not None:
            found.blobs[descriptor.digest] = descriptor.size
        elif descriptor.distributable:
            found.missing.append(descriptor.digest)
    for child in manifest.manifests:
        try:
            below = load(reader, repository, child.digest)
        except StorageError:
            found.missing.append(child.digest)
            continue
        _collect(reader, repository, child.digest, below, found)


def _users(reader: Reader) -> dict[Digest, set[str]]:
    users: dict[Digest, set[str]] = {}
    for one in images(reader):
        for digest in one.blobs:
            users.setdefault(digest, set()).add(one.name)
    return users


def _platform_images(reader: Reader, repository: str, digest: Digest) -> Iterator[Digest]:
    manifest = load(reader, repository, digest)
    if manifest.media_type not in INDEX_TYPES:
        yield digest
        return
    for child in manifest.manifests:
        try:
            yield from _platform_images(reader, repository, child.digest)
        except ManifestUnknown:
            continue  # a platform that was left out


def _config(reader: Reader, repository: str, manifest: Manifest) -> dict[str, Any]:
    try:
        found = json.loads(read(reader.blob(repository, manifest.blobs[0].digest)))
    except (StorageError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
