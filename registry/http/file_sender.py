"""Sends files to all clients of a server, plain and TLS alike, on a few threads.

    event loop        send ──small──► the first turn, here
                       └──► arm ─┐                             ┌─► ended ──► send returns
    kernel (epoll)               └─► writable ─┐        arm ◄──┤ socket full, or turn over
    worker threads                             └─► a turn ─────┘

The threads, as many as there are processors but at most eight, wait together for any socket with
room. The one that is woken sends until the socket is full or its turn is over, and arms the socket
again: behind all others that have room, so that everybody gets a turn, and a client that does not
read holds no thread. The event loop only begins and ends transfers. Threads end by themselves when
there is nothing left to send.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Protocol

from mayfly.registry.http.outlets import PIECE, Outlet, PlainOutlet, SealedMemory, TLSOutlet
from mayfly.registry.http.tls_channel import TLSChannel
from mayfly.storage.text import counted_of

TURN_SECONDS = 0.01
"""After which a transfer gives its thread to another."""

_MAX_THREADS = 8

_TOTAL_SEALED = 16 * 1024 * 1024
"""Bytes; see `SealedMemory`."""

_IDLE_SECONDS = 1.0
"""After which a thread ends that has nothing to do."""

_COUNT_SECONDS = 0.05
"""Interval at which bytes that threads sent are counted on the event loop."""

_CHECK_SECONDS = 1.0
"""Between two checks whether the connection of a transfer was closed at this end."""

_ARMED = select.EPOLLOUT | select.EPOLLONESHOT


class Watcher(Protocol):
    """Follows the sending of a file."""

    def count(self, sent: int) -> None:
        """Count more bytes as given to the kernel; called by the event loop."""

    def ahead(self, end: int) -> None:
        """Note how many bytes of the part may have been sent soon; called by any thread."""


class _Transfer:
    """One file on its way. Between `begin` and `end` it belongs to a worker thread."""

    def __init__(
        self,
        outlet: Outlet,
        offset: int,
        count: int,
        watcher: Watcher | None,
        is_closing: Callable[[], bool],
    ) -> None:
        self._outlet = outlet
        self._offset = offset
        self._count = count
        self._watcher = watcher
        self._counted = 0
        self._is_closing = is_closing
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failure: BaseException | None = None
        """Without a traceback, which would be a cycle that keeps the connection's memory."""
        self.sent = 0
        self.is_running = False
        self.is_stopped = False
        """Whether no turn may begin any more."""

    def turn(self) -> bool:
        """Send until the socket is full or the turn is over; return whether the end is reached."""
        try:
            return self._turn()
        except BlockingIOError:
            self._expect(0)
            return False
        except ConnectionError:
            self.failure = ConnectionResetError("client is gone")
        except OSError as error:
            self.failure = OSError(error.errno, error.strerror)
        except BaseException as error:
            self.failure = error.with_traceback(None)
        return True

    def _turn(self) -> bool:
        end = time.monotonic() + TURN_SECONDS
        last = self.sent + self._outlet.turn_bytes
        while self.sent < self._count:
            if self._is_closing():
                raise ConnectionResetError
            asked = min(self._count - self.sent, PIECE)
            self._expect(asked)
            done = self._outlet.send(self._offset + self.sent, asked)
            if not done:
                break
            self.sent += done
            if self.sent < self._count and (self.sent >= last or time.monotonic() >= end):
                self._expect(0)
                return False
        self._outlet.flush()
        return True

    def _expect(self, more: int) -> None:
        if self._watcher is not None:
            self._watcher.ahead(self.sent + more)

    def report(self) -> None:
        """On the event loop: count the bytes sent since the last report."""
        more = self.sent - self._counted
        self._counted += more
        if more and self._watcher is not None:
            self._watcher.count(more)

    def check(self) -> None:
        """Raise the error that ended the transfer, if there is one."""
        failure, self.failure = self.failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback has this frame
        if self.sent < self._count:
            # The length is promised already; only a cut tells the client that it is not met.
            ended = counted_of(self.sent, self._count, "byte")
            raise ConnectionResetError(f"file ended after {ended}")


