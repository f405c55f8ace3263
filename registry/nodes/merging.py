"""Texts of a node that settings are merged with, and the YAML that is made of the result.

A text is the operator's, but may have come from a node: its size, nesting and aliases are bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mayfly.auth import toml
from mayfly.registry.pki.errors import TrustError

MAX_EXISTING = 1024 * 1024
"""Bytes of a text."""

_MAX_DEPTH = 32
"""Tables and lists within one another in YAML; k3s has five."""


def read_yaml(existing: bytes) -> dict[str, Any]:
    """Return the table that a YAML text is; an empty one for an empty text.

    Raises:
        TrustError: it is none, is too large or nested too deep, or has aliases.
    """
    # Imported only where a text is merged.
    import yaml

    _refuse_long(existing)
    # libyaml's takes time that grows with the size alone.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        text = existing.decode()
        for event in yaml.parse(text, loader):
            if isinstance(event, yaml.AliasEvent):
                # A few of them can stand for more than fits in memory.
                raise TrustError("--merge: it has aliases (*name); write them out")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise TrustError(f"--merge: it is nested deeper than {_MAX_DEPTH}")
        found = yaml.load(text, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise TrustError(f"--merge{place}: not valid YAML: {problem}") from None
    except (ValueError, RecursionError) as error:
        raise TrustError(f"--merge: not valid YAML: {str(error)[:200]}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise TrustError("--merge: not a table")
    return found


def read_toml(existing: bytes) -> dict[str, Any]:
    """Return the table that a TOML text is.

    Raises:
        TrustError: it is none, or is too large.
    """
    _refuse_long(existing)
    try:
        return toml.loads(existing.decode())
    except ValueError as error:
        raise TrustError(f"--merge: not valid TOML ({error})") from None


def table_at(parent: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the table at a key, made if it is missing.

    Raises:
        TrustError: something else is there.
    """
    found = parent.get(key)
    if found is None:
        found = parent[key] = {}
    if not isinstance(found, dict):
        raise TrustError(f"--merge: {key!r} is not a table")
    return found


def to_yaml(documents: Sequence[dict[str, Any]]) -> str:
    """Return documents as YAML, texts of several lines as blocks, and no aliases."""
    # Imported only where something is rendered.
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes a text of several lines as a block, and no aliases."""

        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)

    Dumper.add_representer(str, text)
    return yaml.dump_all(
        documents, Dumper=Dumper, sort_keys=False, explicit_start=len(documents) > 1, width=1000
    )


def _refuse_long(existing: bytes) -> None:
    if len(existing) > MAX_EXISTING:
        raise TrustError(f"--merge: the file is larger than {MAX_EXISTING} bytes")
