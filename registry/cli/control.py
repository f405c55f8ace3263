"""``mayfly status``, ``stop`` and ``wait``: talking to the registry that runs here."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mayfly.registry.cli.help import Command
from mayfly.registry.cli.options import DURATION, as_json, print_json, state_directory
from mayfly.registry.exit_codes import Exit
from mayfly.registry.text import echo, raw

if TYPE_CHECKING:
    from mayfly.registry.control.socket import Message

_WATCH_SECONDS = 1.0
_HOME_AND_CLEAR = "\x1b[H\x1b[J"


@click.command("status", cls=Command)
@state_directory
@as_json
@click.option(
    "--watch",
    is_flag=True,
    help="Show it again each second until the server ends, and then its report.",
)
def status(state_dir: Path, json: bool, watch: bool) -> int:
    """Show what a running registry does, and which node has which image."""
    from mayfly.registry.control.client import ask
    from mayfly.registry.errors import NotRunning

    found = ask(state_dir, "status")
    _show_status(found, json)
    while watch:
        time.sleep(_WATCH_SECONDS)
        before = found
        try:
            found = ask(state_dir, "status")
        except NotRunning:
            return _show_end(found, json)
        if sys.stdout.isatty():
            click.echo(_HOME_AND_CLEAR, nl=False, file=raw(sys.stdout))
        _show_status(found, json, before)
    return Exit.DONE


@click.command("stop", cls=Command)
@state_directory
@as_json
def stop(state_dir: Path, json: bool) -> int:
    """Drain and end a running registry; return when it has ended.

    Exit code 3 says that coverage was incomplete, or that transfers were cut.
    """
    from mayfly.registry.control import status_text
    from mayfly.registry.control.client import ask

    answer = ask(state_dir, "stop", timeout=None)
    unfinished = bool(answer["cut_requests"]) or answer["covered"] is False
    if json:
        print_json(answer)
    else:
        for line in status_text.aborted_lines(answer["cut"], answer["cut_requests"]):
            echo(line)
        if answer["coverage"] is not None:
            echo(status_text.progress(answer["coverage"]))
        echo(f"stopped with exit code {answer['exit_code']}; report: {answer['report']}")
    return Exit.INCOMPLETE if unfinished else Exit.DONE


@click.command("wait", cls=Command)
@click.option("--ready", "what", flag_value="ready", help="Wait until it answers.")
@click.option(
    "--covered", "what", flag_value="covered", help="Wait until every node has every image."
)
@click.option(
    "--timeout",
    type=DURATION,
    metavar="D",
    help="Give up after this long, with exit code 3.  [default: never]",
)
@state_directory
@as_json
def wait(what: str | None, timeout: float | None, state_dir: Path, json: bool) -> int:
    """Wait for a registry: to be ready, or to have reached every node."""
    from mayfly.registry.control.client import TimedOut, ask, wait_for_server

    if what is None:
        raise click.UsageError("say what to wait for: --ready or --covered")
    end = None if timeout is None else time.monotonic() + timeout
    if what == "ready":
        wait_for_server(state_dir, timeout)
    left = None if end is None else max(end - time.monotonic(), 0.1)
    try:
        answer = ask(state_dir, "wait", timeout=left, **{"for": what})
    except TimedOut:
        assert timeout is not None
        answer = _too_late(state_dir, what, timeout)
    if json:
        print_json(answer)
    elif not answer["reached"]:
        echo(f"mayfly: {_unreached(answer, timeout)}", err=True)
    return Exit.DONE if answer["reached"] else Exit.INCOMPLETE


def _too_late(state_dir: Path, what: str, timeout: float) -> Message:
    """Make the answer for a wait that timed out."""
    from mayfly.registry.control.client import TimedOut, ask

    found = ask(state_dir, "status")
    if what == "ready" and found["state"] != "starting":
        raise TimedOut(timeout, "the server did not answer")
    return {"reached": False, "ended": False, "coverage": found["coverage"]}


def _unreached(answer: Message, timeout: float | None) -> str:
    from mayfly.registry.control import status_text
    from mayfly.registry.durations import exact

    when = "the server ended" if answer["ended"] else f"timed out after {exact(timeout or 0)}"
    covered = answer["coverage"]
    return f"{when}: {status_text.progress(covered)}" if covered else f"{when} before it was ready"


def _show_status(found: Message, json: bool, before: Message | None = None) -> None:
    from mayfly.registry.control import status_text

    if json:
        print_json(found)
    else:
        width = shutil.get_terminal_size((120, 24)).columns
        for line in status_text.status_lines(found, width, before):
            echo(line)


def _show_end(last: Message, json: bool) -> int:
    """Show the report as the last frame, since the server has ended."""
    from mayfly.registry.control import report, status_text

    content = report.read(Path(last["report"]), last["pid"])
    if sys.stdout.isatty():
        click.echo(_HOME_AND_CLEAR, nl=False, file=raw(sys.stdout))
    if content is None:
        echo("mayfly: the server was killed or crashed: it left no report", err=True)
        return Exit.NOT_RUNNING
    if json:
        print_json(content)
    else:
        click.echo(
            status_text.report_text(content, shutil.get_terminal_size((120, 24)).columns), nl=False
        )
        if claims := status_text.claims_line(content):
            echo(claims)
    return Exit.DONE
