"""The referrers of each subject, derived from the manifests.

The distribution format has no list of referrers, and one beside it would become stale whenever
registry:2 writes to the same directory. So the manifests of a repository are read at the first
request, and their subjects are kept in memory. The repository's revisions directory is listed again
when its mtime has changed; then only new manifests are read. registry:2 deletes a manifest by its
link file and leaves the directory, which the mtime does not show: so each listing checks whether
the manifests are linked, and reads those again that had no link.

The memory is bounded in bytes: subjects are kept for the repositories requested last. Descriptors
have annotations of up to 4 MiB, so they are made from the manifest one by one as they are listed;
small ones are cached.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mayfly.storage import manifest as manifests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import DigestInvalid, ManifestInvalid, StorageError
from mayfly.storage.interface import Reader
from mayfly.storage.reading import read_unverified
from mayfly.storage.sized_cache import SizedCache

_MAX_KNOWN = 16 * 1024 * 1024
"""Bytes for the subjects of the manifests of all repositories: some 40,000 manifests."""

_PER_MANIFEST = 400
"""Bytes of these for one manifest: two digests and their places in tables."""

_MAX_DESCRIPTORS = 4 * 1024 * 1024
"""Bytes for the descriptors that were listed last."""

Referrer = dict[str, object]
"""The descriptor of a manifest in the referrers list of its subject."""

_SETTLE_NS = 50_000_000
"""Nanoseconds within which a directory may change twice with one mtime (clock ticks are 4 ms)."""


class Revisions(Reader, Protocol):
    """The manifests of a store, as referrers need them."""

    def revision_directories(self, repository: str) -> Iterable[Path]:
        """The directories whose mtime changes when a manifest is added or removed."""

    def revision_entries(self, repository: str) -> Iterable[Digest]:
        """Every manifest that is or was linked in a repository."""

    def is_linked(self, repository: str, digest: Digest) -> bool:
        """Whether a manifest is linked now."""


@dataclass(slots=True)
class _Known:
    stamp: tuple[int, ...] = ()
    unread: set[Digest] = field(default_factory=set)
    subject_of: dict[Digest, Digest | None] = field(default_factory=dict)
    by_subject: dict[Digest, set[Digest]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def size(self) -> int:
        return len(self.subject_of) * _PER_MANIFEST


class Referrers:
    """The referrers in the repositories of one store."""

    def __init__(self, revisions: Revisions) -> None:
        self._revisions = revisions
        self._known: SizedCache[str, _Known] = SizedCache(_MAX_KNOWN, _Known.size)
        self._descriptors: SizedCache[Digest, Referrer] = SizedCache(_MAX_DESCRIPTORS, size_of)
        self._lock = threading.Lock()

    def of(self, repository: str, subject: Digest, after: str = "") -> Iterator[Referrer]:
        """Yield descriptors of the manifests whose subject is ``subject``, in order of digest.

        Args:
            repository: of the manifests.
            subject: a digest.
            after: only digests that follow this one.
        """
        with self._lock:
            known = self._known.get(repository)
            if known is None:
                self._known.put(repository, known := _Known())
        # A lock for each repository: one with very many manifests delays no other.
        with known.lock:
            self._refresh(repository, known)
            found = sorted(d for d in known.by_subject.get(subject, ()) if str(d) > after)
        with self._lock:
            if self._known.get(repository) is known:
                self._known.put(repository, known)  # its size has changed
        return self._descriptors_of(repository, found)

    def changed(self, repository: str, digest: Digest) -> None:
        """Read a manifest again that was pushed."""
        known = self._known.get(repository)
        if known is not None:
            with known.lock:
                self._forget(digest, known)
                known.unread.add(digest)

    def _descriptors_of(self, repository: str, found: list[Digest]) -> Iterator[Referrer]:
        for digest in found:
            if not self._revisions.is_linked(repository, digest):
                continue
            descriptor = self._descriptors.get(digest)
            if descriptor is None:
                try:
                    body = read_unverified(self._revisions, repository, digest)
                    descriptor = manifests.parse_stored(body).referrer(digest)
                except (StorageError, OSError):
                    continue  # deleted meanwhile
                self._descriptors.put(digest, descriptor)
            yield descriptor

    def _refresh(self, repository: str, known: _Known) -> None:
        stamp = self._stamp(repository)
        if not stamp or stamp != known.stamp:
            current = set(self._revisions.revision_entries(repository))
            for gone in known.subject_of.keys() - current:
                self._forget(gone, known)
            known.unread = current - known.subject_of.keys()
            known.stamp = stamp
        for digest in list(known.unread):
            self._read(repository, digest, known)

    def _read(self, repository: str, digest: Digest, known: _Known) -> None:
        try:
            manifest = manifests.parse_stored(read_unverified(self._revisions, repository, digest))
        except (ManifestInvalid, DigestInvalid):
            # Foreign or damaged: it has no subject that could be listed.
            subject = None
        except (StorageError, OSError):
            return
        else:
            subject = manifest.subject.digest if manifest.subject else None
            if subject is not None:
                known.by_subject.setdefault(subject, set()).add(digest)
                self._descriptors.put(digest, manifest.referrer(digest))
        known.unread.discard(digest)
        known.subject_of[digest] = subject

    @staticmethod
    def _forget(digest: Digest, known: _Known) -> None:
        subject = known.subject_of.pop(digest, None)
        if subject is not None:
            known.by_subject[subject].discard(digest)

    def _stamp(self, repository: str) -> tuple[int, ...]:
        """Return the directories' mtimes in nanoseconds; empty if they changed just now."""
        times = []
        for directory in self._revisions.revision_directories(repository):
            try:
                times.append(directory.stat().st_mtime_ns)
            except FileNotFoundError:
                times.append(0)
        return () if time.time_ns() - max(times, default=0) < _SETTLE_NS else tuple(times)


def size_of(descriptor: Referrer) -> int:
    """Estimate the bytes that a descriptor takes."""
    annotations = descriptor.get("annotations")
    if not isinstance(annotations, dict):
        return 600
    return 600 + sum(200 + 4 * (len(key) + len(value)) for key, value in annotations.items())
