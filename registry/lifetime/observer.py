"""What handlers tell the lifetime, in as few words as they can.

One `Observer` is shared by all requests. The byte path and the manifest handlers call it; it keeps
`Activity`, `Pulls` and the `Ledger` in step, so that no handler knows what those are for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

from registry.errors import RangeInvalid
from registry.lifetime.activity import Activity
from registry.lifetime.clock import Clock
from registry.lifetime.contents import Contained
from registry.lifetime.images import plain
from registry.lifetime.ledger import Ledger
from registry.lifetime.pulls import Pulls

AGAIN_AFTER = 60
"""Seconds after which a manifest asked for once more is another pull, not the same one."""


class Caller(NamedTuple):
    """Who makes a request.

    Attributes:
        node: the name by which coverage knows the machine.
        user: as authenticated, "" for nobody in particular.
        address: of the peer.
    """

    node: str
    user: str
    address: str


@dataclass(eq=False, slots=True)
class Transfer:
    """Content that flows now.

    Attributes:
        direction: ``pull`` or ``push``.
        what: repository, with the digest of a pull.
        caller: at the other end.
        begun: seconds, monotonic.
    """

    direction: str
    what: str
    caller: Caller
    begun: float

    def __str__(self) -> str:
        peer = self.caller.node
        if self.caller.address and self.caller.address != peer:
            peer = f"{peer} ({self.caller.address})"
        return f"{self.direction} of {self.what} by {peer}"


@dataclass(slots=True)
class Sending:
    """One GET of a blob: `part` around the bytes, the whole as a context around the handler.

    What leaves the context by an error did not arrive, except where the client asked for a range
    that does not exist: that is how a client finds out that it has everything.
    """

    _observer: Observer
    _caller: Caller
    _repository: str
    _digest: str
    _sent: bool = field(default=False)
    _last: int | None = field(default=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ledger, node = self._observer.ledger, self._caller.node
        if error is None:
            if not self._sent:  # an empty blob has no bytes to flow
                ledger.blob_arrived(node, self._repository, self._digest, 0, 1)
        elif not isinstance(error, RangeInvalid):
            ledger.blob_failed(node, self._repository, self._digest, self._last)

    def count(self, sent: int) -> None:
        """So many bytes of it are out."""
        self._observer.activity.bytes_out += sent

    @contextlib.contextmanager
    def part(self, first: int, count: int, size: int) -> Iterator[None]:
        """Around the sending of ``count`` bytes from byte ``first`` on, of a blob of ``size``."""
        observer, node = self._observer, self._caller.node
        self._sent = True
        self._last = first + count - 1
        what = f"{self._repository}@{self._digest}"
        transfer = Transfer("pull", what, self._caller, observer.clock.now())
        observer.transfers.add(transfer)
        observer.pulls.blob_begun(node, self._digest)
        arrived = False
        try:
            yield
            arrived = True
        finally:
            observer.transfers.discard(transfer)
            to_its_end = arrived and first + count == size
            observer.pulls.blob_ended(node, self._digest, to_its_end=to_its_end)
        observer.ledger.blob_arrived(node, self._repository, self._digest, first, first + count)


class Observer:
    """Told of what happens, by the event loop's thread only.

    Args:
        activity: counted on.
        pulls: followed.
        ledger: written.
        contained: what manifests refer to.
        clock: of all of them.
        named: names by which nodes are listed, if they are; these win over everything else.
        shared: whether a user's name is one that several nodes use, and so names none of them.

    Attributes:
        transfers: that flow now.
    """

    def __init__(
        self,
        activity: Activity,
        pulls: Pulls,
        ledger: Ledger,
        contained: Contained,
        clock: Clock,
        *,
        named: frozenset[str] = frozenset(),
        shared: Callable[[str], bool] = lambda user: False,
    ) -> None:
        self.activity = activity
        self.pulls = pulls
        self.ledger = ledger
        self.contained = contained
        self.clock = clock
        self.transfers: set[Transfer] = set()
        self._named = named
        self._shared = shared

    def caller(self, user: str, node: str | None, address: str | None) -> Caller:
        """Who makes a request.

        Args:
            user: the name of the credential or certificate, "" without.
            node: the node it says the caller is, if it does.
            address: of the peer, if there is one.
        """
        where = plain(address) if address else ""
        if node is None:
            if user and (user in self._named or not self._shared(user)):
                node = user
            if where in self._named and user not in self._named:
                node = where
        return Caller(node or where or "unknown", user, where)

    def manifest_served(
        self, caller: Caller, repository: str, digest: str, *, head: bool, tag: str | None
    ) -> None:
        """A manifest is about to be answered with 200."""
        node = caller.node
        self.activity.pulled()
        known = self.ledger.confirmation(node, repository, digest)
        if known and not known.again and self.ledger.age(known) >= AGAIN_AFTER:
            below = self.contained.below(repository, digest)
            failed = self.ledger.failed_after(known.order, node, repository, below)
            if not failed and not self.pulls.busy(node, below):
                self.ledger.again(node, repository, digest)
        contents = self.contained.of(repository, digest)
        self.pulls.manifest(node, repository, digest, contents, head=head)
        self.ledger.confirmed(node, repository, digest, head=head, tag=tag)

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
        """A GET of a blob, from before it is looked up."""
        return Sending(self, caller, repository, digest)

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
