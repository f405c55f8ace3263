"""Export images as one OCI archive: all of their content, or only blobs that a target lacks.

The archive is an OCI image layout in a tar (image-spec, image-layout.md): documents first, then the
blobs in the order of the layers, so that it can be served in place. Every blob is hashed while it
is written; a blob without its digest ends the export.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import ContentCorrupt
from mayfly.storage.images import Image
from mayfly.storage.interface import Content, OpenContent, Reader
from mayfly.storage.manifest import OCI_INDEX
from mayfly.storage.reading import find_blob
from mayfly.storage.reference import DOCKER_HUB, LOCAL, is_attached_tag, short_path, split_stored
from mayfly.storage.transfer.attached import Attached, attached_images

FULL_NAME = "io.containerd.image.name"
TAG = "org.opencontainers.image.ref.name"

_READ_SIZE = 1024 * 1024

Progress = Callable[[int], None]
"""Called with the number of bytes written since the last call."""


@dataclass(frozen=True, slots=True)
class Carried:
    """An image to export.

    Attributes:
        repository: it is in.
        image: to export.
        attached: artifacts that refer to it and are exported with it.
    """

    repository: str
    image: Image
    attached: tuple[tuple[Attached, Image], ...] = ()

    @property
    def all(self) -> tuple[Image, ...]:
        """The image, then the attached artifacts."""
        return (self.image, *(one for _, one in self.attached))


def carried(
    reader: Reader, chosen: Iterable[tuple[str, Image]], *, referrers: bool
) -> list[Carried]:
    """Add the artifacts that refer to images; a tag of such an artifact is no image of its own.

    Args:
        reader: the store.
        chosen: repository and image.
        referrers: whether to carry them; otherwise tags of artifacts are left out.
    """
    if not referrers:
        return [Carried(*one) for one in chosen if not _is_attached(one[1])]
    found = [
        Carried(repository, one, tuple(attached_images(reader, repository, one)))
        for repository, one in chosen
    ]
    names = {one.name for each in found for _, one in each.attached}
    return [each for each in found if each.image.name not in names]


def without(
    chosen: Iterable[Carried], is_bad: Callable[[Image], bool]
) -> tuple[list[Carried], list[str]]:
    """Leave out bad images with their artifacts, and bad artifacts of other images.

    Args:
        chosen: to export.
        is_bad: called with each image and each artifact.

    Returns:
        The remaining images, and the names of those left out.
    """
    kept: list[Carried] = []
    gone: list[str] = []
    for one in chosen:
        if is_bad(one.image):
            gone += [each.name for each in one.all]
            continue
        lost: set[Digest] = set()
        attached = []
        for link, image in one.attached:  # an artifact of an artifact comes after it
            if link.subject in lost or is_bad(image):
                lost.update(image.manifests)
                gone.append(image.name)
            else:
                attached.append((link, image))
        kept.append(replace(one, attached=tuple(attached)))
    return kept, list(dict.fromkeys(gone))


def _is_attached(image: Image) -> bool:
    return is_attached_tag(image.name.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class Export:
    """The contents of an archive.

    Attributes:
        index: the archive's ``index.json``.
        contents: the blobs in the order of writing.
        left_out: bytes that the target has.
    """

    index: bytes
    contents: dict[Digest, Content]
    left_out: int

    @property
    def size(self) -> int:
        """Bytes of content to write."""
        return sum(content.size for content in self.contents.values())


def plan(reader: Reader, chosen: Iterable[Carried], have: Callable[[str, Digest], bool]) -> Export:
    """Choose the contents of an archive.

    Args:
        reader: the store.
        chosen: see `carried`.
        have: whether the target has a blob in a repository. Manifests are always written: they are
            small, and the archive names images by them.
    """
    entries: list[dict[str, object]] = []
    contents: dict[Digest, Content] = {}
    left_out = 0
    known: set[tuple[str, Digest]] = set()
    for repository, image in ((one.repository, image) for one in chosen for image in one.all):
        if (image.name, image.digest) in known:
            continue
        known.add((image.name, image.digest))
        manifest = reader.manifest(repository, image.digest)
        entries.append(
            {
                "mediaType": image.media_type,
                "digest": str(image.digest),
                "size": manifest.size,
                "annotations": _annotations(image.name),
            }
        )
        for digest, size in image.blobs.items():
            if digest in contents:
                continue
            blob = find_blob(reader, repository, digest)
            if blob is None:
                contents[digest] = reader.manifest(repository, digest)
            elif have(repository, digest):
                left_out += size
            else:
                contents[digest] = blob
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": entries,
    }
    return Export(json.dumps(index).encode(), contents, left_out)


def write(export: Export, output: BinaryIO, progress: Progress = lambda size: None) -> None:
    """Write the archive to a stream.

    Raises:
        ContentCorrupt: stored content does not have its digest, so the archive is not complete;
            ``detail`` lists every such digest.
    """
    broken: list[str] = []
    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(archive, "index.json", export.index)
        for digest, content in export.contents.items():
            try:
                _write_blob(None if broken else archive, digest, content, progress)
            except ContentCorrupt:
                # The others are still read, so that one try finds all corrupt content.
                broken.append(str(digest))
        if broken:
            raise ContentCorrupt(
                f"stored content {broken[0]} is corrupt: see mayfly verify", broken
            )


def _write_blob(
    archive: tarfile.TarFile | None, digest: Digest, content: Content, progress: Progress
) -> None:
    """Write a blob; without an archive only read it.

    Raises:
        ContentCorrupt: it does not have its digest, or cannot be read.
    """
    try:
        opened = content.open()
    except OSError as error:
        raise ContentCorrupt(f"stored content {digest} cannot be read: {error.strerror}") from None
    with opened:
        section = _Section(opened, content.size, digest, progress)
        if archive is None:
            while section.read(_READ_SIZE):
                pass
        else:
            name = f"blobs/{digest.algorithm}/{digest.hex}"
            archive.addfile(_member(name, content.size), section)
        section.check()


class _Section(io.RawIOBase):
    """Open content as a stream, hashed as it is read."""

    def __init__(self, opened: OpenContent, size: int, digest: Digest, progress: Progress) -> None:
        self._opened = opened
        self._position = 0
        self._left = size
        self._digest = digest
        self._hasher = digests.hasher(digest.algorithm)
        self._progress = progress

    def read(self, size: int = -1) -> bytes:
        try:
            count = self._left if size < 0 else min(size, self._left)
            piece = self._opened.read(self._position, count)
        except OSError as error:
            raise ContentCorrupt(f"{self._digest} cannot be read: {error.strerror}") from None
        if not piece and self._left:
            raise ContentCorrupt(f"stored content {self._digest} was cut meanwhile")
        self._position += len(piece)
        self._left -= len(piece)
        self._hasher.update(piece)
        self._progress(len(piece))
        return piece

    def check(self) -> None:
        """Check the digest of the bytes that were read.

        Raises:
            ContentCorrupt: it is another one.
        """
        if self._hasher.hexdigest() != self._digest.hex:
            raise ContentCorrupt(f"stored content {self._digest} is corrupt: see mayfly verify")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    archive.addfile(_member(name, len(data)), io.BytesIO(data))


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o644
    return member


def _annotations(name: str) -> dict[str, str]:
    """Return annotations with the full name, and with the tag for tools that read only that."""
    repository, tag = split_stored(name)
    if "@" in name:
        return {}
    host = LOCAL if short_path(repository) == repository else DOCKER_HUB
    return {FULL_NAME: f"{host}/{repository}:{tag}", TAG: tag}


def read_digests(path: Path) -> frozenset[Digest]:
    """Read the digests of a text file: the first word of each line.

    Raises:
        DigestInvalid: a line does not begin with a digest.
    """
    lines = path.read_text("utf-8").splitlines()
    return frozenset(digests.parse(line.split()[0]) for line in lines if line.strip())
