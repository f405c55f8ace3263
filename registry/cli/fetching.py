"""Options and lists that the commands which fetch images share."""

from __future__ import annotations

import codecs
import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mayfly.registry.cli.progress import print_event, reporting
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.text import echo

if TYPE_CHECKING:
    from mayfly.registry.upstream.credentials import Credentials
    from mayfly.registry.upstream.lists import ImageList, Wanted
    from mayfly.registry.upstream.sources import Source
    from mayfly.storage.bundle.diagnostics import Diagnostic
    from mayfly.storage.interface import Reader

_BEGIN = 64 * 1024
"""Bytes of a file that tell a list from a bundle."""

images_from = click.option(
    "--from",
    "local",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    metavar="BUNDLE|ROOT",
    help="Take images from this bundle or store first. Repeatable.",
)

mirrored = click.option(
    "--upstream",
    "mirrors",
    multiple=True,
    metavar="HOST=URL",
    help="Ask URL for the images of HOST, such as docker.io=https://mirror:5000. Repeatable.",
)

for_platforms = click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="OS/ARCH",
    help="Take only these platforms of an image, such as linux/arm64. Repeatable.  [default: all]",
)

without_referrers = click.option(
    "--no-referrers",
    is_flag=True,
    help="Leave out signatures, SBOMs and attestations.",
)

at_once = click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    metavar="N",
    help="Blobs fetched at once.",
)


def trusting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which registries are trusted."""
    command = click.option(
        "--insecure",
        multiple=True,
        metavar="HOST",
        help="Ask this registry by plain HTTP. Loopback always is. Repeatable.",
    )(command)
    return click.option(
        "--ca",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="Trust the CAs of this PEM file, besides those of the system.",
    )(command)


def read_lists(texts: Sequence[str], json: bool) -> tuple[list[Wanted], dict[str, Credentials]]:
    """The images that lists and references name, and the logins that lists have.

    Raises:
        ListInvalid: a list cannot be read, or a text is no reference.
    """
    from mayfly.registry.upstream import lists

    wanted: list[Wanted] = []
    credentials: dict[str, Credentials] = {}
    for text in texts:
        if text != "-" and not Path(text).is_file():
            _check_no_url(text)
            wanted.append(lists.read_reference(text))
            continue
        found = read_list(text, json)
        for host, trust in found.trust.items():
            for notice in trust.notices(host):
                _note(notice, json)
        wanted += found.wanted
        credentials |= logins_of(found)
    return wanted, credentials


def _check_no_url(text: str) -> None:
    """See that an image is named without a scheme; a login in it is not repeated.

    Raises:
        ConfigError: it is a URL.
    """
    scheme, mark, rest = text.partition("://")
    if mark and scheme != "docker":
        name = rest.rpartition("@")[2] if "@" in rest.partition("/")[0] else rest
        raise ConfigError(f"{name[:300]}: name images without {scheme[:20]}://, as HOST/NAME:TAG")


def read_list(text: str, json: bool) -> ImageList:
    """Read a list, and say which of its instructions have no effect; - for standard input.

    Raises:
        ListInvalid: it cannot be read.
    """
    from mayfly.registry.upstream import lists

    if text == "-":
        found = lists.read(sys.stdin.buffer.read(lists.MAX_BYTES + 1), "standard input")
    else:
        with Path(text).open("rb") as file:
            found = lists.read(file.read(lists.MAX_BYTES + 1), text)
    for notice in found.notices:
        _note(notice, json)
    return found


def logins_of(found: ImageList) -> dict[str, Credentials]:
    """The logins that a list has."""
    from mayfly.registry.upstream.credentials import Credentials

    return {host: Credentials(*login) for host, login in found.credentials.items()}


def _note(notice: str, json: bool) -> None:
    if json:
        print_event("notice", code="no_effect", message=notice)
    else:
        echo(notice, err=True)


def read_mirrors(texts: Sequence[str]) -> dict[str, str]:
    """Upstream hosts, and the URL to ask instead of each."""
    found = {}
    for text in texts:
        host, equals, url = text.partition("=")
        if not equals or not host or not url.startswith(("http://", "https://")):
            raise ConfigError(f"--upstream {text}: expected HOST=URL, with http:// or https://")
        found[host] = url
    return found


def check_platform(text: str) -> str:
    """Return a platform unchanged.

    Raises:
        ConfigError: it is none.
    """
    if not 1 <= text.count("/") <= 2 or not all(text.split("/")):
        raise ConfigError(f"--platform {text}: expected OS/ARCH or OS/ARCH/VARIANT")
    return text


def is_store(path: Path) -> bool:
    """Whether a path is the root of a store."""
    return (path / "docker/registry/v2").is_dir()


def local_source(path: Path, stack: contextlib.ExitStack, json: bool) -> Source:
    """A store's root or a bundle, to be asked by full names; a bundle's notices are printed."""
    from mayfly.registry.upstream.sources import LocalSource
    from mayfly.storage.bundle.open import open_bundles

    if is_store(path):
        from mayfly.storage.directory.reader import DirectoryReader

        return LocalSource(DirectoryReader(path), None, str(path))
    bundles = stack.enter_context(contextlib.closing(open_bundles([path])))
    _print_notices(bundles.notices, json)
    return LocalSource(bundles.layer, bundles.names, str(path))


def _print_notices(notices: Iterable[Diagnostic], json: bool) -> None:
    for one in notices:
        print_event("notice", **one.to_json()) if json else echo(one, err=True)


def is_list(path: Path) -> bool:
    """Whether a file is text, and so no bundle."""
    with path.open("rb") as file:
        begin = file.read(_BEGIN)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(begin)
    except UnicodeDecodeError:
        return False
    return "\0" not in text


def every_image(path: Path, stack: contextlib.ExitStack, json: bool) -> tuple[list[Wanted], Source]:
    """All images of a store or a bundle, and the source that has them.

    Raises:
        BundleInvalid: the bundle cannot be read.
    """
    from mayfly.registry.upstream.lists import Wanted
    from mayfly.registry.upstream.sources import LocalSource
    from mayfly.storage import digest as digests
    from mayfly.storage.reference import LOCAL, Reference

    reader: Reader
    if is_store(path):
        from mayfly.storage.directory.reader import DirectoryReader
        from mayfly.storage.reading import repositories
        from mayfly.storage.reference import is_attached_tag

        reader = store = DirectoryReader(path)
        names = []
        for repository in repositories(store):
            # A damaged image is named, too, where it cannot be copied.
            lost = [tag for tag, history in store.lost_tags(repository) if history]
            tags = [*store.tags(repository), *lost]
            names += [(repository, tag) for tag in tags if not is_attached_tag(tag)]
    else:
        from mayfly.storage.bundle.open import open_bundles

        bundles = stack.enter_context(contextlib.closing(open_bundles([path])))
        if bundles.unhashed:
            with reporting("reading", bundles.unhashed, json) as progress:
                bundles.hash(progress)
        _print_notices((*bundles.notices, *bundles.left_out), json)
        reader, names = bundles.layer, bundles.stored_names()
    wanted = []
    for repository, reference in names:
        is_digest = ":" in reference
        source = Reference(
            LOCAL,
            repository,
            None if is_digest else reference,
            digests.parse(reference) if is_digest else None,
        )
        wanted.append(Wanted(source, origin=str(path)))
    return wanted, LocalSource(reader, None, str(path))
