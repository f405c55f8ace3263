"""Python files of this repository, each parsed once in a process."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from tests.support.process import REPO


@cache
def parsed(path: Path) -> ast.Module:
    """The tree of a file; not to be changed."""
    return ast.parse(path.read_text(), str(path))


def python_files(*directories: str) -> list[Path]:
    """The Python files below directories of the repository, sorted."""
    return sorted(path for one in directories for path in (REPO / one).rglob("*.py"))
