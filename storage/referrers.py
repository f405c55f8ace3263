"""The referrers of each subject, derived from the manifests themselves.

The distribution format has no place for such a list. Keeping one beside it would go stale whenever
registry:2 writes to the same directory, so it is read off the manifests when first asked for and
then held in memory. What a repository's revisions directory lists is read again once its mtime has
changed, and then only the new manifests. That alone would miss two things, as registry:2 deletes a
manifest by its link file and leaves the directory: so whether a manifest is linked is looked at
whenever it is listed, and those without a link are looked at again each time.

Bounded: the repositories asked for last are kept.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from storage import manifest as manifests
from storage.digest import Digest
from storage.errors import DigestInvalid, ManifestInvalid, StorageError

_MAX_REPOSITORIES = 256
_SETTLE_NS = 50_000_000
"""A directory changed so recently may change again without a new mtime (clock ticks are 4 ms)."""


class Revisions(Protocol):
    """A store's manifests, as far as referrers need them."""

    def revision_directories(self, repository: str) -> Iterable[Path]:
        """The directories whose mtime tells that a manifest came or went."""

    def revision_entries(self, repository: str) -> Iterable[Digest]:
        """Every manifest that is or was linked in a repository."""

    def is_linked(self, repository: str, digest: Digest) -> bool:
        """Whether a manifest is linked now."""

    def read_manifest(self, repository: str, digest: Digest) -> bytes:
        """A manifest's bytes.

        Raises:
            ManifestUnknown: it is not in the repository.
        """


@dataclass(slots=True)
class _Known:
    stamp: tuple[int, ...] = ()
    unread: set[Digest] = field(default_factory=set)
    subject_of: dict[Digest, Digest | None] = field(default_factory=dict)
    by_subject: dict[Digest, dict[Digest, dict[str, object]]] = field(default_factory=dict)


class Referrers:
    """Answers "who refers to this" for the repositories of one store."""

    def __init__(self, revisions: Revisions) -> None:
        self._revisions = revisions
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
            linked = (d for d in sorted(found) if self._revisions.is_linked(repository, d))
            return [found[digest] for digest in linked]

    def changed(self, repository: str, digest: Digest) -> None:
        """A manifest was pushed: read it again, whatever it was before."""
        with self._lock:
            if (known := self._known.get(repository)) is not None:
                self._forget(digest, known)
                known.unread.add(digest)

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
            manifest = manifests.parse_stored(self._revisions.read_manifest(repository, digest))
        except (ManifestInvalid, DigestInvalid):
            # Foreign or damaged: it can refer to nothing that we could list.
            subject = None
        except (StorageError, OSError):
            return
        else:
            subject = manifest.subject.digest if manifest.subject else None
            if subject is not None:
                found = known.by_subject.setdefault(subject, {})
                found[digest] = manifest.referrer(digest)
        known.unread.discard(digest)
        known.subject_of[digest] = subject

    @staticmethod
    def _forget(digest: Digest, known: _Known) -> None:
        subject = known.subject_of.pop(digest, None)
        if subject is not None:
            del known.by_subject[subject][digest]

    def _stamp(self, repository: str) -> tuple[int, ...]:
        """The directories' mtimes in nanoseconds; empty while they may still be moving."""
        times = []
        for directory in self._revisions.revision_directories(repository):
            try:
                times.append(directory.stat().st_mtime_ns)
            except FileNotFoundError:
                times.append(0)
        return () if time.time_ns() - max(times, default=0) < _SETTLE_NS else tuple(times)
