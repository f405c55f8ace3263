"""``mayfly node-config``: make a node trust a registry and pull through it, and take that back."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mayfly.registry.cli.credentials import DEFAULT_HOURS, issue
from mayfly.registry.cli.help import Group
from mayfly.registry.cli.options import JSON_HELP, combined, print_json, state_directory
from mayfly.registry.exit_codes import Exit
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.text import echo

if TYPE_CHECKING:
    from mayfly.registry.nodes.journal import Action
    from mayfly.registry.nodes.plan import Note, PlannedFile
    from mayfly.registry.nodes.runtimes import Runtime
    from mayfly.registry.nodes.target import Target

# Spelled here once more so that the help needs no import; a test compares.
RUNTIMES = ("docker", "containerd", "podman")
_PROGRAMS = ("usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "bin", "sbin")

_LOGOUT_SECONDS = 20

DISTRIBUTIONS = ("talos", "openshift", "k3s", "rke2", "crio")


_RUNTIME_HELP = "Runtime of the node; podman also stands for CRI-O, skopeo and buildah."

_runtime = click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    required=True,
    envvar="MAYFLY_RUNTIME",
    help=_RUNTIME_HELP,
)

_node = combined(
    click.option(
        "--root-dir",
        type=click.Path(path_type=Path, file_okay=False, exists=True),
        default="/",
        show_default=True,
        envvar="MAYFLY_ROOT_DIR",
        metavar="DIR",
        help="Where the node's file system begins.",
    ),
    click.option("--json", "as_json", is_flag=True, help=JSON_HELP),
)

server_options = combined(
    click.option(
        "--registry",
        envvar="MAYFLY_REGISTRY",
        metavar="HOST:PORT",
        help="As in image names; prefix https:// or http:// to set the scheme without --ca.  "
        "[default: the Mayfly that runs here]",
    ),
    click.option(
        "--ca",
        type=click.Path(path_type=Path),
        envvar="MAYFLY_CA",
        metavar="FILE",
        help="PEM certificate of the CA that signed the registry's.",
    ),
)
"""Options that name the registry which a node or a command uses."""

_target = combined(
    server_options,
    click.option(
        "--mirror",
        "mirrors",
        multiple=True,
        envvar="MAYFLY_MIRROR",
        metavar="NAME",
        help="Upstream registry to ask this one for first, such as docker.io. Repeatable.",
    ),
    click.option(
        "--certs-dir",
        envvar="MAYFLY_CERTS_DIR",
        metavar="DIR",
        help="containerd's directory of host configurations, when config.toml does not name it.",
    ),
)

_lifetime = combined(
    click.option(
        "--hours",
        type=float,
        default=DEFAULT_HOURS,
        show_default=True,
        envvar="MAYFLY_HOURS",
        help="Lifetime of that credential.",
    ),
    state_directory,
)

registry_options = combined(
    _target,
    click.option(
        "--node",
        envvar="MAYFLY_NODE",
        metavar="NAME",
        help="Give the node of this name a credential of its own, so that coverage names it: in "
        "hosts.toml for containerd (pods need no Secret), as a login command of show for docker "
        "and podman. Made by the Mayfly that runs here.",
    ),
    _lifetime,
)
"""Options of `read_target`, for a command about one node."""

nodes_options = combined(_target, _lifetime)
"""The same for a command about many nodes."""

_force = click.option("--force", is_flag=True, help="Discard edits since Mayfly wrote the files.")


@click.group("node-config", cls=Group)
def command() -> None:
    """Trust and mirror files for a node."""


@command.command()
@click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    envvar="MAYFLY_RUNTIME",
    help=f"{_RUNTIME_HELP} Without --node its files are listed, as apply would write them here.  "
    "[default: shell commands for each]",
)
@click.option(
    "--for",
    "distribution",
    type=click.Choice(DISTRIBUTIONS),
    envvar="MAYFLY_FOR",
    help="Print settings of a distribution, for its own tools to apply, instead.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    envvar="MAYFLY_IMAGES",
    metavar="LIST",
    help="With --for: images whose upstreams are mirrored, and which are pinned where that is a "
    "setting, one a line.",
)
@click.option(
    "--merge",
    type=click.Path(path_type=Path, allow_dash=True),
    envvar="MAYFLY_MERGE",
    metavar="FILE",
    help="With --for k3s or rke2: the node's registries.yaml, to which to add; with --for crio: "
    "a file that has pinned_images. - for standard input.",
)
@_node
@registry_options
def show(
    runtime: Runtime | None,
    distribution: str | None,
    images: Path | None,
    merge: Path | None,
    root_dir: Path,
    as_json: bool,
    **registry: Any,
) -> None:
    """Print shell commands that write the files on a node, or the files that apply would write.

    The commands need neither Mayfly nor the internet on the node. Paste those of one runtime.
    """
    from mayfly.registry.nodes.journal import NodeConfig

    if distribution is not None:
        if runtime is not None:
            raise ConfigError("--for and --runtime: give one of them")
        _print_distribution(distribution, images, merge, as_json, registry)
        return
    if images is not None or merge is not None:
        raise ConfigError("--images and --merge belong to --for")
    with node_errors():
        target = read_target(**registry)
    # As files, for programs: a credential of containerd's is in a file; docker and podman have a
    # login of their own for it.
    is_command = target.credential is not None and not (as_json and runtime == "containerd")
    if runtime is None or is_command:
        _print_commands(target, runtime, as_json)
        return
    with node_errors():
        plan = NodeConfig(root_dir, runtime).plan(target)
    if as_json:
        _print_json(runtime, [_file(file) for file in plan.files], plan.activate, plan.notes)
        return
    for file in plan.files:
        echo(f"==> {file.path} (mode {file.mode:04o})")
        # Several lines: `echo` would make one of them.
        click.echo(file.content.decode())
    if not plan.files:
        echo(f"{runtime}: nothing to write")
    _print_hints(plan.activate, plan.notes)


def _print_commands(target: Target, runtime: Runtime | None, as_json: bool) -> None:
    """Print the commands that an operator pastes on a node, for one runtime or for each."""
    from mayfly.registry.nodes.commands import node_commands
    from mayfly.registry.nodes.runtimes import RUNTIMES as RUNTIME_NAMES

    runtimes = RUNTIME_NAMES if runtime is None else (runtime,)
    if as_json:
        found = {one: node_commands(target, [one]) for one in runtimes}
        print_json({"registry": target.url, "commands": found})
    else:
        click.echo(node_commands(target, runtimes), nl=False)


def _print_distribution(
    distribution: str,
    images: Path | None,
    merge: Path | None,
    as_json: bool,
    registry: dict[str, Any],
) -> None:
    """Print the settings of one distribution, and on standard error the steps that are left.

    Raises:
        ConfigError: an option is malformed, or the settings cannot be made.
    """
    from mayfly.registry.coverage.upgrade_lists import read_images
    from mayfly.registry.nodes.distributions import render
    from mayfly.registry.nodes.merging import MAX_EXISTING
    from mayfly.registry.nodes.script import images_of, with_mirrors

    listed = [] if images is None else read_images(images, option="--images")
    existing = None if merge is None else _read_existing(merge, MAX_EXISTING)
    with node_errors():
        target = read_target(**registry)
        wanted = images_of((image.text for image in listed), target.registry)
        found = render(
            distribution,
            with_mirrors(target, wanted),
            [image.reference for image in wanted],
            existing,
        )
    if as_json:
        notes = [note.to_json() for note in found.notes]
        print_json(
            {"for": distribution, "content": found.text, "run": found.activate, "notes": notes}
        )
        return
    # Many lines: `echo` would make one of them.
    click.echo(found.text, nl=False)
    _print_hints(found.activate, found.notes)


def _read_existing(path: Path, most: int) -> bytes:
    """Read the file of --merge, or one byte more than is accepted of it.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with click.open_file(str(path), "rb") as file:
            return bytes(file.read(most + 1))
    except OSError as error:
        raise ConfigError(f"--merge {path}: {error.strerror}") from None


