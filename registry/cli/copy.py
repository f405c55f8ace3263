"""``mayfly copy`` and ``mayfly sync``: images to another registry or store."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mayfly.registry.cli.fetching import (
    at_once,
    check_platform,
    every_image,
    for_platforms,
    images_from,
    is_list,
    is_store,
    local_source,
    logins_of,
    mirrored,
    read_list,
    read_lists,
    read_mirrors,
    trusting,
    without_referrers,
)
from mayfly.registry.cli.help import Command
from mayfly.registry.cli.interrupts import run_cancellable
from mayfly.registry.cli.options import as_json
from mayfly.registry.cli.progress import print_event, reporting
from mayfly.registry.exit_codes import Exit
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.text import echo
from mayfly.storage.text import counted, format_size

if TYPE_CHECKING:
    from mayfly.registry.upstream.copying import Copied, Item, Outcome, Place, Plan, Rules
    from mayfly.registry.upstream.credentials import Credentials
    from mayfly.registry.upstream.lists import Wanted
    from mayfly.registry.upstream.registries import Reach, Registries
    from mayfly.registry.upstream.sources import Source
    from mayfly.registry.upstream.targets import Target
    from mayfly.storage.reference import Reference

_LINES = 100
"""Lines about images that are not there; the others are counted."""


@dataclass(frozen=True, slots=True)
class _Options:
    """The options of both commands."""

    root: Path | None
    mirrors: tuple[str, ...]
    platforms: tuple[str, ...]
    no_referrers: bool
    override: bool
    ca: Path | None
    insecure: tuple[str, ...]
    jobs: int
    dry_run: bool
    json: bool

    @property
    def rules(self) -> Rules:
        """The rules for every image.

        Raises:
            ConfigError: a platform is none.
        """
        from mayfly.registry.upstream.copying import Rules

        platforms = tuple(map(check_platform, self.platforms))
        return Rules(platforms, not self.no_referrers, self.override)


def copy_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of copy and sync; the command gets them as `_Options`."""

    @wraps(command)
    def collected(*args: Any, **given: Any) -> None:
        options = {one.name: given.pop(one.name) for one in fields(_Options)}
        command(*args, options=_Options(**options), **given)

    options = (
        click.option(
            "--root",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="Copy into this store; then there is no DEST.",
        ),
        mirrored,
        for_platforms,
        without_referrers,
        click.option(
            "--override",
            is_flag=True,
            help="Move tags that point at another digest at the destination.",
        ),
        trusting,
        at_once,
        click.option(
            "--dry-run",
            is_flag=True,
            help="Look everything up, list missing content, send nothing.",
        ),
        as_json,
    )
    for option in reversed(options):
        collected = option(collected)
    return collected


@click.command("copy", cls=Command)
@click.argument("names", metavar="SOURCE... [DEST]", nargs=-1, required=True)
@images_from
@copy_options
@click.pass_context
def copy(
    ctx: click.Context, names: tuple[str, ...], local: tuple[Path, ...], options: _Options
) -> None:
    """Copy images, with their signatures and attestations, to a registry or a store.

    A SOURCE is an image, a list as bundle create takes it (- for standard input), or a bundle or
    a store, of which every image is copied. DEST is HOST[:PORT][/PATH] or the directory of a
    store; images keep their names below it. With a tag, DEST is the name of one image.
    Exit 3 if an image could not be copied; the others are. The same command resumes where an
    interrupted one stopped.
    """
    from mayfly.registry.upstream.registries import Reach

    rules = options.rules
    sources = names if options.root else names[:-1]
    if not sources:
        raise click.UsageError("name the images to copy, then the destination: SOURCE... DEST", ctx)
    with contextlib.ExitStack() as stack:
        dest = _Store(options.root) if options.root else _destination(names[-1])
        asked = _Asked([], [local_source(path, stack, options.json) for path in local])
        credentials = _add_sources(asked, sources, stack, options.json)
        reach = Reach(
            read_mirrors(options.mirrors),
            frozenset(options.insecure) | dest.insecure,
            dest.secure,
            options.ca,
            credentials,
        )
        ctx.exit(_run(_Job(asked, dest, reach, rules, options), stack))


