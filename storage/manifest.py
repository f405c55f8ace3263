"""Manifests, read without touching anything: bytes in, one frozen value out.

Kinds and fields: OCI image-spec manifest.md and image-index.md; Docker image manifest v2 schema 2
and manifest list. The media type is always derived from the content, so that a store needs only
the bytes: a ``mediaType`` field decides; without one (OCI allows that) ``manifests`` makes an index
and anything else an image manifest, as registry:2 does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from storage import digest as digests
from storage.digest import Digest
from storage.errors import DigestInvalid, ManifestInvalid, ManifestTooLarge

MAX_SIZE = 4 * 1024 * 1024
"""Largest manifest in bytes (distribution-spec: registries should take at least 4 MiB)."""

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

_MAX_INT64 = 2**63 - 1
"""Largest size (image-spec descriptor.md: an int64)."""

IMAGE_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
_SCHEMA1_PREFIX = "application/vnd.docker.distribution.manifest.v1"
_SCHEMA1_LAYER = "application/vnd.docker.container.image.rootfs.diff+x-gtar"

_FIELDS = {
    name.casefold(): name
    for name in (
        *("schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests"),
        *("subject", "annotations"),
    )
}

_NON_DISTRIBUTABLE = frozenset(
    {
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to content (image-spec descriptor.md); ``size`` in bytes."""

    media_type: str
    digest: Digest
    size: int
    distributable: bool = True


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest or index as a registry needs to know it.

    Attributes:
        media_type: what it is, derived from the content.
        body: the exact bytes; its digest is taken over these.
        blobs: config and layers that an image manifest names.
        manifests: the children that an index names.
        subject: the manifest this one refers to, for the referrers list.
        artifact_type: its own, else the config's media type (image manifests only).
        annotations: of the manifest itself.
    """

    media_type: str
    body: bytes
    blobs: tuple[Descriptor, ...] = ()
    manifests: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None

    def referrer(self, digest: Digest) -> dict[str, object]:
        """The descriptor by which this manifest stands in the referrers list of its subject."""
        described: dict[str, object] = {
            "mediaType": self.media_type,
            "digest": str(digest),
            "size": len(self.body),
        }
        if self.artifact_type:
            described["artifactType"] = self.artifact_type
        if self.annotations:
            described["annotations"] = self.annotations
        return described


def parse(body: bytes, content_type: str | None = None) -> Manifest:
    """Understand a manifest.

    Args:
        body: the bytes as pushed or stored.
        content_type: the media type the client announced, without parameters; None when it
            announced none or when the bytes come from the store.

    Raises:
        ManifestTooLarge: over `MAX_SIZE`.
        ManifestInvalid: not JSON, a schema that is not served, a broken descriptor, or a content
            type that contradicts the content.
        DigestInvalid: a descriptor names an unsupported digest.
    """
    if len(body) > MAX_SIZE:
        raise ManifestTooLarge(f"manifest is larger than {MAX_SIZE} bytes")
    fields = _load(body, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    _check_spelling(fields)
    return _understood(body, fields, content_type)


def parse_stored(body: bytes) -> Manifest:
    """Understand a manifest that is in a store already, whoever put it there.

    What `parse` would not take is served as it is: a registry:2 volume may hold Docker schema 1,
    whose layers have no sizes, and JSON that we find too loose.

    Raises:
        ManifestInvalid, DigestInvalid: not even its references can be told.
    """
    fields = _load(body)
    if fields.get("schemaVersion") == 1:
        return _schema1(body, fields)
    return _understood(body, fields, None)


def _understood(body: bytes, fields: dict[str, Any], content_type: str | None) -> Manifest:
    media_type = _media_type(fields, content_type)
    if media_type in INDEX_TYPES:
        return _index(body, fields, media_type)
    return _image(body, fields, media_type)


def _schema1(body: bytes, fields: dict[str, Any]) -> Manifest:
    layers = fields.get("fsLayers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ManifestInvalid("manifest field fsLayers is not a list")
    blobs = tuple(
        Descriptor(_SCHEMA1_LAYER, digests.parse(str(layer.get("blobSum"))), 0) for layer in layers
    )
    signed = "+prettyjws" if "signatures" in fields else "+json"
    return Manifest(_SCHEMA1_PREFIX + signed, body, blobs=blobs)


def _load(body: bytes, **hooks: Any) -> dict[str, Any]:
    try:
        # Decoded by hand: json would take UTF-16 too, which no other client reads.
        fields = json.loads(body.decode("utf-8"), **hooks)
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(f"manifest is not JSON: {_reason(error)}") from None
    if not isinstance(fields, dict):
        raise ManifestInvalid("manifest is not a JSON object")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless a field is there twice: the next parser may pick the other one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ManifestInvalid("manifest has a field twice in one object")
    return found


def _check_spelling(fields: dict[str, Any]) -> None:
    """Refuse ``Layers`` beside ``layers``: Go's decoder takes either, and clients are Go."""
    for name in fields:
        known = _FIELDS.get(name.casefold(), name)
        if known != name:
            raise ManifestInvalid(f"manifest field {name[:40]!r} must be spelled {known}")


