"""``mayfly import`` and ``mayfly export``."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from mayfly.registry import one_file
from mayfly.registry.cli.fetching import without_referrers
from mayfly.registry.cli.help import Command
from mayfly.registry.cli.options import as_json, leave_out, output_file, root_directory
from mayfly.registry.cli.output import writing
from mayfly.registry.cli.progress import print_event, reporting
from mayfly.registry.cli.store import name_damaged
from mayfly.registry.exit_codes import Exit
from mayfly.registry.settings.errors import ConfigError, unusable
from mayfly.registry.text import echo
from mayfly.storage.errors import ContentCorrupt
from mayfly.storage.text import counted, format_size

if TYPE_CHECKING:
    from mayfly.storage.bundle.diagnostics import Diagnostic
    from mayfly.storage.digest import Digest
    from mayfly.storage.directory.reader import DirectoryReader
    from mayfly.storage.directory.store import DistributionStore
    from mayfly.storage.images import Image
    from mayfly.storage.survey import Damaged
    from mayfly.storage.transfer.exporting import Carried

_LINES = 100
"""Lines about images that were not imported; the others are counted."""


@click.command("import", cls=Command)
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, type=Path)
@root_directory
@as_json
@click.pass_context
def import_(ctx: click.Context, bundles: tuple[Path, ...], root: Path, json: bool) -> None:
    """Copy the images of bundles into the store; a server may run on it.

    A bundle is an OCI layout (directory or tar), a docker save tar, or a registry's directory.
    A stopped import resumes. Exit 5 if an image that a bundle lists could
    not be imported, exit 4 if one of a registry's directory is damaged; the others are imported.
    """
    from mayfly.storage.bundle.diagnostics import Code, Diagnostic
    from mayfly.storage.bundle.open import open_bundles
    from mayfly.storage.reading import find_blob
    from mayfly.storage.transfer import importing

    bundles = bundles or one_file.bundles()
    if not bundles:
        raise click.UsageError("Missing argument 'BUNDLE...'.", ctx)
    with contextlib.ExitStack() as stack:
        plain = {path: str(path) for path in bundles}
        store = None
        if any(_is_compressed(path) for path in bundles):
            store = open_store(root, stack)
            plain = {_expanded(path, store.scratch, json): str(path) for path in bundles}
        opened = open_bundles([*plain], labels=plain)
        stack.enter_context(contextlib.closing(opened))
        for notice in opened.notices:
            _notice(notice, json)
        if opened.unhashed:
            with reporting("reading", opened.unhashed, json) as progress:
                opened.hash(progress)
        store = store or open_store(root, stack)
        planned = importing.plan(store, opened.layer, opened.is_directory)
        if planned.incomplete:
            for line in opened.lost_volumes(lambda name, d: find_blob(store, name, d) is not None):
                _notice(line, json)
            _refuse(planned.incomplete, json)
            ctx.exit(Exit.BUNDLE)
        with reporting("importing", planned.size, json) as progress:
            done = importing.carry_out(store, opened.layer, planned, progress)
        damaged, left_out = opened.damaged_names(), opened.left_out
        for refused in done.left_out:
            into = damaged if opened.is_directory(refused.repository) else left_out
            into.append(importing.diagnostic(opened.layer, refused))
        if not left_out and not opened.layer.repositories("", 1):
            left_out.append(Diagnostic(Code.BUNDLE_EMPTY, "the bundles list no image"))
        code = Exit.BUNDLE if left_out else Exit.STORAGE if damaged else Exit.DONE
        left_out += damaged
    if json:
        print_event(
            "imported",
            images=done.names,
            copied=planned.size,
            not_imported=[one.to_json() for one in left_out],
        )
    else:
        images = counted(len(done.names), "image")
        echo(f"imported {images}, {format_size(planned.size)} copied")
        for one in left_out[:_LINES]:
            echo(f"not imported: {one}", err=True)
        if len(left_out) > _LINES:
            echo(f"not imported: {len(left_out) - _LINES} more", err=True)
    ctx.exit(code)


def _notice(found: Diagnostic, json: bool) -> None:
    if json:
        print_event("notice", **found.to_json())
    else:
        echo(found, err=True)


def _refuse(incomplete: Sequence[tuple[str, Digest]], json: bool) -> None:
    """Say which content the bundles lack, so that nothing is imported."""
    if json:
        missing = [{"repository": name, "digest": str(digest)} for name, digest in incomplete]
        print_event("incomplete", missing=missing)
        return
    for repository, digest in incomplete:
        echo(
            f"missing: {repository} needs {digest}, which neither the bundles nor the store has",
            err=True,
        )
    echo(
        "nothing was imported: fetch the whole bundle, or first import the one that it builds on",
        err=True,
    )


def open_store(root: Path, stack: contextlib.ExitStack) -> DistributionStore:
    """A store to be written to, which takes indexes without some of their platforms.

    Raises:
        ConfigError: it cannot be opened.
    """
    from mayfly.storage.directory.store import DistributionStore

    try:
        store = DistributionStore(root, allow_absent_platforms=True)
    except OSError as error:
        raise unusable("--root", root, error) from None
    return stack.enter_context(contextlib.closing(store))


def _is_compressed(path: Path) -> bool:
    from mayfly.storage.bundle.compressed import compression_of
    from mayfly.storage.bundle.errors import BundleInvalid

    try:
        return path.is_file() and compression_of(path) is not None
    except OSError as error:
        raise BundleInvalid(f"{path}: {error.strerror}") from None


def _expanded(path: Path, scratch: Path, json: bool) -> Path:
    """A bundle as it can be read: a compressed one is expanded into the store's scratch."""
    from mayfly.storage.bundle.compressed import compression_of, expand
    from mayfly.storage.bundle.errors import BundleInvalid

    if not _is_compressed(path):
        return path
    plain = Path(tempfile.mkdtemp(dir=scratch)) / path.with_suffix("").name
    with reporting("expanding", path.stat().st_size, json) as progress:
        expand(path, plain, progress)
    again = compression_of(plain)
    if again is not None:
        raise BundleInvalid(f"{path} is compressed twice, the second time with {again.name}")
    return plain


