"""The plan of a run: its settings, the condition that ends it, and its exit code."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mayfly.registry.activity import Activity
from mayfly.registry.clock import Clock
from mayfly.registry.coverage.upgrade_lists import Nodes
from mayfly.registry.ending import EndKind, EndReason, Latch
from mayfly.registry.exit_codes import Exit
from mayfly.registry.lifecycle.conditions import AllOf, Condition, IdleFor, MaxLifetime, combine
from mayfly.registry.lifecycle.drain import Drained
from mayfly.registry.lifecycle.watches import ParentDeath, StandardInput, StopFile
from mayfly.registry.settings.errors import ConfigError

KUBELET_BACKOFF = 300.0
"""Longest pause, in seconds, between two tries of a kubelet to pull an image."""


class RunPlan(NamedTuple):
    """The settings of `serve` and `run` that decide when a server ends. Times are seconds.

    Attributes:
        drain_timeout: `--drain-timeout`.
        idle_timeout, unused_timeout, max_lifetime: None for never.
        elapsed: the part of `max_lifetime` that has passed since the first start of the run.
        until_all, until_stop: `--until all`, `--until stop`.
        until_pulled, nodes: the images and nodes of coverage; both or neither.
        accept: the weakest evidence that counts as having an image, a state of `states.RANKED`.
        node_identity: how nodes are distinguished, a `NodeIdentity`.
        stop_file: ends the server when it appears.
        exit_with_parent, exit_on_stdin_eof: as the options.
        stop_on_corrupt: `--on-corrupt stop`.
        prefetch: `--prefetch`: nodes get the images before the command is started.
        prefetch_must_complete: the command is not started if a node lacks an image then.
        report: file for the report; None for the one in the state directory.
        command: of `run`, empty for `serve`.
    """

    drain_timeout: float = 60.0
    idle_timeout: float | None = None
    unused_timeout: float | None = None
    max_lifetime: float | None = None
    elapsed: float = 0.0
    until_all: bool = False
    until_stop: bool = False
    until_pulled: Path | None = None
    nodes: Nodes | None = None
    accept: str = "claimed"
    node_identity: str = "auto"
    stop_file: Path | None = None
    exit_with_parent: bool = False
    exit_on_stdin_eof: bool = False
    stop_on_corrupt: bool = False
    prefetch: bool = False
    prefetch_must_complete: bool = True
    report: Path | None = None
    command: tuple[str, ...] = ()

    def check(self) -> None:
        """Check the settings for contradictions.

        Raises:
            ConfigError: two settings contradict each other.
        """
        if self.until_pulled is not None and self.nodes is None:
            raise ConfigError(
                "--until-pulled needs --nodes: how many nodes, or a file of names "
                "(--until-pulled none switches it off)"
            )
        if self.nodes is not None and self.until_pulled is None:
            raise ConfigError("--nodes needs --until-pulled: the file that lists the images")
        if self.until_stop and self.idle_timeout is not None:
            raise ConfigError("--until stop: no idle time ends it, so leave out --idle-timeout")
        if self.prefetch and not self.command:
            raise ConfigError("--prefetch is for run; beside serve use: mayfly prefetch")
        if self.prefetch and (self.nodes is None or not self.nodes.names):
            raise ConfigError("--prefetch needs --until-pulled, and --nodes with a file of names")
        if self.exit_on_stdin_eof and self.command:
            raise ConfigError("--exit-on-stdin-eof: under run the standard input is the command's")

    def warnings(self) -> list[str]:
        """Return warnings about settings that are allowed and may surprise."""
        if self.idle_timeout is not None and self.idle_timeout <= KUBELET_BACKOFF:
            return [
                "--idle-timeout is not over 5m: a kubelet whose pull failed may try again only "
                "after that long"
            ]
        return []


class Triggers(NamedTuple):
    """Conditions that other parts of the server meet.

    Attributes:
        signal: the first SIGTERM, SIGINT or SIGHUP.
        second: the second such signal.
        stop: a request over the control socket.
        failed: the server cannot continue.
        unprepared: nodes lack images after `--prefetch`, so the command is not started.
        command: the command has ended; None without a command.
        covered: coverage is complete; None if coverage was not asked for.
    """

    signal: Latch
    second: Latch
    stop: Latch
    failed: Latch
    unprepared: Latch
    command: Latch | None = None
    covered: Condition | None = None


def end_condition(plan: RunPlan, triggers: Triggers, activity: Activity, clock: Clock) -> Condition:
    """Return the one condition that ends the server.

    Raises:
        ConfigError: a condition of the plan cannot work on this host.
    """
    stopped: Condition = triggers.signal
    if triggers.command is not None:
        # The signal is forwarded to the command, and the command decides when to end.
        stopped = AllOf([triggers.signal, triggers.command])
    hard: list[Condition] = [
        *(triggers.failed, triggers.second, stopped, triggers.stop, triggers.unprepared)
    ]
    if plan.stop_file is not None:
        hard.append(StopFile(plan.stop_file, clock))
    if plan.exit_with_parent:
        hard.append(ParentDeath(clock))
    if plan.exit_on_stdin_eof:
        hard.append(StandardInput())
    if plan.max_lifetime is not None:
        hard.append(MaxLifetime(clock, plan.max_lifetime, plan.elapsed))
    # Hard, since it can never be met together with the others. Not with a command, which may have
    # much to do before the first pull.
    if plan.unused_timeout is not None and triggers.command is None:
        hard.append(IdleFor(activity, clock, plan.unused_timeout, after_first_pull=False))
    soft: list[Condition] = []
    if triggers.covered is not None and not plan.until_stop:
        soft.append(triggers.covered)
    if plan.idle_timeout is not None:
        soft.append(IdleFor(activity, clock, plan.idle_timeout, after_first_pull=True))
    return combine(hard, soft, every=plan.until_all, command=triggers.command)


class Ending(NamedTuple):
    """Conditions that end a server when they are met together.

    Attributes:
        kinds: of the conditions.
        seconds: until then if nothing happens meanwhile; None if that cannot be told.
    """

    kinds: tuple[EndKind, ...]
    seconds: float | None = None


def endings(plan: RunPlan, activity: Activity, running: float) -> list[Ending]:
    """Return the conditions of `end_condition` for people, except signals, stop and failures.

    Args:
        plan: of the run.
        activity: of the server.
        running: seconds since its start.
    """
    has_pulled = activity.first_pull is not None

    def left(timeout: float) -> float:
        return max(timeout - activity.idle_for(), 0.0)

    counts = plan.nodes is not None and not plan.until_stop
    soft = [Ending((EndKind.COVERED,))] if counts else []
    if plan.idle_timeout is not None:
        soft.append(Ending((EndKind.IDLE,), left(plan.idle_timeout) if has_pulled else None))
    if plan.until_all and len(soft) > 1:
        soft = [Ending(tuple(kind for one in soft for kind in one.kinds))]
    if plan.command:
        soft = [Ending((EndKind.COMMAND, *one.kinds)) for one in soft]
        soft = soft or [Ending((EndKind.COMMAND,))]
    hard = []
    if plan.unused_timeout is not None and not has_pulled and not plan.command:
        hard.append(Ending((EndKind.UNUSED,), left(plan.unused_timeout)))
    if plan.max_lifetime is not None:
        over = plan.elapsed + running
        hard.append(Ending((EndKind.DEADLINE,), max(plan.max_lifetime - over, 0.0)))
    others = {
        EndKind.STOP_FILE: plan.stop_file is not None,
        EndKind.PARENT: plan.exit_with_parent,
        EndKind.STANDARD_INPUT: plan.exit_on_stdin_eof,
    }
    hard += [Ending((kind,)) for kind, is_asked in others.items() if is_asked]
    return [*soft, *hard]


def exit_code(
    reason: EndReason,
    drained: Drained,
    *,
    covered: bool | None,
    command: int | None,
    ended_command: bool,
) -> int:
    """Return the exit code of the process (docs/commands.md, "Exit codes").

    Args:
        reason: why the server ended.
        drained: the result of the drain.
        covered: whether coverage is complete; None if it was not asked for.
        command: exit code of the command, or minus a signal's number; None without a command.
        ended_command: the command still ran when the server had to end.
    """
    if drained.exit_code is not None:
        return drained.exit_code
    if reason.kind is EndKind.FAILED:
        return reason.exit_code
    if reason.kind is EndKind.PREFETCH:
        return Exit.INCOMPLETE
    deadline = reason.kind is EndKind.DEADLINE
    if command and not (deadline and ended_command):
        return command
    if not drained.complete or covered is False or (deadline and ended_command):
        return Exit.INCOMPLETE
    return Exit.DONE
