"""What happened to which image at which node, kept across a kill of the server.

Facts are what a node can only have caused by itself: a manifest it asked for, bytes of a blob that
reached it, a blob that did not, a manifest it pushed. `states` concludes from them. The ledger
keeps each fact once, in the order of their last happening, since it counts whether a failure came
after a claim. A fact is written down when it is new, or when its place in that order matters.

What a client can make grow is bounded: facts about the images and nodes of the list have room of
their own, and of all others each node has so much and all together have so much. Callers record
transfers only of content below a manifest that the node was served, so that a client cannot make
facts up.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mayfly.registry.clock import Clock, boot_id
from mayfly.registry.coverage.arrival import Arrival, Part
from mayfly.registry.coverage.journal import Entry, Journal
from mayfly.registry.coverage.reach import Reach
from mayfly.registry.coverage.reach import read as read_reach
from mayfly.registry.lifecycle.activity import Pulse
from mayfly.registry.notices import Notices

logger = logging.getLogger("mayfly")

MAX_AGE = 7 * 24 * 3600.0
"""Seconds a fact counts. An upgrade takes hours; an older ledger is of another one."""

MAX_LISTED_FACTS = 1_000_000
"""Facts about nodes and images of the list. 500 nodes with 100 images of ten blobs each, none of
them shared, make 600 000."""

MAX_OTHER_FACTS = 100_000
"""Facts about everything else."""

MAX_NODES = 10_000
"""Nodes beside those that `--nodes` names: one client may have very many addresses. Each takes some
2.4 KiB, and a look at coverage goes through all of them."""

MAX_OTHER_FACTS_PER_NODE = 10_000
"""Facts about everything else that one node can cause."""

ANEW_AFTER = 5
"""Seconds without an event of a blob after which a request for its first byte starts over."""

_COMPACT_FACTOR = 4
_COMPACT_SLACK = 1000
REACH_SUFFIX = ".reach"
"""Of the file beside the ledger's, see `reach`."""

_VERSION: Entry = {"mayfly-ledger": 2}
_OLDER: Entry = {"mayfly-ledger": 1}
"""The older format: that a manifest was served, without the client and the bytes."""

_CLOCK = "clock"
"""No fact, but by which clock the times of those that follow are told."""

_WHOLE_AT_ONCE = 100
_MAX_NOTICES = 100

Key = tuple[str, str]
"""Repository and digest."""


@dataclass(slots=True)
class Pull:
    """The requests of one node for one manifest.

    Attributes:
        first: when it was first asked for; see `Ledger.unix`.
        last: when it, or content below it, last moved.
        got: order of the last GET, 0 without one.
        claim: order of the last request that claims that the node has the image, 0 without one.
        bytes: of blobs below it that reached the node since it was asked for; those that were sent
            twice count twice.
        retries: how often a blob below it was asked for again after a transfer of it ended early.
        again: whether it was asked for again after the node had the image.
    """

    first: int
    last: int
    got: int = 0
    claim: int = 0
    bytes: int = 0
    retries: int = 0
    again: bool = False


@dataclass(slots=True)
class _Wanted:
    """Content that a node asked for and has not got whole; without ``arrival`` it was refused."""

    repository: str
    order: int
    time: int
    arrival: Arrival | None = None


@dataclass(slots=True)
class _Node:
    name: str
    pulls: dict[Key, Pull] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    """Blob → the repository it was asked for in."""
    wanted: dict[str, _Wanted] = field(default_factory=dict)
    others: int = 0
    """Facts outside the list."""
    version: int = 0


@dataclass(slots=True, eq=False)
class Flow:
    """A transfer of a blob to a node, under way.

    Attributes:
        images: digests of the manifests above the blob.
        pulls: the node's, of these.
        bytes: that are out so far.
        reach, slot: where it is kept how far the transfer has got, if it is kept.
    """

    node: str
    key: Key
    first: int
    images: list[str]
    pulls: list[Pull] = field(default_factory=list)
    part: Part | None = None
    bytes: int = 0
    reach: Reach | None = None
    slot: int | None = None

    def count(self, sent: int) -> None:
        """Count more bytes as sent."""
        self.bytes += sent
        for pull in self.pulls:
            pull.bytes += sent
        self.ahead(0)

    def ahead(self, count: int) -> None:
        """Note that so many more bytes may be sent before the next call of `count`."""
        if self.reach is not None and self.slot is not None:
            self.reach.set(self.slot, self.first + self.bytes + count)


