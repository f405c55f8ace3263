"""One server's life: ready, serving, draining, over. Puts the other parts of this package to work.

    claimed ─► ready ─► serving ─────reason─────► draining ─quiet or timeout─► closed ─► reported
                          ▲  └─ idle, but somebody came ─┘
                          └─────────────────────────────

The server's owner makes a `Life`, gives its `observer` and `drain` to the request path, and then
calls `run`, which comes back with the exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mayfly.registry import log
from mayfly.registry.clock import Clock, first_done
from mayfly.registry.control.desk import Desk, Outcome
from mayfly.registry.control.report import Corruption
from mayfly.registry.control.socket import ControlServer, runtime_directory
from mayfly.registry.coverage.contents import Contained, Contents
from mayfly.registry.coverage.coverage import Coverage, Covered
from mayfly.registry.coverage.images import Image, Nodes, read_images
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.nodes import NodeNames
from mayfly.registry.coverage.observer import Observer
from mayfly.registry.coverage.pulls import SETTLED, Pulls
from mayfly.registry.coverage.states import State
from mayfly.registry.exit_codes import Exit
from mayfly.registry.http.listen import Listeners
from mayfly.registry.lifecycle import plan as plans
from mayfly.registry.lifecycle.activity import Activity
from mayfly.registry.lifecycle.conditions import Condition, Kind, Once, Reason
from mayfly.registry.lifecycle.drain import Drain, Drained
from mayfly.registry.lifecycle.plan import Plan, Triggers
from mayfly.registry.process.child import Child, environment
from mayfly.registry.process.signals import Signals
from mayfly.registry.process.systemd import Notifier
from mayfly.registry.settings.choices import NodeIdentity
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.state.directory import LEDGER, StateDir
from mayfly.registry.state.private import Login, auth_file, guarded

_TURNS = 10
"""Turns of the event loop in which a request that has arrived gets from its socket to its handler,
and a cut one to the end of it."""

_NOBODY_THERE = frozenset({Kind.IDLE, Kind.UNUSED})

_TAIL_SECONDS = 5.0
"""For the ends of small answers whose handlers are through."""

_STOP_MARGIN_SECONDS = 30.0
"""What systemd is told to allow beyond the drain: closing, the report."""

_STATUS_EVERY = 1.0

_MEASURE_SECONDS = 5.0
"""Time to measure the store at the end; past it the report has no size."""

_SETTLING_SECONDS = 2 * SETTLED
"""Longest time from the command's end to the line about the remaining conditions."""

_LOOK_SECONDS = 0.05
"""Between two checks for the first request of a client that has just connected."""


class Content(Protocol):
    """What the lifetime asks the store. Both are quick and run on the event loop."""

    def contents(self, repository: str, digest: str) -> Contents | None:
        """What a manifest names, None if there is no such manifest."""

    def tag(self, repository: str, tag: str) -> str | None:
        """The digest a tag points at, None if there is no such tag."""


class Served(Protocol):
    """The HTTP server."""

    @property
    def listeners(self) -> Listeners:
        """Its sockets, not yet accepting."""

    async def close(self, seconds: float) -> None:
        """Close all connections; handlers that still run have so many seconds.

        Called again, it closes what is left.
        """


@dataclass(frozen=True)
class Launch:
    """What the server's owner knows once its sockets are bound.

    Attributes:
        served: the HTTP server.
        login: for the command, and to tell where the server is.
        announced: around the time in which the port answers: ready.json, a line for the operator.
        storage: measures the store in bytes; runs in a worker thread.
        denied: how often whom, as (user, address), was refused; counted on while the server lives.
        ambiguous: repository paths that several upstreams share → the names to ask for instead.
        interrupt: ends the work of worker threads, once the drain is over.
        wiped: what goes, together with the command's private files, if the server is killed.
    """

    served: Served
    login: Login
    announced: AbstractContextManager[None]
    storage: Callable[[], int] | None = None
    denied: Mapping[tuple[str, str], int] = field(default_factory=dict)
    ambiguous: Mapping[str, Sequence[str]] = field(default_factory=dict)
    interrupt: Callable[[], None] = lambda: None
    wiped: tuple[Path, ...] = ()


