"""Why images cannot be fetched from elsewhere. Ends in commands, never in an HTTP answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mayfly.registry.exit_codes import Exit


class FetchError(Exception):
    """The base of these errors.

    Attributes:
        exit_code: of a command that ends with it.
    """

    exit_code = Exit.INCOMPLETE


class ListInvalid(FetchError):
    """A list of images cannot be read; the message names the place and the remedy."""

    exit_code = Exit.USAGE


class LoginsInvalid(FetchError):
    """A file of stored logins or a credential helper cannot be used; the message names it."""

    exit_code = Exit.USAGE


class UpstreamError(FetchError):
    """A registry did not give requested content; the message names host and content.

    Attributes:
        code: the kind of error, for programs.
    """

    code = "unavailable"


class NotThere(UpstreamError):
    """The registry answered that it does not have it (404)."""

    code = "not_there"


class LoginRefused(UpstreamError):
    """The registry refuses these credentials (401, 403)."""

    code = "login_refused"


class TooMuch(UpstreamError):
    """An image's manifests do not fit the memory for all manifests of a command."""

    code = "too_many"


class RequestRefused(UpstreamError):
    """The registry does not take such a request (another 4xx)."""


class ContentWrong(UpstreamError):
    """Content arrived with another digest or size than was asked for."""

    code = "content_wrong"


class Problem(NamedTuple):
    """Something that cannot be fetched.

    Attributes:
        text: a line for people.
        code: of the error behind it, see `UpstreamError`; or ``invalid`` for a manifest that breaks
            a rule, ``too_many`` for more manifests than fit, ``does_not_fit`` for a store without
            the space.
    """

    text: str
    code: str


class ImagesMissing(FetchError):
    """Some of the requested content cannot be fetched.

    Attributes:
        problems: each of it.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        count = len(problems)
        super().__init__(
            problems[0].text if count == 1 else f"{count} requested items cannot be fetched"
        )
        self.problems = tuple(problems)


class VolumeTooSmall(FetchError):
    """Content does not fit volumes of the requested size; the message says which size would do."""

    exit_code = Exit.USAGE


def located(origin: str, error: Exception) -> str:
    """Return the message of an error after the entry of the list that it is about.

    Args:
        origin: the entry; an image on the command line begins its messages itself.
        error: see above.
    """
    text = str(error)
    return text if not origin or text.startswith(origin) else f"{origin}: {text}"
