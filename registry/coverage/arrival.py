"""The bytes of one blob that have reached one node, over all transfers of it.

A client may fetch a blob in one response, resume it after a cut by ``Range``, or, as containerd 2
does, ask for several open-ended ranges in parallel, read its part of each and drop the
connection. So a blob is complete when the *union* of its transfers covers it, and a connection that
the client drops is not a failure by itself.

Of a transfer that ended three offsets are known: its beginning, the end of the bytes that the
client's host acknowledged, and the end of the bytes handed to the kernel. After a complete response
all bytes are acknowledged. Acknowledged bytes were in the memory of the client's host; whether the
client read them is unknown, and the last acknowledgements may be lost with the connection. Further
requests of the client decide both:

    first            next         acked      sent
      |---------------|~~~~~~~~~~~~|..........|      another request begins at `next`

- A request that begins before ``acked`` shows that the client stopped reading there.
- One that begins at most `ACK_SLACK` after ``acked``, and not after ``sent``, shows that it read up
  to there; so does a part that had arrived from there on, which the client need not request again.
- Without either, bytes up to ``acked`` count.

If the server is killed, the end of a transfer is lost. If no bytes beyond it were ever asked for,
the next request that begins later in the blob shows its end, but not beyond the bytes that the
server had sent (`sent_offsets`) or the range of the response; of several parts none counts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ACK_SLACK = 256 * 1024
"""Bytes that a client may have read before their acknowledgement arrived: a host receives as many
between two acknowledgements (RFC 9293, 3.8.6.3), with segments merged by its network stack."""

MAX_PARTS = 64
"""Ended transfers of one blob whose end later requests can still correct."""

MAX_INTERVALS = 1024
"""Disjoint parts of one blob that are tracked; further ones do not count. An honest client makes a
few dozen."""


class Intervals:
    """A set of bytes as disjoint half-open intervals, in order."""

    __slots__ = ("_ends", "_firsts")

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._firsts)

    def add(self, first: int, end: int) -> bool:
        """Add bytes ``first`` up to but not including ``end``.

        Returns:
            Whether there was room; without, nothing is added.
        """
        if first >= end:
            return True
        low = bisect_left(self._ends, first)
        high = bisect_right(self._firsts, end)
        if low == high and len(self._firsts) >= MAX_INTERVALS:
            return False
        if low < high:
            first = min(first, self._firsts[low])
            end = max(end, self._ends[high - 1])
        self._firsts[low:high] = [first]
        self._ends[low:high] = [end]
        return True

    def covers(self, size: int) -> bool:
        """Whether every byte of content of ``size`` bytes is in the set."""
        return not size or (bool(self._firsts) and self._firsts[0] == 0 and self._ends[0] >= size)

    def end(self) -> int:
        """Return the end of the last interval; 0 without any."""
        return self._ends[-1] if self._ends else 0

    def total(self) -> int:
        """Return the number of bytes in the set."""
        return sum(self._ends) - sum(self._firsts)


@dataclass(slots=True, eq=False)
class Part:
    """One transfer, under way or ended.

    Attributes:
        first: offset of its first byte.
        limit: end of the bytes that were asked for.
        acked: end of the bytes that the client's host has acknowledged.
        sent: end of the bytes that were handed to the kernel.
        following: the smallest offset after ``first`` at which a request began while this one was
            under way or later.
        end_lost: its end was lost with the server.
        slot: in `sent_offsets.SentOffsets`, which has the end of the bytes that may be sent.
    """

    first: int
    limit: int
    acked: int = 0
    sent: int = 0
    following: int | None = None
    end_lost: bool = False
    slot: int | None = None

    def end(self) -> int:
        """Return the end of the bytes that count as arrived."""
        reach = self.sent if self.end_lost else min(self.sent, self.acked + ACK_SLACK)
        if self.following is not None and self.following <= max(self.acked, reach):
            return self.following
        return self.acked


class Arrival:
    """The bytes of one blob that have arrived at one node.

    Args:
        size: of the blob.
        prefix: number of its first bytes that the node is known to have.

    Attributes:
        in_flight: transfers under way.
        complete: whether all of the blob has arrived.
    """

    __slots__ = ("_confirmed", "_ended", "complete", "in_flight", "size")

    def __init__(self, size: int, prefix: int = 0) -> None:
        self.size = size
        self.in_flight: list[Part] = []
        self._ended: list[Part] = []
        self._confirmed = Intervals()
        self._confirmed.add(0, prefix)
        self.complete = self._confirmed.covers(size)

    def begin(self, first: int, limit: int | None = None, *, restart: bool = False) -> Part:
        """Begin a transfer of the bytes from ``first`` on.

        Args:
            limit: end of the bytes asked for; None for the end of the blob.
            restart: whether a request for the first byte starts over. Only after a pause: of
                parallel requests, the one for the first byte may arrive last.
        """
        if first == 0:
            self._confirmed = Intervals()
            if restart and not self.in_flight:
                self._ended = []
        for part in (*self.in_flight, *self._ended):
            if part.first < first and (part.following is None or first < part.following):
                part.following = first
        # A client that asks again from the same byte discarded the earlier response. Such a
        # request does not show the end of a transfer whose end is lost.
        self._ended = [
            part
            for part in self._ended
            if part.first != first and not (part.end_lost and part.first > first)
        ]
        after = [part.first for part in self.in_flight if part.first > first]
        end = self.size if limit is None else limit
        begun = Part(first, end, first, first, min(after, default=None))
        self.in_flight.append(begun)
        self._conclude()
        return begun

    def end(self, part: Part, acked: int, sent: int) -> None:
        """End a transfer, complete or aborted; ``acked`` and ``sent`` as in `Part`."""
        if part in self.in_flight:
            self.in_flight.remove(part)
        part.acked, part.sent = acked, max(acked, sent)
        self._keep(part)
        self._conclude()

    def lose_ends(self, reached: Sequence[int] = ()) -> None:
        """End all transfers under way, since the server was killed.

        Args:
            reached: for each slot, the end of the bytes that may have been sent.
        """
        for part in self.in_flight:
            if part.slot is not None:
                known = reached[part.slot] if part.slot < len(reached) else 0
                part.limit = min(part.limit, max(part.first, known))
                part.slot = None
        # Of a blob fetched in parts the next request shows nothing: it may continue another part.
        alone = len(self.in_flight) == 1 and self._is_last(self.in_flight[0])
        for part in self.in_flight:
            # With no bytes sent, no other part can show that this one got further.
            sent = part.limit if alone else part.first
            part.acked, part.sent, part.end_lost = part.first, sent, alone
            part.following = None if alone else part.first
            self._keep(part)
        self.in_flight = []
        self._conclude()

    def discard(self) -> None:
        """Discard all that arrived, since the content was corrupt."""
        self._ended, self._confirmed = [], Intervals()
        self._conclude()

    def in_flight_from(self, first: int, slot: int | None) -> Part | None:
        """Return the transfer under way that began at an offset and has a slot."""
        found = (one for one in self.in_flight if (one.first, one.slot) == (first, slot))
        return next(found, None)

    def open_ends(self) -> list[tuple[int, int, int | None]]:
        """Return first byte, limit and slot of transfers whose end is unknown."""
        lost = [part for part in self._ended if part.end_lost and part.following is None]
        return [(part.first, part.limit, part.slot) for part in (*self.in_flight, *lost)]

    def is_interrupted(self) -> bool:
        """Whether transfers ended before the blob was complete, and none is under way."""
        return not self.in_flight and not self.complete

    def parts(self) -> Intervals:
        """Return the bytes that have arrived."""
        union = Intervals()
        for first, end in self.separate_parts():
            union.add(first, end)
        return union

    def separate_parts(self) -> Iterator[tuple[int, int]]:
        """Yield the bytes of each transfer that later requests can still correct, and the rest.

        A request from the first byte of a transfer shows that the client discarded all of that
        transfer, but not those that continued it.
        """
        yield from self._confirmed
        firsts = self._firsts()
        for part in self._ended:
            yield part.first, _end(part, firsts)

    def _firsts(self) -> list[int]:
        """Return the first bytes of all parts that arrived, in order."""
        return sorted(
            [*(first for first, _ in self._confirmed), *(part.first for part in self._ended)]
        )

    def _keep(self, part: Part) -> None:
        if len(self._ended) >= MAX_PARTS:
            end = _end(self._ended[0], self._firsts())
            self._confirmed.add(self._ended.pop(0).first, end)
        self._ended.append(part)

    def _is_last(self, part: Part) -> bool:
        """Whether no bytes beyond the beginning of a transfer were ever asked for."""
        later = any(one.first > part.first for one in self._ended)
        return part.following is None and not later and self._confirmed.end() <= part.first

    def _conclude(self) -> None:
        self.complete = self.parts().covers(self.size)


def _end(part: Part, firsts: list[int]) -> int:
    """Return the end of the bytes of a part that count, with others that begin at ``firsts``."""
    end = part.end()
    if end < part.acked or part.end_lost:
        return end
    at = bisect_left(firsts, max(part.acked, part.first + 1))
    if at < len(firsts) and firsts[at] <= min(part.sent, part.acked + ACK_SLACK):
        end = max(end, firsts[at])
    return end
