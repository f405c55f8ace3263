"""Look at a cluster by kubectl, and at its nodes over ssh; nothing is changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mayfly.registry.cluster.facts import MAX_LINE, NodeFacts
from mayfly.registry.cluster.fields import Object, objects, text
from mayfly.registry.cluster.kubelet import policy_of
from mayfly.registry.cluster.placement import ClusterNode, node_of
from mayfly.registry.cluster.safety import Gap, Judge, NodeView, Proofs, Safety, Unseen
from mayfly.registry.cluster.workloads import KINDS, ImageUse, accounts_of, uses_of
from mayfly.registry.errors import LifetimeError
from mayfly.registry.exit_codes import Exit
from mayfly.registry.nodes.carrier import ScriptEnd
from mayfly.registry.nodes.causes import TEXTS, Cause
from mayfly.registry.nodes.kubectl import Kubectl
from mayfly.registry.nodes.node_output import NodeOutput
from mayfly.registry.nodes.prefetch import Failure, without_answer
from mayfly.registry.nodes.programs import run_program
from mayfly.registry.nodes.ssh import SSH
from mayfly.registry.settings.errors import ConfigError

T = TypeVar("T")

NODE_SECONDS = 120.0
"""For a look at one node."""

_MAX_OUTPUT = 4 * MAX_LINE
"""Bytes that a node may send."""

_REQUESTS = 8
"""Of kubectl at a time."""

_LIST_SECONDS = 180.0
"""For a list of all pods of a large cluster."""

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
"""Gap → what kubectl's message then has, in lower case; kubectl has one exit code for all."""


@dataclass(frozen=True, slots=True)
class Access:
    """How cluster and nodes are reached.

    Attributes:
        kubectl: None where the nodes are in no cluster.
        ssh: None to look at no node.
        script: for nodes, of `reading_script`.
        concurrency: nodes at a time.
    """

    kubectl: Kubectl | None
    ssh: SSH | None
    script: str
    concurrency: int


async def look(
    access: Access, proofs: Proofs, images: Collection[str], registry: str
) -> tuple[Safety, int]:
    """Judge whether the registry may end; if this is cancelled, every program is ended.

    Args:
        access: to cluster and nodes.
        proofs: what the registry knows.
        images: of the upgrade, by their full names.
        registry: HOST:PORT of this registry.

    Returns:
        The judgement, and the number of uses of images in pods and templates that were judged.
    """
    seen = _Seen(access)
    await seen.read_cluster()
    judge = Judge(frozenset(images), registry, ())
    uses = [use for use in seen.uses if judge.concerns(use)]
    views = await seen.nodes(proofs, uses)
    judge = Judge(frozenset(images), registry, views)
    secrets = await seen.secrets(set(judge.needed_secrets(uses)))
    safety = judge.judge(uses, proofs, lambda namespace, name: secrets.get((namespace, name)))
    unseen = (*dict.fromkeys((*seen.unseen, *safety.unseen)),)
    return Safety(safety.findings, unseen, safety.allowlists), len(uses)


