"""The limit on open files: raised as far as we may, shared out, and given back to the command.

Each connection may need three descriptors: its socket, the file it sends, and a duplicate of the
socket (`sendfile`, then `receipts`). Worker threads, policy files and the control socket need some
whatever the clients do. So connections are never let take
all of them: a client that is served goes on while others wait in the kernel's queue.
"""

from __future__ import annotations

import resource

AT_START = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""The soft limit this process was started with. A command we start gets it back: programs that use
select(2) break with descriptors over 1023."""

KEPT = 128
"""Descriptors that connections leave to the rest of the server."""

FEWEST = 16
"""Connections that are served under any limit."""

_PER_CONNECTION = 3


def raise_limit() -> None:
    """Raise the soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections() -> int:
    """How many connections the limit leaves room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(FEWEST, (soft - KEPT) // _PER_CONNECTION)
