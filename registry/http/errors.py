"""Errors of requests' bodies and of ranges; `registry.api.errors` maps them to answers."""

from __future__ import annotations


class WireError(Exception):
    """Base of the errors that this room raises for a request.

    Attributes:
        message: for the client.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RangeInvalid(WireError):
    """A range that lies outside the content, or cannot be read.

    Attributes:
        size: of the content, in bytes.
    """

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class BodyIncomplete(WireError):
    """A request's body that ended before its announced end, or is not valid HTTP."""
