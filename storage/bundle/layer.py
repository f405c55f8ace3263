"""What the overlay needs of a read-only store beneath it, beyond reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mayfly.storage.digest import Digest
from mayfly.storage.interface import Extent, Reader


class Layer(Reader, Protocol):
    """A reader that answers apart which repository has a blob and where its bytes are.

    A repository may name a blob whose bytes lie in another layer, as in a bundle of differences; it
    is given them where that layer, too, links the blob in a repository of the same name.
    """

    def links(self, repository: str, digest: Digest) -> bool:
        """Quick. Whether a blob belongs to a repository, wherever its bytes are."""

    def content(self, digest: Digest) -> Extent | None:
        """Quick. The bytes of a blob, whatever it belongs to; None when they are not here.

        Raises:
            ContentCorrupt: they are here but are not its own.
        """

    def revisions(self, repository: str) -> Iterator[Digest]:
        """All manifests of a repository, tagged or not; none for an unknown one."""
