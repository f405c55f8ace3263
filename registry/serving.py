"""One server from ready to reported: the sequence of its end stands here and nowhere else.

    claimed ─► ready ─► serving ─────reason─────► draining ─quiet or timeout─► closed ─► reported
                          ▲  └─ idle, but a client came ─┘
                          └──────────────────────────────

`server` makes a `Lifecycle`, gives its `observer` and `drain` to the request path, and then calls
`run`, which returns the exit code. Like `server`, this module composes rooms: conditions and drain
of `lifecycle`, the control socket and report of `control`, the command of `process`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mayfly.registry import log
from mayfly.registry.activity import Activity
from mayfly.registry.clock import Clock, first_done
from mayfly.registry.control.report import Corruption
from mayfly.registry.control.socket import ControlServer, Message, runtime_directory
from mayfly.registry.control.status_service import Outcome, StatusService
from mayfly.registry.coverage.coverage import Coverage, Covered
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.manifest_graph import ManifestGraph
from mayfly.registry.coverage.nodes import NodeNames
from mayfly.registry.coverage.observer import Observer
from mayfly.registry.coverage.pulls import SETTLED_SECONDS, Pulls
from mayfly.registry.coverage.states import State
from mayfly.registry.coverage.store_queries import StoreQueries, has_image
from mayfly.registry.coverage.upgrade_lists import ListedImage, Nodes, read_images
from mayfly.registry.ending import EndKind, EndReason, Latch
from mayfly.registry.exit_codes import Exit
from mayfly.registry.http.listeners import Listeners
from mayfly.registry.lifecycle import plan as plans
from mayfly.registry.lifecycle.conditions import Condition
from mayfly.registry.lifecycle.drain import Drain, Drained
from mayfly.registry.lifecycle.plan import RunPlan, Triggers
from mayfly.registry.prefetching import run_prefetch
from mayfly.registry.process.child import Child, environment
from mayfly.registry.process.signals import Signals
from mayfly.registry.process.systemd import Notifier
from mayfly.registry.settings.choices import NodeIdentity
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.state.directory import LEDGER, StateDir
from mayfly.registry.state.private import PROGRAMS, Login, client_config, removed_if_killed
from mayfly.storage.text import counted_of

if TYPE_CHECKING:
    from mayfly.registry.nodes.prefetch import Prefetch
    from mayfly.registry.page.feed import Feed
    from mayfly.registry.telemetry.reading import Reading
    from mayfly.registry.telemetry.recording import Kept
    from mayfly.registry.upstream.health import UpstreamRecord

_LOOP_TURNS = 10
"""Turns of the event loop within which a request that has arrived gets from its socket to its
handler, and a cancelled handler to its end."""

_IDLE_KINDS = frozenset({EndKind.IDLE, EndKind.UNUSED})

_TAIL_SECONDS = 5.0
"""For the unsent ends of small responses whose handlers have returned."""

_STOP_MARGIN_SECONDS = 30.0
"""Time for closing and the report, which systemd is asked to allow beyond the drain."""

_STATUS_SECONDS = 1.0
"""Between two status lines for systemd, at least."""

_MEASURE_SECONDS = 5.0
"""Time to measure the store at the end; without an answer by then the report has no size."""

_SETTLING_SECONDS = 2 * SETTLED_SECONDS
"""Longest time from the command's end to the line about the remaining conditions."""

_REQUEST_CHECK_SECONDS = 0.05
"""Between two checks for the first request of a client that has just connected."""


class HTTPService(Protocol):
    """The HTTP server."""

    @property
    def listeners(self) -> Listeners:
        """Its sockets, not yet accepting."""

    async def close(self, seconds: float) -> None:
        """Close all connections; handlers that still run may take this many seconds.

        A second call closes the rest.
        """


async def nothing_recorded(reason: str, exit_code: int) -> Kept:
    """`RunningServer.end_recording` where nothing is recorded."""
    return None, []


@dataclass(frozen=True)
class RunningServer:
    """A server whose sockets are bound.

    Attributes:
        http: its HTTP server.
        login: for the command and the messages that name the server.
        announced: entered while the port answers: writes ready.json and logs the URL.
        measure_storage: returns the size of the store in bytes; runs in a worker thread.
        denied: (user, address) → refused requests; updated while the server runs.
        upstreams: returns the use of each mirrored registry.
        sources: the bundles that are served, as the operator named them.
        ambiguous: repository path that several upstreams share → names to ask for instead.
        cleanup_paths: removed, with the command's private files, if the server is killed.
        end_recording: records the end, and returns the record for the report.
        prefetch: for the nodes, before the command; None without ``--prefetch``.
    """

    http: HTTPService
    login: Login
    announced: AbstractContextManager[None]
    measure_storage: Callable[[], int] | None = None
    denied: Mapping[tuple[str, str], int] = field(default_factory=dict)
    upstreams: Callable[[], list[UpstreamRecord]] = list
    sources: Sequence[str] = ()
    ambiguous: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cleanup_paths: tuple[Path, ...] = ()
    end_recording: Callable[[str, int], Awaitable[Kept]] = nothing_recorded
    prefetch: Prefetch | None = None


