"""Draining: nothing new begins, what was begun may end, and then it is over.

    serving ──begin()──► draining ──quiet, or timeout, or second signal──► cut off

What is new is decided by the node that asks, since a pull is many requests (`pulls`):

- A manifest by tag begins a pull. Refused.
- A manifest by digest goes on with one if the node was served it, or an index that names it, before
  the drain. Else refused.
- A blob goes on with a pull, whichever it is. Served.
- A write goes on with a push if the node took a step of one a moment ago. Else refused.
- A request that is part of neither is served; one that does not say what it is part of is refused.

Refused is 503 with OCI code UNAVAILABLE, and deliberately so: for a manifest docker and containerd
take that as final and go to the next mirror or upstream, or leave the retry to the kubelet, which
is what a registry that is about to be gone wants of them. (To slow clients down it would be wrong.)

It is quiet when no request is in flight and no node is about to ask for more of what it began.
The listening sockets stay open until then: docker opens a connection for each blob.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mayfly.registry.clock import Clock, first_done
from mayfly.registry.coverage.observer import Transfer
from mayfly.registry.coverage.pulls import Pulls, Step
from mayfly.registry.lifecycle.activity import Activity
from mayfly.registry.lifecycle.conditions import Once
from mayfly.registry.lifecycle.errors import Draining


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain ended.

    Attributes:
        cut: the transfers that were still going on.
        requests: how many requests were in flight then, those of the transfers among them.
        exit_code: of the second signal, if that ended it.
    """

    cut: tuple[Transfer, ...] = ()
    exit_code: int | None = None
    requests: int = 0

    @property
    def complete(self) -> bool:
        """Whether nothing was cut."""
        return not self.cut and not self.requests


class Drain:
    """Decides what a draining registry still serves, and when it is done.

    Args:
        activity: of the server.
        pulls: that are under way.
        transfers: that flow now.
        clock: of them all.
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
        """From now on nothing new is served, or, without ``refuse``, only waited for the end.

        That is for an idle exit: nobody was heard of for longer than a pull pauses, so nobody is
        expected either, and who comes at the very last moment is served.
        """
        self.active = True
        self._refusing = refuse

    def admit(self, node: str, step: Step | None, repository: str, digest: str | None) -> None:
        """Let a request pass, unless it begins something new.

        Args:
            node: that sends it.
            step: its part in a pull or push; None where its route does not say.
            repository: that it names, "" without.
            digest: that it names, None without.

        Raises:
            Draining: it does.
        """
        if self._refusing and not self._continues(node, step, repository, digest):
            raise Draining

    def _continues(self, node: str, step: Step | None, repository: str, digest: str | None) -> bool:
        match step:
            case Step.PULL:
                return digest is not None and self._pulls.knows(node, repository, digest)
            case Step.PUSH:
                return self._pulls.pushing(node)
            case Step.CONTINUE_PULL | Step.NONE:
                return True
        return False

    async def finish(self, limit: float, second: Once) -> Drained:
        """Wait until it is quiet; `begin` was called.

        Args:
            limit: seconds to wait at most, `--drain-timeout`.
            second: met by a second signal.
        """
        end = self._clock.now() + limit
        while not second.holds():
            settles = self._pulls.settles_in() if self._refusing else None
            left = end - self._clock.now()
            if not self._activity.requests and (settles is None or left <= 0):
                return Drained()
            if left <= 0:
                return self._cut(None)
            pause = min(left, settles) if settles is not None else left
            changed = self._activity.changed.next()
            await first_done(changed, second.wait(), self._clock.sleep(pause))
        return self._cut((await second.wait()).exit_code)

    def _cut(self, exit_code: int | None) -> Drained:
        transfers = tuple(sorted(self._transfers, key=str))
        return Drained(transfers, exit_code, self._activity.requests)
