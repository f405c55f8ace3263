"""What an upgrade is: the images that must arrive, and the nodes they must arrive at.

``IMAGES.txt`` has one image a line, as it is written in a pod or a ``docker pull``; ``#`` begins a
comment, and blank lines are skipped. A name is made whole by docker's rule (``distribution``'s
``reference/normalize.go``): without a registry it is ``docker.io``'s, there a single word is
``library/``'s, and without tag or digest the tag is ``latest``. The host and port of this registry
say nothing about where the image came from and are taken off.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

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
class Image:
    """One image that must arrive.

    Attributes:
        text: as the file has it.
        host: the registry it comes from; None where the name does not say, or says this one.
        paths: repository names it may go by, the likeliest first.
        tag: None where there is a digest.
        digest: ``algorithm:hex``, or None.
    """

    text: str
    host: str | None
    paths: tuple[str, ...]
    tag: str | None
    digest: str | None

    def repositories(self) -> Iterator[str]:
        """The names under which this registry may hold it: with the upstream's and without."""
        for path in self.paths:
            if self.host is not None:
                yield f"{self.host}/{path}"
        yield from self.paths


def parse_image(text: str, own_hosts: Collection[str] = ()) -> Image:
    """Read one image name.

    Args:
        text: without blanks around it.
        own_hosts: ``host`` or ``host:port`` by which this registry is known.

    Raises:
        ValueError: it is no image name; the text says why.
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
        return Image(text, None, (path,), *_reference(tag, digest))
    if host in _OLD_DEFAULT_HOSTS:
        host = DEFAULT_HOST
    paths: tuple[str, ...] = (path,)
    if "/" not in path and host in (None, DEFAULT_HOST):
        # Written without a host it may also be a plain name that was pushed here.
        paths = (_OFFICIAL + path, path) if host is None else (_OFFICIAL + path,)
    return Image(text, host, paths, *_reference(tag, digest))


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


def read_images(path: Path, own_hosts: Collection[str] = ()) -> tuple[Image, ...]:
    """Read ``IMAGES.txt``; an image listed twice counts once.

    Raises:
        ConfigError: it cannot be read, lists nothing, or has a line that is no image name.
    """
    found: dict[str, Image] = {}
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
        ConfigError: it is neither a number above 0 nor a file that lists a node.
    """
    if text.isascii() and text.isdigit():
        if not 0 < int(text) <= MAX_ENTRIES:
            raise ConfigError(f"--nodes {text}: expected 1 to {MAX_ENTRIES} nodes")
        return Nodes(int(text))
    names = tuple(dict.fromkeys(plain(line) for _, line in _lines(Path(text), "--nodes")))
    if not names:
        raise ConfigError(f"--nodes {text}: lists no node")
    return Nodes(len(names), names)


@lru_cache(maxsize=4096)
def plain(address: str) -> str:
    """An IP address in its one usual form, IPv4 also where a socket shows it inside IPv6."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


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
