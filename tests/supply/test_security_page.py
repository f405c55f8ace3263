"""SECURITY.md: each threat it names is answered in files and by tests that exist."""

from __future__ import annotations

import ast
import re
import tomllib

import pytest

from tests.support.process import REPO

TEXT = (REPO / "SECURITY.md").read_text()
THREATS = dict(re.findall(r"^### (.+)\n((?:(?!^### ).*\n?)*)", TEXT, re.MULTILINE))
NAMED = re.compile(r"`((?:registry|storage|auth|tests|\.ci)/[\w./]+)(?:::(\w+))?`")


def test_every_threat_is_there() -> None:
    """What an operator asks about: stolen, malicious, hostile, compromised, leaked."""
    assert list(THREATS) == [
        "A hostile client on the network",
        "A stolen node credential",
        "The script of a node",
        "A hostile node under prefetch or check",
        "A leaked token",
        "A hostile user with push rights",
        "Another site in the browser of an admin",
        "A malicious bundle",
        "A compromised upstream",
        "A stolen state directory",
        "A planted state directory",
        "A dependency",
    ]


@pytest.mark.parametrize("threat", THREATS)
def test_each_is_answered_where_it_says(threat: str) -> None:
    """Code and tests are named, and are where they are said to be."""
    named = NAMED.findall(THREATS[threat])
    assert [path for path, test in named if not test]
    assert [path for path, test in named if test]
    for path, test in named:
        source = (REPO / path).read_text()
        if test:
            functions = (ast.FunctionDef, ast.AsyncFunctionDef)
            found = {n.name for n in ast.walk(ast.parse(source)) if isinstance(n, functions)}
            assert test in found, f"{path}::{test}"


def test_numbers_are_those_of_the_code() -> None:
    """Lifetimes and limits that the page states."""
    from mayfly.auth.tokens import DEFAULT_LIFETIME, DEFAULT_REFRESH_LIFETIME
    from mayfly.registry.api.token import MAX_FORM
    from mayfly.storage.manifest import MAX_SIZE

    assert (DEFAULT_LIFETIME, DEFAULT_REFRESH_LIFETIME) == (5 * 60, 12 * 3600)
    assert (MAX_SIZE, MAX_FORM) == (4 * 1024**2, 32 * 1024)
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) == 7


def test_links_lead_somewhere() -> None:
    """Pages that are linked to exist."""
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (REPO / target).exists(), target
