"""A disk that loses what was not synced, and every state in which a power cut may leave it.

The model, weaker than what ext4, XFS and Btrfs promise:

- The content of a file is durable once the file was synced. Until then it may be there, be lost
  from where it was synced last, or be zeros of the same length.
- A name is durable once its directory was synced. Until then each change of a directory is durable
  or not for itself, in any combination with others, but changes of one name stay in their order. To
  sync a file does not make its name durable.
- rename(2) is one change: never both names nor neither. These filesystems have a journal, or a
  tree, for that; on one that has none (ext2) nothing of this holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.power_trace import Step

Tree = dict[str, bytes | None]
"""Every path and the content of the file; None for a directory."""

Name = tuple[int, str]
"""A directory, by inode, and a name in it."""

Change = dict[Name, int | None]
"""Names and the inode each stands for from then on."""


@dataclass
class _File:
    content: bytes = b""
    synced: bytes = b""

    def after(self, fate: str) -> bytes:
        """What is found after the power cut."""
        if fate == "kept" or self.content == self.synced:
            return self.content
        if fate == "lost" or not self.content.startswith(self.synced):
            return self.synced
        return self.synced + bytes(len(self.content) - len(self.synced))


FATES = ("kept", "lost", "zeros")


@dataclass
class Disk:
    """Follows the steps of a process. ``window`` is how many of the last changes are combined one
    by one; older ones are durable all together or not at all.
    """

    window: int
    _files: dict[int, _File] = field(default_factory=dict)
    _visible: dict[Name, int] = field(default_factory=dict)
    _durable: dict[Name, int] = field(default_factory=dict)
    _pending: list[Change] = field(default_factory=list)
    _inodes: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def do(self, step: Step) -> None:
        """A step was made, and is not durable yet unless it syncs."""
        match step.kind:
            case "create":
                if self._find(step.path) is None:
                    inode = next(self._inodes)
                    self._files[inode] = _File()
                    self._change({self._name(step.path): inode})
            case "mkdir":
                self._change({self._name(step.path): next(self._inodes)})
            case "remove":
                self._change({self._name(step.path): None})
            case "rename":
                moved = self._find(step.path)
                assert moved is not None, step
                if moved != self._find(step.target):
                    self._change({self._name(step.path): None, self._name(step.target): moved})
            case "write" | "truncate":
                file = self._files[self._known(step.path)]
                at = len(file.content) if step.at is None else step.at
                rest = b"" if step.kind == "truncate" else file.content[at + len(step.data) :]
                file.content = file.content[:at].ljust(at, b"\0") + step.data + rest
            case "sync":
                self._sync(self._known(step.path))
            case "sync everything":
                self._durable, self._pending = dict(self._visible), []
                for file in self._files.values():
                    file.synced = file.content

    def tree(self) -> Tree:
        """What a process sees: everything, durable or not."""
        return self._tree(self._visible, "kept")

    def after_power_loss(self) -> Iterator[Tree]:
        """The states that a power cut now may leave, each once."""
        seen = set()
        for kept in self._choices():
            names = dict(self._durable)
            for number in kept:
                _apply(self._pending[number], names)
            for fate in FATES:
                tree = self._tree(names, fate)
                if (key := frozenset(tree.items())) not in seen:
                    seen.add(key)
                    yield tree

    def _choices(self) -> Iterator[list[int]]:
        """Which of the pending changes are durable: none, all, all but one, and only one."""
        everything = range(len(self._pending))
        yield []
        yield list(everything)
        for one in everything[-self.window :]:
            lost = self._related(one, range(one, len(self._pending)))
            yield [number for number in everything if number not in lost]
            yield sorted(self._related(one, range(one, -1, -1)))

    def _related(self, one: int, others: Iterable[int]) -> set[int]:
        """A change and those of the others, in this order, that change the same names."""
        names: set[Name] = set(self._pending[one])
        found = set()
        for number in others:
            if number == one or names & self._pending[number].keys():
                found.add(number)
                names |= self._pending[number].keys()
        return found

    def _sync(self, inode: int) -> None:
        if inode in self._files:
            self._files[inode].synced = self._files[inode].content
            return
        names: set[Name] = set()
        kept: list[Change] = []
        durable: list[Change] = []
        for change in reversed(self._pending):
            if names & change.keys() or any(directory == inode for directory, _ in change):
                names |= change.keys()
                durable.append(change)
            else:
                kept.append(change)
        for change in reversed(durable):
            _apply(change, self._durable)
        self._pending = kept[::-1]

    def _change(self, change: Change) -> None:
        _apply(change, self._visible)
        self._pending.append(change)

    def _name(self, path: str) -> Name:
        parent, name = Path(path).parent, Path(path).name
        return self._known(str(parent)), name

    def _known(self, path: str) -> int:
        inode = self._find(path)
        assert inode is not None, f"{path} is not known"
        return inode

    def _find(self, path: str) -> int | None:
        inode: int | None = 0
        for part in Path(path).parts:
            inode = self._visible.get((inode, part)) if inode is not None else None
        return inode

    def _tree(self, names: dict[Name, int], fate: str) -> Tree:
        entries: dict[int, list[tuple[str, int]]] = {}
        for (directory, name), inode in names.items():
            entries.setdefault(directory, []).append((name, inode))
        tree: Tree = {}
        todo = [("", 0)]
        while todo:
            prefix, directory = todo.pop()
            for name, inode in entries.get(directory, ()):
                path = f"{prefix}{name}"
                if inode in self._files:
                    tree[path] = self._files[inode].after(fate)
                else:
                    tree[path] = None
                    todo.append((f"{path}/", inode))
        return tree


def _apply(change: Change, names: dict[Name, int]) -> None:
    for name, inode in change.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def build(tree: Tree, home: Path) -> None:
    """Make a directory that looks so."""
    home.mkdir(parents=True)
    for path, content in sorted(tree.items()):
        if content is None:
            (home / path).mkdir()
        else:
            (home / path).write_bytes(content)


def look(home: Path) -> Tree:
    """What a directory looks like."""
    return {
        str(path.relative_to(home)): path.read_bytes() if path.is_file() else None
        for path in home.rglob("*")
    }
