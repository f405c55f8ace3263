"""Packages of zarf: an OCI layout below ``images/``, and the list of files in ``checksums.txt``.

Source: zarf's ``src/pkg/packager/layout``. ``zarf.yaml`` has the digest of ``checksums.txt``, which
has that of every other file. Blobs are proven by their own digests, so of the list only the
documents of the layout are hashed; a blob that is listed with another digest than its name is
refused. Signatures are not checked: ``zarf package verify`` does that.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from mayfly.storage import digest as digests
from mayfly.storage.bundle.archive import ArchiveReader
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.files import Below, Files, read_named
from mayfly.storage.bundle.oci_layout import INDEX, OciLayout

DEFINITION = "zarf.yaml"
CHECKSUMS = "checksums.txt"
IMAGES = "images"

_BLOBS = f"{IMAGES}/blobs/sha256"
_AGGREGATE = re.compile(rb"^[ \t]+aggregateChecksum:[ \t]*[\"']?([0-9a-f]{64})[\"']?[ \t]*$", re.M)
_LINE = re.compile(r"([0-9a-f]{64}) ([^\n]+)")


def open_package(files: Files) -> ArchiveReader:
    """Open the reader for a package's images.

    Args:
        files: the package's; closed with the reader.

    Raises:
        BundleInvalid: the package has no images, or its documents contradict each other.
    """
    sums = _checksums(files)
    for name in (f"{IMAGES}/{INDEX}", f"{IMAGES}/oci-layout"):
        text = read_named(files, name)
        if text is not None and sums.get(name) != digests.of(text).hex:
            raise BundleInvalid(
                f"{name} does not have the digest that {CHECKSUMS} gives it: the package is damaged"
            )
    if INDEX not in files.entries(IMAGES):
        raise BundleInvalid(f"the package has no images: there is no {IMAGES}/{INDEX} in it")
    return OciLayout(Below(files, IMAGES), "zarf")


def _checksums(files: Files) -> dict[str, str]:
    """Return the digests in ``checksums.txt`` by the files' names."""
    text, definition = read_named(files, CHECKSUMS), read_named(files, DEFINITION)
    if text is None or definition is None:
        raise BundleInvalid(f"{CHECKSUMS} or {DEFINITION} is no file")
    own = digests.of(text).hex
    for stated in _AGGREGATE.findall(definition):
        if stated.decode() != own:
            raise BundleInvalid(
                f"{CHECKSUMS} does not have the digest that {DEFINITION} gives it: "
                "the package is damaged"
            )
    sums: dict[str, str] = {}
    for number, line in enumerate(text.decode(errors="replace").splitlines(), 1):
        if not line:
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise BundleInvalid(f"{CHECKSUMS}, line {number}: not a digest and a file's name")
        encoded, name = found.groups()
        if sums.setdefault(name, encoded) != encoded:
            raise BundleInvalid(f"{CHECKSUMS}, line {number}: {name[:200]!r} is listed twice")
        path = PurePosixPath(name)
        if str(path.parent) == _BLOBS and path.name != encoded:
            raise BundleInvalid(
                f"{CHECKSUMS}, line {number}: blob {path.name[:64]} is listed with another digest"
            )
    return sums
