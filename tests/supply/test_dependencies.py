"""docs/dependencies.md is what pyproject.toml asks for, under the licences the packages state."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest

from tests.support.process import REPO

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
ROW = re.compile(r"^\| ([a-z0-9-]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
ALLOWED = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "MPL-2.0"}
"""What an Apache-2.0 program may need; the last is not linked to, only used to develop."""

_SPELLED = {"Apache 2.0": "Apache-2.0"}


def _listed(heading: str) -> dict[str, tuple[str, str]]:
    """Package → licence and reason, of one section of the page."""
    text = (REPO / "docs/dependencies.md").read_text()
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [row for row in ROW.findall(section) if row[0] != "package"]
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: (licence, reason) for name, licence, reason in rows}


def _asked(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9-]", one)[0] for one in requirements}


EXTRAS = PROJECT["optional-dependencies"]
ON_DEMAND = EXTRAS.keys() - {"dev"}
SECTIONS = {
    "To run": _asked(PROJECT["dependencies"]),
    "On demand": _asked([one for extra in ON_DEMAND for one in EXTRAS[extra]]),
    "To develop": _asked(EXTRAS["dev"]),
}
ROWS = {name: row for heading in SECTIONS for name, row in _listed(heading).items()}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_dependency_is_listed_and_nothing_else(heading: str) -> None:
    """Each section has the packages of one list of pyproject.toml, each with a reason."""
    listed = _listed(heading)
    assert listed.keys() == SECTIONS[heading]
    assert all(reason.strip() for _, reason in listed.values())


@pytest.mark.parametrize("package", ROWS)
def test_licences_are_those_the_packages_state(package: str) -> None:
    """The installed package says the same of itself, and may be used."""
    stated = metadata.metadata(package)
    field = next(name for name in ("License-Expression", "License") if name in stated)
    licence = stated[field]
    assert ROWS[package][0] == _SPELLED.get(licence, licence)
    assert set(re.split(r" AND | OR ", ROWS[package][0])) <= ALLOWED
