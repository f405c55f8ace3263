"""`mayfly bundle create` on a disk or stick that is too small, fills up, or limits files."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mayfly.storage.directory.store import DistributionStore
from tests.clients.proxy import SlowProxy
from tests.faults.disk_mounts import MIB, fill, tmpfs
from tests.support.commands import command_line, environment, mayfly_here, started
from tests.support.images import image_body, push, put
from tests.support.process import PATIENCE, REPO, Mayfly, poll

APP = "team/app"
LAYERS = [os.urandom(1_000_000) for _ in range(3)]
RATE = 1_000_000
"""Bytes a second of the slow network, so that the disk can fill meanwhile."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an image of 3 MB."""
    place = tmp_path_factory.mktemp("full")
    with closing(DistributionStore(place)) as store:
        for data in (b"{}", *LAYERS):
            push(store, APP, data)
        put(store, APP, image_body(b"{}", LAYERS), "1")
    return place


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[Path]:
    """A small filesystem."""
    with tmpfs(tmp_path / "stick", 8 * MIB) as place:
        yield place


def test_too_little_space_is_told_before_the_first_byte(root: Path, stick: Path) -> None:
    """Exit code 4, both sizes, and nothing is left on the stick."""
    filler = fill(stick, 1_000_000)
    done = mayfly_here("bundle", "create", f"{APP}:1", "--from", root, "-o", stick / "up.tar")
    assert done.returncode == 4, done.stderr
    assert "2.9 MiB are needed" in done.stderr
    assert "are free; nothing was fetched" in done.stderr
    assert list(stick.iterdir()) == [filler]
    # The volumes of a set are counted together.
    words = ("-o", stick / "up.tar", "--volume-size", "1100000")
    done = mayfly_here("bundle", "create", f"{APP}:1", "--from", root, *words)
    assert done.returncode == 4, done.stderr
    assert list(stick.iterdir()) == [filler]


def test_a_stick_that_fills_is_named_and_the_same_command_goes_on(
    root: Path, stick: Path, tmp_path: Path, start_mayfly: Callable[..., Mayfly]
) -> None:
    """Exit code 4 and one line; with room again the file is as if nothing had happened."""
    upstream = start_mayfly("--read-only", root=root)
    output = stick / "up.tar"
    with SlowProxy(upstream.host, RATE) as proxy:
        words = ("bundle", "create", f"{proxy.host}/{APP}:1", "-o", output)
        with started(*words) as process:
            poll((stick / ".up.tar.partial").exists)
            filler = _fill_meanwhile(stick)
            _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 4, said
        line = said.splitlines()[-1]
        assert f"{output} cannot be written: No space left on device" in line
        assert "the same command resumes" in line
        assert "Traceback" not in said
        filler.unlink()
        assert mayfly_here(*words).returncode == 0
    whole = tmp_path / "whole.tar"
    assert mayfly_here("bundle", "create", f"{upstream.host}/{APP}:1", "-o", whole).returncode == 0
    assert _layers(output) == _layers(whole)
    assert [path.name for path in stick.iterdir()] == ["up.tar"]


def _fill_meanwhile(stick: Path) -> Path:
    """Take all space although something else is written at the same time."""
    for _ in range(100):
        with contextlib.suppress(OSError):  # less is free than a moment ago
            return fill(stick, 64 * 1024)
    raise AssertionError("the space was never taken")


def _layers(bundle: Path) -> list[str]:
    done = mayfly_here("inspect", f"{APP}:1", bundle, "--json")
    assert done.returncode == 0, done.stderr
    (platform,) = json.loads(done.stdout)["platforms"]
    return [layer["digest"] for layer in platform["layers"]]


def test_files_that_are_too_large_for_the_filesystem(root: Path, tmp_path: Path) -> None:
    """As on FAT32, beyond 4 GiB: the remedy is told."""
    output = tmp_path / "up.tar"
    done = subprocess.run(
        command_line("bundle", "create", f"{APP}:1", "--from", root, "-o", output),
        env=environment(),
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)),
    )
    assert done.returncode == 4, done.stderr
    assert "use --volume-size" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_directory_that_is_not_there(root: Path, tmp_path: Path) -> None:
    """It is named; exit code 2."""
    output = tmp_path / "none/up.tar"
    done = mayfly_here("bundle", "create", f"{APP}:1", "--from", root, "-o", output)
    assert done.returncode == 2, done.stderr
    assert str(output.parent) in done.stderr
    assert done.stderr.count("\n") == 1
