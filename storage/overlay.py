"""A writable store over read-only ones: the union mount of the container world, for a registry.

    pushes, links, whiteouts ──► upper: the registry:2 directory
    reads ◄── upper; for content it lacks, the lower stores without content that whiteouts hide

The upper store makes every change. It looks up references of a push in the overlay, so a manifest
may name, and a mount may take, content that only a lower store has. Nothing is copied up: a mounted
blob is a link in the upper store whose bytes stay below. Without that lower store such a link leads
nowhere and its blob is unknown. Lower stores are never written to, nor are their files' times.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import chain

from mayfly.storage.bundle.union import distinct, merge_names, merge_referrers, merge_tags
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import ManifestUnknown
from mayfly.storage.interface import Extent, LowerStore, Upload
from mayfly.storage.manifest import Manifest
from mayfly.storage.whiteouts import Masked, Whiteouts


class OverlayStore:
    """See `storage.interface.Store` and `storage.upkeep.maintainable.Maintainable`.

    Args:
        upper: takes the changes; closed with this.
        lower: the store beneath; closed by its owner, after this.
    """

    def __init__(self, upper: DistributionStore, lower: LowerStore) -> None:
        self._upper = upper
        self._whiteouts = Whiteouts(upper.parts.layout, upper.parts.publisher)
        self._lower = Masked(lower, self._whiteouts)

    @property
    def upper(self) -> DistributionStore:
        return self._upper

    def close(self) -> None:
        """See `storage.directory.store.DistributionStore.close`."""
        self._upper.close()

    def interrupt(self) -> None:
        self._upper.interrupt()

    # Reading

    def blob(self, repository: str, digest: Digest) -> Extent:
        # A lower store's manifest may name any digest: that alone gives its repository no content
        # of the upper store's other repositories. A link there was made by a push or a mount.
        if self._upper.links(repository, digest):
            found = self.content(digest)
            if found is not None:
                return found
        return self._lower.blob(repository, digest)

    def manifest(self, repository: str, digest: Digest) -> Extent:
        try:
            return self._upper.manifest(repository, digest)
        except ManifestUnknown:
            return self._lower.manifest(repository, digest)

    def tag(self, repository: str, tag: str) -> Digest:
        try:
            return self._upper.tag(repository, tag)
        except ManifestUnknown:
            return self._lower.tag(repository, tag)

    def tags(self, repository: str) -> list[str]:
        return merge_tags(repository, [self._upper.tags, self._lower.tags])

    def has_repository(self, repository: str) -> bool:
        sources = (self._upper, self._lower)
        return any(source.has_repository(repository) for source in sources)

    def repositories(self, after: str, limit: int, prefix: str = "") -> list[str]:
        sources = (self._upper.repositories, self._lower.repositories)
        return merge_names([source(after, limit, prefix) for source in sources], limit)

    def repositories_with(self, digest: Digest) -> Iterator[str]:
        sources = (self._lower, self._upper)
        return distinct(source.repositories_with(digest) for source in sources)

    def referrers(
        self, repository: str, subject: Digest, after: str = ""
    ) -> Iterator[dict[str, object]]:
        sources = (self._upper, self._lower)
        return merge_referrers(source.referrers(repository, subject, after) for source in sources)

    def links(self, repository: str, digest: Digest) -> bool:
        """See `storage.interface.LowerStore`."""
        sources = (self._upper, self._lower)
        return any(source.links(repository, digest) for source in sources)

    def content(self, digest: Digest) -> Extent | None:
        """See `storage.interface.LowerStore`."""
        return self._upper.content(digest) or self._lower.content(digest)

    def revisions(self, repository: str) -> Iterator[Digest]:
        """See `storage.interface.LowerStore`; the collector keeps the content of all of them."""
        return chain(self._upper.revisions(repository), self._lower.revisions(repository))

    # Writing

    def check_room(self, size: int) -> None:
        self._upper.check_room(size)

    def begin_upload(self, repository: str, algorithm: str, *, resumable: bool = True) -> Upload:
        return self._upper.begin_upload(repository, algorithm, resumable=resumable)

    def upload(self, repository: str, upload_id: str) -> Upload:
        return self._upper.upload(repository, upload_id)

    def purge_uploads(self, max_age: float) -> int:
        return self._upper.purge_uploads(max_age)

    def touch(self, repository: str, digest: Digest) -> Extent:
        return self._upper.touch(repository, digest, self)

    def mount(self, repository: str, digest: Digest, source: str) -> None:
        self._upper.mount(repository, digest, source, self)

    def put_manifest(
        self, repository: str, manifest: Manifest, digest: Digest, tags: tuple[str, ...]
    ) -> None:
        self._upper.put_manifest(repository, manifest, digest, tags, self)

    def compare(self, repository: str, digest: Digest, body: bytes) -> None:
        self._upper.compare(repository, digest, body, self)

    def examine(self, digest: Digest) -> bool:
        return self._upper.examine(digest)

    # Deleting: the whiteout comes first. A crash in between leaves the deletion undone, and never
    # uncovers lower content in the place of the deleted.

    def delete_blob(self, repository: str, digest: Digest) -> None:
        is_below = self._lower.links(repository, digest)
        if is_below:
            self._whiteouts.hide_blob(repository, digest)
        if not is_below or self._upper.links(repository, digest):
            self._upper.delete_blob(repository, digest)

    def delete_manifest(self, repository: str, digest: Digest) -> None:
        with self._upper.removing(repository):
            self.manifest(repository, digest)
            for tag in self._upper.tags_at(repository, digest):
                self._hide_below(repository, tag)
            if digest in self._lower.revisions(repository):
                self._whiteouts.hide_manifest(repository, digest)
            if self._upper.is_linked(repository, digest):
                self._upper.remove_manifest(repository, digest)

    def delete_tag(self, repository: str, tag: str) -> None:
        with self._upper.removing(repository):
            self.tag(repository, tag)
            self._hide_below(repository, tag)
            if self._upper.has_tag(repository, tag):
                self._upper.remove_tag(repository, tag)

    def _hide_below(self, repository: str, tag: str) -> None:
        """Hide the lower stores' tag of this name, wherever it points."""
        with contextlib.suppress(ManifestUnknown):
            self._whiteouts.hide_tag(repository, tag, self._lower.tag(repository, tag))
