"""Online garbage collection: blobs that no manifest refers to, in any repository.

Mark and sweep, beside running pushes and pulls:

- *Mark.* Every manifest linked in a repository is kept, tagged or not, and so is what it names.
- *Sweep.* A blob is removed when it is not marked and its file was last touched before the
  mark began, less the grace. Finishing an upload, mounting, and putting a manifest touch the blobs
  they refer to, so whatever a push has referred to since then is younger than that. The last look
  at the time and the removal are one step behind the gate (`storage.gate`).

A blob goes together with its links, so that a later push elsewhere cannot bring it back to a
repository that no longer holds it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage import manifest as manifests
from storage.ages import Ages
from storage.digest import Digest
from storage.errors import ContentCorrupt, DigestInvalid, ManifestInvalid, ManifestUnknown
from storage.gate import Gate
from storage.layout import Layout
from storage.publish import Publisher

DEFAULT_GRACE = 3600.0
"""Seconds for which an unreferenced blob is left alone: a slow push may refer to it last."""

_LONGEST_TICK = 3.0
"""Seconds. FAT's times are the coarsest, two seconds; usual ones tick every few milliseconds."""


class Holdings(Protocol):
    """What the collector has to know of a store."""

    def every_repository(self) -> Iterable[str]:
        """All repository names."""

    def stored_blobs(self) -> Iterable[tuple[Digest, Path]]:
        """Every blob's digest and file, whether or not anything refers to it."""

    def revisions(self, repository: str) -> Iterable[Digest]:
        """All manifests linked in a repository."""

    def revision_entries(self, repository: str) -> Iterable[Digest]:
        """All manifests that are or were linked in a repository."""

    def is_linked(self, repository: str, digest: Digest) -> bool:
        """Whether a manifest is linked."""

    def read_manifest(self, repository: str, digest: Digest) -> bytes:
        """A manifest's bytes.

        Raises:
            ManifestUnknown: it was deleted meanwhile.
        """


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed, or would have been: blobs, and their size in bytes."""

    blobs: tuple[Digest, ...]
    size: int


class Collector:
    """Collects in one distribution directory."""

    def __init__(
        self, holdings: Holdings, layout: Layout, publisher: Publisher, gate: Gate, ages: Ages
    ) -> None:
        self._holdings = holdings
        self._layout = layout
        self._publisher = publisher
        self._gate = gate
        self._ages = ages

    def collect(self, grace: float = DEFAULT_GRACE, *, dry_run: bool = False) -> Collected:
        """Remove unreferenced blobs untouched for ``grace`` seconds.

        Raises:
            ContentCorrupt: a manifest cannot be read, so what it refers to is not known; nothing
                was removed.
        """
        if not dry_run:
            self._publisher.tidy()
        is_old = self._ages.over(grace, self._moment())
        marked = self._mark()
        garbage = [
            d
            for d, _ in self._holdings.stored_blobs()
            if d not in marked and self._is_older(d, is_old)
        ]
        links: dict[Digest, list[Path]] = {}
        if garbage and not dry_run:
            self._confirm_deletions()
            links = self._links_of(set(garbage))
        removed: list[Digest] = []
        size = 0
        for digest in garbage:
            found = self._size(digest)
            if dry_run or self._remove(digest, is_old, links.get(digest, ())):
                removed.append(digest)
                size += found
        return Collected(tuple(removed), size)

    def _moment(self) -> float:
        """A moment that all earlier changes lie before and no later one does.

        By the clock that stamps files. It ticks up to a hundred times slower than the system's (on
        NFS it is another machine's): what is touched after this may look older to that one.
        """
        before = now = self._tick()
        end = time.monotonic() + _LONGEST_TICK
        while now == before and time.monotonic() < end:
            now = self._tick()
        return now

    def _tick(self) -> float:
        directory = self._layout.scratch.parent
        os.utime(directory)
        return directory.stat().st_mtime

    def _mark(self) -> set[Digest]:
        marked: set[Digest] = set()
        read: set[Digest] = set()
        for repository in self._holdings.every_repository():
            for digest in self._holdings.revisions(repository):
                if digest in read:
                    continue
                read.add(digest)
                marked.add(digest)
                marked.update(self._references(repository, digest))
        return marked

    def _confirm_deletions(self) -> None:
        """No manifest that was not marked may come back after a power cut, without its blobs.

        One whose removal is not durable yet has still got its directory.
        """
        for repository in self._holdings.every_repository():
            for digest in self._holdings.revision_entries(repository):
                if not self._holdings.is_linked(repository, digest):
                    self._publisher.confirm_absent(self._layout.revision_link(repository, digest))

    def _references(self, repository: str, digest: Digest) -> list[Digest]:
        try:
            manifest = manifests.parse_stored(self._holdings.read_manifest(repository, digest))
        except ManifestUnknown:
            return []
        except (ManifestInvalid, DigestInvalid):
            raise ContentCorrupt(
                f"manifest {digest} of {repository} cannot be read, so nothing was collected; "
                "delete it or push it again"
            ) from None
        named = [*manifest.blobs, *manifest.manifests]
        return [descriptor.digest for descriptor in named]

    def _links_of(self, garbage: set[Digest]) -> dict[Digest, list[Path]]:
        links: dict[Digest, list[Path]] = {}
        for repository in self._holdings.every_repository():
            for digest in garbage:
                link = self._layout.layer_link(repository, digest)
                if link.exists():
                    links.setdefault(digest, []).append(link)
        return links

    def _remove(
        self, digest: Digest, is_old: Callable[[float], bool], links: Iterable[Path]
    ) -> bool:
        with self._gate.removing():
            if not self._is_older(digest, is_old):
                return False
            for link in links:
                self._publisher.remove(link)
            return self._publisher.remove(self._layout.data(digest))

    def _is_older(self, digest: Digest, is_old: Callable[[float], bool]) -> bool:
        try:
            return is_old(self._layout.data(digest).stat().st_mtime)
        except FileNotFoundError:
            return False

    def _size(self, digest: Digest) -> int:
        try:
            return self._layout.data(digest).stat().st_size
        except FileNotFoundError:
            return 0