@dataclass(slots=True)
class _Seen:
    """Collects what was seen, and what was not."""

    access: Access
    cluster: list[ClusterNode] = field(default_factory=list)
    uses: list[ImageUse] = field(default_factory=list)
    unseen: list[Unseen] = field(default_factory=list)

    async def read_cluster(self) -> None:
        kubectl = self.access.kubectl
        if kubectl is None:
            return
        nodes, workloads, accounts = await asyncio.gather(
            self._seen(_items(kubectl, "nodes")),
            self._seen(_items(kubectl, ",".join(KINDS), "--all-namespaces")),
            self._seen(_items(kubectl, "serviceaccounts", "--all-namespaces")),
        )
        self.cluster = [node_of(one) for one in nodes or ()]
        self.uses = [*uses_of(workloads or (), accounts_of(accounts or ()))]

    async def _seen(self, asking: Awaitable[T]) -> T | None:
        try:
            return await asking
        except ConfigError as error:
            unseen = Unseen(Gap.NO_KUBECTL, None, str(error))
        except LifetimeError as error:
            unseen = Unseen(_gap(error.message), None, error.message)
        if unseen not in self.unseen:
            self.unseen.append(unseen)
        return None

    async def nodes(self, proofs: Proofs, uses: Sequence[ImageUse]) -> list[NodeView]:
        """Return the nodes of the upgrade, and those that images of it may come to."""
        of_cluster = {name: one for one in self.cluster for name in (*one.addresses, one.name)}
        listed = {name: of_cluster.get(name) for name in proofs.lacking}
        by_name = {one.name: name for name, one in listed.items() if one is not None}
        if self.cluster:
            for name, one in listed.items():
                if one is None:
                    self.unseen.append(Unseen(Gap.UNKNOWN_NODE, name))
        others = [
            one
            for one in self.cluster
            if one.name not in by_name and any(use.placement.fits(one) for use in uses)
        ]
        wanted: list[tuple[str, ClusterNode | None]] = [
            *listed.items(),
            *((one.name, one) for one in others),
        ]
        facts = await self._facts([name for name, _ in wanted])
        asked = [one.name for _, one in wanted if one is not None]
        configured = dict(zip(asked, await self._configurations(asked), strict=True))
        return [
            NodeView(
                name=name if one is None else one.name,
                cluster=one,
                is_listed=name in listed,
                lacking=frozenset(proofs.lacking.get(name, ())),
                is_pinned=name not in proofs.unpinned,
                facts=facts.get(name),
                policy=None if one is None else policy_of(one.version, configured[one.name]),
            )
            for name, one in wanted
        ]

    async def _configurations(self, nodes: Sequence[str]) -> list[Object | None]:
        kubectl, places = self.access.kubectl, asyncio.Semaphore(_REQUESTS)
        assert kubectl is not None or not nodes

        async def ask(node: str) -> Object | None:
            assert kubectl is not None
            path = f"/api/v1/nodes/{node}/proxy/configz"
            async with places:
                try:
                    return _object(await kubectl.ask("get", "--raw", path))
                except LifetimeError:
                    return None  # a gap only if a judgement needs it

        return [*await asyncio.gather(*map(ask, nodes))]

    async def secrets(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Any]:
        """Return Secrets by namespace and name; those that could not be read are left out."""
        kubectl, places = self.access.kubectl, asyncio.Semaphore(_REQUESTS)
        names: dict[str, list[str]] = {}
        for namespace, name in sorted(wanted):
            names.setdefault(namespace, []).append(name)

        async def ask(namespace: str) -> dict[tuple[str, str], Any]:
            assert kubectl is not None
            words = ("secrets", f"--namespace={namespace}", "--ignore-not-found")
            async with places:
                try:
                    items = await _items(kubectl, *words, *names[namespace])
                except LifetimeError:
                    return {}
            missing: dict[tuple[str, str], Any] = {(namespace, n): {} for n in names[namespace]}
            found = {(namespace, text(one, "metadata", "name")): one for one in items}
            return missing | found

        answers = await asyncio.gather(*map(ask, names))
        return {key: value for answer in answers for key, value in answer.items()}

    async def _facts(self, names: Iterable[str]) -> dict[str, NodeFacts]:
        ssh, places = self.access.ssh, asyncio.Semaphore(self.access.concurrency)
        if ssh is None:
            return {}

        async def read(name: str) -> tuple[str, NodeFacts | None]:
            async with places:
                return name, await self._read(name, ssh)

        found = await asyncio.gather(*map(read, names))
        return {name: facts for name, facts in found if facts is not None}

    async def _read(self, name: str, ssh: SSH) -> NodeFacts | None:
        facts, output = NodeFacts(), NodeOutput(())
        try:
            words = ssh.words(name)
        except ConfigError as error:
            self.unseen.append(Unseen(Gap.NODE, name, str(error)))
            return None
        code = await run_program(
            words,
            self.access.script.encode(),
            on_stdout=facts.take,
            on_stderr=output.stderr,
            most=MAX_LINE,
            total=_MAX_OUTPUT,
            seconds=NODE_SECONDS,
        )
        if facts.complete and facts.is_root and code == 0:
            return facts
        failure = Failure(Cause.NOT_ROOT, ())
        if not facts.complete or code != 0:
            failure = without_answer((), ScriptEnd(code), output)
        meaning = TEXTS[failure.cause][0]
        detail = f"{meaning}: {failure.detail}" if failure.detail else meaning
        self.unseen.append(Unseen(Gap.NODE, name, detail))
        return None


async def _items(kubectl: Kubectl, *arguments: str) -> list[Object]:
    """Return the objects that ``kubectl get ARGUMENTS`` lists; one by its name counts.

    Raises:
        ConfigError: there is no kubectl.
        LifetimeError: it failed.
    """
    answer = await kubectl.ask("get", *arguments, "-o", "json", seconds=_LIST_SECONDS)
    found = _object(answer) if answer.strip() else {}  # none with --ignore-not-found
    if text(found, "kind") == "List":
        return objects(found, "items")
    return [found] if found else []


def _object(answer: bytes) -> Object:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise LifetimeError("kubectl: the answer is not a JSON object", Exit.INCOMPLETE)
    return found


def _gap(message: str) -> Gap:
    lower = message.lower()
    found = (gap for gap, signs in _SIGNS if any(sign in lower for sign in signs))
    return next(found, Gap.FAILED)
