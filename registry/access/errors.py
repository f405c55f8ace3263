"""Requests that access refuses, and files that it cannot use."""

from __future__ import annotations

from pathlib import Path

from mayfly.auth.errors import AuthError


class AccessError(Exception):
    """Base of the refusals of requests.

    Attributes:
        message: for the client, one line.
        detail: JSON for the client: the denied rights; None where they are not told.
    """

    def __init__(self, message: str, detail: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class Unauthorized(AccessError):
    """The caller has to prove who they are, or prove more; ``challenge`` says how."""

    def __init__(self, message: str, challenge: str, detail: object = None) -> None:
        super().__init__(message, detail)
        self.challenge = challenge


class AccessDenied(AccessError):
    """A known caller may not do this."""


class PolicyFileInvalid(AuthError):
    """A credential, grant or key file that cannot be used as it is.

    The message may name a file of the host, never the secret in it.

    Args:
        path: the file as the operator named it.
        what: the fault, as a predicate: "is not UTF-8".
        remedy: the way to correct it.
        line: 1-based line of the fault, where it has one.
    """

    def __init__(self, path: Path, what: str, remedy: str, line: int | None = None) -> None:
        where = str(path) if line is None else f"{path}, line {line}"
        super().__init__(f"{where}: {what}; {remedy}")
        self.path = path
        self.what = what
        self.remedy = remedy
        self.line = line