@click.command(cls=Command)
@click.argument("images", metavar="IMAGE...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every image of the store.")
@output_file("The archive.")
@leave_out
@without_referrers
@root_directory
@as_json
@click.pass_context
def export(
    ctx: click.Context,
    images: tuple[str, ...],
    everything: bool,
    output: Path,
    haves: tuple[str, ...],
    no_referrers: bool,
    root: Path,
    json: bool,
) -> None:
    """Write images to an OCI archive; with --have only blobs that the target lacks.

    With an image go its signatures, SBOMs and attestations. A FILE ending in .zst is compressed
    so that it can be served in place; one ending in .gz has to be imported.
    """
    from mayfly.storage.directory.reader import DirectoryReader
    from mayfly.storage.survey import Damaged
    from mayfly.storage.transfer import exporting

    if bool(images) == everything:
        raise click.UsageError("name images, or give --all")
    if not root.is_dir():
        raise ConfigError(f"--root {root}: there is no such directory")
    reader = DirectoryReader(root)
    damaged: list[Damaged] = []
    found = list(_chosen(reader, images))
    damaged += [one for one in found if isinstance(one, Damaged)]
    chosen = exporting.carried(
        reader, (one for one in found if not isinstance(one, Damaged)), referrers=not no_referrers
    )
    chosen = _whole(chosen, damaged)
    with contextlib.ExitStack() as stack:
        have = have_any(haves, stack)
        while True:
            planned = exporting.plan(reader, chosen, have)
            try:
                with (
                    reporting("exporting", planned.size, json) as progress,
                    writing(output) as written,
                    _compressing(output, written) as file,
                ):
                    exporting.write(planned, file, progress)
                break
            except ContentCorrupt as error:
                chosen = _without(chosen, error, damaged)
    referrers = len({(c.repository, one.digest) for c in chosen for _, one in c.attached})
    if json:
        print_event(
            "exported", file=str(output), images=len(chosen), referrers=referrers,
            size=planned.size, left_out=planned.left_out,
            damaged=[asdict(one) for one in damaged],
        )  # fmt: skip
    else:
        carried = counted(referrers, "signature or attestation", "signatures and attestations")
        echo(
            f"{output}: {counted(len(chosen), 'image')}, {carried}, "
            f"{format_size(planned.size)}, {format_size(planned.left_out)} left out"
        )
    name_damaged(ctx, damaged, json, mend=True)