@command.command()
@_runtime
@_node
@registry_options
@_force
def apply(runtime: Runtime, root_dir: Path, as_json: bool, force: bool, **registry: Any) -> None:
    """Write the files; replaced files are saved for revert."""
    from mayfly.registry.nodes.journal import NodeConfig

    with node_errors():
        node = NodeConfig(root_dir, runtime, _warn)
        plan, actions = node.apply(read_target(**registry), force=force)
    notes = [note for note in plan.notes if as_json or _concerns(note, root_dir)]
    _print_actions(as_json, runtime, actions, plan.activate, notes)


@command.command()
@_runtime
@_node
@_force
def revert(runtime: Runtime, root_dir: Path, as_json: bool, force: bool) -> None:
    """Restore the files as they were before the first apply."""
    from mayfly.registry.nodes.journal import NodeConfig
    from mayfly.registry.nodes.runtimes import notes_after_revert

    config = NodeConfig(root_dir, runtime, _warn)
    log_out = []
    with node_errors():
        actions = config.revert(force=force)
        for host in config.logins():
            if root_dir == Path("/") and _log_out(runtime, host):
                config.forget_login(host)
            else:
                log_out.append(f"{runtime} logout {host}")
    given = notes_after_revert(action.path for action in actions)
    notes = [note for note in given if as_json or _concerns(note, root_dir)]
    _print_actions(as_json, runtime, actions, log_out, notes)
    if log_out:
        sys.exit(Exit.INCOMPLETE)