class FileSender:
    """The threads of one server, and the files they send.

    Args:
        threads: at most; by default as many as there are processors, at most eight.
        total_sealed: see `SealedMemory`.

    Attributes:
        sealed: the memory of encrypted data.
    """

    def __init__(
        self,
        threads: int | None = None,
        total_sealed: int = _TOTAL_SEALED,
    ) -> None:
        self.threads = threads or min(os.cpu_count() or 1, _MAX_THREADS)
        self.sealed = SealedMemory(total_sealed, self.threads)
        self._epoll = select.epoll()
        self._lock = threading.Lock()
        """Held for all below, which the event loop and the threads change."""
        self._transfers: dict[int, _Transfer] = {}
        """By the descriptor of the socket."""
        self._workers = 0
        self._uncounted: list[_Transfer] = []

    @property
    def active(self) -> int:
        """The number of transfers."""
        return len(self._transfers)

    @property
    def running(self) -> int:
        """The number of turns that run now."""
        with self._lock:
            return sum(one.is_running for one in self._transfers.values())

    async def send(
        self,
        transport: asyncio.Transport,
        descriptor: int,
        file: IO[bytes],
        offset: int,
        count: int,
        watcher: Watcher | None = None,
    ) -> None:
        """Send part of a file; if it fails the connection is cut.

        While threads send nothing is received.

        Args:
            transport: of the connection, plain or TLS; data that it has not sent yet is sent first.
            descriptor: a duplicate of its socket's, which stays open until this returns.

        Raises:
            ConnectionError: the client is gone, or the file ended early.
            OSError: the file cannot be read.
        """
        channel = transport.get_extra_info("tls_channel")
        outlet: Outlet
        if channel is None:
            outlet = PlainOutlet(descriptor, file.fileno())
        else:
            self.sealed.claim_large_writes(channel)
            outlet = TLSOutlet(descriptor, file.fileno(), channel, self.sealed)
        try:
            await _sent_before(transport, descriptor)
            transfer = _Transfer(outlet, offset, count, watcher, transport.is_closing)
            try:
                if count > outlet.small or not transfer.turn():
                    with _lent(transport, channel):
                        await self._send(transport, descriptor, transfer)
            finally:
                transfer.report()
            transfer.check()
        except BaseException:
            transport.abort()  # also: it may have stopped in the middle of a TLS record
            raise
        finally:
            outlet.close()

    async def _send(
        self, transport: asyncio.Transport, descriptor: int, transfer: _Transfer
    ) -> None:
        """Have the threads send; return when none of them uses the transfer any more."""
        is_cancelled = False
        self._start(descriptor, transfer)
        while not transfer.ended.done():
            try:
                await asyncio.wait([transfer.ended], timeout=_CHECK_SECONDS)
            except asyncio.CancelledError:
                is_cancelled = True
            if is_cancelled or transport.is_closing():
                self._stop(descriptor, transfer)
        self._epoll.unregister(descriptor)
        if is_cancelled:
            raise asyncio.CancelledError
        if transfer.is_stopped:
            raise ConnectionResetError("client is gone")

    def _start(self, descriptor: int, transfer: _Transfer) -> None:
        with self._lock:
            if self._workers < min(self.threads, len(self._transfers) + 1):
                try:
                    threading.Thread(target=self._work, name="files", daemon=True).start()
                except RuntimeError:
                    if not self._workers:
                        raise
                    # The host allows no more of them; those that run also send this file.
                else:
                    self._workers += 1
            self._epoll.register(descriptor, _ARMED)
            self._transfers[descriptor] = transfer

    def _stop(self, descriptor: int, transfer: _Transfer) -> None:
        """Let no further turn begin; a turn that runs is not waited for."""
        with self._lock:
            transfer.is_stopped = True
            if not transfer.is_running and self._transfers.pop(descriptor, None) is not None:
                transfer.ended.set_result(None)

    def _report(self) -> None:
        with self._lock:
            uncounted, self._uncounted = self._uncounted, []
        for transfer in uncounted:
            transfer.report()

    # In the worker threads

    def _work(self) -> None:
        while self._is_needed(events := self._epoll.poll(_IDLE_SECONDS, 1)):
            for descriptor, _ in events:
                self._take_turn(descriptor)

    def _is_needed(self, events: list[tuple[int, int]]) -> bool:
        """Whether this thread is to continue; otherwise it counts as ended."""
        with self._lock:
            needed = bool(events or self._transfers)
            self._workers -= not needed
            return needed

    def _take_turn(self, descriptor: int) -> None:
        with self._lock:
            transfer = self._transfers.get(descriptor)
            # The kernel may report a socket that ended a moment ago, and whose number is in use
            # again by another one.
            if transfer is None or transfer.is_running:
                return
            transfer.is_running = True
        complete = transfer.turn()
        loop = transfer.ended.get_loop()
        is_first = False
        with self._lock:
            transfer.is_running = False
            if complete or transfer.is_stopped:
                complete = True
                del self._transfers[descriptor]
            else:
                self._epoll.modify(descriptor, _ARMED)
                is_first = not self._uncounted
                self._uncounted.append(transfer)
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            if complete:
                loop.call_soon_threadsafe(transfer.ended.set_result, None)
            elif is_first:
                loop.call_soon_threadsafe(loop.call_later, _COUNT_SECONDS, self._report)


@contextlib.contextmanager
def _lent(transport: asyncio.Transport, channel: TLSChannel | None) -> Iterator[None]:
    """While threads send: nothing is received, and a TLS channel is theirs."""
    was_reading = transport.is_reading()
    transport.pause_reading()
    if channel is not None:
        channel.is_lent = True
    try:
        yield
    finally:
        if channel is not None:
            channel.is_lent = False
        if was_reading and not transport.is_closing():
            transport.resume_reading()


async def _sent_before(transport: asyncio.Transport, descriptor: int) -> None:
    """Wait until the kernel has everything that was written to the transport.

    Raises:
        ConnectionResetError: the client is gone.
    """
    loop = asyncio.get_running_loop()
    while not transport.is_closing():
        if not transport.get_write_buffer_size():
            return
        writable = asyncio.Event()
        loop.add_writer(descriptor, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(descriptor)
    raise ConnectionResetError("client is gone")
