"""Manifests, parsed without side effects: bytes in, one frozen value out.

Kinds and fields: OCI image-spec manifest.md and image-index.md; Docker image manifest v2 schema 2
and manifest list; the artifact manifest of the OCI 1.1 release candidates. The media type is always
derived from the content, so that a store needs only the bytes: a ``mediaType`` field decides;
without one (OCI allows that) a list of ``manifests`` makes an index and anything else an image
manifest, as registry:2 does.

There are two ways to read. `parse` is for content on its way in and refuses documents that two
decoders could understand differently. `parse_stored` is for content that is in a store or a bundle
already: it reads everything that another registry may have accepted, and names the parts it could
not read.

Clients are written in Go, whose decoder takes a field's name in any case and lets the last of
several win. ``{"digest": A, "Digest": B}`` is A to a decoder that compares names exactly and B to
Go's. Where a stored manifest can be read in two ways, `Manifest.kept_digests` has the content of
both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mayfly.storage import digest as digests
from mayfly.storage import json_object
from mayfly.storage.digest import Digest
from mayfly.storage.errors import DigestInvalid, ManifestInvalid, ManifestTooLarge, StorageError

MAX_SIZE = 4 * 1024 * 1024
"""Largest manifest in bytes (distribution-spec: registries should take at least 4 MiB)."""

MAX_DESCRIPTORS = 10_000
"""Most layers or children of a pushed manifest; the largest real ones have hundreds."""

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

_MAX_INT64 = 2**63 - 1
"""Largest size (image-spec descriptor.md: an int64)."""

_MAX_FAULTS = 20
"""Most faults noted of one manifest; a list of layers may have thousands."""

IMAGE_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
_SCHEMA1_PREFIX = "application/vnd.docker.distribution.manifest.v1"
_SCHEMA1_LAYER = "application/vnd.docker.container.image.rootfs.diff+x-gtar"

_NON_DISTRIBUTABLE = frozenset(
    {
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}")
"""RFC 6838, 4.2. Other text must not get into a header."""

_ESCAPED = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to content (image-spec descriptor.md), with the fields that the registry uses.

    Other fields, such as platform and annotations, are in the bytes of the manifest.

    Attributes:
        media_type: "" where a stored manifest does not say.
        size: in bytes; None where a stored manifest does not say, or says nonsense.
        distributable: False for content that a registry need not have, because it is fetched from
            its own ``urls`` or is of a type that may not be redistributed. Excuses absence only.
    """

    media_type: str
    digest: Digest
    size: int | None
    distributable: bool = True


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parts of an image manifest, index or artifact manifest that a registry uses.

    Attributes:
        media_type: derived from the content.
        body: the exact bytes; its digest is taken over these.
        config: of an image manifest; None where a stored one has none.
        layers: of an image manifest; the blobs of an artifact manifest; the entries of an index
            that are blobs by their type, as in BuildKit's registry cache before 0.21.
        manifests: the children that an index names.
        subject: the manifest this one refers to, for the referrers list.
        artifact_type: its own, otherwise the config's media type (image manifests only).
        annotations: of the manifest itself.
        faults: parts of a stored manifest that could not be read.
        ambiguous: whether other decoders may read a stored manifest differently.
    """

    media_type: str
    body: bytes
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    manifests: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None
    faults: tuple[str, ...] = ()
    ambiguous: bool = False

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """All blobs that it names, the config first."""
        return self.layers if self.config is None else (self.config, *self.layers)

    def kept_digests(self) -> frozenset[Digest]:
        """Return the content that must not be collected while this manifest is stored."""
        named = frozenset(one.digest for one in (*self.blobs, *self.manifests))
        if self.faults or self.ambiguous:
            return named | mentioned_digests(self.body)
        return named

    def referrer(self, digest: Digest) -> dict[str, object]:
        """Return the descriptor of this manifest for the referrers list of its subject."""
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
    """Parse a manifest that is pushed or imported, and reject an invalid one.

    Args:
        body: the bytes as pushed, or as a bundle has them.
        content_type: the media type the client announced, without parameters; None when it
            announced none.

    Raises:
        ManifestTooLarge: over `MAX_SIZE`.
        ManifestInvalid: not JSON, a schema that is not served, a broken or ambiguous field, a
            bound exceeded, or a content type that contradicts the content.
        DigestInvalid: a descriptor names an unsupported digest.
    """
    if len(body) > MAX_SIZE:
        raise ManifestTooLarge(f"manifest is larger than {MAX_SIZE} bytes")
    strict = _Reading(is_strict=True)
    fields = strict.spelled(json_object.read(body), _TOP_LEVEL, "")
    media_type = _checked_media_type(fields, content_type)
    return _manifest(strict, body, fields, media_type)


def parse_stored(body: bytes) -> Manifest:
    """Parse a manifest that is in a store or bundle already, as far as it can be understood.

    A registry:2 volume may hold Docker schema 1, lists that are null, sizes that are absent or
    negative, capitalised fields. Parts that cannot be read are in `Manifest.faults`.

    Raises:
        ManifestInvalid: the bytes are not a JSON object, or one of another kind.
    """
    found = json_object.read_leniently(body, lambda key: folded(key) in _TOP_LEVEL)
    lenient = _Reading(is_strict=False, faults=list(found.faults), is_ambiguous=found.repeats)
    fields = lenient.spelled(found.fields, _TOP_LEVEL, "")
    if not fields.keys() & _TELLING:
        raise ManifestInvalid("manifest has no field by which it could be one")
    if _is_schema1(fields):
        return _schema1(lenient, body, fields)
    return _manifest(lenient, body, fields, _derived_media_type(fields))


def mentioned_digests(body: bytes) -> frozenset[Digest]:
    """Return every digest in a text: the content that damaged JSON may refer to."""
    text = _ESCAPED.sub(lambda escape: bytes([int(escape[1], 16)]), body)
    return frozenset(digests.parse(found[0].decode()) for found in _DIGEST.finditer(text))


def _names(*names: str) -> Mapping[str, str]:
    """Return the names of an object's fields by their folded spelling."""
    return {name.lower(): name for name in names}


