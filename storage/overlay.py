"""A writable store over read-only layers: the union mount of the container world, for a registry.

    pushes, links, whiteouts ──► upper: the registry:2 directory
    reads ◄── upper, and where it has nothing, the layers beneath without what whiteouts hide

Of the upper store this is one itself (a subclass), so that every write is the one that
`DistributionStore` makes and only reading looks further; a manifest may therefore name, and a
mount may take, what only a layer has. Nothing is copied up: a mounted blob is a link in the upper
store whose bytes stay in the layer. Served later without that layer, such a link leads nowhere and
its blob is unknown. The layers are never written to, nor are their files' times.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from mayfly.storage.bundle.layer import Layer
from mayfly.storage.bundle.stack import distinct, merge_names, merge_referrers, merge_tags
from mayfly.storage.digest import Digest
from mayfly.storage.directory.catalog import is_repository
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import ManifestUnknown
from mayfly.storage.interface import Extent
from mayfly.storage.whiteouts import Masked, Whiteouts


class OverlayStore(DistributionStore):
    """See `storage.interface.Store`.

    Args:
        root: of the upper store; made when missing.
        lower: what lies beneath; closed by its owner, after this.
        allow_sparse: take manifests that name content the repository does not hold.
        reserve: see `storage.directory.space.Space`.
    """

    def __init__(
        self, root: Path, lower: Layer, *, allow_sparse: bool = False, reserve: int | None = None
    ) -> None:
        super().__init__(root, allow_sparse=allow_sparse, reserve=reserve)
        self._whiteouts = Whiteouts(self._layout, self._publisher)
        self._lower = Masked(lower, self._whiteouts)

    def has_repository(self, repository: str) -> bool:
        """Quick. Whether something was pushed under exactly this name."""
        return is_repository(self._layout.repository(repository), self._tree)

    # Reading

    def blob(self, repository: str, digest: Digest) -> Extent:
        # A layer's manifest may name any digest: that alone gives its repository no content of the
        # store's other repositories. A link in the store was made by a push or a mount.
        if self._links(repository, digest):
            found = self._content(digest) or self._lower.content(digest)
            if found is not None:
                return found
        return self._lower.blob(repository, digest)

    def manifest(self, repository: str, digest: Digest) -> Extent:
        try:
            return super().manifest(repository, digest)
        except ManifestUnknown:
            return self._lower.manifest(repository, digest)

    def tag(self, repository: str, tag: str) -> Digest:
        try:
            return super().tag(repository, tag)
        except ManifestUnknown:
            return self._lower.tag(repository, tag)

    def tags(self, repository: str) -> list[str]:
        return merge_tags(repository, [super().tags, self._lower.tags])

    def repositories(self, after: str, limit: int, prefix: str = "") -> list[str]:
        sources = (super().repositories, self._lower.repositories)
        return merge_names([source(after, limit, prefix) for source in sources], limit)

    def holders(self, digest: Digest) -> Iterator[str]:
        return distinct([self._lower.holders(digest), super().holders(digest)])

    def referrers(
        self, repository: str, subject: Digest, after: str = ""
    ) -> Iterator[dict[str, object]]:
        sources = (super().referrers, self._lower.referrers)
        return merge_referrers(source(repository, subject, after) for source in sources)

    def revisions(self, repository: str) -> Iterator[Digest]:
        # The collector marks by these: what was pushed to complete or mend a layer is kept too.
        return chain(super().revisions(repository), self._lower.revisions(repository))

    # Deleting: the whiteout comes first. A crash in between leaves the deletion undone, never what
    # it uncovers in the place of what it removed.

    def delete_blob(self, repository: str, digest: Digest) -> None:
        below, here = self._lower.links(repository, digest), self._links(repository, digest)
        if below:
            self._whiteouts.hide_blob(repository, digest)
        if here or not below:
            super().delete_blob(repository, digest)

    def _delete_manifest(self, repository: str, digest: Digest) -> None:
        self.manifest(repository, digest)
        for tag in self.tags(repository):
            if self.read_link(self._layout.tag_link(repository, tag)) == digest:
                self._hide_below(repository, tag)
        if digest in self._lower.revisions(repository):
            self._whiteouts.hide_manifest(repository, digest)
        if self.is_linked(repository, digest):
            super()._delete_manifest(repository, digest)

    def _delete_tag(self, repository: str, tag: str) -> None:
        self.tag(repository, tag)
        self._hide_below(repository, tag)
        if self._layout.tag_link(repository, tag).exists():
            super()._delete_tag(repository, tag)

    def _hide_below(self, repository: str, tag: str) -> None:
        """Hide what a layer has under a tag, whatever that points at."""
        with contextlib.suppress(ManifestUnknown):
            self._whiteouts.hide_tag(repository, tag, self._lower.tag(repository, tag))

    def _links(self, repository: str, digest: Digest) -> bool:
        return self._tree.is_file(self._layout.layer_link(repository, digest))

    def _touch(self, extent: Extent) -> None:  # type: ignore[override]
        # Only what the collector may remove has an age that matters; a layer's file is its own.
        if extent.path.is_relative_to(self._layout.blobs):
            DistributionStore._touch(extent)
