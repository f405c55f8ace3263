"""``mayfly diff``, and the file trees of ``mayfly inspect --files``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from mayfly.registry.cli.bundle_or_url import Looked, looking_at
from mayfly.registry.cli.help import Command
from mayfly.registry.cli.options import as_json, print_json
from mayfly.registry.cli.store import name_damaged
from mayfly.registry.text import echo
from mayfly.storage.errors import ContentCorrupt, ManifestUnknown, StorageError
from mayfly.storage.reference import split_stored
from mayfly.storage.text import counted, format_size

if TYPE_CHECKING:
    from mayfly.storage.digest import Digest
    from mayfly.storage.filetree.tree import Change, File, Tree
    from mayfly.storage.images import Image, Stack
    from mayfly.storage.interface import Reader
    from mayfly.storage.survey import Damaged

_WASTED_SHOWN = 20
_SIGNS = {"added": "+", "changed": "~", "deleted": "-"}


@click.command("diff", cls=Command)
@click.argument("old", metavar="A")
@click.argument("new", metavar="B")
@click.option("--files", is_flag=True, help="Also compare the file trees of changed images.")
@click.option("--image", "only", multiple=True, help="Compare this image alone. Repeatable.")
@as_json
@click.pass_context
def command(
    ctx: click.Context, old: str, new: str, files: bool, only: tuple[str, ...], json: bool
) -> None:
    """Compare the images of two bundles, stores or registries (URL).

    Shown are added (+), changed (~) and removed (-) images, and the size that a node with A fetches
    for B. Exit 4 if images are damaged; these are named and not compared.
    """
    with looking_at([old], Path()) as a, looking_at([new], Path()) as b:
        known: set[Digest] = set()
        fetch: dict[Digest, int] = {}
        olds, news = {}, {}
        damaged: list[Damaged] = []
        for name, image in _images(a, "A", only, damaged):
            olds[name] = _side(image, known)
            known.update(image.blobs)
        for name, image in _images(b, "B", only, damaged):
            news[name] = _side(image, known)
            fetch.update((d, size) for d, size in image.blobs.items() if d not in known)
        not_compared = {one.name for one in damaged}
        for text in only:
            if text not in olds and text not in news and text not in not_compared:
                raise ManifestUnknown(f"no image {text} in A or B")
        names = sorted(
            name
            for name in olds.keys() | news.keys()
            if not_compared.isdisjoint((name, split_stored(name)[0]))
        )
        pairs = [(name, olds.get(name), news.get(name)) for name in names]
        differing = [
            (name, one, other)
            for name, one, other in pairs
            if not one or not other or one.digest != other.digest
        ]

        def changes(one: _Side | None, other: _Side | None) -> Iterator[tuple[str, Change]] | None:
            return _compared(a.reader, one, b.reader, other) if files and one and other else None

        if json:
            rows = (_row(*each, changes(*each[1:])) for each in differing)
            named = [asdict(one) for one in damaged]
            print_json({"images": rows, "fetch": sum(fetch.values()), "damaged": named})
        else:
            for name, one, other in differing:
                _show(_row(name, one, other, None))
                for platform, change in changes(one, other) or ():
                    _show_change(platform, change)
            differ = counted(len(differing), "image differs", "images differ")
            echo(f"{differ}, {format_size(sum(fetch.values()))} to fetch for B")
    name_damaged(ctx, damaged, json, mend=False)


class _Side(NamedTuple):
    """An image in A or B, without its blobs: there may be many images.

    Attributes:
        name: of the image.
        digest: of its manifest.
        size: bytes of all of it.
        fetch: bytes of the blobs that A does not have.
        new_blobs: their number.
    """

    name: str
    digest: Digest
    size: int
    fetch: int
    new_blobs: int


def _side(image: Image, known: set[Digest]) -> _Side:
    new = [size for digest, size in image.blobs.items() if digest not in known]
    return _Side(image.name, image.digest, image.size, sum(new), len(new))


def _images(
    looked: Looked, side: str, only: tuple[str, ...], damaged: list[Damaged]
) -> Iterator[tuple[str, Image]]:
    """Yield whole images with the name to compare them by, and add the others to ``damaged``.

    Args:
        side: A or B.
        only: names of the images; empty for all.
    """
    from mayfly.storage.survey import Damaged

    lost = {one.name: one for one in looked.lost_names() if not only or one.name in only}
    for name, one in _named(looked.reader, only):
        if isinstance(one, Damaged):
            lost.setdefault(name, one)
        else:
            yield name, one
    for name, one in lost.items():
        damaged.append(replace(one, name=name, detail=f"in {side}, {one.detail}"))


def _named(reader: Reader, only: tuple[str, ...]) -> Iterator[tuple[str, Image | Damaged]]:
    from mayfly.storage.images import image, resolve
    from mayfly.storage.survey import damage, named

    if not only:
        for one in named(reader):
            yield one.name, one
    for text in only:
        with contextlib.suppress(ManifestUnknown):
            repository, digest = resolve(reader, text)
            found = image(reader, repository, digest, f"{repository}@{digest}")
            yield text, damage(reader, found) or found


def _row(
    name: str, old: _Side | None, new: _Side | None, changes: Iterator[tuple[str, Change]] | None
) -> dict[str, object]:
    """Differences of one image, as data."""
    return {
        "change": "changed" if old and new else "added" if new else "removed",
        "name": name,
        "old": str(old.digest) if old else None,
        "new": str(new.digest) if new else None,
        "old_size": old.size if old else None,
        "new_size": new.size if new else None,
        "fetch": new.fetch if new else 0,
        "new_blobs": new.new_blobs if new else 0,
        "files": None if changes is None else (_change(*each) for each in changes),
    }


def _show(row: dict[str, object]) -> None:
    sign = {"added": "+", "changed": "~", "removed": "-"}[str(row["change"])]
    sizes = [row[key] for key in ("old_size", "new_size") if isinstance(row[key], int)]
    size = " -> ".join(format_size(int(str(one))) for one in sizes)
    more = "" if row["new"] is None else f", {format_size(int(str(row['fetch'])))} to fetch"
    echo(f"{sign} {row['name']}  {size}{more}")


def _compared(
    old_reader: Reader, old: _Side, new_reader: Reader, new: _Side
) -> Iterator[tuple[str, Change]]:
    """The files that differ, by platform; platforms that only one of them has are left out."""
    from mayfly.storage.filetree.tree import compare

    olds = {stack.platform: stack for stack in _stacks(old_reader, old)}
    for stack in _stacks(new_reader, new):
        if stack.platform in olds:
            before = tree_of(old_reader, old, olds[stack.platform])
            for change in compare(before, tree_of(new_reader, new, stack)):
                yield stack.platform, change


def _stacks(reader: Reader, image: Image | _Side) -> list[Stack]:
    """The stacks of layers that are file trees: neither artifacts nor attestations."""
    from mayfly.storage.images import stacks

    found = stacks(reader, repository_of(image), image.digest, image.name, shared=False)
    return [one for one in found if one.platform and not one.attests and not _is_unknown(one)]


def _is_unknown(stack: Stack) -> bool:
    return stack.platform == "unknown/unknown"


def repository_of(image: Image | _Side) -> str:
    """The repository in an image's name."""
    return split_stored(image.name)[0]