def _refuse_constant(name: str) -> None:
    raise ManifestInvalid(f"manifest is not JSON: {name} is no JSON value")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at byte {error.pos}"
    return "nested too deeply" if isinstance(error, RecursionError) else "not valid text"


def _media_type(fields: dict[str, Any], content_type: str | None) -> str:
    declared = fields.get("mediaType")
    if declared is not None and not isinstance(declared, str):
        raise ManifestInvalid("manifest field mediaType is not text")
    announced = declared or content_type or ""
    if fields.get("schemaVersion") == 1 or announced.startswith(_SCHEMA1_PREFIX):
        raise ManifestInvalid(
            "Docker image manifest schema 1 is not supported: "
            "push the image again with docker 1.10 or newer"
        )
    if fields.get("schemaVersion") != 2:
        raise ManifestInvalid("manifest field schemaVersion is not 2")
    if "manifests" in fields and ("layers" in fields or "config" in fields):
        # CVE-2021-41190: bytes that are an image to one client and an index to another.
        raise ManifestInvalid("manifest has fields of an index and of an image")
    derived = declared or (OCI_INDEX if "manifests" in fields else OCI_MANIFEST)
    if derived not in IMAGE_TYPES | INDEX_TYPES:
        raise ManifestInvalid(f"manifest media type {derived[:100]!r} is not supported")
    if ("manifests" in fields) != (derived in INDEX_TYPES):
        raise ManifestInvalid(f"manifest content does not fit its media type {derived}")
    if content_type is not None and content_type != derived:
        raise ManifestInvalid(
            f"Content-Type {content_type[:100]!r} contradicts the manifest, which is {derived}"
        )
    return derived


def _image(body: bytes, fields: dict[str, Any], media_type: str) -> Manifest:
    config = _descriptor(fields.get("config"), "config")
    layers = fields.get("layers")
    if not isinstance(layers, list):
        raise ManifestInvalid("manifest field layers is not a list")
    blobs = (config, *(_descriptor(layer, f"layers[{i}]") for i, layer in enumerate(layers)))
    return Manifest(
        media_type,
        body,
        blobs=blobs,
        subject=_subject(fields),
        artifact_type=_text(fields, "artifactType") or config.media_type,
        annotations=_annotations(fields),
    )


def _index(body: bytes, fields: dict[str, Any], media_type: str) -> Manifest:
    children = fields["manifests"]
    if not isinstance(children, list):
        raise ManifestInvalid("manifest field manifests is not a list")
    return Manifest(
        media_type,
        body,
        manifests=tuple(_descriptor(c, f"manifests[{i}]") for i, c in enumerate(children)),
        subject=_subject(fields),
        artifact_type=_text(fields, "artifactType"),
        annotations=_annotations(fields),
    )


def _descriptor(value: object, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise ManifestInvalid(f"manifest field {where} is not a descriptor")
    media_type, text, size = value.get("mediaType"), value.get("digest"), value.get("size")
    if not isinstance(media_type, str) or not media_type:
        raise ManifestInvalid(f"manifest field {where}.mediaType is missing")
    if not isinstance(text, str):
        raise ManifestInvalid(f"manifest field {where}.digest is missing")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_INT64:
        raise ManifestInvalid(f"manifest field {where}.size is not a number of bytes")
    try:
        digest = digests.parse(text)
    except DigestInvalid as error:
        raise DigestInvalid(f"manifest field {where}.digest: {error.message}") from None
    # Foreign layers are fetched from their own URLs; a registry may never have held them.
    distributable = media_type not in _NON_DISTRIBUTABLE and not value.get("urls")
    return Descriptor(media_type, digest, size, distributable)


def _subject(fields: dict[str, Any]) -> Descriptor | None:
    value = fields.get("subject")
    return None if value is None else _descriptor(value, "subject")


def _text(fields: dict[str, Any], key: str) -> str | None:
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        raise ManifestInvalid(f"manifest field {key} is not text")
    return value


def _annotations(fields: dict[str, Any]) -> dict[str, str] | None:
    value = fields.get("annotations")
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ManifestInvalid("manifest field annotations is not a map of text")
    return value