class Lifecycle:
    """The lifecycle of one server. Make it in the running event loop.

    Args:
        plan: when the server ends.
        state: the state directory.
        store: answers coverage's questions.
        clock: the machine's, except in tests.
        own_hosts: names, with port, by which this registry is known.
        is_shared: whether several nodes use a user's name (`coverage.nodes.NodeNames`).
        notifier: to systemd.

    Attributes:
        activity, observer, drain: for the request path.

    Raises:
        ConfigError: settings contradict each other, or a file they name is invalid.
    """

    def __init__(
        self,
        plan: RunPlan,
        state: StateDir,
        store: StoreQueries,
        clock: Clock,
        *,
        own_hosts: Collection[str] = (),
        is_shared: Callable[[str], bool] = lambda user: False,
        notifier: Notifier | None = None,
    ) -> None:
        plan.check()
        self._plan = plan
        self._store = store
        self._state = state
        self._clock = clock
        self._notifier = notifier or Notifier()
        self.activity = Activity(clock.now)
        images = read_images(plan.until_pulled, own_hosts) if plan.until_pulled else ()
        # Without coverage a restart has nothing to continue.
        path = state.path / LEDGER if images else None
        declared = plan.nodes.names if plan.nodes else ()
        try:
            self._ledger = Ledger(path, clock, _is_listed(images, plan.nodes), declared)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; remove it") from None
        self._pulls = Pulls(clock.now, self._ledger.changed, self._ledger.interrupted())
        self.observer = Observer(
            self.activity,
            self._pulls,
            self._ledger,
            ManifestGraph(store.refs),
            clock,
            nodes=NodeNames(NodeIdentity(plan.node_identity), frozenset(declared), is_shared),
        )
        self.coverage: Coverage | None = None
        if plan.nodes is not None:
            self.coverage = Coverage(
                self._ledger.facts,
                self._pulls,
                images,
                plan.nodes,
                store.tag,
                self.observer.states,
                State(plan.accept),
            )
        self.drain = Drain(self.activity, self._pulls, self.observer.transfers, clock)
        self._child: Child | None = None
        self._programs: Path | None = None
        self._command_ended = Latch() if plan.command else None
        self._signals = Signals(self._forward_signal if plan.command else None)
        self._stop = Latch()
        self._failed = Latch()
        self._unprepared = Latch()
        self._status = StatusService(
            plan,
            self.observer,
            self.drain,
            self.coverage,
            clock,
            self._stop,
            state.path,
            functools.partial(has_image, store, own_hosts=frozenset(own_hosts)),
        )
        self._completion_log = self._status.completion_log()
        self._feed: Feed | None = None

    async def status(self) -> Message:
        """Return the state of the server and of its run."""
        return await self._status.status()

    def feed(self) -> Feed:
        """Return the state as the rollout page follows it."""
        if self._feed is None:
            # Imported once somebody looks.
            from mayfly.registry.page.feed import Feed

            page = self._status.page(self._store)
            self._feed = Feed(page.look, page.forget)
            if self.drain.active:
                self._feed.drain()
        return self._feed

    def stop(self, text: str) -> None:
        """End the server, as `mayfly stop` does."""
        self._stop.set(EndReason(EndKind.STOP, text))

    def reading(self, denied: Mapping[str, int]) -> Reading:
        """Return the server's own counts; see `StatusService.reading`."""
        return self._status.reading(denied)

    def on_corruption(self, found: Corruption) -> None:
        """Report corrupt content of a bundle, and end the server if the plan says so."""
        self._status.add_corruption(found)
        if self._plan.stop_on_corrupt:
            reason = f"content of {found['bundle']} is corrupt, and --on-corrupt is stop"
            detail = {"digest": found["digest"], "bundle": found["bundle"]}
            self._failed.set(EndReason(EndKind.FAILED, reason, Exit.STORAGE, detail))

    async def run(self, server: RunningServer) -> int:
        """Serve until a condition ends the server, then drain, close and report.

        Returns:
            The exit code; minus a signal's number if the command died by it (`child.exit_like`).

        Raises:
            LifetimeError: the command cannot be started.
            ConfigError: the state directory cannot be used, or a condition cannot work here.
        """
        end_condition = self._end_condition()
        self._signals.install()
        runtime = runtime_directory(os.environ)
        control = ControlServer(self._state.path, self._status.commands(), runtime)
        try:
            await _start(control)
            server.http.listeners.resume()
            for warning in self._plan.warnings():
                log.event(logging.WARNING, "settings", warning)
            await self._status.warn_at_start(is_mirror=bool(server.upstreams()))
            async with self._background(server), self._private_files(server) as private:
                with server.announced:
                    self._status.ready(
                        server.login.url,
                        server.denied,
                        server.ambiguous,
                        server.upstreams,
                        server.sources,
                    )
                    self._notifier.ready(self._status.status_line())
                    reason = await self._work(server, private, end_condition)
                outcome = await self._end(reason, server)
            self._status.complete(outcome)
            if outcome.covered and not outcome.exit_code:
                self._ledger.remove()
            return outcome.exit_code
        finally:
            await server.http.listeners.close()
            await server.http.close(0.0)
            await control.close()
            self._ledger.close()
            self._signals.remove()

    async def _end(self, reason: EndReason, server: RunningServer) -> Outcome:
        if self._completion_log is not None:
            await self._explore()
            self._completion_log.look()  # before the end, which they may have caused
        log.event(logging.INFO, "stopping", f"stopping: {reason.text}", reason=reason.kind)
        ends_command = self._is_command_running()
        grace = self._plan.drain_timeout * (2 if ends_command else 1)
        self._notifier.stopping(f"draining: {reason.text}", grace + _STOP_MARGIN_SECONDS)
        await self._end_command()
        self._status.ends(reason)
        self.drain.begin(refuse=reason.kind not in _IDLE_KINDS)
        if self._feed is not None:
            self._feed.drain()
        drained = await self.drain.finish(self._plan.drain_timeout, self._signals.second)
        await server.http.listeners.close()
        aborted = not drained.complete or drained.exit_code is not None
        await server.http.close(0.0 if aborted else _TAIL_SECONDS)
        await _run_loop()
        return await self._conclude(reason, drained, ends_command, server)

    async def _conclude(
        self, reason: EndReason, drained: Drained, ends_command: bool, server: RunningServer
    ) -> Outcome:
        if self._failed.holds():  # also if the failure came while draining for another reason
            reason = await self._failed.wait()
        storage_after = None
        if server.measure_storage is not None and drained.exit_code is None:
            measuring = asyncio.get_running_loop().run_in_executor(None, server.measure_storage)
            await asyncio.wait([measuring], timeout=_MEASURE_SECONDS)
            storage_after = measuring.result() if measuring.done() else None
        await self._explore()
        images = await self._status.images()
        # No await up to the report, so that log, exit code and report describe one moment.
        if self._completion_log is not None:
            self._completion_log.end()
        covered = self.coverage.complete() if self.coverage else None
        code = plans.exit_code(
            reason,
            drained,
            covered=covered,
            command=self._child.code if self._child else None,
            ended_command=ends_command,
        )
        outcome = Outcome(reason, drained, covered, code)
        report = self._status.report(outcome, storage_after, images)
        report["audit"], report["notified"] = await server.end_recording(
            reason.kind, outcome.shown_code
        )
        await self._status.publish(report)
        return outcome

    def _end_condition(self) -> Condition:
        triggers = Triggers(
            signal=self._signals.first,
            second=self._signals.second,
            stop=self._stop,
            failed=self._failed,
            unprepared=self._unprepared,
            command=self._command_ended,
            covered=self._covered(),
        )
        return plans.end_condition(self._plan, triggers, self.activity, self._clock)

    def _covered(self) -> Condition | None:
        if self.coverage is None:
            return None
        return Covered(self.coverage, self._ledger.changed, self._pulls, self._clock)

    @contextlib.asynccontextmanager
    async def _private_files(self, server: RunningServer) -> AsyncIterator[Path | None]:
        """Make the command's private directory, and remove it at the end; None without a command.

        A command that still runs at the end is killed.
        """
        if not self._plan.command:
            yield None
            return
        # Only a server with a command needs it.
        from mayfly.registry.process.own_command import own_command

        with (
            client_config(self._state.path, server.login) as private,
            removed_if_killed(private, *server.cleanup_paths),
            own_command(private / PROGRAMS) as self._programs,
        ):
            try:
                yield private
            finally:
                if self._child is not None:
                    self._child.send(signal.SIGKILL)
                    await self._child.end()

    async def _work(
        self, server: RunningServer, private: Path | None, end_condition: Condition
    ) -> EndReason:
        """Prefetch and start the command, and return the reason to end, which may come first."""
        if server.prefetch is None:
            await self._start_command(server, private)
            return await _wait_for_end(end_condition, server.http.listeners)
        preparing = asyncio.create_task(self._prepare(server, server.prefetch, private))
        ending = asyncio.create_task(_wait_for_end(end_condition, server.http.listeners))
        try:
            await first_done(preparing, ending)
            if preparing.done():
                preparing.result()
            return await ending
        finally:
            preparing.cancel()
            ending.cancel()
            await asyncio.gather(preparing, ending, return_exceptions=True)

    async def _prepare(
        self, server: RunningServer, prefetch: Prefetch, private: Path | None
    ) -> None:
        """Prefetch; then start the command, if nodes are as they have to be for it."""
        found = await run_prefetch(prefetch, self._signals.first, self._status, self._clock)
        lacking = found["nodes"] - found["proven"]
        if lacking and self._plan.prefetch_must_complete and not self._signals.first.holds():
            text = (
                f"{counted_of(lacking, found['nodes'], 'node')} did not prove every image, so "
                f"{self._plan.command[0]} was not started"
            )
            detail: dict[str, str | float] = {"nodes": lacking}
            self._unprepared.set(EndReason(EndKind.PREFETCH, text, Exit.INCOMPLETE, detail))
            return
        await self._start_command(server, private)

    async def _start_command(self, server: RunningServer, private: Path | None) -> None:
        if private is None or self._command_ended is None:
            return
        if self._signals.first.holds():
            text = "a signal came before the command was started"
            self._command_ended.set(EndReason(EndKind.COMMAND, text))
            return
        place = self._state.path
        variables = environment(os.environ, server.login, private, place, self._programs)
        self._child = await Child.start(self._plan.command, variables, self._command_ended)

    async def _end_command(self) -> None:
        """End the command if it still runs: SIGTERM, then SIGKILL after the drain timeout."""
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

    def _is_command_running(self) -> bool:
        return self._child is not None and self._child.code is None

    def _forward_signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            self._child.forward(number)

    @contextlib.asynccontextmanager
    async def _background(self, server: RunningServer) -> AsyncIterator[None]:
        """Run the tasks that accompany serving."""
        tasks = [
            asyncio.create_task(self._notifier.watch(self._clock)),
            asyncio.create_task(self._notify_status()),
        ]
        if server.measure_storage is not None:
            measuring = self._status.measure_before(server.measure_storage)
            tasks.append(asyncio.create_task(measuring))
        if self._command_ended is not None:
            tasks.append(asyncio.create_task(self._log_command_end(self._command_ended)))
        if self._completion_log is not None:
            following = self._completion_log.follow(self._ledger.changed, self._pulls, self._clock)
            tasks.append(asyncio.create_task(following))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _log_command_end(self, ended: Latch) -> None:
        """Log that the command has ended, and then the conditions that remain.

        A node that has just got its last image counts only once it is quiet, so an earlier line
        would name nodes that have everything.
        """
        reason = await ended.wait()
        level = logging.WARNING if reason.exit_code else logging.INFO
        log.event(level, "command_ended", reason.text, exit_code=reason.exit_code)
        if reason.exit_code or self._signals.first.holds():
            return
        end = self._clock.now() + _SETTLING_SECONDS
        while (settles := self._pulls.settles_in()) is not None and self._clock.now() < end:
            await self._clock.sleep(min(settles, end - self._clock.now()))
        if self.drain.active:
            return
        if self._completion_log is not None:
            await self._explore()
            self._completion_log.look()
        if waiting := self._status.waiting_for():
            log.event(logging.INFO, "waiting", f"waiting for {waiting}")

    async def _notify_status(self) -> None:
        while self._notifier.active and not self.drain.active:
            await first_done(self._ledger.changed.next())
            await self._explore()
            self._notifier.status(self._status.status_line())
            await self._clock.sleep(_STATUS_SECONDS)


def _is_listed(images: Sequence[ListedImage], nodes: Nodes | None) -> Callable[[str, str], bool]:
    """Return a test whether a node and a repository are listed; without names every node is."""
    repositories = {name for image in images for name in image.repositories()}
    names = frozenset(nodes.names) if nodes is not None else frozenset()
    return lambda node, repository: repository in repositories and (not names or node in names)


async def _wait_for_end(condition: Condition, listeners: Listeners) -> EndReason:
    """Wait for the reason to end; an idle end is revoked if a client comes meanwhile (`systemd`).

    After an idle end the listeners are paused.
    """
    while True:
        reason = await condition.wait()
        if reason.kind not in _IDLE_KINDS:
            return reason
        listeners.pause()
        await _run_loop()
        while condition.holds() and listeners.expect_request():  # noqa: ASYNC110 - time passes
            await asyncio.sleep(_REQUEST_CHECK_SECONDS)
        if condition.holds():
            return reason
        listeners.resume()


async def _run_loop() -> None:
    for _ in range(_LOOP_TURNS):
        await asyncio.sleep(0)


async def _start(control: ControlServer) -> None:
    try:
        await control.start()
    except OSError as error:
        raise ConfigError(f"the control socket cannot be made: {error.strerror}") from None
