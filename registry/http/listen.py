"""Accepting connections, with a pause that loses none.

The event loop's own servers accept eagerly and hand each connection to a task; closing one of them
drops connections that were accepted a moment before. Here accepting is one callback. After `pause`
returns, every connection is either ours or in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Sequence

from mayfly.registry import log
from mayfly.registry.address import canonical_address
from mayfly.registry.http.accepted import AcceptedQueue

logger = logging.getLogger("mayfly")

_AT_ONCE = 128
"""Connections accepted before others of the loop get their turn."""

_SET_UP_AT_ONCE = 8
"""Connections set up in one turn of the loop; others follow when requests had their turn."""

_RANKED_AT_ONCE = 32
"""Connections that are put off for one that is set up."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RECOVERY_SECONDS = 1.0
_CROWDED_SECONDS = 0.05
"""Between two looks whether one of too many connections has ended."""

_SAY_EVERY = 60.0
"""Seconds for which a trouble is not told again."""

_SET_UP_SECONDS = 1.0
"""For connections that are accepted and not set up when the server closes."""

_UNTRUSTED = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)
"""The alerts of a client that does not accept our certificate, as OpenSSL names them."""

_FIRST_REQUEST_SECONDS = 1.0
"""Within which a client that has connected is expected to ask for something."""

Serve = Callable[[socket.socket], Awaitable[object]]
"""Takes over one connection; comes back when it is set up, TLS included."""


class Listeners:
    """Listening sockets of one server.

    Args:
        sockets: bound and listening.
        serve: given each connection.
        is_full: whether there are as many connections as may be, given how many are being set up;
            more wait in the kernel's queue then.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        serve: Serve,
        is_full: Callable[[int], bool] = lambda setting_up: False,
    ) -> None:
        self.sockets = tuple(sockets)
        self._serve = serve
        self._accepted = -math.inf
        self._is_full = is_full
        self._said = -_SAY_EVERY
        self._setting_up: set[asyncio.Task[None]] = set()
        self._waiting = AcceptedQueue()
        self._starting: asyncio.Handle | None = None
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

    def expect_request(self) -> bool:
        """Whether a client connected so recently that its first request may be on its way."""
        return asyncio.get_running_loop().time() - self._accepted < _FIRST_REQUEST_SECONDS

    async def close(self) -> None:
        """Stop, and close our copies of the sockets. Connections live on."""
        if self.sockets and self.sockets[0].fileno() >= 0:
            self.pause()
        for listening in self.sockets:
            listening.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SET_UP_SECONDS):
                while self._setting_up or self._waiting:
                    if self._setting_up:
                        await asyncio.wait(self._setting_up)
                    else:
                        await asyncio.sleep(0)
        if self._starting is not None:
            self._starting.cancel()
        self._waiting.close()
        for task in self._setting_up:
            task.cancel()

    def _accept(self, listening: socket.socket) -> None:
        self._accept_some(listening)
        if self._starting is None:
            self._start_some()

    def _start_some(self) -> None:
        """Set up connections that wait, and go on in the next turn if there are more."""
        waiting, crowded = self._waiting, len(self._waiting) > _SET_UP_AT_ONCE
        for _ in range(_SET_UP_AT_ONCE):
            if crowded:
                waiting.rank(_RANKED_AT_ONCE)
            if not waiting:
                break
            task = asyncio.ensure_future(self._set_up(waiting.take()))
            self._setting_up.add(task)
            task.add_done_callback(self._setting_up.discard)
        self._starting = None
        if waiting:
            self._starting = asyncio.get_running_loop().call_soon(self._start_some)

    def _accept_some(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if self._is_full(len(self._setting_up) + len(self._waiting)):
                self._wait(_CROWDED_SECONDS, "as many connections as may be (--max-connections)")
                return
            try:
                connection, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._wait(_RECOVERY_SECONDS, str(error.strerror))
                return
            connection.setblocking(False)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._accepted = asyncio.get_running_loop().time()
            address = str(peer[0]) if isinstance(peer, tuple) else ""
            self._waiting.put(address, connection)

    async def _set_up(self, connection: socket.socket) -> None:
        address = _peer(connection)
        try:
            await self._serve(connection)
        except OSError as error:  # a reset, or no TLS where TLS is spoken
            _tell_failed(address, error)
            connection.close()

    def _wait(self, seconds: float, reason: str) -> None:
        """No place or no descriptor left: let clients queue until some connections have ended."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._said >= _SAY_EVERY:
            self._said = loop.time()
            log.event(logging.WARNING, "crowded", f"clients wait to be accepted: {reason}")
        self.pause()
        self._recovery = loop.call_later(seconds, self.resume)


def _peer(connection: socket.socket) -> str:
    """The peer's address, "" for a Unix socket or a broken connection."""
    try:
        name = connection.getpeername()
    except OSError:
        return ""
    return canonical_address(str(name[0])) if isinstance(name, tuple) else ""


def _tell_failed(address: str, error: OSError) -> None:
    """Log why a connection could not be set up, if an operator can do something about it."""
    reason = getattr(error, "reason", None)  # of an ssl.SSLError
    if reason in _UNTRUSTED:
        log.event(
            logging.WARNING,
            "untrusted",
            f"{address} does not trust this registry's certificate; set the node up as "
            "mayfly node-config show says",
            same=address,
            address=address,
        )
    elif reason == "HTTP_REQUEST":
        log.event(
            logging.WARNING,
            "plain_http",
            f"{address} speaks plain HTTP, but TLS is needed here; use https://",
            same=address,
            address=address,
        )
    elif reason is not None:
        text = f"TLS handshake with {address} failed: {reason.lower().replace('_', ' ')}"
        log.event(logging.INFO, "handshake_failed", text, same=address, address=address)
    else:
        logger.debug("connection from %s was not set up: %s", address, error)