@click.command("sync", cls=Command)
@click.argument("file", metavar="FILE")
@click.argument("to", metavar="[DEST]", required=False)
@copy_options
@click.pass_context
def sync(ctx: click.Context, file: str, to: str | None, options: _Options) -> None:
    """Copy the images that a file of regsync or skopeo sync names.

    Unlike copy, it takes logins, certificates and exceptions from TLS from the file. regsync's
    targets say where the images go; otherwise they go to DEST, as in copy. Nothing is ever
    deleted. Exit 3 if an image could not be copied; the others are.
    """
    from mayfly.registry.upstream.registries import Reach

    rules = options.rules
    if options.root and to:
        raise click.UsageError("name DEST or --root, not both", ctx)
    listed = read_list(file, options.json)
    dest = _Store(options.root) if options.root else _destination(to) if to else _Targets()
    trust = listed.trust.items()
    plain = {host for host, one in trust if one.plain}
    reach = Reach(
        read_mirrors(options.mirrors),
        frozenset(options.insecure) | dest.insecure | plain,
        dest.secure | {host for host, one in trust if one.directory},
        options.ca,
        logins_of(listed),
        frozenset(host for host, one in trust if one.unverified),
        {host: Path(one.directory) for host, one in trust if one.directory},
    )
    asked = _Asked([(one, None) for one in listed.wanted], ())
    with contextlib.ExitStack() as stack:
        ctx.exit(_run(_Job(asked, dest, reach, rules, options), stack))


def _run(job: _Job, stack: contextlib.ExitStack) -> int:
    job.dest.check(job.asked.wanted)
    return _done(run_cancellable(_copy(job, stack)), job)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The images of one call of copy.

    Attributes:
        wanted: images, each with the one source that has it; None for any.
        local: sources to ask before the registries.
    """

    wanted: list[tuple[Wanted, Source | None]]
    local: Sequence[Source]

    def items(self, registries: Registries) -> list[Item]:
        from mayfly.registry.upstream.copying import Item

        return [Item(one, partial(self._find, registries, source)) for one, source in self.wanted]

    def _find(self, registries: Registries, own: Source | None, host: str) -> Sequence[Source]:
        from mayfly.registry.upstream.sources import RegistrySource

        return [own] if own is not None else [*self.local, RegistrySource(registries.at(host))]


@dataclass(frozen=True, slots=True)
class _Job:
    asked: _Asked
    dest: _Dest
    reach: Reach
    rules: Rules
    options: _Options


class _Dest:
    """A destination of images.

    Attributes:
        insecure: hosts that it says are asked by plain HTTP.
        secure: hosts that it says are asked by HTTPS.
    """

    insecure: frozenset[str] = frozenset()
    secure: frozenset[str] = frozenset()

    def check(self, wanted: Sequence[tuple[Wanted, Source | None]]) -> None:
        """See that all images can go there.

        Raises:
            ConfigError: they cannot.
        """

    def place(self, registries: Registries, stack: contextlib.ExitStack) -> Place:
        """Return the function that gives an image its target and its name there."""
        raise NotImplementedError


class _Store(_Dest):
    """A store on this host: images are stored without the host of their name."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def place(self, registries: Registries, stack: contextlib.ExitStack) -> Place:
        from mayfly.registry.cli.transfer import open_store
        from mayfly.registry.upstream.targets import StoreTarget

        target = StoreTarget(open_store(self._root, stack), str(self._root))

        def place(one: Wanted) -> tuple[Target, Reference]:
            return target, one.target or one.source

        return place


