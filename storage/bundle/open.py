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
from typing import NamedTuple

from mayfly.storage.beneath import Beneath
from mayfly.storage.bundle import oci_layout
from mayfly.storage.bundle.bundle import Bundle
from mayfly.storage.bundle.compressed import compression_of
from mayfly.storage.bundle.diagnostics import Code, Diagnostic
from mayfly.storage.bundle.distribution_directory import (
    DistributionDirectory,
    in_directory,
    in_tars,
)
from mayfly.storage.bundle.errors import BundleConflict, BundleInvalid
from mayfly.storage.bundle.files import Directory, TarFile
from mayfly.storage.bundle.frames import FramePool
from mayfly.storage.bundle.graph import Gap
from mayfly.storage.bundle.names import BundleNames
from mayfly.storage.bundle.recognise import (
    OC_MIRROR,
    WORKING_DIRECTORY,
    Registry,
    reader_of,
    registry_in,
)
from mayfly.storage.bundle.tar_index import NOT_A_TAR
from mayfly.storage.bundle.union import Union
from mayfly.storage.bundle.verified import BundleFault, Progress, Proofs
from mayfly.storage.bundle.volumes import Lost, lost
from mayfly.storage.digest import Digest
from mayfly.storage.directory.layout import BASE
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

_PART_NAME = re.compile(r"mirror_([0-9]{6})\.tar")
"""oc-mirror's names of its archives; those in one directory belong together."""

_SUFFIXES = frozenset({"oci", "docker", "tar"})

_NEUTRAL = frozenset({"OCI layout", "docker archive", "registry"})
"""Formats that many tools write, or that keep no record of a maker."""


class _Tar(NamedTuple):
    """An open tar that holds a registry's directory, or a part of one.

    Attributes:
        path: by which it was opened.
        name: of its file; of a packed one, as it was before.
    """

    path: Path
    name: str
    label: str
    files: TarFile
    registry: Registry


@dataclass(slots=True)
class Opened:
    """Opened bundles of each kind, by their positions in the operator's order."""

    _archives: dict[int, Bundle] = field(default_factory=dict)
    _directories: dict[int, DistributionDirectory] = field(default_factory=dict)
    _tars: dict[int, _Tar] = field(default_factory=dict)
    _pool: FramePool = field(default_factory=FramePool)

    @property
    def all(self) -> list[Bundle | DistributionDirectory]:
        """Archives and directories in the operator's order; those in tars only after `join`."""
        served: dict[int, Bundle | DistributionDirectory] = {**self._archives, **self._directories}
        return [served[position] for position in sorted(served)]

    @property
    def archives(self) -> list[Bundle]:
        """The bundles that list images."""
        return [*self._archives.values()]

    @property
    def directories(self) -> list[DistributionDirectory]:
        """The bundles that are directories of another registry."""
        return [*self._directories.values()]

    def open(self, path: Path, label: str, proofs: Proofs) -> None:
        """Open a bundle.

        Raises:
            BundleInvalid, BundleConflict: it cannot be served; the message names it.
        """
        with _named(label):
            files = _open_files(path, self._pool)
            with contextlib.ExitStack() as undo:
                undo.callback(files.close)
                self._sort(files, path, label, proofs, undo)
                undo.pop_all()

    def _sort(
        self,
        files: Directory | TarFile,
        path: Path,
        label: str,
        proofs: Proofs,
        undo: contextlib.ExitStack,
    ) -> None:
        position = len(self._archives) + len(self._directories) + len(self._tars)
        registry = registry_in(files)
        packed_as = files.packed_as if isinstance(files, TarFile) else None
        name = packed_as or path.name
        if isinstance(files, TarFile) and _PART_NAME.fullmatch(name):
            # A later archive of a set may have nothing but blobs, or none of them.
            base = registry.base if registry else ""
            if registry or WORKING_DIRECTORY in files.entries(""):
                _check_end(files)
                self._tars[position] = _Tar(path, name, label, files, Registry(base, OC_MIRROR))
                return
        if registry is None:
            archive = reader_of(files, proofs)
            if archive is None:
                raise _unknown(files)
            undo.pop_all()
            undo.callback(archive.close)
            self._archives[position] = Bundle(
                label, archive, proofs, _repository_for(packed_as or path.resolve().name)
            )
        elif isinstance(files, TarFile):
            _check_end(files)
            self._tars[position] = _Tar(path, name, label, files, registry)
        else:
            base, maker = registry
            self._directories[position] = in_directory(label, files, base, maker, proofs)

    def join(self, proofs: Proofs) -> None:
        """Make registries' directories of the tars: of an oc-mirror set one, otherwise of each one.

        The directory of a set has the position of the first of its tars.

        Tars that only happen to be served together stay apart, since otherwise a stranger's link
        in one would give access to the blobs of another.
        """
        sets: dict[tuple[object, ...], dict[int, _Tar]] = {}
        for position, tar in self._tars.items():
            is_part = tar.registry.maker == OC_MIRROR and _PART_NAME.fullmatch(tar.name)
            key = (tar.path.absolute().parent,) if is_part else (tar.path, position)
            sets.setdefault(key, {})[position] = tar
        for tars in sets.values():
            self._directories[min(tars)] = _joined([*tars.values()], proofs)
            for position in tars:  # one by one: the rest is closed as tars after an error
                del self._tars[position]

    def close(self) -> None:
        """Close all of them."""
        for bundle in self.all:
            bundle.close()
        for tar in self._tars.values():
            tar.files.close()


