"""The lists of an upgrade: images that must arrive, and nodes that must have them.

``IMAGES.txt`` has one image a line, as it is written in a pod or a ``docker pull``; ``#`` begins a
comment, and blank lines are skipped. A name is completed by docker's rule (``distribution``'s
``reference/normalize.go``): without a registry it belongs to ``docker.io``, there a single word to
``library/``, and without tag or digest the tag is ``latest``. The host and port of this registry
do not name the image's origin and are removed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mayfly.registry.address import canonical_address
from mayfly.registry.settings.errors import ConfigError
from mayfly.storage import digest as digests
from mayfly.storage.errors import DigestInvalid, NameInvalid, TagInvalid
from mayfly.storage.names import check_repository, check_tag

DEFAULT_HOST = "docker.io"
_OFFICIAL = "library/"
_OLD_DEFAULT_HOSTS = ("index.docker.io", "registry-1.docker.io")
_LATEST = "latest"

MAX_ENTRIES = 10_000
"""Most images, and most nodes, that a file may list."""


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One image that must arrive.

    Attributes:
        text: as the file has it.
        host: the registry it comes from; None if the name has none or this registry.
        paths: repository names it may have, the likeliest first.
        tag: None if there is a digest.
        digest: ``algorithm:hex``, or None.
    """

    text: str
    host: str | None
    paths: tuple[str, ...]
    tag: str | None
    digest: str | None

    def repositories(self) -> Iterator[str]:
        """Yield the repositories that may hold it here: with the upstream's name and without."""
        for path in self.paths:
            if self.host is not None:
                yield f"{self.host}/{path}"
        yield from self.paths


def parse_image(text: str, own_hosts: Collection[str] = ()) -> ListedImage:
    """Parse an image name.

    Args:
        text: without surrounding blanks.
        own_hosts: ``host`` or ``host:port`` by which this registry is known.

    Raises:
        ValueError: the text is not an image name.
    """
    name, at, digest = text.partition("@")
    name, tag = _split_tag(name)
    host, path = _split_host(name)
    try:
        check_repository(path)
        if tag is not None:
            check_tag(tag)
        if at:
            digest = str(digests.parse(digest))
    except (NameInvalid, TagInvalid, DigestInvalid) as error:
        raise ValueError(error.message) from None
    if host in own_hosts:
        return ListedImage(text, None, (path,), *_reference(tag, digest))
    if host in _OLD_DEFAULT_HOSTS:
        host = DEFAULT_HOST
    paths: tuple[str, ...] = (path,)
    if "/" not in path and host in (None, DEFAULT_HOST):
        # Written without a host it may also be a plain name that was pushed here.
        paths = (_OFFICIAL + path, path) if host is None else (_OFFICIAL + path,)
    return ListedImage(text, host, paths, *_reference(tag, digest))


def _reference(tag: str | None, digest: str) -> tuple[str | None, str | None]:
    return (None, digest) if digest else (tag or _LATEST, None)


def _split_tag(name: str) -> tuple[str, str | None]:
    path, colon, tag = name.rpartition(":")
    return (path, tag) if colon and "/" not in tag else (name, None)


def _split_host(name: str) -> tuple[str | None, str]:
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or first != first.lower() or set(first) & set(".:")):
        return first, rest
    return None, name


def read_images(path: Path, own_hosts: Collection[str] = ()) -> tuple[ListedImage, ...]:
    """Read ``IMAGES.txt``; an image listed twice counts once.

    Raises:
        ConfigError: it cannot be read, lists no image, or has a line that is not an image name.
    """
    found: dict[str, ListedImage] = {}
    for number, line in _lines(path, "--until-pulled"):
        try:
            found.setdefault(line, parse_image(line, own_hosts))
        except ValueError as error:
            raise ConfigError(
                f"--until-pulled {path}, line {number}: {line[:100]!r}: {error}"
            ) from None
    if not found:
        raise ConfigError(f"--until-pulled {path}: lists no image")
    return tuple(found.values())


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes that must have every image: ``names``, or any ``count`` of them."""

    count: int
    names: tuple[str, ...] = ()


def read_nodes(text: str) -> Nodes:
    """Read ``--nodes N|FILE``; a file has one node a line, a name or an address.

    Raises:
        ConfigError: the text is neither a number above 0 nor a file that lists a node.
    """
    if text.isascii() and text.isdigit():
        if not 0 < int(text) <= MAX_ENTRIES:
            raise ConfigError(f"--nodes {text}: expected 1 to {MAX_ENTRIES} nodes")
        return Nodes(int(text))
    names = tuple(
        dict.fromkeys(canonical_address(line) for _, line in _lines(Path(text), "--nodes"))
    )
    if not names:
        raise ConfigError(f"--nodes {text}: lists no node")
    return Nodes(len(names), names)


def _lines(path: Path, option: str) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{option} {path}: not UTF-8 text") from None
    found = 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        found += 1
        if found > MAX_ENTRIES:
            raise ConfigError(f"{option} {path}: lists more than {MAX_ENTRIES}")
        yield number, line
