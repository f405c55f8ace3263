"""Stubs in place of ssh and kubectl: what nodes are to have, and how commands find the stubs."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.process import REPO

IMAGES = ("docker.io/library/one:1", "quay.io/team/two:2")
"""What the stubs' nodes are to have."""


def put_stubs(directory: Path) -> dict[str, str]:
    """Put the stubs into a directory, where they also write; the environment of their callers."""
    programs = directory / "bin"
    programs.mkdir()
    for name in ("ssh", "kubectl"):
        (programs / name).symlink_to(REPO / f"tests/nodes/stub_{name}.sh")
    return {"PATH": f"{programs}:{os.environ['PATH']}", "STUB_STATE": str(directory)}
