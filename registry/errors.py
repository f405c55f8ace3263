"""Errors that several rooms raise or handle. This module imports exit codes only."""

from __future__ import annotations

from mayfly.registry.exit_codes import Exit


class LifetimeError(Exception):
    """Ends a `mayfly` command with a message for its user.

    Args:
        message: the fault, its place, and the remedy, on one line.
        exit_code: of the process.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class NotRunning(LifetimeError):
    """No Mayfly answers there."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.NOT_RUNNING)


class Draining(Exception):
    """A request would begin something new while the registry drains: 503, ``UNAVAILABLE``."""

    def __init__(self) -> None:
        self.message = "the registry is shutting down and takes no new pulls or pushes"
        super().__init__(self.message)


class UpstreamUnavailable(Exception):
    """A registry that this one mirrors did not give the requested content: 502, ``UNAVAILABLE``.

    Args:
        host: of the upstream. The log has the reason, which may hold internal details.
    """

    def __init__(self, host: str) -> None:
        self.message = f"{host} cannot be asked for it now; the registry's log has the reason"
        super().__init__(self.message)
