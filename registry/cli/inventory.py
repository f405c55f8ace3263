"""``mayfly inventory``: the content of a target, for ``--have`` where the next bundle is made."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from mayfly.registry.cli.bundle_or_url import looking_at, or_own_bundle
from mayfly.registry.cli.help import Command
from mayfly.registry.cli.options import as_json, print_json, root_directory
from mayfly.registry.cli.store import name_damaged
from mayfly.registry.text import echo
from mayfly.storage.text import counted


@click.command("inventory", cls=Command)
@click.argument("sources", metavar="[BUNDLE...|URL]", nargs=-1)
@root_directory
@as_json
@click.pass_context
def command(ctx: click.Context, sources: tuple[str, ...], root: Path, json: bool) -> None:
    """Print the content of the store, bundles or a registry, for --have where a bundle is made.

    The check, which can be read out over the phone, is printed there again. Exit 4 if manifests are
    damaged; their blobs are left out, so that a bundle brings them.
    """
    from mayfly.storage.transfer import inventory

    sources = or_own_bundle(sources)
    with looking_at(sources, root) as looked:
        found = inventory.of(looked.reader)
    if json:
        blobs = {name: sorted(map(str, held)) for name, held in sorted(found.blobs.items())}
        damaged = [asdict(one) for one in found.damaged]
        print_json({"check": found.check, "blobs": blobs, "damaged": damaged})
    else:
        click.echo(found.text, nl=False)
        count = counted(found.count, "blob")
        where = counted(len(found.blobs), "repository", "repositories")
        echo(f"check {found.check}: {count} in {where}", err=True)
    name_damaged(ctx, found.damaged, json, mend=not sources)
