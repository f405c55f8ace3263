"""Directories with manifests filed by image name, and blobs in one place: Talos and KubeKey.

Sources: Talos' ``pkg/imager/cache/cache.go`` (``talosctl images cache-create --layout=flat``), and
KubeKey 4's ``pkg/modules/image/repository.go``.

    blob/sha256-HEX                                     Talos; the port of HOST:PORT as HOST_PORT_
    manifests/HOST/REPOSITORY/reference/TAG
    manifests/HOST/REPOSITORY/digest/sha256-HEX

    blobs/sha256:HEX                                    KubeKey, also below images/ of an artifact
    HOST/REPOSITORY/manifests/sha256:HEX
    HOST/REPOSITORY/manifests/layout                    tag → digest, a JSON object
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from mayfly.storage import digest as digests
from mayfly.storage.bundle import documents
from mayfly.storage.bundle.archive import Listed
from mayfly.storage.bundle.diagnostics import Diagnostic
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.files import Files, read
from mayfly.storage.bundle.verified import Piece, Progress
from mayfly.storage.digest import HEX_LENGTHS, Digest
from mayfly.storage.errors import DigestInvalid
from mayfly.storage.manifest import MAX_SIZE
from mayfly.storage.reference import MAX_NAME_LENGTH

_MOST_DIRECTORIES = 200_000
"""Most directories that are listed to find manifests."""

_MOST_MANIFESTS = 100_000
"""Most files of manifests."""

_LAYOUT = "layout"
_PORT = re.compile(r"(.+)_([0-9]{1,5})_")


class Filing(NamedTuple):
    """How a maker files content.

    Attributes:
        maker: its name.
        blobs: the directory of blobs.
        separator: between algorithm and hex in names of files.
        manifests: the directory with the hosts; "" for the top.
        images: yields the images of a directory that may be a repository's; its arguments are the
            bundle, the directory, and the host and repository.
    """

    maker: str
    blobs: str
    separator: str
    manifests: str
    images: Callable[[FiledManifests, str, str], Iterator[Listed]]


class FiledManifests:
    """See `storage.bundle.archive.ArchiveReader`.

    Args:
        files: the bundle's; closed with this.
        filing: its form.

    Raises:
        BundleInvalid: there is too much in it, or a document cannot be understood.
    """

    notices: tuple[Diagnostic, ...] = ()
    names_by_config: Mapping[Digest, tuple[str, ...]] = {}
    volume = None
    unhashed = 0

    def __init__(self, files: Files, filing: Filing) -> None:
        self.files = files
        self.maker = filing.maker
        self._filing = filing
        self._manifests: dict[Digest, str] = {}
        self.listed = tuple(self._list())

    def find(self, digest: Digest) -> Piece | None:
        name = self._manifests.get(digest)
        if name is None:
            encoded = f"{digest.algorithm}{self._filing.separator}{digest.hex}"
            name = f"{self._filing.blobs}/{encoded}"
        return self.files.locate(name)

    def hash(self, progress: Progress) -> None:
        """Do nothing: everything is named by its digest."""

    def close(self) -> None:
        self.files.close()

    def by_digest(self, directory: str) -> Iterator[Digest]:
        """Yield the manifests that are filed by their digests, and note where they lie."""
        for name in self.files.entries(directory):
            algorithm, separator, encoded = name.partition(self._filing.separator)
            if not separator or algorithm not in HEX_LENGTHS:
                continue
            with contextlib.suppress(DigestInvalid):
                digest = digests.parse(f"{algorithm}:{encoded}")
                self._manifests.setdefault(digest, f"{directory}/{name}")
                if len(self._manifests) > _MOST_MANIFESTS:
                    raise BundleInvalid(f"it has more than {_MOST_MANIFESTS} manifests")
                yield digest

    def _list(self) -> Iterator[Listed]:
        top = self._filing.manifests
        waiting = [(name, "") for name in self.files.entries(top) if name != self._filing.blobs]
        count = 0
        while waiting:
            host, repository = waiting.pop()
            count += 1
            if count > _MOST_DIRECTORIES:
                raise BundleInvalid(f"it has more than {_MOST_DIRECTORIES} directories")
            directory = "/".join(part for part in (top, host, repository) if part)
            if repository:
                yield from self._filing.images(self, directory, f"{host}/{repository}")
            for name in self.files.entries(directory):
                below = f"{repository}/{name}" if repository else name
                # No repository has a longer name, so the walk of the deepest tree ends.
                if len(below) <= MAX_NAME_LENGTH + len("/reference"):
                    waiting.append((host, below))


def _talos_images(bundle: FiledManifests, directory: str, name: str) -> Iterator[Listed]:
    host, slash, repository = name.partition("/")
    port = _PORT.fullmatch(host)
    full = f"{port[1]}:{port[2]}{slash}{repository}" if port else name
    known = dict.fromkeys(bundle.by_digest(f"{directory}/digest"))
    for tag in bundle.files.entries(f"{directory}/reference"):
        file = f"{directory}/reference/{tag}"
        piece = bundle.files.locate(file)
        if piece is None:
            continue
        # The file is a second copy of the manifest, and nothing else says which one that is.
        digest = digests.of(read(piece, file, MAX_SIZE))
        if digest not in known:
            raise BundleInvalid(
                f"file {file} is none of the manifests in {directory}/digest: it is damaged"
            )
        yield Listed(digest, (f"{full}:{tag}",))
    for digest in known:
        yield Listed(digest, (f"{full}@{digest}",))


def _kubekey_images(bundle: FiledManifests, directory: str, name: str) -> Iterator[Listed]:
    known = dict.fromkeys(bundle.by_digest(f"{directory}/manifests"))
    layout = f"{directory}/manifests/{_LAYOUT}"
    for tag, text in (documents.read_object(bundle.files, layout, {}) or {}).items():
        try:
            digest = digests.parse(text if isinstance(text, str) else "")
        except DigestInvalid as error:
            raise BundleInvalid(f"{layout}, {tag[:128]!r}: {error.message}") from None
        yield Listed(digest, (f"{name}:{tag}",))
    for digest in known:
        yield Listed(digest, (f"{name}@{digest}",))


TALOS = Filing("Talos", "blob", "-", "manifests", _talos_images)
KUBEKEY = Filing("KubeKey", "blobs", ":", "", _kubekey_images)
