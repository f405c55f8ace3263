"""The repositories of a bundle: from its list of images, by following their manifests.

A repository holds the content that its images lead to, and the artifacts that refer to those.
Manifests are read and verified here, since everything else depends on them; blobs are only located.
Absent content is no error by itself: an index often names platforms that were not saved, and a
bundle of differences lacks the content that its target has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.bundle.archive import ArchiveReader
from mayfly.storage.bundle.diagnostics import Code, Diagnostic
from mayfly.storage.bundle.errors import BundleConflict, BundleInvalid
from mayfly.storage.bundle.files import read
from mayfly.storage.bundle.notices import Notices
from mayfly.storage.digest import Digest
from mayfly.storage.errors import StorageError
from mayfly.storage.manifest import Descriptor
from mayfly.storage.reference import Reference
from mayfly.storage.text import counted

_MOST_LINKS = 1_000_000
"""Most manifests and blobs of all repositories of a bundle, some 110 bytes each; 10,000 images have
half of that."""


class BundleImage(NamedTuple):
    """An image or index of a bundle, with its name.

    Attributes:
        reference: None for an artifact without a name, which belongs to its subject.
        digest: of its manifest; None while its layers have to be hashed first.
    """

    reference: Reference | None
    digest: Digest | None


class Gap(NamedTuple):
    """Blobs that an image needs and its bundle lacks, as in a bundle of differences."""

    image: BundleImage
    blobs: tuple[Digest, ...]

    def diagnostic(self, missing: Sequence[Digest]) -> Diagnostic:
        """Return the message about blobs that no other bundle or store has."""
        blobs = counted(len(missing), "of its blobs is", "of its blobs are")
        return Diagnostic(
            Code.BLOBS_MISSING,
            f"{_title(self.image)} cannot be pulled: {blobs} in its repository neither in the "
            f"bundles nor in the store, {missing[0]} first",
            image=_name(self.image),
            digest=self.image.digest,
            needs=missing[0],
            count=len(missing),
        )


@dataclass(frozen=True, slots=True)
class Node:
    """A manifest of the bundle, without its bytes."""

    blobs: tuple[Descriptor, ...]
    children: tuple[Descriptor, ...]
    config: Digest | None
    subject: Digest | None


@dataclass(slots=True)
class Repository:
    """The content of one repository in a bundle.

    Attributes:
        tags: tag → manifest; None while the manifest is not known yet.
        manifests: those whose bytes are in the bundle.
        blobs: those that it links, wherever their bytes are.
    """

    tags: dict[str, Digest | None] = field(default_factory=dict)
    manifests: dict[Digest, Node] = field(default_factory=dict)
    blobs: set[Digest] = field(default_factory=set)

    def referrers(self) -> dict[Digest, list[Digest]]:
        """Return the manifests that refer to each subject, in order of digest."""
        found: dict[Digest, list[Digest]] = {}
        for digest in sorted(self.manifests):
            if (subject := self.manifests[digest].subject) is not None:
                found.setdefault(subject, []).append(digest)
        return found


_MAX_NAMED = 300_000
"""Most different blobs and children that the manifests of a bundle may name, some 300 bytes each.
Ten thousand images of thirty layers have as many if none is shared."""


class Graph:
    """The manifests of one bundle, each read once.

    Args:
        archive: of the bundle.
        notices: given those about manifests.

    Attributes:
        left_out: images that are listed and cannot be served; filled by
            `repositories`.

    Raises:
        BundleInvalid: a listed manifest is absent or corrupt.
    """

    def __init__(self, archive: ArchiveReader, notices: Notices) -> None:
        self._archive = archive
        self._nodes: dict[Digest, Node | None] = {}
        self._sizes: dict[Digest, int | None] = {}
        self._named: dict[Descriptor, Descriptor] = {}
        self._looked_at: set[Digest] = set()
        self._linked = 0
        self._notices = notices
        self.gaps: list[Gap] = []
        self.left_out: list[Diagnostic] = []
        self._reasons: dict[Digest, str] = {}
        if not archive.listed:
            self._notices.add(
                Diagnostic(
                    Code.BUNDLE_EMPTY,
                    "it lists no image: there is nothing in it to serve or import",
                )
            )
        for listed in archive.listed:
            if listed.digest is not None and archive.find(listed.digest) is None:
                raise BundleInvalid(
                    f"manifest {listed.digest} is listed, but is not there: "
                    "the bundle was cut short or made wrongly"
                )

    def node(self, digest: Digest) -> Node | None:
        """Return the manifest of a digest; None if the bundle has none that can be served.

        Raises:
            BundleInvalid: its bytes have another digest.
        """
        if digest not in self._nodes:
            self._nodes[digest] = self._read(digest)
        return self._nodes[digest]

    def repositories(self, images: Iterable[BundleImage]) -> dict[tuple[str, str], Repository]:
        """Return the repositories by upstream host and name.

        Args:
            images: those listed, named.

        Raises:
            BundleConflict: a tag is given to two images.
        """
        self._linked = 0
        found: dict[tuple[str, str], Repository] = {}
        loose: list[Digest] = []
        for image in images:
            if image.digest is not None and self.node(image.digest) is None:
                self.left_out.append(self._unreadable(image))
                continue
            if image.reference is None:
                loose += [image.digest] if image.digest else []
                continue
            key = image.reference.host, image.reference.repository
            repository = found.setdefault(key, Repository())
            if image.reference.tag is not None:
                _set_tag(repository, image.reference.tag, image)
            if image.digest is not None:
                self._add(repository, image.digest)
                self._look_for_blobs(image)
        by_subject: dict[Digest, list[Digest]] = {}
        for digest in loose:
            node = self.node(digest)
            if node is not None and node.subject is not None:
                by_subject.setdefault(node.subject, []).append(digest)
        for repository in found.values():
            self._attach(repository, by_subject)
        known = {digest for repository in found.values() for digest in repository.manifests}
        for subject, referrers in by_subject.items():
            if subject not in known:
                self.left_out += [
                    Diagnostic(
                        Code.SUBJECT_MISSING,
                        f"artifact {digest}: it refers to {subject}, which is not in the bundle",
                        digest=digest,
                        needs=subject,
                    )
                    for digest in referrers
                ]
        return found

    def _unreadable(self, image: BundleImage) -> Diagnostic:
        """Describe an image without a manifest that can be served."""
        assert image.digest is not None
        reason = self._reasons.get(image.digest, "")
        return Diagnostic(
            Code.MANIFEST_REFUSED if reason else Code.MANIFEST_MISSING,
            f"{_title(image)}: {reason or 'its manifest is not there'}",
            image=_name(image),
            digest=image.digest,
            detail=reason,
        )

    def present(self) -> frozenset[Digest]:
        """Return the content that was found in the bundle when its images were read."""
        blobs = (digest for digest, size in self._sizes.items() if size is not None)
        return frozenset(blobs).union(d for d, node in self._nodes.items() if node is not None)

    def _read(self, digest: Digest) -> Node | None:
        piece = self._archive.find(digest)
        if piece is None:
            return None
        if piece.size > manifests.MAX_SIZE:
            # An index may list content of any kind, such as layers.
            self._refuse(digest, f"it is {counted(piece.size, 'byte')} long")
            return None
        body = read(piece, f"manifest {digest}")
        if digests.of(body, digest.algorithm) != digest:
            raise BundleInvalid(f"manifest {digest} is corrupt: its bytes do not match its digest")
        try:
            parsed = manifests.parse_stored(body)
        except StorageError as error:
            self._refuse(digest, error.message)
            return None
        self._notices.extend(
            Diagnostic(
                Code.MANIFEST_ODD, f"manifest {digest}: {fault}", digest=digest, detail=fault
            )
            for fault in parsed.faults
        )
        return Node(
            blobs=self._shared(parsed.blobs),
            children=self._shared(parsed.manifests),
            config=parsed.config.digest if parsed.config else None,
            subject=parsed.subject.digest if parsed.subject else None,
        )

    def _refuse(self, digest: Digest, reason: str) -> None:
        self._reasons[digest] = reason
        self._notices.add(
            Diagnostic(
                Code.MANIFEST_REFUSED,
                f"manifest {digest} cannot be served: {reason}",
                digest=digest,
                detail=reason,
            )
        )

    def _shared(self, descriptors: tuple[Descriptor, ...]) -> tuple[Descriptor, ...]:
        """Return equal descriptors, each kept in memory once: thousands of images share their base.

        Raises:
            BundleInvalid: the bundle names too many.
        """
        named = tuple(self._named.setdefault(one, one) for one in dict.fromkeys(descriptors))
        if len(self._named) > _MAX_NAMED:
            raise BundleInvalid(
                f"its manifests name more than {_MAX_NAMED} blobs: split it into several bundles"
            )
        return named

    def _add(self, repository: Repository, root: Digest) -> list[Digest]:
        """Add a manifest and its descendants; return the manifests that are new."""
        added = []
        waiting = [root]
        while waiting:
            digest = waiting.pop()
            if digest in repository.manifests or (node := self.node(digest)) is None:
                continue
            repository.manifests[digest] = node
            added.append(digest)
            before = len(repository.blobs)
            repository.blobs.update(blob.digest for blob in node.blobs)
            self._linked += len(repository.blobs) - before + 1
            if self._linked > _MOST_LINKS:
                raise BundleInvalid(
                    f"its repositories together hold more than {_MOST_LINKS} manifests and blobs"
                )
            waiting += [child.digest for child in node.children]
        return added

    def _attach(self, repository: Repository, by_subject: dict[Digest, list[Digest]]) -> None:
        """Add the artifacts that refer to a repository's manifests, and those that refer to them.

        Each manifest is handled once, in whatever order the bundle lists them.
        """
        waiting = list(repository.manifests)
        while waiting:
            for referrer in by_subject.get(waiting.pop(), ()):
                waiting += self._add(repository, referrer)

    def _look_for_blobs(self, image: BundleImage) -> None:
        assert image.digest is not None
        if image.digest in self._looked_at:
            return
        self._looked_at.add(image.digest)
        missing = []
        for blob in self._blobs_below(image.digest):
            size = self._size(blob.digest)
            if size is None:
                missing += [blob.digest] if blob.distributable else []
            elif blob.size not in (None, size):
                raise BundleInvalid(
                    f"{_title(image)}: {blob.digest} should be {counted(blob.size, 'byte')}, "
                    f"the bundle has {size}: it was cut short or damaged, copy it again"
                )
        if missing:
            self.gaps.append(Gap(image, tuple(missing)))

    def _size(self, digest: Digest) -> int | None:
        if digest not in self._sizes:
            piece = self._archive.find(digest)
            self._sizes[digest] = piece.size if piece else None
        return self._sizes[digest]

    def _blobs_below(self, root: Digest) -> Iterator[Descriptor]:
        seen: set[Digest] = set()
        waiting = [root]
        while waiting:
            digest = waiting.pop()
            node = self.node(digest)
            if node is None or digest in seen:
                continue
            seen.add(digest)
            for blob in node.blobs:
                if blob.digest not in seen:
                    seen.add(blob.digest)
                    yield blob
            waiting += [child.digest for child in node.children]


def _set_tag(repository: Repository, tag: str, image: BundleImage) -> None:
    known = repository.tags.setdefault(tag, image.digest)
    if known != image.digest:
        raise BundleConflict(
            f"{image.reference} is listed twice, as {known} and as {image.digest}: "
            "make the bundle again with one of them"
        )


def _title(image: BundleImage) -> str:
    return f"image {image.reference or image.digest}"


def _name(image: BundleImage) -> str:
    return str(image.reference or "")
