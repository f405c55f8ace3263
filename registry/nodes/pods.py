"""Run scripts of nodes in pods of their cluster, made by the system's kubectl.

    Secret, pod ──► waiting ──► running ──► ended        pod and Secret removed
                       │           │
                       │           └── its log is followed, and again where that is cut
                       └── too long, or never: the last warning about it says why

Everything lies in one namespace, which is removed at the end however that comes, so that one
command removes objects that are left. One poll asks for all pods at work and their nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mayfly.registry.errors import LifetimeError
from mayfly.registry.exit_codes import Exit
from mayfly.registry.nodes.carrier import ScriptEnd
from mayfly.registry.nodes.causes import TEXTS, Cause, cause_of_pod
from mayfly.registry.nodes.kubectl import Kubectl, is_name
from mayfly.registry.nodes.node_output import NodeOutput
from mayfly.registry.nodes.pod_objects import (
    CONTAINER,
    GRACE_SECONDS,
    LABELS,
    MAX_SCRIPT,
    NAME_LABEL,
    MadeObject,
    PodNode,
    PodPlace,
    bound_node,
    items,
    last_warning,
    manifest,
    namespace_objects,
    problem_of,
    read_node,
    read_pod,
    script_objects,
)
from mayfly.registry.nodes.programs import TIMED_OUT, TOO_MUCH, find_program, run_program
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.text import join_names

_NAMESPACE = "mayfly-prefetch-"
_NAMESPACES = re.compile(rf"{_NAMESPACE}[0-9a-f]{{8}}")

_NODES_SHOWN = 8

_POLL_SECONDS = 2.0
_POLL_SECONDS_PER_POD = 0.1
_LOOK_SECONDS = 15.0
"""Between two looks for warnings about a pod that does not start."""

_START_SECONDS = 180.0
"""For kubelet to start a pod."""

_SILENT_SECONDS = 180.0
"""After which an API server that does not answer is given up."""

_LOG_SECONDS = 10.0
"""For the end of a log after the end of its pod."""

_ERROR = 300
_REMOVE_SECONDS = GRACE_SECONDS + 30.0
_IMAGES_TRIED = 3


class Pods(NamedTuple):
    """A cluster whose nodes run scripts in pods.

    Attributes:
        kubectl: by which it is asked.
        image: that every node has; None for one of those that the cluster knows the node to have.
    """

    kubectl: Kubectl = Kubectl()
    image: str | None = None

    def check(self, nodes: Iterable[str]) -> None:
        """See that kubectl is installed, and that each name can be one of a cluster's node.

        Raises:
            ConfigError: it is not, or one cannot.
        """
        for node in nodes:
            if not is_name(node):
                raise ConfigError(
                    f"--nodes: {node[:100]!r} is not the name of a node of a cluster; give the "
                    "names that kubectl get nodes shows"
                )
        find_program("kubectl")

    @contextlib.asynccontextmanager
    async def session(self, note: Callable[[str], None]) -> AsyncIterator[PodSession]:
        """Make the namespace, and remove it with all that is in it.

        Args:
            note: called with a text for people about objects that could not be removed.

        Raises:
            LifetimeError: the cluster refuses it, or does not answer.
        """
        session = PodSession(self, note)
        try:
            await session.open()
            yield session
        finally:
            await session.close()

    async def objects(
        self, nodes: Iterable[str], script: Callable[[str], str], seconds: float
    ) -> list[MadeObject]:
        """Return the objects that would run the scripts, and make none.

        Raises:
            LifetimeError: the cluster does not tell of a node, or the node cannot run its script;
                exit code 3.
        """
        namespace = _new_namespace()
        found = namespace_objects(namespace)
        for number, node in enumerate(nodes, 1):
            facts = await self.facts(node)
            if isinstance(facts, ScriptEnd):
                assert facts.cause is not None
                texts = [TEXTS[facts.cause][0], facts.detail]
                raise LifetimeError(f"{node}: {': '.join(filter(None, texts))}", Exit.INCOMPLETE)
            place = PodPlace(namespace, f"script-{number}", node, facts.images[0])
            found += script_objects(place, facts, _checked_size(node, script(node)), seconds)
        return found

    async def facts(self, node: str) -> PodNode | ScriptEnd:
        """Return the cluster's facts of a node, or the reason that it can run no script."""
        if not is_name(node):
            return ScriptEnd(0, Cause.NO_NODE)
        try:
            found = await self.kubectl.read("get", "node", node, "--ignore-not-found")
        except LifetimeError as error:
            return ScriptEnd(0, Cause.CLUSTER, error.message)
        if not found:
            return ScriptEnd(0, Cause.NO_NODE)
        facts = read_node(found)
        if (problem := problem_of(facts)) is not None:
            return problem
        if self.image is not None:
            return facts._replace(images=(self.image,))
        if not facts.images:
            return ScriptEnd(0, Cause.NO_IMAGE, "the cluster knows of none")
        return facts


def _new_namespace() -> str:
    return f"{_NAMESPACE}{secrets.token_hex(4)}"


