"""The known ``MAYFLY_`` variables. Any other is fatal, since it is most likely misspelt.

Four kinds are known: settings, other commands' options, the variables that ``mayfly run`` gives its
command, and those of this project's tests. Kubernetes adds its own for each Service in a pod's
namespace whose name begins with "mayfly" (Kubernetes, "Service", environment variables).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.settings.settings import ALL, ENVIRONMENT_PREFIX

GIVEN = (
    "MAYFLY_URL",
    "MAYFLY_HOST",
    "MAYFLY_USERNAME",
    "MAYFLY_PASSWORD",
    "MAYFLY_CA",
    "MAYFLY_CERT_DIR",
    "MAYFLY_STATE_DIR",
)
"""Variables that `mayfly run` sets for its command."""

_OF_TESTS = re.compile("MAYFLY_REQUIRE_ALL|MAYFLY_(SOAK|FUZZ)(_[A-Z]+)*")

_OF_SERVICES = (
    (re.compile("MAYFLY_([A-Z0-9_]+_)?SERVICE_HOST"), re.compile(".*")),
    # Bounded in length: with several SERVICE_PORT in a name the pattern backtracks.
    (
        re.compile(r"(?=.{,256}\Z)MAYFLY_([A-Z0-9_]+_)?SERVICE_PORT(_[A-Z0-9_]+)?"),
        re.compile("[0-9]+"),
    ),
    (
        re.compile("MAYFLY_([A-Z0-9_]+_)?PORT(_[0-9]+_(TCP|UDP|SCTP))?"),
        re.compile("(tcp|udp|sctp)://.*"),
    ),
    (re.compile("MAYFLY_([A-Z0-9_]+_)?PORT_[0-9]+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)"), None),
)
"""Patterns of name and value; both must match, so that ``MAYFLY_LISTEN_PORT=5000`` is a mistake."""


def known() -> tuple[str, ...]:
    """The variables with a fixed name, other commands' options aside."""
    settings = (setting.variable for setting in ALL)
    return tuple(dict.fromkeys((*settings, "MAYFLY_CONFIG", *GIVEN)))


def check(environment: Mapping[str, str], options: Callable[[], Iterable[str]]) -> None:
    """Check that every ``MAYFLY_`` variable is known.

    Args:
        environment: of the process.
        options: gives the variables of every command's options; called for names that are unknown
            otherwise, since it loads every command.

    Raises:
        ConfigError: one is not; the text names the nearest known one.
    """
    found = [name for name in environment if name.startswith(ENVIRONMENT_PREFIX)]
    if not found:
        return
    names = set(known())
    strange = [name for name in found if name not in names and not _pattern(name, environment)]
    if strange:
        names.update(options())
    for name in sorted(strange):
        if name not in names:
            raise ConfigError(f"environment variable {_shown(name)} is unknown{_hint(name, names)}")


def _pattern(name: str, environment: Mapping[str, str]) -> bool:
    return bool(_OF_TESTS.fullmatch(name)) or _of_service(name, environment[name])


def _of_service(name: str, value: str) -> bool:
    return any(
        names.fullmatch(name) and (values is None or values.fullmatch(value))
        for names, values in _OF_SERVICES
    )


def _hint(name: str, names: Iterable[str]) -> str:
    # Imported for a mistake only.
    from difflib import get_close_matches

    endings = {one.removeprefix(ENVIRONMENT_PREFIX): one for one in names}
    near = get_close_matches(name.removeprefix(ENVIRONMENT_PREFIX), sorted(endings), 1, 0.7)
    if near:
        return f"; did you mean {endings[near[0]]}?"
    return "; unset it: names beginning with MAYFLY_ are settings (docs/configuration.md)"


def _shown(name: str) -> str:
    return name[:100].encode("unicode_escape").decode("ascii")
