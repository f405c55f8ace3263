"""Programs that Mayfly runs, such as ssh: how they and their children end."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from mayfly.registry.nodes import programs
from mayfly.registry.nodes.programs import TIMED_OUT, TOO_MUCH, run_program
from tests.support.process import PATIENCE, alive, poll

CHILD = "sleep 1000 & echo $!"
"""A child that holds the pipes open and says its number, as a ProxyCommand of ssh may be one."""


async def _run(script: str, seconds: float = PATIENCE) -> tuple[int, list[bytes]]:
    lines: list[bytes] = []
    code = await run_program(
        ("sh", "-c", script),
        b"",
        on_stdout=lines.append,
        on_stderr=lambda line: None,
        most=1000,
        total=100_000,
        seconds=seconds,
    )
    return code, lines


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait no seconds for what never comes."""
    monkeypatch.setattr(programs, "_END_SECONDS", 0.2)


@pytest.mark.parametrize(
    ("script", "seconds", "expected"),
    [
        (f"{CHILD}; exit 7", PATIENCE, 7),
        (f"{CHILD}; exec sleep 1000", 0.5, TIMED_OUT),
        (f"{CHILD}; exec yes", PATIENCE, TOO_MUCH),
        (f"trap '' TERM; {CHILD}; exit 7", PATIENCE, 7),
    ],
)
async def test_child_that_holds_the_pipes(script: str, seconds: float, expected: int) -> None:
    """The end of the program is not missed, and the child is ended, too."""
    begun = time.monotonic()
    code, (number, *_) = await _run(script, seconds)
    assert code == expected
    assert time.monotonic() - begun < PATIENCE
    await asyncio.to_thread(poll, lambda: not alive(int(number)))


async def test_cancelled_with_a_child(tmp_path: Path) -> None:
    """A wait that is cancelled ends both."""
    told = tmp_path / "child"
    running = asyncio.create_task(
        _run(f"sleep 1000 & echo $! >{told}.new; mv {told}.new {told}; wait")
    )
    await asyncio.to_thread(poll, told.exists)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.to_thread(poll, lambda: not alive(int(told.read_text())))
