"""Eviction: free space by removing images that came from an upstream, least recently pulled first.

Only manifests with a mark (`storage.directory.cached`) are ever removed, with the tags that the
upstream gave them: they can be fetched again. All others stay, and so does everything they name:
manifests that were pushed or imported, that the operator protects, or that a pull uses.

    usage ≥ high ─► collect garbage ─► still too much: remove marked manifests until enough of their
                                       blobs would be free ─► collect once more

The collector frees the blobs, with its own rules about age and concurrent pushes. So only blobs
count that are older than the grace; younger ones are freed by a later run. Nothing is written on
the way: it works on a disk without a free byte.

A push may name a marked manifest, as an index names its platforms: that touches the manifest's
bytes. So a manifest is removed only if its bytes were not touched within the grace, which is
checked again behind the gate (`storage.upkeep.untouched`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mayfly.storage.digest import Digest
from mayfly.storage.errors import ManifestInvalid, ManifestUnknown, StorageError
from mayfly.storage.manifest import parse_stored
from mayfly.storage.reading import read_unverified, repositories
from mayfly.storage.upkeep.collect import DEFAULT_GRACE, Collected, collect, kept_digests
from mayfly.storage.upkeep.maintainable import Maintainable
from mayfly.storage.upkeep.untouched import Untouched

IsProtected = Callable[[str, Digest, Collection[str]], bool]
"""Whether an image must stay: by its repository, its digest, and the tags that point at it."""

InUse = Callable[[], Collection[tuple[str, Digest]]]
"""Repository and digest of the content that is being sent."""


def unprotected(repository: str, digest: Digest, tags: Collection[str]) -> bool:
    """Protect nothing; see `IsProtected`."""
    return False


def thresholds(high: float, low: float | None) -> tuple[float, float]:
    """Return both thresholds; without the lower one it is 5 below the upper one.

    Raises:
        ValueError: the lower one is not below the upper one.
    """
    low = max(0.0, high - 5) if low is None else low
    if low >= high:
        raise ValueError(f"{low:g} is not below {high:g}")
    return high, low


class Usage(NamedTuple):
    """How full a filesystem is.

    Attributes:
        size: bytes of it.
        available: bytes that are left for this process.
    """

    size: int
    available: int

    @property
    def percent(self) -> float:
        """The used part, as the kubelet counts it."""
        return 100.0 * (self.size - self.available) / self.size if self.size else 0.0

    def above(self, percent: float) -> int:
        """Return the bytes that are used above a percentage."""
        return max(0, int(self.size - self.available - self.size * percent / 100))


def usage_of(directory: Path) -> Usage:
    """Return the size and the available space of a directory's filesystem.

    Raises:
        OSError: it cannot be asked.
    """
    found = os.statvfs(directory)
    return Usage(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def room_for(store: Maintainable, size: int) -> float:
    """Return the usage in percent at which ``size`` more bytes fit; below 0 if they never do.

    Raises:
        OSError: the filesystem cannot be asked.
    """
    usage = usage_of(store.upper.parts.layout.base)
    wanted = size + store.upper.reserved
    return 100.0 * (usage.size - wanted) / usage.size if usage.size else 0.0


class Evicted(NamedTuple):
    """A manifest that was removed, or would be.

    Attributes:
        repository: of the manifest.
        digest: its own.
        tags: that pointed at it.
        last_pulled: Unix seconds, coarse.
        size: bytes that its removal frees, after those before it.
    """

    repository: str
    digest: Digest
    tags: tuple[str, ...]
    last_pulled: float
    size: int

    @property
    def name(self) -> str:
        """Its first tag, or its digest."""
        end = f":{self.tags[0]}" if self.tags else f"@{self.digest}"
        return f"{self.repository}{end}"


class Freed(NamedTuple):
    """The outcome of `free`.

    Attributes:
        before: the usage at the start.
        after: the usage at the end; in a dry run, as it would be.
        evicted: in the order of their removal.
        collected: garbage that was removed.
        is_enough: whether the usage is at or below the lower threshold.
    """

    before: Usage
    after: Usage
    evicted: tuple[Evicted, ...]
    collected: Collected
    is_enough: bool


def free(
    store: Maintainable,
    high: float,
    low: float,
    grace: float = DEFAULT_GRACE,
    is_protected: IsProtected = unprotected,
    in_use: InUse = tuple,
    *,
    dry_run: bool = False,
) -> Freed:
    """Free space, if the filesystem of a store is fuller than it may be.

    Args:
        store: the store; content of the stores beneath it counts as kept.
        high: percent; below it nothing is done.
        low: percent to come down to.
        grace: seconds; content that was pulled or stored within them stays.
        is_protected: see `IsProtected`.
        in_use: see `InUse`.
        dry_run: remove nothing.

    Raises:
        OSError: the disk refuses.
    """
    directory = store.upper.parts.layout.base
    before = after = usage_of(directory)
    nothing = Collected((), 0)
    if before.percent < high:
        return Freed(before, after, (), nothing, is_enough=True)
    garbage = collect(store, grace, dry_run=dry_run)
    after = _after(before, garbage.size) if dry_run else usage_of(directory)
    chosen: list[Evicted] = []
    if wanted := after.above(low):
        eviction = _Eviction(store, grace, is_protected, in_use)
        chosen = eviction.choose(wanted, frozenset(garbage.blobs) if dry_run else frozenset())
        if dry_run:
            after = _after(after, sum(one.size for one in chosen))
        elif chosen:
            chosen = eviction.remove(chosen)
            swept = collect(store, grace)
            garbage = swept._replace(
                blobs=garbage.blobs + swept.blobs, size=garbage.size + swept.size
            )
            after = usage_of(directory)
    return Freed(before, after, tuple(chosen), garbage, is_enough=not after.above(low))


def _after(usage: Usage, freed: int) -> Usage:
    return usage._replace(available=min(usage.size, usage.available + freed))


class _Node(NamedTuple):
    """A manifest of a repository, with the content that it keeps."""

    repository: str
    digest: Digest
    keeps: frozenset[Digest]
    children: tuple[Digest, ...]
    subject: Digest | None


_Content = tuple[str, Digest]
"""Repository and digest."""


class _Eviction:
    """One look at a store."""

    def __init__(
        self, store: Maintainable, grace: float, is_protected: IsProtected, in_use: InUse
    ) -> None:
        self._store = store
        self._upper = store.upper
        self._layout = store.upper.parts.layout
        self._untouched = Untouched(store.upper, grace)
        self._is_protected = is_protected
        self._in_use = in_use
        self._below: dict[_Content, list[Digest]] = {}
        """The candidates that stay in the repository if a manifest does: children, referrers."""

    def choose(self, wanted: int, gone: frozenset[Digest]) -> list[Evicted]:
        """Choose the manifests to remove.

        Args:
            wanted: bytes to free.
            gone: blobs that do not count, since they are garbage already.
        """
        users: Counter[Digest] = Counter()
        candidates: list[tuple[float, tuple[str, ...], _Node]] = []
        for repository in repositories(self._store):
            nodes = self._nodes(repository)
            if nodes is None:
                # The needs of a damaged manifest are unknown: the collector keeps all of it.
                users.update(self._upper.blob_links(repository))
                users.update(self._store.revisions(repository))
                continue
            for node in nodes:
                users.update(node.keeps)
            candidates += self._candidates(repository, nodes)
        chosen: list[Evicted] = []
        freed = 0
        for last_pulled, tags, node in sorted(candidates, key=lambda one: one[0]):
            if freed >= wanted:
                break
            users.subtract(node.keeps)
            free = [one for one in node.keeps if users[one] == 0 and one not in gone]
            size = sum(self._free_size(one) for one in free)
            freed += size
            chosen.append(Evicted(node.repository, node.digest, tags, last_pulled, size))
        return chosen

    def remove(self, chosen: Sequence[Evicted]) -> list[Evicted]:
        """Remove manifests; return those that were removed.

        Each is removed after those that name it: if one of these has to stay, all below it stays.
        """
        removed: list[Evicted] = []
        staying: set[_Content] = set()
        for one in self._top_down(chosen):
            key = one.repository, one.digest
            if key not in staying and self._remove(one):
                removed.append(one)
            else:
                staying.update((one.repository, digest) for digest in self._below.get(key, ()))
        return removed

    def _top_down(self, chosen: Sequence[Evicted]) -> list[Evicted]:
        """Order manifests so that each comes after those that it is below of."""
        known = {(one.repository, one.digest): one for one in chosen}
        seen: set[_Content] = set()
        bottom_up: list[Evicted] = []
        waiting = [(key, False) for key in known]
        while waiting:
            key, is_below_done = waiting.pop()
            if is_below_done:
                bottom_up.append(known[key])
            elif key not in seen:
                seen.add(key)
                waiting.append((key, True))
                below = ((key[0], digest) for digest in self._below.get(key, ()))
                waiting += [(one, False) for one in below if one in known]
        return bottom_up[::-1]

    def _remove(self, one: Evicted) -> bool:
        """Remove a manifest, unless it was pulled, pushed, named or tagged meanwhile."""
        with self._upper.removing(one.repository):
            marks = self._upper.cached
            if marks.last_pulled(one.repository, one.digest) != one.last_pulled:
                return False
            if not self._untouched.content(one.digest):
                return False
            if (one.repository, one.digest) in self._used():
                return False
            # No other tag points at it: setting one touches its bytes.
            tags = [tag for tag in one.tags if self._at_tag(one.repository, tag) == one.digest]
            if not self._are_cached(one.repository, tags):
                return False
            try:
                self._upper.remove_manifest(one.repository, one.digest, tags)
            except ManifestUnknown:
                return False
        return True

    def _nodes(self, repository: str) -> list[_Node] | None:
        """The manifests of a repository; None if one cannot be read."""
        found = []
        for digest in self._store.revisions(repository):
            try:
                body = read_unverified(self._store, repository, digest)
                manifest = parse_stored(body)
            except (ManifestUnknown, ManifestInvalid, OSError):
                return None
            children = tuple(child.digest for child in manifest.manifests)
            subject = None if manifest.subject is None else manifest.subject.digest
            keeps = kept_digests(body) | {digest}
            found.append(_Node(repository, digest, keeps, children, subject))
        return found

    def _candidates(
        self, repository: str, nodes: list[_Node]
    ) -> Iterator[tuple[float, tuple[str, ...], _Node]]:
        """Yield the manifests that may be removed: last pull, tags, node."""
        used = self._used()
        tagged = self._tagged(repository)
        may_go: dict[Digest, tuple[float, tuple[str, ...], _Node]] = {}
        below: dict[Digest, list[Digest]] = {}
        staying: list[Digest] = []
        for node in nodes:
            below.setdefault(node.digest, []).extend(node.children)
            if node.subject is not None:
                below.setdefault(node.subject, []).append(node.digest)
            last_pulled = self._upper.cached.last_pulled(repository, node.digest)
            tags = tuple(tagged.get(node.digest, ()))
            if (
                last_pulled is None
                or not self._untouched.at(last_pulled)
                or not self._untouched.content(node.digest)
                or not self._are_cached(repository, tags)
                or self._is_protected(repository, node.digest, tags)
                or any((repository, digest) in used for digest in node.keeps)
            ):
                staying.append(node.digest)
            else:
                may_go[node.digest] = last_pulled, tags, node
        # A manifest that stays needs its children, and keeps its signatures.
        while staying:
            under = dict.fromkeys(below.pop(staying.pop(), ()))
            staying += [digest for digest in under if may_go.pop(digest, None)]
        self._below.update(((repository, digest), below[digest]) for digest in may_go)
        yield from may_go.values()

    def _tagged(self, repository: str) -> dict[Digest, list[str]]:
        """The tags that point at each manifest."""
        found: dict[Digest, list[str]] = {}
        for tag in self._upper.tag_names(repository):
            digest = self._at_tag(repository, tag)
            if digest is not None:
                found.setdefault(digest, []).append(tag)
        return found

    def _at_tag(self, repository: str, tag: str) -> Digest | None:
        return self._upper.read_link(self._layout.tag_link(repository, tag))

    def _are_cached(self, repository: str, tags: Collection[str]) -> bool:
        """Whether all of these tags came from the upstream."""
        return all(self._upper.cached.last_checked(repository, tag) is not None for tag in tags)

    def _used(self) -> frozenset[tuple[str, Digest]]:
        return frozenset(self._in_use())

    def _free_size(self, digest: Digest) -> int:
        """Bytes that the collector would free with a blob that nothing needs any more."""
        try:
            status = self._layout.data(digest).stat()
        except (OSError, StorageError):
            return 0
        return status.st_size if self._untouched.at(status.st_mtime) else 0
