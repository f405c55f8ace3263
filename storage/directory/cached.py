"""Marks of content that came from an upstream registry, so that it is told from pushed content.

A mark is an empty file under the repository's ``_mayfly/cached``, which registry:2 and its garbage
collector ignore. A push removes the marks of the tag and manifest that it stores: from then on they
are the pusher's. A mark without its tag or manifest means nothing.

The mark's modification time is the record of the content's use:

    tags/<tag>                     when the upstream was last asked which manifest it points at
    manifests/<algorithm>/<hex>    when it was last pulled, to `COARSE_SECONDS`
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.layout import Layout
from mayfly.storage.directory.publish import Publisher
from mayfly.storage.directory_tree import DirectoryTree
from mayfly.storage.errors import DigestInvalid

COARSE_SECONDS = 600.0
"""Within which a further pull of a manifest is not recorded."""


class CacheMarks:
    """The marks of one store, to read them; every method is quick."""

    def __init__(self, layout: Layout, tree: DirectoryTree) -> None:
        self._layout = layout
        self._tree = tree

    def has_manifest(self, repository: str, digest: Digest) -> bool:
        """Whether a manifest came from an upstream."""
        return self.last_pulled(repository, digest) is not None

    def last_pulled(self, repository: str, digest: Digest) -> float | None:
        """Return when a manifest from an upstream was last pulled (Unix seconds, coarse).

        None for a manifest that was pushed, or is not there.
        """
        return self._time_of(self._layout.cached_manifest(repository, digest))

    def last_checked(self, repository: str, tag: str) -> float | None:
        """Return when the upstream was last asked for a tag (Unix seconds).

        None for a tag that was pushed, or is not there.
        """
        return self._time_of(self._layout.cached_tag(repository, tag))

    def manifests(self, repository: str) -> Iterator[Digest]:
        """Yield the manifests of a repository that have a mark, there or not."""
        directory = self._layout.cached_manifests(repository)
        for algorithm in digests.HEX_LENGTHS:
            for encoded in self._tree.entries(directory / algorithm):
                with contextlib.suppress(DigestInvalid):
                    yield digests.parse(f"{algorithm}:{encoded}")

    def _time_of(self, mark: Path) -> float | None:
        found = self._tree.status(mark)
        return None if found is None else found.st_mtime


class CacheMarker:
    """Sets and removes the marks of one store. Marks are durable when set."""

    def __init__(self, layout: Layout, publisher: Publisher) -> None:
        self._layout = layout
        self._publisher = publisher

    def set_manifest(self, repository: str, digest: Digest) -> None:
        """Mark a manifest as coming from an upstream and pulled now."""
        self._set(self._layout.cached_manifest(repository, digest))

    def set_tag(self, repository: str, tag: str) -> None:
        """Mark a tag as coming from an upstream, which was asked for it now."""
        self._set(self._layout.cached_tag(repository, tag))

    def _set(self, mark: Path) -> None:
        if mark.exists():
            _touch(mark)
        else:
            self._publisher.write(mark, b"")

    def remove(self, repository: str, digest: Digest, tags: tuple[str, ...]) -> None:
        """Remove the marks of a manifest and of tags, if they have any."""
        self._remove(self._layout.cached_manifest(repository, digest))
        for tag in tags:
            self.remove_tag(repository, tag)

    def remove_tag(self, repository: str, tag: str) -> None:
        """Remove the mark of a tag, if it has one."""
        self._remove(self._layout.cached_tag(repository, tag))

    def _remove(self, mark: Path) -> None:
        if mark.exists():
            self._publisher.remove(mark)

    def checked(self, repository: str, tag: str) -> None:
        """Quick. Record that the upstream was asked for a tag now."""
        _touch(self._layout.cached_tag(repository, tag))

    def pulled(self, repository: str, digest: Digest) -> None:
        """Quick. Record that a manifest is pulled now, unless one was recorded a moment ago."""
        mark = self._layout.cached_manifest(repository, digest)
        with contextlib.suppress(OSError):
            # A time in the future is a clock's that was set back.
            if not 0 <= time.time() - mark.stat().st_mtime < COARSE_SECONDS:
                _touch(mark)


def _touch(mark: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(mark)
