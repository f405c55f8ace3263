"""The images of a store: names, sizes, layers, and which layers they share.

Reads any `storage.interface.Reader`. Sizes are those of the stored (compressed) blobs, in bytes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mayfly.storage.digest import Digest
from mayfly.storage.errors import ManifestUnknown, NameInvalid, StorageError
from mayfly.storage.interface import Reader
from mayfly.storage.manifest import Manifest
from mayfly.storage.reading import find_blob, manifests_below, read_blob, repositories
from mayfly.storage.reference import LATEST, parse_reference

_ATTESTED = "vnd.docker.reference.digest"
"""BuildKit's annotation: the platform manifest that an attestation manifest describes."""

_USUAL_VARIANTS = frozenset({("amd64", "v1"), ("arm64", "v8")})
"""Architectures with a variant that many images leave out and no other says; left out by all here,
as containerd does."""

_MAX_CONFIG = 8 * 1024 * 1024
"""Bytes; a config is a few KiB, but an artifact may give any blob as its config."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a store, with everything below it.

    Attributes:
        name: ``repository:tag``.
        digest: of the manifest or index the tag points at.
        media_type: of the same.
        blobs: the size of every blob below it, manifests included.
        missing: content that it names and the repository does not hold.
        faults: manifests that could not be read, wholly or in part; their content is unknown.
        left_out: the part of ``missing`` that an index names: other platforms, not copied.
        manifests: the manifests among ``blobs``, the image's own first.
        artifact_type: of the image's own manifest.
    """

    name: str
    digest: Digest
    media_type: str
    blobs: dict[Digest, int]
    missing: tuple[Digest, ...] = ()
    faults: tuple[str, ...] = ()
    left_out: tuple[Digest, ...] = ()
    manifests: tuple[Digest, ...] = ()
    artifact_type: str | None = None

    @property
    def lacking(self) -> tuple[Digest, ...]:
        """Missing content that was not left out: without it the image cannot be pulled."""
        return tuple(digest for digest in self.missing if digest not in self.left_out)

    @property
    def size(self) -> int:
        """Bytes that a node without any of its content would fetch."""
        return sum(self.blobs.values())


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a stack, bottom first.

    Attributes:
        size: of the stored blob, otherwise as the manifest says; None if neither is known.
        created_by: the build step, from the config's history; "" if it has none.
        shared_with: other images with the same layer.
    """

    digest: Digest
    media_type: str
    size: int | None
    created_by: str = ""
    shared_with: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stack:
    """The image of one platform.

    Attributes:
        platform: ``os/architecture[/variant]``; "" for an artifact.
        digest: of the manifest.
        layers: bottom first.
        attests: of a BuildKit attestation, the manifest of the platform that it describes.
    """

    platform: str
    digest: Digest
    layers: tuple[Layer, ...]
    attests: str | None = None


def images(reader: Reader) -> Iterator[Image]:
    """Yield every tagged image, in order of name."""
    for repository in repositories(reader):
        for tag in reader.tags(repository):
            try:
                digest = reader.tag(repository, tag)
                yield image(reader, repository, digest, f"{repository}:{tag}")
            except ManifestUnknown:
                continue  # deleted meanwhile, or a tag without manifest


def image(reader: Reader, repository: str, digest: Digest, name: str) -> Image:
    """Return the image of a manifest or index.

    Raises:
        ManifestUnknown: it is not in the repository.
    """
    media_type = ""
    artifact_type = None
    read: list[Digest] = []
    blobs: dict[Digest, int] = {}
    missing: dict[Digest, None] = {}
    faults: list[str] = []
    children: set[Digest] = set()
    for found, manifest in manifests_below(reader, repository, digest):
        if isinstance(manifest, StorageError):
            if not isinstance(manifest, ManifestUnknown):
                faults.append(f"manifest {found}: {manifest.message}")
                with contextlib.suppress(StorageError):  # a bundle knows no size of damaged content
                    blobs[found] = reader.manifest(repository, found).size
                read.append(found)
            elif found == digest:
                raise manifest
            else:
                # registry:2 accepts an entry that is a blob, whatever type the index gives it.
                _add_blob(reader, repository, found, True, blobs, missing)
                children.add(found)
            continue
        media_type = media_type or manifest.media_type
        if found == digest:
            artifact_type = manifest.artifact_type
        read.append(found)
        blobs[found] = len(manifest.body)
        faults += [f"manifest {found}: {fault}" for fault in manifest.faults]
        for descriptor in manifest.blobs:
            needed = descriptor.distributable
            _add_blob(reader, repository, descriptor.digest, needed, blobs, missing)
    left_out = tuple(child for child in missing if child in children)
    return Image(
        name,
        digest,
        media_type,
        blobs,
        tuple(missing),
        tuple(faults),
        left_out,
        tuple(read),
        artifact_type,
    )


def resolve(reader: Reader, text: str) -> tuple[str, Digest]:
    """Return the repository and digest that an operator's image name means.

    ``x``, ``library/x`` and ``docker.io/library/x`` mean the same; a host is ignored.

    Raises:
        NameInvalid, TagInvalid, DigestInvalid: the text is not an image name.
        ManifestUnknown: there is no such image.
    """
    reference = parse_reference(text)
    tag = reference.tag or LATEST
    for repository in reference.stored_as:
        try:
            digest = reference.digest or reader.tag(repository, tag)
            reader.manifest(repository, digest)
        except (ManifestUnknown, NameInvalid):
            continue
        return repository, digest
    raise ManifestUnknown(f"no image {text} here; mayfly ls lists them")


def stacks(
    reader: Reader, repository: str, digest: Digest, name: str, *, shared: bool = True
) -> list[Stack]:
    """Return the layers of each platform of an image.

    Args:
        reader: with the image.
        repository: of the image.
        digest: of its manifest or index.
        name: of the image, which is not listed among those that share a layer.
        shared: whether to look for other images with the same layers; reads all of them.

    Raises:
        ManifestUnknown: it is not in the repository.
    """
    users = _users(reader) if shared else {}
    found: list[Stack] = []
    attests: dict[str, str] = {}
    variants: dict[str, object] = {}
    for child, manifest in manifests_below(reader, repository, digest):
        if isinstance(manifest, StorageError):
            if child == digest:
                raise manifest
            continue  # a platform that was left out
        if manifest.manifests:
            entries = _entries(manifest)
            attests |= _attestations(entries)
            variants |= _variants(entries)
            continue
        config = _config(reader, repository, manifest)
        steps = _steps(config)
        layers = []
        for number, descriptor in enumerate(manifest.layers):
            step = steps[number] if number < len(steps) else ""
            others = tuple(sorted(users.get(descriptor.digest, set()) - {name}))
            extent = find_blob(reader, repository, descriptor.digest)
            size = descriptor.size if extent is None else extent.size
            layers.append(Layer(descriptor.digest, descriptor.media_type, size, step, others))
        platform = _platform(config, variants.get(str(child)))
        found.append(Stack(platform, child, tuple(layers), attests.get(str(child))))
    return found


def attested(entry: Mapping[str, object]) -> str | None:
    """The digest that an entry of an index attests to, as text; None for any other entry."""
    annotations = entry.get("annotations")
    value = annotations.get(_ATTESTED) if isinstance(annotations, dict) else None
    return value if isinstance(value, str) else None


def _entries(index: Manifest) -> list[dict[str, Any]]:
    """Return the entries of a stored index, as far as they are objects."""
    try:
        entries = json.loads(index.body).get("manifests")
    except (ValueError, RecursionError, AttributeError):
        return []
    return [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []


def _attestations(entries: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Return the attestations in an index, each with the manifest that it describes."""
    found = {str(one.get("digest")): attested(one) for one in entries}
    return {digest: target for digest, target in found.items() if target is not None}


