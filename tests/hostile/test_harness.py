"""The harness itself: it notices what it is there for."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.hostile.__main__ import BEGIN, END, place, table
from tests.hostile.harness import Hostile
from tests.support.process import poll


def test_stopped_server_is_noticed(hostile: Hostile) -> None:
    """A server that answers nobody fails its attack."""
    with (
        pytest.raises(AssertionError, match="probes were answered in"),
        hostile.attack("none", before="none", patience=1) as under,
    ):
        try:
            os.kill(under.server.pid, signal.SIGSTOP)
            while under.going():
                time.sleep(0.01)
        finally:
            os.kill(under.server.pid, signal.SIGCONT)


def test_short_attack_is_noticed(hostile: Hostile) -> None:
    """An attack that ends before enough probes were answered shows nothing."""
    with (
        pytest.raises(AssertionError, match="before the attack ended"),
        hostile.attack("none", before="none"),
    ):
        pass


def test_memory_is_noticed(hostile: Hostile) -> None:
    """Any server is over a bound of less than nothing."""
    with (
        pytest.raises(AssertionError, match="MiB above calm"),
        hostile.attack("none", before="none", growth=-1, probes=1) as under,
    ):
        poll(lambda: not under.going())


def test_command_is_measured(hostile: Hostile) -> None:
    """A command's outcome comes back, and its memory is compared."""
    done = hostile.command("none", "gc", "--no-such-option", before="none")
    assert done.returncode == 2
    assert "no-such-option" in done.stderr


def test_table() -> None:
    """Figures become rows between the markers; what stands around them stays."""
    row = {"name": "a|b", "before": "29 s", "probes": 20, "longest_ms": 3.4, "growth_mib": 0.2}
    page = place(f"above\n{BEGIN}\nold\n{END}\nbelow\n", table({"x": {**row, "note": "n"}}))
    assert "above\n" in page
    assert "\nbelow\n" in page
    assert "old" not in page
    assert "| a\\|b | 29 s | longest probe 3 ms of 20, 0 MiB above calm, n |" in page
