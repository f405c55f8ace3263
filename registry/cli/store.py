"""Commands on a store's directory: ``ls``, ``inspect``, ``du``, ``rm``, ``gc``, ``verify``.

All of them are safe beside a running server: what they read is read as a server reads it, what they
change goes through the same locks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from registry.cli.options import DURATION, as_json, print_json, root_directory
from registry.config import ConfigError

if TYPE_CHECKING:
    from storage.directory import DirectoryReader
    from storage.distribution import DistributionStore
    from storage.verify import Finding

_FOUND_DAMAGE = 4
"""Exit code when stored content is not what it should be (CONTRACT.md)."""


@click.command()
@root_directory
@as_json
def ls(root: Path, json: bool) -> None:
    """List the images."""
    from storage.images import images

    found = list(images(_reader(root)))
    if json:
        rows = [{"name": i.name, "digest": str(i.digest), "size": i.size} for i in found]
        print_json({"images": rows})
        return
    width = max((len(image.name) for image in found), default=0)
    for image in found:
        click.echo(f"{image.name:<{width}}  {human(image.size):>9}  {image.digest}")


@click.command()
@click.argument("image")
@root_directory
@as_json
def inspect(image: str, root: Path, json: bool) -> None:
    """Show an image's layers, bottom to top, and who shares them."""
    from storage.images import resolve, stacks

    reader = _reader(root)
    repository, digest = resolve(reader, image)
    tags = [t for t in reader.tags(repository) if reader.tag(repository, t) == digest]
    name = f"{repository}:{tags[0]}" if tags else f"{repository}@{digest}"
    found = stacks(reader, repository, digest, name)
    if json:
        print_json({"name": name, "digest": str(digest), "platforms": [asdict(s) for s in found]})
        return
    click.echo(f"{name}  {digest}")
    for stack in found:
        click.echo(f"\n{stack.platform or 'artifact'}  {stack.digest}")
        for number, layer in enumerate(stack.layers, 1):
            size = "?" if layer.size is None else human(layer.size)
            click.echo(f"  {number:>3}  {size:>9}  {str(layer.digest)[:19]}", nl=False)
            click.echo(f"  {_shared(layer.shared_with)}  {layer.created_by[:60]}".rstrip())


@click.command()
@root_directory
@as_json
def du(root: Path, json: bool) -> None:
    """Show how much space the images take, and save by sharing."""
    from storage.images import usage

    found = usage(_reader(root))
    if json:
        print_json({**asdict(found), "saved": found.saved})
        return
    click.echo(f"{found.images} images, {human(found.logical)} if each stood alone")
    click.echo(f"{human(found.stored)} stored, {human(found.saved)} saved by sharing")


@click.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@root_directory
def rm(images: tuple[str, ...], root: Path) -> None:
    """Delete images: by tag the tag alone, by digest the manifest and its tags.

    The space comes back with gc.
    """
    from storage.images import resolve

    with _store(root) as store:
        for text in images:
            repository, digest = resolve(store, text)
            if "@" in text:
                store.delete_manifest(repository, digest)
            else:
                tag = text.rpartition(":")[2] if ":" in text.rpartition("/")[2] else "latest"
                store.delete_tag(repository, tag)
            click.echo(f"deleted {text}")


@click.command()
@click.option(
    "--grace", type=DURATION, default="1h", show_default=True, help="Spare what is newer."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be freed.")
@root_directory
@as_json
@click.pass_context
def gc(ctx: click.Context, grace: float, dry_run: bool, root: Path, json: bool) -> None:
    """Free the space of what no image refers to.

    Repositories with a damaged manifest keep all their blobs; exit 4 if there are any.
    """
    with _store(root) as store:
        found = store.collect(grace, dry_run=dry_run)
    if json:
        unread = [{"image": one.image, "reason": one.reason} for one in found.unread]
        blobs = [str(digest) for digest in found.blobs]
        print_json({"blobs": blobs, "size": found.size, "dry_run": dry_run, "unread": unread})
    else:
        for one in found.unread:
            click.echo(f"{one}; its repository keeps all blobs: repair or delete it", err=True)
        click.echo(
            f"{'would free' if dry_run else 'freed'} {human(found.size)}: {len(found.blobs)} blobs"
        )
    if found.unread:
        ctx.exit(_FOUND_DAMAGE)


@click.command()
@click.option(
    "--repair",
    "sources",
    multiple=True,
    metavar="BUNDLE|URL",
    help="Mend what is wrong from a bundle or a registry that has it. Repeatable.",
)
@root_directory
@as_json
@click.pass_context
def verify(ctx: click.Context, sources: tuple[str, ...], root: Path, json: bool) -> None:
    """Read every byte again and compare it with its digest; exit 4 if something is wrong."""
    from storage.verify import verify as scrub

    with _store(root) as store:
        found = scrub(store)
        if found.findings and sources:
            _repair(store, found.findings, sources)
            found = scrub(store)
    if json:
        print_json(
            {
                "blobs": found.blobs,
                "size": found.size,
                "findings": [{**asdict(f), "digest": str(f.digest)} for f in found.findings],
            }
        )
    else:
        for finding in found.findings:
            needed = f"  needed by {finding.image}" if finding.image else ""
            click.echo(f"{finding.fault}: {finding.digest}{needed}")
        click.echo(f"{found.blobs} blobs, {human(found.size)}: {len(found.findings)} faults")
    if found.findings:
        ctx.exit(_FOUND_DAMAGE)


def _repair(
    store: DistributionStore, findings: tuple[Finding, ...], sources: tuple[str, ...]
) -> None:
    from registry.cli.sources import opened
    from storage.verify import repair

    with contextlib.ExitStack() as stack:
        fetches = [stack.enter_context(opened(source)).fetch for source in sources]
        for finding in findings:
            if any(repair(store, finding, fetch) for fetch in fetches):
                click.echo(f"repaired: {finding.digest}", err=True)


def human(size: int) -> str:
    """A number of bytes for people, in binary units."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _shared(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"shared with {', '.join(names[:2])}{more}"


def _reader(root: Path) -> DirectoryReader:
    from storage.directory import DirectoryReader

    if not root.is_dir():
        raise ConfigError(f"--root {root}: there is no such directory")
    return DirectoryReader(root)


@contextlib.contextmanager
def _store(root: Path) -> Iterator[DistributionStore]:
    from storage.distribution import DistributionStore

    _reader(root)
    try:
        store = DistributionStore(root)
    except OSError as error:
        raise ConfigError(f"--root {root} cannot be used: {error.strerror}") from None
    with contextlib.closing(store):
        yield store
