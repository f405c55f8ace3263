"""``mayfly serve``."""

from __future__ import annotations

import logging
import sys

import click

from registry.cli.options import with_settings
from registry.config import Settings


@click.command("serve")
@with_settings
def command(settings: Settings) -> int:
    """Serve in the foreground until a signal, or until a condition to end is met.

    Each BUNDLE (an OCI layout, a docker save tar, a registry's directory) is served where it lies.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="mayfly: %(message)s")
    # Imported here: `mayfly serve --help` and a wrong option need no HTTP server.
    from registry.startup import import_server

    return int(import_server().run(settings))
