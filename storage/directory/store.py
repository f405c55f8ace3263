"""The writable store: a directory in the format of CNCF distribution (``registry:2``).

`storage.directory.reader` reads it. Content is verified and published durably before a call returns
(`storage.directory.publish`).

One lock per repository (striped) orders changes of its manifests and tags. It guards a few small
files; none is held while a body is awaited or a blob is synced.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.ages import Ages
from mayfly.storage.directory.cached import CacheMarker
from mayfly.storage.directory.examine import Examiner
from mayfly.storage.directory.gate import Gate
from mayfly.storage.directory.layout import Layout
from mayfly.storage.directory.publish import Publisher
from mayfly.storage.directory.reader import DirectoryReader
from mayfly.storage.directory.records import Records
from mayfly.storage.directory.space import Space
from mayfly.storage.directory.uploads import DirectoryUpload, Uploads
from mayfly.storage.errors import (
    BlobUnknown,
    ContentCorrupt,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestUnknown,
    SizeInvalid,
    StorageError,
    UploadUnknown,
    blob_unknown,
    manifest_unknown,
)
from mayfly.storage.interface import Extent, LowerStore
from mayfly.storage.manifest import Descriptor, Manifest
from mayfly.storage.text import counted

_LOCK_STRIPES = 64


class Parts(NamedTuple):
    """The parts of a store, for the rooms that maintain it.

    Attributes:
        layout: where things lie.
        publisher: makes and removes files durably.
        records: verified sizes and damage of blobs.
        gate: orders removals against pushes.
        ages: tells how old files are.
    """

    layout: Layout
    publisher: Publisher
    records: Records
    gate: Gate
    ages: Ages


class DistributionStore(DirectoryReader):
    """See `storage.interface.Store`; ``root`` is a directory that registry:2 can also use.

    An overlay passes itself as ``seen`` to the methods that have it: references of a push are
    looked up there, and may lie in the stores beneath.

    Args:
        root: made when missing.
        allow_sparse: take manifests that name content the repository does not hold.
        allow_absent_platforms: take indexes that do; an image must still be whole.
        reserve: see `storage.directory.space.Space`.
        ages: tells how old files are.
    """

    def __init__(
        self,
        root: Path,
        *,
        allow_sparse: bool = False,
        allow_absent_platforms: bool = False,
        reserve: int | None = None,
        ages: Ages | None = None,
    ) -> None:
        super().__init__(root)
        self._publisher = Publisher(
            self._layout.base,
            self._layout.scratch,
            kept=(self._layout.blobs, self._layout.repositories),
            store=root,
        )
        self._publisher.open()
        self._may_lack_blobs = allow_sparse
        self._may_lack_manifests = allow_sparse or allow_absent_platforms
        self._gate = Gate(self._layout.scratch.parent, self._layout.scratch)
        ages = ages or Ages()
        self._space = Space(self._layout.base, reserve)
        self._examiner = Examiner(self._layout, self._records, self._gate)
        self._uploads = Uploads(
            self._layout, self._publisher, self._publish_blob, self._space.check, ages
        )
        self._marker = CacheMarker(self._layout, self._publisher)
        self._locks = [threading.Lock() for _ in range(_LOCK_STRIPES)]
        self.parts = Parts(self._layout, self._publisher, self._records, self._gate, ages)

    @property
    def upper(self) -> DistributionStore:
        """The store that takes the changes: this one; see `storage.upkeep.maintainable`."""
        return self

    def interrupt(self) -> None:
        """Stop hashing in other threads; operations waiting for it fail with `Interrupted`."""
        self._uploads.interrupt()

    def close(self) -> None:
        """Remove the scratch files; upload sessions stay on disk for the next start."""
        self._examiner.close()
        self._uploads.close()
        self._publisher.close()

    # Blobs

    def begin_upload(
        self, repository: str, algorithm: str, *, resumable: bool = True
    ) -> DirectoryUpload:
        if resumable:
            return self._uploads.begin(repository, algorithm)
        return self._uploads.begin_private(repository, algorithm)

    @contextlib.contextmanager
    def copying(self, repository: str, algorithm: str) -> Iterator[DirectoryUpload]:
        """An upload session of this process alone, which ends with the context.

        If the process is killed, the next one that opens the store removes it.
        """
        upload = self._uploads.begin_private(repository, algorithm)
        try:
            yield upload
        finally:
            with contextlib.suppress(UploadUnknown):
                upload.cancel()

    @property
    def scratch(self) -> Path:
        """This process's own directory on the store's filesystem, until `close`."""
        return self._publisher.scratch

    def upload(self, repository: str, upload_id: str) -> DirectoryUpload:
        return self._uploads.find(repository, upload_id)

    @property
    def reserved(self) -> int:
        """Quick. Bytes of the disk that blobs leave free."""
        return self._space.reserved

    def check_room(self, size: int) -> None:
        self._space.check(size)

    def purge_uploads(self, max_age: float) -> int:
        """End the upload sessions idle for ``max_age`` seconds and return their number."""
        return self._uploads.purge(max_age)

    def touch(self, repository: str, digest: Digest, seen: LowerStore | None = None) -> Extent:
        with self._gate.referring():
            extent = (seen or self).blob(repository, digest)
            self._touch(digest, extent)
            return extent

    def mount(
        self, repository: str, digest: Digest, source: str, seen: LowerStore | None = None
    ) -> None:
        seen = seen or self
        # Content that only other repositories hold is not read: the time would reveal it.
        seen.blob(source, digest)
        self._publisher.confirm(self._layout.data(digest))
        with self._gate.referring():
            self._touch(digest, seen.blob(source, digest))
            self._link(self._layout.layer_link(repository, digest), digest)

    def delete_blob(self, repository: str, digest: Digest) -> None:
        if not self._publisher.remove(self._layout.layer_link(repository, digest)):
            raise blob_unknown(digest)

    def _publish_blob(self, repository: str, digest: Digest, data: Path) -> None:
        # Also over an equal blob: its age starts anew, and a copy that was damaged is replaced.
        # Synced before the gate: gigabytes take long, and others wait there.
        self._publisher.sync(data)
        with self._gate.referring():
            # Its last byte may have come long ago, in a session that was resumed.
            os.utime(data)
            self._adopt(digest, data)
            self._link(self._layout.layer_link(repository, digest), digest)

    def _adopt(self, digest: Digest, data: Path) -> None:
        size = data.stat().st_size
        verified = partial(self._records.record_size, digest, size)
        self._publisher.adopt(data, self._layout.data(digest), verified)

    # Manifests

    def put_manifest(
        self,
        repository: str,
        manifest: Manifest,
        digest: Digest,
        tags: tuple[str, ...],
        seen: LowerStore | None = None,
    ) -> None:
        _check_digest(manifest, digest)
        self._confirm_references(repository, manifest)
        with self._lock(repository), self._gate.referring():
            self._check_references(repository, manifest, seen or self)
            # Before the push is visible: with a mark it could be evicted.
            self._marker.remove(repository, digest, tags)
            self._write_manifest(repository, manifest, digest, tags)

    def _write_manifest(
        self, repository: str, manifest: Manifest, digest: Digest, tags: tuple[str, ...]
    ) -> None:
        verified = partial(self._records.record_size, digest, len(manifest.body))
        self._publisher.write(self._layout.data(digest), manifest.body, verified)
        self._link(self._layout.revision_link(repository, digest), digest)
        self._referrers.changed(repository, digest)
        for tag in tags:
            # After the manifest: a tag never points at a missing one. Before its history: a tag
            # with a history and no link has lost the link; it is no interrupted push.
            self._link(self._layout.tag_link(repository, tag), digest)
            self._link(self._layout.tag_history_link(repository, tag, digest), digest)

    def delete_manifest(self, repository: str, digest: Digest) -> None:
        with self.removing(repository):
            self.remove_manifest(repository, digest)

    def delete_tag(self, repository: str, tag: str) -> None:
        with self.removing(repository):
            self.remove_tag(repository, tag)

    @contextlib.contextmanager
    def removing(self, repository: str) -> Iterator[None]:
        """While manifests or tags of a repository are removed.

        Removals pass the gate alone: of a tag that another process pushes meanwhile, either all is
        there afterwards or nothing.
        """
        with self._lock(repository), self._gate.removing():
            yield

    def remove_manifest(
        self, repository: str, digest: Digest, tags: Iterable[str] | None = None
    ) -> None:
        """Remove a manifest and the tags that point at it, inside `removing`.

        Args:
            repository: of the manifest.
            digest: its own.
            tags: that point at it; None to read where every tag of the repository points.

        Raises:
            ManifestUnknown: it is not in this repository.
        """
        link = self._layout.revision_link(repository, digest)
        if not link.exists():
            self._publisher.confirm_absent(link)
            raise manifest_unknown(digest)
        for tag in self.tags_at(repository, digest) if tags is None else tags:
            self._publisher.remove_tree(self._layout.tag(repository, tag))
            self._marker.remove(repository, digest, (tag,))
        # Also of tags that an interrupted deletion removed: no tag may come back without manifest.
        self._publisher.confirm_absent(self._layout.tags(repository) / "any")
        self._publisher.remove(link)
        self._marker.remove(repository, digest, ())

    def remove_tag(self, repository: str, tag: str) -> None:
        """Remove a tag, inside `removing`.

        Raises:
            ManifestUnknown: no such tag.
        """
        directory = self._layout.tag(repository, tag)
        try:
            self.tag(repository, tag)
        except ManifestUnknown:
            # A tag with a damaged link can be deleted like any.
            if not directory.exists():
                self._publisher.confirm_absent(directory)
                raise
        self._publisher.remove_tree(directory)
        self._marker.remove_tag(repository, tag)

    def _confirm_references(self, repository: str, manifest: Manifest) -> None:
        """Make durable the content of a manifest that the repository holds, from any pusher.

        Content that only other repositories hold is not read: the time would reveal it.
        """
        for link_of, descriptors in (
            (self._layout.layer_link, manifest.blobs),
            (self._layout.revision_link, manifest.manifests),
        ):
            for digest in dict.fromkeys(descriptor.digest for descriptor in descriptors):
                link = link_of(repository, digest)
                if self._tree.is_file(link):
                    self._publisher.confirm(self._layout.data(digest))
                    self._publisher.confirm(link)

    def _check_references(self, repository: str, manifest: Manifest, seen: LowerStore) -> None:
        missing: list[dict[str, str]] = []
        wanted = [(seen.blob, d, self._may_lack_blobs) for d in manifest.blobs]
        wanted += [(seen.manifest, d, self._may_lack_manifests) for d in manifest.manifests]
        # A manifest may name one blob ten thousand times.
        for locate, descriptor, may_lack in dict.fromkeys(wanted):
            try:
                extent = locate(repository, descriptor.digest)
            except StorageError:
                if descriptor.distributable and not may_lack:
                    missing.append({"digest": str(descriptor.digest)})
                continue
            if descriptor.size not in (None, extent.size):
                raise self._contradicted(descriptor, extent)
            self._touch(descriptor.digest, extent)
        if missing:
            raise ManifestBlobUnknown(
                "manifest references content unknown to the repository", missing
            )

    def _contradicted(self, descriptor: Descriptor, extent: Extent) -> SizeInvalid:
        """Return the error for a wrong size; hash the blob if its size was never verified."""
        held = counted(extent.size, "byte")
        message = (
            f"manifest gives {descriptor.digest} the size {descriptor.size}, "
            f"the repository holds {held}"
        )
        if self._suspect(descriptor.digest, extent):
            message += "; the stored bytes are being checked: push again in a moment"
        return SizeInvalid(message, {"digest": str(descriptor.digest), "size": extent.size})

    # Content of an upstream

    def cache_manifest(
        self, repository: str, manifest: Manifest, digest: Digest, tag: str | None
    ) -> None:
        """Store a manifest that an upstream gave, whose content may come later, and mark it.

        Pushed content stays the pusher's: such a manifest gets no mark, and such a tag stays where
        it points.

        Args:
            tag: to point at it; None for none.

        Raises:
            DigestInvalid: ``digest`` is not that of the manifest's bytes.
        """
        _check_digest(manifest, digest)
        with self._lock(repository), self._gate.referring():
            if not self.is_linked(repository, digest) or self.cached.has_manifest(
                repository, digest
            ):
                self._marker.set_manifest(repository, digest)
            is_pushed = tag is not None and (
                self.has_tag(repository, tag) and self.cached.last_checked(repository, tag) is None
            )
            tags = () if tag is None or is_pushed else (tag,)
            for one in tags:
                self._marker.set_tag(repository, one)
            self._write_manifest(repository, manifest, digest, tags)

    def cache_link(self, repository: str, digest: Digest, seen: LowerStore | None = None) -> bool:
        """Link a blob that any repository holds; return False if none does.

        For a blob that an upstream serves under this repository's name: its word replaces the right
        to pull from another repository, which `mount` asks for.
        """
        seen = seen or self
        if seen.content(digest) is None:
            return False
        self._publisher.confirm(self._layout.data(digest))
        with self._gate.referring():
            extent = seen.content(digest)
            if extent is None:
                return False
            self._touch(digest, extent)
            self._link(self._layout.layer_link(repository, digest), digest)
            return True

    def record_check(self, repository: str, tag: str) -> None:
        """Quick. Record that an upstream was asked for a tag now, which points where it did."""
        self._marker.checked(repository, tag)

    def record_pull(self, repository: str, digest: Digest) -> None:
        """Quick. Record that a manifest from an upstream is pulled now, coarsely."""
        self._marker.pulled(repository, digest)

    # Damage

    def compare(
        self, repository: str, digest: Digest, body: bytes, seen: LowerStore | None = None
    ) -> None:
        seen = seen or self
        with contextlib.suppress(StorageError, OSError):
            if self._is_mine(digest, seen.manifest(repository, digest)):
                self._examiner.record_size(digest, len(body))
            blobs = manifests.parse_stored(body).blobs
            for descriptor in blobs:
                with contextlib.suppress(BlobUnknown, ContentCorrupt):
                    extent = seen.blob(repository, descriptor.digest)
                    if descriptor.size not in (None, extent.size):
                        self._suspect(descriptor.digest, extent)

    def examine(self, digest: Digest) -> bool:
        return self._examiner.examine(digest, again=True)

    def is_whole(self, digest: Digest) -> bool:
        """Whether a blob's file exists and has its digest; it is hashed unless it was before.

        Raises:
            OSError: it cannot be read.
        """
        return self._examiner.examine(digest)

    def record_verified(self, digest: Digest, size: int) -> None:
        """Record the size of a blob that was hashed and had its digest."""
        self._examiner.record_size(digest, size)

    def restore_tag(self, repository: str, tag: str, digest: Digest) -> bool:
        """Point a tag at a manifest again; return False if the repository has no such one."""
        with self._lock(repository), self._gate.referring():
            try:
                self._touch(digest, self.manifest(repository, digest))
            except ManifestUnknown:
                return False
            self._link(self._layout.tag_link(repository, tag), digest)
            self._link(self._layout.tag_history_link(repository, tag, digest), digest)
            return True

    def restore_link(self, repository: str, digest: Digest, *, is_manifest: bool) -> None:
        """Link stored content in a repository whose image needs it."""
        link_of = self._layout.revision_link if is_manifest else self._layout.layer_link
        with self._lock(repository), self._gate.referring():
            if self.content_size(digest) is not None:
                self._link(link_of(repository, digest), digest)

    def _is_mine(self, digest: Digest, extent: Extent) -> bool:
        return extent.path == self._layout.data(digest)

    def _suspect(self, digest: Digest, extent: Extent) -> bool:
        """Queue a blob of doubtful size for hashing; return False if its size was verified."""
        if not self._is_mine(digest, extent) or self._records.is_verified(digest, extent.size):
            return False
        self._examiner.suspect(digest)
        return True

    def _touch(self, digest: Digest, extent: Extent) -> None:
        """Start the age of referenced content anew (`storage.upkeep.collect`).

        Only content that the collector may remove has an age; files beneath an overlay stay as they
        are.
        """
        if self._is_mine(digest, extent):
            os.utime(extent.path)

    # Links

    def _link(self, link: Path, digest: Digest) -> None:
        if self.read_link(link) == digest:
            self._publisher.confirm(link)
        else:
            self._publisher.write(link, str(digest).encode())

    def _lock(self, repository: str) -> threading.Lock:
        return self._locks[hash(repository) % _LOCK_STRIPES]


def _check_digest(manifest: Manifest, digest: Digest) -> None:
    actual = digests.of(manifest.body, digest.algorithm)
    if actual != digest:
        raise DigestInvalid(
            f"manifest does not match digest {digest}: received {actual}",
            {"expected": str(digest), "actual": str(actual)},
        )