def _variants(entries: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return the variants of the platforms in an index, by the digest of the manifest."""
    platforms = ((str(one.get("digest")), one.get("platform")) for one in entries)
    return {
        digest: platform.get("variant")
        for digest, platform in platforms
        if isinstance(platform, dict)
    }


def _platform(config: Mapping[str, object], variant: object) -> str:
    """Return ``os/architecture[/variant]``.

    Args:
        config: of the image.
        variant: that the index gives it, for a config without one.
    """
    names = [config.get("os"), config.get("architecture"), config.get("variant") or variant]
    if tuple(names[1:]) in _USUAL_VARIANTS:
        names.pop()
    return "/".join(name for name in names if isinstance(name, str) and name)


def _add_blob(
    reader: Reader,
    repository: str,
    digest: Digest,
    is_required: bool,
    blobs: dict[Digest, int],
    missing: dict[Digest, None],
) -> None:
    if digest in blobs or digest in missing:
        return
    extent = find_blob(reader, repository, digest)
    if extent is not None:
        blobs[digest] = extent.size
    elif is_required:
        missing[digest] = None


def _users(reader: Reader) -> dict[Digest, set[str]]:
    users: dict[Digest, set[str]] = {}
    for one in images(reader):
        for digest in one.blobs:
            users.setdefault(digest, set()).add(one.name)
    return users


def _config(reader: Reader, repository: str, manifest: Manifest) -> dict[str, Any]:
    if manifest.config is None:
        return {}
    try:
        body = read_blob(reader, repository, manifest.config.digest, _MAX_CONFIG + 1)
        found = json.loads(body) if len(body) <= _MAX_CONFIG else {}
    except (StorageError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _steps(config: dict[str, Any]) -> list[str]:
    """Return the build step of each layer, as far as a config of any shape has them."""
    history = config.get("history")
    steps = [s for s in history if isinstance(s, dict)] if isinstance(history, list) else []
    created = [step.get("created_by") for step in steps if not step.get("empty_layer")]
    return [text if isinstance(text, str) else "" for text in created]
