"""Bundles in OCI image layout, a directory or a tar: ``oci-layout``, ``index.json``, ``blobs/``.

Source: OCI image-spec, image-layout.md. ``docker save`` since 25 writes this too, with a
``manifest.json`` beside it for older readers; its RepoTags are used if nothing else names an image.
hauler's store is such a layout; its list gives the kind of each entry (`hauler`).
"""

from __future__ import annotations

from collections.abc import Iterator

from mayfly.storage import digest as digests
from mayfly.storage.bundle import documents, hauler, volumes
from mayfly.storage.bundle.archive import ANNOTATIONS, Entry
from mayfly.storage.bundle.diagnostics import Diagnostic
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.files import BLOBS, Files
from mayfly.storage.bundle.verified import Piece, Progress
from mayfly.storage.digest import Digest
from mayfly.storage.errors import DigestInvalid

INDEX = "index.json"
_MARKER = "oci-layout"
_DOCKER_INDEX = "manifest.json"
_VERSION = "1.0.0"

_MARKER_FIELDS = documents.names("imageLayoutVersion")
_INDEX_FIELDS = documents.names(
    *("schemaVersion", "mediaType", "artifactType", "manifests", "subject", "annotations")
)
_DESCRIPTOR_FIELDS = documents.names(
    *("mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType")
)


class OciLayout:
    """See `storage.bundle.archive.ArchiveReader`.

    Args:
        files: the bundle's; closed with this.
        maker: the tool that wrote the bundle which contains the layout; "" if nothing contains it.

    Raises:
        BundleInvalid: its indexes cannot be understood.
    """

    notices: tuple[Diagnostic, ...] = ()
    unhashed = 0

    def __init__(self, files: Files, maker: str = "") -> None:
        self._files = files
        marker = documents.read_object(files, _MARKER, _MARKER_FIELDS)
        version = marker.get("imageLayoutVersion", _VERSION) if marker else _VERSION
        if version != _VERSION:
            raise BundleInvalid(f"{_MARKER} has version {version!r}; {_VERSION} can be served")
        index = documents.read_object(files, INDEX, _INDEX_FIELDS)
        if index is None:
            raise BundleInvalid(f"there is no {INDEX}")
        entries = tuple(_entries(index))
        is_haul = hauler.is_haul(entries)
        self.maker = maker or ("hauler" if is_haul else "OCI layout")
        self.listed = tuple(hauler.listed(entries) if is_haul else map(Entry.listed, entries))
        self.names_by_config = _names_by_config(files)
        self.volume = volumes.read(files)

    def find(self, digest: Digest) -> Piece | None:
        return self._files.locate(f"{BLOBS}{digest.algorithm}/{digest.hex}")

    def hash(self, progress: Progress) -> None:
        """Do nothing: a layout names its content by digest."""

    def close(self) -> None:
        self._files.close()


def _entries(index: documents.Object) -> Iterator[Entry]:
    entries = index.get("manifests")
    if not isinstance(entries, list):
        raise BundleInvalid(f"{INDEX} has no list of manifests")
    for position, entry in enumerate(entries):
        if isinstance(entry, dict):
            documents.check_spelling(entry, _DESCRIPTOR_FIELDS, f"{INDEX}, manifests[{position}]")
        text = entry.get("digest") if isinstance(entry, dict) else None
        try:
            digest = digests.parse(text if isinstance(text, str) else "")
        except DigestInvalid as error:
            raise BundleInvalid(f"{INDEX}, manifests[{position}]: {error.message}") from None
        annotations = entry.get("annotations")
        known = annotations if isinstance(annotations, dict) else {}
        yield Entry(digest, {k: v for k in ANNOTATIONS if isinstance(v := known.get(k), str)})


def _names_by_config(files: Files) -> dict[Digest, tuple[str, ...]]:
    found: dict[Digest, tuple[str, ...]] = {}
    entries = documents.read_list(files, _DOCKER_INDEX)
    for image in documents.docker_images(entries, _DOCKER_INDEX):
        directory, _, encoded = image.config.rpartition("/")
        if directory.startswith(BLOBS):
            try:
                digest = digests.parse(f"{directory.removeprefix(BLOBS)}:{encoded}")
            except DigestInvalid:
                continue
            found[digest] = found.get(digest, ()) + image.names
    return found
