"""Requests that access refuses."""

from __future__ import annotations

from mayfly.registry.http.errors import RequestError


class Unauthorized(RequestError):
    """The caller has to prove who they are, or prove more; ``challenge`` says how."""

    def __init__(self, message: str, challenge: str, detail: object = None) -> None:
        super().__init__(message, detail)
        self.challenge = challenge


class AccessDenied(RequestError):
    """A known caller may not do this."""
