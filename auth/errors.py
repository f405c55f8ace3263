"""Errors of authentication and authorization, one class for each reason.

Messages of `CredentialsInvalid`, `TokenInvalid` and `ScopeInvalid` may be sent to clients: they
contain no secret and do not reveal whether a user exists. `PolicyInvalid` and `InputInvalid` are
for the operator; they contain no secret either.
"""

from __future__ import annotations

from typing import Literal

TokenReason = Literal[
    "malformed",
    "too large",
    "bad signature",
    "wrong issuer",
    "wrong audience",
    "bad claims",
    "expired",
    "not yet valid",
    "revoked",
    "another run",
]
"""Reasons to refuse a token, for the audit; clients only need `invalid_token` (RFC 6750, 3.1)."""


class AuthError(Exception):
    """Base of every domain error that auth raises.

    Attributes:
        code: the kind of a refused login, for the audit.
    """

    code = "invalid"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CredentialsInvalid(AuthError):
    """A name and password that are not accepted, with the same message for every reason."""

    code = "credentials_invalid"

    def __init__(self) -> None:
        super().__init__("invalid user name or password")


class LoginsBusy(CredentialsInvalid):
    """A name and password that were not checked, because too many logins are waiting.

    Clients get the same 401 as for a wrong password, so that they do not take it for an outage.
    """

    code = "logins_busy"

    def __init__(self) -> None:
        AuthError.__init__(self, "too many logins are waiting; try again")


class TokenInvalid(AuthError):
    """A token that is not accepted, for ``reason``."""

    def __init__(self, reason: TokenReason) -> None:
        super().__init__(f"invalid token: {reason}")
        self.reason = reason
        self.code = f"token_{reason.replace(' ', '_')}"


class ScopeInvalid(AuthError):
    """A scope outside the grammar of `auth.scope`."""


class InputInvalid(AuthError):
    """An invalid value from the operator: a name, role, glob, lifetime, password or key."""


class PolicyInvalid(AuthError):
    """The content of a file of users or grants that cannot be used as it is.

    Args:
        what: the fault, as a predicate: "is not UTF-8".
        remedy: the way to correct it.
        line: 1-based line of the fault, where it has one.
    """

    def __init__(self, what: str, remedy: str, line: int | None = None) -> None:
        where = "" if line is None else f"line {line}: "
        super().__init__(f"{where}{what}; {remedy}")
        self.what = what
        self.remedy = remedy
        self.line = line
