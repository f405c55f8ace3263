"""Tracks which bytes of one blob have reached one node, over all transfers of it.

A client may fetch a blob in one response, resume it after a cut by ``Range``, or, as containerd 2
does, ask for it by several open-ended ranges side by side, read its part of each and drop the
connection. So a blob has arrived when the *union* of its transfers covers it, and a connection that
the client drops is no failure in itself.

Of a transfer that ended three things are known: where it began, how far the client's host has
acknowledged it, and how far bytes were handed to the kernel; at its end in good order all is
acknowledged. Acknowledged bytes lay in the memory of the client's host; whether the client read
them is unknown, and the last acknowledgements may be lost with the connection. What else the client
asks for settles both:

    first            next         acked      sent
      |---------------|~~~~~~~~~~~~|..........|      another request begins at `next`

- A request that begins before ``acked`` shows that the client stopped reading there.
- One that begins at most `ACK_SLACK` after ``acked``, and not after ``sent``, shows that it got
  that far; so does a part that had arrived from there on, where the client had no reason to go on.
- Without either, bytes up to ``acked`` count.

If the server is killed, the end of a transfer is lost. If nothing beyond it was ever asked for, the
next request that begins later in the blob says how far it came, but no further than the server had
sent (`reach`) and the response was to go; of several parts nothing counts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ACK_SLACK = 256 * 1024
"""Bytes that a client may have read before their acknowledgement reached us: what a host receives
between two of them (RFC 9293, 3.8.6.3), with segments merged on the way up."""

MAX_PARTS = 64
"""Transfers of one blob that ended and can still be corrected by what the client asks for next."""

MAX_INTERVALS = 1024
"""Disjoint parts of one blob that are tracked; further ones count as not arrived. An honest client
makes a few dozen."""


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
        """The end of the last interval, 0 without any."""
        return self._ends[-1] if self._ends else 0

    def total(self) -> int:
        """How many bytes are in the set."""
        return sum(self._ends) - sum(self._firsts)


@dataclass(slots=True, eq=False)
class Part:
    """One transfer, under way or ended.

    Attributes:
        first: offset of its first byte.
        limit: end of what the response was to have.
        acked: end of what the client's host has acknowledged.
        sent: end of what was handed to the kernel.
        following: the smallest offset after ``first`` at which a request began while this one was
            under way or later.
        end_lost: its end was lost with the server.
        slot: under which the server that sends it keeps how far it has got; see `reach`.
    """

    first: int
    limit: int
    acked: int = 0
    sent: int = 0
    following: int | None = None
    end_lost: bool = False
    slot: int | None = None

    def end(self) -> int:
        """The end of the bytes that count as arrived."""
        reach = self.sent if self.end_lost else min(self.sent, self.acked + ACK_SLACK)
        if self.following is not None and self.following <= max(self.acked, reach):
            return self.following
        return self.acked


class Arrival:
    """The bytes of one blob that have arrived at one node.

    Args:
        size: of the blob.
        prefix: how many of its first bytes the node is known to have.

    Attributes:
        flowing: transfers under way.
        whole: whether all of the blob has arrived.
    """

    __slots__ = ("_ended", "_sure", "flowing", "size", "whole")

    def __init__(self, size: int, prefix: int = 0) -> None:
        self.size = size
        self.flowing: list[Part] = []
        self._ended: list[Part] = []
        self._sure = Intervals()
        self._sure.add(0, prefix)
        self.whole = self._sure.covers(size)

    def begin(self, first: int, limit: int | None = None, *, anew: bool = False) -> Part:
        """A transfer of the bytes from ``first`` on begins.

        Args:
            limit: end of the bytes asked for; None for the blob's.
            anew: nothing happened for a while, so that a request for the first byte starts over.
                Of requests that come side by side, the first may well be late.
        """
        if first == 0:
            self._sure = Intervals()
            if anew and not self.flowing:
                self._ended = []
        for part in (*self.flowing, *self._ended):
            if part.first < first and (part.following is None or first < part.following):
                part.following = first
        # A client that asks again from the same byte discarded the earlier response; and such a
        # request does not say how far a transfer with a lost end came.
        self._ended = [
            part
            for part in self._ended
            if part.first != first and not (part.end_lost and part.first > first)
        ]
        after = [part.first for part in self.flowing if part.first > first]
        end = self.size if limit is None else limit
        begun = Part(first, end, first, first, min(after, default=None))
        self.flowing.append(begun)
        self._conclude()
        return begun

    def end(self, part: Part, acked: int, sent: int) -> None:
        """A transfer ended, complete or cut: ``acked`` and ``sent`` as in `Part`."""
        if part in self.flowing:
            self.flowing.remove(part)
        part.acked, part.sent = acked, max(acked, sent)
        self._keep(part)
        self._conclude()

    def lose(self, reached: Sequence[int] = ()) -> None:
        """The server was killed: no transfer under way has an end.

        Args:
            reached: how far each slot's transfer may have got.
        """
        for part in self.flowing:
            if part.slot is not None:
                known = reached[part.slot] if part.slot < len(reached) else 0
                part.limit = min(part.limit, max(part.first, known))
                part.slot = None
        # Of a blob fetched by parts the next request says nothing: it may go on with another one.
        alone = len(self.flowing) == 1 and self._is_last(self.flowing[0])
        for part in self.flowing:
            # With nothing sent, no other part can show that this one got any further.
            sent = part.limit if alone else part.first
            part.acked, part.sent, part.end_lost = part.first, sent, alone
            part.following = None if alone else part.first
            self._keep(part)
        self.flowing = []
        self._conclude()

    def spoil(self) -> None:
        """The content was corrupt: forget everything that arrived."""
        self._ended, self._sure = [], Intervals()
        self._conclude()

    def flowing_from(self, first: int) -> Part | None:
        """A transfer under way that began at an offset."""
        return next((part for part in self.flowing if part.first == first), None)

    def open_ends(self) -> list[tuple[int, int, int | None]]:
        """The first byte, limit and slot of transfers whose end is not known."""
        lost = [part for part in self._ended if part.end_lost and part.following is None]
        return [(part.first, part.limit, part.slot) for part in (*self.flowing, *lost)]

    def is_interrupted(self) -> bool:
        """Whether transfers ended before the blob was whole, and none is under way."""
        return not self.flowing and not self.whole

    def parts(self) -> Intervals:
        """The bytes that have arrived."""
        union = Intervals()
        for first, end in self._sure:
            union.add(first, end)
        firsts = self._firsts()
        for part in self._ended:
            union.add(part.first, _end(part, firsts))
        return union

    def _firsts(self) -> list[int]:
        """The first bytes of all parts that arrived, in order."""
        return sorted([*(first for first, _ in self._sure), *(part.first for part in self._ended)])

    def _keep(self, part: Part) -> None:
        if len(self._ended) >= MAX_PARTS:
            end = _end(self._ended[0], self._firsts())
            self._sure.add(self._ended.pop(0).first, end)
        self._ended.append(part)

    def _is_last(self, part: Part) -> bool:
        """Whether nothing of the blob was ever asked for beyond where a transfer begins."""
        later = any(one.first > part.first for one in self._ended)
        return part.following is None and not later and self._sure.end() <= part.first

    def _conclude(self) -> None:
        self.whole = self.parts().covers(self.size)


def _end(part: Part, firsts: list[int]) -> int:
    """The end of the bytes of a part that count, with others that begin at ``firsts``."""
    end = part.end()
    if end < part.acked or part.end_lost:
        return end
    at = bisect_left(firsts, max(part.acked, part.first + 1))
    if at < len(firsts) and firsts[at] <= min(part.sent, part.acked + ACK_SLACK):
        end = max(end, firsts[at])
    return end
