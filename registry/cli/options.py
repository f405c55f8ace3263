"""Command-line options made from the settings table, so that neither can miss the other's."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mayfly.registry import one_file
from mayfly.registry.cli.help import GroupedOption
from mayfly.registry.settings import loading
from mayfly.registry.settings import settings as declared
from mayfly.registry.settings.settings import SETTINGS, Settings


def with_settings(command: Callable[[Settings], Any]) -> Callable[..., Any]:
    """Call a command with its bundles, every option of `SETTINGS`, ``--config`` and ``--json``."""

    def load(config_file: Path | None, bundles: tuple[Path, ...], json: bool, **given: Any) -> Any:
        if json:
            given["log_format"] = "json"
        packed = dict(one_file.defaults().settings)
        packed["bundles"] = tuple(map(str, one_file.bundles()))
        flags = texts_of(given)
        return command(loading.load(flags, os.environ, config_file, bundles, packed))

    load.__doc__ = command.__doc__
    wrapped: Callable[..., Any] = click.argument(
        "bundles", metavar="[BUNDLE]...", nargs=-1, type=Path
    )(load)
    wrapped = click.option(
        "--config",
        "config_file",
        envvar="MAYFLY_CONFIG",
        type=click.Path(path_type=Path),
        metavar="FILE",
        cls=GroupedOption,
        heading=declared.OUTPUT,
        help="Read settings from a TOML file.  [default: none]",
    )(wrapped)
    wrapped = click.option(
        "--json",
        cls=GroupedOption,
        heading=declared.OUTPUT,
        is_flag=True,
        help="The same as --log-format json.",
    )(wrapped)
    return every_setting(wrapped)


def every_setting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command every option of `SETTINGS`."""
    for setting in reversed(SETTINGS):
        command = _option(setting)(command)
    return command


def texts_of(given: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the texts of those options of `SETTINGS` that were given."""
    return {key: _texts(value) for key, value in given.items() if value not in (None, ())}


def combined(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return one decorator for several options, in their order."""

    def add(function: Any) -> Any:
        return functools.reduce(
            lambda wrapped, option: option(wrapped), reversed(options), function
        )

    return add


def _option(setting: declared.Setting[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    switch = setting.metavar is None
    return click.option(
        f"--{setting.name}/--no-{setting.name}" if switch else f"--{setting.name}",
        setting.key,
        cls=GroupedOption,
        heading=setting.group,
        default=None,
        metavar=setting.metavar,
        multiple=setting.repeatable,
        # Not click's default, which would win over the environment and the file.
        help=f"{setting.help}  [default: {setting.shown}]",
    )


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(v) for v in value) if isinstance(value, tuple) else (str(value),)


_IN_MEMORY = 4 * 1024 * 1024
_PIECE = 64 * 1024
_AT_ONCE = 1000
"""Pieces of text that are put into the file at once; each is a few bytes."""


def refuse_given(names: Iterable[str], what: str) -> None:
    """Refuse options on the command line; those of the environment may be for other commands.

    Args:
        names: of the command's parameters.
        what: such as "for --via ssh alone".

    Raises:
        UsageError: one is given.
    """
    context = click.get_current_context()
    options = {one.name: one.opts[0] for one in context.command.params}
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{options[name]} is {what}; leave it out")


def print_json(document: object) -> None:
    """Print one JSON document on standard output; iterators in it become arrays.

    A document that is larger than some MiB is first written to a temporary file: an error in one of
    its iterators leaves standard output empty, and memory does not grow with the document.
    """
    import tempfile

    from mayfly.registry.text import json_pieces

    with tempfile.SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="ascii") as file:
        pieces: list[str] = []
        for piece in json_pieces(document, indent=2):
            pieces.append(piece)
            if len(pieces) == _AT_ONCE:
                file.write("".join(pieces))
                pieces.clear()
        file.write("".join(pieces))
        file.seek(0)
        while text := file.read(_PIECE):
            click.echo(text, nl=False)
    click.echo()


JSON_HELP = "Print JSON, errors too (docs/commands.md)."
as_json = click.option("--json", is_flag=True, help=JSON_HELP)

auth_directory = click.option(
    "--auth",
    envvar="MAYFLY_AUTH",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The directory given to serve as --auth.",
)


def output_file(help: str) -> Callable[[Any], Any]:
    """The option of the file that a command writes; `registry.cli.output` checks and opens it."""
    return click.option(
        "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help=help
    )


def _directory_of(name: str, help: str) -> Callable[[Any], Any]:
    """The option of one directory setting, for a command that needs no other."""
    setting = next(one for one in SETTINGS if one.name == name)

    def default() -> Any:
        packed = one_file.defaults().settings.get(setting.key)
        return packed[-1] if packed else setting.default(os.environ)

    return click.option(
        f"--{name}",
        envvar=setting.variable,
        type=click.Path(path_type=Path),
        default=default,
        # click would put a text of ours in brackets of its own.
        show_default=False,
        metavar=setting.metavar,
        help=f"{help}  [default: {setting.shown}]",
    )


leave_out = click.option(
    "--have",
    "haves",
    multiple=True,
    metavar="INVENTORY|BUNDLE|URL",
    help="Leave out content of the target: an inventory, a bundle, or a registry. Repeatable.",
)

state_directory = _directory_of("state-dir", "State directory of the Mayfly to ask.")
root_directory = _directory_of("root", "The store.")


class _Duration(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from mayfly.registry.durations import parse

        try:
            return parse(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


DURATION = _Duration()


class _Percent(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from mayfly.registry.settings.readers import read_percent

        try:
            return read_percent(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


PERCENT = _Percent()
