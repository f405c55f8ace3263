"""Sends part of a file to a plain socket, by sendfile(2).

The event loop's own sendfile registers with the selector anew for each piece; here it does so once
for a file. And one call of sendfile(2) lasts for as long as the client takes data, even a whole
file from a slow disk; here a call gets as many bytes as can be sent in one turn of the event loop,
judging by how long the last call took.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable
from typing import IO

from aiohttp.base_protocol import BaseProtocol

_TURN_SECONDS = 0.01
"""That one call may take, since other connections wait meanwhile."""
_FIRST_PIECE = 1024 * 1024
_MIN_PIECE, _MAX_PIECE = 256 * 1024, 16 * 1024 * 1024
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
    """Send part of a file, and return the number of bytes sent: fewer if the file ends early.

    Reading is paused meanwhile.

    Args:
        progress: called with the number of bytes of each step.
        release: given a duplicate of the socket's descriptor at the end, which it has to close.
        ahead: called before each step with the number of bytes that it may send, or with 0 if it
            sent none.

    Raises:
        ConnectionError: the client is gone.
        OSError: the file cannot be read.
    """
    was_reading = transport.is_reading()
    transport.pause_reading()
    transport.set_write_buffer_limits(high=0)
    # The loop allows no writer on its transport's descriptor; and closing the connection frees
    # that descriptor for another file.
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
    finished: asyncio.Future[int] = loop.create_future()
    """Its result is an errno, 0 for success. An exception would be a cycle: future, traceback,
    frame, future."""
    sent, piece = 0, _FIRST_PIECE

    def send() -> None:
        nonlocal sent, piece
        if transport.is_closing():
            finish(errno.ECONNRESET)
            return
        ahead(min(count - sent, piece))
        try:
            began = time.perf_counter()
            done = os.sendfile(descriptor, source, offset + sent, min(count - sent, piece))
            took = time.perf_counter() - began
        except BlockingIOError:
            ahead(0)
            return
        except OSError as error:
            finish(error.errno or errno.ECONNRESET)
            return
        sent += done
        progress(done)
        piece = max(_MIN_PIECE, min(_MAX_PIECE, int(done * _TURN_SECONDS / max(took, 1e-9))))
        if not done or sent == count:
            finish(0)

    def finish(result: int) -> None:
        loop.remove_writer(descriptor)
        if not finished.done():  # the caller may have been cancelled
            finished.set_result(result)

    loop.add_writer(descriptor, send)
    try:
        failure = await finished
    finally:
        loop.remove_writer(descriptor)
    if failure == errno.EIO:
        raise OSError(failure, os.strerror(failure))
    if failure:
        # Other errors are the network's: a reset, no route to the client, or a timeout.
        raise ConnectionResetError("client is gone")
    return sent
