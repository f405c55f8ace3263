"""Reading ``mayfly.toml``: from the file to the texts of its keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class ConfigError(Exception):
    """A setting that cannot be used; the text names the setting, its source and the remedy."""


def read_file(file: Path, known: Mapping[str, bool]) -> dict[str, tuple[str, ...]]:
    """The texts of each key.

    Args:
        file: of ``--config``.
        known: the keys there may be, and whether each may be a list.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is of the wrong kind.
    """
    # Imported by who has a file: a hundredth of the start.
    import tomllib

    try:
        with file.open("rb") as opened:
            content = tomllib.load(opened)
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # TOML's own, UTF-8's, and endless numbers
        raise ConfigError(f"--config {file}: not TOML: {error}") from None
    for key in content:
        if key not in known:
            raise ConfigError(f"key {key!r} in {file} is unknown; known: {', '.join(known)}")
    return {key: _texts(key, value, file, known[key]) for key, value in content.items()}


def _texts(key: str, value: object, file: Path, may_be_list: bool) -> tuple[str, ...]:
    values = value if may_be_list and isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, str | bool | int):
            expected = "a list of texts" if may_be_list else "one value"
            raise ConfigError(f"key {key} in {file} is not usable: expected {expected}")
    return tuple(str(one) for one in values)
