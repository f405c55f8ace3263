"""The ledger: records events of images at nodes, and survives a kill.

Each new fact is applied to `facts` and, if it changes a conclusion, appended to a file
(`ledger_file`); a start reads the file and continues with the same facts. Callers record transfers
only of content below a manifest that the node was served, so that a client cannot make facts up.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from mayfly.registry.clock import Clock, boot_id
from mayfly.registry.coverage.fact_entries import entries_of, make_entry
from mayfly.registry.coverage.facts import Facts, Flow, Key, Pull
from mayfly.registry.coverage.ledger_file import Entry, LedgerFile
from mayfly.registry.coverage.proofs import ProvenImage
from mayfly.registry.coverage.sent_offsets import SentOffsets, read_offsets
from mayfly.registry.notification import Notification
from mayfly.registry.threads import with_pauses

logger = logging.getLogger("mayfly")

MAX_AGE_SECONDS = 7 * 24 * 3600.0
"""Age up to which a fact counts. An upgrade takes hours; an older ledger is of another one."""

_COMPACT_FACTOR = 4
_COMPACT_SLACK = 1000
OFFSETS_SUFFIX = ".reach"
"""Suffix of the file beside the ledger's, see `sent_offsets`."""

_VERSION: Entry = {"mayfly-ledger": 2}
_OLDER: Entry = {"mayfly-ledger": 1}
"""The older format: that a manifest was served, without the client and the bytes."""

_CLOCK = "clock"
"""Not a fact: the clock by which the times of the following facts are told."""