def _warn(message: str) -> None:
    echo(f"mayfly: {message}", err=True)


def _log_out(runtime: Runtime, host: str) -> bool:
    """Log a runtime out where pasted commands logged it in; return whether no more can be done."""
    import subprocess

    try:
        done = subprocess.run(
            [runtime, "logout", host],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LOGOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        echo(
            f"mayfly: {runtime} is not installed any more, so its file of logins may still have "
            f"{host}",
            err=True,
        )
        return True
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 or b"ot logged in" in done.stderr + done.stdout


def read_target(
    registry: str | None,
    ca: Path | None,
    mirrors: Sequence[str],
    certs_dir: str | None,
    node: str | None,
    hours: float,
    state_dir: Path,
) -> Target:
    """Read the options; a running Mayfly supplies the rest.

    Raises:
        ConfigError: none runs, or the CA's file cannot be read.
        TrustError: an option is malformed.
    """
    from mayfly.registry.nodes.target import NodeCredential, parse

    credential = None
    if node is not None:
        made = issue(state_dir, node.lower(), hours, node)
        credential = NodeCredential(made.name, made.password)
    if registry is None:
        registry, its_ca = _running(state_dir)
        ca = ca or its_ca
    try:
        pem = None if ca is None else ca.read_bytes()
    except OSError as error:
        raise ConfigError(f"--ca {ca}: {error.strerror}") from None
    return parse(
        registry,
        pem,
        mirrors,
        ca_source=str(ca),
        certs_dir=certs_dir,
        credential=credential,
    )


def _running(state_dir: Path) -> tuple[str, Path | None]:
    """URL and CA file of the Mayfly that runs with this state directory.

    Raises:
        NotRunning: none does.
        ConfigError: it belongs to another user, or its ready.json is invalid.
    """
    from mayfly.registry.control.readiness import read_ready
    from mayfly.registry.errors import NotRunning

    try:
        ready = read_ready(state_dir)
    except NotRunning as error:
        raise NotRunning(f"{error.message}, or give --registry HOST:PORT and --ca FILE") from None
    return ready.url, None if ready.ca is None else Path(ready.ca)


@contextlib.contextmanager
def node_errors() -> Iterator[None]:
    """Let the command line show errors that an operator has to fix.

    Raises:
        ConfigError: in place of this package's and the system's errors.
    """
    from mayfly.registry.pki.errors import TrustError

    try:
        yield
    except TrustError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}; correct that and run the command again, or undo "
            "the changes with mayfly node-config revert"
        ) from error


def _concerns(note: Note, root_dir: Path) -> bool:
    """Whether a note is about a program that the node has."""
    return not note.program or any(
        (root_dir / directory / note.program).exists() for directory in _PROGRAMS
    )


def _file(file: PlannedFile) -> dict[str, str]:
    return {"path": file.path, "mode": f"{file.mode:04o}", "content": file.content.decode()}


def _print_actions(
    as_json: bool,
    runtime: Runtime,
    actions: Sequence[Action],
    activate: Sequence[str],
    notes: Sequence[Note],
) -> None:
    if as_json:
        done = [{"path": a.path, "action": a.verb, "code": a.code} for a in actions]
        _print_json(runtime, done, activate, notes)
        return
    for action in actions:
        echo(action)
    if not actions:
        echo(f"{runtime}: nothing to do")
    _print_hints(activate, notes)


def _print_json(
    runtime: Runtime,
    files: Sequence[dict[str, str]],
    activate: Sequence[str],
    notes: Sequence[Note],
) -> None:
    found = [note.to_json() for note in notes]
    print_json({"runtime": runtime, "files": files, "run": activate, "notes": found})


def _print_hints(activate: Sequence[str], notes: Sequence[Note]) -> None:
    """Print the steps left to the operator, on standard error."""
    for line in activate:
        echo(f"now run: {line}", err=True)
    for note in notes:
        echo(f"note: {note}", err=True)
