"""``mayfly credential-provider``: kubelet's exec plugin."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from mayfly.registry.cli.help import Command
from mayfly.registry.cli.options import as_json, print_json
from mayfly.registry.settings.errors import ConfigError

DEFAULT_FILE = "/etc/mayfly/credential.json"


@click.command("credential-provider", cls=Command)
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    default=DEFAULT_FILE,
    show_default=True,
    metavar="FILE",
    help="The node's credential, as mayfly credentials --format json prints it; mode 0600.",
)
@click.option(
    "--config",
    "configure",
    is_flag=True,
    help="Print kubelet's CredentialProviderConfig instead of answering a request.",
)
@click.option(
    "--host",
    "hosts",
    metavar="HOST:PORT",
    multiple=True,
    help="With --config: the registry as image names have it. Repeatable.  [default: the hosts of "
    "the file]",
)
@as_json
def command(file: Path, configure: bool, hosts: tuple[str, ...], json: bool) -> None:
    """Give kubelet the node's credential: its exec plugin for image credentials.

    kubelet runs it with a request on standard input; the answer is JSON, with --json or without.
    """
    from mayfly.registry.nodes import credential_provider as provider

    if not configure:
        image = provider.read_image(sys.stdin.buffer.read(provider.MAX_REQUEST))
        print_json(provider.respond(image, provider.read_file(file), time.time()))
        return
    if not hosts:
        found = provider.read_file(file)
        if found is None:
            raise ConfigError(f"{file}: there is no such file to take the hosts from: give --host")
        hosts = found.hosts
    print_json(provider.configuration(hosts, file.absolute()))
