"""Contradicting settings, and the exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.coverage.observer import Peer, Transfer
from mayfly.registry.coverage.upgrade_lists import Nodes
from mayfly.registry.ending import EndKind, EndReason
from mayfly.registry.lifecycle.drain import Drained
from mayfly.registry.lifecycle.plan import RunPlan, exit_code
from mayfly.registry.settings.errors import ConfigError

PULL = Transfer("pull", "r", Peer("a", "", "192.0.2.1", ""), 0.0)
CUT = Drained((PULL,))


@pytest.mark.parametrize(
    ("kind", "drained", "covered", "command", "ended_command", "code"),
    [
        # serve: asked to stop from outside, or done
        (EndKind.SIGNAL, Drained(), None, None, False, 0),
        (EndKind.SIGNAL, Drained(), True, None, False, 0),
        (EndKind.COVERED, Drained(), True, None, False, 0),
        (EndKind.IDLE, Drained(), None, None, False, 0),
        (EndKind.DEADLINE, Drained(), None, None, False, 0),
        (EndKind.DEADLINE, Drained(), True, None, False, 0),
        # before every node had every image, whatever ended it
        *(
            (kind, Drained(), False, None, False, 3)
            for kind in EndKind
            if kind is not EndKind.FAILED
        ),
        (EndKind.SIGNAL, Drained(), False, 0, False, 3),
        (EndKind.STOP, Drained(), False, 0, True, 3),
        (EndKind.COMMAND, Drained(), False, 0, False, 3),
        # transfers cut
        (EndKind.SIGNAL, CUT, None, None, False, 3),
        (EndKind.COVERED, CUT, True, None, False, 3),
        # a second signal
        (EndKind.SIGNAL, Drained((PULL,), 143), None, None, False, 143),
        (EndKind.SIGNAL, Drained((), 130), False, -9, True, 130),
        # run: the command's own
        (EndKind.COMMAND, Drained(), None, 0, False, 0),
        (EndKind.COMMAND, Drained(), None, 7, False, 7),
        (EndKind.COMMAND, CUT, False, 7, False, 7),
        (EndKind.COMMAND, CUT, None, 0, False, 3),
        (EndKind.SIGNAL, Drained(), None, -15, False, -15),
        (EndKind.STOP, Drained(), None, -15, True, -15),
        (EndKind.STOP, Drained(), None, 0, True, 0),
        # run: the deadline came first
        (EndKind.DEADLINE, Drained(), None, -15, True, 3),
        (EndKind.DEADLINE, Drained(), None, 0, True, 3),
        (EndKind.DEADLINE, Drained(), False, 0, False, 3),
        # the server could not continue
        (EndKind.FAILED, CUT, False, -15, True, 4),
    ],
)
def test_exit_code(
    kind: EndKind,
    drained: Drained,
    covered: bool | None,
    command: int | None,
    ended_command: bool,
    code: int,
) -> None:
    """The contract's table."""
    reason = EndReason(kind, "", 4 if kind is EndKind.FAILED else 0)
    found = exit_code(
        reason, drained, covered=covered, command=command, ended_command=ended_command
    )
    assert found == code


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"until_pulled": Path("i")}, "--until-pulled needs --nodes"),
        ({"nodes": Nodes(1)}, "--nodes needs --until-pulled"),
        ({"exit_on_stdin_eof": True, "command": ("x",)}, "standard input is the command's"),
        ({"until_stop": True, "idle_timeout": 600.0}, "leave out --idle-timeout"),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], says: str) -> None:
    """Contradicting settings are refused."""
    with pytest.raises(ConfigError, match=says):
        RunPlan(**settings).check()


@pytest.mark.parametrize(("seconds", "warned"), [(None, 0), (300.0, 1), (301.0, 0)])
def test_idle_shorter_than_a_kubelets_pause(seconds: float | None, warned: int) -> None:
    """An idle timeout that a kubelet's back-off outlasts is allowed, with a warning."""
    assert len(RunPlan(idle_timeout=seconds).warnings()) == warned
