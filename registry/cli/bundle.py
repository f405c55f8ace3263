"""``mayfly bundle create``: a bundle from registries, other bundles and stores."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mayfly.registry.cli.help import Group
from mayfly.registry.cli.options import as_json
from mayfly.registry.cli.progress import print_event, reporting
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.text import echo
from mayfly.storage.directory.space import format_size
from mayfly.storage.text import counted

if TYPE_CHECKING:
    from mayfly.registry.upstream.create import Plan
    from mayfly.registry.upstream.credentials import Credentials
    from mayfly.registry.upstream.lists import Wanted
    from mayfly.registry.upstream.registries import Reach
    from mayfly.registry.upstream.sources import Source
    from mayfly.storage.digest import Digest


@click.group("bundle", cls=Group)
def command() -> None:
    """Make bundles."""


@command.command("create")
@click.argument("images", metavar="LIST|IMAGE...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The bundle to write.",
)
@click.option(
    "--from",
    "local",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    metavar="BUNDLE|ROOT",
    help="Take images from this bundle or store first. Repeatable.",
)
@click.option(
    "--upstream",
    "mirrors",
    multiple=True,
    metavar="HOST=URL",
    help="Ask URL for the images of HOST, such as docker.io=https://mirror:5000. Repeatable.",
)
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="OS/ARCH",
    help="Take only these platforms of an image, such as linux/arm64. Repeatable.  [default: all]",
)
@click.option(
    "--have",
    "haves",
    multiple=True,
    metavar="INVENTORY|BUNDLE|URL",
    help="Leave out what the target has: an inventory, a bundle, or a registry. Repeatable.",
)
@click.option(
    "--no-referrers",
    is_flag=True,
    help="Leave out signatures, SBOMs and attestations.",
)
@click.option(
    "--ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Trust the CAs of this PEM file, besides those of the system.",
)
@click.option(
    "--insecure",
    multiple=True,
    metavar="HOST",
    help="Ask this registry by plain HTTP. Loopback always is. Repeatable.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    metavar="N",
    help="Blobs fetched at once.",
)
@click.option(
    "--volume-size",
    metavar="SIZE",
    help="Write volumes FILE.001, .002 and so on, each at most so large, such as 4GiB.",
)
@click.option("--dry-run", is_flag=True, help="Look everything up, show the sizes, fetch nothing.")
@as_json
def create(
    images: tuple[str, ...],
    output: Path,
    local: tuple[Path, ...],
    mirrors: tuple[str, ...],
    platforms: tuple[str, ...],
    haves: tuple[str, ...],
    no_referrers: bool,
    ca: Path | None,
    insecure: tuple[str, ...],
    jobs: int,
    volume_size: str | None,
    dry_run: bool,
    json: bool,
) -> None:
    """Write images, their signatures and attestations to one bundle.

    Each LIST is a file of references in any of the formats that docs/bundles.md lists, or - for
    standard input; anything else is an image. Credentials are those of docker login and podman
    login. The same command goes on where an interrupted one stopped.
    """
    from mayfly.registry.startup import import_client

    import_client()
    from mayfly.registry.cli.transfer import check_output
    from mayfly.registry.upstream.errors import ImagesMissing
    from mayfly.registry.upstream.registries import Reach

    check_output(output)
    wanted, credentials = _read_lists(images, json)
    reach = Reach(_mirrors(mirrors), frozenset(insecure), ca, credentials)
    try:
        with contextlib.ExitStack() as stack:
            request = _Request(
                wanted,
                reach,
                tuple(_local_source(path, stack) for path in local),
                tuple(_check_platform(one) for one in platforms),
                not no_referrers,
                _digests_of(haves, stack),
                output,
                _size(volume_size),
                jobs,
                dry_run,
                json,
            )
            planned = asyncio.run(_create(request))
    except ImagesMissing as error:
        for problem in error.problems:
            if json:
                print_event("missing", code=problem.code, message=problem.text)
            elif len(error.problems) > 1:
                echo(problem.text, err=True)
        raise
    _report(planned, output, dry_run, json)


@dataclass(frozen=True, slots=True)
class _Request:
    wanted: Sequence[Wanted]
    reach: Reach
    local: Sequence[Source]
    platforms: Sequence[str]
    referrers: bool
    have: Callable[[str, Digest], bool]
    output: Path
    volume_size: int | None
    jobs: int
    dry_run: bool
    json: bool


async def _create(request: _Request) -> Plan:
    """Look up, lay out, and fetch unless it is a dry run."""
    from mayfly.registry.cli.transfer import check_output
    from mayfly.registry.upstream import create
    from mayfly.registry.upstream.gather import gather
    from mayfly.registry.upstream.registries import Registries
    from mayfly.registry.upstream.sources import RegistrySource

    async with Registries(request.reach) as registries:

        def find(host: str) -> Sequence[Source]:
            return [*request.local, RegistrySource(registries.at(host))]

        gathered = await gather(request.wanted, find, request.platforms, request.referrers)
        # In a thread: a target that is a registry is asked on an event loop of its own.
        planned = await asyncio.to_thread(
            create.plan, gathered, request.output, request.have, request.volume_size
        )
        if not request.dry_run:
            for path, _ in planned.archives:
                check_output(path)
            with reporting("creating", planned.size, request.json) as progress:
                await create.write(planned, request.jobs, progress)
    return planned


def _read_lists(texts: Sequence[str], json: bool) -> tuple[list[Wanted], dict[str, Credentials]]:
    from mayfly.registry.upstream import lists
    from mayfly.registry.upstream.credentials import Credentials

    wanted: list[Wanted] = []
    credentials = {}
    for text in texts:
        if text == "-":
            found = lists.read(sys.stdin.buffer.read(lists.MAX_BYTES + 1), "standard input")
        elif Path(text).is_file():
            with Path(text).open("rb") as file:
                found = lists.read(file.read(lists.MAX_BYTES + 1), text)
        else:
            wanted.append(lists.read_reference(text))
            continue
        for notice in found.notices:
            if json:
                print_event("notice", code="no_effect", message=notice)
            else:
                echo(notice, err=True)
        wanted += found.wanted
        for host, (name, password) in found.credentials.items():
            credentials[host] = Credentials(name, password)
    return wanted, credentials


def _size(text: str | None) -> int | None:
    """The bytes of a volume."""
    from mayfly.registry.settings.readers import read_size

    if text is None:
        return None
    try:
        return read_size(text)
    except ValueError as error:
        raise ConfigError(f"--volume-size {text}: {error}") from None


def _mirrors(texts: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        host, equals, url = text.partition("=")
        if not equals or not host or not url.startswith(("http://", "https://")):
            raise ConfigError(f"--upstream {text}: expected HOST=URL, with http:// or https://")
        found[host] = url
    return found


def _check_platform(text: str) -> str:
    if not 1 <= text.count("/") <= 2 or not all(text.split("/")):
        raise ConfigError(f"--platform {text}: expected OS/ARCH or OS/ARCH/VARIANT")
    return text


def _local_source(path: Path, stack: contextlib.ExitStack) -> Source:
    """A store's root or a bundle."""
    from mayfly.registry.upstream.sources import LocalSource
    from mayfly.storage.bundle.open import open_bundles

    if (path / "docker/registry/v2").is_dir():
        from mayfly.storage.directory.reader import DirectoryReader

        return LocalSource(DirectoryReader(path), None, str(path))
    bundles = stack.enter_context(contextlib.closing(open_bundles([path])))
    return LocalSource(bundles.layer, bundles.names, str(path))


def _digests_of(haves: Sequence[str], stack: contextlib.ExitStack) -> Callable[[str, Digest], bool]:
    from mayfly.registry.cli.transfer import have_any

    return have_any(haves, stack)


def _report(planned: Plan, output: Path, dry_run: bool, json: bool) -> None:
    from mayfly.registry.upstream.create import sizes

    figures = sizes(planned)
    files = [str(path) for path, _ in planned.archives]
    if json:
        print_event("planned" if dry_run else "created", file=str(output), files=files, **figures)
        return
    images = counted(figures["images"], "image")
    referrers = counted(
        figures["referrers"], "signature or attestation", "signatures and attestations"
    )
    echo(
        f"{' '.join(files)}: {'would have ' if dry_run else ''}{images}, {referrers}, "
        f"{format_size(figures['size'])}, {format_size(figures['left_out'])} left out"
    )
