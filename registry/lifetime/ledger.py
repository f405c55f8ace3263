"""What happened to which image at which node, kept across a kill of the server.

Facts are what a node can only have caused by itself: a manifest it was served, a blob that did not
arrive, a manifest it pushed. The ledger keeps each fact once, in the order of their last happening,
since what counts is whether a failure came after a confirmation. A fact is written down when it is
new, or when its place in that order matters.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from registry.lifetime.activity import Pulse
from registry.lifetime.clock import Clock, boot_id
from registry.lifetime.journal import Entry, Journal

logger = logging.getLogger("mayfly")

MAX_AGE = 7 * 24 * 3600.0
"""Seconds a fact counts. An upgrade takes hours; an older ledger is of another one."""

MAX_FACTS = 200_000
"""Facts kept; more are counted by nobody. 500 nodes with 100 two-level images make 100 000."""

_COMPACT_FACTOR = 4
_COMPACT_SLACK = 1000
_VERSION: Entry = {"mayfly-ledger": 1}
_WHOLE = -1

_CLOCK = "clock"
"""No fact, but by which clock the times of those that follow are told."""

Key = tuple[str, str]
"""Repository and digest."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A manifest was served to a node.

    Attributes:
        order: larger than that of every fact that happened before.
        time: see `Ledger.age`.
        head: whether the last time was a HEAD. A node that already has everything asks no more
            than that, so after a HEAD nothing else needs to have happened.
        again: whether it was asked for again after the node had the image.
    """

    order: int
    time: int
    head: bool
    again: bool = False


@dataclass(frozen=True, slots=True)
class _Failure:
    order: int
    time: int
    last_byte: int


class Ledger:
    """The facts of one upgrade.

    Args:
        path: of the file; None keeps them in memory only.
        clock: for their ages.

    Attributes:
        changed: happens with every fact that may change what somebody concludes.

    Raises:
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self._clock = clock
        self._zero = clock.wall() - clock.now()
        """Unix seconds of the monotonic clock's zero, as the wall clock has it now."""
        self._order = 0
        self._facts = 0
        self._confirmed: dict[str, dict[Key, Confirmation]] = {}
        self._failed: dict[str, dict[Key, _Failure]] = {}
        self._pushed: dict[Key, dict[str, int]] = {}
        self._tags: dict[Key, dict[str, None]] = {}
        self._journal = Journal(path, _VERSION) if path is not None else None
        self.changed = Pulse()
        if self._journal is not None:
            self._read(self._journal)
            self._journal.replace(self._entries())

    def age(self, confirmation: Confirmation) -> float:
        """Seconds since a fact last happened."""
        return self._time() - confirmation.time

    def confirmed(
        self, node: str, repository: str, digest: str, *, head: bool, tag: str | None = None
    ) -> None:
        """A manifest was served to a node, asked for by ``tag`` if there is one."""
        key = repository, digest
        known = self._confirmed.get(node, {}).get(key)
        if known is None or known.head != head or self._failed.get(node):
            self._record("has", node, key, head=head)
        if tag is not None and tag not in self._tags.get(key, ()):
            self._record("named", node, key, tags=[tag])

    def again(self, node: str, repository: str, digest: str) -> None:
        """A node that had an image asked for it again, as its pods with ``Always`` will."""
        known = self._confirmed.get(node, {}).get((repository, digest))
        if known is not None and not known.again:
            self._record("again", node, (repository, digest))

    def blob_failed(
        self, node: str, repository: str, digest: str, last_byte: int | None = None
    ) -> None:
        """A blob, or the part of it that ends with ``last_byte``, did not arrive at a node."""
        last = _WHOLE if last_byte is None else last_byte
        self._record("failed", node, (repository, digest), last=last)

    def blob_arrived(self, node: str, repository: str, digest: str, first: int, end: int) -> None:
        """Bytes ``first`` up to but not including ``end`` arrived; ends the failure they mend.

        Only the end of a failed part shows that it was asked for again: where the client goes on
        depends on what reached it.
        """
        failure = self._failed.get(node, {}).get((repository, digest))
        if failure and (failure.last_byte == _WHOLE or first <= failure.last_byte < end):
            self._record("mended", node, (repository, digest))

    def pushed(self, node: str, repository: str, digest: str, tags: Collection[str] = ()) -> None:
        """A node stored a manifest, under some tags."""
        key = repository, digest
        known = self._tags.get(key, {})
        if node not in self._pushed.get(key, ()):
            self._record("pushed", node, key)
        if any(tag not in known for tag in tags):
            self._record("named", node, key, tags=list(tags))
        elif tags:
            self.changed.happened()  # a tag may have moved back to an older image

    def nodes(self) -> list[str]:
        """Every node that was served a manifest."""
        return list(self._confirmed)

    def confirmation(self, node: str, repository: str, digest: str) -> Confirmation | None:
        """The fact that a node was served a manifest."""
        return self._confirmed.get(node, {}).get((repository, digest))

    def failed_after(
        self, order: int, node: str, repository: str, digests: Collection[str]
    ) -> bool:
        """Whether one of these blobs failed to arrive at a node after another fact."""
        return any(
            failure.order > order and where == repository and digest in digests
            for (where, digest), failure in self._failed.get(node, {}).items()
        )

    def pushers(self) -> dict[Key, list[str]]:
        """Manifests pushed, and by whom."""
        return {key: list(nodes) for key, nodes in self._pushed.items()}

    def pullers(self) -> dict[Key, list[str]]:
        """Manifests served, and to whom."""
        found: dict[Key, list[str]] = {}
        for node, confirmed in self._confirmed.items():
            for key in confirmed:
                found.setdefault(key, []).append(node)
        return found

    def asked_again(self) -> dict[str, int]:
        """Node → how many manifests it asked for again after it had the image."""
        counts = {
            node: sum(one.again for one in confirmed.values())
            for node, confirmed in self._confirmed.items()
        }
        return {node: count for node, count in counts.items() if count}

    def tags(self, repository: str, digest: str) -> list[str]:
        """Tags by which a manifest was pushed or asked for."""
        return list(self._tags.get((repository, digest), ()))

    def close(self) -> None:
        """Stop writing; the file stays for the next start."""
        if self._journal is not None:
            self._journal.close()

    def remove(self) -> None:
        """The upgrade is over: the next start begins a new one."""
        if self._journal is not None:
            self._journal.remove()

    def _time(self) -> float:
        """Unix seconds, had nobody set the wall clock since the start."""
        return self._clock.now() + self._zero

    def _read(self, journal: Journal) -> None:
        oldest = self._time() - MAX_AGE
        was_set = 0.0
        for entry in journal.read():
            with contextlib.suppress(KeyError, TypeError, ValueError):
                if entry["fact"] == _CLOCK:
                    same_boot = boot_id() is not None and entry["boot"] == boot_id()
                    was_set = self._zero - entry["zero"] if same_boot else 0.0
                    continue
                entry["time"] += was_set
                if entry["time"] >= oldest:
                    self._apply(entry)

    def _record(self, fact: str, node: str, key: Key, **more: object) -> None:
        if self._facts >= MAX_FACTS:
            return
        entry = _entry(fact, int(self._time()), node, key, **more)
        self._apply(entry)
        self._write(entry)
        self.changed.happened()

    def _write(self, entry: Entry) -> None:
        if self._journal is None or not self._journal.writing:
            return
        try:
            self._journal.append(entry)
            if self._journal.lines > _COMPACT_FACTOR * self._facts + _COMPACT_SLACK:
                self._journal.replace(self._entries())
        except OSError as error:
            logger.warning("coverage will not survive a restart: %s", error)
            self._journal.close()

    def _apply(self, entry: Entry) -> None:
        """Take a fact in.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        node, key = str(entry["node"]), (str(entry["repository"]), str(entry["digest"]))
        time = int(entry["time"])
        self._order += 1
        match entry["fact"]:
            case "has":
                confirmed = self._confirmed.setdefault(node, {})
                known = confirmed.get(key)
                self._facts += known is None
                again = known is not None and known.again
                confirmed[key] = Confirmation(self._order, time, bool(entry["head"]), again)
            case "again":
                self._confirmed[node][key] = replace(self._confirmed[node][key], again=True)
            case "failed":
                failed = self._failed.setdefault(node, {})
                self._facts += key not in failed
                failed[key] = _Failure(self._order, time, int(entry["last"]))
            case "mended":
                del self._failed[node][key]
                self._facts -= 1
            case "pushed":
                self._facts += node not in self._pushed.setdefault(key, {})
                self._pushed[key][node] = time
            case "named":
                names = self._tags.setdefault(key, {})
                for tag in entry["tags"]:
                    self._facts += tag not in names
                    names[str(tag)] = None

    def _entries(self) -> Iterator[Entry]:
        """Entries that make `_read` come to what is known now."""
        yield {"fact": _CLOCK, "boot": boot_id(), "zero": self._zero}
        ordered: list[tuple[int, Entry]] = []
        for node, confirmed in self._confirmed.items():
            for key, known in confirmed.items():
                entry = _entry("has", known.time, node, key, head=known.head)
                ordered.append((known.order, entry))
        for node, failed in self._failed.items():
            for key, failure in failed.items():
                entry = _entry("failed", failure.time, node, key, last=failure.last_byte)
                ordered.append((failure.order, entry))
        yield from (entry for _, entry in sorted(ordered, key=lambda pair: pair[0]))
        yield from self._unordered_entries()

    def _unordered_entries(self) -> Iterable[Entry]:
        for node, confirmed in self._confirmed.items():
            for key, known in confirmed.items():
                if known.again:
                    yield _entry("again", known.time, node, key)
        named = self.pullers().keys() | self._pushed.keys()
        for key, pushers in self._pushed.items():
            for node, time in pushers.items():
                yield _entry("pushed", time, node, key)
        for key in named & self._tags.keys():
            yield _entry("named", int(self._time()), "", key, tags=list(self._tags[key]))


def _entry(fact: str, time: int, node: str, key: Key, **more: object) -> Entry:
    repository, digest = key
    return {
        "time": time,
        "fact": fact,
        "node": node,
        "repository": repository,
        "digest": digest,
        **more,
    }
