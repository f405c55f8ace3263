"""From an error to an exit code and one line on standard error, or one JSON document."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import click

from mayfly.auth.errors import AuthError
from mayfly.registry import log
from mayfly.registry.errors import LifetimeError
from mayfly.registry.exit_codes import Exit, exit_code_of_signal
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.text import echo, exact_json
from mayfly.registry.upstream.errors import FetchError
from mayfly.storage.errors import ContentCorrupt, StorageError, StorageFailed, StorageFull, of_disk

_DISK = StorageFull | StorageFailed
_SEPARATOR = "--"
_LOG_FORMAT = "--log-format"


def failed(error: Exception, words: Sequence[str]) -> int:
    """Tell the user of an error; the exit code.

    Args:
        error: that ended the command.
        words: of the command line.
    """
    command, message, code = _describe(error)
    if wants_json(words):
        name = Exit(code).code if code in set(Exit) else "command"
        document = {"code": name, "exit_code": code, "command": command, "message": message}
        print(exact_json({"error": document}), file=sys.stderr)
    else:
        echo(f"{command}: {message}", err=True)
    return code


def broken_pipe() -> int:
    """Exit as SIGPIPE would make us, since the reader of our output is gone."""
    # Otherwise the interpreter fails once more when it flushes the buffers.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    return exit_code_of_signal(signal.SIGPIPE)


def wants_json(words: Sequence[str]) -> bool:
    """Whether a command line, valid or not, asks for JSON; `run`'s command is not searched."""
    own = words[: words.index(_SEPARATOR)] if _SEPARATOR in words else words
    if "--json" in own or f"{_LOG_FORMAT}=json" in own:
        return True
    if _LOG_FORMAT in own[:-1]:
        return own[own.index(_LOG_FORMAT) + 1] == "json"
    serving = any(word in ("serve", "run") for word in own[:1])
    return serving and os.environ.get("MAYFLY_LOG_FORMAT") == "json"


def _describe(error: Exception) -> tuple[str, str, int]:
    """Return the command, the message and the exit code."""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "mayfly"
        return command, f"{error.format_message()} (see {command} --help)", Exit.USAGE
    if isinstance(error, click.ClickException):
        return "mayfly", error.format_message(), Exit.USAGE
    if isinstance(error, LifetimeError):
        return "mayfly", error.message, error.exit_code
    if isinstance(error, FetchError):
        return "mayfly", str(error), error.exit_code
    if isinstance(error, ConfigError | AuthError):
        return "mayfly", str(error), Exit.STORAGE if _is_of_disk(error) else Exit.USAGE
    if isinstance(error, StorageError):
        return "mayfly", str(error), _of_storage(error)
    if isinstance(error, OSError):
        where = error.filename or "the system"
        reason = error.strerror or str(error)
        code = Exit.STORAGE if _is_of_disk(error) else Exit.USAGE
        return "mayfly", f"{os.fsdecode(where)}: {reason}", code
    hint = "" if _traceback_is_shown(error) else "; MAYFLY_LOG_LEVEL=debug shows where"
    message = f"internal error, please report it: {type(error).__name__}: {error}{hint}"
    return "mayfly", message, Exit.INTERNAL


def _traceback_is_shown(error: Exception) -> bool:
    """Put the traceback of an error of our own into the log; without one, show it if asked to."""
    if log.is_configured():
        log.logger.error("internal error", exc_info=error)
        return True
    if os.environ.get("MAYFLY_LOG_LEVEL") != "debug":
        return False
    import traceback

    print("".join(traceback.format_exception(error)), end="", file=sys.stderr)
    return True


def _of_storage(error: StorageError) -> int:
    from mayfly.storage.bundle.errors import BundleChanged, BundleConflict, BundleInvalid

    if isinstance(error, BundleChanged | BundleConflict | BundleInvalid):
        return Exit.BUNDLE
    return Exit.STORAGE if isinstance(error, _DISK | ContentCorrupt) else Exit.USAGE


def _is_of_disk(error: BaseException | None) -> bool:
    """Whether a full or failing disk caused an error."""
    while error is not None:
        if isinstance(error, OSError) and isinstance(of_disk(error), _DISK):
            return True
        error = error.__cause__ or error.__context__
    return False
