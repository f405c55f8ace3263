"""Scripts that wait for a download: for how long, and what stays of them on the disk."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from mayfly.registry.state.scripts import LIFETIME_SECONDS, SCRIPTS, Scripts
from tests.support.process import Mayfly

SCRIPT = b"echo ran"


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    """In an empty state directory."""
    return Scripts(tmp_path)


def age(path: Path) -> None:
    """Make a file older than a script may get."""
    old = time.time() - LIFETIME_SECONDS - 1
    os.utime(path, (old, old))


def test_claimed_script(scripts: Scripts) -> None:
    """It is one request's until that gives it back or spends it."""
    token = scripts.add(SCRIPT)
    assert scripts.claim(token) == SCRIPT
    assert scripts.claim(token) is None
    scripts.give_back(token)
    assert scripts.claim(token) == SCRIPT
    scripts.spend(token)
    scripts.give_back(token)
    assert scripts.claim(token) is None


def test_script_that_cannot_be_read(scripts: Scripts, tmp_path: Path) -> None:
    """It is given back: the disk's error is not the node's, whose line works once it is gone."""
    token = scripts.add(SCRIPT)
    (path,) = (tmp_path / SCRIPTS).iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        scripts.claim(token)
    path.rmdir()
    path.write_bytes(SCRIPT)
    assert scripts.claim(token) == SCRIPT


def test_without_a_directory(scripts: Scripts, tmp_path: Path) -> None:
    """No script was ever added, or all of it is gone: there is no script, and no error."""
    token = scripts.add(SCRIPT)
    shutil.rmtree(tmp_path / SCRIPTS)
    scripts.drop_old()
    scripts.drop_all()
    assert scripts.claim(token) is None
    scripts.spend(token)
    scripts.give_back(token)


def test_all_are_dropped_by_age(scripts: Scripts, tmp_path: Path) -> None:
    """Those that wait, those that were being sent when a server crashed, and parts of new ones."""
    kept = scripts.add(SCRIPT)
    claimed = scripts.add(SCRIPT)
    scripts.claim(claimed)
    (tmp_path / SCRIPTS / "part").write_bytes(SCRIPT)
    for path in (tmp_path / SCRIPTS).iterdir():
        age(path)
    new = scripts.add(SCRIPT)
    assert len([*(tmp_path / SCRIPTS).iterdir()]) == 1
    assert (scripts.claim(kept), scripts.claim(new)) == (None, SCRIPT)


def test_server_keeps_no_script(tmp_path: Path) -> None:
    """Old ones go when it starts, all others when it ends: they hold credentials."""
    state = tmp_path / "state"
    state.mkdir()
    scripts = Scripts(state)
    scripts.add(SCRIPT)
    (old,) = (state / SCRIPTS).iterdir()
    age(old)
    with Mayfly(tmp_path / "root", state) as server:
        server.wait_for(lambda: None if old.exists() else True)
        scripts.claim(scripts.add(SCRIPT))
        scripts.add(SCRIPT)
        assert len([*(state / SCRIPTS).iterdir()]) == 2
    assert list((state / SCRIPTS).iterdir()) == []
