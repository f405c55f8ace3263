"""Tell by its content which maker's bundle a directory or tar is, and open the reader for it.

To add a maker: a reader (`storage.bundle.archive.ArchiveReader`), its rule here, its form in
`tests/bundle/makers.py`, and its row in docs/bundles.md.
"""

from __future__ import annotations

from typing import NamedTuple

from mayfly.storage.bundle import docker_archive, documents, filed, imgpkg, oci_layout, zarf
from mayfly.storage.bundle.archive import ArchiveReader
from mayfly.storage.bundle.files import Below, Files
from mayfly.storage.bundle.verified import Proofs
from mayfly.storage.directory.layout import BASE

OC_MIRROR = "oc-mirror"

WORKING_DIRECTORY = "working-dir"
"""oc-mirror's own files, in one of the archives of a set."""


class Registry(NamedTuple):
    """A registry's directory.

    Attributes:
        base: where the format of CNCF distribution begins.
        maker: the tool that wrote the bundle which contains it.
    """

    base: str
    maker: str


def registry_in(files: Files) -> Registry | None:
    """Return the registry's directory that a bundle is or contains; None if there is none."""
    if "v2" in files.entries("docker/registry"):
        is_oc_mirror = WORKING_DIRECTORY in files.entries("")
        return Registry(BASE, OC_MIRROR if is_oc_mirror else "registry")
    if "v2" in files.entries("docker"):
        return Registry("docker/v2", OC_MIRROR)
    if "v2" in files.entries("registry/docker/registry"):
        return Registry(f"registry/{BASE}", "sealos")
    return None


def reader_of(files: Files, proofs: Proofs) -> ArchiveReader | None:
    """Open the reader for a bundle; None if it is of no kind that is known.

    Args:
        files: the bundle's; closed with the reader.
        proofs: keeps the digests of layers.

    Raises:
        BundleInvalid: it is of a known kind and cannot be served.
    """
    tops = set(files.entries(""))
    if tops >= {zarf.DEFINITION, zarf.CHECKSUMS}:
        return zarf.open_package(files)
    if oci_layout.INDEX in tops:
        return oci_layout.OciLayout(files)
    if docker_archive.INDEX in tops:
        entries = documents.read_list(files, docker_archive.INDEX)
        if imgpkg.is_imgpkg(entries):
            return imgpkg.Imgpkg(files, entries)
        return docker_archive.DockerArchive(files, entries, proofs)
    if tops >= {filed.TALOS.blobs, filed.TALOS.manifests}:
        return filed.FiledManifests(files, filed.TALOS)
    for directory in ("", "images", "kubekey/images"):
        below = Below(files, directory) if directory else files
        if any(name.startswith("sha256:") for name in below.entries(filed.KUBEKEY.blobs)):
            return filed.FiledManifests(below, filed.KUBEKEY)
    return None
