"""Accepting connections, with a pause that loses none.

The event loop's own servers accept eagerly and hand each connection to a task; closing one of them
drops connections that were accepted a moment before. Here accepting is one callback. After `pause`
returns, every connection is either ours, and was counted as activity, or in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

from registry.lifetime.activity import Activity

logger = logging.getLogger("mayfly")

_AT_ONCE = 128
"""Connections accepted before others of the loop get their turn."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RECOVERY_SECONDS = 1.0
_SET_UP_SECONDS = 1.0
"""For connections whose TLS handshake is under way when the server closes."""

Serve = Callable[[socket.socket], Awaitable[object]]
"""Takes over one connection; comes back when it is set up, TLS included."""


class Listeners:
    """Listening sockets of one server.

    Args:
        sockets: bound and listening.
        serve: given each connection.
        activity: told of each.
    """

    def __init__(self, sockets: Sequence[socket.socket], serve: Serve, activity: Activity) -> None:
        self.sockets = tuple(sockets)
        self._serve = serve
        self._activity = activity
        self._setting_up: set[asyncio.Task[None]] = set()
        self._accepting = False
        self._recovery: asyncio.TimerHandle | None = None

    def resume(self) -> None:
        """Accept connections, for the first time or again."""
        loop = asyncio.get_running_loop()
        self._accepting = True
        for listening in self.sockets:
            listening.setblocking(False)
            loop.add_reader(listening.fileno(), self._accept, listening)

    def pause(self) -> None:
        """Accept no more; whoever connects waits in the kernel's queue."""
        loop = asyncio.get_running_loop()
        self._accepting = False
        if self._recovery is not None:
            self._recovery.cancel()
            self._recovery = None
        for listening in self.sockets:
            loop.remove_reader(listening.fileno())

    async def close(self) -> None:
        """Stop, and close our copies of the sockets. Connections live on."""
        if self.sockets and self.sockets[0].fileno() >= 0:
            self.pause()
        for listening in self.sockets:
            listening.close()
        if self._setting_up:
            _, late = await asyncio.wait(self._setting_up, timeout=_SET_UP_SECONDS)
            for task in late:
                task.cancel()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._recover(error)
                return
            connection.setblocking(False)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._activity.connected()
            task = asyncio.ensure_future(self._set_up(connection))
            self._setting_up.add(task)
            task.add_done_callback(self._setting_up.discard)

    async def _set_up(self, connection: socket.socket) -> None:
        try:
            await self._serve(connection)
        except OSError as error:  # a reset, or no TLS where TLS is spoken
            logger.debug("connection was not set up: %s", error)
            connection.close()

    def _recover(self, error: OSError) -> None:
        """No more descriptors: let clients queue until some connections have ended."""
        logger.warning("accepting no connections for a moment: %s", error.strerror)
        self.pause()
        loop = asyncio.get_running_loop()
        self._recovery = loop.call_later(_RECOVERY_SECONDS, self.resume)
