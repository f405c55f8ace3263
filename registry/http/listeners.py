"""Accepts connections, and can pause without losing any.

The event loop's own servers accept eagerly and hand each connection to a task; closing one of them
drops connections that were accepted a moment before. Here accepting is one callback: after `pause`
returns, every connection is either in our hands or in the kernel's queue.
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
from mayfly.registry.http.accept_queue import AcceptQueue

logger = logging.getLogger("mayfly")

_MAX_ACCEPTED_AT_ONCE = 128
"""Connections accepted before other callbacks of the event loop run."""

_MAX_SETUPS_AT_ONCE = 8
"""Connections set up in one turn of the event loop, so that requests also get their turn."""

_MAX_RANKED_AT_ONCE = 32
"""Connections that are dropped or demoted for each one that is set up."""

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RECOVERY_SECONDS = 1.0
_FULL_SECONDS = 0.05
"""Pause before accepting is tried again when there are too many connections."""

_WARN_INTERVAL_SECONDS = 60.0
"""Between two warnings that clients wait to be accepted."""

_SETUP_SECONDS = 1.0
"""For connections that are accepted but not set up when the server closes."""

_SET_UP = "set the node up as mayfly node-config show says"
_CLOCKS = "its clock or this host's is wrong (date -u on both)"
_UNTRUSTED_ALERTS = {
    **dict.fromkeys(
        (
            "SSLV3_ALERT_BAD_CERTIFICATE",  # Go sends it for every reason
            "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
            "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        ),
        f"does not trust this registry's certificate; {_SET_UP}, or {_CLOCKS}",
    ),
    "TLSV1_ALERT_UNKNOWN_CA": f"does not trust this registry's certificate; {_SET_UP}",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": f"takes this registry's certificate for expired; {_CLOCKS}",
}
"""OpenSSL's names of the alerts of a client that does not accept the server's certificate, and the
texts for the log."""

_FIRST_REQUEST_SECONDS = 1.0
"""Within which a client that has connected is expected to send a request."""

Serve = Callable[[socket.socket], Awaitable[object]]
"""Takes over one connection; returns when it is set up, TLS included."""


class Listeners:
    """The listening sockets of one server.

    Args:
        sockets: bound and listening.
        serve: called with each connection.
        is_full: given the number of connections that are being set up, whether no more may be
            accepted; further ones wait in the kernel's queue.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        serve: Serve,
        is_full: Callable[[int], bool] = lambda setting_up: False,
    ) -> None:
        self.sockets = tuple(sockets)
        self._serve = serve
        self._is_full = is_full
        self._last_accepted = -math.inf
        self._last_warned = -_WARN_INTERVAL_SECONDS
        self._setting_up: set[asyncio.Task[None]] = set()
        self._waiting = AcceptQueue()
        self._next_setups: asyncio.Handle | None = None
        self._recovery: asyncio.TimerHandle | None = None

    def resume(self) -> None:
        """Accept connections, for the first time or again."""
        loop = asyncio.get_running_loop()
        for listening in self.sockets:
            listening.setblocking(False)
            loop.add_reader(listening.fileno(), self._accept, listening)

    def pause(self) -> None:
        """Stop accepting; new connections wait in the kernel's queue."""
        loop = asyncio.get_running_loop()
        if self._recovery is not None:
            self._recovery.cancel()
            self._recovery = None
        for listening in self.sockets:
            loop.remove_reader(listening.fileno())

    def expect_request(self) -> bool:
        """Whether a client connected so recently that its first request may be on its way."""
        now = asyncio.get_running_loop().time()
        return now - self._last_accepted < _FIRST_REQUEST_SECONDS

    async def close(self) -> None:
        """Stop accepting and close this process's sockets. Connections stay open."""
        if self.sockets and self.sockets[0].fileno() >= 0:
            self.pause()
        for listening in self.sockets:
            listening.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETUP_SECONDS):
                while self._setting_up or self._waiting:
                    if self._setting_up:
                        await asyncio.wait(self._setting_up)
                    else:
                        await asyncio.sleep(0)
        if self._next_setups is not None:
            self._next_setups.cancel()
        self._waiting.close()
        for task in self._setting_up:
            task.cancel()

    def _accept(self, listening: socket.socket) -> None:
        self._accept_some(listening)
        if self._next_setups is None:
            self._start_setups()

    def _start_setups(self) -> None:
        """Set up some waiting connections, and schedule the next turn if there are more."""
        waiting, is_crowded = self._waiting, len(self._waiting) > _MAX_SETUPS_AT_ONCE
        for _ in range(_MAX_SETUPS_AT_ONCE):
            if is_crowded:
                waiting.rank(_MAX_RANKED_AT_ONCE)
            if not waiting:
                break
            task = asyncio.ensure_future(self._set_up(waiting.take()))
            self._setting_up.add(task)
            task.add_done_callback(self._setting_up.discard)
        self._next_setups = None
        if waiting:
            self._next_setups = asyncio.get_running_loop().call_soon(self._start_setups)

    def _accept_some(self, listening: socket.socket) -> None:
        for _ in range(_MAX_ACCEPTED_AT_ONCE):
            if self._is_full(len(self._setting_up) + len(self._waiting)):
                self._pause_for(_FULL_SECONDS, "as many connections as may be (--max-connections)")
                return
            try:
                connection, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                self._pause_for(_RECOVERY_SECONDS, str(error.strerror))
                return
            connection.setblocking(False)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._last_accepted = asyncio.get_running_loop().time()
            address = str(peer[0]) if isinstance(peer, tuple) else ""
            self._waiting.put(address, connection)

    async def _set_up(self, connection: socket.socket) -> None:
        address = _peer(connection)
        try:
            await self._serve(connection)
        except OSError as error:  # reset by the client, or a failed TLS handshake
            _log_failure(address, error)
            connection.close()

    def _pause_for(self, seconds: float, reason: str) -> None:
        """Stop accepting for a while: no place or no descriptor is left."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._last_warned >= _WARN_INTERVAL_SECONDS:
            self._last_warned = loop.time()
            log.event(logging.WARNING, "crowded", f"clients wait to be accepted: {reason}")
        self.pause()
        self._recovery = loop.call_later(seconds, self.resume)


def _peer(connection: socket.socket) -> str:
    """Return the peer's address; "" for a Unix socket or a broken connection."""
    try:
        name = connection.getpeername()
    except OSError:
        return ""
    return canonical_address(str(name[0])) if isinstance(name, tuple) else ""


def _log_failure(address: str, error: OSError) -> None:
    """Log why a connection could not be set up, at a level an operator sees if they can mend it."""
    reason = getattr(error, "reason", None)  # of an ssl.SSLError
    if reason in _UNTRUSTED_ALERTS:
        log.event(
            logging.WARNING,
            "untrusted",
            f"{address} {_UNTRUSTED_ALERTS[reason]}",
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
