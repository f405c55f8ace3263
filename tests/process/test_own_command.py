"""The `mayfly` that the command of `mayfly run` finds: the program that runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process import PATIENCE, REPO, Process, need, need_root, poll, text_of
from tests.support.stubs import without_private

BARE = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
SHOW = 'mayfly status --json | grep state_dir; command -v mayfly; mayfly --version; echo "$PATH"'


def argv(state_dir: Path, *command: str, start: tuple[str, ...] = ()) -> list[str]:
    """`mayfly run` with a registry on loopback, by `start` or ``python -m mayfly``."""
    places = ("--ephemeral", "--state-dir", str(state_dir), "--listen", "127.0.0.1:0")
    return [*(start or (sys.executable, "-m", "mayfly")), "run", *places, "--", *command]


def run(words: list[str], cwd: Path = REPO, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it with an environment that does not know this Mayfly."""
    return subprocess.run(
        words, cwd=cwd, env=BARE | env, capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.mark.parametrize("way", ["module", "console script", "path"])
def test_the_command_finds_this_mayfly(tmp_path: Path, way: str) -> None:
    """However it was started, also where PATH has another one and the working directory modules."""
    inside, other = tmp_path / "in here", tmp_path / "other"
    for directory in (inside, other):
        directory.mkdir()
    for name in ("click", "mayfly", "registry"):
        (inside / f"{name}.py").write_text("raise SystemExit('a module of the working directory')")
    (other / "mayfly").write_text("#!/bin/sh\necho another\n")
    (other / "mayfly").chmod(0o755)
    path = f"{other}:{BARE['PATH']}"
    start, env = {
        "module": ((), {}),
        "console script": ((str(Path(sys.executable).with_name("mayfly")),), {}),
        "path": ((sys.executable, "-m", "mayfly"), {"PYTHONPATH": str(REPO)}),
    }[way]
    state_dir = tmp_path / "the state's"
    words = argv(state_dir, "sh", "-c", f'cd "{inside}" && {SHOW}', start=start)
    done = run(words, REPO if way == "module" else tmp_path, PATH=path, **env)
    assert done.returncode == 0, done.stderr
    status, found, version, seen = done.stdout.splitlines()
    assert f'"state_dir": "{state_dir}"' in status
    assert found.startswith(f"{state_dir}/run-")
    assert version.startswith("mayfly")
    assert seen == f"{Path(found).parent}:{path}"
    assert without_private(state_dir)


def test_it_is_the_command_itself(tmp_path: Path) -> None:
    """`mayfly run -- mayfly …` needs no mayfly in PATH, and without PATH the usual one follows."""
    words = argv(tmp_path / "state", "mayfly", "status")
    done = subprocess.run(words, cwd=REPO, env={}, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1" in done.stdout


def test_a_state_directory_that_is_mounted_noexec(tmp_path: Path) -> None:
    """The entry works there, too."""
    need_root()
    need("unshare", "mount")
    mount = 'mount -t tmpfs -o noexec tmpfs "$0" && exec "$@"'
    words = argv(tmp_path / "state", "sh", "-c", f"{SHOW}; ls -l $(command -v mayfly)")
    done = run(["unshare", "--mount", "sh", "-c", mount, str(tmp_path), *words])
    assert done.returncode == 0, done.stderr
    assert f'"state_dir": "{tmp_path}/state"' in done.stdout
    assert "/fd/" in done.stdout


def test_a_killed_server_leaves_no_entry(tmp_path: Path) -> None:
    """After `kill -9` the directory of the entry is removed."""
    state_dir, mark = tmp_path / "state", tmp_path / "mark"
    words = argv(state_dir, "sh", "-c", f"command -v mayfly >'{mark}'; exec sleep 60")
    server = Process(words, tmp_path / "log", env=os.environ | BARE, cwd=REPO)
    try:
        server.wait_for(lambda: text_of(mark).strip())
    finally:
        server.kill()
    poll(lambda: without_private(state_dir))


def test_a_state_directory_that_no_path_can_have(tmp_path: Path) -> None:
    """The command is run with the PATH that there was, and the log says why."""
    done = run(argv(tmp_path / "a:b", "sh", "-c", 'echo "$PATH"'))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == BARE["PATH"]
    assert "the command does not find this mayfly in its PATH" in done.stderr
