"""What handlers tell the lifetime, in as few words as they can.

One `Observer` is shared by all requests. The byte path and the manifest handlers call it; it keeps
`Activity`, `Pulls` and the `Ledger` in step, so that no handler knows what those are for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from mayfly.registry.clock import Clock
from mayfly.registry.coverage.contents import Contained, Contents
from mayfly.registry.coverage.images import plain
from mayfly.registry.coverage.ledger import Flow, Ledger
from mayfly.registry.coverage.nodes import NodeNames
from mayfly.registry.coverage.owners import Owners
from mayfly.registry.coverage.pulls import Pulls
from mayfly.registry.coverage.runtimes import NONE, runtime_of
from mayfly.registry.coverage.states import EMPTY_CONFIG, RANKED, States
from mayfly.registry.http.errors import RangeInvalid
from mayfly.registry.lifecycle.activity import Activity
from mayfly.registry.threads import in_thread

AGAIN_AFTER = 60
"""Seconds after which a manifest asked for once more is another pull, not the same one."""


_NO_REFUSALS = (RangeInvalid, ConnectionError, asyncio.CancelledError)
"""Errors before the first byte that are not refusals by the registry."""


class Receipts(Protocol):
    """Tells how many bytes sent on a connection its peer has not acknowledged."""

    def unreceived(self) -> int:
        """Bytes sent last that were not acknowledged, now."""

    def on_received(self, done: Callable[[int], None]) -> None:
        """Call back when all is acknowledged or the connection is gone.

        The argument is the number of bytes that were not acknowledged.
        """


class _AllReceived:
    """For content that no socket carries."""

    def unreceived(self) -> int:
        return 0

    def on_received(self, done: Callable[[int], None]) -> None:
        done(0)


ALL_RECEIVED: Receipts = _AllReceived()


class Caller(NamedTuple):
    """Who makes a request.

    Attributes:
        node: the name by which coverage knows the machine.
        user: as authenticated, "" for nobody in particular.
        address: of the peer.
        agent: the client's ``User-Agent``.
    """

    node: str
    user: str
    address: str
    agent: str = ""


@dataclass(eq=False, slots=True)
class Transfer:
    """Content that flows now.

    Attributes:
        direction: ``pull`` or ``push``.
        what: repository, with the digest of a pull.
        caller: at the other end.
        begun: seconds, monotonic.
        bytes: that moved so far; of a pull, those handed to the kernel.
    """

    direction: str
    what: str
    caller: Caller
    begun: float
    bytes: int = 0

    def __str__(self) -> str:
        peer = self.caller.node
        if self.caller.address and self.caller.address != peer:
            peer = f"{peer} ({self.caller.address})"
        return f"{self.direction} of {self.what} by {peer}"


@dataclass(slots=True)
class Sending:
    """One GET of a blob: `part` around the bytes, the whole as a context around the handler.

    An error before the first byte is a refusal, except where the client asked for a range that
    does not exist: that is how a client finds out that it has everything. A client that drops its
    connection after that has not failed by it; what counts is what reached it (`arrival`).
    """

    _observer: Observer
    _caller: Caller
    _repository: str
    _digest: str
    _images: list[str]
    _configured: list[str]
    """Those of the images whose config it is."""
    _transfer: Transfer | None = field(default=None)
    _flow: Flow | None = field(default=None)
    _corrupt: bool = field(default=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._images:
            return
        ledger, where = self._observer.ledger, (self._caller.node, self._repository, self._digest)
        if error is None:
            if self._flow is None:  # an empty blob has no bytes to flow
                ledger.blob_ended(ledger.blob_begun(*where, 0, 0, self._images), 0, 0)
        elif self._corrupt or (self._flow is None and not isinstance(error, _NO_REFUSALS)):
            ledger.failed(*where, corrupt=self._corrupt)

    def count(self, sent: int) -> None:
        """Count more bytes as handed to the kernel."""
        self._observer.activity.bytes_out += sent
        if self._transfer is not None:
            self._transfer.bytes += sent
        if self._flow is not None:
            self._flow.count(sent)

    def ahead(self, count: int) -> None:
        """Note that so many more bytes may be sent before the next call of `count`."""
        if self._flow is not None:
            self._flow.ahead(count)

    def corrupt(self) -> None:
        """Note that the content does not have its digest."""
        self._corrupt = True

    @contextlib.contextmanager
    def part(
        self, first: int, count: int, size: int, receipts: Receipts = ALL_RECEIVED
    ) -> Iterator[None]:
        """Around the sending of ``count`` bytes from byte ``first`` on, of a blob of ``size``.

        Args:
            receipts: tells how much of what was sent the client's host has acknowledged.
        """
        observer, node = self._observer, self._caller.node
        what = f"{self._repository}@{self._digest}"
        transfer = Transfer("pull", what, self._caller, observer.clock.now())
        self._transfer = transfer
        observer.transfers.add(transfer)
        observer.pulls.blob_begun(node, self._digest)
        if self._images:
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
        observer, node = self._observer, self._caller.node
        assert self._transfer is not None
        sent = first + self._transfer.bytes
        if self._flow is not None:
            observer.ledger.blob_ended(self._flow, max(first, sent - unreceived), sent)
        whole = observer.ledger.has_whole(node, self._digest)
        observer.pulls.blob_ended(node, self._digest, whole=whole)
        if whole:
            observer.blob_arrived(self._caller, self._repository, self._digest, self._configured)


class Observer:
    """Told of what happens, by the event loop's thread only.

    Args:
        activity: counted on.
        pulls: followed.
        ledger: written.
        contained: what manifests refer to.
        clock: of all of them.
        nodes: how nodes are told apart.

    Attributes:
        transfers: that flow now.
        owners: from blobs to the images they are of.
        states: how far nodes are with images.
    """

    def __init__(
        self,
        activity: Activity,
        pulls: Pulls,
        ledger: Ledger,
        contained: Contained,
        clock: Clock,
        *,
        nodes: NodeNames | None = None,
    ) -> None:
        self.activity = activity
        self.pulls = pulls
        self.ledger = ledger
        self.contained = contained
        self.clock = clock
        self.transfers: set[Transfer] = set()
        self.owners = Owners(ledger, contained)
        self.states = States(ledger, pulls, contained)
        self.nodes = nodes or NodeNames()
        # One at a time: each may take a worker thread for long, and memory for a large manifest.
        self._reading = asyncio.Semaphore(1)

    def caller(self, user: str, node: str | None, address: str | None, agent: str = "") -> Caller:
        """Who makes a request.

        Args:
            user: the name of the credential or certificate, "" without.
            node: the node it says the caller is, if it does.
            address: of the peer, if there is one.
            agent: its ``User-Agent``.
        """
        where = plain(address) if address else ""
        return Caller(self.nodes.name(user, node, where), user, where, agent)

    def manifest_served(
        self,
        caller: Caller,
        repository: str,
        digest: str,
        contents: Contents,
        *,
        head: bool,
        tag: str | None,
    ) -> None:
        """A manifest is about to be answered with 200; `learn` was called.

        Args:
            contents: what it names.
            head: whether it was asked for by HEAD.
            tag: by which it was asked for, if by one.
        """
        node = caller.node
        self.activity.pulled()
        runtime = runtime_of(caller.agent)
        self.nodes.pulled(node, caller.user, caller.address, runtime=runtime is not NONE)
        known = self.ledger.pull(node, repository, digest)
        if known and not known.again and self.ledger.age(known) >= AGAIN_AFTER:
            target = self.states.known_target(repository, digest)
            if target is not None and self.states.of(node, target) in RANKED:
                self.ledger.again(node, repository, digest)
        self.pulls.manifest(node, repository, digest, contents, head=head)
        claims = runtime.claims_image(head=head, index=bool(contents.children))
        self.ledger.asked(node, repository, digest, got=not head, claims=claims, tag=tag)
        self.owners.learn(repository, digest, contents)

    async def learn(self, repository: str, digest: str, contents: Contents) -> None:
        """Take note of what a manifest names, and read what lies below it."""
        self.contained.learn(repository, digest, contents)
        if contents.children and not self.contained.knows(repository, digest):
            async with self._reading:
                await in_thread(self.contained.below, repository, digest)

    async def prepare(self, caller: Caller, repository: str) -> None:
        """Before `sending` and `manifest_failed`: read the images of a node that are forgotten."""
        if not self.owners.unread(caller.node, repository):
            return
        async with self._reading:
            if unread := self.owners.unread(caller.node, repository):
                found = await in_thread(self.owners.read, repository, unread)
                for digest, contents in found.items():
                    self.owners.learn(repository, digest, contents)
                self.owners.were_read(caller.node, repository)

    def blob_arrived(
        self, caller: Caller, repository: str, digest: str, images: Collection[str]
    ) -> None:
        """All of a blob has reached a node, which was served the images whose config it is."""
        if digest == EMPTY_CONFIG or not runtime_of(caller.agent).config:
            return
        for image in images:
            self.ledger.asked(caller.node, repository, image, got=False, claims=True)

    def manifest_failed(self, caller: Caller, repository: str, digest: str) -> None:
        """A manifest that a node asked for, and that is in the repository, cannot be served."""
        if self.owners.of(caller.node, repository, digest) or self.ledger.pull(
            caller.node, repository, digest
        ):
            self.ledger.failed(caller.node, repository, digest)

    def manifest_pushed(
        self, caller: Caller, repository: str, digest: str, tags: tuple[str, ...]
    ) -> None:
        """A manifest was stored. With a tag it is the last of its push; children come without."""
        if tags:
            self.pulls.push_over(caller.node)
        else:
            self.pulls.push(caller.node)
        self.ledger.pushed(caller.node, repository, digest, tags)

    def sending(self, caller: Caller, repository: str, digest: str) -> Sending:
        """A GET of a blob, from before it is looked up; `prepare` was called."""
        images = self.owners.of(caller.node, repository, digest)
        configured = [one for one in images if self.owners.has_config(repository, one, digest)]
        return Sending(self, caller, repository, digest, images, configured)

    @contextlib.contextmanager
    def receiving(self, caller: Caller, repository: str) -> Iterator[None]:
        """Around each request of an upload session, its opening and closing included."""
        transfer = Transfer("push", repository, caller, self.clock.now())
        self.transfers.add(transfer)
        self.pulls.push(caller.node)
        try:
            yield
        finally:
            self.transfers.discard(transfer)
            self.pulls.push(caller.node)
