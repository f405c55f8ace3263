"""Where content can come from besides the store: a bundle, or another registry."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import click
from click.core import ParameterSource

from mayfly.registry import one_file
from mayfly.registry.settings.errors import ConfigError
from mayfly.storage.digest import Digest
from mayfly.storage.directory.uploads import DirectoryUpload
from mayfly.storage.errors import StorageError
from mayfly.storage.interface import LowerStore
from mayfly.storage.reading import find_blob

_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+:[0-9]{2,5}(?:/|$)")

if TYPE_CHECKING:
    from mayfly.storage.bundle.open import Bundles
    from mayfly.storage.directory.reader import DirectoryReader
    from mayfly.storage.interface import RevisionReader
    from mayfly.storage.survey import Damaged


class Source(Protocol):
    """Somewhere that may have a blob."""

    def has(self, repository: str, digest: Digest) -> bool:
        """Whether it has it."""

    def fetch(
        self, repository: str, digest: Digest, upload: DirectoryUpload, size: int | None = None
    ) -> bool:
        """Put it into an upload, no more than ``size`` bytes; False where it does not have it."""

    def holds(self, repository: str, digest: Digest) -> bool:
        """Whether a blob or manifest that it gives for a repository is one of that repository."""

    def resolve(self, repository: str, tag: str) -> Digest | None:
        """The manifest that a tag points at; None where it has no such tag."""


class BundleSource:
    """A bundle as a source; `fetch` finds a blob in any of its repositories."""

    def __init__(self, layer: LowerStore) -> None:
        self._layer = layer

    def has(self, repository: str, digest: Digest) -> bool:
        # In another repository it would be of no use: content is served per repository.
        return find_blob(self._layer, repository, digest) is not None

    def fetch(
        self, repository: str, digest: Digest, upload: DirectoryUpload, size: int | None = None
    ) -> bool:
        extent = self._layer.content(digest)
        if extent is None or size not in (None, extent.size):
            return False
        upload.copy(extent)
        return True

    def holds(self, repository: str, digest: Digest) -> bool:
        layer = self._layer
        return layer.links(repository, digest) or digest in layer.revisions(repository)

    def resolve(self, repository: str, tag: str) -> Digest | None:
        try:
            return self._layer.tag(repository, tag)
        except StorageError:
            return None


@contextlib.contextmanager
def opened(text: str) -> Iterator[Source]:
    """The source that an operator names: a URL is a registry, anything else a bundle.

    Raises:
        ConfigError: the URL names no registry.
        BundleInvalid: the bundle cannot be read.
    """
    if _is_url(text):
        from mayfly.registry.upstream.blocking import BlockingRegistry

        with BlockingRegistry(text) as registry:
            yield registry
        return
    from mayfly.storage.bundle.open import open_bundles

    with contextlib.closing(open_bundles([_path(text)])) as bundles:
        yield BundleSource(bundles.layer)


class Looked(NamedTuple):
    """The content that a command examines.

    Attributes:
        reader: its content.
        bundles: if it is bundles.
        store: if it is a store.
    """

    reader: RevisionReader
    bundles: Bundles | None = None
    store: DirectoryReader | None = None

    def lost_names(self) -> list[Damaged]:
        """Return the names in registries' directories that lead to no image; reads all of them.

        A repository or directory that cannot be read is one of them.
        """
        from mayfly.storage.survey import Damaged

        lost = () if self.bundles is None else self.bundles.damaged_names()
        return [
            Damaged(one.image, one.code, one.text.removeprefix(f"{one.image}: ")) for one in lost
        ]

    def find(self, image: str) -> tuple[str, Digest]:
        """Return the repository and digest that an image name means.

        Raises:
            ManifestUnknown: there is no such image.
            ContentCorrupt: a store has it, but its tag or manifest is damaged.
        """
        from mayfly.storage.images import resolve
        from mayfly.storage.survey import find

        return resolve(self.reader, image) if self.store is None else find(self.store, image)


def or_own_bundle(given: Sequence[str]) -> tuple[str, ...]:
    """Return the given sources; without any, and without --root, the bundle of this one file."""
    root = click.get_current_context().get_parameter_source("root")
    if given or root in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
        return tuple(given)
    return tuple(map(str, one_file.bundles()))


@contextlib.contextmanager
def looking_at(texts: Sequence[str], root: Path) -> Iterator[Looked]:
    """Open the bundles or the registry that an operator names, or the store by default, to read.

    Raises:
        ConfigError: a URL is not alone or names no registry; the root is no directory.
        BundleInvalid: a bundle cannot be read.
    """
    if any(_is_url(text) for text in texts):
        if len(texts) > 1:
            raise ConfigError("name either bundles, or the URL of one registry")
        from mayfly.registry.upstream.reader import RegistryReader

        with RegistryReader(texts[0]) as reader:
            yield Looked(reader)
    elif texts:
        from mayfly.storage.bundle.open import open_bundles

        with contextlib.closing(open_bundles([_path(text) for text in texts])) as bundles:
            if bundles.unhashed:
                bundles.hash(lambda size: None)
            yield Looked(bundles.layer, bundles)
    else:
        store = store_reader(root)
        yield Looked(store, store=store)


def store_reader(root: Path) -> DirectoryReader:
    """The store at a root, to read it.

    Raises:
        ConfigError: there is no such directory.
    """
    from mayfly.storage.directory.reader import DirectoryReader

    if not root.is_dir():
        raise ConfigError(f"--root {root}: there is no such directory")
    return DirectoryReader(root)


def _path(text: str) -> Path:
    """Return the path of a bundle.

    Raises:
        ConfigError: the text is no file, and names a registry without the scheme of a URL.
    """
    path = Path(text)
    if _HOST_AND_PORT.match(text) and not path.exists():
        raise ConfigError(
            f"{text}: there is no such file; a registry is named by its URL, as in https://{text}"
        )
    return path


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))
