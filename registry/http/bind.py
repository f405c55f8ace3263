"""Binding the sockets that a registry listens on."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.settings.readers import Address

BACKLOG = 1024
"""Connections that the kernel queues until they are accepted: a whole fleet may come at once."""


@contextmanager
def bound_sockets(
    addresses: Sequence[Address], option: str = "--listen"
) -> Iterator[list[socket.socket]]:
    """Listening sockets, one for each address, which are closed at the end.

    Args:
        addresses: of this host.
        option: that sets them.

    Raises:
        ConfigError: an address cannot be bound.
    """
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            sockets.append(_bind(address, option))  # noqa: PERF401 - those bound are closed if one fails
        yield sockets
    finally:
        for bound in sockets:
            bound.close()


def address_of(bound: socket.socket) -> Address:
    """Return the address that a socket listens on, with its real port.

    Raises:
        ConfigError: it is not a TCP socket.
    """
    if bound.family not in (socket.AF_INET, socket.AF_INET6):
        raise ConfigError("the socket passed by systemd is not a TCP socket: use ListenStream=PORT")
    host, port = bound.getsockname()[:2]
    return Address(host, port)


def _bind(address: Address, option: str) -> socket.socket:
    try:
        if not address.host:
            return _bind_any(address.port)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        found = socket.getaddrinfo(
            address.host, address.port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return socket.create_server(found[0][4][:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen on {_printable(address)}: {_reason(error)}; "
            f"choose another with {option}"
        ) from None


def _bind_any(port: int) -> socket.socket:
    """Bind one socket for IPv4 and IPv6; for IPv4 alone on a host without IPv6."""
    try:
        return socket.create_server(
            ("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
        )
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
    except ValueError:  # a kernel built without IPv6
        pass
    return socket.create_server(("0.0.0.0", port), backlog=BACKLOG)


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "not a host name"
    if isinstance(error, socket.gaierror) or error.errno is None:
        return str(error.strerror or error)
    # create_server appends the address to its message, in Python's notation.
    return os.strerror(error.errno)


def _printable(address: Address) -> str:
    """An address on one line, whatever characters it has."""
    return str(address).encode("unicode_escape").decode("ascii")