def _without(chosen: list[Carried], error: ContentCorrupt, damaged: list[Damaged]) -> list[Carried]:
    """Return the images without the corrupt content, and note the others as damaged.

    Raises:
        ContentCorrupt: that leaves no image, or it is not known which.
    """
    from mayfly.storage.bundle.diagnostics import Code
    from mayfly.storage.survey import Damaged
    from mayfly.storage.transfer.exporting import without

    corrupt = error.detail if isinstance(error.detail, list) else []
    kept, gone = without(chosen, lambda one: any(str(digest) in corrupt for digest in one.blobs))
    if not kept or not gone:
        raise error
    reason = f"not exported, {corrupt[0]} is corrupt"
    damaged += [Damaged(name, Code.CONTENT_DAMAGED, reason) for name in gone]
    return kept


def _whole(chosen: Sequence[Carried], damaged: list[Damaged]) -> list[Carried]:
    """Return the whole images and their whole referrers, and note those that lack content."""
    from mayfly.storage.bundle.diagnostics import Code
    from mayfly.storage.survey import Damaged
    from mayfly.storage.transfer.exporting import without

    for one in chosen:
        if one.image.lacking:
            reason = f"written without {one.image.lacking[0]}, it is not here"
            damaged.append(Damaged(one.image.name, Code.BLOBS_MISSING, reason))
    images = {id(one.image) for one in chosen}
    kept, gone = without(chosen, lambda one: bool(one.lacking) and id(one) not in images)
    reason = "not exported, it or its subject lacks content"
    damaged += [Damaged(name, Code.BLOBS_MISSING, reason) for name in gone]
    return kept


def _chosen(
    reader: DirectoryReader, names: tuple[str, ...]
) -> Iterator[tuple[str, Image] | Damaged]:
    """The images to export."""
    from mayfly.storage.images import image
    from mayfly.storage.reference import LATEST, split_stored
    from mayfly.storage.survey import Damaged, find, tagged

    if not names:
        for one in tagged(reader):
            yield one if isinstance(one, Damaged) else (split_stored(one.name)[0], one)
    for text in names:
        repository, digest = find(reader, text)
        tags = [t for t in reader.tags(repository) if text.endswith(f":{t}")]
        tag = tags[0] if tags else LATEST
        name = f"{repository}@{digest}" if "@" in text else f"{repository}:{tag}"
        yield repository, image(reader, repository, digest, name)


Have = Callable[[str, "Digest"], bool]


def have_any(haves: Sequence[str], stack: contextlib.ExitStack) -> Have:
    """Whether any of the targets that ``--have`` names has a blob of a repository.

    Raises:
        ConfigError, BundleInvalid: a target cannot be opened.
    """
    targets = [_target(text, stack) for text in haves]
    return lambda repository, digest: any(has(repository, digest) for has in targets)


def _target(text: str, stack: contextlib.ExitStack) -> Have:
    """Read the content that a ``--have`` says the target has."""
    from mayfly.registry.cli.bundle_or_url import opened
    from mayfly.storage.transfer import inventory
    from mayfly.storage.transfer.exporting import read_digests

    path = Path(text)
    begin = _begin(path)
    if begin.startswith((b"sha256:", b"sha512:")):
        digests = read_digests(path)
        return lambda _repository, digest: digest in digests
    if begin.startswith(inventory.HEADER.encode()):
        with path.open("rb") as file:
            data = file.read(inventory.MAX_BYTES + 1)
        try:
            found = inventory.read(data)
        except ValueError as error:
            raise ConfigError(f"--have {text}: {error}") from None
        echo(f"{text}: check {found.check}, {counted(found.count, 'blob')}", err=True)
        return found.has
    return stack.enter_context(opened(text)).has


def _begin(path: Path) -> bytes:
    """The first bytes of a file, which tell a list from a bundle; none of anything else."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(32)


@contextlib.contextmanager
def _compressing(output: Path, file: BinaryIO) -> Iterator[BinaryIO]:
    """The stream to write to, compressed as the name of the output says."""
    if output.suffix == ".gz":
        import gzip

        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as zipped:
            yield zipped  # type: ignore[misc]
    elif output.suffix == ".zst":
        from mayfly.storage.bundle.seekable import SeekableWriter

        try:
            packed = SeekableWriter(file)
        except ImportError:
            raise ConfigError(
                f"{output}: writing zstd takes the package zstandard "
                "(pip install 'mayfly-registry[zstd]')"
            ) from None
        yield packed  # type: ignore[misc]
        packed.finish()
    else:
        yield file
