"""What worker threads send for TLS, and how their end is awaited."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from typing import TypeVar

_PATIENCE = 10
"""Milliseconds that a thread with nothing else to do waits for its client."""

_T = TypeVar("_T")


async def ended(turn: asyncio.Future[_T]) -> _T:
    """The outcome of a thread's work, which is waited for however often the caller is cancelled.

    Until then no descriptor may be closed under the thread's hands.
    """
    is_cancelled = False
    while not turn.done():
        try:
            await asyncio.wait([turn])
        except asyncio.CancelledError:
            is_cancelled = True
    try:
        if is_cancelled:
            turn.exception()  # marks it as retrieved
            raise asyncio.CancelledError
        return turn.result()
    finally:
        # Its exception has this frame in the traceback: together they would be a cycle.
        del turn


def send(descriptor: int, pieces: list[bytes], is_awaited: Callable[[], bool]) -> bytes:
    """Send to a socket; what it would not take.

    While nobody else waits for this thread, it waits for the client for a moment: most are about
    to read, and the way through the event loop costs more than the sending.

    Args:
        is_awaited: whether somebody does.

    Raises:
        ConnectionError: the client is gone.
    """
    left = [memoryview(data) for data in pieces]
    while left:
        try:
            sent = os.writev(descriptor, left)
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if left:
                left[0] = left[0][sent:]
        except BlockingIOError:
            if is_awaited() or not _is_writable(descriptor):
                break
        except OSError as error:  # also that no route leads to it, or that it never answered
            raise ConnectionResetError("client is gone") from error
    return b"".join(left)


def _is_writable(descriptor: int) -> bool:
    polled = select.poll()
    polled.register(descriptor, select.POLLOUT)
    return bool(polled.poll(_PATIENCE))
