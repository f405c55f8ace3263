"""What ``docker save`` wrote before 25, and podman, skopeo and crane still do: ``manifest.json``.

Source: the comment in moby's ``image/spec/v1.2.md``, "Combined Image JSON + Filesystem Changeset
Format". Such a tar has no manifests, so Docker schema 2 ones are made here, byte for byte as
containerd makes them on ``ctr images import`` (its ``core/images/archive/importer.go``); the digest
that the image had in a registry is lost.

A layer that is not compressed is named by its ``diff_id`` in the config, so nothing has to be
read to know its digest; that it has it is proven when it is first sent, as of any blob. A
compressed layer's digest is what go-containerregistry and Jib name its file after
(``<hex>.tar.gz``); under another name it has to be hashed, once.
"""

from __future__ import annotations

import json
import os
import posixpath
import re

from storage import digest as digests
from storage.bundle import documents
from storage.bundle.content import Listed
from storage.bundle.documents import DockerImage
from storage.bundle.errors import BundleInvalid
from storage.bundle.files import Files, OpenFile, read
from storage.bundle.verified import Piece, Progress, Proofs
from storage.digest import Digest
from storage.files import stamp_of
from storage.manifest import DOCKER_MANIFEST

INDEX = "manifest.json"

_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_SUFFIXES = {b"\x1f\x8b\x08": ".gzip", b"\x28\xb5\x2f\xfd": ".zstd"}
"""First bytes of a compressed layer → the end of its media type."""

_OTHER_COMPRESSION = (b"BZh", b"\xfd7zXZ\0")
_NAMED_BY_DIGEST = re.compile(r"([0-9a-f]{64})\.tar\.gz")


class DockerArchive:
    """See `storage.bundle.content.Content`.

    Args:
        files: the archive's; closed with this.
        proofs: where digests of layers are remembered.

    Raises:
        BundleInvalid: the index or a config cannot be understood, or a member is absent.
    """

    names_by_config: dict[Digest, tuple[str, ...]] = {}  # noqa: RUF012 - never changed
    notices = (
        "a docker archive keeps no manifests: they are made anew, so an image's digest is not "
        "the one it had in its registry (pull by tag, or make the bundle in OCI format)",
    )

    def __init__(self, files: Files, proofs: Proofs) -> None:
        self._files = files
        self._proofs = proofs
        self._members: dict[Digest, str] = {}
        self._unhashed: dict[Piece, None] = {}
        self._made: dict[Digest, Piece] = {}
        self._descriptors: list[int] = []
        self._images = documents.read_docker_index(files, INDEX)
        self.listed = self._list()

    @property
    def unhashed(self) -> int:
        return sum(piece.size for piece in self._unhashed)

    def find(self, digest: Digest) -> Piece | None:
        member = self._members.get(digest)
        return self._made.get(digest) if member is None else self._files.locate(member)

    def hash(self, progress: Progress) -> None:
        for piece in [*self._unhashed]:
            self._proofs.measure(piece, progress=progress)
            del self._unhashed[piece]
        self.listed = self._list()

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._files.close()

    def _list(self) -> list[Listed]:
        bodies = [self._manifest(image) for image in self._images]
        self._keep([body for body in bodies if body is not None])
        return [
            Listed(None if body is None else digests.of(body), image.names)
            for body, image in zip(bodies, self._images, strict=True)
        ]

    def _manifest(self, image: DockerImage) -> bytes | None:
        """The manifest of an image; None while a digest in it is not known."""
        piece = self._locate(image.config)
        config = read(piece, image.config)
        diff_ids = documents.read_diff_ids(config, image.config)
        if len(diff_ids) != len(image.layers):
            raise BundleInvalid(
                f"{image.config} has {len(diff_ids)} layers, {INDEX} gives it {len(image.layers)}"
            )
        layers = [self._layer(*both) for both in zip(image.layers, diff_ids, strict=True)]
        if None in layers:
            return None
        digest = digests.of(config)
        self._members[digest] = posixpath.normpath(image.config)
        # Order and spacing are containerd's, so that the digest is the one it would make.
        fields = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": _descriptor(_CONFIG, digest, len(config)),
            "layers": layers,
        }
        return json.dumps(fields, separators=(",", ":")).encode()

    def _keep(self, bodies: list[bytes]) -> None:
        """Put made documents in memory that has a path, as all content has."""
        descriptor = os.memfd_create("mayfly-manifests")
        # Kept open until the end, also once newer ones replace it: it may be in the midst of use.
        self._descriptors.append(descriptor)
        os.write(descriptor, b"".join(bodies))
        stamp, offset = stamp_of(os.fstat(descriptor)), 0
        opener = OpenFile(descriptor)
        for body in bodies:
            self._made[digests.of(body)] = Piece(opener.path, offset, len(body), stamp, opener)
            offset += len(body)

    def _layer(self, name: str, diff_id: str) -> dict[str, object] | None:
        """The descriptor of a layer; None while its digest is not known."""
        piece = self._locate(name)
        start = read(piece._replace(size=min(piece.size, 6)), name)
        if start.startswith(_OTHER_COMPRESSION):
            raise BundleInvalid(f"layer {name} is compressed as no client expects it: import it")
        suffix = next((s for magic, s in _SUFFIXES.items() if start.startswith(magic)), "")
        digest = self._proofs.measured(piece) if suffix else digests.parse(diff_id)
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
