"""``mayfly run``: a registry for as long as a command takes."""

from __future__ import annotations

import click

from mayfly.registry import one_file
from mayfly.registry.cli.help import Command
from mayfly.registry.cli.options import with_settings
from mayfly.registry.log import configure
from mayfly.registry.settings.settings import Settings

_SEPARATOR = "--"
_WORDS = "mayfly.registry.cli.run.words"


class _BeforeCommand(Command):
    """Takes the command's words off before anything reads them as options of ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, words = args, []
        if _SEPARATOR in args:
            at = args.index(_SEPARATOR)
            own, words = args[:at], args[at + 1 :]
        ctx.meta[_WORDS] = tuple(words)
        return super().parse_args(ctx, own)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), _SEPARATOR, "COMMAND", "[ARG]..."]


@click.command("run", cls=_BeforeCommand)
@with_settings
def command(settings: Settings) -> int:
    """Serve while COMMAND runs; its exit code is Mayfly's.

    COMMAND gets MAYFLY_URL, MAYFLY_HOST, MAYFLY_USERNAME, MAYFLY_PASSWORD, MAYFLY_CA,
    MAYFLY_CERT_DIR and MAYFLY_STATE_DIR, and DOCKER_CONFIG and REGISTRY_AUTH_FILE for its clients;
    mayfly in its PATH is this program.
    With --until-pulled or --idle-timeout the registry stays after a COMMAND that succeeded, until
    those are met.
    """
    context = click.get_current_context()
    words: tuple[str, ...] = context.meta[_WORDS] or one_file.defaults().command
    if not words:
        raise click.UsageError(f"COMMAND is missing: put it after {_SEPARATOR}", context)
    configure(settings.log_format, settings.log_level)
    from mayfly.registry.process.child import exit_like
    from mayfly.registry.startup import import_server

    return exit_like(import_server().run(settings, command=words))
