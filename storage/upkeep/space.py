"""How the images of a store use its space, for `du`."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from mayfly.storage.digest import Digest
from mayfly.storage.directory.reader import DirectoryReader
from mayfly.storage.errors import ManifestUnknown
from mayfly.storage.images import Image, image
from mayfly.storage.interface import RevisionReader
from mayfly.storage.reading import repositories
from mayfly.storage.survey import Damaged, damage, image_of, tagged, untagged, whole
from mayfly.storage.upkeep.collect import marked


@dataclass(frozen=True, slots=True)
class Space:
    """How the bytes of a store are used. A blob that two uses share counts for the first.

    Attributes:
        images: number of tags with an image.
        logical: bytes that the images would take without sharing.
        stored: bytes that they take.
        untagged: number of manifests that no tag leads to.
        untagged_size: bytes that only these need.
        unused_size: bytes that nothing needs; garbage collection frees them.
        kept_size: bytes that damaged images may need; garbage collection keeps them.
        damaged: the damaged images, with a tag or without.
    """

    images: int
    logical: int
    stored: int
    untagged: int
    untagged_size: int
    unused_size: int
    kept_size: int
    damaged: tuple[Damaged, ...]

    @property
    def saved(self) -> int:
        """Bytes saved by sharing."""
        return self.logical - self.stored


def space(reader: DirectoryReader) -> Space:
    """Measure the space of images, of untagged manifests and of unused blobs."""
    count = logical = loose = 0
    needed: dict[Digest, int] = {}
    damaged: dict[str, Damaged] = {}
    for one in whole(tagged(reader), damaged):
        count += 1
        logical += one.size
        needed.update(one.blobs)
    only: dict[Digest, int] = {}
    for one in whole(untagged(reader), damaged):
        loose += 1
        only.update((d, size) for d, size in one.blobs.items() if d not in needed)
    kept, _ = marked(reader, reader)
    unused_size = kept_size = 0
    for digest, path in reader.stored_blobs():
        if digest in needed or digest in only:
            continue
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            size = path.stat().st_size
            if digest in kept:
                kept_size += size
            else:
                unused_size += size
    return Space(
        images=count,
        logical=logical,
        stored=sum(needed.values()),
        untagged=loose,
        untagged_size=sum(only.values()),
        unused_size=unused_size,
        kept_size=kept_size,
        damaged=tuple(damaged.values()),
    )


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
                one = image_of(reader, repository, tag)
                if not isinstance(one, Image):
                    damaged += [] if one is None else [one]
                    continue
                if (fault := damage(reader, one)) is not None:
                    damaged.append(fault)
                    reached.update(one.manifests)
                    continue
                count += 1
                logical += one.size
                needed.update(one.blobs)
                reached.update(one.manifests)
        for digest in reader.revisions(repository):
            if digest in reached:
                continue
            with contextlib.suppress(ManifestUnknown):
                one = image(reader, repository, digest, f"{repository}@{digest}")
                if (fault := damage(reader, one)) is not None:
                    damaged.append(fault)
                    continue
                loose += 1
                only.update(one.blobs)
    return Space(
        images=count,
        logical=logical,
        stored=sum(needed.values()),
        untagged=loose,
        untagged_size=sum(size for digest, size in only.items() if digest not in needed),
        unused_size=0,
        kept_size=0,
        damaged=tuple(damaged),
    )
