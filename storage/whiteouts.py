"""Whiteouts: marks in the upper store that hide deleted content of the lower stores.

A whiteout is an empty file under the repository's ``_mayfly/whiteouts``, which registry:2 and its
garbage collector ignore. It names hidden content by its digest, a tag by tag and digest, so a newer
bundle with another image under the same tag is not hidden. Whiteouts hide lower stores only:
content that is pushed again lies in the upper store and is seen, so none ever has to be removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mayfly.storage.bundle.errors import NotReady
from mayfly.storage.digest import Digest
from mayfly.storage.directory.layout import Layout
from mayfly.storage.directory.publish import Publisher
from mayfly.storage.errors import (
    ManifestUnknown,
    blob_unknown,
    manifest_unknown,
    repository_unknown,
)
from mayfly.storage.interface import Extent, LowerStore
from mayfly.storage.reference import check_tag


class Whiteouts:
    """The whiteouts of one store. Reading them is quick; they are durable when set."""

    def __init__(self, layout: Layout, publisher: Publisher) -> None:
        self._layout = layout
        self._publisher = publisher

    def any(self, repository: str) -> bool:
        """Whether anything is hidden in a repository."""
        return self._layout.whiteouts(repository).is_dir()

    def hides_blob(self, repository: str, digest: Digest) -> bool:
        """Whether a blob is hidden."""
        return self._blob(repository, digest).exists()

    def hides_manifest(self, repository: str, digest: Digest) -> bool:
        """Whether a manifest is hidden."""
        return self._manifest(repository, digest).exists()

    def hides_tag(self, repository: str, tag: str, digest: Digest) -> bool:
        """Whether a tag is hidden while it points at ``digest``."""
        return self._tag(repository, tag, digest).exists()

    def hide_blob(self, repository: str, digest: Digest) -> None:
        """Hide a blob of one repository."""
        self._publisher.write(self._blob(repository, digest), b"")

    def hide_manifest(self, repository: str, digest: Digest) -> None:
        """Hide a manifest of one repository, and with it the tags that point at it."""
        self._publisher.write(self._manifest(repository, digest), b"")

    def hide_tag(self, repository: str, tag: str, digest: Digest) -> None:
        """Hide a tag for as long as it points at ``digest``."""
        self._publisher.write(self._tag(repository, tag, digest), b"")

    def _blob(self, repository: str, digest: Digest) -> Path:
        return self._layout.whiteout(repository, "blobs", digest)

    def _manifest(self, repository: str, digest: Digest) -> Path:
        return self._layout.whiteout(repository, "manifests", digest)

    def _tag(self, repository: str, tag: str, digest: Digest) -> Path:
        return self._layout.whiteout(repository, f"tags/{check_tag(tag)}", digest)


class Masked:
    """A lower store without its hidden content; see `storage.interface.LowerStore`.

    A repository all of whose manifests are hidden does not exist.
    """

    def __init__(self, lower: LowerStore, whiteouts: Whiteouts) -> None:
        self._lower = lower
        self._whiteouts = whiteouts

    def blob(self, repository: str, digest: Digest) -> Extent:
        if self._whiteouts.hides_blob(repository, digest):
            raise blob_unknown(digest)
        return self._lower.blob(repository, digest)

    def manifest(self, repository: str, digest: Digest) -> Extent:
        found = self._lower.manifest(repository, digest)
        if self._whiteouts.hides_manifest(repository, digest):
            raise manifest_unknown(digest)
        return found

    def tag(self, repository: str, tag: str) -> Digest:
        digest = self._lower.tag(repository, tag)
        hidden = self._whiteouts.hides_tag(repository, tag, digest)
        if hidden or self._whiteouts.hides_manifest(repository, digest):
            raise manifest_unknown(tag)
        return digest

    def tags(self, repository: str) -> list[str]:
        names = self._lower.tags(repository)
        if not self._whiteouts.any(repository):
            return names
        shown = [name for name in names if self._shows_tag(repository, name)]
        if not shown and not self._shows(repository):
            raise repository_unknown(repository)
        return shown

    def has_repository(self, repository: str) -> bool:
        return self._lower.has_repository(repository) and self._shows(repository)

    def repositories(self, after: str, limit: int, prefix: str = "") -> list[str]:
        found: list[str] = []
        while len(found) < limit and (page := self._lower.repositories(after, limit, prefix)):
            found += [name for name in page if self._shows(name)]
            after = page[-1]
        return found[:limit]

    def repositories_with(self, digest: Digest) -> Iterator[str]:
        for name in self._lower.repositories_with(digest):
            if not self._whiteouts.hides_blob(name, digest):
                yield name

    def referrers(
        self, repository: str, subject: Digest, after: str = ""
    ) -> Iterator[dict[str, object]]:
        hidden = self._whiteouts.any(repository)
        shown = {str(digest) for digest in self.revisions(repository)} if hidden else ()
        for descriptor in self._lower.referrers(repository, subject, after):
            if not hidden or descriptor["digest"] in shown:
                yield descriptor

    def links(self, repository: str, digest: Digest) -> bool:
        linked = self._lower.links(repository, digest)
        return linked and not self._whiteouts.hides_blob(repository, digest)

    def content(self, digest: Digest) -> Extent | None:
        return self._lower.content(digest)

    def revisions(self, repository: str) -> Iterator[Digest]:
        for digest in self._lower.revisions(repository):
            if not self._whiteouts.hides_manifest(repository, digest):
                yield digest

    def _shows(self, repository: str) -> bool:
        return not self._whiteouts.any(repository) or any(self.revisions(repository))

    def _shows_tag(self, repository: str, tag: str) -> bool:
        try:
            self.tag(repository, tag)
        except ManifestUnknown:
            return False
        except NotReady:
            return True
        return True
