"""The sockets that a registry answers on."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from registry.config import ConfigError
from registry.readers import Address

BACKLOG = 1024
"""Connections that may wait to be accepted: a whole fleet may come at once."""


@contextmanager
def listening(addresses: Sequence[Address]) -> Iterator[list[socket.socket]]:
    """Bound sockets, one for each address, closed at the end.

    Raises:
        ConfigError: an address cannot be bound.
    """
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            sockets.append(_bind(address))  # noqa: PERF401 - those bound are closed if one fails
        yield sockets
    finally:
        for bound in sockets:
            bound.close()


def address_of(bound: socket.socket) -> Address:
    """Where a socket listens; the port is the real one.

    Raises:
        ConfigError: it is no TCP socket.
    """
    if bound.family not in (socket.AF_INET, socket.AF_INET6):
        raise ConfigError("the socket passed by systemd is not a TCP socket: use ListenStream=PORT")
    host, port = bound.getsockname()[:2]
    return Address(host, port)


def _bind(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        found = socket.getaddrinfo(
            address.host, address.port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return socket.create_server(found[0][4][:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise ConfigError(
            f"cannot listen on {_shown(address)}: {reason}; choose another with --listen"
        ) from None


def _shown(address: Address) -> str:
    """An address on one line, whatever it is made of."""
    return str(address).encode("unicode_escape").decode("ascii")
