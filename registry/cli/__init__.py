"""The command line. Each command is a module of its own, loaded when it is called."""

from __future__ import annotations

import importlib
import signal
import sys

import click

from auth.errors import AuthError
from registry.config import ConfigError
from registry.version import VERSION
from storage.errors import ContentCorrupt, StorageError, StorageFailed, StorageFull, of_disk

_DISK = StorageFull | StorageFailed

_COMMANDS = {
    "serve": "registry.cli.serve",
    "run": "registry.cli.run",
    "status": "registry.cli.control:status",
    "wait": "registry.cli.control:wait",
    "stop": "registry.cli.control:stop",
    "user": "registry.cli.user",
    "grant": "registry.cli.grant",
    "credentials": "registry.cli.credentials",
    "node-config": "registry.cli.node_config",
    "import": "registry.cli.transfer:import_",
    "export": "registry.cli.transfer:export",
    "ls": "registry.cli.store:ls",
    "inspect": "registry.cli.store:inspect",
    "du": "registry.cli.store:du",
    "rm": "registry.cli.store:rm",
    "gc": "registry.cli.store:gc",
    "verify": "registry.cli.store:verify",
}
"""Command → the module it is in, where it is called ``command`` unless a name follows."""


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = _COMMANDS.get(cmd_name)
        if where is None:
            return None
        module, _, name = where.partition(":")
        found: click.Command = getattr(importlib.import_module(module), name or "command")
        return found


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="mayfly")
def cli() -> None:
    """Mayfly: a container registry that lives as long as your upgrade."""


def execute() -> str | int | None:
    """Run the command line; its exit code. Errors are one line, with the contract's code."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # As tidy an end as Ctrl-C gives, of every command; a server takes both over.
        signal.signal(signal.SIGTERM, _leave)
    try:
        code: int | None = cli.main(prog_name="mayfly", standalone_mode=False)
        return code
    except SystemExit as left:
        return left.code
    except click.exceptions.Abort:
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        return _failed(error.format_message())
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "mayfly"
        return _failed(f"{command}: {error.format_message()} (see {command} --help)")
    except click.ClickException as error:
        return _failed(f"mayfly: {error.format_message()}")
    except (ConfigError, AuthError) as error:
        return _failed(f"mayfly: {error}", 4 if _is_of_disk(error) else 2)
    except StorageError as error:
        return _failed(f"mayfly: {error}", _exit_code(error))
    except OSError as error:
        if not _is_of_disk(error):
            raise
        return _failed(f"mayfly: {error.filename or 'storage'}: {error.strerror}", 4)


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _exit_code(error: StorageError) -> int:
    """The exit code that the contract has for what storage refused."""
    from storage.bundle.errors import BundleChanged, BundleConflict, BundleInvalid

    if isinstance(error, BundleChanged | BundleConflict | BundleInvalid):
        return 5
    return 4 if isinstance(error, _DISK | ContentCorrupt) else 2


def _is_of_disk(error: BaseException | None) -> bool:
    """Whether a full or failing disk is what lies beneath an error."""
    while error is not None:
        if isinstance(error, OSError) and isinstance(of_disk(error), _DISK):
            return True
        error = error.__cause__ or error.__context__
    return False


def _failed(message: str, code: int = 2) -> int:
    print(message, file=sys.stderr)
    return code
