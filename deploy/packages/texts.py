"""Manual pages and shell completion, made from the command line itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from mayfly.registry.cli import cli
from mayfly.registry.exit_codes import describe
from mayfly.registry.version import VERSION

_SECTION = "1"

_COMPLETIONS = {
    "usr/share/bash-completion/completions/mayfly": BashComplete,
    "usr/share/zsh/site-functions/_mayfly": ZshComplete,
    "usr/share/zsh/vendor-completions/_mayfly": ZshComplete,
    "usr/share/fish/vendor_completions.d/mayfly.fish": FishComplete,
}
"""Where shells look; zsh's second place is Debian's."""


def completions() -> dict[str, str]:
    """Return the files that complete the command line, by their paths below the root."""
    return {
        path: shell(cli, {}, "mayfly", "_MAYFLY_COMPLETE").source()
        for path, shell in _COMPLETIONS.items()
    }


def manual() -> Iterator[tuple[str, str]]:
    """Yield each page: its name, and its text for man(1)."""
    root = click.Context(cli, info_name="mayfly")
    yield from _pages(root)


def _pages(ctx: click.Context) -> Iterator[tuple[str, str]]:
    name = ctx.command_path.replace(" ", "-")
    below = []
    if isinstance(ctx.command, click.Group):
        for word in ctx.command.list_commands(ctx):
            command = ctx.command.get_command(ctx, word)
            assert command is not None
            below.append(click.Context(command, info_name=word, parent=ctx))
    yield name, _page(name, ctx, below)
    for one in below:
        yield from _pages(one)


def _page(name: str, ctx: click.Context, below: list[click.Context]) -> str:
    lines = [
        f'.TH "{_escaped(name.upper())}" {_SECTION} "" "Mayfly {VERSION}" "Mayfly"',
        ".SH NAME",
        f"{_escaped(name)} \\- {_escaped(_summary(ctx.command))}",
        ".SH SYNOPSIS",
        f".B {_escaped(ctx.command_path)}",
        _escaped(" ".join(ctx.command.collect_usage_pieces(ctx))),
        ".SH DESCRIPTION",
        *_paragraphs(ctx.command.help or ""),
    ]
    for heading, records in _options(ctx).items():
        lines.append(f'.SH "{_escaped(heading.upper())}"')
        for words, text in records:
            lines += [".TP", f".B {_escaped(words)}", _escaped(" ".join(text.split()))]
    if below:
        lines.append(".SH COMMANDS")
        for one in below:
            page = one.command_path.replace(" ", "-")
            lines += [".TP", f".BR {_escaped(page)} (1)", _escaped(_summary(one.command))]
    if ctx.parent is None:
        lines.append('.SH "EXIT STATUS"')
        for code, meaning in describe():
            lines += [".TP", f".B {_escaped(code)}", _escaped(meaning)]
    else:
        parent = ctx.parent.command_path.replace(" ", "-")
        lines += ['.SH "SEE ALSO"', f".BR {_escaped(parent)} (1)"]
    return "\n".join(lines) + "\n"


def _summary(command: click.Command) -> str:
    return command.get_short_help_str(10_000).rstrip(".")


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        if paragraph.lstrip().startswith("\b"):
            yield from (".nf", _escaped(paragraph.replace("\b", "").strip("\n")), ".fi")
        else:
            yield _escaped(" ".join(paragraph.split()))


def _options(ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for parameter in ctx.command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            heading = getattr(parameter, "heading", "Options")
            found.setdefault(heading, []).append(record)
    return found


def _escaped(text: str) -> str:
    """Return text in which roff(7) sees no requests and no hyphens that it may change."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", text)
