"""The lists of an upgrade: images that must arrive, and nodes that must have them.

``IMAGES.txt`` has one image a line, as it is written in a pod or a ``docker pull``; ``#`` begins a
comment, and blank lines are skipped. Short names are read as docker reads them
(`storage.reference`), and without tag or digest the tag is ``latest``. The host and port of this
registry do not say where the image came from and are removed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mayfly.registry.address import canonical_address
from mayfly.registry.settings.errors import ConfigError
from mayfly.storage.errors import DigestInvalid, NameInvalid, TagInvalid
from mayfly.storage.reference import DOCKER_HUB, LATEST, canonical_host, hub_path, split_name

MAX_ENTRIES = 10_000
"""Most images, and most nodes, that a file may list."""

_NO_NAME = re.compile(r"[\s,;/]")
"""Separators of several names, and of an image's name; a node's name has none."""


class ListedImage(NamedTuple):
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
    try:
        written = split_name(text)
    except (NameInvalid, TagInvalid, DigestInvalid) as error:
        raise ValueError(error.message) from None
    digest = None if written.digest is None else str(written.digest)
    tag = None if digest else written.tag or LATEST
    path = written.path
    if written.host in own_hosts:
        return ListedImage(text, None, (path,), tag, digest)
    host = None if written.host is None else canonical_host(written.host)
    paths: tuple[str, ...] = (path,)
    if host in (None, DOCKER_HUB):
        # Written without a host it may also be a plain name that was pushed here.
        full = hub_path(path)
        paths = (full,) if host is not None or full == path else (full, path)
    return ListedImage(text, host, paths, tag, digest)


def read_images(
    path: Path, own_hosts: Collection[str] = (), *, option: str = "--until-pulled"
) -> tuple[ListedImage, ...]:
    """Read ``IMAGES.txt``; an image listed twice counts once. Errors name the option.

    Raises:
        ConfigError: it cannot be read, lists no image, or has a line that is not an image name.
    """
    found: dict[str, ListedImage] = {}
    for number, line in _lines(path, option):
        try:
            found.setdefault(line, parse_image(line, own_hosts))
        except ValueError as error:
            raise ConfigError(f"{option} {path}, line {number}: {line[:100]!r}: {error}") from None
    if not found:
        raise ConfigError(f"{option} {path}: lists no image")
    return tuple(found.values())


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes that must have every image: ``names``, or any ``count`` of them."""

    count: int
    names: tuple[str, ...] = ()


def read_nodes(text: str) -> Nodes:
    """Read ``--nodes N|FILE``; a file has one node a line, a name or an address.

    Raises:
        ConfigError: the text is neither a number above 0 nor a file that lists a node, or a line
            has more than a name.
    """
    if text.isascii() and text.isdigit():
        if not 0 < int(text) <= MAX_ENTRIES:
            raise ConfigError(f"--nodes {text}: expected 1 to {MAX_ENTRIES} nodes")
        return Nodes(int(text))
    names: dict[str, None] = {}
    for number, line in _lines(Path(text), "--nodes"):
        if _NO_NAME.search(line) or not line.isprintable():
            # No node could ever be complete by that name, and the run would wait for it.
            raise ConfigError(
                f"--nodes {text}, line {number}: {line[:100]!r} is not the name of a node; "
                "write one name a line"
            )
        names[canonical_address(line)] = None
    if not names:
        raise ConfigError(f"--nodes {text}: lists no node")
    return Nodes(len(names), tuple(names))


def _lines(path: Path, option: str) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text("utf-8-sig")
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
