"""Images with everything that can belong to one, in a store, to be fetched from there."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mayfly.storage.digest import Digest, of
from mayfly.storage.directory.store import DistributionStore
from tests.support.images import descriptor, image_body, index_body, push, put, subject_of

APP, TOOL = "team/app", "tool"
PLATFORMS = ("amd64", "arm64")
LAYERS = {name: name.encode() * 100_000 for name in ("base", *PLATFORMS)}


@dataclass
class Content:
    """What a registry holds: every digest by a name."""

    root: Path
    digests: dict[str, Digest]

    def tags(self) -> dict[str, str]:
        """Images of the list: reference without a host to the name of its digest."""
        return {f"{APP}:1": "index", f"{TOOL}:1": "tool"}

    def names(self, host: str) -> list[str]:
        """The names of these images at a host, which may have a path."""
        return [f"{host}/{name}" for name in self.tags()]

    @property
    def all(self) -> set[str]:
        """Every digest, of manifests and blobs, in hexadecimal."""
        blobs = {of(data).hex for data in (b"{}", *LAYERS.values())}
        return blobs | {digest.hex for digest in self.digests.values()}


def make(root: Path) -> Content:
    """A multi-platform image with an attestation, a signed signature and a cosign tag; a tool."""
    found: dict[str, Digest] = {}
    with closing(DistributionStore(root)) as store:
        children = []
        for data in (b"{}", *LAYERS.values()):
            push(store, APP, data)
        for platform in PLATFORMS:
            body = image_body(
                b"{}", [LAYERS["base"], LAYERS[platform]], annotations={"p": platform}
            )
            manifest, found[platform] = put(store, APP, body)
            children.append(
                descriptor(
                    manifest.body,
                    manifest.media_type,
                    platform={"os": "linux", "architecture": platform},
                )
            )
        attestation, found["attestation"] = put(
            store, APP, image_body(b"{}", annotations={"a": "b"})
        )
        children.append(
            descriptor(
                attestation.body,
                attestation.media_type,
                platform={"os": "unknown", "architecture": "unknown"},
                annotations={
                    "vnd.docker.reference.type": "attestation-manifest",
                    "vnd.docker.reference.digest": str(found["amd64"]),
                },
            )
        )
        index, found["index"] = put(store, APP, index_body(manifests=children), "1")
        signature, found["signature"] = put(
            store, APP, image_body(b"{}", subject=subject_of(index), artifactType="example/sig")
        )
        _, found["countersignature"] = put(
            store, APP, image_body(b"{}", subject=subject_of(signature), artifactType="example/sig")
        )
        _, found["cosign"] = put(
            store,
            APP,
            image_body(b"{}", annotations={"cosign": "old"}),
            f"sha256-{found['index'].hex}.sig",
        )
        push(store, TOOL, b"{}")
        push(store, TOOL, LAYERS["base"])
        _, found["tool"] = put(store, TOOL, image_body(b"{}", [LAYERS["base"]]), "1")
    return Content(root, found)
