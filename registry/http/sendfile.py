"""Part of a file to a plain socket, by sendfile(2).

The event loop's own asks the kernel anew, for each piece, to be told when there is room for the
next; here it is asked once for a file. And a call goes on for as long as the client takes what
comes, be it all of a file that a slow disk has to read: here it gets so much as can be sent in one
turn of the loop, going by how the last went.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable
from typing import IO

from aiohttp.base_protocol import BaseProtocol

_TURN = 0.01
"""Seconds that one call may take, for others wait meanwhile."""
_FIRST = 1024 * 1024
_LEAST, _MOST = 256 * 1024, 16 * 1024 * 1024
"""Bytes of a call, however slow or fast the last one was: the next part may not be in memory."""


async def sendfile(
    protocol: BaseProtocol,
    transport: asyncio.Transport,
    file: IO[bytes],
    offset: int,
    count: int,
    progress: Callable[[int], None] = lambda sent: None,
    release: Callable[[int], None] = os.close,
    ahead: Callable[[int], None] = lambda count: None,
) -> int:
    """Send part of a file; the number of bytes that there were, ``count`` at most.

    Nothing is received meanwhile: what a client sends is for later.

    Args:
        progress: told of the bytes of each step, also of a transfer that is cut.
        release: given the duplicate of the socket's descriptor that the sending took.
        ahead: told, before each step, of the bytes that it may send; 0 if it sent none.

    Raises:
        ConnectionError: the client is gone.
        OSError: the file cannot be read.
    """
    was_reading = transport.is_reading()
    transport.pause_reading()
    transport.set_write_buffer_limits(high=0)
    # Closing the connection frees its descriptor for another, and the loop guards it: ours is one
    # of its own.
    descriptor = os.dup(transport.get_extra_info("socket").fileno())
    try:
        await protocol._drain_helper()  # the response's head goes first
        return await _send(transport, descriptor, file.fileno(), offset, count, progress, ahead)
    finally:
        release(descriptor)
        if not transport.is_closing():
            transport.set_write_buffer_limits()
            if was_reading:
                transport.resume_reading()


async def _send(
    transport: asyncio.Transport,
    descriptor: int,
    source: int,
    offset: int,
    count: int,
    progress: Callable[[int], None],
    ahead: Callable[[int], None],
) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    sent, most = 0, _FIRST

    def send() -> None:
        nonlocal sent, most
        try:
            if transport.is_closing():
                raise ConnectionResetError("client is gone")
            ahead(min(count - sent, most))
            began = time.perf_counter()
            done = os.sendfile(descriptor, source, offset + sent, min(count - sent, most))
            took = time.perf_counter() - began
        except BlockingIOError:
            ahead(0)
            return
        except OSError as error:
            loop.remove_writer(descriptor)
            ended.set_exception(error)
            return
        sent += done
        progress(done)
        most = max(_LEAST, min(_MOST, int(done * _TURN / max(took, 1e-9))))
        if not done or sent == count:
            loop.remove_writer(descriptor)
            ended.set_result(None)

    loop.add_writer(descriptor, send)
    try:
        await ended
    except OSError as error:
        if error.errno == errno.EIO:
            raise
        # Also that no route leads to it, or that it never answered.
        raise ConnectionResetError("client is gone") from error
    finally:
        loop.remove_writer(descriptor)
    return sent
