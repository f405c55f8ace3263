"""Content that a bundle does not keep as a file: manifests that are made, or read from a list."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mayfly.storage.bundle.files import OpenFile
from mayfly.storage.bundle.verified import Piece
from mayfly.storage.digest import Digest
from mayfly.storage.files import stamp_of


class MadeContent:
    """Small content in files in memory, since all content has a path."""

    def __init__(self) -> None:
        self._pieces: dict[Digest, Piece] = {}
        self._descriptors: list[int] = []

    def keep(self, bodies: Mapping[Digest, bytes]) -> None:
        """Add content."""
        descriptor = os.memfd_create("mayfly-manifests")
        # Kept open until the end, even if newer ones replace it: a client may be reading it.
        self._descriptors.append(descriptor)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            for body in bodies.values():
                file.write(body)
        stamp, offset = stamp_of(os.fstat(descriptor)), 0
        opener = OpenFile(descriptor)
        for digest, body in bodies.items():
            self._pieces[digest] = Piece(opener.path, offset, len(body), stamp, opener)
            offset += len(body)

    def find(self, digest: Digest) -> Piece | None:
        """Quick. Locate content; None if it was not added."""
        return self._pieces.get(digest)

    def close(self) -> None:
        """Free the memory."""
        for descriptor in self._descriptors:
            os.close(descriptor)