def tree_of(reader: Reader, image: Image | _Side, stack: Stack) -> Tree:
    """The merged tree of one platform.

    Raises:
        ContentCorrupt: a layer is not there, or cannot be read as one.
    """
    from mayfly.storage.filetree.layer import LayerInvalid
    from mayfly.storage.filetree.tree import merge
    from mayfly.storage.reading import find_blob

    contents = []
    for layer in stack.layers:
        content = find_blob(reader, repository_of(image), layer.digest)
        if content is None:
            raise ContentCorrupt(f"{image.name}: layer {layer.digest} is not there")
        contents.append(content)
    try:
        return merge(contents)
    except LayerInvalid as error:
        raise ContentCorrupt(f"{image.name}: {error.message}") from None


def _change(platform: str, change: Change) -> dict[str, object]:
    return {
        "platform": platform,
        "change": change.kind,
        "path": change.path,
        "old_size": change.old.size if change.old else None,
        "new_size": change.new.size if change.new else None,
    }


def _show_change(platform: str, change: Change) -> None:
    sizes = [one.size for one in (change.old, change.new) if one and one.kind == "file"]
    size = " -> ".join(format_size(one) for one in sizes)
    echo(f"    {_SIGNS[change.kind]} {platform} /{change.path}  {size}".rstrip())


def show_files(reader: Reader, image: Image, json: bool) -> None:
    """Print the merged tree of each platform: every path with the layer that it comes from."""
    found = _stacks(reader, image)
    if json:
        documents = (_document(stack, tree_of(reader, image, stack)) for stack in found)
        print_json({"name": image.name, "digest": str(image.digest), "platforms": documents})
        return
    for stack in found:
        tree = tree_of(reader, image, stack)
        echo(f"{image.name}  {stack.platform}  {stack.digest}")
        for one in tree.walk():
            arrow = f" -> {one.facts.target}" if one.facts.kind == "symlink" else ""
            end = "/" if one.facts.kind == "directory" else ""
            size = format_size(one.facts.size) if one.facts.kind == "file" else ""
            echo(f"{one.layer:>4}  {one.facts.mode:04o}  {size:>9}  /{one.path}{end}{arrow}")
        total = format_size(tree.wasted_size)
        echo(f"{total} wasted by {counted(len(tree.wasted), 'file')} that upper layers hide")
        for path, lost in _wasted(tree)[:_WASTED_SHOWN]:
            echo(f"{format_size(lost):>21}  /{path}")
    if not found:
        raise StorageError(f"{image.name} has no file tree: it is an artifact")


def _document(stack: Stack, tree: Tree) -> dict[str, object]:
    """The merged tree of one platform, as data."""
    return {
        "platform": stack.platform,
        "digest": str(stack.digest),
        "layers": [
            {"digest": str(layer.digest), "entries": count}
            for layer, count in zip(stack.layers, tree.files, strict=True)
        ],
        "wasted": tree.wasted_size,
        "wasted_files": ({"path": path, "size": size} for path, size in _wasted(tree)),
        "files": map(_file, tree.walk()),
    }


def _wasted(tree: Tree) -> list[tuple[str, int]]:
    """Wasted bytes by path, the most first."""
    return sorted(tree.wasted.items(), key=lambda one: (-one[1], one[0]))


def _file(one: File) -> dict[str, object]:
    return {
        "path": one.path,
        "layer": one.layer,
        "kind": one.facts.kind,
        "mode": one.facts.mode,
        "size": one.facts.size,
        "target": one.facts.target,
    }
