"""``mayfly bundle create``: a bundle from registries, other bundles and stores."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mayfly.registry.cli.fetching import (
    at_once,
    check_platform,
    for_platforms,
    images_from,
    local_source,
    mirrored,
    read_lists,
    read_mirrors,
    trusting,
    without_referrers,
)
from mayfly.registry.cli.help import Group
from mayfly.registry.cli.interrupts import run_cancellable
from mayfly.registry.cli.options import as_json, leave_out, output_file
from mayfly.registry.cli.progress import print_event, reporting
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.text import echo
from mayfly.storage.text import counted, format_size

if TYPE_CHECKING:
    from mayfly.registry.upstream.create import Plan
    from mayfly.registry.upstream.lists import Wanted
    from mayfly.registry.upstream.registries import Reach
    from mayfly.registry.upstream.sources import Source
    from mayfly.storage.digest import Digest


@click.group("bundle", cls=Group)
def command() -> None:
    """Make bundles."""


@command.command("create")
@click.argument("images", metavar="LIST|IMAGE...", nargs=-1, required=True)
@output_file("The bundle to write.")
@images_from
@mirrored
@for_platforms
@leave_out
@without_referrers
@trusting
@at_once
@click.option(
    "--volume-size",
    metavar="SIZE",
    help="Write volumes FILE.001, .002 and so on, each at most so large, such as 3GiB for FAT32.",
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
    login. The same command resumes where an interrupted one stopped.
    """
    from mayfly.registry.startup import import_client

    import_client()
    from mayfly.registry.cli.output import check_output
    from mayfly.registry.upstream.errors import ImagesMissing
    from mayfly.registry.upstream.registries import Reach

    check_output(output)
    wanted, credentials = read_lists(images, json)
    reach = Reach(read_mirrors(mirrors), frozenset(insecure), ca=ca, credentials=credentials)
    try:
        with contextlib.ExitStack() as stack:
            request = _Request(
                wanted,
                reach,
                tuple(local_source(path, stack, json) for path in local),
                tuple(check_platform(one) for one in platforms),
                not no_referrers,
                _digests_of(haves, stack),
                output,
                _size(volume_size),
                jobs,
                dry_run,
                json,
            )
            planned = run_cancellable(_create(request))
    except SystemExit:
        if not json:
            echo("interrupted; the same command resumes where it stopped", err=True)
        raise
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
    from mayfly.registry.cli.output import check_output
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


def _size(text: str | None) -> int | None:
    """The bytes of a volume."""
    from mayfly.registry.settings.readers import read_size

    if text is None:
        return None
    try:
        return read_size(text)
    except ValueError as error:
        raise ConfigError(f"--volume-size {text}: {error}") from None


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
