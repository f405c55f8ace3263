"""Makes the views of the rollout page: of the server, of its images, and of each node.

Where the run has no list of images (``--until-pulled``), the page shows those that are served, and
the nodes that asked for them.

A view of ten thousand nodes is made in turns with other tasks, so it may mix moments that lie some
milliseconds apart. The view of a node is kept until a fact about it is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mayfly.registry.control import status_text
from mayfly.registry.coverage.coverage import Coverage
from mayfly.registry.coverage.states import ResolvedImage, State
from mayfly.registry.coverage.upgrade_lists import ListedImage, Nodes
from mayfly.registry.notices import text as notice_text
from mayfly.registry.page.view import (
    LETTERS,
    MAX_CELLS,
    MAX_IMAGES,
    MAX_LISTED,
    End,
    Failed,
    ImageView,
    NodeView,
    Proof,
    Pulling,
    Refused,
    Run,
    Served,
    View,
)
from mayfly.registry.text import escaped, line
from mayfly.registry.threads import in_thread, with_pauses
from mayfly.storage.text import format_size

if TYPE_CHECKING:
    from mayfly.registry.clock import Clock
    from mayfly.registry.coverage.facts import NodeFacts
    from mayfly.registry.coverage.observer import Observer
    from mayfly.registry.coverage.store_queries import StoreQueries

_LIST_SECONDS = 10.0
"""Between two looks at which images are served, where the run has no list."""

_READ_AT_ONCE = 50
"""Images whose sizes are read for one view."""

_MAX_BLOBS = 50_000
"""Blobs whose sizes are kept: some 10 MiB."""


class PageView:
    """Makes views. Belongs to one event loop.

    Args:
        status: returns the state of the server, as `StatusService.server_record`.
        observer: of the requests.
        coverage: None if it was not asked for.
        store: reads the manifests of images.
        clock: of the run.
        sources: the bundles that are served.
    """

    def __init__(
        self,
        status: Callable[[], dict[str, Any]],
        observer: Observer,
        coverage: Coverage | None,
        store: StoreQueries,
        clock: Clock,
        sources: Sequence[str] = (),
    ) -> None:
        self._status = status
        self._observer = observer
        self._asked_for = coverage
        self._store = store
        self._clock = clock
        self._sources = [line(source) for source in sources]
        self.forget()

    def forget(self) -> None:
        """Free all that was made for views; the next look makes it anew."""
        self._coverage = self._asked_for
        self._listed_at = 0.0
        self._listed: list[str] = []
        self._blobs: dict[tuple[str, str], dict[str, int]] = {}
        """Repository and digest of a manifest → its blobs and their sizes."""
        self._targets: tuple[ResolvedImage | None, ...] = ()
        self._served: Served | None = None
        self._names: dict[str, str] = {}
        """Node → its name as one printable line."""
        self._made: dict[str, tuple[tuple[State, ...], int, NodeView]] = {}
        """Node → its states, the version of its facts, and the view that was made of both."""

    async def look(self) -> View:
        """Return the view of this moment."""
        coverage = await self._followed()
        await coverage.explore()
        await self._read(coverage.targets)
        served = await self._served_of(coverage)
        nodes, covered, left_out = await self._nodes(coverage)
        return View(self._run(coverage, covered, left_out), served, nodes)

    async def _followed(self) -> Coverage:
        """Return the coverage that the page shows."""
        now = self._clock.now()
        known = self._coverage
        is_fresh = known is self._asked_for or now < self._listed_at + _LIST_SECONDS
        if known is not None and is_fresh:
            return known
        self._listed_at = now
        listed = await in_thread(self._store.tagged, MAX_IMAGES)
        if known is None or listed != self._listed:
            self._listed = listed
            observer = self._observer
            known = self._coverage = Coverage(
                observer.ledger.facts,
                observer.pulls,
                tuple(_of_tag(name) for name in listed),
                Nodes(0),
                self._store.tag,
                observer.states,
            )
        return known

    async def _read(self, targets: Sequence[ResolvedImage | None]) -> None:
        """Read the sizes of the blobs of some images that are not known yet."""
        unknown = [
            (one.repository, digest)
            for one in targets[:MAX_IMAGES]
            if one is not None and one.complete
            for digest in (one.digest, *one.manifests)
            if (one.repository, digest) not in self._blobs
        ][:_READ_AT_ONCE]
        if not unknown or sum(map(len, self._blobs.values())) >= _MAX_BLOBS:
            return
        self._blobs |= await in_thread(self._sizes_of, unknown)
        self._served = None

    def _sizes_of(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, int]]:
        return {key: self._store.sizes(*key) for key in keys}

    def _run(self, coverage: Coverage, covered: int, nodes_left_out: int) -> Run:
        status = self._status()
        lists = ("corrupt", "warnings", "denied")
        status = escaped(status | {name: status[name][:MAX_LISTED] for name in lists})
        asked = self._asked_for is not None
        now = self._clock.wall()
        return Run(
            state=status["state"],
            ending=status["ending"],
            url=status["url"],
            version=status["version"],
            started=round(status["started_unix"]),
            ends=[_end(one, now) for one in status["ends"]],
            accept=str(coverage.accept),
            wanted=coverage.wanted_nodes if asked else None,
            covered=covered if asked else 0,
            bytes_in=status["bytes_in"],
            bytes_out=status["bytes_out"],
            transfers=len(self._observer.transfers),
            nodes_left_out=nodes_left_out,
            images_left_out=max(len(coverage.images) - MAX_IMAGES, 0),
            corrupt=[status_text.corruption_text(one) for one in status["corrupt"]],
            warnings=[notice_text(one) for one in status["warnings"]],
            denied=[
                Refused(user=one["user"], address=one["address"], requests=one["requests"])
                for one in status["denied"]
            ],
        )

    async def _served_of(self, coverage: Coverage) -> Served:
        targets = coverage.targets
        if self._served is not None and self._targets == targets:
            return self._served
        places: dict[str, int] = {}
        layers: list[tuple[str, int]] = []
        images = []
        pairs = zip(coverage.images[:MAX_IMAGES], targets, strict=False)
        async for image, target in with_pauses(pairs):
            sizes = self._sizes(target)
            for digest, size in sizes.items():
                if digest not in places:
                    places[digest] = len(layers)
                    layers.append((digest, size))
            images.append(
                ImageView(
                    name=line(image.text),
                    digest=target.digest if target is not None else None,
                    size=sum(sizes.values()) if sizes else None,
                    layers=[places[digest] for digest in sizes],
                )
            )
        self._targets = targets
        self._served = Served(sources=self._sources, images=images, layers=layers)
        return self._served

    def _sizes(self, target: ResolvedImage | None) -> dict[str, int]:
        """Return the size of each blob of an image, as far as known."""
        if target is None:
            return {}
        sizes: dict[str, int] = {}
        for digest in (target.digest, *target.manifests):
            sizes |= self._blobs.get((target.repository, digest), {})
        return sizes

    async def _nodes(self, coverage: Coverage) -> tuple[dict[str, NodeView], int, int]:
        """Return the nodes, how many have every image, and how many are left out."""
        targets = coverage.targets[:MAX_IMAGES]
        room = MAX_CELLS // max(len(targets), 1)
        names, covered, lacking = list[str](), list[str](), list[str]()
        async for name in with_pauses(coverage.nodes()):
            names.append(name)
            (covered if coverage.is_covered(name) else lacking).append(name)
        left_out = max(len(names) - room, 0)
        chosen = [*lacking, *covered][:room] if left_out else names
        in_flight: dict[str, dict[str, int]] = {}
        for one in self._observer.transfers:
            digest = one.what.partition("@")[2]
            if digest:
                of_node = in_flight.setdefault(one.peer.node, {})
                of_node[digest] = of_node.get(digest, 0) + one.bytes
        nodes, before, self._made = {}, self._made, {}
        async for name in with_pauses(chosen):
            states = coverage.states(name)
            known, version = before.get(name), self._observer.ledger.facts.version(name)
            # Without images all nodes have the same states.
            if known is not None and known[0] is states and known[1] == version:
                made = known[2]
            else:
                made = self._node(name, states, targets, in_flight.get(name, {}))
            if not made.pulling:  # its bytes change without a fact
                self._made[name] = states, version, made
            nodes[self._named(name)] = made
        return nodes, len(covered), left_out

    def _node(
        self,
        name: str,
        states: Sequence[State],
        targets: Sequence[ResolvedImage | None],
        in_flight: Mapping[str, int],
    ) -> NodeView:
        row = states[: len(targets)]
        facts = self._observer.ledger.facts.by_node.get(name)
        proof = None
        if facts is not None and facts.proofs:
            found = facts.proof
            time = self._observer.ledger.unix(found.time)
            proof = Proof(time, found.images, found.pinned, found.free)
        return NodeView(
            "".join(map(LETTERS.__getitem__, row)),
            self._pulling(facts, row, targets, in_flight),
            self._failed(facts, row, targets),
            proof,
        )

    def _named(self, node: str) -> str:
        known = self._names.get(node)
        if known is None:
            known = self._names[node] = line(node)
        return known

    def _pulling(
        self,
        facts: NodeFacts | None,
        row: Sequence[State],
        targets: Sequence[ResolvedImage | None],
        in_flight: Mapping[str, int],
    ) -> tuple[Pulling, ...]:
        if State.PULLING not in row:
            return ()
        found = []
        for place, (state, target) in enumerate(zip(row, targets, strict=False)):
            if state is State.PULLING and target is not None:
                has, total = self._progress(facts, target, in_flight)
                found.append(Pulling(place, has, total))
        return tuple(found)

    def _progress(
        self, facts: NodeFacts | None, target: ResolvedImage, in_flight: Mapping[str, int]
    ) -> tuple[int, int]:
        """Return the bytes of an image that a node has, and all bytes of it.

        Of an index, the image counts of which it has most.
        """
        sizes = self._sizes(target)
        best = (0, 0)
        for blobs in target.leaves:
            total = sum(sizes.get(digest, 0) for digest in blobs)
            has = sum(_arrived(facts, digest, sizes.get(digest, 0), in_flight) for digest in blobs)
            if best == (0, 0) or has > best[0]:
                best = (has, total)
        return best

    def _failed(
        self,
        facts: NodeFacts | None,
        row: Sequence[State],
        targets: Sequence[ResolvedImage | None],
    ) -> tuple[Failed, ...]:
        if State.FAILED not in row:
            return ()
        return tuple(
            Failed(place, _reason(facts, target))
            for place, (state, target) in enumerate(zip(row, targets, strict=False))
            if state is State.FAILED and target is not None
        )


def _of_tag(name: str) -> ListedImage:
    """Return an image of the store, which is named by its repository and a tag."""
    repository, _, tag = name.rpartition(":")
    return ListedImage(name, None, (repository,), tag, None)


def _end(record: Mapping[str, Any], now: float) -> End:
    seconds = record["seconds"]
    at = None if seconds is None else round(now + seconds)
    return End(text=status_text.end_text(record["conditions"]), at=at)


def _arrived(facts: NodeFacts | None, digest: str, size: int, in_flight: Mapping[str, int]) -> int:
    """Return the bytes of a blob that have reached a node."""
    if facts is not None and digest in facts.blobs:
        return size
    pending = facts.pending.get(digest) if facts is not None else None
    arrival = pending.arrival if pending is not None else None
    arrived = arrival.parts().total() if arrival is not None else 0
    return min(size, arrived + in_flight.get(digest, 0))


def _reason(facts: NodeFacts | None, target: ResolvedImage) -> str:
    """Say why a pull failed, by the content that did not arrive."""
    pending = facts.pending if facts is not None else {}
    for digest in pending.keys() & target.closure:
        arrival = pending[digest].arrival
        if arrival is None:
            return f"{digest} was refused or could not be read"
        done, size = format_size(arrival.parts().total()), format_size(arrival.size)
        return f"{digest} stopped at {done} of {size}"
    return "content of it did not arrive"
