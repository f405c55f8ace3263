"""Why images cannot be fetched from elsewhere. Ends in commands, never in an HTTP answer."""

from __future__ import annotations

from collections.abc import Sequence

from mayfly.registry.exit_codes import Exit


class FetchError(Exception):
    """The base of these errors.

    Attributes:
        exit_code: of a command that ends with it.
    """

    exit_code = Exit.INCOMPLETE


class ListInvalid(FetchError):
    """A list of images cannot be read; the message names the place and what to do."""

    exit_code = Exit.USAGE


class LoginsInvalid(FetchError):
    """A file of stored logins or a credential helper cannot be used; the message names it."""

    exit_code = Exit.USAGE


class UpstreamError(FetchError):
    """A registry did not give what was asked for; the message names host and content."""


class NotThere(UpstreamError):
    """The registry answered that it does not have it (404)."""


class LoginRefused(UpstreamError):
    """The registry refuses these credentials (401, 403)."""


class ContentWrong(UpstreamError):
    """Content arrived with another digest or size than was asked for."""


class ImagesMissing(FetchError):
    """Some of what was asked for cannot be fetched.

    Attributes:
        problems: a line for each.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        count = len(problems)
        super().__init__(
            f"{problems[0]}" if count == 1 else f"{count} of what was asked for cannot be fetched"
        )
        self.problems = tuple(problems)


class VolumeTooSmall(FetchError):
    """Content does not fit volumes of the size asked for; the message says what would do."""

    exit_code = Exit.USAGE
