"""``mayfly report``: show the report of a run that has ended, or make a page of it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mayfly.registry.cli.help import Command
from mayfly.registry.cli.options import as_json, print_json, state_directory
from mayfly.registry.exit_codes import Exit
from mayfly.registry.state.directory import REPORT

if TYPE_CHECKING:
    from mayfly.registry.control.report import Report


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
    from mayfly.registry.control.report_page import render
    from mayfly.registry.control.status_text import claims_line, report_text

    where = file or state_dir / REPORT
    try:
        content = load(where)
        text = render(content)
        width = shutil.get_terminal_size((120, 24)).columns
        shown = report_text(content, width) + _line(claims_line(content))
    except OSError as error:
        raise click.UsageError(f"{where}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise click.UsageError(f"{where}: not a report that this version can read") from None
    if page is not None:
        _write(text, page, content, json=json)
    elif json:
        print_json(content)
    else:
        click.echo(shown, nl=False)
    return Exit.DONE


def _line(text: str) -> str:
    return f"{text}\n" if text else ""


def _write(text: str, page: Path, content: Report, *, json: bool) -> None:
    from mayfly.storage.files import Attributes, replace_file

    if str(page) == "-":
        sys.stdout.write(text)
        return
    try:
        replace_file(page, text.encode("utf-8", "replace"), Attributes(0o644))
    except OSError as error:
        raise click.UsageError(f"{page}: {error.strerror}") from None
    if json:
        print_json(content)
