"""``mayfly serve``."""

from __future__ import annotations

import click

from mayfly.registry.cli.help import Command
from mayfly.registry.cli.options import with_settings
from mayfly.registry.log import configure
from mayfly.registry.settings.settings import Settings


@click.command("serve", cls=Command)
@with_settings
def command(settings: Settings) -> int:
    """Serve in the foreground until a signal, or until a condition to end is met.

    Each BUNDLE (an OCI layout, a docker save tar, a registry's directory) is served where it lies.
    """
    configure(settings.log_format, settings.log_level)
    # Imported here: `mayfly serve --help` and a wrong option need no HTTP server.
    from mayfly.registry.startup import import_server

    return int(import_server().run(settings))
