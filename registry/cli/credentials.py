"""``mayfly credentials``: a short-lived name and password of the registry that runs here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from mayfly.registry.cli.help import Command
from mayfly.registry.cli.options import print_json, state_directory
from mayfly.registry.text import echo

if TYPE_CHECKING:
    from mayfly.auth.identity import Credential

DEFAULT_HOURS = 12.0


@click.command("credentials", cls=Command)
@click.option("--push", is_flag=True, help="May also push; otherwise it pulls only.")
@click.option("--repositories", metavar="GLOB", default="**", help="Repositories it is for.")
@click.option("--name", default="node", show_default=True, help="Its name in audit and report.")
@click.option("--node", metavar="NAME", help="The one node that will use it, for coverage.")
@click.option("--hours", type=float, default=DEFAULT_HOURS, show_default=True, help="Lifetime.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "docker", "secret"]),
    default="text",
    show_default=True,
    help="docker: a config.json; secret: a Kubernetes Secret for imagePullSecrets.",
)
@click.option(
    "--host",
    "hosts",
    metavar="HOST:PORT",
    multiple=True,
    help="The registry as image names have it, if not as announced; docker.io where it is a mirror "
    "of that. Repeatable.",
)
@click.option("--secret-name", default="mayfly", help="Name of the Secret.")
@click.option("--namespace", default="default", help="Namespace of the Secret.")
@state_directory
@click.option("--json", is_flag=True, help="The same as --format json.")
def command(
    push: bool,
    repositories: str,
    name: str,
    node: str | None,
    hours: float,
    form: str,
    hosts: tuple[str, ...],
    secret_name: str,
    namespace: str,
    state_dir: Path,
    json: bool,
) -> None:
    """Print a short-lived credential of the registry that runs here."""
    from mayfly.auth.generate import docker_config, kubernetes_secret
    from mayfly.registry.control.readiness import read_ready

    # Image names have no place for the path that a proxy may serve a registry below.
    hosts = hosts or (urlsplit(read_ready(state_dir).url).netloc,)
    made = issue(state_dir, name, hours, node, repositories, push=push)
    match "json" if json else form:
        case "text":
            echo(made.name)
            echo(made.password)
        case "json":
            print_json(
                {
                    "host": hosts[0],
                    "hosts": hosts,
                    "username": made.name,
                    "password": made.password,
                    "expires": made.expires,
                }
            )
        case "docker":
            print_json(docker_config(hosts, made))
        case _:
            print_json(kubernetes_secret(secret_name, namespace, hosts, made))


def issue(
    state_dir: Path,
    name: str,
    hours: float,
    node: str | None,
    repositories: str = "**",
    *,
    push: bool = False,
) -> Credential:
    """A new short-lived credential of the registry that runs with this state directory.

    Raises:
        ConfigError: none runs, or it waits for nodes by name and this is none of them.
        click.ClickException: it runs without authentication.
        InputInvalid: as `Robots.issue`.
    """
    from mayfly.auth.globs import parse_glob
    from mayfly.auth.identity import Permission
    from mayfly.auth.robots import Robots
    from mayfly.auth.roles import Role
    from mayfly.registry.access.policy_files import load_key
    from mayfly.registry.control.readiness import read_ready
    from mayfly.registry.settings.errors import ConfigError
    from mayfly.registry.state import runs
    from mayfly.registry.state.directory import SIGNING_KEY

    ready = read_ready(state_dir)
    if node is not None and ready.nodes and node not in ready.nodes:
        raise ConfigError(f"--node {node}: not listed in --nodes of the registry that runs here")
    key = state_dir / SIGNING_KEY
    run = runs.load(state_dir)
    if run is None or not key.exists():
        raise click.ClickException(
            f"the registry at {ready.url} runs without authentication: it needs no credential"
        )
    role = Role.DEVELOPER if push else Role.LIMITED_GUEST
    permission = Permission(role, parse_glob(repositories))
    robots = Robots(load_key(key), run.id)
    return robots.issue(name, [permission], int(hours * 3600), time.time(), node)
