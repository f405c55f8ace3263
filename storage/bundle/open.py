"""Open bundles of any kind, and combine several into one read-only store."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from shlex import quote

from mayfly.storage.beneath import Beneath
from mayfly.storage.bundle import docker_archive, oci_layout
from mayfly.storage.bundle.archive import ArchiveReader
from mayfly.storage.bundle.bundle import Bundle
from mayfly.storage.bundle.compressed import compression_of
from mayfly.storage.bundle.diagnostics import Diagnostic
from mayfly.storage.bundle.distribution_directory import DistributionDirectory, is_distribution
from mayfly.storage.bundle.docker_archive import DockerArchive
from mayfly.storage.bundle.errors import BundleConflict, BundleInvalid
from mayfly.storage.bundle.files import Directory, TarFile
from mayfly.storage.bundle.graph import Gap
from mayfly.storage.bundle.names import BundleNames
from mayfly.storage.bundle.oci_layout import OciLayout
from mayfly.storage.bundle.union import Union
from mayfly.storage.bundle.verified import BundleFault, Progress, Proofs
from mayfly.storage.bundle.volumes import Lost, lost
from mayfly.storage.digest import Digest
from mayfly.storage.errors import StorageError
from mayfly.storage.interface import LowerStore
from mayfly.storage.reading import find_blob, manifests_below, repositories
from mayfly.storage.reference import is_attached_tag

Has = Callable[[str, Digest], bool]
"""Whether a repository has a blob."""

NO_LABELS: Mapping[Path, str] = {}

_MOST_IMAGES = 100
"""Most images that are named of those affected by a fault."""

_VOLUME_NAME = re.compile(r".+\.[0-9]{3}(?:\.[^.]+)?")

_SUFFIXES = frozenset({"oci", "docker", "tar"})


@dataclass(slots=True)
class Opened:
    """Opened bundles by their kind.

    Attributes:
        all: in the order of the operator; of equal content, the first bundle's is served.
        archives: those that list images.
        directories: those that are directories of another registry.
    """

    all: list[Bundle | DistributionDirectory] = field(default_factory=list)
    archives: list[Bundle] = field(default_factory=list)
    directories: list[DistributionDirectory] = field(default_factory=list)

    def open(self, path: Path, label: str, proofs: Proofs) -> None:
        """Open a bundle.

        Raises:
            BundleInvalid, BundleConflict: it cannot be served; the message names it.
        """
        with _named(label):
            if path.is_dir() and is_distribution(path):
                self.directories.append(DistributionDirectory(path, proofs))
                self.all.append(self.directories[-1])
            else:
                self.archives.append(_open_archive(path, label, proofs))
                self.all.append(self.archives[-1])

    def close(self) -> None:
        """Close all of them."""
        for bundle in self.all:
            bundle.close()


class Bundles:
    """All bundles of one server, opened. Use `open_bundles`.

    Args:
        opened: the bundles.
        proofs: shared by all of them.

    Attributes:
        layer: their content as one read-only store, under the names that `names` gives.
        names: which repository a request means.
        proofs: of their content.
        notices: facts that the operator should know.
    """

    def __init__(self, opened: Opened, proofs: Proofs) -> None:
        self._opened = tuple(opened.all)
        self._archives = tuple(opened.archives)
        self._directories = tuple(opened.directories)
        references = [i.reference for b in self._archives for i in b.images if i.reference]
        self.names = BundleNames((reference.host, reference.repository) for reference in references)
        for bundle in self._archives:
            bundle.serve_as(self.names.canonical)
        _check_tags(self._archives)
        self.layer: LowerStore = Union(self._opened)
        self.proofs = proofs
        self.notices = [notice for b in self._archives for notice in b.notices]

    def lacking(self, has: Has) -> list[Diagnostic]:
        """Return the images that cannot be pulled since blobs are missing.

        Images that lack only the content of a lost volume are in the line about that volume.

        Args:
            has: whether the other bundles or the store have a blob of a repository.
        """
        gaps = list(self._gaps(has))
        gone = self._lost()
        lost_blobs = frozenset().union(*(one.blobs for one in gone))
        found = [
            replace(gap.diagnostic(missing), bundle=bundle.label)
            for bundle, gap, missing in gaps
            if lost_blobs.isdisjoint(missing)
        ]
        return [*_describe(gone, gaps), *found]

    def lost_volumes(self, has: Has) -> list[Diagnostic]:
        """Return the volumes of a set that are not among the bundles.

        Args:
            has: see `lacking`.
        """
        gone = self._lost()
        return _describe(gone, list(self._gaps(has))) if gone else []

    def _lost(self) -> list[Lost]:
        return lost(bundle.volume for bundle in self._archives if bundle.volume)

    def _gaps(self, has: Has) -> Iterator[tuple[Bundle, Gap, list[Digest]]]:
        for bundle in self._archives:
            for repository, gap in bundle.gaps():
                missing = [digest for digest in gap.blobs if not has(repository, digest)]
                if missing:
                    yield bundle, gap, missing

    def has(self, repository: str, digest: Digest) -> bool:
        """Whether the bundles have a blob of a repository."""
        return find_blob(self.layer, repository, digest) is not None

    @property
    def left_out(self) -> list[Diagnostic]:
        """Images that the bundles list and that cannot be served."""
        return [one for bundle in self._archives for one in bundle.left_out]

    def is_directory(self, repository: str) -> bool:
        """Whether a repository comes from a directory of another registry."""
        return any(directory.has_repository(repository) for directory in self._directories)

    def damaged_names(self) -> list[Diagnostic]:
        """Return the names in registries' directories that lead to no image; reads all of them."""
        return [name for directory in self._directories for name in directory.damaged_names()]

    def tagged_names(self) -> list[str]:
        """Full names of all tagged images, in order; tags for what refers to an image left out."""
        found = [i.reference for bundle in self._archives for i in bundle.images if i.reference]
        names = {str(one) for one in found if one.tag and not is_attached_tag(one.tag)}
        for directory in self._directories:
            for repository in repositories(directory):
                tags = (tag for tag in directory.tags(repository) if not is_attached_tag(tag))
                names.update(f"{repository}:{tag}" for tag in tags)
        return sorted(names)

    @property
    def unhashed(self) -> int:
        """Bytes that `hash` has to read before every image can be served."""
        return sum(bundle.unhashed for bundle in self._archives)

    def hash(self, progress: Progress) -> None:
        """Hash the bytes that `unhashed` counts; slow. Everything else is served meanwhile.

        Raises:
            BundleChanged: a bundle was written to.
            BundleConflict: a tag points at different images in two bundles.
            Interrupted: the server is stopping.
        """
        for bundle in self._archives:
            if bundle.unhashed:
                bundle.hash(progress)
        _check_tags(self._archives)

    def watch(self, on_fault: Callable[[BundleFault, list[str], list[str]], None]) -> None:
        """Call ``on_fault``, from any thread, with each fault that is found from now on.

        Its other arguments are the repositories that link the content, and the images that need it.
        """

        def report(fault: BundleFault) -> None:
            names = self._repositories(fault.digest)
            on_fault(fault, names, list(islice(self._images(fault.digest, names), _MOST_IMAGES)))

        self.proofs.on_fault = report

    def _repositories(self, digest: Digest) -> list[str]:
        """Return the repositories with a blob or manifest, wherever its bytes are."""
        return [
            name
            for name in repositories(self.layer)
            if self.layer.links(name, digest) or digest in self.layer.revisions(name)
        ]

    def _images(self, digest: Digest, names: Iterable[str]) -> Iterator[str]:
        """Yield the tags in these repositories that lead to a blob or manifest."""
        for repository in names:
            for tag in self.layer.tags(repository):
                with contextlib.suppress(StorageError):
                    root = self.layer.tag(repository, tag)
                    for manifest, content in manifests_below(self.layer, repository, root):
                        below = [] if isinstance(content, StorageError) else content.blobs
                        if digest == manifest or digest in {one.digest for one in below}:
                            yield f"{repository}:{tag}"
                            break

    def interrupt(self) -> None:
        """End all hashing, so that a stopping server does not wait for it."""
        self.proofs.interrupt()

    def close(self) -> None:
        """Close every bundle; none of their content may be in use any more."""
        for bundle in self._opened:
            bundle.close()


