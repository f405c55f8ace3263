"""The errors of settings. It imports nothing of Mayfly's, so that every table may name them."""

from __future__ import annotations

from pathlib import Path


class ConfigError(Exception):
    """A setting that cannot be used; the text names the setting, its source and the remedy."""


def unusable(option: str, directory: Path, error: OSError) -> ConfigError:
    """The error for a directory in which something cannot be read or written, by name."""
    reason = error.strerror or str(error)
    # Of a step by descriptor there is no name, or only that of the descriptor.
    if isinstance(error.filename, str) and Path(error.filename).is_relative_to(directory):
        inside = str(Path(error.filename).relative_to(directory))
        reason = reason if inside == "." else f"{inside}: {reason}"
    return ConfigError(f"{option} {directory} cannot be used: {reason}")