def _joined(tars: list[_Tar], proofs: Proofs) -> DistributionDirectory:
    """Make one registry's directory of tars."""
    tars.sort(key=lambda tar: tar.name)
    base = next((tar.registry.base for tar in tars if tar.registry.base), BASE)
    files = [(tar.label, tar.files) for tar in tars]
    joined = in_tars(files, base, tars[0].registry.maker, proofs)
    joined.notices += _absent_parts(tars)
    return joined


class Bundles:
    """All bundles of one server, opened. Use `open_bundles`.

    Args:
        opened: the bundles; of equal content, the first one's is served.
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
        self.notices = [one for bundle in self._opened for one in _introduced(bundle)]

    @property
    def makers(self) -> list[Diagnostic]:
        """The notices about the tools that made the bundles, as far as they are known."""
        return [one for one in self.notices if one.code is Code.MADE_BY]

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
        """Return the full names of all tagged images, sorted; tags of signatures are left out."""
        found = [i.reference for bundle in self._archives for i in bundle.images if i.reference]
        names = {str(one) for one in found if one.tag and not is_attached_tag(one.tag)}
        for directory in self._directories:
            for repository in repositories(directory):
                tags = (tag for tag in directory.tags(repository) if not is_attached_tag(tag))
                names.update(f"{repository}:{tag}" for tag in tags)
        return sorted(names)

    def stored_names(self) -> list[tuple[str, str]]:
        """Return every image's repository in `layer` with its tag, or its digest if it has no tag.

        Signatures and other referrers are no images.
        """
        found = set()
        for reference in (i.reference for b in self._archives for i in b.images if i.reference):
            repository = self.names.canonical(reference.host, reference.repository)
            found.add((repository, reference.tag or str(reference.digest)))
        for directory in self._directories:
            for repository in repositories(directory):
                found.update((repository, tag) for tag in directory.tags(repository))
        return sorted(one for one in found if not is_attached_tag(one[1]))

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
        paths: directories or tars of any kind in `recognise`. Of equal content, the first
            bundle's is served; those of one oc-mirror set are one bundle.
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
        opened.join(proofs)
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
    """Return the end of a message about a damaged volume: the images that need it, if known."""
    known = {one.volume.set: one.volume for one in others.archives if one.volume}
    if not any(path.name in volume.names for volume in known.values()):
        return ""
    together = Bundles(others, proofs)
    lost_here = [one for one in together.lost_volumes(together.has) if one.file == path.name]
    return "".join(f"; {one}" for one in lost_here)


def _open_files(path: Path, pool: FramePool) -> Directory | TarFile:
    if path.is_dir():
        return Directory(Beneath(path))
    if path.exists() and not path.is_file():
        raise BundleInvalid("it is neither a file nor a directory")
    if path.stat().st_size == 0:
        raise BundleInvalid("the file is empty")
    try:
        return TarFile(path, pool)
    except BundleInvalid as error:
        if error.message == NOT_A_TAR:
            _refuse_compressed(path)
        raise


def _unknown(files: Directory | TarFile) -> BundleInvalid:
    """Return the error for files that are of no kind that is known."""
    if isinstance(files, Directory):
        # A link in the place of one of these is named.
        for name in (oci_layout.INDEX, BASE, f"registry/{BASE}", "blobs", "manifests"):
            files.tree.status(files.tree.root / name)
        return BundleInvalid(
            "the directory is no bundle: it has neither index.json (an OCI layout) nor "
            f"{BASE} (a registry's), nor another maker's files (docs/bundles.md lists them)"
        )
    members = files.index.members
    if "repositories" in members:
        return BundleInvalid("it was saved by docker before 1.10: save it again with a newer one")
    _check_end(files)
    nested = sorted(n for n in members if n.endswith(f"/{oci_layout.INDEX}"))
    if nested:
        directory = nested[0].removesuffix(oci_layout.INDEX)
        return BundleInvalid(
            f"the layout lies in {directory} inside the tar: pack it again from within that "
            f"directory (tar -C {quote(directory)} -cf NEW.tar .)"
        )
    return BundleInvalid(
        "the tar is no bundle: it has neither index.json nor manifest.json, nor another maker's "
        "files (docs/bundles.md lists them)"
    )


def _check_end(files: TarFile) -> None:
    """Check that a tar without an index of its members was not cut between two of them.

    Raises:
        BundleInvalid: its end is missing.
    """
    if not files.index.ended:
        raise BundleInvalid("the tar has no end and no index of images: it was cut short")


def _absent_parts(tars: Sequence[_Tar]) -> Iterator[Diagnostic]:
    """Yield a notice for each archive that a set lacks, as far as its numbers show."""
    found = [_PART_NAME.fullmatch(tar.name) for tar in tars]
    numbers = {int(one[1]) for one in found if one}
    absent = sorted(set(range(1, max(numbers, default=0))) - numbers)
    for number in absent[:_MOST_IMAGES]:
        name = f"mirror_{number:06}.tar"
        text = f"{name} is not among the bundles: the blobs in it cannot be pulled"
        yield Diagnostic(Code.VOLUME_MISSING, text, tars[0].label, file=name, count=0)


def _introduced(bundle: Bundle | DistributionDirectory) -> list[Diagnostic]:
    """Return the notices about a bundle, the first of which names its maker."""
    if bundle.maker in _NEUTRAL:
        return bundle.notices
    made = Diagnostic(
        Code.MADE_BY, f"it was made by {bundle.maker}", bundle.label, maker=bundle.maker
    )
    return [made, *bundle.notices]


def _refuse_compressed(path: Path) -> None:
    found = compression_of(path)
    if found is not None:
        remedy = ", or compress it in frames (docs/bundles.md)" if found.name == "zstd" else ""
        raise BundleInvalid(
            f"it is compressed with {found.name} and cannot be served where it lies: import it "
            f"(mayfly import {quote(str(path))}) or decompress it "
            f"({found.command} {quote(str(path))}){remedy}"
        )


def _repository_for(name: str) -> str:
    """Return the repository for images without a full name, made from the bundle's file name."""
    parts = name.lower().split(".")
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
