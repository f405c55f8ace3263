"""Requests that cannot be answered with success: the base of these errors, and those of bodies.

`registry.api.errors` has the table that gives each error its status and OCI code.
"""

from __future__ import annotations


class RequestError(Exception):
    """A request that is refused whatever the store holds; see `storage.errors` for the rest.

    Args:
        message: for the client, one line.
        detail: JSON for the client; a list makes one OCI error of each entry.
    """

    def __init__(self, message: str, detail: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class RangeInvalid(RequestError):
    """A range that lies outside the content; ``size`` is the content's, in bytes."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class BodyIncomplete(RequestError):
    """The request's body ended before its announced end."""