class Ledger:
    """The facts of one upgrade.

    Args:
        path: of the file; None keeps them in memory only.
        clock: for their ages.
        listed: whether a node and a repository are of the list, so that there is room for them.
        declared: names of `--nodes`; for these there is always room.

    Attributes:
        changed: happens with every fact that may change what somebody concludes.
        full: bounds that were reached.

    Raises:
        OSError: the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path | None,
        clock: Clock,
        listed: Callable[[str, str], bool] = lambda node, repository: False,
        declared: Collection[str] = (),
    ) -> None:
        self._clock = clock
        self._zero = clock.wall() - clock.now()
        """Unix seconds of the monotonic clock's zero, as the wall clock has it now."""
        self._listed = listed
        self._declared = frozenset(declared)
        self._order = 0
        self._facts = 0
        self._others = 0
        self._nodes: dict[str, _Node] = {}
        self._pushed: dict[Key, dict[str, int]] = {}
        self._tags: dict[Key, dict[str, None]] = {}
        self._journal = Journal(path, _VERSION, _OLDER) if path is not None else None
        self.changed = Pulse()
        self.full = Notices("record_full", _MAX_NOTICES)
        self._reach: Reach | None = None
        if self._journal is not None and path is not None:
            table = path.with_suffix(REACH_SUFFIX)
            self._read(self._journal, read_reach(table))
            self._journal.replace(self._entries())
            # After that: the file from before belongs to the journal from before.
            self._reach = Reach(table)

    def unix(self, time: int) -> int:
        """The Unix time of a fact, in whole seconds, as the wall clock has it now."""
        was_set = self._clock.wall() - self._clock.now() - self._zero
        # Rounded: two clocks that differ by a microsecond would put the fact a second earlier.
        return time + round(was_set)

    def age(self, pull: Pull) -> float:
        """Seconds since a manifest, or content below it, last moved."""
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
        """A manifest was served to a node.

        Args:
            got: by GET; else by HEAD.
            claims: whether the request is one that a container runtime makes when it has the image.
            tag: by which it was asked for, if by one.
        """
        key = repository, digest
        state = self._nodes.get(node)
        pull = state.pulls.get(key) if state is not None else None
        if state is None or pull is None or _is_news(state, pull, digest, got, claims):
            self._record("asked", node, key, got=got, claims=claims)
        else:
            pull.last = int(self._time())
        if tag is not None and tag not in self._tags.get(key, ()):
            self._record("named", node, key, tags=[tag])

    def again(self, node: str, repository: str, digest: str) -> None:
        """A node that had an image asked for it again, as its pods with ``Always`` will."""
        known = self.pull(node, repository, digest)
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
        """A transfer of a blob to a node begins. `blob_ended` follows.

        Args:
            first: offset of its first byte.
            size: of the whole blob.
            images: digests of the manifests above the blob.
            limit: end of the bytes that the node asked for; None for the blob's.
        """
        key = repository, digest
        flow = Flow(node, key, first, [*images])
        if node in self._nodes:
            flow.pulls = _pulls_of(self._nodes[node], repository, images)
        ends = {} if limit is None else {"limit": limit}
        if self._reach is not None:
            flow.reach, flow.slot = self._reach, self._reach.take(first)
            # Without a slot nothing is known of it after a kill.
            ends |= {"limit": first} if flow.slot is None else {"slot": flow.slot}
        self._record("begun", node, key, flow, first=first, size=size, of=flow.images, **ends)
        return flow

    def blob_ended(self, flow: Flow, acked: int, sent: int) -> None:
        """A transfer ended; whether the blob is whole now, `whole` says.

        Args:
            acked: end of the bytes that the client's host acknowledged.
            sent: end of the bytes handed to the kernel.
        """
        flow.count(acked - flow.first - flow.bytes)
        of = flow.images
        where = flow.node, flow.key, flow
        self._record("ended", *where, first=flow.first, acked=acked, sent=sent, of=of)
        if flow.reach is not None and flow.slot is not None:
            flow.reach.give_back(flow.slot)
            flow.slot = None

    def failed(self, node: str, repository: str, digest: str, *, corrupt: bool = False) -> None:
        """Content that a node asked for was refused, or turned out to be corrupt."""
        self._record("failed", node, (repository, digest), corrupt=corrupt)

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
        return [node for node, state in self._nodes.items() if state.pulls]

    def version(self, node: str) -> int:
        """A number that changes with every fact of a node."""
        state = self._nodes.get(node)
        return 0 if state is None else state.version

    def pull(self, node: str, repository: str, digest: str) -> Pull | None:
        """The requests of a node for a manifest, None if there were none."""
        state = self._nodes.get(node)
        return None if state is None else state.pulls.get((repository, digest))

    def pulls(self, node: str) -> Mapping[Key, Pull]:
        """Everything that a node asked for."""
        state = self._nodes.get(node)
        return {} if state is None else state.pulls

    def has_whole(self, node: str, digest: str) -> bool:
        """Whether every byte of a blob has reached a node, and it has not asked for it since."""
        state = self._nodes.get(node)
        return state is not None and digest in state.whole

    def wanted(self, node: str, digests: Collection[str]) -> int:
        """The order of a node's last request for content that it has not got whole; 0 without one.

        Only content among ``digests`` counts.
        """
        state = self._nodes.get(node)
        if state is None or not state.wanted:
            return 0
        if len(state.wanted) < len(digests):
            found = [want.order for digest, want in state.wanted.items() if digest in digests]
        else:
            found = [state.wanted[digest].order for digest in digests if digest in state.wanted]
        return max(found, default=0)

    def pushers(self) -> dict[Key, list[str]]:
        """Manifests pushed, and by whom."""
        return {key: list(nodes) for key, nodes in self._pushed.items()}

    def pullers(self) -> dict[Key, list[str]]:
        """Manifests served, and to whom."""
        found: dict[Key, list[str]] = {}
        for node, state in self._nodes.items():
            for key in state.pulls:
                found.setdefault(key, []).append(node)
        return found

    def asked_again(self) -> dict[str, int]:
        """Node → how many manifests it asked for again after it had the image."""
        counts = {
            node: sum(pull.again for pull in state.pulls.values())
            for node, state in self._nodes.items()
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
        if self._reach is not None:
            self._reach.remove()

    def _time(self) -> float:
        """Unix seconds, had nobody set the wall clock since the start."""
        return self._clock.now() + self._zero

    def _read(self, journal: Journal, reached: Sequence[int]) -> None:
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
        for state in self._nodes.values():
            for want in state.wanted.values():
                if want.arrival is not None:
                    want.arrival.lose(reached)
        if journal.older:
            logger.warning(
                "the record of coverage is of an older version of Mayfly: pushes and requests in "
                "it are kept, but nodes have to ask for their images once more"
            )

    def _record(
        self, fact: str, node: str, key: Key, flow: Flow | None = None, **more: object
    ) -> None:
        """Apply a new fact and append it to the journal, if there is room for it."""
        entry = _entry(fact, int(self._time()), node, key, **more)
        if self._apply(entry, flow):
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
            logger.warning("a restart would lose coverage, since it cannot be written: %s", error)
            self._journal.close()

    def _apply(self, entry: Entry, flow: Flow | None = None) -> bool:
        """Take a fact in.

        Args:
            flow: of a transfer that begins or ends now; None while the file is read.

        Returns:
            Whether there was room for it.

        Raises:
            KeyError, TypeError, ValueError: it is no fact.
        """
        node, key = str(entry["node"]), (str(entry["repository"]), str(entry["digest"]))
        state = self._nodes.get(node) or _Node(node)
        self._order += 1
        match entry["fact"]:
            case "asked" | "pull":
                done = self._asked(state, key, entry, bool(entry["got"]), bool(entry["claims"]))
            case "has":  # of an older version
                done = self._asked(state, key, entry, not entry["head"], claims=False)
            case "again":
                state.pulls[key].again = done = True
            case "begun":
                done = self._begun(state, key, entry, flow)
            case "ended":
                done = self._ended(state, key, entry, flow)
            case "partly":
                done = self._partly(state, key, entry)
            case "failed":
                done = self._failed(state, key, entry)
            case "mended":  # of an older version
                done = self._forget(state, key[1])
            case "whole":
                done = all(self._whole(state, key[0], str(one)) for one in entry["digests"])
            case "pushed":
                done = self._pushed_by(state, key, int(entry["time"]))
            case "named":
                done = all(self._named(state, key, str(tag)) for tag in entry["tags"])
            case _:
                raise ValueError
        if done and (state.pulls or state.wanted):
            self._nodes[node] = state
        state.version += 1
        return done

    def _asked(self, state: _Node, key: Key, entry: Entry, got: bool, claims: bool) -> bool:
        time = int(entry["time"])
        pull = state.pulls.get(key)
        if pull is None:
            if not self._take_room(state, key[0]):
                return False
            pull = state.pulls[key] = Pull(time, time)
        pull.last = time
        if got:
            pull.got = self._order
            self._forget(state, key[1])
        if claims:
            pull.claim = self._order
        if entry["fact"] == "pull":
            pull.first, pull.bytes = int(entry["first"]), int(entry["bytes"])
            pull.retries, pull.again = int(entry["retries"]), bool(entry["again"])
        return True

    def _begun(self, state: _Node, key: Key, entry: Entry, flow: Flow | None) -> bool:
        repository, digest = key
        time, first, size = int(entry["time"]), int(entry["first"]), int(entry["size"])
        pulls = _pulls_of(state, repository, entry["of"])
        want = state.wanted.get(digest)
        if want is None:
            prefix = 0
            if digest in state.whole:
                # It had the blob, and lacks at least the bytes it asks for now.
                repository, prefix = state.whole.pop(digest), first
            elif not self._take_room(state, repository):
                return False
            want = state.wanted[digest] = _Wanted(repository, self._order, time)
            want.arrival = Arrival(size, prefix)
        elif want.arrival is None or want.arrival.is_interrupted():
            for pull in pulls:
                pull.retries += 1
        if want.arrival is None:
            want.arrival = Arrival(size)
        limit = int(entry.get("limit", size))
        part = want.arrival.begin(first, limit, anew=time - want.time >= ANEW_AFTER)
        part.slot = _slot(entry.get("slot"))
        if flow is not None:
            flow.part = part
        for pull in pulls:
            pull.last = time
        want.order, want.time = self._order, time
        return True

    def _ended(self, state: _Node, key: Key, entry: Entry, flow: Flow | None) -> bool:
        time, digest = int(entry["time"]), key[1]
        first, acked, sent = int(entry["first"]), int(entry["acked"]), int(entry["sent"])
        for pull in _pulls_of(state, key[0], entry["of"]):
            pull.last = time
            pull.bytes += acked - first if flow is None else 0
        want = state.wanted.get(digest)
        if want is None or want.arrival is None:
            return False
        part = flow.part if flow is not None else want.arrival.flowing_from(first)
        if part is None:
            return False
        want.arrival.end(part, acked, sent)
        want.order, want.time = self._order, time
        if want.arrival.whole and not want.arrival.flowing:
            del state.wanted[digest]
            state.whole[digest] = want.repository
        return True

    def _partly(self, state: _Node, key: Key, entry: Entry) -> bool:
        if key[1] not in state.wanted and not self._take_room(state, key[0]):
            return False
        arrival = Arrival(int(entry["size"]))
        for first, end in entry["parts"]:
            arrival.end(Part(int(first), int(end)), int(end), int(end))
        for flowing in entry["flowing"]:
            # A number alone is of an older version.
            first, limit, slot = flowing if isinstance(flowing, list) else (flowing, None, None)
            part = arrival.begin(int(first), None if limit is None else int(limit))
            part.slot = _slot(slot)
        time = int(entry["time"])
        state.wanted[key[1]] = _Wanted(key[0], self._order, time, arrival)
        return True

    def _failed(self, state: _Node, key: Key, entry: Entry) -> bool:
        repository, digest = key
        want = state.wanted.get(digest)
        if want is None:
            if digest in state.whole:
                repository = state.whole.pop(digest)
            elif not self._take_room(state, repository):
                return False
            want = state.wanted[digest] = _Wanted(repository, self._order, 0)
        want.order, want.time = self._order, int(entry["time"])
        if entry.get("corrupt") and want.arrival is not None:
            want.arrival.spoil()
        return True

    def _whole(self, state: _Node, repository: str, digest: str) -> bool:
        if digest not in state.whole and not self._take_room(state, repository):
            return False
        state.whole[digest] = repository
        return True

    def _pushed_by(self, state: _Node, key: Key, time: int) -> bool:
        pushers = self._pushed.get(key, {})
        if state.name not in pushers and not self._take_room(state, key[0]):
            return False
        self._pushed.setdefault(key, {})[state.name] = time
        return True

    def _named(self, state: _Node, key: Key, tag: str) -> bool:
        if tag not in self._tags.get(key, ()) and not self._take_room(state, key[0]):
            return False
        self._tags.setdefault(key, {})[tag] = None
        return True

    def _forget(self, state: _Node, digest: str) -> bool:
        """Drop the record of content that is no longer wanted."""
        want = state.wanted.pop(digest, None)
        if want is None:
            return False
        self._facts -= 1
        if not self._listed(state.name, want.repository):
            self._others -= 1
            state.others -= 1
        return True

    def _take_room(self, state: _Node, repository: str) -> bool:
        """Count one more fact; False if a bound is reached."""
        known = state.name in self._nodes or state.name in self._declared
        if not known and len(self._nodes) >= MAX_NODES + len(self._declared):
            self.full.add("record_full_nodes", most=MAX_NODES)
            return False
        if self._listed(state.name, repository):
            if self._facts - self._others >= MAX_LISTED_FACTS:
                self.full.add("record_full_list", most=MAX_LISTED_FACTS)
                return False
        elif state.others >= MAX_OTHER_FACTS_PER_NODE:
            self.full.add("record_full_node", node=state.name, most=MAX_OTHER_FACTS_PER_NODE)
            return False
        elif self._others >= MAX_OTHER_FACTS:
            self.full.add("record_full_others", most=MAX_OTHER_FACTS)
            return False
        else:
            state.others += 1
            self._others += 1
        self._facts += 1
        return True

    def _entries(self) -> Iterator[Entry]:
        """Entries that make `_read` come to what is known now."""
        yield {"fact": _CLOCK, "boot": boot_id(), "zero": self._zero}
        ordered: list[tuple[int, Entry]] = []
        for node, state in self._nodes.items():
            for key, pull in state.pulls.items():
                ordered += _pull_entries(node, key, pull)
            for digest, want in state.wanted.items():
                ordered.append((want.order, _wanted_entry(node, digest, want)))
        yield from (entry for _, entry in sorted(ordered, key=lambda pair: pair[0]))
        for node, state in self._nodes.items():
            yield from self._whole_entries(node, state)
        for key, pushers in self._pushed.items():
            for node, time in pushers.items():
                yield _entry("pushed", time, node, key)
        for key, tags in self._tags.items():
            yield _entry("named", int(self._time()), "", key, tags=list(tags))

    def _whole_entries(self, node: str, state: _Node) -> Iterator[Entry]:
        by_repository: dict[str, list[str]] = {}
        for digest, repository in state.whole.items():
            by_repository.setdefault(repository, []).append(digest)
        last = max((pull.last for pull in state.pulls.values()), default=int(self._time()))
        for repository, digests in by_repository.items():
            for start in range(0, len(digests), _WHOLE_AT_ONCE):
                some = digests[start : start + _WHOLE_AT_ONCE]
                yield _entry("whole", last, node, (repository, ""), digests=some)


def _slot(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _is_news(state: _Node, pull: Pull, digest: str, got: bool, claims: bool) -> bool:
    """Whether a further request for a manifest changes what may be concluded."""
    if digest in state.wanted:
        return True
    if got:
        # After a claim it shows that the node lacks the image after all.
        return pull.got < max(pull.claim, 1)
    return claims and (pull.claim <= pull.got or bool(state.wanted))


def _pulls_of(state: _Node, repository: str, images: Iterable[str]) -> list[Pull]:
    keys = ((repository, image) for image in images)
    return [state.pulls[key] for key in keys if key in state.pulls]


def _pull_entries(node: str, key: Key, pull: Pull) -> list[tuple[int, Entry]]:
    at_once = pull.claim == pull.got
    whole = _entry(
        "pull",
        pull.last,
        node,
        key,
        first=pull.first,
        got=pull.got > 0,
        claims=at_once and pull.claim > 0,
        bytes=pull.bytes,
        retries=pull.retries,
        again=pull.again,
    )
    entries = [(pull.got, whole)]
    if pull.claim and not at_once:
        claimed = _entry("asked", pull.last, node, key, got=False, claims=True)
        entries.append((pull.claim, claimed))
    return entries


def _wanted_entry(node: str, digest: str, want: _Wanted) -> Entry:
    key = want.repository, digest
    if want.arrival is None:
        return _entry("failed", want.time, node, key)
    return _entry(
        "partly",
        want.time,
        node,
        key,
        size=want.arrival.size,
        parts=[*want.arrival.parts()],
        flowing=want.arrival.open_ends(),
    )


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
