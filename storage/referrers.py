"""The referrers of each subject, derived from the manifests themselves.

The distribution format has no place for such a list. Keeping one beside it would go stale whenever
registry:2 writes to the same directory, so it is read off the manifests when first asked for and
then held in memory. What a repository's revisions directory lists is read again once its mtime has
changed, and then only the new manifests. That alone would miss two things, as registry:2 deletes a
manifest by its link file and leaves the directory: so whether a manifest is linked is looked at
whenever it is listed, and those without a link are looked at again each time.

What is held is bounded in bytes: of the repositories asked for last, which manifest refers to
which. Descriptors carry annotations, up to 4 MiB each, so they are made from the manifest one by
one as they are listed; small ones are kept.
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
"""Bytes for the subjects of manifests, in all repositories: some 40,000 manifests."""

_PER_MANIFEST = 400
"""Bytes that one manifest takes of these: two digests, their places in tables."""

_MAX_DESCRIPTORS = 4 * 1024 * 1024
"""Bytes for the descriptors listed last."""

Referrer = dict[str, object]
"""The descriptor of a manifest that refers to another, as the referrers list has it."""

_SETTLE_NS = 50_000_000
"""A directory changed so recently may change again without a new mtime (clock ticks are 4 ms)."""


class Revisions(Reader, Protocol):
    """A store's manifests, as far as referrers need them."""

    def revision_directories(self, repository: str) -> Iterable[Path]:
        """The directories whose mtime tells that a manifest came or went."""

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
    """Answers "who refers to this" for the repositories of one store."""

    def __init__(self, revisions: Revisions) -> None:
        self._revisions = revisions
        self._known: SizedCache[str, _Known] = SizedCache(_MAX_KNOWN, _Known.size)
        self._descriptors: SizedCache[Digest, Referrer] = SizedCache(_MAX_DESCRIPTORS, size_of)
        self._lock = threading.Lock()

    def of(self, repository: str, subject: Digest, after: str = "") -> Iterator[Referrer]:
        """Descriptors of the manifests that name ``subject``, in order of digest.

        Args:
            after: the digest that those wanted follow.
        """
        with self._lock:
            known = self._known.get(repository)
            if known is None:
                self._known.put(repository, known := _Known())
        # One repository may have very many manifests; others do not wait for it.
        with known.lock:
            self._refresh(repository, known)
            found = sorted(d for d in known.by_subject.get(subject, ()) if str(d) > after)
        with self._lock:
            if self._known.get(repository) is known:
                self._known.put(repository, known)  # measured again
        return self._descriptors_of(repository, found)

    def changed(self, repository: str, digest: Digest) -> None:
        """A manifest was pushed: read it again, whatever it was before."""
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
            # Foreign or damaged: it can refer to nothing that we could list.
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
        """The directories' mtimes in nanoseconds; empty while they may still be moving."""
        times = []
        for directory in self._revisions.revision_directories(repository):
            try:
                times.append(directory.stat().st_mtime_ns)
            except FileNotFoundError:
                times.append(0)
        return () if time.time_ns() - max(times, default=0) < _SETTLE_NS else tuple(times)


def size_of(descriptor: Referrer) -> int:
    """The bytes that a descriptor takes, roughly."""
    annotations = descriptor.get("annotations")
    if not isinstance(annotations, dict):
        return 600
    return 600 + sum(200 + 4 * (len(key) + len(value)) for key, value in annotations.items())