def _describe(
    gone: Sequence[Lost], gaps: Sequence[tuple[Bundle, Gap, list[Digest]]]
) -> list[Diagnostic]:
    """Return each lost volume, with the images that lack some of its content."""
    found = []
    for one in gone:
        hurt = [gap.image for _, gap, missing in gaps if not one.blobs.isdisjoint(missing)]
        names = dict.fromkeys(str(image.reference or image.digest) for image in hurt)
        found.append(one.diagnostic([*names]))
    return found


def open_bundles(
    paths: Sequence[Path], state_dir: Path | None = None, labels: Mapping[Path, str] = NO_LABELS
) -> Bundles:
    """Open bundles where they lie; only their names and manifests are read.

    Args:
        paths: OCI layouts (directory or tar), docker archives, directories of another registry. Of
            equal content, the first bundle's is served.
        state_dir: keeps the proofs of content; without one they end with the process.
        labels: the operator's name of a path that is not the bundle's own.

    Raises:
        BundleInvalid: one of them cannot be served; the message names it.
        BundleConflict: a tag points at different images in two of them.
    """
    proofs = Proofs(state_dir)
    opened = Opened()
    with contextlib.ExitStack() as undo:
        undo.callback(opened.close)
        failed: dict[Path, BundleInvalid] = {}
        for path in paths:
            try:
                opened.open(path, labels.get(path, str(path)), proofs)
            except BundleInvalid as error:
                if not _VOLUME_NAME.fullmatch(path.name):
                    raise
                failed[path] = error  # the other volumes tell which images it takes along
        for path, cause in failed.items():
            raise BundleInvalid(cause.message + _taken_along(path, opened, proofs)) from cause
        try:
            together = Bundles(opened, proofs)
        except BundleConflict:
            raise
        except StorageError as error:
            raise BundleInvalid(error.message) from error
        undo.pop_all()
        return together


