"""The limit on open files: raised for the server, divided, restored for the command.

Each connection may need three descriptors: its socket, the file it sends, and a duplicate of the
socket (`registry.http.receipts`). Worker threads, policy files and the control socket need some
whatever the clients do. So connections never take all of them: clients that are served continue
while others wait in the kernel's queue.
"""

from __future__ import annotations

import resource

AT_START = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""The soft limit at the start of this process. The command gets it back: programs that use
select(2) break with descriptors over 1023."""

RESERVED = 128
"""Descriptors for the rest of the server."""

MIN_CONNECTIONS = 16
"""Connections that are served under any limit."""

_PER_CONNECTION = 3


def raise_limit() -> None:
    """Raise the soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def max_connections() -> int:
    """Return how many connections the limit allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(MIN_CONNECTIONS, (soft - RESERVED) // _PER_CONNECTION)
