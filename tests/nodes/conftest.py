"""Fixtures of the tests of what is changed on nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import environment
from tests.support.fixtures import quick_sync as quick_sync
from tests.support.identities import ca_pem as ca_pem
from tests.support.identities import constrained as constrained
from tests.support.identities import identity as identity
from tests.support.node_stubs import IMAGES, put_stubs
from tests.support.process import Mayfly


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The file system of a node that has nothing but what every one has."""
    root = tmp_path / "node"
    for directory in ("etc", "var/lib"):
        (root / directory).mkdir(parents=True)
    return root


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the stubs, which are the first ssh and the first kubectl in PATH."""
    for name, value in put_stubs(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def server(tmp_path: Path, state: Path) -> Iterator[Mayfly]:
    """One that waits for proofs of some of the stubs' nodes."""
    (tmp_path / "images").write_text("".join(f"{name}\n" for name in IMAGES))
    (tmp_path / "nodes").write_text("good\nhang\nhostile\nnotready\nfull\n")
    options = ["--auth", "auto", "--until-pulled", str(tmp_path / "images")]
    options += ["--nodes", str(tmp_path / "nodes"), "--accept", "proven"]
    running = Mayfly(tmp_path / "root", tmp_path / "state", *options, env=environment())
    yield running
    if running.running:
        running.kill()
