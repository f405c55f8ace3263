"""Which settings go together, and what the exit code says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.coverage.images import Nodes
from mayfly.registry.lifecycle.conditions import Kind, Reason
from mayfly.registry.lifecycle.drain import Drained
from mayfly.registry.lifecycle.plan import Plan, exit_code
from mayfly.registry.settings.errors import ConfigError

CUT = Drained(("pull of r by a",))


@pytest.mark.parametrize(
    ("kind", "drained", "covered", "command", "ended_it", "code"),
    [
        # serve: asked to stop from outside, or done
        (Kind.SIGNAL, Drained(), None, None, False, 0),
        (Kind.SIGNAL, Drained(), True, None, False, 0),
        (Kind.COVERED, Drained(), True, None, False, 0),
        (Kind.IDLE, Drained(), None, None, False, 0),
        (Kind.DEADLINE, Drained(), None, None, False, 0),
        (Kind.DEADLINE, Drained(), True, None, False, 0),
        # before every node had every image, whatever ended it
        *((kind, Drained(), False, None, False, 3) for kind in Kind if kind is not Kind.FAILED),
        (Kind.SIGNAL, Drained(), False, 0, False, 3),
        (Kind.STOP, Drained(), False, 0, True, 3),
        (Kind.COMMAND, Drained(), False, 0, False, 3),
        # transfers cut
        (Kind.SIGNAL, CUT, None, None, False, 3),
        (Kind.COVERED, CUT, True, None, False, 3),
        # a second signal
        (Kind.SIGNAL, Drained(("x",), 143), None, None, False, 143),
        (Kind.SIGNAL, Drained((), 130), False, -9, True, 130),
        # run: the command's own
        (Kind.COMMAND, Drained(), None, 0, False, 0),
        (Kind.COMMAND, Drained(), None, 7, False, 7),
        (Kind.COMMAND, CUT, False, 7, False, 7),
        (Kind.COMMAND, CUT, None, 0, False, 3),
        (Kind.SIGNAL, Drained(), None, -15, False, -15),
        (Kind.STOP, Drained(), None, -15, True, -15),
        (Kind.STOP, Drained(), None, 0, True, 0),
        # run: the deadline came first
        (Kind.DEADLINE, Drained(), None, -15, True, 3),
        (Kind.DEADLINE, Drained(), None, 0, True, 3),
        (Kind.DEADLINE, Drained(), False, 0, False, 3),
        # the server could not go on
        (Kind.FAILED, CUT, False, -15, True, 4),
    ],
)
def test_exit_code(
    kind: Kind,
    drained: Drained,
    covered: bool | None,
    command: int | None,
    ended_it: bool,
    code: int,
) -> None:
    """The contract's table."""
    reason = Reason(kind, "", 4 if kind is Kind.FAILED else 0)
    found = exit_code(reason, drained, covered=covered, command=command, ended_it=ended_it)
    assert found == code


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"until_pulled": Path("i")}, "--until-pulled needs --nodes"),
        ({"nodes": Nodes(1)}, "--nodes needs --until-pulled"),
        ({"exit_on_stdin_eof": True, "command": ("x",)}, "standard input is the command's"),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], says: str) -> None:
    """Settings that do not go together are refused."""
    with pytest.raises(ConfigError, match=says):
        Plan(**settings).check()


@pytest.mark.parametrize(("seconds", "warned"), [(None, 0), (300.0, 1), (301.0, 0)])
def test_idle_shorter_than_a_kubelets_pause(seconds: float | None, warned: int) -> None:
    """An idle timeout that a kubelet's back-off outlasts is allowed, with a warning."""
    assert len(Plan(idle_timeout=seconds).warnings()) == warned
