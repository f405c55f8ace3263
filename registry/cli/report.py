"""``mayfly report``: show the report of a run that has ended, or make a page of it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mayfly.registry.cli.help import Command
from mayfly.registry.cli.options import as_json, print_json, state_directory
from mayfly.registry.errors import NotRunning
from mayfly.registry.exit_codes import Exit
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.state.directory import READY, REPORT
from mayfly.registry.text import echo

if TYPE_CHECKING:
    from mayfly.registry.control.report import Report


_STANDARD_OUTPUT = "-"


@click.command("report", cls=Command)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--html",
    "page",
    metavar="OUT",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write it to a file as one page for browsers, which needs nothing else; - prints it.",
)
@state_directory
@as_json
def command(file: Path | None, page: Path | None, state_dir: Path, json: bool) -> int:
    """Show the report of a run that has ended.

    FILE is a report; without it, it is the last one in the state directory.
    """
    from mayfly.registry.control.report import load

    if json and page is not None and str(page) == _STANDARD_OUTPUT:
        raise click.UsageError("--html - and --json both print: name a file for the page")
    where = file or state_dir / REPORT
    newer = "" if file is not None else _newer(state_dir)
    shown = rendered = ""
    try:
        content = load(where)
        if page is not None:
            rendered = _page_of(content)
        elif not json:
            shown = _text_of(content)
    except OSError as error:
        raise click.UsageError(f"{where}: {error.strerror}{newer and f'; {newer}'}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise click.UsageError(f"{where}: not a report that this version can read") from None
    if page is not None:
        _write(rendered.encode("utf-8", "replace"), page)
    if json:
        print_json(content)
    elif page is None:
        click.echo(shown, nl=False)
    if newer and not json:
        echo(f"this is the report of an earlier run: {newer}", err=True)
    return Exit.DONE


def _newer(state_dir: Path) -> str:
    """Return a sentence about a run that is under way, whose report is not there yet, or ""."""
    from mayfly.registry.control.client import connect

    if not (state_dir / READY).exists():
        return ""
    try:
        connect(state_dir).close()
    except NotRunning:
        return ""
    except ConfigError:  # it runs, and as another user
        pass
    return (
        f"a Mayfly runs with the state directory {state_dir}, and reports when it ends "
        "(mayfly status shows it now)"
    )


def _page_of(content: Report) -> str:
    from mayfly.registry.control.report_page import render

    return render(content)


def _text_of(content: Report) -> str:
    from mayfly.registry.control.status_text import claims_line, report_text

    claims = claims_line(content)
    shown = report_text(content, shutil.get_terminal_size((120, 24)).columns)
    return f"{shown}{claims}\n" if claims else shown


def _write(page: bytes, file: Path) -> None:
    from mayfly.storage.files import Attributes, replace_file

    if str(file) == _STANDARD_OUTPUT:
        # A page says that it is UTF-8, whatever the locale has.
        sys.stdout.buffer.write(page)
        sys.stdout.buffer.flush()
        return
    try:
        replace_file(file, page, Attributes(0o644))
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}") from None
