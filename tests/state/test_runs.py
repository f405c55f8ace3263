"""Runs: begun, continued after a crash, ended."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mayfly.registry.state import runs
from mayfly.registry.state.runs import (
    MAX_ABSENCE_SECONDS,
    RUN_FILES,
    Run,
    differences,
    inputs_of,
    load,
)

HOUR = 3600.0


def _issue(run: Run) -> None:
    """Write the files that a run issues."""
    run.keep()
    for name in RUN_FILES:
        if not (run.directory / name).exists():
            (run.directory / name).write_text("{}")


def _left(directory: Path) -> set[str]:
    return set(os.listdir(directory)) & set(RUN_FILES)


def _age(directory: Path, seconds: float, *, last_heard: float = 0.0) -> None:
    """Set the age of a run and of its last heartbeat."""
    file = directory / runs.RUN
    document = json.loads(file.read_text())
    document["started"] -= seconds
    if document["deadline"] is not None:
        document["deadline"] -= seconds
    file.write_text(json.dumps(document))
    os.utime(file, (time.time(), time.time() - last_heard))


def test_killed_run_goes_on(tmp_path: Path) -> None:
    """The next start continues the same run with its files."""
    killed = Run.begin(tmp_path, 4 * HOUR, {})
    assert not killed.continued
    assert stat.S_IMODE((tmp_path / runs.RUN).stat().st_mode) == 0o600
    _issue(killed)
    _age(tmp_path, HOUR)
    again = Run.begin(tmp_path, 4 * HOUR, {})
    assert again.continued
    assert again.id == killed.id
    assert _left(tmp_path) == set(RUN_FILES)
    assert HOUR <= again.elapsed < 2 * HOUR
    assert again.deadline == pytest.approx(again.started + 4 * HOUR)


def test_ended_run_leaves_nothing(tmp_path: Path) -> None:
    """An orderly end removes all issued files; the next start begins another run."""
    with Run.begin(tmp_path, None, {}) as run:
        _issue(run)
        run.end()
    assert _left(tmp_path) == set()
    assert Run.begin(tmp_path, None, {}).id != run.id


def test_failure_while_serving_is_no_end(tmp_path: Path) -> None:
    """An internal error counts as a crash: the run continues."""
    with pytest.raises(RuntimeError), Run.begin(tmp_path, None, {}) as run:
        _issue(run)
        raise RuntimeError
    assert Run.begin(tmp_path, None, {}).id == run.id


def test_start_that_fails(tmp_path: Path) -> None:
    """A first start that fails leaves no run; a later one keeps the run it continues."""
    with pytest.raises(RuntimeError), Run.begin(tmp_path, None, {}):
        raise RuntimeError
    assert _left(tmp_path) == set()
    killed = Run.begin(tmp_path, None, {})
    _issue(killed)
    with pytest.raises(RuntimeError), Run.begin(tmp_path, None, {}):
        raise RuntimeError
    assert Run.begin(tmp_path, None, {}).id == killed.id
    # A stop while it starts is no failure: nothing is kept for the next start.
    with pytest.raises(SystemExit), Run.begin(tmp_path, None, {}):
        raise SystemExit(143)
    assert _left(tmp_path) == set()


@pytest.mark.parametrize(
    ("age", "heard", "before", "now"),
    [
        (5 * HOUR, 0.0, 4 * HOUR, 4 * HOUR),
        (5 * HOUR, 0.0, 4 * HOUR, None),
        (5 * HOUR, 0.0, None, 4 * HOUR),
        (2 * MAX_ABSENCE_SECONDS, MAX_ABSENCE_SECONDS + 1, None, None),
    ],
    ids=["deadline", "deadline taken back", "deadline given later", "long dead"],
)
def test_dead_run_is_wiped(
    tmp_path: Path, age: float, heard: float, before: float | None, now: float | None
) -> None:
    """Files of an expired run are not used by the next one."""
    dead = Run.begin(tmp_path, before, {})
    _issue(dead)
    _age(tmp_path, age, last_heard=heard)
    run = Run.begin(tmp_path, now, {})
    assert run.id != dead.id and not run.continued
    assert _left(tmp_path) == {runs.RUN}


def test_signs_of_life(tmp_path: Path) -> None:
    """A long run continues after a kill, since its last heartbeat is recent."""
    run = Run.begin(tmp_path, None, {})
    _issue(run)
    _age(tmp_path, 4 * MAX_ABSENCE_SECONDS, last_heard=4 * MAX_ABSENCE_SECONDS)
    run.heartbeat()
    assert Run.begin(tmp_path, None, {}).id == run.id


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"mayfly-run": 2}', "\0" * 100])
def test_damaged_file_is_no_run(tmp_path: Path, content: str) -> None:
    """An invalid run file is removed with the others."""
    (tmp_path / runs.RUN).write_text(content)
    (tmp_path / "signing.key").write_text("key")
    assert load(tmp_path) is None
    Run.begin(tmp_path, None, {})
    assert _left(tmp_path) == {runs.RUN}


def test_differences_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Other bundles, another list or other nodes at a restart are named."""
    bundle, images, nodes = (tmp_path / name for name in ("a.tar", "list", "nodes"))
    for file in (bundle, images, nodes):
        file.write_text("before")
    state = tmp_path / "state"
    state.mkdir()
    _issue(Run.begin(state, None, inputs_of((bundle,), images, "3")))
    images.write_text("after!")
    Run.begin(state, None, inputs_of((bundle, tmp_path / "b.tar"), images, str(nodes)))
    told = caplog.text
    assert f"bundle {tmp_path / 'b.tar'} is new" in told
    assert f"image list {images} has changed" in told
    assert "nodes 3 is gone" in told and f"node list {nodes} is new" in told
    assert "a.tar" not in told
    caplog.clear()
    Run.begin(state, None, inputs_of((bundle, tmp_path / "b.tar"), images, str(nodes)))
    assert "changed since the previous start" not in caplog.text
    assert "resuming the run" in caplog.text


def test_bundle_that_was_replaced_differs(tmp_path: Path) -> None:
    """The same name with other content, for a file and for a directory."""
    file, layout = tmp_path / "a.tar", tmp_path / "layout"
    file.write_text("a")
    layout.mkdir()
    (layout / "index.json").write_text("a")
    before = inputs_of((file, layout), None, None)
    assert differences(before, inputs_of((file, layout), None, None)) == []
    file.write_text("bb")
    (layout / "index.json").write_text("bb")
    after = inputs_of((file, layout), None, None)
    assert differences(before, after) == [f"bundle {p} has changed" for p in (file, layout)]


@pytest.mark.parametrize(("state", "goes_on"), [(b"stopping\n", True), (b"running\n", False)])
def test_reboot_of_the_host_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: bytes, goes_on: bool
) -> None:
    """An orderly stop while the host shuts down does not end the run."""
    asked: list[Sequence[str]] = []

    def systemctl(argv: Sequence[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        asked.append(argv)
        return subprocess.CompletedProcess(argv, 0, state, b"")

    monkeypatch.setattr(runs, "_SYSTEMD", tmp_path)
    monkeypatch.setattr(subprocess, "run", systemctl)
    with Run.begin(tmp_path, None, {}) as run:
        _issue(run)
        run.end()
    assert asked == [["systemctl", "is-system-running"]]
    assert (Run.begin(tmp_path, None, {}).id == run.id) == goes_on