class _Below(_Dest):
    """A registry, or a path of it: images keep their names below it."""

    def __init__(self, host: str, path: str) -> None:
        self._host = host
        self._path = path

    def place(self, registries: Registries, stack: contextlib.ExitStack) -> Place:
        from mayfly.registry.upstream.targets import RegistryTarget
        from mayfly.storage.reference import check_repository

        target = RegistryTarget(registries.target(self._host))

        def place(one: Wanted) -> tuple[Target, Reference]:
            name = one.target or one.source
            path = f"{self._path}/{name.repository}" if self._path else name.repository
            return target, name._replace(host=self._host, repository=check_repository(path))

        return place


class _Targets(_Dest):
    """The targets that a list names, each with its registry."""

    def check(self, wanted: Sequence[tuple[Wanted, Source | None]]) -> None:
        without = next((one for one, _ in wanted if one.target is None), None)
        if without is not None:
            raise ConfigError(f"{without.origin}: names no target; say where to: sync FILE DEST")

    def place(self, registries: Registries, stack: contextlib.ExitStack) -> Place:
        from mayfly.registry.upstream.targets import RegistryTarget

        known: dict[str, RegistryTarget] = {}

        def place(one: Wanted) -> tuple[Target, Reference]:
            assert one.target is not None
            host = one.target.host
            if host not in known:
                known[host] = RegistryTarget(registries.target(host))
            return known[host], one.target

        return place


class _Named(_Dest):
    """The name of one image."""

    def __init__(self, name: Reference) -> None:
        self._name = name

    def check(self, wanted: Sequence[tuple[Wanted, Source | None]]) -> None:
        if len(wanted) != 1 or wanted[0][0].tags is not None:
            raise ConfigError(
                f"{self._name} is the name of one image, and {len(wanted)} are to be copied: "
                "name DEST without a tag, and they keep their own names below it"
            )

    def place(self, registries: Registries, stack: contextlib.ExitStack) -> Place:
        from mayfly.registry.upstream.targets import RegistryTarget

        target = RegistryTarget(registries.target(self._name.host))

        def place(one: Wanted) -> tuple[Target, Reference]:
            return target, self._name

        return place


def _destination(text: str) -> _Dest:
    """Read DEST.

    Raises:
        ConfigError: it is neither a registry nor the directory of a store.
    """
    from mayfly.storage.errors import StorageError
    from mayfly.storage.reference import Reference, canonical_host, split_name

    scheme, mark, rest = text.rpartition("://")
    if not mark and _is_path(text):
        return _store(Path(text))
    if scheme not in ("", "http", "https") or "@" in rest:
        shown = f"{scheme}{mark}{rest.rpartition('@')[2]}"[:300]
        raise ConfigError(
            f"{shown}: expected HOST[:PORT][/PATH] or DIR; logins are those of docker login"
        )
    rest = rest.rstrip("/")
    try:
        host, path, tag, _ = split_name(rest if "/" in rest else f"{rest}/x")
    except StorageError as error:
        raise ConfigError(f"{text[:300]}: {error.message}") from None
    if host is None:
        raise ConfigError(
            f"{text[:300]}: neither a registry nor a directory that is there; write HOST:PORT, "
            f"or ./{text[:300]} for a new store"
        )
    host = canonical_host(host)
    below = _Below(host, path if "/" in rest else "")
    found: _Dest = below if tag is None else _Named(Reference(host, path, tag))
    if scheme == "http":
        found.insecure = frozenset({host})
    elif scheme == "https":
        found.secure = frozenset({host})
    return found


def _is_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..") or Path(text).exists()


def _store(path: Path) -> _Dest:
    if path.is_file() or path.suffix == ".tar" or (path / "index.json").exists():
        raise ConfigError(
            f"{path} is a bundle, and bundles are made anew: mayfly bundle create IMAGE... "
            f"-o {path}"
        )
    if path.is_dir() and not is_store(path) and any(path.iterdir()):
        raise ConfigError(f"{path} is no store, and it is not empty: name another directory")
    return _Store(path)


