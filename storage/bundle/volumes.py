"""Volumes: a bundle in several files, for media that are too small for it, or for FAT32.

Each volume is an OCI layout with the list of all images, all manifests, and a part of the blobs.
Served together they are one bundle; a base or a store may have the blobs that they lack. Two
documents are added to each:

    mayfly-volumes.json   the same in all: each volume's file name and the digests of its blobs
    mayfly-volume.json    the number of this volume, and the digest of the first document

So every volume names the content of a lost one, and with it the images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mayfly.storage import digest as digests
from mayfly.storage.bundle import documents
from mayfly.storage.bundle.diagnostics import Code, Diagnostic
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.files import Files, read_named
from mayfly.storage.digest import Digest
from mayfly.storage.errors import DigestInvalid
from mayfly.storage.text import counted

SET = "mayfly-volumes.json"
VOLUME = "mayfly-volume.json"

MAX_VOLUMES = 999

_SHOWN = 100
_OWN_FIELDS = documents.names("set", "number")
_SET_FIELDS = documents.names("volumes")


class Volume(NamedTuple):
    """One volume of a set.

    Attributes:
        set: digest of the document that all volumes share.
        number: from 1.
        names: file names of all volumes.
        blobs: the blobs of each volume.
    """

    set: Digest
    number: int
    names: tuple[str, ...]
    blobs: tuple[frozenset[Digest], ...]


class Lost(NamedTuple):
    """A volume that is not among the bundles.

    Attributes:
        name: its file name.
        number: from 1.
        total: volumes in the set.
        blobs: in it.
    """

    name: str
    number: int
    total: int
    blobs: frozenset[Digest]

    def diagnostic(self, images: Sequence[str]) -> Diagnostic:
        """Return the notice about the volume, with the images that need it."""
        text = f"{self.name} (volume {self.number} of {self.total}) is not among the bundles"
        if images:
            shown = ", ".join(images[:_SHOWN])
            more = f" and {len(images) - _SHOWN} more" if len(images) > _SHOWN else ""
            lost = counted(len(images), "image")
            text += f": without it {lost} cannot be pulled: {shown}{more}"
        else:
            text += "; all its content is elsewhere"
        return Diagnostic(Code.VOLUME_MISSING, text, file=self.name, count=len(images))


def make(names: Sequence[str], parts: Sequence[Iterable[Digest]]) -> list[dict[str, bytes]]:
    """Return the documents to add to each volume of a set.

    Args:
        names: of the files.
        parts: the blobs of each.
    """
    volumes = [
        {"file": name, "blobs": [str(digest) for digest in part]}
        for name, part in zip(names, parts, strict=True)
    ]
    shared = json.dumps({"volumes": volumes}, separators=(",", ":")).encode()
    return [
        {
            SET: shared,
            VOLUME: json.dumps({"set": str(digests.of(shared)), "number": number}).encode(),
        }
        for number in range(1, len(names) + 1)
    ]


def split(blobs: Iterable[tuple[Digest, int]], room: int) -> list[list[tuple[Digest, int]]]:
    """Distribute blobs in their order over volumes; there is at least one, perhaps empty.

    Args:
        blobs: digests, and the bytes that each takes.
        room: bytes in each volume; no blob may take more.
    """
    parts: list[list[tuple[Digest, int]]] = [[]]
    left = room
    for digest, size in blobs:
        assert size <= room
        if size > left:
            parts.append([])
            left = room
        parts[-1].append((digest, size))
        left -= size
    return parts


def read(files: Files) -> Volume | None:
    """Return the volume that a bundle is; None for a whole bundle.

    Raises:
        BundleInvalid: its documents cannot be understood.
    """
    own = documents.read_object(files, VOLUME, _OWN_FIELDS)
    if own is None:
        return None
    shared = documents.read_object(files, SET, _SET_FIELDS)
    text = read_named(files, SET)
    number = own.get("number")
    if shared is None or text is None or own.get("set") != str(digests.of(text)):
        raise BundleInvalid(f"{SET} is not the one that {VOLUME} names: the volume is damaged")
    volumes = shared.get("volumes")
    if not isinstance(volumes, list) or not 0 < len(volumes) <= MAX_VOLUMES:
        raise BundleInvalid(f"{SET} has no list of 1 to {MAX_VOLUMES} volumes")
    found = [_entry(entry) for entry in volumes]
    if type(number) is not int or not 0 < number <= len(found):
        raise BundleInvalid(f"{VOLUME} has no number of 1 to {len(found)}")
    names, blobs = zip(*found, strict=True)
    return Volume(digests.of(text), number, names, blobs)


def _entry(entry: object) -> tuple[str, frozenset[Digest]]:
    name = entry.get("file") if isinstance(entry, dict) else None
    blobs = entry.get("blobs") if isinstance(entry, dict) else None
    if not isinstance(name, str) or len(name) > 255 or not isinstance(blobs, list):
        raise BundleInvalid(f"{SET} has a volume without file or blobs")
    try:
        return name, frozenset(digests.parse(str(text)) for text in blobs)
    except DigestInvalid as error:
        raise BundleInvalid(f"{SET}: {error.message}") from None


def lost(present: Iterable[Volume]) -> list[Lost]:
    """Return the absent volumes of sets of which a volume is present."""
    numbers: dict[Digest, set[int]] = {}
    sets: dict[Digest, Volume] = {}
    for one in present:
        sets.setdefault(one.set, one)
        numbers.setdefault(one.set, set()).add(one.number)
    return [
        Lost(name, number, len(one.names), blobs)
        for key, one in sets.items()
        for number, (name, blobs) in enumerate(zip(one.names, one.blobs, strict=True), 1)
        if number not in numbers[key]
    ]
