"""The drain: new pulls and pushes are refused, those that have begun may finish.

    serving ──begin()──► draining ──quiet, or timeout, or second signal──► closed

Whether a request is new depends on the node that makes it, since a pull is many requests
(`coverage.pulls`):

- A manifest by tag begins a pull. Refused.
- A manifest by digest continues a pull if the node was served it, or an index that names it, before
  the drain. Else refused.
- A blob continues a pull. Served.
- A write continues a push if the node took a step of one a moment ago. Else refused.
- A request that is part of neither is served; one whose route does not say so is refused.

The refusal is 503 with OCI code UNAVAILABLE: for a manifest docker and containerd take that as
final and go to the next mirror or upstream, or leave the retry to the kubelet, as they should when
a registry is about to end. (To slow clients down it would be wrong.)

The drain is complete when no request is in flight and no node is expected to ask for more of its
pull. The listening sockets stay open until then: docker opens a connection for each blob.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mayfly.registry.activity import Activity
from mayfly.registry.clock import Clock, first_done
from mayfly.registry.coverage.observer import Transfer
from mayfly.registry.coverage.pulls import Pulls, Step
from mayfly.registry.ending import Latch
from mayfly.registry.errors import Draining
from mayfly.storage.digest import Digest


@dataclass(frozen=True, slots=True)
class Drained:
    """The result of a drain.

    Attributes:
        aborted: the transfers that were still under way.
        requests: number of requests in flight at the end, those of the transfers included.
        exit_code: of the second signal, if that ended the drain.
    """

    aborted: tuple[Transfer, ...] = ()
    exit_code: int | None = None
    requests: int = 0

    @property
    def complete(self) -> bool:
        """Whether nothing was aborted."""
        return not self.aborted and not self.requests


class Drain:
    """Admits or refuses requests while the registry drains, and waits until it is quiet.

    Args:
        activity: of the server.
        pulls: under way.
        transfers: under way.
        clock: the one that the others use.

    Attributes:
        active: whether the drain has begun.
    """

    def __init__(
        self, activity: Activity, pulls: Pulls, transfers: Collection[Transfer], clock: Clock
    ) -> None:
        self._activity = activity
        self._pulls = pulls
        self._transfers = transfers
        self._clock = clock
        self._refusing = False
        self.active = False

    def begin(self, *, refuse: bool = True) -> None:
        """Begin the drain.

        Args:
            refuse: whether new pulls and pushes are refused. False after an idle end: no client
                was active for longer than a pull pauses, and one that comes at the last moment is
                served.
        """
        self.active = True
        self._refusing = refuse

    def admit(self, node: str, step: Step | None, repository: str, digest: Digest | None) -> None:
        """Check whether a request may be served.

        Args:
            node: that sends it.
            step: its part in a pull or push; None if its route has none.
            repository: that it names; "" without.
            digest: that it names; None without.

        Raises:
            Draining: it would begin a new pull or push.
        """
        if self._refusing and not self._continues(node, step, repository, digest):
            raise Draining

    def _continues(
        self, node: str, step: Step | None, repository: str, digest: Digest | None
    ) -> bool:
        match step:
            case Step.PULL:
                return digest is not None and self._pulls.has_begun(node, repository, str(digest))
            case Step.PUSH:
                return self._pulls.is_pushing(node)
            case Step.CONTINUE_PULL | Step.NEITHER:
                return True
        return False

    async def finish(self, limit: float, second: Latch) -> Drained:
        """Wait until it is quiet; call `begin` first.

        Args:
            limit: longest wait in seconds, `--drain-timeout`.
            second: met by a second signal, which ends the drain.
        """
        end = self._clock.now() + limit
        while not second.holds():
            settles = self._pulls.settles_in() if self._refusing else None
            left = end - self._clock.now()
            if not self._activity.requests and (settles is None or left <= 0):
                return Drained()
            if left <= 0:
                return self._abort(None)
            pause = min(left, settles) if settles is not None else left
            changed = self._activity.changed.next()
            await first_done(changed, second.wait(), self._clock.sleep(pause))
        return self._abort((await second.wait()).exit_code)

    def _abort(self, exit_code: int | None) -> Drained:
        transfers = tuple(sorted(self._transfers, key=str))
        return Drained(transfers, exit_code, self._activity.requests)
