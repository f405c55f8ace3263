"""`make audit`: what it says of each report, above all of one that knows nothing."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from typing import Any

import pytest

from tests.support.process import REPO

SOUND = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found on PyPI"}
OURS = {"name": "mayfly-registry", "skip_reason": "Dependency not found on PyPI"}
HURT = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}


def _audit() -> Any:
    """The program, which has no suffix, as a module."""
    loader = SourceFileLoader("audit", str(REPO / ".ci" / "audit"))
    spec = importlib.util.spec_from_loader("audit", loader)
    assert spec
    made = importlib.util.module_from_spec(spec)
    loader.exec_module(made)
    return made


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([SOUND], 0, "no known vulnerability"),
        ([SOUND, OURS], 0, "no known vulnerability"),
        ([SOUND, HURT, SKIPPED], 1, "c 2: CVE-1, fixed in 3"),
        ([SOUND, SKIPPED], 2, "not audited: b"),
        ([SKIPPED], 2, "DID NOT HAPPEN"),
        ([], 2, "DID NOT HAPPEN"),
    ],
)
def test_verdict(packages: list[Any], code: int, words: str) -> None:
    """Only a report that covers everything is good news."""
    lines, found = _audit().verdict({"dependencies": packages})
    assert found == code
    assert words in "\n".join(lines)
