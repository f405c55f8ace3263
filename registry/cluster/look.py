"""Look at a cluster by kubectl, and at its nodes over ssh or in pods."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from mayfly.registry.cluster.facts import FactsOutput, NodeFacts
from mayfly.registry.cluster.holders import (
    NAMESPACE,
    are_settled,
    gone_or_going,
    held_by,
    holders,
    is_holder,
    namespace_of_holders,
)
from mayfly.registry.cluster.kubelet import endpoint_of, policy_of
from mayfly.registry.cluster.placement import ClusterNode, Placement, cluster_node, nodes_named
from mayfly.registry.cluster.safety import Gap, Judge, NodeView, Proofs, Safety, Unseen
from mayfly.registry.cluster.workloads import KINDS, ImageUse, accounts_of, uses_of
from mayfly.registry.errors import LifetimeError
from mayfly.registry.nodes.carrier import Carrier, Session
from mayfly.registry.nodes.causes import Cause
from mayfly.registry.nodes.kubectl import Kubectl, is_name, read_object
from mayfly.registry.nodes.object_fields import objects, text
from mayfly.registry.nodes.pod_objects import manifest, problem_of, read_node
from mayfly.registry.nodes.pods import Pods
from mayfly.registry.nodes.prefetch import Failure, failure_text, without_answer
from mayfly.registry.nodes.script import quote
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.text import join_names
from mayfly.registry.threads import in_thread

T = TypeVar("T")

NODE_SECONDS = 120.0
"""For a look at one node."""

_NODES = 5
"""With the same address, in a message."""

_LOOKS = 3
"""At a cluster whose pods change meanwhile."""

_REQUESTS = 8
"""Number of kubectl processes at a time."""

_MOST_CONFIGURATION = 1024 * 1024
"""Bytes of the answer of a node's kubelet."""

_NAMES = 200
"""The most Secrets that one request names."""

_LIST_SECONDS = 180.0
"""For a list of all pods of a large cluster."""

_HOLD_SECONDS = 300.0
"""To make holders, and for them to start."""

_POLL_SECONDS = 2.0

_OTHER_MACHINE = "the machine that was reached is not the cluster's node"

_SIGNS: Sequence[tuple[Gap, tuple[str, ...]]] = (
    (Gap.FORBIDDEN, ("(forbidden)", "(unauthorized)", "must be logged in")),
    (
        Gap.NO_CLUSTER,
        (
            *("unable to connect", "was refused", "no such host", "timeout", "no answer in"),
            *("no configuration has been provided", "error loading config", "no such file"),
            *("does not exist", "no route to host", "network is unreachable", "x509", ": eof"),
        ),
    ),
)
"""Gap → a part of kubectl's message then, in lower case; kubectl has one exit code for all."""


@dataclass(frozen=True, slots=True)
class Sources:
    """How cluster, nodes and registry are reached.

    Attributes:
        kubectl: None where the nodes are in no cluster.
        carrier: None to look at no node.
        script: for nodes, of `reading_script`.
        concurrency: nodes at a time.
        serves: returns those of some image names, written as in pods, that the registry has;
            blocking.
        note: called with a text for people about objects that could not be removed from the
            cluster.
        hold: whether images that are not pinned are held by pods.
    """

    kubectl: Kubectl | None
    carrier: Carrier | None
    script: str
    concurrency: int
    serves: Callable[[Collection[str]], Collection[str]]
    note: Callable[[str], None]
    hold: bool = False

    @property
    def by_cluster_name(self) -> bool:
        """Whether nodes are reached by the cluster's names, rather than by those of the list."""
        return isinstance(self.carrier, Pods)


