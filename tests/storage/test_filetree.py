"""File trees as a union mount shows them: whiteouts, replaced files, waste, and hostile layers."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from mayfly.storage.filetree import layer, tree
from mayfly.storage.filetree.layer import LayerInvalid, entries
from mayfly.storage.filetree.tree import Tree, compare, merge
from mayfly.storage.interface import Extent

Made = dict[str, bytes | str | None]
"""Path → content of a file, "-> TARGET" of a link, "= TARGET" of a hard link, None: a directory."""


def _tar(made: Made, **fields: int) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in made.items():
            member = tarfile.TarInfo(name)
            member.mode = fields.get("mode", 0o644)
            if content is None:
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            elif isinstance(content, str):
                mark, _, member.linkname = content.partition(" ")
                member.type = tarfile.SYMTYPE if mark == "->" else tarfile.LNKTYPE
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return output.getvalue()


@pytest.fixture
def extent(tmp_path: Path) -> object:
    """Makes the extent of a layer, not at the begin of its file."""
    made = iter(range(1000))

    def make(data: bytes) -> Extent:
        path = tmp_path / str(next(made))
        path.write_bytes(b"before" + data + b"after")
        return Extent(path, 6, len(data))

    return make


def _merged(extent, *layers: Made) -> Tree:  # type: ignore[no-untyped-def]
    return merge([extent(gzip.compress(_tar(one))) for one in layers])


def _paths(found: Tree) -> dict[str, int]:
    return {one.path: one.layer for one in found.walk()}


def test_layers_merge(extent) -> None:  # type: ignore[no-untyped-def]
    """Directories merge, files are replaced, each path comes from the last layer that has it."""
    found = _merged(
        extent,
        {"./etc/": None, "etc/a": b"1", "etc/b": b"22", "bin": "-> usr/bin"},
        {"etc/a": b"333", "usr/bin/x": b"4444"},
    )
    assert _paths(found) == {
        "bin": 1, "etc": 1, "etc/a": 2, "etc/b": 1, "usr": 2, "usr/bin": 2, "usr/bin/x": 2,
    }  # fmt: skip
    assert found.wasted == {"etc/a": 1}
    assert found.files == [4, 2]


@pytest.mark.parametrize(
    ("upper", "left"),
    [
        ({"d/.wh.a": b""}, {"d", "d/sub", "d/sub/b", "e"}),
        ({".wh.d": b""}, {"e"}),
        ({".wh.d": b"", "d": b"file"}, {"d", "e"}),
        ({"d": b"file", ".wh.d": b""}, {"d", "e"}),
        ({"d/new": b"n", ".wh.d": b""}, {"d", "d/new", "e"}),
        ({"d/new": b"n", "d/.wh..wh..opq": b""}, {"d", "d/new", "e"}),
        ({"d/.wh..wh..opq": b"", "d/new": b"n"}, {"d", "d/new", "e"}),
        ({"d": b"file"}, {"d", "e"}),
        ({"e/f": b"x"}, {"d", "d/a", "d/sub", "d/sub/b", "e", "e/f"}),
        ({".wh.none": b"", "none/.wh.x": b""}, {"d", "d/a", "d/sub", "d/sub/b", "e", "none"}),
    ],
)
def test_whiteouts(extent, upper: Made, left: set[str]) -> None:  # type: ignore[no-untyped-def]
    """They delete what lies below, never what their own layer brings, in either order."""
    lower: Made = {"d/a": b"a", "d/sub/b": b"bb", "e": b"eee"}
    found = _merged(extent, lower, upper)
    assert set(_paths(found)) == left
    gone = {"d/a", "d/sub/b", "e"} - {path for path, number in _paths(found).items() if number == 1}
    assert set(found.wasted) == gone


def test_hard_links(extent) -> None:  # type: ignore[no-untyped-def]
    """A hard link is the file that it names, and takes no space of its own."""
    found = _merged(extent, {"a": b"content"}, {"b": "= a"}, {".wh.b": b""})
    assert found.wasted == {}
    found = _merged(extent, {"a": b"content", "b": "= ./a"})
    facts = {one.path: one.facts for one in found.walk()}
    assert facts["a"] == facts["b"]


def test_comparing(extent) -> None:  # type: ignore[no-untyped-def]
    """Added, changed and deleted, in the order of the paths; a name before what extends it."""
    old = _merged(extent, {"a-b": b"1", "a/x": b"1", "a/y": b"1", "link": "-> a"})
    new = _merged(extent, {"a-b": b"1", "a/x": b"2", "a/z/w": b"1", "link": "-> b"})
    found = [(one.kind, one.path) for one in compare(old, new)]
    assert found == [
        ("changed", "a/x"),
        ("deleted", "a/y"),
        ("added", "a/z"),
        ("added", "a/z/w"),
        ("changed", "link"),
    ]
    assert list(compare(old, old)) == []


def _header(name: bytes, kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo(name.decode())
    member.type, member.size = kind, size
    return member.tobuf(tarfile.USTAR_FORMAT)


def _many(count: int) -> bytes:
    return b"".join(_header(b"%d" % number, b"0", 0) for number in range(count)) + bytes(1024)


HOSTILE = {
    "no tar": b"x" * 2000,
    "a long pax header": _header(b"p", b"x", 2**30) + bytes(2**22),
    "a long name": _header(b"l", b"L", 2**30) + bytes(2**22),
    "a chain of pax headers": b"".join(_header(b"p", b"x", 0) for _ in range(4000)),
    "a sparse map": _header(b"s", b"S", 512) + bytes(2**20),
    "a damaged header": _tar({"a": b"1"})[:1024] + b"\xff" * 512 + bytes(1024),
    "a file that is cut": _tar({"a": b"1" * 5000})[:2048],
    "a negative size": _header(b"n", b"0", 0)[:124] + b"\xff" * 12 + bytes(376),
    "a negative size before much content": _header(b"n", b"0", 0)[:124]
    + (-1).to_bytes(12, "big", signed=True)
    + _header(b"n", b"0", 0)[136:]
    + bytes(2**20),
    "a name that is too long": _tar({"a/" * 3000: None}),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("is_compressed", [True, False])
def test_hostile_layers_are_errors(  # type: ignore[no-untyped-def]
    extent, name: str, is_compressed: bool
) -> None:
    """One line each, and little memory."""
    data = HOSTILE[name]
    made = extent(gzip.compress(data) if is_compressed else data)
    tracemalloc.start()
    try:
        with pytest.raises(LayerInvalid):
            list(entries(made))
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_global_headers_are_not_kept(extent) -> None:  # type: ignore[no-untyped-def]
    """However many a layer has, each is forgotten before the next."""
    text = b"".join(b"30 k%06d=0123456789012345678\n" % number for number in range(2000))
    one = _header(b"g", b"g", len(text)) + text + bytes(-len(text) % 512) + _header(b"f", b"0", 0)
    made = extent(gzip.compress(one * 100 + bytes(1024)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in entries(made)) == 100
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_repeated_whiteouts_look_once(extent, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """What a layer's first whiteout of a directory has left is not looked at by the others."""
    looks = 0
    delete = Tree._delete

    def counted(self: Tree, *words: Any) -> None:
        nonlocal looks
        looks += 1
        delete(self, *words)

    monkeypatch.setattr(Tree, "_delete", counted)
    made = b"".join(_header(b"d/%d" % number, b"0", 0) for number in range(200))
    made += b"".join(_header(b"d/.wh..wh..opq", b"0", 0) for _ in range(200))
    merged = merge([extent(made + bytes(1024))])
    assert sum(1 for _ in merged.walk()) == 201
    assert looks == 200


def test_a_bomb_is_ended(extent, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """A layer that expands out of proportion is an error, and a cut or damaged one, too."""
    monkeypatch.setattr(layer, "_FLOOR", 2**20)
    bomb = gzip.compress(_tar({"zeros": bytes(2**24)}))
    with pytest.raises(LayerInvalid, match="expands"):
        list(entries(extent(bomb)))
    good = gzip.compress(_tar({"a": bytes(range(256)) * 100}))
    for data in (good[: len(good) // 2], good[:200] + b"\0" * 20 + good[220:]):
        with pytest.raises(LayerInvalid):
            list(entries(extent(data)))


def test_too_many_files_are_refused(extent, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """The tree has a bound, and so has its depth."""
    monkeypatch.setattr(tree, "MAX_NODES", 1000)
    with pytest.raises(LayerInvalid, match="layer 1: the image has more than 1000 files"):
        merge([extent(_many(1500))])
    # Replaced over and over, they do not count as many.
    merge([extent(_many(500)) for _ in range(3)])