class Ledger:
    """Records the facts of one upgrade.

    Args:
        path: of the file; None keeps the facts in memory only.
        clock: for their times.
        is_listed: whether a node and a repository are of the list, so that there is room for them.
        declared: names of `--nodes`; for these there is always room.

    Attributes:
        facts: all facts so far.
        changed: notified of every fact that may change a conclusion.

    Raises:
        OSError: the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path | None,
        clock: Clock,
        is_listed: Callable[[str, str], bool] = lambda node, repository: False,
        declared: Collection[str] = (),
    ) -> None:
        self._clock = clock
        self._zero = clock.wall() - clock.now()
        """Unix seconds of the monotonic clock's zero, by the wall clock at the start."""
        self.facts = Facts(is_listed, declared)
        self.changed = Notification()
        self._file = LedgerFile(path, _VERSION, _OLDER) if path is not None else None
        self._offsets: SentOffsets | None = None
        if self._file is not None and path is not None:
            table = path.with_suffix(OFFSETS_SUFFIX)
            self._read(self._file, read_offsets(table))
            self._file.replace(self._entries())
            # Only now: until the new ledger is in place, the old one needs the old table.
            self._offsets = SentOffsets(table)

    def unix(self, time: int) -> int:
        """Return the Unix time of a fact in whole seconds, by the wall clock now."""
        was_set = self._clock.wall() - self._clock.now() - self._zero
        # Rounded: two clocks that differ by a microsecond would put the fact a second earlier.
        return time + round(was_set)

    def interrupted(self) -> Iterator[tuple[str, str, float]]:
        """Yield the pulls that a kill of an earlier server may have cut between two requests.

        Each as node, manifest, and the time of the clock until which the node may ask again.
        """
        for node, facts in self.facts.by_node.items():
            for (_, digest), pull in facts.pulls.items():
                if pull.interrupted:
                    yield node, digest, pull.interrupted - self._zero

    def age(self, pull: Pull) -> float:
        """Return the seconds since the last request or transfer of a pull."""
        return self._time() - pull.last

    def asked(
        self,
        node: str,
        repository: str,
        digest: str,
        *,
        got: bool,
        claims: bool = False,
        tag: str | None = None,
    ) -> None:
        """Record that a manifest was served to a node.

        Args:
            got: by GET; otherwise by HEAD.
            claims: whether the request is one that a container runtime makes when it has the image.
            tag: by which it was asked for; None for a digest.
        """
        key = repository, digest
        facts = self.facts.by_node.get(node)
        if facts is None or facts.is_news(key, got=got, claims=claims):
            self._record("asked", node, key, got=got, claims=claims)
        else:
            pull = facts.pulls[key]
            pull.last = int(self._time())
            if pull.interrupted:
                pull.interrupted = 0
                self.changed.notify()
        if tag is not None and tag not in self.facts.tag_names.get(key, ()):
            self._record("named", node, key, tags=[tag])

    def asked_again(self, node: str, repository: str, digest: str) -> None:
        """Record that a node that had an image asked for it again, as pods with ``Always`` do."""
        known = self.facts.pull(node, repository, digest)
        if known is not None and not known.again:
            self._record("again", node, (repository, digest))

    def blob_begun(
        self,
        node: str,
        repository: str,
        digest: str,
        first: int,
        size: int,
        images: Collection[str],
        limit: int | None = None,
    ) -> Flow:
        """Record the beginning of a transfer of a blob. Call `blob_ended` after it.

        Args:
            first: offset of its first byte.
            size: of the whole blob.
            images: digests of the manifests above the blob.
            limit: end of the bytes that the node asked for; None for the end of the blob.
        """
        key = repository, digest
        flow = Flow(node, key, first, [*images])
        if node in self.facts.by_node:
            flow.pulls = self.facts.by_node[node].pulls_of(repository, images)
        end = {} if limit is None else {"limit": limit}
        if self._offsets is not None:
            flow.offsets, flow.slot = self._offsets, self._offsets.take(first)
            # Without a slot no byte counts after a kill.
            end |= {"limit": first} if flow.slot is None else {"slot": flow.slot}
        self._record("begun", node, key, flow, first=first, size=size, of=flow.images, **end)
        return flow

    def blob_ended(self, flow: Flow, acked: int, sent: int) -> None:
        """Record the end of a transfer. Whether the blob is complete then, `Facts.has_blob` says.

        Args:
            acked: end of the bytes that the client's host acknowledged.
            sent: end of the bytes handed to the kernel.
        """
        flow.count(acked - flow.first - flow.bytes)
        flow.ahead(flow.bytes)
        of = flow.images
        where = flow.node, flow.key, flow
        self._record(
            "ended", *where, first=flow.first, acked=acked, sent=sent, of=of, slot=flow.slot
        )
        # Without its end in the file, a later start still reads the slot as this transfer's.
        if flow.offsets is not None and flow.slot is not None and self._file and self._file.writing:
            flow.offsets.release(flow.slot)
            flow.slot = None

    def failed(self, node: str, repository: str, digest: str, *, corrupt: bool = False) -> None:
        """Record that content that a node asked for was refused, or turned out to be corrupt."""
        self._record("failed", node, (repository, digest), corrupt=corrupt)

    def settled(self, node: str) -> None:
        """Record that a node's pulls have ended, so that a kill from now on cuts none of them."""
        self._record("settled", node, ("", ""))

    def pushed(self, node: str, repository: str, digest: str, tags: Collection[str] = ()) -> None:
        """Record that a node stored a manifest, under some tags."""
        key = repository, digest
        known = self.facts.tag_names.get(key, {})
        if node not in self.facts.pushes.get(key, ()):
            self._record("pushed", node, key)
        if any(tag not in known for tag in tags):
            self._record("named", node, key, tags=list(tags))
        elif tags:
            self.changed.notify()  # a tag may have moved back to an older image

    async def proved(self, node: str, images: Collection[ProvenImage]) -> None:
        """Record a node's proof, in place of its last one."""
        new = {image.digest for image in images}
        known = self.facts.proofs(node)
        for digest in [one for one in known if one not in new]:
            self._record("unproved", node, ("", digest))
        async for image in with_pauses(images):
            self._record(
                "proved",
                node,
                ("", image.digest),
                runtime=image.runtime,
                checked=image.checked,
                pinned=image.pinned,
                free=image.free,
            )

    def close(self) -> None:
        """Stop writing; the file stays for the next start."""
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Remove the file: the upgrade is complete, and the next start begins a new one."""
        if self._file is not None:
            self._file.remove()
        if self._offsets is not None:
            self._offsets.remove()

    def _time(self) -> float:
        """Unix seconds, as if the wall clock had not been set since the start."""
        return self._clock.now() + self._zero

    def _read(self, file: LedgerFile, reached: Sequence[int]) -> None:
        oldest = self._time() - MAX_AGE_SECONDS
        was_set = 0.0
        for entry in file.read():
            with contextlib.suppress(KeyError, TypeError, ValueError):
                if entry["fact"] == _CLOCK:
                    same_boot = boot_id() is not None and entry["boot"] == boot_id()
                    was_set = self._zero - entry["zero"] if same_boot else 0.0
                    continue
                entry["time"] += was_set
                if entry["time"] >= oldest:
                    self.facts.apply(entry)
        self.facts.lose_transfers(reached)
        self.facts.interrupt_pulls(int(self._time()))
        if file.older:
            logger.warning(
                "the record of coverage is of an older version of Mayfly: pushes and requests in "
                "it are kept, but nodes have to ask for their images once more"
            )

    def _record(
        self, fact: str, node: str, key: Key, flow: Flow | None = None, **more: object
    ) -> None:
        """Apply a new fact and append it to the file, if there is room for it."""
        entry = make_entry(fact, int(self._time()), node, key, **more)
        if self.facts.apply(entry, flow):
            self._write(entry)
            self.changed.notify()

    def _write(self, entry: Entry) -> None:
        if self._file is None or not self._file.writing:
            return
        try:
            self._file.append(entry)
            if self._file.lines > _COMPACT_FACTOR * self.facts.limits.count + _COMPACT_SLACK:
                self._file.replace(self._entries())
        except OSError as error:
            logger.warning("a restart would lose coverage, since it cannot be written: %s", error)
            self._file.close()

    def _entries(self) -> Iterator[Entry]:
        """Yield the entries of a new file with all facts."""
        yield {"fact": _CLOCK, "boot": boot_id(), "zero": self._zero}
        yield from entries_of(self.facts, int(self._time()))