async def look(
    sources: Sources, proofs: Proofs, images: Collection[str], registry: str
) -> tuple[Safety, int]:
    """Judge whether the registry may end; if this is cancelled, every program is ended.

    Args:
        sources: to cluster and nodes.
        proofs: those that the registry has.
        images: of the upgrade, by their full names.
        registry: HOST:PORT of this registry.

    Returns:
        The judgement, and the number of uses of images in pods and templates that were judged.
    """
    seen = _Seen(sources, frozenset(images), registry)
    async with contextlib.AsyncExitStack() as stack:
        session = None
        if sources.carrier is not None:
            entering = stack.enter_async_context(sources.carrier.session(sources.note))
            session = await seen.attempt(entering)
        begun = tuple(seen.unseen)
        for _ in range(_LOOKS):
            seen.unseen = [*begun]
            uses = await seen.read_cluster()
            views = await seen.nodes(session, proofs, uses)
            # Pods and nodes that came meanwhile were not looked at.
            before, uses = seen.names(uses), await seen.read_cluster()
            if seen.names(uses) <= before:
                break
        else:
            seen.unseen.append(Unseen(Gap.CHANGING))
    views = seen.with_held(views)
    judge = Judge(frozenset(images), views, seen.short_names)
    if sources.hold and any(judge.unpinned(uses)):
        await seen.attempt(seen.hold(judge.unpinned(uses)))
        views = seen.with_held(views)
        judge = Judge(frozenset(images), views, seen.short_names)
    secrets = await seen.secrets(set(judge.needed_secrets(uses)))
    safety = judge.judge(uses, proofs, lambda namespace, name: secrets.get((namespace, name)))
    unseen = (*dict.fromkeys((*seen.unseen, *safety.unseen)),)
    held = tuple((view.name, tuple(sorted(view.held))) for view in views if view.held)
    return Safety(safety.findings, unseen, safety.allowlists, held), len(uses)


