"""The content of an upgrade's images per platform: whether it is complete, and its size on a node.

A node keeps a layer as it is fetched, and unpacked. The unpacked size is read where a layer tells
it: from the end of a gzip stream (RFC 1952, ISIZE), or it is the size itself of a layer that is not
compressed. Elsewhere it is estimated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from mayfly.registry.nodes.script import NodeImage
from mayfly.storage.digest import Digest
from mayfly.storage.errors import ManifestUnknown, NameInvalid, StorageError
from mayfly.storage.images import image as stored_image
from mayfly.storage.images import resolve, stacks
from mayfly.storage.interface import Reader
from mayfly.storage.reading import find_blob

ESTIMATED_RATIO = 3
"""Unpacked bytes for each byte of a compressed layer that does not tell them."""

_GZIP = b"\x1f\x8b"
_TRAILER = 4
_ISIZE_MODULO = 2**32


class LayerSize(NamedTuple):
    """A layer on a node, in bytes.

    Attributes:
        fetched: as it is fetched.
        unpacked: of its files, read or estimated.
    """

    fetched: int
    unpacked: int


class ImageContent(NamedTuple):
    """An image as the registry has it.

    Attributes:
        platforms: ``os/architecture[/variant]`` → layers; "" where the image names none.
        lacking: content that it names and the registry lacks.
        damaged: why a part could not be read; "" for none.
    """

    platforms: Mapping[str, Mapping[Digest, LayerSize]]
    lacking: tuple[Digest, ...]
    damaged: str = ""

    def layers_for(self, architecture: str) -> Mapping[Digest, LayerSize] | None:
        """Return the layers for a Linux node; None if the image does not have its platform.

        Of several variants of its architecture those without a name, otherwise of the newest.
        """
        name = f"linux/{architecture}"
        fitting = [one for one in self.platforms if one == name or one.startswith(f"{name}/")]
        if name in fitting or not fitting:
            return self.platforms.get(name, self.platforms.get(""))
        return self.platforms[max(fitting)]


def contents(
    readers: Sequence[Reader], images: Sequence[NodeImage]
) -> dict[str, ImageContent | None]:
    """Return each image by its full name; None for one that is in none of the readers."""
    return {one.reference: _content(readers, one) for one in images}


def needed(
    found: Mapping[str, ImageContent | None], architecture: str, images: Collection[str]
) -> int:
    """Return the bytes that images take on a node that has none of their layers."""
    layers: dict[Digest, LayerSize] = {}
    for name in images:
        one = found.get(name)
        layers |= (one.layers_for(architecture) if one is not None else None) or {}
    return sum(layer.fetched + layer.unpacked for layer in layers.values())


def _content(readers: Sequence[Reader], image: NodeImage) -> ImageContent | None:
    for reader, repository, digest in _places(readers, image):
        name = f"{repository}@{digest}"
        try:
            whole = stored_image(reader, repository, digest, name)
            platforms = {
                stack.platform: {
                    layer.digest: _size(reader, repository, layer.digest, layer.size)
                    for layer in stack.layers
                }
                for stack in stacks(reader, repository, digest, name, shared=False)
                if stack.attests is None
            }
        except StorageError as error:
            return ImageContent({}, (), error.message)
        return ImageContent(platforms, whole.lacking, "; ".join(whole.faults[:3]))
    return None


def _places(readers: Sequence[Reader], image: NodeImage) -> Iterator[tuple[Reader, str, Digest]]:
    for reader in readers:
        for name in dict.fromkeys((image.reference, *image.paths)):
            try:
                yield reader, *resolve(reader, name)
            except (ManifestUnknown, NameInvalid):
                continue


def _size(reader: Reader, repository: str, digest: Digest, size: int | None) -> LayerSize:
    content = find_blob(reader, repository, digest)
    if content is None:
        return LayerSize(size or 0, ESTIMATED_RATIO * (size or 0))
    try:
        with content.open() as opened:
            begin = opened.read(0, len(_GZIP))
            end = opened.read(max(content.size - _TRAILER, 0), _TRAILER)
    except OSError:
        return LayerSize(content.size, ESTIMATED_RATIO * content.size)
    if begin == _GZIP:
        unpacked = int.from_bytes(end, "little")
        # The size of the last member only, where there are several, and modulo 2^32.
        if unpacked < content.size or content.size * ESTIMATED_RATIO > _ISIZE_MODULO:
            unpacked = ESTIMATED_RATIO * content.size
        return LayerSize(content.size, unpacked)
    if begin == b"\x28\xb5":  # zstd
        return LayerSize(content.size, ESTIMATED_RATIO * content.size)
    return LayerSize(content.size, content.size)
