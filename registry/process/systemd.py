"""What systemd says and wants to hear: sockets in, notifications out. Both without its library.

Sources: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).

Nothing is refused on the way out. The listening socket is systemd's and stays open when we close
our copy of it, so an idle exit goes like this (`listen.Listeners`, `life.Life`):

1. Stop accepting, in the same step of the event loop in which "idle" is looked at once more. A
   client that connects from here on waits in the kernel's queue, which nobody empties.
2. Look again: a client may have connected, or sent a request on an open connection, between the
   idle timer and step 1. Then accept again and go on as if nothing had been.
3. Close what is left (keep-alive connections between requests, as any server does) and exit.
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
class Inherited:
    """A listening socket that systemd made; ``name`` is its FileDescriptorName, "" without."""

    socket: socket.socket
    name: str


def take_sockets(environment: MutableMapping[str, str]) -> list[Inherited]:
    """Take over the sockets passed to this process, none if there are none.

    The variables are removed and the descriptors closed on exec: a command we start must not take
    them for its own.

    Args:
        environment: of the process.

    Raises:
        ConfigError: what was passed is not a listening stream socket.
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
    return [Inherited(_listening(_FIRST + i), names[i]) for i in range(count)]


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
    """Tells the service manager how we are; does nothing where there is none.

    Args:
        address: of its datagram socket: a path, or an abstract name after ``@``; "" for none.
        watchdog: seconds within which it wants a sign of life, None if it wants none.
    """

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog = watchdog

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> Notifier:
        """Make one from the process's environment, and remove from there what is for us alone."""
        given = {name: environment.pop(name, "") for name in _NOTIFY_VARIABLES}
        watchdog = None
        if given["WATCHDOG_PID"] in ("", str(os.getpid())):
            with contextlib.suppress(ValueError):
                watchdog = int(given["WATCHDOG_USEC"]) / 1e6
        return cls(given["NOTIFY_SOCKET"], watchdog or None)

    @property
    def active(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """The port answers."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={status}")

    def stopping(self, status: str, seconds: float) -> None:
        """We are on our way out and will be gone in ``seconds`` at most."""
        # Asked for before the manager's own TimeoutStopSec ends, as sd_notify(3) demands.
        self._send("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    async def watch(self, clock: Clock) -> None:
        """Send a sign of life at twice the rate wanted, for as long as the event loop turns."""
        while self._watchdog is not None and self.active:
            self._send("WATCHDOG=1")
            await clock.sleep(self._watchdog / 2)

    def _send(self, *lines: str) -> None:
        if not self.active:
            return
        # A manager that is gone or busy is no reason to stop serving.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out,
        ):
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), self._address)
