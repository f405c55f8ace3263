"""The command line. The module of a command is loaded when it is called."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator

import click

from mayfly.registry import one_file
from mayfly.registry.cli import help
from mayfly.registry.exit_codes import Exit, exit_by_signal, exit_code_of_signal
from mayfly.registry.version import VERSION

_COMMANDS = {
    "serve": "mayfly.registry.cli.serve",
    "run": "mayfly.registry.cli.run",
    "status": "mayfly.registry.cli.control:status",
    "wait": "mayfly.registry.cli.control:wait",
    "stop": "mayfly.registry.cli.control:stop",
    "report": "mayfly.registry.cli.report",
    "user": "mayfly.registry.cli.user",
    "grant": "mayfly.registry.cli.grant",
    "credentials": "mayfly.registry.cli.credentials",
    "credential-provider": "mayfly.registry.cli.credential_provider",
    "node": "mayfly.registry.cli.node",
    "node-config": "mayfly.registry.cli.node_config",
    "prefetch": "mayfly.registry.cli.prefetch",
    "check": "mayfly.registry.cli.check",
    "audit": "mayfly.registry.cli.audit",
    "bundle": "mayfly.registry.cli.bundle",
    "pack": "mayfly.registry.cli.pack",
    "copy": "mayfly.registry.cli.copy:copy",
    "sync": "mayfly.registry.cli.copy:sync",
    "import": "mayfly.registry.cli.transfer:import_",
    "export": "mayfly.registry.cli.transfer:export",
    "inventory": "mayfly.registry.cli.inventory",
    "ls": "mayfly.registry.cli.store:ls",
    "inspect": "mayfly.registry.cli.store:inspect",
    "diff": "mayfly.registry.cli.diff",
    "du": "mayfly.registry.cli.store:du",
    "rm": "mayfly.registry.cli.store:rm",
    "gc": "mayfly.registry.cli.store:gc",
    "verify": "mayfly.registry.cli.store:verify",
}
"""Command → its module and, after a colon, the command's name there if that is not ``command``."""

_TOP_LEVEL_OPTIONS = ("-h", "--help", "--version")
"""Options that mayfly takes without a command."""

_INTERRUPTS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
"""Signals that end a command, and the handler that Python starts with; others are left alone."""


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = _COMMANDS.get(help.ALIASES.get(cmd_name, cmd_name))
        if where is None:
            return None
        module, _, name = where.partition(":")
        found: click.Command = getattr(importlib.import_module(module), name or "command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, names in help.COMMAND_GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl(help.summaries(self, ctx, names))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        help.write_exit_codes(formatter)
        formatter.write_paragraph()
        formatter.write_text(
            "Every option of serve is also read from MAYFLY_<OPTION> and from the file of "
            "--config (docs/configuration.md). Output for programs and shell completion: "
            "docs/commands.md."
        )


@click.group(
    cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(VERSION, prog_name="mayfly")
def cli() -> None:
    """Mayfly: a container registry that lives as long as your upgrade."""
    if any(name.startswith("MAYFLY_") for name in os.environ):
        from mayfly.registry.settings.environment import check

        check(os.environ, lambda: _variables(cli))


def _variables(group: click.Group) -> Iterator[str]:
    """The environment variables of every command's options."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _variables(command)
        elif command is not None:
            for parameter in command.params:
                given = parameter.envvar or ()
                yield from [given] if isinstance(given, str) else given


def execute() -> str | int | None:
    """Run the command line; its exit code. Errors are one line, with a code of docs/commands.md."""
    # Both end every command the same way; a server takes them over. Python's own KeyboardInterrupt
    # would not do: where it meets code that is compiled at run time, such as a dataclass that is
    # being made, `python -m` ends as killed by the signal, whatever exit code was asked for.
    for number, usual in _INTERRUPTS.items():
        if signal.getsignal(number) is usual:
            signal.signal(number, exit_by_signal)
    words = sys.argv[1:]
    try:
        words = _with_command(words)
        code: int | None = cli.main(words, prog_name="mayfly", standalone_mode=False)
        sys.stdout.flush()
        return code
    except SystemExit as left:
        if type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):  # click met a broken pipe
            return _broken_pipe()
        return left.code
    except click.exceptions.Abort:
        return exit_code_of_signal(signal.SIGINT)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return Exit.USAGE
    except BrokenPipeError:
        return _broken_pipe()
    except Exception as error:
        # Imported for errors only.
        from mayfly.registry.cli.failure import failed

        return failed(error, words)


def _with_command(words: list[str]) -> list[str]:
    """Return the words of the command line; without a command, a packed bundle serves itself.

    Raises:
        BundleInvalid: the file was cut short.
    """
    if words[:1] and (not words[0].startswith("-") or words[0] in _TOP_LEVEL_OPTIONS):
        return words
    if not one_file.bundles():
        return words
    return ["serve" if one_file.defaults().script is None else "run", *words]


def _broken_pipe() -> int:
    from mayfly.registry.cli.failure import broken_pipe

    return broken_pipe()
