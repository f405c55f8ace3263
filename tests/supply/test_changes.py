"""The fragments of the next changelog."""

from __future__ import annotations

import re
import tomllib

from tests.support.process import REPO

FOLDER = REPO / "changes"
TOOL = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["towncrier"]
KINDS = {one["directory"] for one in TOOL["type"]}


def test_fragments_have_names_that_a_release_reads() -> None:
    """A slug and a type: others would be left out, or fail the release."""
    other = {"README.md", "template.md.jinja"}
    names = [path.name for path in FOLDER.iterdir() if path.name not in other]
    assert len(names) > 10
    pattern = rf"[a-z0-9]+(-[a-z0-9]+)*\.({'|'.join(sorted(KINDS))})\.md"
    assert [name for name in names if not re.fullmatch(pattern, name)] == []


def test_types_are_those_that_are_described() -> None:
    """README.md of the folder names each."""
    text = (FOLDER / "README.md").read_text()
    assert [kind for kind in KINDS if f"`{kind}`" not in text] == []


def test_no_fragment_tells_of_what_no_release_had() -> None:
    """Before the first release nothing can have changed or been fixed for a user."""
    released = re.search(r"^## ", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    if released is None:
        found = [path.name for path in FOLDER.glob("*.md") if path.stem.count(".")]
        assert [name for name in found if re.search(r"\.(changed|fixed)\.md$", name)] == []
