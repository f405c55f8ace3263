"""``mayfly node``: the node's half of an upgrade, as a script that a node runs."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mayfly.registry.cli.help import Group
from mayfly.registry.cli.node_config import (
    RUNTIMES,
    node_errors,
    read_target,
    registry_options,
)
from mayfly.registry.cli.options import JSON_HELP, print_json
from mayfly.registry.settings.errors import ConfigError

if TYPE_CHECKING:
    from mayfly.registry.nodes.runtimes import Runtime


@click.group("node", cls=Group)
def command() -> None:
    """Scripts by which nodes trust, pull, pin and prove."""


@command.command()
@click.option(
    "--runtime",
    type=click.Choice(["auto", *RUNTIMES]),
    default="auto",
    show_default=True,
    envvar="MAYFLY_RUNTIME",
    help="What pulls images on the node; auto: the script looks for it.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    envvar="MAYFLY_IMAGES",
    metavar="LIST",
    help="Images for the node, one a line.  [default: --until-pulled of the Mayfly that runs here]",
)
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
@registry_options
def script(runtime: str, images: Path | None, as_json: bool, **registry: Any) -> None:
    """Print a shell script that makes one node ready and reports what it has.

    Run it with: mayfly node script --node NAME | ssh NAME sh. It holds the node's credential.
    """
    from mayfly.registry.nodes.runtimes import RUNTIMES as RUNTIME_NAMES
    from mayfly.registry.nodes.script import images_of, node_script

    node = registry["node"]
    if node is None:
        raise ConfigError("--node NAME: give the name of the node that will run the script")
    names = _listed(images, registry["state_dir"])
    with node_errors():
        target = read_target(**registry)
        wanted = images_of(names, target.registry)
        hosts = (image.reference.partition("/")[0] for image in wanted)
        mirrors = dict.fromkeys((*target.mirrors, *hosts))
        mirrors.pop(target.registry, None)
        chosen: Runtime | None = next((one for one in RUNTIME_NAMES if one == runtime), None)
        target = dataclasses.replace(target, mirrors=tuple(mirrors))
        text = node_script(target, node, wanted, runtime=chosen)
    if as_json:
        digest = hashlib.sha256(text.encode()).hexdigest()
        names = [image.reference for image in wanted]
        print_json({"node": node, "images": names, "sha256": digest, "script": text})
        return
    # Many lines: `echo` would make one of them.
    click.echo(text, nl=False)


def _listed(images: Path | None, state_dir: Path) -> list[str]:
    """Return the images that the node is to have, as the list names them.

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
