"""Repository names of a directory tree in lexical order, a page at a time without a full walk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from storage.names import is_component

_MARKS = ("_manifests", "_layers")


def names_after(repositories: Path, after: str, limit: int) -> list[str]:
    """Up to ``limit`` names that follow ``after``; only the directories on the way are read."""
    return list(islice(_walk(repositories, "", after), limit))


def upload_directories(repositories: Path) -> Iterator[Path]:
    """Every directory of upload sessions, also of repositories that hold nothing else yet."""
    uploads = repositories / "_uploads"
    if uploads.is_dir():
        yield uploads
    for name in _directories(repositories):
        yield from upload_directories(repositories / name)


def _walk(directory: Path, prefix: str, after: str) -> Iterator[str]:
    # "a-b" sorts before "a/b": a directory is two entries, the repository itself and, with a
    # slash, all that lies below it; every name below begins with that key, so keys stay sorted.
    keys = [key for name in _directories(directory) for key in (name, name + "/")]
    for key in sorted(keys):
        full = prefix + key
        if key.endswith("/"):
            if full > after or after.startswith(full):
                yield from _walk(directory / key[:-1], full, after)
        elif full > after and is_repository(directory / key):
            yield full


def _directories(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [e.name for e in entries if is_component(e.name) and e.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_repository(directory: Path) -> bool:
    """Whether a directory is a repository: one that only leads to others or to uploads is not."""
    return any((directory / mark).is_dir() for mark in _MARKS)
