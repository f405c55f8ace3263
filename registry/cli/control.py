"""``mayfly status``, ``stop`` and ``wait``: talking to the registry that runs here."""

from __future__ import annotations

import functools
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click

from registry.cli.options import as_json, print_json, state_directory
from registry.config import ConfigError

if TYPE_CHECKING:
    from registry.lifetime.control import Message

P = ParamSpec("P")

_WATCH_SECONDS = 1.0
_HOME_AND_CLEAR = "\x1b[H\x1b[J"
_INCOMPLETE = 3
_MOST_TRANSFERS = 20


def _duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    from registry.lifetime.durations import parse

    try:
        return None if value is None else parse(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}", ctx, param) from None


def _exit_codes(command: Callable[P, int]) -> Callable[P, int]:
    """End with one line and the right exit code where the server cannot be asked."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        from registry.lifetime.errors import LifetimeError

        try:
            return command(*args, **kwargs)
        except LifetimeError as error:
            print(f"mayfly: {error.message}", file=sys.stderr)
            return error.exit_code

    return wrapped


@click.command("status")
@state_directory
@as_json
@click.option("--watch", is_flag=True, help="Show it anew each second, until the server ends.")
@_exit_codes
def status(state_dir: Path, json: bool, watch: bool) -> int:
    """Show what a running registry does, and which node has which image."""
    from registry.lifetime.client import ask
    from registry.lifetime.errors import LifetimeError

    _show_status(ask(state_dir, "status"), json, again=False)
    while watch:
        time.sleep(_WATCH_SECONDS)
        try:
            found = ask(state_dir, "status")
        except (LifetimeError, ConfigError):
            return 0
        _show_status(found, json, again=sys.stdout.isatty())
    return 0


@click.command("stop")
@state_directory
@as_json
@_exit_codes
def stop(state_dir: Path, json: bool) -> int:
    """Drain and end a running registry; come back when it is done."""
    from registry.lifetime.client import ask

    answer = ask(state_dir, "stop", timeout=None)
    if json:
        print_json(answer)
    else:
        for what in answer["cut"]:
            click.echo(f"cut off: {what}")
        click.echo(f"stopped with exit code {answer['exit_code']}: {answer['reason_text']}")
    return 0


@click.command("wait")
@click.option("--ready", "what", flag_value="ready", help="Until it answers.")
@click.option("--covered", "what", flag_value="covered", help="Until every node has every image.")
@click.option(
    "--timeout",
    callback=_duration,
    metavar="D",
    help="Give up after that long, with exit code 3.",
)
@state_directory
@as_json
@_exit_codes
def wait(what: str | None, timeout: float | None, state_dir: Path, json: bool) -> int:
    """Wait for a registry: to be ready, or to have reached every node."""
    from registry.lifetime.client import ask, wait_for_server

    if what is None:
        raise click.UsageError("say what to wait for: --ready or --covered")
    end = None if timeout is None else time.monotonic() + timeout
    wait_for_server(state_dir, timeout)
    left = None if end is None else max(end - time.monotonic(), 0.1)
    answer = ask(state_dir, "wait", timeout=left, **{"for": what})
    if json:
        print_json(answer)
    elif not answer["reached"]:
        for gap in answer.get("missing", ()):
            click.echo(f"missing: {gap}")
        print("mayfly: the server ended before that", file=sys.stderr)
    return 0 if answer["reached"] else _INCOMPLETE


def _show_status(found: Message, json: bool, again: bool) -> None:
    if again:
        click.echo(_HOME_AND_CLEAR, nl=False)
    if json:
        print_json(found)
    else:
        click.echo("\n".join(_lines(found, shutil.get_terminal_size().columns)))


def _lines(found: Message, width: int) -> list[str]:
    from registry.lifetime import table
    from registry.lifetime.durations import readable

    rows = [
        ["state", f"{found['state']}, for {readable(found['seconds'])}"],
        ["at", f"{found['url']}, pid {found['pid']}, version {found['version']}"],
        ["idle for", readable(found["idle_seconds"])],
        ["in, out", f"{table.size(found['bytes_in'])}, {table.size(found['bytes_out'])}"],
    ]
    lines = table.grid(rows, width)
    transfers = found["transfers"]
    lines += [table.shorten(one, width) for one in transfers[:_MOST_TRANSFERS]]
    if len(transfers) > _MOST_TRANSFERS:
        lines.append(f"… and {len(transfers) - _MOST_TRANSFERS} more transfers")
    for path, names in found["ambiguous"].items():
        lines.append(f"ambiguous: {path} is in several upstreams; ask for {' or '.join(names)}")
    lines += table.corrupt(found["corrupt"])
    covered = found["coverage"]
    if covered is not None:
        lines += ["", f"coverage: {covered['nodes_covered']} of {covered['nodes_wanted']} nodes"]
        lines += table.matrix(covered["matrix"], width)
    return lines
