"""Help texts with options in groups, every default and whole summaries; aliases of commands."""

from __future__ import annotations

from typing import Any

import click

from mayfly.registry.exit_codes import describe

_NO_LIMIT = 10_000
"""Characters of a command's summary: all of them."""

ALIASES = {"list": "ls", "remove": "rm"}
"""Alias → the command's own name; for every group that has the command."""

COMMAND_GROUPS = {
    "Serve": ("serve", "run", "status", "wait", "stop", "report"),
    "Images": (
        *("bundle", "pack", "copy", "sync", "import", "export", "inventory"),
        *("ls", "inspect", "diff", "du", "rm", "gc", "verify"),
    ),
    "Users and nodes": (
        "user",
        "grant",
        "credentials",
        "node",
        "node-config",
        "check",
        "prefetch",
        "credential-provider",
        "audit",
    ),
}

_OTHERS = "Options"


class GroupedOption(click.Option):
    """An option that `Command` lists under a heading of its own."""

    def __init__(self, *args: Any, heading: str = _OTHERS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


class Command(click.Command):
    """A command whose help has its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = getattr(parameter, "heading", _OTHERS)
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text("Exit codes and environment: mayfly --help")


class Group(click.Group):
    """A group of commands, some with `ALIASES`."""

    command_class = Command

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        alias = ALIASES.get(cmd_name)
        return super().get_command(ctx, alias) if found is None and alias else found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(summaries(self, ctx, self.list_commands(ctx)))


def summaries(
    group: click.Group, ctx: click.Context, names: tuple[str, ...] | list[str]
) -> list[tuple[str, str]]:
    """Return a row for each command: its names and its summary."""
    rows = []
    for name in names:
        command = group.get_command(ctx, name)
        if command is not None:
            others = [alias for alias, first in ALIASES.items() if first == name]
            rows.append((", ".join([name, *others]), command.get_short_help_str(_NO_LIMIT)))
    return rows


def write_exit_codes(formatter: click.HelpFormatter) -> None:
    """The table of exit codes, which every command shares."""
    with formatter.section("Exit codes"):
        formatter.write_dl(describe())
