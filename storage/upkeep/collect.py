"""Online garbage collection: blobs that no manifest refers to, in any repository.

Mark and sweep, beside running pushes and pulls:

- *Mark.* Every manifest linked in a repository is kept, tagged or not, and so is the content it
  names. If a manifest can be read in two ways, the content of both is kept. If one is damaged or
  gone, its content is unknown, so its repository keeps everything; others are collected as usual.
- *Sweep.* A blob is removed if it is not marked and its file was last touched before the mark
  began, less the grace. Finishing an upload, mounting, and putting a manifest touch the blobs they
  refer to, so every blob that a push referred to since then is younger. The last check of the time
  and the removal are one step behind the gate (`storage.directory.gate`).

A blob is removed together with its links, so that a later push elsewhere cannot bring it back to a
repository that no longer holds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.cached import CacheMarker
from mayfly.storage.directory.reader import DirectoryReader
from mayfly.storage.errors import ManifestInvalid, ManifestUnknown
from mayfly.storage.interface import RevisionReader
from mayfly.storage.manifest import mentioned_digests, parse_stored
from mayfly.storage.reading import read_unverified, repositories
from mayfly.storage.upkeep.maintainable import Maintainable
from mayfly.storage.upkeep.untouched import Untouched

DEFAULT_GRACE = 3600.0
"""Seconds for which an unreferenced blob is kept: a slow push may refer to it at its end."""


class UnreadCode(StrEnum):
    """The reasons for which the references of a manifest are unknown."""

    TAG_DANGLING = "tag_dangling"
    MANIFEST_MISSING = "manifest_missing"
    UNREADABLE = "unreadable"
    MANIFEST_CORRUPT = "manifest_corrupt"


_TEXTS = {
    UnreadCode.TAG_DANGLING: "the tag leads to no manifest",
    UnreadCode.MANIFEST_MISSING: "the manifest's bytes are gone or damaged",
    UnreadCode.UNREADABLE: "it cannot be read",
    UnreadCode.MANIFEST_CORRUPT: "the manifest is corrupt",
}


class Unread(NamedTuple):
    """A manifest whose references are unknown, so that all blobs of its repository were kept.

    Attributes:
        image: ``repository@digest``, ``repository:tag`` of a tag without manifest, or a repository
            that cannot be read at all.
        code: the reason.
        detail: the message of the error behind it; "" if the code says it all.
    """

    image: str
    code: UnreadCode
    detail: str = ""

    def __str__(self) -> str:
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.image}: {_TEXTS[self.code]}{detail}"


_Reason = tuple[UnreadCode, str]


class Collected(NamedTuple):
    """The outcome of a collection.

    Attributes:
        blobs: that were removed; in a dry run, that would be.
        size: of these, in bytes.
        unread: manifests whose references are unknown.
        manifests: untagged ones that were deleted, or would be, by repository and digest.
        spared: number of unreferenced blobs that were kept since they were used within the grace.
        spared_size: of these, in bytes.
    """

    blobs: tuple[Digest, ...]
    size: int
    unread: tuple[Unread, ...] = ()
    manifests: tuple[tuple[str, Digest], ...] = ()
    spared: int = 0
    spared_size: int = 0


def collect(
    store: Maintainable,
    grace: float = DEFAULT_GRACE,
    *,
    dry_run: bool = False,
    untagged: bool = False,
) -> Collected:
    """Remove unreferenced blobs untouched for ``grace`` seconds.

    Args:
        store: the store; manifests of the stores beneath it also keep blobs.
        grace: seconds.
        dry_run: remove nothing.
        untagged: first delete equally old manifests that no tag leads to, neither through an
            index nor as a referrer of a kept manifest.
    """
    return _Collection(store).run(grace, dry_run=dry_run, untagged=untagged)


class _Collection:
    """One collection in one store."""

    def __init__(self, store: Maintainable) -> None:
        self._store = store
        self._upper = store.upper
        self._layout, self._publisher, self._records, self._gate, _ = store.upper.parts

    def run(self, grace: float, *, dry_run: bool, untagged: bool) -> Collected:
        """See `collect`."""
        if not dry_run:
            self._publisher.tidy()
        untouched = Untouched(self._upper, grace)
        loose = self._untagged(untouched) if untagged else []
        if not dry_run:
            loose = [one for one in loose if self._delete_manifest(*one, untouched)]
        kept, unread = marked(self._store, self._upper, frozenset(loose))
        unmarked = [d for d, _ in self._upper.stored_blobs() if d not in kept]
        garbage = [d for d in unmarked if untouched.content(d)]
        spared = {d: self._size(d) for d in set(unmarked).difference(garbage)}
        links: dict[Digest, list[Path]] = {}
        if garbage and not dry_run:
            self._confirm_deletions()
            links = self._links_of(set(garbage))
        removed: list[Digest] = []
        size = 0
        for digest in garbage:
            found = self._size(digest)
            if dry_run or self._remove(digest, untouched, links.get(digest, ())):
                removed.append(digest)
                size += found
        return Collected(
            tuple(removed),
            size,
            tuple(unread),
            tuple(loose),
            len(spared),
            sum(spared.values()),
        )

    def _untagged(self, untouched: Untouched) -> list[tuple[str, Digest]]:
        """Return the old manifests that no tag leads to."""
        found: list[tuple[str, Digest]] = []
        for repository in repositories(self._store):
            below: dict[Digest, list[Digest]] = {}
            try:
                if not all(history for _, history in self._upper.lost_tags(repository)):
                    continue  # a tag may point at any of them
                linked = list(self._store.revisions(repository))
                waiting = list(self._upper.tag_targets(repository))
                for digest in linked:
                    body = read_unverified(self._store, repository, digest)
                    if digests.of(body, digest.algorithm) != digest:
                        raise ManifestUnknown("damaged")
                    named = kept_digests(body)
                    below.setdefault(digest, []).extend(named)
                    for subject in _subject(body):
                        below.setdefault(subject, []).append(digest)
            except (ManifestUnknown, OSError):
                continue  # the references of a damaged one are unknown: keep all
            kept: set[Digest] = set()
            while waiting:
                digest = waiting.pop()
                if digest not in kept:
                    kept.add(digest)
                    waiting += below.get(digest, ())
            found += [
                (repository, digest)
                for digest in linked
                if digest not in kept and untouched.content(digest)
            ]
        return found

    def _delete_manifest(self, repository: str, digest: Digest, untouched: Untouched) -> bool:
        """Delete a manifest unless it, or one that names it, was pushed meanwhile."""
        with self._gate.removing():
            if not untouched.content(digest):
                return False
            removed = self._publisher.remove(self._layout.revision_link(repository, digest))
            CacheMarker(self._layout, self._publisher).remove(repository, digest, ())
            return removed

    def _confirm_deletions(self) -> None:
        """Make deletions of manifests durable before their blobs are removed.

        After a power cut no manifest may come back without its blobs. A manifest whose removal is
        not durable yet still has its directory.
        """
        for repository in repositories(self._store):
            for digest in self._upper.revision_entries(repository):
                if not self._upper.is_linked(repository, digest):
                    self._publisher.confirm_absent(self._layout.revision_link(repository, digest))

    def _links_of(self, garbage: set[Digest]) -> dict[Digest, list[Path]]:
        links: dict[Digest, list[Path]] = {}
        for repository in repositories(self._store):
            for digest in self._upper.blob_links(repository):
                if digest in garbage:
                    links.setdefault(digest, []).append(self._layout.layer_link(repository, digest))
        return links

    def _remove(self, digest: Digest, untouched: Untouched, links: Iterable[Path]) -> bool:
        with self._gate.removing():
            if not untouched.content(digest):
                return False
            for link in links:
                self._publisher.remove(link)
            # Before the bytes, so that the directory is empty after them.
            self._records.drop(digest)
            return self._publisher.remove(self._layout.data(digest))

    def _size(self, digest: Digest) -> int:
        try:
            return self._layout.data(digest).stat().st_size
        except FileNotFoundError:
            return 0


def marked(
    store: RevisionReader,
    upper: DirectoryReader,
    deleted: frozenset[tuple[str, Digest]] = frozenset(),
) -> tuple[set[Digest], list[Unread]]:
    """Return the content that a collection keeps, and the manifests whose references are unknown.

    Args:
        store: the store, with those beneath it.
        upper: the store that is collected.
        deleted: manifests that do not count, by repository and digest.
    """
    kept: set[Digest] = set()
    unread: list[Unread] = []
    # A manifest has the same references in every repository that links it.
    outcomes: dict[Digest, _Reason | None] = {}

    def mark(repository: str, digest: Digest) -> _Reason | None:
        if digest not in outcomes:
            references, reason = _references(store, repository, digest)
            kept.update(references)
            is_missing = reason is not None and reason[0] is UnreadCode.MANIFEST_MISSING
            if is_missing and not upper.is_linked(repository, digest):
                return None  # deleted meanwhile
            outcomes[digest] = reason
        return outcomes[digest]

    for repository in repositories(store):
        found: list[Unread] = []
        try:
            found += (
                Unread(f"{repository}@{digest}", *reason)
                for digest in store.revisions(repository)
                if (repository, digest) not in deleted
                if (reason := mark(repository, digest))
            )
            for tag, digest in upper.dangling_tags(repository):
                if digest is not None:
                    kept.add(digest)
                found.append(Unread(f"{repository}:{tag}", UnreadCode.TAG_DANGLING))
        except OSError as error:
            reason = UnreadCode.UNREADABLE, error.strerror or ""
            found.append(Unread(repository, *reason))
        if found:
            kept.update(upper.blob_links(repository))
            unread += found
    return kept, unread


def _references(
    store: RevisionReader, repository: str, digest: Digest
) -> tuple[frozenset[Digest], _Reason | None]:
    """Return a manifest and its references, and the reason if those are unknown."""
    alone = frozenset((digest,))
    try:
        body = read_unverified(store, repository, digest)
    except ManifestUnknown:
        return alone, (UnreadCode.MANIFEST_MISSING, "")
    except OSError as error:
        return alone, (UnreadCode.UNREADABLE, error.strerror or "")
    if digests.of(body, digest.algorithm) != digest:
        # It may still be JSON, and name other content.
        return alone | mentioned_digests(body), (UnreadCode.MANIFEST_CORRUPT, "")
    return alone | kept_digests(body), None


def kept_digests(body: bytes) -> frozenset[Digest]:
    """Return the content that a stored manifest keeps, however it can be read."""
    try:
        return parse_stored(body).kept_digests()
    except ManifestInvalid:
        return mentioned_digests(body)


def _subject(body: bytes) -> list[Digest]:
    """Return the subject of a manifest such as a signature."""
    try:
        subject = parse_stored(body).subject
    except ManifestInvalid:
        return []
    return [] if subject is None else [subject.digest]