def _add_sources(
    asked: _Asked, texts: Sequence[str], stack: contextlib.ExitStack, json: bool
) -> dict[str, Credentials]:
    """Add the images of each SOURCE, and return the logins that lists have."""
    credentials: dict[str, Credentials] = {}
    for text in texts:
        path = Path(text)
        if text != "-" and (path.is_dir() or (path.is_file() and not is_list(path))):
            images, source = every_image(path, stack, json)
            asked.wanted.extend((one, source) for one in images)
            continue
        found, logins = read_lists([text], json)
        asked.wanted.extend((one, None) for one in found)
        credentials |= logins
    if not asked.wanted:
        raise ConfigError(f"{' '.join(texts)[:300]}: has no image")
    return credentials


async def _copy(job: _Job, stack: contextlib.ExitStack) -> Plan | Copied:
    from mayfly.registry.upstream import copying
    from mayfly.registry.upstream.registries import Registries

    async with Registries(job.reach) as registries:
        place = job.dest.place(registries, stack)
        planned = await copying.plan(job.asked.items(registries), place, job.rules)
        if job.options.dry_run:
            return planned
        with reporting("copying", planned.size, job.options.json) as progress:
            return await copying.carry_out(
                planned, job.options.jobs, progress, partial(_tell, json=job.options.json)
            )


def _tell(outcome: Outcome, json: bool) -> None:
    """Tell programs the outcome of an image at once."""
    if json:
        print_event(
            "image",
            source=outcome.source,
            target=outcome.target,
            digest=str(outcome.digest) if outcome.digest else None,
            state=str(outcome.state),
            problems=[{"code": one.code, "message": one.text} for one in outcome.problems],
        )


def _done(found: Plan | Copied, job: _Job) -> int:
    """Print the result; the exit code."""
    from mayfly.registry.upstream.copying import Plan

    is_plan = isinstance(found, Plan)
    outcomes = found.preview if isinstance(found, Plan) else found.outcomes
    figures = _figures(found)
    if is_plan:
        for outcome in outcomes:
            _tell(outcome, job.options.json)
    if job.options.json:
        print_event("planned" if is_plan else "copied", **figures)
    else:
        _print(outcomes, figures, is_plan)
    return Exit.DONE if all(one.is_done for one in outcomes) else Exit.INCOMPLETE


def _figures(found: Plan | Copied) -> dict[str, int]:
    from mayfly.registry.upstream.copying import Plan, State

    outcomes = found.preview if isinstance(found, Plan) else found.outcomes
    states = Counter(one.state for one in outcomes)
    figures = {str(state): states[state] for state in State}
    figures["partly"] = sum(
        1 for one in outcomes if one.problems and one.state in (State.COPIED, State.PRESENT)
    )
    if isinstance(found, Plan):
        return figures | {"blobs": found.missing, "size": found.size}
    return figures | {"blobs": found.blobs, "mounted": found.mounted, "size": found.sent}


def _print(outcomes: Sequence[Outcome], figures: dict[str, int], is_plan: bool) -> None:
    problems = [problem.text for one in outcomes for problem in one.problems]
    for text in problems[:_LINES]:
        echo(text, err=True)
    if len(problems) > _LINES:
        echo(f"{len(problems) - _LINES} more problems", err=True)
    if is_plan:
        for one in outcomes:
            if one.state == "copied":
                echo(f"would copy {one.source} to {one.target}")
    done = "would copy" if is_plan else "copied"
    rest = [f"{figures['present']} there already"]
    rest += [
        f"{figures[key]} {text}"
        for key, text in (
            ("skipped", "skipped"),
            ("failed", "failed"),
            ("partly", "without all their artifacts"),
        )
        if figures[key]
    ]
    images = counted(figures["copied"], "image")
    blobs = counted(figures["blobs"], "blob")
    mounted = f", {figures['mounted']} mounted" if figures.get("mounted") else ""
    echo(f"{done} {images} ({', '.join(rest)}): {blobs}, {format_size(figures['size'])}{mounted}")
