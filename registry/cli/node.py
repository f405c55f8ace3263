"""``mayfly node``: the node's half of an upgrade, as a script that a node runs."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mayfly.registry.cli.help import Group
from mayfly.registry.cli.node_config import (
    RUNTIMES,
    node_errors,
    read_target,
    registry_options,
    server_options,
)
from mayfly.registry.cli.options import JSON_HELP, print_json, state_directory
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.text import echo
from mayfly.storage.text import counted

if TYPE_CHECKING:
    from mayfly.registry.nodes.runtimes import Runtime
    from mayfly.registry.nodes.target import Target

PROOF_HOURS = 0.25
"""Lifetime of the credential that a proof is sent by."""


runtime_option = click.option(
    "--runtime",
    type=click.Choice(["auto", *RUNTIMES]),
    default="auto",
    show_default=True,
    envvar="MAYFLY_RUNTIME",
    help="Runtime that pulls images on the node; auto: the script looks for it.",
)

images_option = click.option(
    "--images",
    type=click.Path(path_type=Path),
    envvar="MAYFLY_IMAGES",
    metavar="LIST",
    help="Images for the node, one a line.  [default: --until-pulled of the Mayfly that runs here]",
)


@click.group("node", cls=Group)
def command() -> None:
    """Scripts by which nodes trust, pull, pin and prove."""


@command.command()
@runtime_option
@images_option
@click.option(
    "--url",
    is_flag=True,
    help="Print one line instead, to paste on the node: it downloads the script once, within ten "
    "minutes, checks its SHA-256, and runs it.",
)
@click.option(
    "--revert",
    is_flag=True,
    help="Print a script instead that only reverts, on any node. It needs no Mayfly that runs, and "
    "holds no credential.",
)
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
@registry_options
def script(
    runtime: str,
    images: Path | None,
    url: bool,
    revert: bool,
    as_json: bool,
    **registry: Any,
) -> None:
    """Print a shell script that makes one node ready and reports its images.

    Run it with: mayfly node script --node NAME >FILE && ssh NAME sh <FILE. It holds the node's
    credential. Piped to ssh, a failure of this command would go unnoticed.
    """
    from mayfly.registry.nodes.script import images_of, node_script, revert_script, with_mirrors

    node = registry["node"]
    if revert:
        if url:
            raise ConfigError("--revert and --url: give one of them")
        _print_script(node, [], revert_script(chosen_runtime(runtime)), as_json)
        return
    if node is None:
        raise ConfigError("--node NAME: give the name of the node that will run the script")
    names = listed_images(images, registry["state_dir"])
    with node_errors():
        target = read_target(**registry)
        wanted = images_of(names, target.registry)
        target = with_mirrors(target, wanted)
        text = node_script(target, node, wanted, runtime=chosen_runtime(runtime))
    line = _download_line(target, text, registry["state_dir"]) if url else None
    _print_script(node, [image.reference for image in wanted], text, as_json, line)


def _print_script(
    node: str | None, images: list[str], text: str, as_json: bool, line: str | None = None
) -> None:
    """Print a script, or in its place the line that downloads it."""
    shown = text if line is None else line
    if as_json:
        digest = hashlib.sha256(text.encode()).hexdigest()
        print_json({"node": node, "images": images, "sha256": digest, "script": shown})
        return
    # Many lines: `echo` would make one of them.
    click.echo(shown, nl=False)


@command.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE|-")
@click.option(
    "--node",
    required=True,
    envvar="MAYFLY_NODE",
    metavar="NAME",
    help="The node whose script printed it.",
)
@server_options
@state_directory
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def proof(
    file: Path, node: str, registry: str | None, ca: Path | None, state_dir: Path, as_json: bool
) -> None:
    """Send the proof that a node's script printed; for a node without curl and GNU wget.

    Takes the whole output of the script, such as: ssh NAME sh < script | mayfly node proof --node
    NAME -. Sends it with a credential of the node, made by the Mayfly that runs here.
    """
    from mayfly.registry.nodes.proof import MAX_OUTPUT, printed_images, send_proof
    from mayfly.registry.pki.errors import TrustError

    if file == Path("-"):
        output = sys.stdin.buffer.read(MAX_OUTPUT + 1)
    else:
        with file.open("rb") as opened:
            output = opened.read(MAX_OUTPUT + 1)
    try:
        images = printed_images(output, node, time.time())
    except TrustError as error:
        raise ConfigError(f"{file}: {error}") from None
    with node_errors():
        target = read_target(registry, ca, (), None, node, PROOF_HOURS, state_dir)
    send_proof(target, node, images)
    if as_json:
        print_json({"node": node, "images": len(images)})
        return
    echo(f"{node}: proof of {counted(len(images), 'image')} sent")


def _download_line(target: Target, text: str, state_dir: Path) -> str:
    """Have the Mayfly that runs here keep the script; the line that downloads and runs it.

    Raises:
        ConfigError: it cannot be kept, or the registry's certificate cannot be read.
        NotRunning: none runs here.
    """
    from mayfly.registry.control.readiness import read_ready
    from mayfly.registry.nodes.download import download_line, pin_of
    from mayfly.registry.state.scripts import Scripts

    read_ready(state_dir)
    try:
        pin = pin_of(target)
        token = Scripts(state_dir).add(text.encode())
    except OSError as error:
        raise ConfigError(f"--url: {error}") from None
    return download_line(target, token, text.encode(), pin)


def chosen_runtime(name: str) -> Runtime | None:
    """Return the runtime that an option names; None for "auto"."""
    from mayfly.registry.nodes.runtimes import RUNTIMES as RUNTIME_NAMES

    return next((one for one in RUNTIME_NAMES if one == name), None)


def listed_images(images: Path | None, state_dir: Path) -> list[str]:
    """Return the images that nodes are to have, as the list names them.

    Raises:
        ConfigError: there is no list.
    """
    from mayfly.registry.control.client import ask
    from mayfly.registry.coverage.upgrade_lists import read_images

    if images is not None:
        return [image.text for image in read_images(images, option="--images")]
    coverage = ask(state_dir, "status")["coverage"]
    if coverage is None:
        raise ConfigError(
            "--images LIST: the Mayfly that runs here has no --until-pulled, so name the images"
        )
    return list(coverage["matrix"])
