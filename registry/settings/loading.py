"""Read the settings: from flags, the environment and ``mayfly.toml`` to one `Settings`.

Precedence is flag, environment, file, default (docs/configuration.md); a one file that serves
itself brings defaults of its own. A value is read by the
setting's own reader whatever its source; a bad one is fatal and the error names the source. So is
an unknown key of the file; unknown variables are refused by `registry.settings.environment`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.settings.settings import ALL, Setting, Settings

MAX_FILE_BYTES = 1024 * 1024
"""Largest file of settings; the longest lists of bundles take some KiB."""

NOTHING_PACKED: Mapping[str, tuple[str, ...]] = {}

PACKED_SOURCE = "the settings in this file"

_LOGIN = re.compile(r"//[^/\s]*@")


def load(
    flags: Mapping[str, tuple[str, ...]],
    environment: Mapping[str, str],
    file: Path | None,
    bundles: tuple[Path, ...] = (),
    packed: Mapping[str, tuple[str, ...]] = NOTHING_PACKED,
) -> Settings:
    """Put the sources together.

    Args:
        flags: setting key → texts from the command line; absent keys were not given.
        environment: of the process.
        file: of ``--config``.
        bundles: the arguments.
        packed: the defaults of a one file that serves itself; its bundle comes before others.

    Raises:
        ConfigError: a value is bad, or a key is unknown.
    """
    lists = {setting.key: setting.repeatable for setting in ALL}
    from_file = _read_file(file, lists) if file else {}
    if bundles:
        flags = {**flags, "bundles": tuple(map(str, bundles))}
    values: dict[str, Any] = {}
    for setting in ALL:
        found = _find(setting, flags, environment, from_file, file)
        own = packed.get(setting.key, ())
        if found is not None:
            texts, source = found
            if setting.argument:
                texts = (*own, *texts)
            values[setting.key] = _read(setting, texts, source, environment)
        elif own:
            values[setting.key] = _read(setting, own, PACKED_SOURCE, environment)
        else:
            values[setting.key] = setting.default(environment)
    return Settings(**values)


def check(flags: Mapping[str, tuple[str, ...]]) -> None:
    """Check the texts of flags.

    Raises:
        ConfigError: one cannot be used.
    """
    for setting in ALL:
        if setting.key in flags:
            _read(setting, flags[setting.key], f"--{setting.name}", {})


def _find(
    setting: Setting[Any],
    flags: Mapping[str, tuple[str, ...]],
    environment: Mapping[str, str],
    from_file: Mapping[str, tuple[str, ...]],
    file: Path | None,
) -> tuple[tuple[str, ...], str] | None:
    """The texts of the strongest source that has the setting, and that source's name."""
    if setting.key in flags:
        return flags[setting.key], f"--{setting.name}"
    if setting.variable in environment:
        text = environment[setting.variable]
        texts = _split(text) if setting.repeatable else (text,)
        return texts, f"environment variable {setting.variable}"
    if setting.key in from_file:
        return from_file[setting.key], f"key {setting.key} in {file}"
    return None


def _split(text: str) -> tuple[str, ...]:
    """The entries of a list in a variable: words, quoted as in a shell where they hold blanks."""
    if not any(mark in text for mark in "'\"\\"):
        return tuple(text.split())
    import shlex

    try:
        return tuple(shlex.split(text))
    except ValueError:
        return (text,)


def _read(
    setting: Setting[Any], texts: tuple[str, ...], source: str, environment: Mapping[str, str]
) -> Any:
    if texts == (setting.off,):
        return setting.default(environment)
    try:
        values = tuple(setting.read(text) for text in texts)
        if setting.repeatable and not values:
            raise ValueError(f"expected {setting.metavar}")
    except ValueError as error:
        # A URL's login is a secret, also where it is a mistake.
        shown = ", ".join(repr(_LOGIN.sub("//…@", t[:200])) for t in texts)
        raise ConfigError(f"{source}: {shown} is not usable: {error}") from None
    return values if setting.repeatable else values[-1]


def _read_file(file: Path, known: Mapping[str, bool]) -> dict[str, tuple[str, ...]]:
    """The texts of each key.

    Args:
        file: of ``--config``.
        known: the keys there may be, and whether each may be a list.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is of the wrong kind.
    """
    # Imported only where a file is given: it takes a hundredth of the start.
    from mayfly.auth import toml

    try:
        with file.open("rb") as opened:
            read = opened.read(MAX_FILE_BYTES + 1)
        if len(read) > MAX_FILE_BYTES:
            raise ConfigError(f"--config {file}: it is larger than {MAX_FILE_BYTES} bytes")
        content = toml.loads(read.decode())
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from None
    except ValueError as error:  # TOML's own, UTF-8's, and endless numbers
        raise ConfigError(f"--config {file}: not TOML: {error}") from None
    for key in content:
        if key not in known:
            raise ConfigError(f"key {key!r} in {file} is unknown; known: {', '.join(known)}")
    return {key: _texts_of(key, value, file, known[key]) for key, value in content.items()}


def _texts_of(key: str, value: object, file: Path, may_be_list: bool) -> tuple[str, ...]:
    values = value if may_be_list and isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, str | bool | int):
            expected = "a list of texts" if may_be_list else "one value"
            raise ConfigError(f"key {key} in {file} is not usable: expected {expected}")
    return tuple(str(one) for one in values)