class Life:
    """The life of one server. Make it in the running event loop.

    Args:
        plan: when it ends.
        state: the state directory.
        content: of the store.
        clock: the machine's, outside of tests.
        own_hosts: names, with port, by which this registry is known.
        shared: whether a user's name is used by several nodes (`nodes.NodeNames`).
        notifier: tells systemd.

    Attributes:
        activity, observer, drain: for the request path.

    Raises:
        ConfigError: settings do not go together, or a file they name is no good.
    """

    def __init__(
        self,
        plan: Plan,
        state: StateDir,
        content: Content,
        clock: Clock,
        *,
        own_hosts: Collection[str] = (),
        shared: Callable[[str], bool] = lambda user: False,
        notifier: Notifier | None = None,
    ) -> None:
        plan.check()
        self._plan = plan
        self._state = state
        self._clock = clock
        self._notifier = notifier or Notifier()
        self.activity = Activity(clock.now)
        contained = Contained(content.contents)
        images = read_images(plan.until_pulled, own_hosts) if plan.until_pulled else ()
        # Without coverage there is nothing that a restart should go on with.
        kept = state.path / LEDGER if images else None
        try:
            declared = plan.nodes.names if plan.nodes else ()
            self._ledger = Ledger(kept, clock, _listed(images, plan.nodes), declared)
        except OSError as error:
            raise ConfigError(f"{kept}: {error.strerror}; remove it") from None
        self._pulls = Pulls(clock.now, self._ledger.changed)
        names = frozenset(plan.nodes.names if plan.nodes else ())
        self.observer = Observer(
            self.activity,
            self._pulls,
            self._ledger,
            contained,
            clock,
            nodes=NodeNames(NodeIdentity(plan.node_identity), names, shared),
        )
        self.coverage: Coverage | None = None
        if plan.nodes is not None:
            self.coverage = Coverage(
                self._ledger,
                self._pulls,
                images,
                plan.nodes,
                content.tag,
                self.observer.states,
                State(plan.accept),
            )
        self.drain = Drain(self.activity, self._pulls, self.observer.transfers, clock)
        self._child: Child | None = None
        self._command_ended = Once() if plan.command else None
        self._signals = Signals(self._hand_on if plan.command else None)
        self._stop = Once()
        self._failed = Once()
        self._desk = Desk(
            plan, self.observer, self.drain, self.coverage, clock, self._stop, state.path
        )
        self._milestones = self._desk.milestones()

    def corrupt(self, found: Corruption) -> None:
        """Content of a bundle was found wrong: report it, and end if the plan has it so."""
        self._desk.corrupt(found)
        if self._plan.stop_on_corrupt:
            reason = f"content of {found['bundle']} is corrupt, and --on-corrupt is stop"
            detail = {"digest": found["digest"], "bundle": found["bundle"]}
            self._failed.set(Reason(Kind.FAILED, reason, Exit.STORAGE, detail))

    async def run(self, launch: Launch) -> int:
        """Serve until a condition ends it, and then tidy up.

        Returns:
            The exit code; minus a signal's number if the command died by it (`child.leave`).

        Raises:
            LifetimeError: the command cannot be started.
            ConfigError: the state directory cannot be used, or a condition cannot work here.
        """
        ends = self._ends()
        self._signals.install()
        runtime = runtime_directory(os.environ)
        control = ControlServer(self._state.path, self._desk.commands(), runtime)
        try:
            await _start(control)
            launch.served.listeners.resume()
            for warning in self._plan.warnings():
                log.tell(logging.WARNING, "settings", warning)
            await self._desk.warn_at_start()
            async with self._background(launch), self._private(launch) as private:
                with launch.announced:
                    self._desk.ready(launch.login.url, launch.denied, launch.ambiguous)
                    self._notifier.ready(self._desk.status_line())
                    await self._start_command(launch, private)
                    reason = await _until(ends, launch.served.listeners)
                outcome = await self._end(reason, launch)
            self._desk.over(outcome)
            if outcome.covered and not outcome.exit_code:
                self._ledger.remove()
            return outcome.exit_code
        finally:
            await launch.served.listeners.close()
            await launch.served.close(0.0)
            await control.close()
            self._ledger.close()
            self._signals.remove()

    async def _end(self, reason: Reason, launch: Launch) -> Outcome:
        if self._milestones is not None:
            await self._explore()
            self._milestones.look()  # before the end that they may be the reason for
        log.tell(logging.INFO, "stopping", f"stopping: {reason.text}", reason=reason.kind)
        ended_it = self._running()
        grace = self._plan.drain_timeout * (2 if ended_it else 1)
        self._notifier.stopping(f"draining: {reason.text}", grace + _STOP_MARGIN_SECONDS)
        await self._end_command()
        self.drain.begin(refuse=reason.kind not in _NOBODY_THERE)
        drained = await self.drain.finish(self._plan.drain_timeout, self._signals.second)
        await launch.served.listeners.close()
        launch.interrupt()
        cut = not drained.complete or drained.exit_code is not None
        await launch.served.close(0.0 if cut else _TAIL_SECONDS)
        await _turns()
        return await self._conclude(reason, drained, ended_it, launch)

    async def _conclude(
        self, reason: Reason, drained: Drained, ended_it: bool, launch: Launch
    ) -> Outcome:
        if self._failed.holds():  # also where it was found while draining for another reason
            reason = await self._failed.wait()
        after = None
        if launch.storage is not None and drained.exit_code is None:
            measuring = asyncio.get_running_loop().run_in_executor(None, launch.storage)
            await asyncio.wait([measuring], timeout=_MEASURE_SECONDS)
            after = measuring.result() if measuring.done() else None
        await self._explore()
        images = await self._desk.images()
        # From here on nothing is awaited, so that log, exit code and report tell of one moment.
        if self._milestones is not None:
            self._milestones.end()
        covered = self.coverage.complete() if self.coverage else None
        code = plans.exit_code(
            reason,
            drained,
            covered=covered,
            command=self._child.code if self._child else None,
            ended_it=ended_it,
        )
        outcome = Outcome(reason, drained, covered, code)
        made = self._desk.report(outcome, after, images)
        await self._desk.show(made)
        return outcome

    def _ends(self) -> Condition:
        triggers = Triggers(
            signal=self._signals.first,
            second=self._signals.second,
            stop=self._stop,
            failed=self._failed,
            command=self._command_ended,
            covered=self._covered(),
        )
        return plans.ending(self._plan, triggers, self.activity, self._clock)

    def _covered(self) -> Condition | None:
        if self.coverage is None:
            return None
        return Covered(self.coverage, self._ledger, self._pulls, self._clock)

    @contextlib.asynccontextmanager
    async def _private(self, launch: Launch) -> AsyncIterator[Path | None]:
        """The command's private directory, None without one; it goes whatever happens."""
        if not self._plan.command:
            yield None
            return
        with auth_file(self._state.path, launch.login) as private, guarded(private, *launch.wiped):
            try:
                yield private
            finally:
                if self._child is not None:
                    self._child.send(signal.SIGKILL)
                    await self._child.end()

    async def _start_command(self, launch: Launch, private: Path | None) -> None:
        if private is None or self._command_ended is None:
            return
        if self._signals.first.holds():
            text = "a signal came before the command was started"
            self._command_ended.set(Reason(Kind.COMMAND, text))
            return
        given = environment(os.environ, launch.login, private, self._state.path)
        self._child = await Child.start(self._plan.command, given, self._command_ended)

    async def _end_command(self) -> None:
        """If it still runs: ask it to end, and make it end."""
        child = self._child
        if child is None or child.code is not None:
            return
        child.send(signal.SIGTERM)
        limit = self._clock.sleep(self._plan.drain_timeout)
        await first_done(child.end(), self._signals.second.wait(), limit)
        child.send(signal.SIGKILL)
        await child.end()

    async def _explore(self) -> None:
        if self.coverage is not None:
            await self.coverage.explore()

    def _running(self) -> bool:
        return self._child is not None and self._child.code is None

    def _hand_on(self, number: signal.Signals) -> None:
        if self._child is not None:
            self._child.hand_on(number)

    @contextlib.asynccontextmanager
    async def _background(self, launch: Launch) -> AsyncIterator[None]:
        """What goes on beside serving."""
        tasks = [
            asyncio.create_task(self._notifier.watch(self._clock)),
            asyncio.create_task(self._tell_status()),
        ]
        if launch.storage is not None:
            tasks.append(asyncio.create_task(self._desk.measure_before(launch.storage)))
        if self._command_ended is not None:
            tasks.append(asyncio.create_task(self._tell_command_end(self._command_ended)))
        if self._milestones is not None:
            following = self._milestones.follow(self._ledger, self._pulls, self._clock)
            tasks.append(asyncio.create_task(following))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell_command_end(self, ended: Once) -> None:
        """Log that the command has ended, and then the conditions that remain.

        A node that has just got its last image counts only once it is quiet, so an earlier line
        would name nodes that have everything.
        """
        reason = await ended.wait()
        level = logging.WARNING if reason.exit_code else logging.INFO
        log.tell(level, "command_ended", reason.text, exit_code=reason.exit_code)
        if reason.exit_code or self._signals.first.holds():
            return
        end = self._clock.now() + _SETTLING_SECONDS
        while (settles := self._pulls.settles_in()) is not None and self._clock.now() < end:
            await self._clock.sleep(min(settles, end - self._clock.now()))
        if self.drain.active:
            return
        if self._milestones is not None:
            await self._explore()
            self._milestones.look()
        if waiting := self._desk.waiting_for():
            log.tell(logging.INFO, "waiting", f"waiting for {waiting}")

    async def _tell_status(self) -> None:
        while self._notifier.active and not self.drain.active:
            await first_done(self._ledger.changed.next())
            self._notifier.status(self._desk.status_line())
            await self._clock.sleep(_STATUS_EVERY)


def _listed(images: Sequence[Image], nodes: Nodes | None) -> Callable[[str, str], bool]:
    """Return a test whether a node and a repository are listed; without names every node is."""
    repositories = {name for image in images for name in image.repositories()}
    names = frozenset(nodes.names) if nodes is not None else frozenset()
    return lambda node, repository: repository in repositories and (not names or node in names)


async def _until(ends: Condition, listeners: Listeners) -> Reason:
    """The reason to end, by the time of which nobody is being turned away (`systemd`)."""
    while True:
        reason = await ends.wait()
        if reason.kind not in _NOBODY_THERE:
            return reason
        listeners.pause()
        await _turns()
        while ends.holds() and listeners.expect_request():  # noqa: ASYNC110 - time passes
            await asyncio.sleep(_LOOK_SECONDS)
        if ends.holds():
            return reason
        listeners.resume()


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)


async def _start(control: ControlServer) -> None:
    try:
        await control.start()
    except OSError as error:
        raise ConfigError(f"the control socket cannot be made: {error.strerror}") from None