_TOP_LEVEL = _names(
    *("schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "blobs"),
    *("subject", "annotations", "fsLayers", "signatures"),
)
_TELLING = frozenset({"schemaVersion", "mediaType", "config", "layers", "manifests", "blobs"})
_DESCRIPTOR = _names(
    *("mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType")
)
_PLATFORM = _names("architecture", "os", "os.version", "os.features", "variant", "features")


def folded(name: str) -> str:
    """Return a field's name as Go's decoder compares it, by Unicode's simple folding.

    Of the letters outside ASCII only two fold to one inside: the long s and the Kelvin sign.
    """
    return name.replace("\u017f", "s").replace("\u212a", "k").lower()


@dataclass(slots=True)
class _Reading:
    """One pass over a manifest, which either raises or notes every fault."""

    is_strict: bool
    faults: list[str] = field(default_factory=list)
    is_ambiguous: bool = False

    def fault(self, text: str, error: type[StorageError] = ManifestInvalid) -> None:
        if self.is_strict:
            raise error(f"manifest field {text}")
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(f"field {text}")

    def spelled(
        self, value: dict[str, Any], names: Mapping[str, str], where: str
    ) -> dict[str, Any]:
        """Return an object's fields under their proper names, as Go's decoder matches them."""
        odd = [key for key in value if (k := names.get(folded(key))) is not None and k != key]
        if not odd:
            return value
        found = dict(value)
        for key in odd:
            name = names[folded(key)]
            if self.is_strict:
                raise ManifestInvalid(f"manifest field {where}{key[:40]!r} must be spelled {name}")
            self.is_ambiguous = self.is_ambiguous or name in found
            del found[key]
            if name not in value:
                found[name] = value[key]
        return found

    def text(self, fields: dict[str, Any], key: str, where: str = "") -> str | None:
        value = fields.get(key)
        if value is None or isinstance(value, str):
            return value
        self.fault(f"{where}{key} is not text")
        return None

    def texts(self, fields: dict[str, Any], key: str, where: str = "") -> list[str]:
        value = fields.get(key)
        if value is None:
            return []
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return value
        self.fault(f"{where}{key} is not a list of text")
        return []

    def annotations(self, fields: dict[str, Any], where: str = "") -> dict[str, str] | None:
        value = fields.get("annotations")
        if value is None:
            return None
        if isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
            return value
        if self.is_strict or not isinstance(value, dict):
            self.fault(f"{where}annotations is not a map of text")
            return None
        # Null is the empty text to Go's decoder.
        kept = {k: v or "" for k, v in value.items() if v is None or isinstance(v, str)}
        if len(kept) != len(value):
            self.fault(f"{where}annotations is not a map of text")
        return kept

    def descriptors(self, fields: dict[str, Any], key: str) -> tuple[Descriptor, ...]:
        value = fields.get(key)
        if value is None and not self.is_strict:
            return ()
        if not isinstance(value, list):
            self.fault(f"{key} is not a list")
            return ()
        if self.is_strict and len(value) > MAX_DESCRIPTORS:
            self.fault(f"{key} has more than {MAX_DESCRIPTORS} entries")
        read = (self.descriptor(one, f"{key}[{i}]") for i, one in enumerate(value))
        return tuple(one for one in read if one is not None)

    def descriptor(self, value: object, where: str) -> Descriptor | None:
        if not isinstance(value, dict):
            self.fault(f"{where} is not a descriptor")
            return None
        fields = self.spelled(value, _DESCRIPTOR, f"{where}.")
        media_type = self.text(fields, "mediaType", f"{where}.")
        if not media_type:
            self.fault(f"{where}.mediaType is missing")
        size = self.size(fields, where)
        urls = self.texts(fields, "urls", f"{where}.")
        if self.is_strict:
            self.check_unread(fields, f"{where}.")
        digest = self.digest(fields, where)
        if digest is None:
            return None
        # Foreign layers are fetched from their own URLs; a registry may never have held them.
        distributable = media_type not in _NON_DISTRIBUTABLE and not urls
        return Descriptor(media_type or "", digest, size, distributable)

    def check_unread(self, fields: dict[str, Any], where: str) -> None:
        """Check the fields that only clients use: they must be able to decode them."""
        self.annotations(fields, where)
        self.text(fields, "data", where)
        self.text(fields, "artifactType", where)
        platform = fields.get("platform")
        if platform is None:
            return
        if not isinstance(platform, dict):
            self.fault(f"{where}platform is not an object")
            return
        known = self.spelled(platform, _PLATFORM, f"{where}platform.")
        for key in ("architecture", "os", "os.version", "variant"):
            self.text(known, key, f"{where}platform.")
        for key in ("os.features", "features"):
            self.texts(known, key, f"{where}platform.")

    def size(self, fields: dict[str, Any], where: str) -> int | None:
        value = fields.get("size")
        # By type: true is an int to Python.
        if type(value) is int and 0 <= value <= _MAX_INT64:
            return value
        self.fault(f"{where}.size is not a number of bytes")
        return None

    def digest(self, fields: dict[str, Any], where: str) -> Digest | None:
        value = fields.get("digest")
        if not isinstance(value, str):
            self.fault(f"{where}.digest is missing")
            return None
        try:
            return digests.parse(value)
        except DigestInvalid as error:
            self.fault(f"{where}.digest: {error.message}", DigestInvalid)
            return None


def _manifest(reading: _Reading, body: bytes, fields: dict[str, Any], media_type: str) -> Manifest:
    def has(key: str, *types: str) -> bool:
        # A stored manifest may have the fields of several kinds: all of them are followed.
        return media_type in types or (not reading.is_strict and fields.get(key) is not None)

    config = None
    layers: list[Descriptor] = []
    children: list[Descriptor] = []
    if has("config") or (reading.is_strict and media_type in IMAGE_TYPES):
        config = reading.descriptor(fields.get("config"), "config")
    if has("layers", *IMAGE_TYPES):
        layers += reading.descriptors(fields, "layers")
    if has("blobs") or (media_type == OCI_ARTIFACT and "blobs" in fields):
        layers += reading.descriptors(fields, "blobs")
    if has("manifests", *INDEX_TYPES):
        for entry in reading.descriptors(fields, "manifests"):
            (children if _may_be_manifest(entry.media_type) else layers).append(entry)
    artifact_type = reading.text(fields, "artifactType")
    is_image = media_type in IMAGE_TYPES
    subject = fields.get("subject")
    return Manifest(
        media_type,
        body,
        config=config,
        layers=tuple(layers),
        manifests=tuple(children),
        subject=None if subject is None else reading.descriptor(subject, "subject"),
        artifact_type=artifact_type or (config.media_type if is_image and config else None) or None,
        annotations=reading.annotations(fields),
        faults=tuple(reading.faults),
        ambiguous=reading.is_ambiguous,
    )


def _may_be_manifest(media_type: str) -> bool:
    known = media_type in IMAGE_TYPES | INDEX_TYPES or media_type in ("", OCI_ARTIFACT)
    return known or media_type.startswith(_SCHEMA1_PREFIX)


def _schema1(reading: _Reading, body: bytes, fields: dict[str, Any]) -> Manifest:
    signed = "+prettyjws" if "signatures" in fields else "+json"
    layers = fields.get("fsLayers")
    found: list[Descriptor] = []
    if not isinstance(layers, list):
        raise ManifestInvalid("manifest field fsLayers is not a list")
    for number, layer in enumerate(layers):
        where = f"fsLayers[{number}]"
        named = reading.spelled(layer, _names("blobSum"), where) if isinstance(layer, dict) else {}
        digest = reading.digest({"digest": named.get("blobSum")}, where)
        if digest is not None:
            found.append(Descriptor(_SCHEMA1_LAYER, digest, None))
    return Manifest(
        _SCHEMA1_PREFIX + signed,
        body,
        layers=tuple(found),
        faults=tuple(reading.faults),
        ambiguous=reading.is_ambiguous,
    )


def _is_schema1(fields: dict[str, Any]) -> bool:
    version = fields.get("schemaVersion")
    return (
        type(version) is int
        and version == 1
        and not any(fields.get(key) is not None for key in ("config", "layers", "manifests"))
    )


def _derived_media_type(fields: dict[str, Any]) -> str:
    declared = fields.get("mediaType")
    if isinstance(declared, str) and _MEDIA_TYPE.fullmatch(declared):
        return declared
    return OCI_INDEX if isinstance(fields.get("manifests"), list) else OCI_MANIFEST


def _checked_media_type(fields: dict[str, Any], content_type: str | None) -> str:
    declared = fields.get("mediaType")
    if declared is not None and not isinstance(declared, str):
        raise ManifestInvalid("manifest field mediaType is not text")
    version = fields.get("schemaVersion")
    announced = declared or content_type or ""
    if version == 1 or announced.startswith(_SCHEMA1_PREFIX):
        raise ManifestInvalid(
            "Docker image manifest schema 1 is not supported: "
            "push the image again with docker 1.10 or newer"
        )
    # By type: 2.0 is no int to Go's decoder, and the artifact manifest has no such field.
    is_two = type(version) is int and version == 2
    if not is_two and not (declared == OCI_ARTIFACT and version is None):
        raise ManifestInvalid("manifest field schemaVersion is not 2")
    if "manifests" in fields and ("layers" in fields or "config" in fields):
        # CVE-2021-41190: bytes that are an image to one client and an index to another.
        raise ManifestInvalid("manifest has fields of an index and of an image")
    derived = declared or (OCI_INDEX if "manifests" in fields else OCI_MANIFEST)
    if derived not in IMAGE_TYPES | INDEX_TYPES | {OCI_ARTIFACT}:
        raise ManifestInvalid(f"manifest media type {derived[:100]!r} is not supported")
    if ("manifests" in fields) != (derived in INDEX_TYPES) or (
        derived == OCI_ARTIFACT and ("layers" in fields or "config" in fields)
    ):
        raise ManifestInvalid(f"manifest content does not fit its media type {derived}")
    if content_type is not None and content_type != derived:
        raise ManifestInvalid(
            f"Content-Type {content_type[:100]!r} contradicts the manifest, which is {derived}"
        )
    return derived
