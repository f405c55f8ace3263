"""The referrers of each subject, derived from the manifests themselves.

The distribution format has no place for such a list. Keeping one beside it would go stale whenever
registry:2 writes to the same directory, so it is read off the manifests when first asked for and
then held in memory; a repository is read again, only its new manifests, once its revisions
directory has changed. Bounded: the repositories asked for last are kept.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from storage import manifest as manifests
from storage.digest import Digest
from storage.errors import StorageError

_MAX_REPOSITORIES = 256
_SETTLE_NS = 50_000_000
"""A directory changed so recently may change again without a new mtime (clock ticks are 4 ms)."""


@dataclass(slots=True)
class _Known:
    stamp: tuple[int, ...] = ()
    seen: dict[Digest, Digest | None] = field(default_factory=dict)
    by_subject: dict[Digest, dict[Digest, dict[str, object]]] = field(default_factory=dict)


class Referrers:
    """Answers "who refers to this" for the repositories of one store.

    Args:
        revisions: every manifest digest of a repository, as linked now.
        directories: those whose mtime tells that the revisions changed.
        read: the bytes of a manifest of a repository.
    """

    def __init__(
        self,
        revisions: Callable[[str], Iterable[Digest]],
        directories: Callable[[str], Iterable[Path]],
        read: Callable[[str, Digest], bytes],
    ) -> None:
        self._revisions = revisions
        self._directories = directories
        self._read = read
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, repository: str, subject: Digest) -> list[dict[str, object]]:
        """Descriptors of the manifests that name ``subject``, in order of digest."""
        with self._lock:
            known = self._known.setdefault(repository, _Known())
            self._known.move_to_end(repository)
            if len(self._known) > _MAX_REPOSITORIES:
                self._known.popitem(last=False)
            self._refresh(repository, known)
            found = known.by_subject.get(subject, {})
            return [found[digest] for digest in sorted(found)]

    def _refresh(self, repository: str, known: _Known) -> None:
        stamp = self._stamp(repository)
        if stamp and stamp == known.stamp:
            return
        current = set(self._revisions(repository))
        for gone in known.seen.keys() - current:
            subject = known.seen.pop(gone)
            if subject is not None:
                del known.by_subject[subject][gone]
        for digest in current - known.seen.keys():
            self._learn(repository, digest, known)
        known.stamp = stamp

    def _learn(self, repository: str, digest: Digest, known: _Known) -> None:
        try:
            manifest = manifests.parse(self._read(repository, digest))
        except (StorageError, OSError):
            # Foreign, damaged or deleted meanwhile: it can refer to nothing that we could list.
            return
        subject = manifest.subject.digest if manifest.subject else None
        known.seen[digest] = subject
        if subject is not None:
            known.by_subject.setdefault(subject, {})[digest] = manifest.referrer(digest)

    def _stamp(self, repository: str) -> tuple[int, ...]:
        """The directories' mtimes in nanoseconds; empty while they may still be moving."""
        times = []
        for directory in self._directories(repository):
            try:
                times.append(directory.stat().st_mtime_ns)
            except FileNotFoundError:
                times.append(0)
        return () if time.time_ns() - max(times, default=0) < _SETTLE_NS else tuple(times)
