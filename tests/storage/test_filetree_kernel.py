"""Merged file trees against the kernel's own OverlayFS, with layers made at random."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.storage.filetree.tree import Tree, merge
from mayfly.storage.interface import Extent
from tests.support.process import need_root

LAYERS = 4
NAMES = "abcd"
DEPTH = 3

Node = bytes | str | dict[str, Any] | None
"""A file, a link's target, a directory, a whiteout."""

OPAQUE = "opaque"
"""A name in a directory that hides what the layers below have there."""


def _directory(chance: random.Random, depth: int) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for name in NAMES:
        kind = chance.random()
        if kind < 0.3:
            found[name] = chance.randbytes(chance.randrange(1, 20))
        elif kind < 0.4:
            found[name] = chance.choice(NAMES)
        elif kind < 0.55:
            found[name] = None
        elif kind < 0.8 and depth < DEPTH:
            found[name] = _directory(chance, depth + 1)
            if chance.random() < 0.2:
                found[name][OPAQUE] = None  # type: ignore[index]
    return found


def _write(directory: Path, made: dict[str, Node]) -> None:
    """Write a layer as a runtime unpacks it."""
    for name, node in made.items():
        path = directory / name
        if name == OPAQUE:
            os.setxattr(directory, "trusted.overlay.opaque", b"y")
        elif node is None:
            os.mknod(path, 0o600 | 0o020000, os.makedev(0, 0))
        elif isinstance(node, bytes):
            path.write_bytes(node)
        elif isinstance(node, str):
            path.symlink_to(node)
        else:
            path.mkdir()
            _write(path, node)


def _pack(
    archive: tarfile.TarFile, prefix: str, made: dict[str, Node], order: random.Random
) -> None:
    """Add a layer to a tar, in any order, its directories with entries of their own or without."""
    for name in order.sample(list(made), len(made)):
        node = made[name]
        member = tarfile.TarInfo(prefix + name)
        if name == OPAQUE:
            archive.addfile(tarfile.TarInfo(f"{prefix}.wh..wh..opq"))
        elif node is None:
            archive.addfile(tarfile.TarInfo(f"{prefix}.wh.{name}"))
        elif isinstance(node, bytes):
            member.size = len(node)
            archive.addfile(member, io.BytesIO(node))
        elif isinstance(node, str):
            member.type, member.linkname = tarfile.SYMTYPE, node
            archive.addfile(member)
        else:
            if not node or order.random() < 0.7:
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            _pack(archive, f"{prefix}{name}/", node, order)


def _seen(top: Path) -> Iterator[tuple[str, str, bytes]]:
    """Every path below a mounted tree: its kind, and what tells its content."""
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(directory, name)
            where = str(path.relative_to(top))
            if not os.path.lexists(path):
                continue  # a whiteout of nothing is listed, but not there
            if path.is_symlink():
                yield where, "symlink", str(path.readlink()).encode()
            elif path.is_dir():
                yield where, "directory", b""
            else:
                yield where, "file", hashlib.blake2b(path.read_bytes(), digest_size=16).digest()


def _shown(tree: Tree) -> Iterator[tuple[str, str, bytes]]:
    for one in tree.walk():
        yield one.path, one.facts.kind, one.facts.content or one.facts.target.encode()


@pytest.mark.parametrize("seed", range(40))
def test_the_kernel_shows_the_same(tmp_path: Path, seed: int) -> None:
    """Every path, kind and content that the union mount shows, and no other."""
    need_root()
    chance = random.Random(seed)
    extents = []
    for number in range(LAYERS):
        made = _directory(chance, 0)
        (tmp_path / f"layer{number}").mkdir()
        _write(tmp_path / f"layer{number}", made)
        packed = tmp_path / f"{number}.tar"
        with tarfile.open(packed, "w") as archive:
            _pack(archive, "", made, chance)
        extents.append(Extent(packed, 0, packed.stat().st_size))
    mounted = tmp_path / "merged"
    mounted.mkdir()
    lower = ":".join(str(tmp_path / f"layer{number}") for number in reversed(range(LAYERS)))
    mount = ["mount", "-t", "overlay", "none", "-o", f"lowerdir={lower}", str(mounted)]
    subprocess.run(mount, check=True, timeout=30)
    try:
        assert sorted(_shown(merge(extents))) == sorted(_seen(mounted))
    finally:
        subprocess.run(["umount", str(mounted)], check=True, timeout=30)
