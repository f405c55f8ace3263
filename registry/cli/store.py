"""Commands on a store's directory: ``ls``, ``inspect``, ``du``, ``rm``, ``gc``, ``verify``.

All of them are safe beside a running server: they read as a server does, and changes take the same
locks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mayfly.registry.cli.bundle_or_url import Looked, looking_at, or_own_bundle, store_reader
from mayfly.registry.cli.help import Command
from mayfly.registry.cli.options import DURATION, PERCENT, as_json, print_json, root_directory
from mayfly.registry.exit_codes import Exit
from mayfly.registry.settings.errors import ConfigError, unusable
from mayfly.registry.text import echo, join_names
from mayfly.storage.errors import NameInvalid, StorageError, StorageFailed, StorageFull
from mayfly.storage.text import counted, format_size

if TYPE_CHECKING:
    from mayfly.storage.digest import Digest
    from mayfly.storage.directory.store import DistributionStore
    from mayfly.storage.images import Image, Stack
    from mayfly.storage.interface import Reader
    from mayfly.storage.survey import Damaged
    from mayfly.storage.transfer.attached import Attached
    from mayfly.storage.upkeep.collect import Collected
    from mayfly.storage.upkeep.evict import Freed
    from mayfly.storage.upkeep.verify import Finding, Verified

_REPAIR_ROUNDS = 4
"""Repairs until nothing is left to mend: an index, its image, the layers, and a look at the end."""

_IMAGES_NAMED = 3
"""Images named of those that a fault affects."""


@click.command(cls=Command)
@click.argument("sources", metavar="[BUNDLE...|URL]", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Also manifests that no tag leads to.")
@root_directory
@as_json
@click.pass_context
def ls(
    ctx: click.Context, sources: tuple[str, ...], everything: bool, root: Path, json: bool
) -> None:
    """List the images of the store, of bundles, or of a registry.

    A bundle is listed by the names that nodes ask for. Exit 4 if a name leads to nothing that
    can be read, exit 5 if a bundle lists an image that cannot be served.
    """
    from mayfly.storage.survey import tagged, untagged, whole

    sources = sources if everything else or_own_bundle(sources)
    if sources and everything:
        raise click.UsageError("--all is for the store; others are listed by their tags", ctx)
    if sources:
        _list_sources(ctx, sources, root, json)
        return
    reader = store_reader(root)
    damaged: dict[str, Damaged] = {}

    images = whole(chain(tagged(reader), untagged(reader) if everything else ()), damaged)

    def found() -> Iterator[dict[str, object]]:  # read once all images are printed
        yield from map(asdict, damaged.values())

    _print_images(reader, images, json, damaged=found())
    name_damaged(ctx, tuple(damaged.values()), json, mend=True)


def _print_images(reader: Reader, images: Iterator[Image], json: bool, **found: object) -> None:
    """Print images as they come; in JSON, then also the other properties of the document."""
    if json:
        rows = (
            {
                "name": image.name,
                "digest": str(image.digest),
                "size": image.size,
                "referrers": [_referrer(*one) for one in _attached(reader, image)],
            }
            for image in images
        )
        print_json({"images": rows, **found})
        return
    # Names first, to know their width; an image has a dictionary of all its blobs.
    lines = [(one.name, one.size, str(one.digest), len(_attached(reader, one))) for one in images]
    width = max((len(name) for name, *_ in lines), default=0)
    for name, size, digest, links in lines:
        more = f"  {counted(links, 'referrer')}" if links else ""
        echo(f"{name:<{width}}  {format_size(size):>9}  {digest}{more}")


def _attached(reader: Reader, image: Image) -> list[tuple[Attached, Image]]:
    """Return the referrers of an image; none where its repository cannot be read."""
    from mayfly.storage.reference import split_stored
    from mayfly.storage.transfer.attached import attached_images

    repository, _ = split_stored(image.name)
    try:
        return attached_images(reader, repository, image)
    except OSError:
        return []


def _referrer(link: Attached, image: Image) -> dict[str, object]:
    """One that refers to an image, as data."""
    return {
        "digest": str(link.digest),
        "subject": str(link.subject),
        "tag": link.tag,
        "artifact_type": image.artifact_type,
        "size": image.size,
    }


def _list_sources(ctx: click.Context, sources: Sequence[str], root: Path, json: bool) -> None:
    """Print the images that bundles or a registry serve, by the names that nodes ask for.

    Raises:
        BundleInvalid: a bundle cannot be read.
    """
    from mayfly.storage.survey import Damaged, named

    unreadable: list[Damaged] = []
    listed = (asdict(one) for one in unreadable)
    with looking_at(sources, root) as looked:
        lost = {one.name for one in looked.lost_names()}

        def found() -> Iterator[Image]:
            for one in named(looked.reader):
                if not isinstance(one, Damaged):
                    yield one
                elif one.name not in lost:
                    unreadable.append(one)

        if looked.bundles is None:
            _print_images(looked.reader, found(), json, damaged=listed)
            name_damaged(ctx, unreadable, json, mend=False)
            return
        opened = looked.bundles
        left_out = [*opened.left_out, *opened.lost_volumes(opened.has)]
        damaged = opened.damaged_names()
        facts = {"notices": opened.notices, "left_out": [*left_out, *damaged]}
        data = {name: [one.to_json() for one in several] for name, several in facts.items()}
        _print_images(looked.reader, found(), json, damaged=listed, **data)
        for one in () if json else (*opened.notices, *left_out, *damaged):
            echo(one, err=True)
    code = Exit.BUNDLE if left_out else Exit.STORAGE
    name_damaged(ctx, unreadable, json, mend=False, code=code)
    if left_out or damaged:
        ctx.exit(code)


def name_damaged(
    ctx: click.Context,
    damaged: Sequence[Damaged],
    json: bool,
    *,
    mend: bool,
    code: Exit = Exit.STORAGE,
) -> None:
    """Exit with 4 if images are damaged; name them on standard error, unless JSON has them.

    Args:
        mend: whether they are in a store, where they can be mended.
        code: to exit with in place of 4.
    """
    if not damaged:
        return
    if not json:
        for one in damaged:
            echo(f"{one.name}: {one.detail}", err=True)
        if mend:
            echo("mend it with mayfly verify --repair, or push it again", err=True)
    ctx.exit(code)


@click.command(cls=Command)
@click.argument("image")
@click.argument("sources", metavar="[BUNDLE...|URL]", nargs=-1)
@click.option("--files", is_flag=True, help="Show the merged file tree, and its wasted space.")
@root_directory
@as_json
@click.pass_context
def inspect(
    ctx: click.Context, image: str, sources: tuple[str, ...], files: bool, root: Path, json: bool
) -> None:
    """Show an image's layers, bottom to top, the images that share them, and the image's referrers.

    Exit 4 if it lacks content.
    """
    with looking_at(or_own_bundle(sources), root) as looked:
        _inspect(ctx, looked, image, files, json)


def _inspect(ctx: click.Context, looked: Looked, image: str, files: bool, json: bool) -> None:
    from mayfly.storage.bundle.diagnostics import Code
    from mayfly.storage.images import image as image_of
    from mayfly.storage.images import stacks
    from mayfly.storage.reading import tags_at
    from mayfly.storage.survey import Damaged

    reader = looked.reader
    repository, digest = looked.find(image)
    tag = next(tags_at(reader, repository, digest), None)
    name = f"{repository}:{tag}" if tag else f"{repository}@{digest}"
    whole = image_of(reader, repository, digest, name)
    if files:
        from mayfly.registry.cli.diff import show_files

        show_files(reader, whole, json)
        return
    found = stacks(reader, repository, digest, name)
    attached = _attached(reader, whole)
    makers = [] if looked.bundles is None else looked.bundles.makers
    lacking = [digest for one in (whole, *(a for _, a in attached)) for digest in one.lacking]
    if json:
        print_json(
            {
                "name": name,
                "digest": str(digest),
                "platforms": [_stack(one) for one in found],
                "referrers": [_referrer(*one) for one in attached],
                "missing": [str(one) for one in lacking],
                "makers": [one.to_json() for one in makers],
            }
        )
    else:
        _show_stacks(name, digest, found)
        _show_attached(attached)
        for one in makers:
            echo(one, err=True)
    damaged = [Damaged(name, Code.BLOBS_MISSING, f"{one} is gone or damaged") for one in lacking]
    name_damaged(ctx, damaged, json, mend=looked.store is not None)


def _show_stacks(name: str, digest: Digest, found: Sequence[Stack]) -> None:
    echo(f"{name}  {digest}")
    for stack in found:
        echo("")
        what = f"attestation of {stack.attests}" if stack.attests else stack.platform or "artifact"
        echo(f"{what}  {stack.digest}")
        for number, layer in enumerate(stack.layers, 1):
            size = "?" if layer.size is None else format_size(layer.size)
            echo(f"  {number:>3}  {size:>9}  {str(layer.digest)[:19]}", nl=False)
            echo(f"  {_shared(layer.shared_with)}  {layer.created_by[:60]}".rstrip())


def _show_attached(attached: Sequence[tuple[Attached, Image]]) -> None:
    if attached:
        echo("")
        echo("referrers")
    for link, image in attached:
        kind = image.artifact_type or "artifact"
        echo(f"       {format_size(image.size):>9}  {link.digest}  {kind}")
        echo(f"                  of {link.subject}{f', tag {link.tag}' if link.tag else ''}")


@click.command(cls=Command)
@click.argument("sources", metavar="[BUNDLE...|URL]", nargs=-1)
@root_directory
@as_json
@click.pass_context
def du(ctx: click.Context, sources: tuple[str, ...], root: Path, json: bool) -> None:
    """Show how much space the images take, and how much sharing saves."""
    from mayfly.storage.upkeep.space import space, space_of

    sources = or_own_bundle(sources)
    if sources:
        with looking_at(sources, root) as looked:
            found = space_of(looked.reader)
            damaged = {one.name: one for one in (*found.damaged, *looked.lost_names())}
            found = replace(found, damaged=tuple(damaged.values()))
    else:
        found = space(store_reader(root))
    if json:
        print_json({**asdict(found), "saved": found.saved})
    else:
        images = counted(found.images, "image")
        echo(f"{images}, {format_size(found.logical)} if each stood alone")
        echo(f"{format_size(found.stored)} stored, {format_size(found.saved)} saved by sharing")
        if found.untagged:
            echo(
                f"{format_size(found.untagged_size)} more for "
                f"{counted(found.untagged, 'manifest')} without a tag"
                + ("" if sources else " (ls --all lists, gc --untagged frees)")
            )
        if found.unused_size:
            echo(f"{format_size(found.unused_size)} more that no manifest needs (gc frees it)")
        if found.kept_size:
            echo(f"{format_size(found.kept_size)} more that damaged images may need (gc keeps it)")
    name_damaged(ctx, found.damaged, json, mend=not sources)


@click.command(cls=Command)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@root_directory
@as_json
def rm(images: tuple[str, ...], root: Path, json: bool) -> None:
    """Delete images: by tag the tag alone, by digest the manifest and its tags.

    gc then frees a deleted manifest and the blobs that only it needs; a manifest that merely lost
    its last tag stays until gc --untagged.
    """
    with _store(root) as store:
        for text in images:
            said = _remove(store, text)
            if not json:
                echo(said)
    if json:
        print_json({"deleted": list(images)})


def _remove(store: DistributionStore, text: str) -> str:
    """Delete an image, damaged or not, and return a line about it.

    Raises:
        ManifestUnknown: there is none of that name.
    """
    from mayfly.storage.errors import ManifestUnknown
    from mayfly.storage.reference import LATEST, parse_reference

    reference = parse_reference(text)
    for repository in reference.stored_as:
        try:
            if reference.digest is not None:
                store.delete_manifest(repository, reference.digest)
                return f"deleted {text}"
            tag = reference.tag or LATEST
            digest = None
            with contextlib.suppress(ManifestUnknown):
                digest = store.tag(repository, tag)
            store.delete_tag(repository, tag)
        except (ManifestUnknown, NameInvalid):
            continue
        if digest is None or digest in store.tag_targets(repository):
            return f"deleted {text}"
        if not store.is_linked(repository, digest):
            return f"deleted {text}"
        return (
            f"deleted {text}; its manifest {repository}@{digest} stays without a tag until "
            "mayfly gc --untagged"
        )
    raise ManifestUnknown(f"no image {text} here; mayfly ls --all lists them")


@click.command(cls=Command)
@click.option(
    "--grace", type=DURATION, default="1h", help="Never collect content used within this time."
)
@click.option("--dry-run", is_flag=True, help="Show the space to be freed, and free nothing.")
@click.option(
    "--untagged",
    is_flag=True,
    help="Also delete manifests that no tag leads to; referrers of kept ones stay.",
)
@click.option(
    "--high",
    type=PERCENT,
    metavar="P",
    help="Usage of the disk at which images of upstreams are also evicted.  [default: never]",
)
@click.option(
    "--low", type=PERCENT, metavar="P", help="Usage to come down to.  [default: 5 below --high]"
)
@click.option(
    "--protect",
    type=click.Path(path_type=Path),
    metavar="LIST",
    help="Never evict the images of this list.",
)
@root_directory
@as_json
@click.pass_context
def gc(
    ctx: click.Context,
    grace: float,
    dry_run: bool,
    untagged: bool,
    high: float | None,
    low: float | None,
    protect: Path | None,
    root: Path,
    json: bool,
) -> None:
    """Free the space of content that no image refers to.

    Repositories with a damaged manifest keep all their blobs; exit 4 if there are any. With
    --high, if the disk is that full, images that came from upstreams (serve --upstream) are
    removed as well, least recently pulled first; exit 3 if that is not enough.
    """
    from mayfly.registry.durations import exact
    from mayfly.storage.upkeep.collect import collect

    if high is not None and untagged:
        raise click.UsageError("--untagged and --high are two things to do", ctx)
    if high is None and (low is not None or protect is not None):
        raise click.UsageError("--low and --protect need --high", ctx)
    freed = None
    with _store(root) as store:
        if high is None:
            found = collect(store, grace, dry_run=dry_run, untagged=untagged)
        else:
            freed = _evict(store, high, low, grace, protect, dry_run)
            found = freed.collected
    if json:
        space = {"space": _space(freed)} if freed is not None else {}
        print_json({**_collected(found), "dry_run": dry_run, **space})
    else:
        for one in found.unread:
            echo(f"{one}; its repository keeps all blobs: repair or delete it", err=True)
        if freed is not None:
            _show_space(freed, dry_run)
        gone = "would free" if dry_run else "freed"
        echo(f"{gone} {format_size(found.size)}: {counted(len(found.blobs), 'blob')}")
        if found.spared:
            echo(
                f"kept {format_size(found.spared_size)}: {counted(found.spared, 'blob')} that no "
                f"image refers to, used within the last {exact(grace)} (--grace)"
            )
    if found.unread:
        ctx.exit(Exit.STORAGE)
    if freed is not None and not freed.is_enough:
        if not json:
            echo("that is not enough: all else was pushed, protected, or used recently", err=True)
        ctx.exit(Exit.INCOMPLETE)


def _collected(found: Collected) -> dict[str, object]:
    return {
        "blobs": [str(digest) for digest in found.blobs],
        "size": found.size,
        "unread": [one._asdict() for one in found.unread],
        "untagged": [f"{repository}@{digest}" for repository, digest in found.manifests],
        "spared": found.spared,
        "spared_size": found.spared_size,
    }


def _evict(
    store: DistributionStore,
    high: float,
    low: float | None,
    grace: float,
    protect: Path | None,
    dry_run: bool,
) -> Freed:
    """Free space down to a threshold.

    Raises:
        ConfigError: the thresholds contradict each other, or the list cannot be read.
    """
    from mayfly.registry.upstream.protected import Protected
    from mayfly.storage.upkeep import evict

    try:
        high, low = evict.thresholds(high, low)
    except ValueError as error:
        raise ConfigError(f"--high, --low: {error}") from None
    is_protected = evict.unprotected if protect is None else Protected(protect)
    return evict.free(store, high, low, grace, is_protected, dry_run=dry_run)


def _space(found: Freed) -> dict[str, object]:
    """The usage of the disk, and the images that went, as data."""
    from mayfly.registry.control.report import iso

    evicted = [
        {
            "image": one.name,
            "digest": str(one.digest),
            "last_pulled": iso(one.last_pulled),
            "size": one.size,
        }
        for one in found.evicted
    ]
    return {
        "used_before": round(found.before.percent, 1),
        "used_after": round(found.after.percent, 1),
        "enough": found.is_enough,
        "evicted": evicted,
    }


def _show_space(found: Freed, dry_run: bool) -> None:
    from mayfly.registry.control.report import iso

    gone, then = ("would evict", "would be") if dry_run else ("evicted", "are")
    for one in found.evicted:
        when = iso(one.last_pulled)
        echo(f"{gone} {one.name}: last pulled {when}, {format_size(one.size)} only for it")
    before, after = found.before.percent, found.after.percent
    echo(f"{before:.1f}% of the disk were used, {after:.1f}% {then} now")


@click.command(cls=Command)
@click.argument("looked_at", metavar="[BUNDLE...|URL]", nargs=-1)
@click.option(
    "--repair",
    "sources",
    multiple=True,
    metavar="BUNDLE|URL",
    help="Restore damaged or missing content from a bundle or a registry that has it. Repeatable.",
)
@root_directory
@as_json
@click.pass_context
def verify(
    ctx: click.Context,
    looked_at: tuple[str, ...],
    sources: tuple[str, ...],
    root: Path,
    json: bool,
) -> None:
    """Read every byte again and compare it with its digest; exit 4 if something is wrong."""
    looked_at = looked_at if sources else or_own_bundle(looked_at)
    if looked_at and sources:
        raise click.UsageError("--repair is for the store; bundles and registries are read", ctx)
    if looked_at:
        first = found = _checked(looked_at, root)
    else:
        first, found = _scrubbed(root, sources)
    if json:
        print_json(
            {
                "blobs": first.blobs,
                "size": first.size,
                "left_out": found.left_out,
                "findings": [
                    {
                        "code": one.fault,
                        "digest": str(one.digest) if one.digest else None,
                        "image": one.image,
                        "others": one.others,
                        "detail": one.detail,
                    }
                    for one in found.findings
                ],
            }
        )
    else:
        for finding in found.findings:
            echo(_described(finding))
        if found.left_out:
            manifests = counted(
                found.left_out,
                "manifest that an index names was",
                "manifests that indexes name were",
            )
            echo(f"{manifests} left out or deleted")
        faults = counted(len(found.findings), "fault")
        echo(f"{counted(first.blobs, 'blob')}, {format_size(first.size)}: {faults}")
    if found.findings:
        if sources and not json:
            echo(
                "some faults could not be mended from the sources given: name another --repair "
                "BUNDLE or URL that has it, or push the images again",
                err=True,
            )
        ctx.exit(Exit.STORAGE)


def _checked(texts: Sequence[str], root: Path) -> Verified:
    """Check bundles or a registry; a lost volume is named."""
    from mayfly.storage.upkeep.check import check

    with looking_at(texts, root) as looked:
        if looked.bundles is not None:
            for lost in looked.bundles.lost_volumes(looked.bundles.has):
                echo(lost, err=True)
        return check(looked.reader)


def _scrubbed(root: Path, sources: tuple[str, ...]) -> tuple[Verified, Verified]:
    """Scrub the store, and repair it if there are sources; before the repairs, and after."""
    from mayfly.storage.upkeep.verify import verify as scrub

    with _store(root) as store:
        first = found = scrub(store)
        for _ in range(_REPAIR_ROUNDS):
            # A repaired manifest may name more missing content.
            if not sources or not _repair(store, found.findings, sources):
                break
            found = scrub(store, again=False)
    return first, found


def _described(finding: Finding) -> str:
    """Return a line with the fault, its digest, the affected images and the reason."""
    text = finding.fault.text
    if finding.digest:
        text += f": {finding.digest}"
    if finding.image:
        text += f"  needed by {join_names((finding.image, *finding.others), _IMAGES_NAMED)}"
    return f"{text} ({finding.detail})" if finding.detail else text


def _repair(
    store: DistributionStore, findings: tuple[Finding, ...], sources: tuple[str, ...]
) -> int:
    """Repair from the sources and return the number of repairs; a failing source is passed over."""
    from mayfly.registry.cli.bundle_or_url import opened
    from mayfly.registry.upstream.errors import FetchError
    from mayfly.storage.upkeep.verify import repair

    repaired = 0
    with contextlib.ExitStack() as stack:
        opened_sources = [stack.enter_context(opened(source)) for source in sources]
        for finding in findings:
            for name, source in zip(sources, opened_sources, strict=True):
                try:
                    mended = repair(store, finding, source.fetch, source.resolve, source.holds)
                except (StorageFull, StorageFailed):
                    raise
                except (StorageError, ConfigError, FetchError) as error:
                    echo(f"{name}: {error}", err=True)
                    continue
                except OSError as error:
                    # Something else is in the place of the file, or the permissions forbid it.
                    what = finding.digest or finding.image
                    echo(f"{what} cannot be mended: {error.strerror}", err=True)
                    break
                if mended:
                    repaired += 1
                    echo(f"repaired: {finding.digest or finding.image}", err=True)
                    break
    return repaired


def _stack(stack: Stack) -> dict[str, object]:
    """A platform's layers as data; `asdict` would take digests apart."""
    layers = [{**asdict(layer), "digest": str(layer.digest)} for layer in stack.layers]
    return {
        "platform": stack.platform,
        "digest": str(stack.digest),
        "layers": layers,
        "attests": stack.attests,
    }


def _shared(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    return f"shared with {join_names(names, 2)}"


@contextlib.contextmanager
def _store(root: Path) -> Iterator[DistributionStore]:
    from mayfly.storage.directory.store import DistributionStore

    store_reader(root)
    try:
        store = DistributionStore(root)
    except OSError as error:
        raise unusable("--root", root, error) from None
    with contextlib.closing(store):
        yield store
