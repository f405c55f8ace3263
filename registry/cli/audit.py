"""``mayfly audit``: check the file of ``--audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mayfly.registry.cli.help import Group
from mayfly.registry.cli.options import as_json, print_json
from mayfly.registry.exit_codes import Exit
from mayfly.registry.text import echo
from mayfly.storage.text import counted

if TYPE_CHECKING:
    from mayfly.registry.telemetry.chain import Break, Checked

_PROBLEMS = {
    "changed": "the line before it was changed",
    "missing": "lines before it are missing",
    "not_json": "it is not a line that Mayfly wrote",
    "reordered": "it is not in its place",
}


@click.group("audit", cls=Group)
def command() -> None:
    """Check the file of --audit."""


@command.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--head",
    metavar="SHA256",
    help="Head of the chain, from a report: all events up to it must be there.",
)
@as_json
def verify(file: Path, head: str | None, json: bool) -> int:
    """Check that no event of an audit file was changed, added or removed.

    Files that were renamed from it, such as FILE.1, are part of the chain. Only with --head is it
    certain that none is missing at the end.
    """
    from mayfly.registry.telemetry.chain import check

    try:
        found = check(file, head)
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}") from None
    good = found.broken is None and (head is None or found.found is not None)
    if json:
        print_json(_document(found, good, head))
    else:
        _show(found, file, head)
    return Exit.DONE if good else Exit.INCOMPLETE


def _document(found: Checked, good: bool, head: str | None) -> dict[str, object]:
    return {
        "whole": good,
        "first": found.first,
        "last": found.head.number,
        "head": found.head.digest,
        "head_found": None if head is None else found.found is not None,
        "cuts": [{"after": cut.after, "bytes": cut.bytes} for cut in found.cuts],
        "more_cuts": found.more_cuts,
        "broken": _broken(found.broken),
    }


def _broken(broken: Break | None) -> dict[str, object] | None:
    if broken is None:
        return None
    return {"file": str(broken.file), "line": broken.line, "problem": broken.problem}


def _show(found: Checked, file: Path, head: str | None) -> None:
    if broken := found.broken:
        where = f"{broken.file}, line {broken.line}"
        echo(f"mayfly: the chain is broken at {where}: {_PROBLEMS[broken.problem]}", err=True)
        return
    if not found.head.number:
        echo(f"{file} has no event")
    else:
        echo(f"events {found.first} to {found.head.number} are whole; head {found.head.digest}")
    if found.first > 1:
        echo(f"events before {found.first} are not there: their files were removed")
    for cut in found.cuts:
        echo(f"after event {cut.after}, a crash left {counted(cut.bytes, 'byte')} of a line")
    if found.more_cuts:
        echo(f"and {found.more_cuts} more")
    if head is None:
        return
    if found.found is None:
        echo("mayfly: no event has this head: events at the end are missing", err=True)
    else:
        echo(f"the head is event {found.found}")
