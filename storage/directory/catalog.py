"""Repository names of a directory tree in lexical order, a page at a time without a full walk."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mayfly.storage.errors import PathRefused
from mayfly.storage.reference import MAX_NAME_LENGTH, is_component
from mayfly.storage.trees import HostTree, Tree

_MARKS = ("_manifests", "_layers")

_LISTINGS = 256
_ENTRIES = 200_000
"""What is remembered at most: directories, and names in all of them."""

_SETTLED_NS = 1_000_000_000
"""A directory that changed so lately may change again without another modification time."""


class Catalog:
    """The names below one directory. Safe for use from several threads.

    The sorted entries of a directory are remembered as long as its modification time stays, so that
    a page of ten thousand neighbours costs no more than one of ten.
    """

    def __init__(self, repositories: Path, tree: Tree | None = None) -> None:
        self._repositories = repositories
        self._tree = tree or HostTree(repositories)
        self._listings: OrderedDict[Path, tuple[int, list[str]]] = OrderedDict()
        self._held = 0
        self._unreadable: dict[Path, str] = {}
        self._lock = threading.Lock()

    def names_after(self, after: str, limit: int, prefix: str = "") -> list[str]:
        """Up to ``limit`` names that follow ``after`` and begin with ``prefix``.

        Only directories on the way are read.
        """
        return list(islice(self._walk(self._repositories, "", after, prefix), limit))

    def _walk(self, directory: Path, above: str, after: str, prefix: str) -> Iterator[str]:
        keys = self._keys(directory)
        start = max(_start(keys, above, text) for text in (after, prefix))
        for index in range(start, len(keys)):
            key = keys[index]
            full = above + key
            if not (full.startswith(prefix) or prefix.startswith(full)):
                if full > prefix:
                    return
                continue
            if key.endswith("/"):
                # No repository's name is longer, so that the deepest of trees has an end.
                deeper = len(full) < MAX_NAME_LENGTH
                if deeper and (full > after or after.startswith(full)):
                    yield from self._walk(directory / key[:-1], full, after, prefix)
            elif len(full) > MAX_NAME_LENGTH:
                continue
            elif (
                full > after
                and full.startswith(prefix)
                and is_repository(directory / key, self._tree)
            ):
                yield full

    def _keys(self, directory: Path) -> list[str]:
        try:
            found = self._tree.status(directory)
        except PathRefused:
            return []
        if found is None:
            return []
        changed = found.st_mtime_ns
        known = self._listings.get(directory)
        if known is not None and known[0] == changed:
            return known[1]
        # "a-b" sorts before "a/b": a directory is two entries, the repository itself and, with a
        # slash, all that lies below it; every name below begins with that key: keys stay sorted.
        try:
            names = _directories(directory, self._tree)
        except PermissionError as error:
            # One directory of somebody else's must not hide all repositories.
            self._unreadable[directory] = error.strerror or "cannot be read"
            return []
        self._unreadable.pop(directory, None)
        keys = sorted(key for name in names for key in (name, name + "/"))
        if time.time_ns() - changed > _SETTLED_NS:
            self._remember(directory, changed, keys)
        return keys

    def unreadable(self) -> list[tuple[str, str]]:
        """The directories that could not be listed when they were last looked at, and why."""
        return [
            (str(directory.relative_to(self._repositories)), reason)
            for directory, reason in sorted(self._unreadable.items())
        ]

    def _remember(self, directory: Path, changed: int, keys: list[str]) -> None:
        with self._lock:
            before = self._listings.pop(directory, None)
            self._held += len(keys) - (len(before[1]) if before is not None else 0)
            self._listings[directory] = changed, keys
            while len(self._listings) > _LISTINGS or self._held > _ENTRIES:
                _, (_, oldest) = self._listings.popitem(last=False)
                self._held -= len(oldest)


def _start(keys: list[str], above: str, text: str) -> int:
    """The index of the first key of a directory at or below which a name follows ``text``."""
    rest = text[len(above) :] if text.startswith(above) else ""
    first, slash, _ = rest.partition("/")
    return bisect_left(keys, first + slash)


def upload_directories(repositories: Path) -> Iterator[Path]:
    """Every directory of upload sessions, also of repositories that hold nothing else yet."""
    tree = HostTree(repositories)
    waiting = [(repositories, 0)]
    while waiting:
        directory, length = waiting.pop()
        uploads = directory / "_uploads"
        try:
            if uploads.is_dir():
                yield uploads
            names = _directories(directory, tree)
        except PermissionError:
            continue
        for name in names:
            below = length + len(name) + 1
            if below <= MAX_NAME_LENGTH + 1:  # with a slash at its end
                waiting.append((directory / name, below))


def _directories(directory: Path, tree: Tree) -> list[str]:
    return [name for name in tree.directories(directory) if is_component(name)]


def is_repository(directory: Path, tree: Tree) -> bool:
    """Whether a directory is a repository: one that only leads to others or to uploads is not."""
    return any(tree.is_directory(directory / mark) for mark in _MARKS)
