"""A bundle of any kind as a read-only store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from mayfly.storage.bundle.archive import ArchiveReader
from mayfly.storage.bundle.diagnostics import Diagnostic
from mayfly.storage.bundle.errors import BundleChanged, BundleInvalid, NotReady
from mayfly.storage.bundle.graph import BundleImage, Gap, Graph
from mayfly.storage.bundle.names import full_name
from mayfly.storage.bundle.naming import name_images
from mayfly.storage.bundle.notices import Notices
from mayfly.storage.bundle.verified import BundleFault, Piece, Problem, Progress, Proofs
from mayfly.storage.digest import Digest
from mayfly.storage.errors import manifest_unknown, repository_unknown
from mayfly.storage.interface import Extent, linked_blob
from mayfly.storage.reading import load
from mayfly.storage.reference import page_of
from mayfly.storage.referrers import Referrer, size_of
from mayfly.storage.sized_cache import SizedCache

Canonical = Callable[[str, str], str]
"""Maps an upstream host and repository to the name that it is served under."""

_MAX_DESCRIPTORS = 4 * 1024 * 1024
"""Bytes for the descriptors of referrers listed last."""


class Bundle:
    """See `storage.interface.LowerStore`. Use `storage.bundle.open.open_bundles`.

    Args:
        label: the bundle as the operator named it.
        archive: the opened bundle; closed with this.
        proofs: shared with the server's other bundles.
        fallback: the repository of images without a full name.

    Raises:
        BundleInvalid, BundleConflict: see `storage.bundle.graph.Graph`.
    """

    def __init__(self, label: str, archive: ArchiveReader, proofs: Proofs, fallback: str) -> None:
        self.label = label
        self.images: list[BundleImage]
        self.notices: list[Diagnostic]
        self.left_out: list[Diagnostic]
        self.maker = archive.maker
        self.volume = archive.volume
        self._archive = archive
        self._descriptors: SizedCache[Digest, Referrer] = SizedCache(_MAX_DESCRIPTORS, size_of)
        self._proofs = proofs
        self._fallback = fallback
        self._read()
        self.serve_as(full_name)

    @property
    def unhashed(self) -> int:
        """Bytes that `hash` still has to read."""
        return self._archive.unhashed

    def serve_as(self, canonical: Canonical) -> None:
        """Set the names that repositories are served under instead of their full names."""
        self._canonical = canonical
        served = {canonical(*key): one for key, one in self._by_upstream.items()}
        # One assignment each: readers in other threads see the old or the new.
        self._referrers = {name: one.referrers() for name, one in served.items()}
        self._repositories, self._names = served, sorted(served)

    def gaps(self) -> Iterator[tuple[str, Gap]]:
        """Yield the gaps of images, each with the repository that the image is served in."""
        for gap in self._gaps:
            reference = gap.image.reference
            if reference is not None:
                yield self._canonical(reference.host, reference.repository), gap

    def hash(self, progress: Progress) -> None:
        """Hash the layers whose digests are unknown; other images are served meanwhile.

        Raises:
            BundleChanged: the bundle was written to.
            BundleConflict: two images with one name turned out to differ.
        """
        self._archive.hash(progress)
        self._read()
        self.serve_as(self._canonical)

    def close(self) -> None:
        """Close the bundle's files; none of its content may be in use any more."""
        self._archive.close()

    def blob(self, repository: str, digest: Digest) -> Extent:
        return linked_blob(self, repository, digest)

    def manifest(self, repository: str, digest: Digest) -> Extent:
        found = self._repositories.get(repository)
        if found is not None and digest in found.manifests:
            piece = self._find(digest)
            if piece is not None:
                return self._proofs.extent(piece, digest, self.label)
        raise manifest_unknown(digest)

    def tag(self, repository: str, tag: str) -> Digest:
        found = self._repositories.get(repository)
        if found is None or tag not in found.tags:
            raise manifest_unknown(tag)
        digest = found.tags[tag]
        if digest is None:
            raise NotReady(
                f"image {repository}:{tag} is still being read for the first time: try again"
            )
        return digest

    def tags(self, repository: str) -> list[str]:
        found = self._repositories.get(repository)
        if found is None:
            raise repository_unknown(repository)
        return sorted(found.tags)

    def has_repository(self, repository: str) -> bool:
        return repository in self._repositories

    def repositories(self, after: str, limit: int, prefix: str = "") -> list[str]:
        return page_of(self._names, after, limit, prefix)

    def repositories_with(self, digest: Digest) -> Iterator[str]:
        if self._archive.find(digest) is not None:
            repositories = self._repositories
            yield from (name for name in self._names if digest in repositories[name].blobs)

    def referrers(self, repository: str, subject: Digest, after: str = "") -> Iterator[Referrer]:
        for digest in self._referrers.get(repository, {}).get(subject, ()):
            if str(digest) > after:
                # Annotations may be large: those that are not cached are read again.
                descriptor = self._descriptors.get(digest)
                if descriptor is None:
                    descriptor = load(self, repository, digest).referrer(digest)
                    self._descriptors.put(digest, descriptor)
                yield descriptor

    def links(self, repository: str, digest: Digest) -> bool:
        found = self._repositories.get(repository)
        return found is not None and digest in found.blobs

    def revisions(self, repository: str) -> Iterator[Digest]:
        found = self._repositories.get(repository)
        return iter(found.manifests if found is not None else ())

    def content(self, digest: Digest) -> Extent | None:
        piece = self._find(digest)
        return None if piece is None else self._proofs.extent(piece, digest, self.label)

    def _find(self, digest: Digest) -> Piece | None:
        try:
            piece = self._archive.find(digest)
        except (BundleChanged, BundleInvalid) as error:
            is_changed = isinstance(error, BundleChanged)
            problem = Problem.FILE_CHANGED if is_changed else Problem.FILE_REFUSED
            self._proofs.note(BundleFault(digest, self.label, problem), error)
            raise
        if piece is None and digest in self._present:
            self._proofs.note(BundleFault(digest, self.label, Problem.FILE_GONE))
        return piece

    def _read(self) -> None:
        notices = Notices()
        notices.extend(self._archive.notices)
        graph = Graph(self._archive, notices)
        self.images = name_images(self._archive, graph, self._fallback, notices)
        self._by_upstream = graph.repositories(self.images)
        self._present = graph.present()
        self.left_out = [replace(one, bundle=self.label) for one in graph.left_out]
        self.notices = [replace(one, bundle=self.label) for one in notices.all()]
        self._gaps = tuple(graph.gaps)
