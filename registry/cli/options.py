"""Command-line options made from the settings table, so that neither can miss the other's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from registry import config
from registry.config import SETTINGS, Settings


def with_settings(command: Callable[[Settings], Any]) -> Callable[..., Any]:
    """Call a command with its bundles, every option of `SETTINGS`, and ``--config``."""

    def load(config_file: Path | None, bundles: tuple[Path, ...], **given: Any) -> Any:
        flags = {key: _texts(value) for key, value in given.items() if value not in (None, ())}
        return command(config.load(flags, os.environ, config_file, bundles))

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
        help="Read settings from a TOML file.",
    )(wrapped)
    for setting in reversed(SETTINGS):
        wrapped = _option(setting)(wrapped)
    return wrapped


def _option(setting: config.Setting[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    if setting.metavar is None:
        names = f"--{setting.name}/--no-{setting.name}"
        return click.option(names, setting.key, default=None, help=setting.help)
    return click.option(
        f"--{setting.name}",
        setting.key,
        metavar=setting.metavar,
        multiple=setting.repeatable,
        help=setting.help,
    )


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(v) for v in value) if isinstance(value, tuple) else (str(value),)


def print_json(document: object) -> None:
    """One JSON document on standard output."""
    import json

    click.echo(json.dumps(document, indent=2, default=str))


as_json = click.option("--json", is_flag=True, help="Print JSON.")

auth_directory = click.option(
    "--auth",
    envvar="MAYFLY_AUTH",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The directory given to serve as --auth.",
)


def _directory_of(name: str, help: str) -> Callable[[Any], Any]:
    """The option of one directory setting, for a command that needs no other."""
    setting = next(one for one in SETTINGS if one.name == name)
    return click.option(
        f"--{name}",
        envvar=setting.variable,
        type=click.Path(path_type=Path),
        default=lambda: setting.default(os.environ),
        metavar=setting.metavar,
        help=help,
    )


state_directory = _directory_of("state-dir", "Of the registry that runs here.")
root_directory = _directory_of("root", "The store.")


class _Duration(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from registry.lifetime.durations import parse

        try:
            return parse(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


DURATION = _Duration()
