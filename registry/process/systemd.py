"""systemd: take over its sockets, send it notifications; without its library.

Sources: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).

No connection is refused at the end. The listening socket is systemd's and stays open when this
process closes its copy, so an idle exit takes these steps (`http.listeners`, `serving`):

1. Stop accepting, in the same turn of the event loop in which "idle" is checked once more. A
   client that connects from here on waits in the kernel's queue.
2. Check again: a client may have connected, or sent a request on an open connection, between the
   idle timer and step 1. Then accept again and keep serving.
3. Close the remaining connections (between requests, as any server does) and exit.
4. systemd finds the queue not empty and starts the service again, which accepts the client.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

from mayfly.registry.clock import Clock
from mayfly.registry.settings.errors import ConfigError

_FIRST = 3
_SOCKET_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_NOTIFY_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True)
class InheritedSocket:
    """A listening socket that systemd made; ``name`` is its FileDescriptorName, "" without."""

    socket: socket.socket
    name: str


def take_sockets(environment: MutableMapping[str, str]) -> list[InheritedSocket]:
    """Take over the sockets passed to this process; empty if there are none.

    The variables are removed and the descriptors closed on exec, so that the command of
    `mayfly run` does not take the sockets over.

    Args:
        environment: of the process.

    Raises:
        ConfigError: a descriptor is not a listening stream socket.
    """
    given = {name: environment.pop(name, "") for name in _SOCKET_VARIABLES}
    if given["LISTEN_PID"] != str(os.getpid()):
        return []
    try:
        count = int(given["LISTEN_FDS"])
    except ValueError:
        raise ConfigError(f"LISTEN_FDS={given['LISTEN_FDS'][:20]!r} is not a number") from None
    names = given["LISTEN_FDNAMES"].split(":") if given["LISTEN_FDNAMES"] else []
    names += [""] * (count - len(names))
    return [InheritedSocket(_listening(_FIRST + i), names[i]) for i in range(count)]


def _listening(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        taken = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(
            f"descriptor {descriptor}, passed by systemd, is not a socket: {error.strerror}"
        ) from None
    accepts = taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if taken.type != socket.SOCK_STREAM or not accepts:
        taken.detach()
        raise ConfigError(
            f"descriptor {descriptor}, passed by systemd, does not listen; "
            "the socket unit needs ListenStream= and Accept=no"
        )
    taken.setblocking(False)
    return taken


class Notifier:
    """Sends notifications to the service manager; does nothing without one.

    Args:
        address: of its datagram socket: a path, or an abstract name after ``@``; "" for none.
        watchdog: seconds within which it expects a notification; None without a watchdog.
    """

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog = watchdog

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> Notifier:
        """Make one from the environment of the process, and remove its variables from there."""
        given = {name: environment.pop(name, "") for name in _NOTIFY_VARIABLES}
        watchdog = None
        if given["WATCHDOG_PID"] in ("", str(os.getpid())):
            with contextlib.suppress(ValueError):
                watchdog = int(given["WATCHDOG_USEC"]) / 1e6
        return cls(given["NOTIFY_SOCKET"], watchdog or None)

    @property
    def active(self) -> bool:
        """Whether there is a service manager."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Report that the port answers."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Report one line for ``systemctl status``."""
        self._send(f"STATUS={status}")

    def stopping(self, status: str, seconds: float) -> None:
        """Report that the process ends within ``seconds``."""
        # Sent before the manager's own TimeoutStopSec ends, as sd_notify(3) demands.
        self._send("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    async def watch(self, clock: Clock) -> None:
        """Notify the watchdog at twice the required rate, as long as the event loop runs."""
        while self._watchdog is not None and self.active:
            self._send("WATCHDOG=1")
            await clock.sleep(self._watchdog / 2)

    def _send(self, *lines: str) -> None:
        if not self.active:
            return
        # Without an answer from the manager the registry serves on.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out,
        ):
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), self._address)
