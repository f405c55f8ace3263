"""Docker archives: ``manifest.json``, of ``docker save`` before 25, podman, skopeo and crane.

Source: the comment in moby's ``image/spec/v1.2.md``, "Combined Image JSON + Filesystem Changeset
Format". Such a tar has no manifests, so Docker schema 2 ones are made here, byte for byte as
containerd makes them on ``ctr images import`` (its ``core/images/archive/importer.go``). The digest
that the image had in a registry is lost.

The digest of an uncompressed layer is its ``diff_id`` in the config, so it need not be read at
start; like any blob it is proven when it is first sent. go-containerregistry and Jib name the file
of a compressed layer by its digest (``<hex>.tar.gz``). A compressed layer under another name, and a
layer of a config without diff_ids, is hashed once.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Sequence
from typing import NamedTuple

from mayfly.storage import digest as digests
from mayfly.storage.bundle import documents
from mayfly.storage.bundle.archive import Listed
from mayfly.storage.bundle.diagnostics import Code, Diagnostic
from mayfly.storage.bundle.documents import DockerImage
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.files import Files, read
from mayfly.storage.bundle.made import MadeContent
from mayfly.storage.bundle.verified import Piece, Progress, Proofs, changed
from mayfly.storage.digest import Digest
from mayfly.storage.manifest import DOCKER_MANIFEST
from mayfly.storage.text import counted

INDEX = "manifest.json"

_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_SUFFIXES = {b"\x1f\x8b\x08": ".gzip", b"\x28\xb5\x2f\xfd": ".zstd"}
"""The suffix of a compressed layer's media type, by its first bytes."""

_MAX_LAYERS = 300_000
"""Layers of all images, some 400 bytes each: ten thousand images have thirty each."""

_ATTEMPTS = 3
"""How often layers are hashed while the archive's change time keeps moving."""

_OTHER_COMPRESSION = (b"BZh", b"\xfd7zXZ\0")
_NAMED_BY_DIGEST = re.compile(r"([0-9a-f]{64})\.tar\.gz")


class _Config(NamedTuple):
    digest: Digest
    size: int
    diff_ids: tuple[str, ...]


class DockerArchive:
    """See `storage.bundle.archive.ArchiveReader`.

    Args:
        files: the archive's; closed with this.
        entries: the list in its ``manifest.json``.
        proofs: keeps the digests of layers.

    Raises:
        BundleInvalid: the list or a config cannot be understood, or a member is absent.
    """

    maker = "docker archive"
    volume = None
    names_by_config: dict[Digest, tuple[str, ...]] = {}  # noqa: RUF012 - never changed
    notices = (
        Diagnostic(
            Code.DIGESTS_MADE,
            "a docker archive keeps no manifests: they are made anew, so an image's digest is not "
            "the one it had in its registry (pull by tag, or make the bundle in OCI format)",
        ),
    )

    def __init__(self, files: Files, entries: list[object], proofs: Proofs) -> None:
        self._files = files
        self._proofs = proofs
        self._members: dict[Digest, str] = {}
        self._configs: dict[Piece, _Config] = {}
        self._layers: dict[tuple[Piece, str | None], dict[str, object] | None] = {}
        self._unhashed: dict[Piece, None] = {}
        self._made = MadeContent()
        self._images = documents.docker_images(entries, INDEX)
        self.listed = self._list()

    @property
    def unhashed(self) -> int:
        return sum(piece.size for piece in self._unhashed)

    def find(self, digest: Digest) -> Piece | None:
        member = self._members.get(digest)
        return self._made.find(digest) if member is None else self._files.locate(member)

    def hash(self, progress: Progress) -> None:
        for _ in range(_ATTEMPTS):
            for piece in [*self._unhashed]:
                self._proofs.measure(piece, progress=progress)
                del self._unhashed[piece]
            self.listed = self._list()
            # A chmod meanwhile gives the file another stamp, for which nothing is proven.
            if not self._unhashed:
                return
        raise changed()

    def close(self) -> None:
        self._made.close()
        self._files.close()

    def _list(self) -> list[Listed]:
        # Each config and layer is read once: thousands of images may name one large config.
        made: dict[tuple[str, tuple[str, ...]], bytes | None] = {}
        count = 0
        for image in self._images:
            key = image.config, image.layers
            if key not in made:
                count += len(image.layers)
                if count > _MAX_LAYERS:
                    raise BundleInvalid(
                        f"its images have more than {_MAX_LAYERS} layers: split it into several "
                        "bundles"
                    )
                made[key] = self._manifest(image)
        known = {body: digests.of(body) for body in made.values() if body is not None}
        self._made.keep({digest: body for body, digest in known.items()})
        bodies = [made[image.config, image.layers] for image in self._images]
        return [
            Listed(None if body is None else known[body], image.names)
            for body, image in zip(bodies, self._images, strict=True)
        ]

    def _manifest(self, image: DockerImage) -> bytes | None:
        """Make the manifest of an image; None while one of its digests is unknown."""
        config = self._config(image.config)
        diff_ids: Sequence[str | None] = config.diff_ids
        if not diff_ids:
            diff_ids = [None] * len(image.layers)
        if len(diff_ids) != len(image.layers):
            raise BundleInvalid(
                f"{image.config} has {counted(len(diff_ids), 'layer')}, {INDEX} gives it "
                f"{len(image.layers)}"
            )
        layers = [self._layer(*both) for both in zip(image.layers, diff_ids, strict=True)]
        if None in layers:
            return None
        digest = config.digest
        self._members[digest] = posixpath.normpath(image.config)
        # Order and spacing are containerd's, so that the digest is the one it would make.
        fields = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": _descriptor(_CONFIG, digest, config.size),
            "layers": layers,
        }
        return json.dumps(fields, separators=(",", ":")).encode()

    def _config(self, name: str) -> _Config:
        piece = self._locate(name)
        if piece not in self._configs:
            text = read(piece, name)
            diff_ids = tuple(documents.read_diff_ids(text, name))
            self._configs[piece] = _Config(digests.of(text), len(text), diff_ids)
        return self._configs[piece]

    def _layer(self, name: str, diff_id: str | None) -> dict[str, object] | None:
        """Return the descriptor of a layer; None while its digest is unknown."""
        key = self._locate(name), diff_id
        if self._layers.get(key) is None:
            self._layers[key] = self._describe(key[0], name, diff_id)
        return self._layers[key]

    def _describe(self, piece: Piece, name: str, diff_id: str | None) -> dict[str, object] | None:
        start = read(piece._replace(size=min(piece.size, 6)), name)
        if start.startswith(_OTHER_COMPRESSION):
            raise BundleInvalid(f"layer {name} is compressed as clients do not expect: import it")
        suffix = next((s for magic, s in _SUFFIXES.items() if start.startswith(magic)), "")
        if diff_id is not None and not suffix:
            digest: Digest | None = digests.parse(diff_id)
        else:
            digest = self._proofs.measured(piece)
        if digest is None and (found := _NAMED_BY_DIGEST.fullmatch(posixpath.basename(name))):
            digest = Digest(digests.CANONICAL, found[1])
        if digest is None:
            self._unhashed[piece] = None
            return None
        self._members[digest] = posixpath.normpath(name)
        return _descriptor(_LAYER + suffix, digest, piece.size)

    def _locate(self, name: str) -> Piece:
        piece = self._files.locate(posixpath.normpath(name))
        if piece is None:
            raise BundleInvalid(
                f"{INDEX} names {name}, which is not there: "
                "the bundle was cut short or made wrongly"
            )
        return piece


def _descriptor(media_type: str, digest: Digest, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest), "size": size}
