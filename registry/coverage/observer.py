"""The observer: the calls of handlers for coverage, the report and idleness.

One `Observer` is shared by all requests. The byte path and the manifest handlers call it; it
updates `Activity`, `Pulls` and the `Ledger`, so that handlers need not know these.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from mayfly.registry.activity import Activity
from mayfly.registry.address import canonical_address
from mayfly.registry.clock import Clock
from mayfly.registry.coverage.facts import Flow
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.manifest_graph import ManifestGraph, ManifestRefs
from mayfly.registry.coverage.nodes import NodeNames
from mayfly.registry.coverage.owners import Owners
from mayfly.registry.coverage.proofs import Nonces, ProvenImage
from mayfly.registry.coverage.pulls import Pulls
from mayfly.registry.coverage.runtime_agents import NONE, runtime_of
from mayfly.registry.coverage.states import EMPTY_CONFIG, HAS_IMAGE, ImageStates
from mayfly.registry.http.errors import RangeInvalid
from mayfly.registry.threads import in_thread
from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest

NEW_PULL_SECONDS = 60
"""After which a repeated request for a manifest is another pull, not the same one."""


_CLIENT_LEFT = (ConnectionError, asyncio.CancelledError)
"""Errors by which a request ends because its client is gone, or the server ends."""


class Receipts(Protocol):
    """Counts the bytes sent on a connection that its peer has not acknowledged."""

    def unreceived(self) -> int:
        """Return the number of bytes that are not acknowledged now."""

    def on_received(self, done: Callable[[int], None]) -> None:
        """Call back once all bytes are acknowledged or the connection is lost.

        The argument is the number of unacknowledged bytes.
        """


class _AllReceived:
    """For content that is not sent over a socket."""

    def unreceived(self) -> int:
        return 0

    def on_received(self, done: Callable[[int], None]) -> None:
        done(0)


ALL_RECEIVED: Receipts = _AllReceived()


class Peer(NamedTuple):
    """The client of a request, as coverage and the report name it.

    Attributes:
        node: name of the machine.
        user: as authenticated; "" without authentication.
        address: of the peer.
        agent: the client's ``User-Agent``.
    """

    node: str
    user: str
    address: str
    agent: str = ""


@dataclass(eq=False, slots=True)
class Transfer:
    """A transfer that is under way.

    Attributes:
        direction: ``pull`` or ``push``.
        what: repository, with the digest of a pull.
        peer: the client.
        begun: seconds, monotonic.
        bytes: transferred so far; of a pull, those handed to the kernel.
    """

    direction: str
    what: str
    peer: Peer
    begun: float
    bytes: int = 0

    def __str__(self) -> str:
        peer = self.peer.node
        if self.peer.address and self.peer.address != peer:
            peer = f"{peer} ({self.peer.address})"
        return f"{self.direction} of {self.what} by {peer}"


@dataclass(slots=True)
class Sending:
    """One GET of a blob: a context around the handler, with `part` around the sending of bytes.

    The node waits for the blob from the beginning of this context on. An error before the first
    byte is a refusal, except for a range that does not exist: clients use that to find out that
    they have everything. If the client leaves before the first byte, the node lacks the blob unless
    all of it has arrived by other requests. A connection that drops after the first byte is not a
    failure by itself; the bytes that arrived count (`arrival`).
    """

    _observer: Observer
    _peer: Peer
    _repository: str
    _digest: str
    _images: list[str]
    _configured: list[str]
    """The images among them whose config the blob is."""
    _transfer: Transfer | None = field(default=None)
    _flow: Flow | None = field(default=None)
    _corrupt: bool = field(default=False)

    def __enter__(self) -> Self:
        if self._images:
            self._observer.pulls.fetch_begun(self._peer.node, self._digest)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._images:
            return
        ledger, where = self._observer.ledger, (self._peer.node, self._repository, self._digest)
        if error is None:
            if self._flow is None:  # an empty blob has no bytes to flow
                ledger.blob_ended(ledger.blob_begun(*where, 0, 0, self._images), 0, 0)
        elif self._corrupt or (self._flow is None and self._is_lacking(error)):
            ledger.failed(*where, corrupt=self._corrupt)
        if self._transfer is None:
            self._observer.pulls.fetch_ended(
                self._peer.node, self._digest, complete=self._has_all()
            )

    def _is_lacking(self, error: BaseException) -> bool:
        """Whether the node lacks the blob, after an error before the first byte."""
        if isinstance(error, RangeInvalid):
            return False
        return not (isinstance(error, _CLIENT_LEFT) and self._has_all())

    def _has_all(self) -> bool:
        return self._observer.ledger.facts.has_blob(self._peer.node, self._digest)

    def count(self, sent: int) -> None:
        """Count more bytes as handed to the kernel."""
        self._observer.sent(self._peer.node, sent)
        if self._transfer is not None:
            self._transfer.bytes += sent
        if self._flow is not None:
            self._flow.count(sent)

    def ahead(self, end: int) -> None:
        """Note that up to ``end`` bytes may soon have been sent; for any thread, one at a time."""
        if self._flow is not None:
            self._flow.ahead(end)

    def corrupt(self) -> None:
        """Note that the content does not have its digest."""
        self._corrupt = True

    @contextlib.contextmanager
    def part(
        self, first: int, count: int, size: int, receipts: Receipts = ALL_RECEIVED
    ) -> Iterator[None]:
        """Track the sending of ``count`` bytes from byte ``first`` on, of a blob of ``size``.

        Args:
            receipts: counts the bytes that the client's host has not acknowledged.
        """
        observer, node = self._observer, self._peer.node
        what = f"{self._repository}@{self._digest}"
        transfer = Transfer("pull", what, self._peer, observer.clock.now())
        self._transfer = transfer
        observer.transfers.add(transfer)
        if not self._images:
            observer.pulls.fetch_begun(node, self._digest)
        else:
            where = node, self._repository, self._digest
            limit = first + count
            self._flow = observer.ledger.blob_begun(*where, first, size, self._images, limit)
        complete = False
        try:
            yield
            complete = True
        finally:
            observer.transfers.discard(transfer)
            ended = partial(self._ended, first)
            if complete:
                receipts.on_received(ended)
            else:
                ended(receipts.unreceived())

    def _ended(self, first: int, unreceived: int) -> None:
        """Record the end of the transfer; ``unreceived`` bytes were never acknowledged."""
        observer, node = self._observer, self._peer.node
        assert self._transfer is not None
        sent = first + self._transfer.bytes
        if self._flow is not None:
            observer.ledger.blob_ended(self._flow, max(first, sent - unreceived), sent)
        complete = self._has_all()
        observer.pulls.fetch_ended(node, self._digest, complete=complete)
        if complete:
            observer.blob_arrived(self._peer, self._repository, self._digest, self._configured)


class Observer:
    """Records the requests of all clients; for the event loop's thread only.

    Args:
        activity: counts requests and bytes.
        pulls: follows pulls and pushes.
        ledger: keeps facts.
        graph: references of manifests.
        clock: that all of them use.
        nodes: names the nodes of clients.

    Attributes:
        transfers: under way.
        owners: images that a blob is part of.
        states: of nodes with images.
        nonces: for proofs.
        node_bytes: node of ``--nodes`` → bytes of content that were sent to it.
    """

    def __init__(
        self,
        activity: Activity,
        pulls: Pulls,
        ledger: Ledger,
        graph: ManifestGraph,
        clock: Clock,
        *,
        nodes: NodeNames | None = None,
    ) -> None:
        self.activity = activity
        self.pulls = pulls
        self.ledger = ledger
        self.graph = graph
        self.clock = clock
        self.transfers: set[Transfer] = set()
        self.owners = Owners(ledger.facts, graph)
        self.states = ImageStates(ledger.facts, pulls, graph)
        self.nodes = nodes or NodeNames()
        self.nonces = Nonces(clock)
        self.node_bytes = dict.fromkeys(sorted(self.nodes.declared), 0)
        self._proving = asyncio.Lock()
        # One at a time: each may occupy a worker thread for long, and memory for a large manifest.
        self._reading = asyncio.Semaphore(1)

    def sent(self, node: str, count: int) -> None:
        """Count bytes of content that were sent to a node."""
        self.activity.bytes_out += count
        if node in self.node_bytes:
            self.node_bytes[node] += count

    def note_settled(self) -> None:
        """Record the nodes whose pulls have ended since their last fact."""
        for node, facts in self.ledger.facts.by_node.items():
            if not facts.is_settled and self.pulls.is_settled(node):
                self.ledger.settled(node)

    def peer(self, user: str, node: str | None, address: str | None, agent: str = "") -> Peer:
        """Return the client of a request.

        Args:
            user: name of the credential or certificate; "" without.
            node: that the credential was issued for; None for other credentials.
            address: of the client; None without.
            agent: its ``User-Agent``.
        """
        where = canonical_address(address) if address else ""
        return Peer(self.nodes.name(user, node, where), user, where, agent)

    def manifest_served(
        self,
        peer: Peer,
        repository: str,
        digest: str,
        refs: ManifestRefs,
        *,
        head: bool,
        tag: str | None,
    ) -> None:
        """Record that a manifest is about to be answered with 200; call `learn` first.

        Args:
            peer: that asked for it.
            repository: of the manifest.
            digest: of the manifest.
            refs: its references.
            head: whether it was asked for by HEAD.
            tag: by which it was asked for; None for a digest.
        """
        node, user, address, agent = peer
        self.activity.pulled()
        runtime = runtime_of(agent)
        self.nodes.pulled(node, user, address, runtime=runtime is not NONE)
        known = self.ledger.facts.pull(node, repository, digest)
        if known and not known.again and self.ledger.age(known) >= NEW_PULL_SECONDS:
            target = self.states.resolve_cached(repository, digest)
            if target is not None and self.states.of(node, target) in HAS_IMAGE:
                self.ledger.asked_again(node, repository, digest)
        self.pulls.manifest(node, repository, digest, refs, head=head)
        claims = runtime.claims_image(head=head, index=bool(refs.children))
        self.ledger.asked(node, repository, digest, got=not head, claims=claims, tag=tag)
        self.owners.learn(repository, digest, refs)

    @contextlib.contextmanager
    def asking(self, peer: Peer, repository: str, digest: str | None) -> Iterator[None]:
        """Track a GET of a manifest, from before it is looked up until it is answered.

        Args:
            peer: that asks for it.
            repository: of the manifest.
            digest: by which it is asked for; None for a tag.
        """
        if digest is None or not self.pulls.has_begun(peer.node, repository, digest):
            yield
            return
        self.pulls.fetch_begun(peer.node, digest)
        try:
            yield
        except _CLIENT_LEFT:
            self.manifest_failed(peer, repository, digest)
            raise
        finally:
            self.pulls.fetch_ended(peer.node, digest, complete=False)

    async def learn(self, repository: str, digest: str, refs: ManifestRefs) -> None:
        """Remember the references of a manifest, and read the manifests below it."""
        self.graph.add(repository, digest, refs)
        if refs.children and not self.graph.has_closure(repository, digest):
            async with self._reading:
                await in_thread(self.graph.closure, repository, digest)

    async def prepare(self, peer: Peer, repository: str) -> None:
        """Read images of a node that are not remembered; before `sending` and `manifest_failed`."""
        if not self.owners.unread(peer.node, repository):
            return
        async with self._reading:
            if unread := self.owners.unread(peer.node, repository):
                found = await in_thread(self.owners.read, repository, unread)
                for digest, refs in found.items():
                    self.owners.learn(repository, digest, refs)
                self.owners.were_read(peer.node, repository)

    def blob_arrived(
        self, peer: Peer, repository: str, digest: str, images: Collection[str]
    ) -> None:
        """Record that a node has all of a blob, and was served the images whose config it is."""
        if digest == EMPTY_CONFIG or not runtime_of(peer.agent).config:
            return
        for image in images:
            known = self.ledger.facts.pull(peer.node, repository, image)
            refs = self.graph.cached(repository, image)
            blobs = refs.blobs if refs is not None else ()
            # Runtimes ask for config and layers side by side: a layer that was asked for in this
            # pull and has not arrived is one that the node lacks.
            if self.ledger.facts.last_pending(peer.node, blobs) <= (known.got if known else 0):
                self.ledger.asked(peer.node, repository, image, got=False, claims=True)

    def manifest_failed(self, peer: Peer, repository: str, digest: str) -> None:
        """Record that a manifest of the repository, asked for by a node, cannot be served."""
        if self.owners.of(peer.node, repository, digest) or self.ledger.facts.pull(
            peer.node, repository, digest
        ):
            self.ledger.failed(peer.node, repository, digest)

    def manifest_pushed(
        self, peer: Peer, repository: str, digest: str, tags: tuple[str, ...]
    ) -> None:
        """Record that a manifest was stored: with tags the last of its push, without a child."""
        if tags:
            self.pulls.push_ended(peer.node)
        else:
            self.pulls.push(peer.node)
        self.ledger.pushed(peer.node, repository, digest, tags)

    async def proved(self, peer: Peer, images: Collection[ProvenImage]) -> None:
        """Record a node's proof, in place of its last one."""
        async with self._proving:
            await self.ledger.proved(peer.node, images)

    def sending(self, peer: Peer, repository: str, digest: str) -> Sending:
        """Track a GET of a blob, from before it is looked up; call `prepare` first."""
        images = self.owners.of(peer.node, repository, digest)
        configured = [one for one in images if self.owners.has_config(repository, one, digest)]
        return Sending(self, peer, repository, digest, images, configured)

    def pulled_now(self) -> list[tuple[str, Digest]]:
        """Repository and digest of the blobs that are being sent. From any thread."""
        # Copied in one step: the event loop changes the set.
        names = [one.what for one in tuple(self.transfers) if one.direction == "pull"]
        found = [name.partition("@") for name in names]
        return [(repository, digests.parse(digest)) for repository, _, digest in found]

    @contextlib.contextmanager
    def track_push(self, peer: Peer, repository: str) -> Iterator[None]:
        """Track a request of an upload session, its opening and closing included."""
        transfer = Transfer("push", repository, peer, self.clock.now())
        self.transfers.add(transfer)
        self.pulls.push(peer.node)
        try:
            yield
        finally:
            self.transfers.discard(transfer)
            self.pulls.push(peer.node)
