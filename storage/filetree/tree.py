"""The files inside an image: merge its layers as OverlayFS does, and compare two images.

    a name in an upper layer          replaces the lower one; two directories merge
    .wh.NAME                          deletes NAME of the layers below
    .wh..wh..opq                      deletes everything of the layers below in the directory

A whiteout never deletes entries of its own layer (OCI image-spec, layer.md, "Whiteouts"). Replaced
and deleted content is still in its layer: that is the wasted space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mayfly.storage.filetree.layer import Entry, LayerInvalid, Progress, entries
from mayfly.storage.interface import Content

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"

MAX_NODES = 1_000_000
"""Most files and directories of one image, some 400 bytes each; large ones have 200,000."""

_MAX_DEPTH = 2048
"""Most directories above a file: a path has 4096 bytes."""


class Facts(NamedTuple):
    """The properties of a file or directory.

    Attributes:
        kind: as of `storage.filetree.layer.Entry`; a hard link is a file, with its target's facts.
        mode, owner, size, target, content: see there.
    """

    kind: str
    mode: int
    owner: tuple[int, int]
    size: int
    target: str
    content: bytes


class File(NamedTuple):
    """A path of a merged tree.

    Attributes:
        path: without a leading slash.
        layer: that it comes from, counted from 1, bottom first.
        facts: see `Facts`.
    """

    path: str
    layer: int
    facts: Facts


_DIRECTORY = Facts("directory", 0o755, (0, 0), 0, "", b"")


@dataclass(slots=True)
class _Node:
    facts: Facts
    layer: int
    stored: int
    """Bytes that it takes in its layer; none for a hard link."""

    children: dict[str, _Node] | None = None
    swept: int = 0
    """The last layer whose whiteouts deleted all lower entries below it."""


@dataclass(slots=True)
class Tree:
    """The merged tree of an image.

    Attributes:
        wasted: by path, the bytes that an upper layer replaced or deleted.
        files: the number of entries of each layer.
    """

    wasted: dict[str, int] = field(default_factory=dict)
    files: list[int] = field(default_factory=list)
    _root: _Node = field(default_factory=lambda: _Node(_DIRECTORY, 0, 0, {}))
    _count: int = 0

    @property
    def wasted_size(self) -> int:
        """Bytes of replaced and deleted content."""
        return sum(self.wasted.values())

    def add(self, layer: Iterator[Entry]) -> None:
        """Put a layer on top.

        Raises:
            LayerInvalid: the tree has more than `MAX_NODES`.
        """
        number = len(self.files) + 1
        count = 0
        for entry in layer:
            count += 1
            self._add(entry, number)
        self.files.append(count)

    def walk(self) -> Iterator[File]:
        """Yield every path in order; directories before their content."""
        waiting = [("", self._root)]
        while waiting:
            path, node = waiting.pop()
            if path:
                yield File(path, node.layer, node.facts)
            for name in sorted(node.children or (), reverse=True):
                child = (node.children or {})[name]
                waiting.append((f"{path}/{name}" if path else name, child))

    def _add(self, entry: Entry, layer: int) -> None:
        directory, _, name = entry.path.rpartition("/")
        if not name:
            return  # the root itself
        parent = self._directory(directory, layer)
        assert parent.children is not None
        if name == _OPAQUE:
            if parent.swept == layer:
                return
            parent.swept = layer
            for child in list(parent.children):
                self._delete(parent, child, f"{directory}/{child}", layer)
        elif name.startswith(_WHITEOUT):
            hidden = name.removeprefix(_WHITEOUT)
            if hidden in parent.children:
                self._delete(parent, hidden, f"{directory}/{hidden}", layer)
        else:
            self._set(parent, name, entry, layer)

    def _set(self, parent: _Node, name: str, entry: Entry, layer: int) -> None:
        assert parent.children is not None
        facts, stored = Facts(*entry[1:]), entry.size
        if entry.kind == "hardlink":
            linked = self._find(entry.target)
            facts, stored = (linked.facts if linked else facts._replace(kind="file")), 0
        known = parent.children.get(name)
        if known is not None and entry.kind == "directory" and known.children is not None:
            known.facts, known.layer = facts, layer
            return
        if known is not None:
            self._forget(known, entry.path)
        self._grow()
        children: dict[str, _Node] | None = {} if entry.kind == "directory" else None
        parent.children[name] = _Node(facts, layer, stored, children)

    def _directory(self, path: str, layer: int) -> _Node:
        """Return the directory at a path; make it if no layer lists it."""
        node = self._root
        names = path.split("/") if path else []
        if len(names) > _MAX_DEPTH:
            raise LayerInvalid(f"it has directories more than {_MAX_DEPTH} deep")
        for depth, name in enumerate(names):
            assert node.children is not None
            child = node.children.get(name)
            if child is None or child.children is None:
                if child is not None:
                    self._forget(child, "/".join(names[: depth + 1]))
                self._grow()
                child = node.children[name] = _Node(_DIRECTORY, layer, 0, {})
            node = child
        return node

    def _find(self, path: str) -> _Node | None:
        node: _Node | None = self._root
        for name in path.strip("/").removeprefix("./").split("/"):
            node = (node.children or {}).get(name) if node else None
        return node

    def _delete(self, parent: _Node, name: str, path: str, layer: int) -> None:
        """Delete the entry of lower layers at a name; an entry of this layer stays."""
        assert parent.children is not None
        waiting = [(parent, name, path.strip("/"))]
        emptied: list[tuple[_Node, str]] = []
        while waiting:
            above, one, where = waiting.pop()
            assert above.children is not None
            node = above.children[one]
            if node.children:
                if node.swept == layer:
                    continue
                node.swept = layer
                emptied.append((above, one))
                waiting += [(node, child, f"{where}/{child}") for child in list(node.children)]
            elif node.layer < layer:
                del above.children[one]
                self._forget(node, where)
        for above, one in reversed(emptied):
            assert above.children is not None
            node = above.children[one]
            if not node.children and node.layer < layer:
                del above.children[one]
                self._count -= 1

    def _forget(self, node: _Node, path: str) -> None:
        """Count a node and everything below it as wasted."""
        waiting = [(node, path)]
        while waiting:
            one, where = waiting.pop()
            self._count -= 1
            if one.stored:
                self.wasted[where] = self.wasted.get(where, 0) + one.stored
            for name, child in (one.children or {}).items():
                waiting.append((child, f"{where}/{name}"))

    def _grow(self) -> None:
        self._count += 1
        if self._count + len(self.wasted) > MAX_NODES:
            raise LayerInvalid(f"the image has more than {MAX_NODES} files")


def merge(layers: Sequence[Content], progress: Progress = lambda size: None) -> Tree:
    """Return the tree of an image.

    Args:
        layers: bottom first.
        progress: see `storage.filetree.layer`.

    Raises:
        LayerInvalid, OSError: a layer cannot be read; the message has its number.
    """
    tree = Tree()
    for number, layer in enumerate(layers, 1):
        try:
            tree.add(entries(layer, progress))
        except LayerInvalid as error:
            raise LayerInvalid(f"layer {number}: {error.message}") from None
    return tree


class Change(NamedTuple):
    """A path that differs between two trees.

    Attributes:
        kind: added, changed or deleted.
        path: of it.
        old, new: None where that tree does not have it.
    """

    kind: str
    path: str
    old: Facts | None
    new: Facts | None


def compare(old: Tree, new: Tree) -> Iterator[Change]:
    """Yield the differences by path; another modification time alone is none."""
    olds, news = old.walk(), new.walk()
    left, right = next(olds, None), next(news, None)
    while left or right:
        # Both are in the order of `walk`: by the parts of a path.
        first = left is not None and (right is None or _key(left) < _key(right))
        if left is not None and first:
            yield Change("deleted", left.path, left.facts, None)
            left = next(olds, None)
        elif right is not None and (left is None or _key(left) > _key(right)):
            yield Change("added", right.path, None, right.facts)
            right = next(news, None)
        elif left is not None and right is not None:
            if left.facts != right.facts:
                yield Change("changed", left.path, left.facts, right.facts)
            left, right = next(olds, None), next(news, None)


def _key(file: File) -> list[str]:
    return file.path.split("/")
