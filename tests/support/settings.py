"""Settings as a server has them without any source, for tests that build its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mayfly.registry.settings.loading import load
from mayfly.registry.settings.settings import Settings

_NOWHERE = ("/nowhere",)


def settings_with(**values: Any) -> Settings:
    """Return the defaults with these values, by the keys of settings."""
    return replace(load({"root": _NOWHERE, "state_dir": _NOWHERE}, {}, None), **values)