def _taken_along(path: Path, others: Opened, proofs: Proofs) -> str:
    """Return the end of a message about a damaged volume: the images it takes along, if known."""
    known = {one.volume.set: one.volume for one in others.archives if one.volume}
    if not any(path.name in volume.names for volume in known.values()):
        return ""
    together = Bundles(others, proofs)
    lost_here = [one for one in together.lost_volumes(together.has) if one.file == path.name]
    return "".join(f"; {one}" for one in lost_here)


def _open_archive(path: Path, label: str, proofs: Proofs) -> Bundle:
    archive = _open_directory(path) if path.is_dir() else _open_tar(path, proofs)
    try:
        return Bundle(label, archive, proofs, _repository_for(path))
    except BaseException:
        archive.close()
        raise


def _open_directory(path: Path) -> ArchiveReader:
    if not (path / oci_layout.INDEX).exists():
        raise BundleInvalid(
            "the directory is no bundle: it has neither index.json (an OCI layout) nor "
            "docker/registry/v2 (a registry's)"
        )
    files = Directory(Beneath(path))
    try:
        return OciLayout(files)
    except BaseException:
        files.close()
        raise


def _open_tar(path: Path, proofs: Proofs) -> ArchiveReader:
    if path.exists() and not path.is_file():
        raise BundleInvalid("it is neither a file nor a directory")
    if path.stat().st_size == 0:
        raise BundleInvalid("the file is empty")
    _refuse_compressed(path)
    files = TarFile(path)
    try:
        return _archive_of(files, proofs)
    except BaseException:
        files.close()
        raise


def _archive_of(files: TarFile, proofs: Proofs) -> ArchiveReader:
    members = files.index.members
    if oci_layout.INDEX in members:
        return OciLayout(files)
    if docker_archive.INDEX in members:
        return DockerArchive(files, proofs)
    if "repositories" in members:
        raise BundleInvalid("it was saved by docker before 1.10: save it again with a newer one")
    if not files.index.ended:
        raise BundleInvalid("the tar has no end and no index of images: it was cut short")
    nested = sorted(n for n in members if n.endswith(f"/{oci_layout.INDEX}"))
    if nested:
        directory = nested[0].removesuffix(oci_layout.INDEX)
        raise BundleInvalid(
            f"the layout lies in {directory} inside the tar: pack it again from within that "
            f"directory (tar -C {quote(directory)} -cf NEW.tar .)"
        )
    raise BundleInvalid("the tar is no bundle: it has neither index.json nor manifest.json")


def _refuse_compressed(path: Path) -> None:
    found = compression_of(path)
    if found is not None:
        raise BundleInvalid(
            f"it is compressed with {found.name} and cannot be served where it lies: import it "
            f"(mayfly import {quote(str(path))}) or decompress it "
            f"({found.command} {quote(str(path))})"
        )


def _repository_for(path: Path) -> str:
    """Return the repository for images without a full name, made from the file's name."""
    parts = path.resolve().name.lower().split(".")
    while parts[1:] and parts[-1] in _SUFFIXES:
        parts.pop()
    stem = ".".join(parts)
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-") or "bundle"


def _check_tags(bundles: Sequence[Bundle]) -> None:
    """Check that no tag points at different images in two bundles.

    Raises:
        BundleConflict: one does.
    """
    known: dict[str, tuple[Digest, str]] = {}
    for bundle in bundles:
        for image in bundle.images:
            if image.digest is None or image.reference is None or image.reference.tag is None:
                continue
            digest, label = known.setdefault(str(image.reference), (image.digest, bundle.label))
            if digest != image.digest:
                raise BundleConflict(
                    f"{image.reference} is {digest} in {label} but {image.digest} in "
                    f"{bundle.label}: serve only the one you mean"
                )


@contextlib.contextmanager
def _named(label: str) -> Iterator[None]:
    """Put the bundle's name before the messages of errors."""
    try:
        yield
    except BundleConflict as error:
        raise BundleConflict(f"{label}: {error.message}") from error
    except StorageError as error:
        raise BundleInvalid(f"{label}: {error.message}") from error
    except PermissionError as error:
        raise BundleInvalid(
            f"{label}: Mayfly, which runs as uid {os.geteuid()}, may not read it; "
            f"run: chmod -R a+rX {shlex.quote(label)}"
        ) from error
    except OSError as error:
        raise BundleInvalid(f"{label}: {error.strerror or error}") from error
