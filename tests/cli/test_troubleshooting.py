"""docs/troubleshooting.md quotes messages that exist: nobody looks for one that nothing prints."""

from __future__ import annotations

import ast
import errno
import os
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.support.process import REPO
from tests.support.sources import parsed, python_files

PAGE = (REPO / "docs/troubleshooting.md").read_text()
OTHERS = "Messages of nodes"
"""The section of messages that are other programs'."""

ANY = "…"


def _sections() -> Iterator[tuple[str, str]]:
    for part in PAGE.split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        yield title, text


def _quoted() -> list[str]:
    """The messages of the tables' first columns."""
    found = []
    for title, text in _sections():
        for line in text.splitlines():
            if line.startswith("| `") and title != OTHERS:
                found += re.findall(r"`([^`]+)`", line.split(" | ")[0])
    return found


def _texts() -> Iterator[str]:
    """Every text of the code that may be printed; what is put in is `ANY`."""
    for path in python_files("registry", "storage", "auth"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                # Words of logging are put in as %s and the like.
                yield re.sub(r"%[-.\d]*[sdrf]", ANY, node.value)
            elif isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else ANY
                    for part in node.values
                )
    launcher = (REPO / "deploy/onefile/launcher.c").read_text()
    for text in re.findall(r'"((?:[^"\\]|\\.)*)"', launcher):
        yield re.sub(r"%[a-z]+", ANY, text)
    for script in sorted((REPO / "registry/nodes").glob("*.sh")):
        text = re.sub(r"\\\n\s*", "", script.read_text())
        yield re.sub(r"\$\w+", ANY, text)


@cache
def _all_texts() -> str:
    return "\n".join(_texts())


@pytest.mark.parametrize("message", _quoted())
def test_message_is_one_of_mayflys(message: str) -> None:
    """In one text of the code, with anything for an ellipsis and for the kernel's texts."""
    for text in map(os.strerror, errno.errorcode):
        message = message.replace(text, ANY)
    parts = [re.escape(part.strip()) for part in message.split(ANY)]
    assert re.search(r"[^\n]*".join(parts), _all_texts()), message


def test_every_section_has_messages() -> None:
    """The tables are read as they are meant."""
    titles = [title for title, _ in _sections()]
    assert OTHERS in titles
    assert len(titles) >= 5
    assert len(_quoted()) >= 30
    assert all("\n| `" in text for _, text in _sections())