@dataclass(slots=True)
class _Seen:
    """Collects the facts that were seen, and the gaps."""

    sources: Sources
    images: frozenset[str]
    registry: str
    cluster: list[ClusterNode] | None = None
    machines: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    short_names: list[Placement] = field(default_factory=list)
    holders: list[dict[str, Any]] = field(default_factory=list)
    unseen: list[Unseen] = field(default_factory=list)

    async def read_cluster(self) -> list[ImageUse]:
        """Read the cluster's nodes and return the uses of images that this registry has."""
        kubectl = self.sources.kubectl
        if kubectl is None:
            return []

        def listed(*words: str) -> Awaitable[list[dict[str, Any]] | None]:
            return self.attempt(kubectl.list("get", *words, seconds=_LIST_SECONDS))

        nodes, workloads, accounts = await asyncio.gather(
            listed("nodes"),
            listed(",".join(KINDS), "--all-namespaces"),
            listed("serviceaccounts", "--all-namespaces"),
        )
        self.cluster = None if nodes is None else [cluster_node(one) for one in nodes]
        if nodes is not None:
            self.machines = {text(one, "metadata", "name"): one for one in nodes}
        self.holders = [one for one in workloads or () if is_holder(one)]
        others = (one for one in workloads or () if not is_holder(one))
        uses = [*uses_of(others, accounts_of(accounts or ()))]
        self.short_names = [use.placement for use in uses if use.is_short]
        asked = {use.written for use in uses if not self._is_known(use)}
        served = frozenset(await in_thread(self.sources.serves, asked) if asked else ())
        return [use for use in uses if self._is_known(use) or use.written in served]

    def names(self, uses: Iterable[ImageUse]) -> set[object]:
        """List the things that must not change during a look: nodes, likenesses of uses."""
        return {one.name for one in self.cluster or ()} | {use.likeness() for use in uses}

    def _is_known(self, use: ImageUse) -> bool:
        return use.reference.host == self.registry or str(use.reference) in self.images

    async def attempt(self, asking: Awaitable[T]) -> T | None:
        """Await an answer of the cluster; note a gap and return None if there is none."""
        try:
            return await asking
        except ConfigError as error:
            unseen = Unseen(Gap.NO_KUBECTL, None, str(error))
        except LifetimeError as error:
            unseen = Unseen(_gap(error.message), None, error.message)
        if unseen not in self.unseen:
            self.unseen.append(unseen)
        return None

    async def nodes(
        self, session: Session | None, proofs: Proofs, uses: Sequence[ImageUse]
    ) -> list[NodeView]:
        """Return the nodes of the upgrade, and those that images of it may come to."""
        cluster = self.cluster or []
        listed: dict[str, ClusterNode | None] = {}
        for name in proofs.lacking:
            found = nodes_named(name, cluster)
            listed[name] = found[0] if len(found) == 1 else None
            if self.cluster is not None and len(found) != 1:
                detail = join_names([one.name for one in found], _NODES)
                self.unseen.append(Unseen(Gap.UNKNOWN_NODE, name, detail))
        found_names = {one.name for one in listed.values() if one is not None}
        others = [
            one
            for one in cluster
            if one.name not in found_names and any(use.placement.fits(one) for use in uses)
        ]
        wanted: list[tuple[str, ClusterNode | None]] = [
            *listed.items(),
            *((one.name, one) for one in others),
        ]
        configurations = await self._configurations([one for _, one in wanted if one is not None])
        facts = await self._facts(session, wanted, configurations)
        return [
            NodeView(
                name=name if one is None else one.name,
                cluster=one,
                is_listed=name in listed,
                lacking=frozenset(proofs.lacking.get(name, ())),
                is_pinned=name not in proofs.unpinned,
                facts=facts.get(name),
                policy=policy_of(one.version, configurations[one.name]) if one else None,
            )
            for name, one in wanted
        ]

    def with_held(self, views: Iterable[NodeView]) -> list[NodeView]:
        """Return nodes with the images that holders keep on them."""
        views = [*views]
        images = {view.name: view.images for view in views if view.cluster and view.images}
        held = held_by(self.holders, images)
        return [replace(view, held=held.get(view.name, frozenset())) for view in views]

    async def hold(self, unpinned: Iterable[tuple[NodeView, tuple[str, ...]]]) -> None:
        """Make holders of images, and wait until they run or fail.

        Raises:
            LifetimeError: the cluster refuses.
        """
        kubectl = self.sources.kubectl
        assert kubectl is not None
        made: list[dict[str, Any]] = []
        for view, images in unpinned:
            if view.cluster is None or view.images is None:
                continue  # whether it holds an image could not be told
            machine = self.machines.get(view.name)
            if machine is None:  # it has left since it was looked at
                self._miss(view.name, Failure(Cause.NO_NODE, ()))
                continue
            facts = read_node(machine)
            if (problem := problem_of(facts)) is not None:
                assert problem.cause is not None
                self._miss(view.name, Failure(problem.cause, (), problem.detail))
            else:
                made += holders(view.name, facts, {one: view.images[one].id for one in images})
        if not made:
            return
        if ended := gone_or_going(self.holders, made):
            words = ("delete", "pods", f"--namespace={NAMESPACE}", "--ignore-not-found")
            await kubectl.ask(*words, *ended, seconds=_HOLD_SECONDS)
        content = manifest([*namespace_of_holders(), *made])
        await kubectl.ask("apply", "-f", "-", content=content, seconds=_HOLD_SECONDS)
        end = time.monotonic() + _HOLD_SECONDS
        while True:
            self.holders = await kubectl.list("get", "pods", f"--namespace={NAMESPACE}")
            if are_settled(self.holders) or time.monotonic() > end:
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _configurations(self, nodes: Sequence[ClusterNode]) -> dict[str, Any]:
        """Return the answer of each node's kubelet for its configuration by the node's name.

        None where there is no answer, which is a gap only if a judgement needs it.
        """
        kubectl, places = self.sources.kubectl, asyncio.Semaphore(_REQUESTS)

        async def ask(node: ClusterNode) -> object:
            assert kubectl is not None
            if not is_name(node.name):
                return None
            words = ("get", "--raw", f"/api/v1/nodes/{node.name}/proxy/configz")
            async with places:
                try:
                    return read_object(await kubectl.ask(*words, most=_MOST_CONFIGURATION), words)
                except LifetimeError:
                    return None

        found = await asyncio.gather(*map(ask, nodes))
        return {node.name: answer for node, answer in zip(nodes, found, strict=True)}

    async def secrets(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Any]:
        """Return Secrets by namespace and name; those that could not be read are left out.

        Kubernetes takes any text as a name in imagePullSecrets. One that no Secret can have is
        answered as that of a missing Secret, and never given to kubectl.
        """
        kubectl, places = self.sources.kubectl, asyncio.Semaphore(_REQUESTS)
        names: dict[str, list[str]] = {}
        for namespace, name in sorted(wanted):
            if is_name(name):
                names.setdefault(namespace, []).append(name)
        parts = [
            (namespace, some[begin : begin + _NAMES])
            for namespace, some in names.items()
            for begin in range(0, len(some), _NAMES)
        ]

        async def ask(namespace: str, some: Sequence[str]) -> dict[tuple[str, str], Any]:
            assert kubectl is not None
            words = ("get", "secrets", f"--namespace={namespace}", "--ignore-not-found")
            async with places:
                try:
                    answer = await kubectl.read(*words, *some, seconds=_LIST_SECONDS)
                except LifetimeError:
                    return {}
            # One Secret comes without a list.
            items = objects(answer, "items") or ([answer] if answer else [])
            missing: dict[tuple[str, str], Any] = {(namespace, n): {} for n in some}
            found = {(namespace, text(one, "metadata", "name")): one for one in items}
            return missing | found

        answers = await asyncio.gather(*(ask(*part) for part in parts))
        found = {key: value for answer in answers for key, value in answer.items()}
        return {key: {} for key in wanted if not is_name(key[1])} | found

    async def _facts(
        self,
        session: Session | None,
        wanted: Iterable[tuple[str, ClusterNode | None]],
        configurations: Mapping[str, Any],
    ) -> dict[str, NodeFacts]:
        """Return the facts of nodes, by their names in the list."""
        if session is None:
            return {}
        places = asyncio.Semaphore(self.sources.concurrency)

        async def read(name: str, one: ClusterNode | None) -> tuple[str, NodeFacts | None]:
            target = name
            if self.sources.by_cluster_name:
                if one is None:
                    return name, None
                target = one.name
            endpoint = endpoint_of(configurations[one.name]) if one is not None else ""
            script = f"kubelet_endpoint={quote(endpoint)}\n{self.sources.script}"
            async with places:
                facts = await self._read(session, name, target, script)
            return name, facts if facts is None else self._of_node(name, one, facts)

        found = await asyncio.gather(*(read(*one) for one in wanted))
        return {name: facts for name, facts in found if facts is not None}

    def _of_node(self, name: str, one: ClusterNode | None, facts: NodeFacts) -> NodeFacts | None:
        """Compare facts with the cluster; return those that count for a node, None for none."""
        if self.sources.kubectl is None and facts.has_kubelet is not False:
            self.unseen.append(Unseen(Gap.KUBELET, name))
        if one is None:
            return facts
        if one.boot and facts.boot != one.boot:
            detail = f"{_OTHER_MACHINE} {one.name}: {facts.boot} is not its boot ID"
            self.unseen.append(Unseen(Gap.NODE, name, detail))
            return None
        # Images of another runtime, even one of the same kind, do not count.
        if not facts.is_of_kubelet or facts.runtime != one.runtime.partition("://")[0]:
            facts.images = None
        return facts

    async def _read(
        self, session: Session, name: str, target: str, script: str
    ) -> NodeFacts | None:
        output = FactsOutput()
        facts = output.facts
        try:
            assert self.sources.carrier is not None
            self.sources.carrier.check([target])
            end = await session.run(target, script, output, NODE_SECONDS)
        except ConfigError as error:
            self.unseen.append(Unseen(Gap.NODE, name, str(error)))
            return None
        if facts.complete and facts.is_root and end.code == 0:
            return facts
        failure = Failure(Cause.NOT_ROOT, ())
        if not facts.complete or end.code != 0:
            failure = without_answer((), end, output)
        self._miss(name, failure)
        return None

    def _miss(self, node: str, failure: Failure) -> None:
        """Note that a node was not seen."""
        self.unseen.append(Unseen(Gap.NODE, node, failure_text(failure, 0)))


def _gap(message: str) -> Gap:
    lower = message.lower()
    found = (gap for gap, signs in _SIGNS if any(sign in lower for sign in signs))
    return next(found, Gap.FAILED)
