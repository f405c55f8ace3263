"""Tars of imgpkg (Carvel): ``manifest.json``, which is not docker's, and layers by digest.

Source: imgpkg's ``pkg/imgpkg/imagedesc/types.go`` and ``imagetar``. ``manifest.json`` is a list of

    {"Image": {"Refs", "Tag", "Manifest": {"Digest", "Raw"}, "Config": {"Digest", "Raw"}}}
    {"ImageIndex": {"Refs", "Tag", "Digest", "Raw", "Images": […], "Indexes": […]}}

so manifests and configs are texts in it, and the layers are members ``sha256-HEX.tar.gz``, however
they are compressed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mayfly.storage import digest as digests
from mayfly.storage.bundle import documents
from mayfly.storage.bundle.archive import Listed
from mayfly.storage.bundle.diagnostics import Diagnostic
from mayfly.storage.bundle.documents import Object
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.files import Files
from mayfly.storage.bundle.made import MadeContent
from mayfly.storage.bundle.verified import Piece, Progress
from mayfly.storage.digest import Digest
from mayfly.storage.errors import DigestInvalid

INDEX = "manifest.json"

_ENTRY = documents.names("Image", "ImageIndex")
_IMAGE = documents.names("Refs", "Layers", "Config", "Manifest", "Tag", "OrigRef", "Labels")
_NESTED = documents.names(
    *("Refs", "Images", "Indexes", "MediaType", "Digest", "Raw", "Tag", "OrigRef", "Labels")
)
_TEXT = documents.names("MediaType", "Digest", "Raw")

_MOST_LEVELS = 8
"""Levels of indexes within indexes; no image needs more than two."""


def is_imgpkg(entries: list[object]) -> bool:
    """Whether the list in a ``manifest.json`` is imgpkg's, rather than docker's."""
    first = entries[0] if entries else None
    return isinstance(first, dict) and bool(first.keys() & {"Image", "ImageIndex"})


class Imgpkg:
    """See `storage.bundle.archive.ArchiveReader`.

    Args:
        files: the tar's; closed with this.
        entries: the list in its ``manifest.json``.

    Raises:
        BundleInvalid: the list cannot be understood, or a text in it does not have its digest.
    """

    maker = "imgpkg"
    notices: tuple[Diagnostic, ...] = ()
    names_by_config: Mapping[Digest, tuple[str, ...]] = {}
    volume = None
    unhashed = 0

    def __init__(self, files: Files, entries: list[object]) -> None:
        self._files = files
        self._texts: dict[Digest, bytes] = {}
        self._made = MadeContent()
        self.listed = tuple(self._list(entries))
        self._made.keep(self._texts)
        self._texts.clear()

    def find(self, digest: Digest) -> Piece | None:
        made = self._made.find(digest)
        return made or self._files.locate(f"{digest.algorithm}-{digest.hex}.tar.gz")

    def hash(self, progress: Progress) -> None:
        """Do nothing: everything is named by its digest."""

    def close(self) -> None:
        self._made.close()
        self._files.close()

    def _list(self, entries: list[object]) -> Iterator[Listed]:
        for position, entry in enumerate(entries):
            where = f"{INDEX}, image {position}"
            fields = _object(entry, _ENTRY, where)
            image, index = fields.get("Image"), fields.get("ImageIndex")
            if (image is None) == (index is None):
                raise BundleInvalid(f"{where} is neither an image nor an index")
            named = _object(index if image is None else image, {}, where)
            add = self._add_index(index, where, 0) if image is None else self._add(image, where)
            yield Listed(add, tuple(_names(named, add, where)))

    def _add(self, value: object, where: str) -> Digest:
        """Keep the manifest and config of an image; return the manifest's digest."""
        image = _object(value, _IMAGE, where)
        self._keep(_object(image.get("Config"), _TEXT, f"{where}, Config"), f"{where}, Config")
        manifest = _object(image.get("Manifest"), _TEXT, f"{where}, Manifest")
        return self._keep(manifest, f"{where}, Manifest")

    def _add_index(self, value: object, where: str, level: int) -> Digest:
        """Keep an index and the manifests below it; return its digest."""
        if level == _MOST_LEVELS:
            raise BundleInvalid(f"{where} has indexes within indexes, {level} levels deep")
        index = _object(value, _NESTED, where)
        for number, image in enumerate(_list(index.get("Images"), f"{where}, Images")):
            self._add(image, f"{where}.{number}")
        for number, nested in enumerate(_list(index.get("Indexes"), f"{where}, Indexes")):
            self._add_index(nested, f"{where}.{number}", level + 1)
        return self._keep(index, where)

    def _keep(self, fields: Object, where: str) -> Digest:
        text, claimed = fields.get("Raw"), fields.get("Digest")
        if not isinstance(text, str) or not isinstance(claimed, str):
            raise BundleInvalid(f"{where} has no Raw and Digest")
        try:
            digest = digests.parse(claimed)
            body = text.encode()
        except (DigestInvalid, UnicodeEncodeError) as error:
            raise BundleInvalid(f"{where}: {error}") from None
        if digests.of(body, digest.algorithm) != digest:
            raise BundleInvalid(f"{where}: {digest} is corrupt: its bytes do not match its digest")
        self._texts[digest] = body
        return digest


def _names(fields: Object, digest: Digest, where: str) -> Iterator[str]:
    """Yield the names of an image: with its tag, and with its digest where it has no tag."""
    refs = _list(fields.get("Refs"), f"{where}, Refs")
    tag = fields.get("Tag")
    for ref in refs:
        if not isinstance(ref, str):
            raise BundleInvalid(f"{where}, Refs is not a list of text")
        repository = ref.partition("@")[0]
        head, colon, tail = repository.rpartition(":")
        if colon and "/" not in tail:
            yield repository
            repository = head
        if isinstance(tag, str) and tag:
            yield f"{repository}:{tag}"
        yield f"{repository}@{digest}"


def _object(value: object, fields: documents.Names, where: str) -> Object:
    if not isinstance(value, dict):
        raise BundleInvalid(f"{where} is not a JSON object")
    documents.check_spelling(value, fields, where)
    return value


def _list(value: object, where: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise BundleInvalid(f"{where} is not a JSON list")
    return value
