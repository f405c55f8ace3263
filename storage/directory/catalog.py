"""Repository names of a directory tree in lexical order, a page at a time without a full walk."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mayfly.storage.directory_tree import DirectoryTree, HostDirectory
from mayfly.storage.errors import PathRefused
from mayfly.storage.reference import MAX_NAME_LENGTH, is_component
from mayfly.storage.sized_cache import SizedCache

_MARKS = ("_manifests", "_layers")

_LISTING_BYTES = 16 * 1024 * 1024
"""Memory for cached entries of all directories together: some 100,000 of them."""

_KEY_BYTES = 70
"""Bytes that an entry takes besides its text."""

_SETTLED_NS = 1_000_000_000
"""Nanoseconds within which a directory may change twice with one modification time."""


_Listing = tuple[int, list[str]]
"""A directory's modification time in nanoseconds, and its sorted keys."""


class Catalog:
    """The names below one directory. Safe for use from several threads.

    The sorted entries of a directory are cached while its modification time stays the same, so that
    a page among ten thousand neighbours costs no more than one among ten.
    """

    def __init__(self, repositories: Path, tree: DirectoryTree | None = None) -> None:
        self._repositories = repositories
        self._tree = tree or HostDirectory(repositories)
        self._listings: SizedCache[Path, _Listing] = SizedCache(_LISTING_BYTES, _size_of)
        self._unreadable: dict[Path, str] = {}

    def names_after(self, after: str, limit: int, prefix: str = "") -> list[str]:
        """Return up to ``limit`` names that follow ``after`` and begin with ``prefix``.

        Of the directories on the way to the prefix nothing else is read, so that the time does not
        depend on its siblings.
        """
        above = prefix[: prefix.rfind("/") + 1]
        directory = self._repositories
        try:
            for part in above.split("/")[:-1]:
                directory /= part
                if not (is_component(part) and self._tree.lists_directory(directory)):
                    return []
        except PermissionError:
            return []
        return list(islice(self._walk(directory, above, after, prefix), limit))

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
                # No repository has a longer name, so the walk of the deepest tree ends.
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
        # "a-b" sorts before "a/b". So a directory is two keys: the repository itself and, with a
        # slash, everything below it, whose names begin with that key. Keys stay sorted.
        try:
            names = _directories(directory, self._tree)
        except PermissionError as error:
            # One unreadable directory must not hide all repositories.
            self._unreadable[directory] = error.strerror or "cannot be read"
            return []
        self._unreadable.pop(directory, None)
        keys = sorted(key for name in names for key in (name, name + "/"))
        if time.time_ns() - changed > _SETTLED_NS:
            self._listings.put(directory, (changed, keys))
        return keys

    def unreadable(self) -> list[tuple[str, str]]:
        """Return the directories that could not be listed at the last attempt, and why."""
        return [
            (str(directory.relative_to(self._repositories)), reason)
            for directory, reason in sorted(self._unreadable.items())
        ]


def _size_of(listing: _Listing) -> int:
    _, keys = listing
    return sum(len(key) + _KEY_BYTES for key in keys)


def _start(keys: list[str], above: str, text: str) -> int:
    """Return the index of the first key with a name at or below it that follows ``text``."""
    rest = text[len(above) :] if text.startswith(above) else ""
    first, slash, _ = rest.partition("/")
    return bisect_left(keys, first + slash)


def upload_directories(repositories: Path) -> Iterator[Path]:
    """Yield every directory of upload sessions, also of repositories without other content."""
    tree = HostDirectory(repositories)
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
            if below <= MAX_NAME_LENGTH + 1:  # it ends with a slash
                waiting.append((directory / name, below))


def _directories(directory: Path, tree: DirectoryTree) -> list[str]:
    return [name for name in tree.directories(directory) if is_component(name)]


def is_repository(directory: Path, tree: DirectoryTree) -> bool:
    """Whether a directory is a repository, not only a parent of others or of uploads."""
    return any(tree.is_directory(directory / mark) for mark in _MARKS)