def _checked_size(node: str, script: str) -> str:
    """Return a script.

    Raises:
        LifetimeError: it is too large for a Secret.
    """
    if len(script.encode()) > MAX_SCRIPT:
        raise LifetimeError(
            f"{node}: its script is larger than the {MAX_SCRIPT} bytes that a Secret holds; give "
            "fewer images with --images, or use --via ssh",
            Exit.INCOMPLETE,
        )
    return script


@dataclass
class _Watch:
    """A pod at work.

    Attributes:
        started: set once its container runs, or it ended.
        ended: how it ended.
    """

    node: str
    started: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Future[ScriptEnd] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def end(self, found: ScriptEnd) -> None:
        """Note how it ended."""
        if not self.ended.done():
            self.ended.set_result(found)
        self.started.set()


class PodSession:
    """One namespace, its pods, and the poll that asks for them.

    Args:
        pods: the cluster.
        note: see `Pods.session`.

    Attributes:
        namespace: its name.
    """

    def __init__(self, pods: Pods, note: Callable[[str], None]) -> None:
        self._pods = pods
        self._kubectl = pods.kubectl
        self._note = note
        self.namespace = _new_namespace()
        self._numbers = itertools.count(1)
        self._watches: dict[str, _Watch] = {}
        self._is_watching = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make the namespace.

        Raises:
            LifetimeError: the cluster refuses it, or does not answer.
        """
        await self._create(namespace_objects(self.namespace))
        self._polling = asyncio.create_task(self._poll())
        await self._tell_of_others()

    async def _tell_of_others(self) -> None:
        """Note the namespaces of other prefetches: of one that was killed, nobody removes it."""
        try:
            selector = f"--selector={NAME_LABEL}={LABELS[NAME_LABEL]}"
            found = await self._kubectl.read("get", "namespaces", selector)
        except LifetimeError:
            return  # not allowed to
        # Anybody's namespace may have this label, and those that are named are to be removed.
        names = filter(_NAMESPACES.fullmatch, (name for _, name, _ in items(found)))
        others = [name for name in names if name != self.namespace]
        if others:
            self._note(
                f"of other prefetches, under way or killed: {join_names(others, _NODES_SHOWN)}. "
                "The scripts of one that was killed may still run. Only if no other mayfly "
                "prefetch or mayfly wait runs, remove the rest with: "
                f"{shlex.join(self._kubectl.words('delete', 'namespace', *others))}"
            )

    async def close(self) -> None:
        """Remove the namespace and its objects; a note names objects that are left."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        try:
            await self._remove_all()
        except LifetimeError as error:
            self._note(
                f"{error.message}; namespace {self.namespace} may still be in the cluster, with "
                "scripts that run and credentials of nodes. Remove it with: "
                f"{shlex.join(self._kubectl.words('delete', 'namespace', self.namespace))}"
            )

    async def run(self, node: str, script: str, output: NodeOutput, seconds: float) -> ScriptEnd:
        """Run a script on a node; see `carrier.Session`."""
        facts = await self._pods.facts(node)
        if isinstance(facts, ScriptEnd):
            return facts
        end = ScriptEnd(0, Cause.NO_IMAGE)
        for image in facts.images[:_IMAGES_TRIED]:
            name = f"script-{next(self._numbers)}"
            place = PodPlace(self.namespace, name, node, image)
            try:
                await self._create(
                    script_objects(place, facts, _checked_size(node, script), seconds)
                )
                end = await self._follow(place, output, seconds)
            except LifetimeError as error:
                end = ScriptEnd(0, Cause.CLUSTER, error.message)
            await self._remove(name, is_there=end.cause not in (Cause.LOST, Cause.CLUSTER))
            if end.cause is not Cause.NO_IMAGE:
                break
        return end

    async def _create(self, objects: list[MadeObject]) -> None:
        await self._kubectl.ask("create", "-f", "-", content=manifest(objects))

    async def _follow(self, place: PodPlace, output: NodeOutput, seconds: float) -> ScriptEnd:
        """Follow a pod to its end."""
        name = place.name
        watch = self._watches[name] = _Watch(place.node)
        self._is_watching.set()
        try:
            async with asyncio.timeout(seconds):
                if (end := await self._start(name, watch)) is None:
                    end = await self._follow_log(name, watch, output)
                return end
        except TimeoutError:
            return ScriptEnd(TIMED_OUT)
        finally:
            del self._watches[name]
            if not self._watches:
                self._is_watching.clear()

    async def _start(self, name: str, watch: _Watch) -> ScriptEnd | None:
        """Wait until a pod is started, or ended; why it is not, if it takes too long."""
        end = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await watch.started.wait()
                    return None
            warning = await self._last_warning(name)
            if (cause := cause_of_pod(warning)) is Cause.NO_SHELL or time.monotonic() > end:
                return ScriptEnd(0, cause, warning or "it was not started in time")

    async def _follow_log(self, name: str, watch: _Watch, output: NodeOutput) -> ScriptEnd:
        is_complete, error = False, ""
        while not watch.ended.done():
            reading = asyncio.create_task(self._read_log(name, output, "--follow"))
            try:
                waiting: set[asyncio.Future[Any]] = {reading, watch.ended}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait({reading}, timeout=_LOG_SECONDS)
                if reading.done():
                    code, error = reading.result()
                    if code == TOO_MUCH:
                        return ScriptEnd(TOO_MUCH)
                    is_complete = code == 0
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            # The log may end some seconds before the cluster knows of the end.
            await asyncio.wait({watch.ended}, timeout=_LOG_SECONDS)
        end = watch.ended.result()
        if not is_complete and end.cause is not Cause.LOST:
            code, error = await self._read_log(name, output)
            if code == TOO_MUCH:
                return ScriptEnd(TOO_MUCH)
            is_complete = code == 0
        if output.answer is None and end.cause is None and not is_complete:
            return ScriptEnd(end.code, Cause.CLUSTER, f"kubectl logs: {error or 'no answer'}")
        return end

    async def _read_log(self, name: str, output: NodeOutput, *options: str) -> tuple[int, str]:
        """Read the log of a pod; kubectl's exit code, and the last line of its standard error.

        Both streams of the script are in it. Lines of its standard output are JSON.
        """
        error = ""

        def take(line: bytes) -> None:
            (output.stdout if line.startswith(b"{") else output.stderr)(line)

        def keep(line: bytes) -> None:
            nonlocal error
            error = line.decode(errors="replace").strip()[:_ERROR] or error

        code = await run_program(
            self._kubectl.words("logs", name, "-c", CONTAINER, "-n", self.namespace, *options),
            b"",
            on_stdout=take,
            on_stderr=keep,
            most=output.most,
            total=output.total,
            seconds=_SILENT_SECONDS if not options else float("inf"),
        )
        return code, error

    async def _last_warning(self, name: str) -> str:
        selector = f"--field-selector=involvedObject.name={name}"
        try:
            return last_warning(
                await self._kubectl.read("get", "events", "-n", self.namespace, selector)
            )
        except LifetimeError as error:
            return error.message

    async def _poll(self) -> None:
        """Ask for the pods at work and their nodes, again and again."""
        answered = time.monotonic()
        while True:
            if not self._is_watching.is_set():
                await self._is_watching.wait()
                answered = time.monotonic()
            asked = dict(self._watches)
            targets = {f"pod/{name}": None for name in asked}
            targets |= {f"node/{watch.node}": None for watch in asked.values()}
            words = ("get", "--ignore-not-found", "-n", self.namespace, *targets)
            try:
                self._take(asked, await self._kubectl.read(*words))
                answered = time.monotonic()
            except LifetimeError as error:
                if time.monotonic() - answered > _SILENT_SECONDS:
                    for watch in asked.values():
                        watch.end(ScriptEnd(0, Cause.CLUSTER, error.message))
            await asyncio.sleep(_POLL_SECONDS + _POLL_SECONDS_PER_POD * len(asked))

    def _take(self, asked: dict[str, _Watch], document: object) -> None:
        found = {(kind, name): one for kind, name, one in items(document)}
        for name, watch in asked.items():
            pod, node = found.get(("Pod", name)), found.get(("Node", watch.node))
            if node is None:
                watch.end(ScriptEnd(0, Cause.LOST, "the cluster has no such node any more"))
                continue
            if pod is None:
                watch.end(ScriptEnd(0, Cause.LOST, "its pod was removed by somebody"))
                continue
            state = read_pod(pod)
            if state.end is not None:
                watch.end(state.end)
            elif not (facts := read_node(node)).ready:
                watch.end(ScriptEnd(0, Cause.LOST, facts.problem))
            elif state.running:
                watch.started.set()

    async def _remove(self, name: str, *, is_there: bool) -> None:
        """Remove a pod and its Secret; the rest is removed at the end.

        Args:
            name: of both.
            is_there: whether their node and the cluster answer, so that it is worth to wait.
        """
        targets = (f"secret/{name}", f"pod/{name}")
        words = ("delete", *targets, "-n", self.namespace, "--ignore-not-found")
        with contextlib.suppress(LifetimeError):
            await self._kubectl.ask(
                *words, f"--wait={str(is_there).lower()}", seconds=_REMOVE_SECONDS
            )

    async def _remove_all(self) -> None:
        """Remove the namespace, its Secrets and pods first.

        Raises:
            LifetimeError: the cluster refuses, or does not answer.
        """
        ask, inside = self._kubectl.ask, ("-n", self.namespace, "--ignore-not-found")
        await ask("delete", "secrets", "--all", *inside)
        try:
            await ask("delete", "pods", "--all", *inside, seconds=_REMOVE_SECONDS)
        except LifetimeError:
            left = await self._kubectl.read("get", "pods", "-n", self.namespace)
            nodes = list(filter(None, (bound_node(one) for _, _, one in items(left))))
            await ask("delete", "pods", "--all", *inside, "--force", "--grace-period=0")
            if nodes:
                self._note(
                    f"{join_names(nodes, _NODES_SHOWN)}: does not answer, so the script may still "
                    "run there; kubelet ends it when the node is back"
                )
        await ask(
            *("delete", "namespace", self.namespace, "--ignore-not-found"), seconds=_REMOVE_SECONDS
        )
