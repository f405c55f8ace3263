"""Repository names of a directory tree in lexical order, a page at a time without a full walk."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from storage.names import is_component

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

    def __init__(self, repositories: Path) -> None:
        self._repositories = repositories
        self._listings: OrderedDict[Path, tuple[int, list[str]]] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def names_after(self, after: str, limit: int) -> list[str]:
        """Up to ``limit`` names that follow ``after``; only directories on the way are read."""
        return list(islice(self._walk(self._repositories, "", after), limit))

    def _walk(self, directory: Path, prefix: str, after: str) -> Iterator[str]:
        keys = self._keys(directory)
        rest = after[len(prefix) :] if after.startswith(prefix) else ""
        first, slash, _ = rest.partition("/")
        for index in range(bisect_left(keys, first + slash), len(keys)):
            key = keys[index]
            full = prefix + key
            if key.endswith("/"):
                if full > after or after.startswith(full):
                    yield from self._walk(directory / key[:-1], full, after)
            elif full > after and is_repository(directory / key):
                yield full

    def _keys(self, directory: Path) -> list[str]:
        try:
            changed = directory.stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return []
        known = self._listings.get(directory)
        if known is not None and known[0] == changed:
            return known[1]
        # "a-b" sorts before "a/b": a directory is two entries, the repository itself and, with a
        # slash, all that lies below it; every name below begins with that key: keys stay sorted.
        keys = sorted(key for name in _directories(directory) for key in (name, name + "/"))
        if time.time_ns() - changed > _SETTLED_NS:
            self._remember(directory, changed, keys)
        return keys

    def _remember(self, directory: Path, changed: int, keys: list[str]) -> None:
        with self._lock:
            before = self._listings.pop(directory, None)
            self._held += len(keys) - (len(before[1]) if before is not None else 0)
            self._listings[directory] = changed, keys
            while len(self._listings) > _LISTINGS or self._held > _ENTRIES:
                _, (_, oldest) = self._listings.popitem(last=False)
                self._held -= len(oldest)


def upload_directories(repositories: Path) -> Iterator[Path]:
    """Every directory of upload sessions, also of repositories that hold nothing else yet."""
    uploads = repositories / "_uploads"
    if uploads.is_dir():
        yield uploads
    for name in _directories(repositories):
        yield from upload_directories(repositories / name)


def _directories(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [e.name for e in entries if is_component(e.name) and e.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_repository(directory: Path) -> bool:
    """Whether a directory is a repository: one that only leads to others or to uploads is not."""
    return any((directory / mark).is_dir() for mark in _MARKS)
