"""Run the node script on many nodes: a few at a time, each again after a failure that may pass.

    waiting ─► running ─► proven
                 │  ▲
                 ▼  └── pause ── a cause of `causes.RETRIED`, and tries are left
               failed

A pause holds no place: other nodes run meanwhile. Memory grows with the nodes that run and with the
missing images, not with the nodes' output.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from mayfly.registry.errors import LifetimeError
from mayfly.registry.nodes.carrier import Carrier, ScriptEnd, Session
from mayfly.registry.nodes.causes import (
    HERE_IS_WRONG,
    RETRIED,
    TEXTS,
    Cause,
    cause_of_end,
    cause_of_pull,
    is_wrong,
    is_wrong_here,
    skew_text,
)
from mayfly.registry.nodes.node_output import NodeAnswer, NodeOutput
from mayfly.registry.nodes.programs import TIMED_OUT, TOO_MUCH
from mayfly.registry.nodes.proof import printed_images
from mayfly.registry.nodes.ssh import SSH
from mayfly.registry.pki.errors import TrustError
from mayfly.registry.text import join_names
from mayfly.registry.threads import in_thread
from mayfly.storage.text import counted_of

CONCURRENCY = 16
"""Nodes at a time."""

ATTEMPTS = 4
"""Tries at a node."""

TIMEOUT_SECONDS = 7200.0
"""For one try at a node."""

_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0
_OF_CLOCKS = frozenset({Cause.CLOCK, Cause.TRUST, Cause.PULL, Cause.PROOF})
"""Causes that a wrong clock explains."""

_NAMES = 5
"""Images that a line names."""


class Failure(NamedTuple):
    """Images that a node lacks for one cause.

    Attributes:
        images: by their full names; empty for a warning about the node.
        detail: the text of ssh, kubelet, the script or a program of the node, which may be hostile;
            "" for none.
    """

    cause: Cause
    images: tuple[str, ...]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NodeResult:
    """How a node ended.

    Attributes:
        failures: why images are missing; empty if it has all and proved it.
        warnings: other problems.
        attempts: tries that were made.
        seconds: from the first try to the end of the last.
        pinned: how many images are; None if its runtime cannot pin.
        free: bytes left for images; None if unknown.
        skew: seconds by which its clock is ahead; None if unknown.
    """

    node: str
    failures: tuple[Failure, ...] = ()
    warnings: tuple[Failure, ...] = ()
    attempts: int = 1
    seconds: float = 0.0
    pinned: int | None = 0
    free: int | None = None
    skew: float | None = None

    @property
    def proven(self) -> bool:
        """Whether the node has every image, and the registry took its proof."""
        return not self.failures


class Observer(Protocol):
    """Receives events. Texts that come from nodes are not escaped."""

    def started(self, node: str, attempt: int) -> None:
        """A try at a node begins."""

    def image(self, node: str, image: str, state: str) -> None:
        """A node pulled an image, or could not: ``pulled`` or ``failed``."""

    def paused(self, node: str, failure: Failure, seconds: float) -> None:
        """A try failed, and there will be another."""

    def ended(self, result: NodeResult) -> None:
        """A node ended."""

    def note(self, text: str) -> None:
        """Something could not be removed; the text names it, and how to remove it."""


@dataclass(frozen=True)
class Prefetch:
    """Runs the script of each node of a list.

    Attributes:
        nodes: their names, by which the carrier reaches them.
        images: that each is to have, by their full names.
        script: makes the script of a node. It holds the node's credential, so it is called when the
            node's turn has come.
        carrier: how nodes are reached.
        send: sends a node's proof, given its name and images, where the node itself cannot;
            blocking. None: such proofs are not sent.
        concurrency: nodes at a time.
        attempts: tries at each.
        timeout: seconds for a try.
        pause: seconds before the second try; each further pause is three times as long.
    """

    nodes: Sequence[str]
    images: Sequence[str]
    script: Callable[[str], str]
    carrier: Carrier = field(default_factory=SSH)
    send: Callable[[str, list[Any]], None] | None = None
    concurrency: int = CONCURRENCY
    attempts: int = ATTEMPTS
    timeout: float = TIMEOUT_SECONDS
    pause: float = _PAUSE_SECONDS

    async def run(self, observer: Observer) -> list[NodeResult]:
        """Run the script on every node; if this is cancelled, every script is ended.

        Returns:
            A result for each node, in their order.

        Raises:
            LifetimeError: the carrier cannot work.
            Exception: of `script`; then the other nodes are given up.
        """
        if not self.nodes:
            return []
        places = asyncio.Semaphore(self.concurrency)
        async with self.carrier.session(observer.note) as session:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._run_node(session, node, places, observer))
                        for node in self.nodes
                    ]
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _run_node(
        self, session: Session, node: str, places: asyncio.Semaphore, observer: Observer
    ) -> NodeResult:
        attempt, pause, begun = 0, self.pause, 0.0
        while True:
            attempt += 1
            async with places:
                begun = begun or time.monotonic()
                observer.started(node, attempt)
                result = await self._try(session, node, observer)
            passing = [one for one in result.failures if one.cause in RETRIED]
            if not passing or attempt >= self.attempts:
                break
            observer.paused(node, passing[0], pause)
            await asyncio.sleep(pause)
            pause = min(pause * 3, _LONGEST_PAUSE_SECONDS)
        result = replace(result, attempts=attempt, seconds=time.monotonic() - begun)
        observer.ended(result)
        return result

    async def _try(self, session: Session, node: str, observer: Observer) -> NodeResult:
        output = NodeOutput(self.images, lambda image, state: observer.image(node, image, state))
        end = await session.run(node, self.script(node), output, self.timeout)
        await self._send_proof(node, output)
        return judge(node, self.images, end, output, time.time())

    async def _send_proof(self, node: str, output: NodeOutput) -> None:
        """Send a proof that the node itself cannot send."""
        answer = output.answer
        if answer is None or self.send is None or not _is_unsent(answer, output.messages):
            return
        try:
            await in_thread(self.send, node, printed_images(answer.document, node, time.time()))
            output.answer = answer._replace(proof="sent")
        except (LifetimeError, TrustError) as error:
            output.answer = answer._replace(proof="refused")
            output.messages.append(str(error))


def _is_unsent(answer: NodeAnswer, messages: Sequence[str]) -> bool:
    """Whether a node could not send its proof, rather than the registry did not take it."""
    if answer.proof != "refused":
        return answer.proof == "printed"
    return bool(messages) and cause_of_pull(messages[-1], None) is Cause.NO_REGISTRY


def judge(
    node: str, images: Sequence[str], end: ScriptEnd, output: NodeOutput, now: float
) -> NodeResult:
    """Return the result of a run of the script.

    Args:
        images: that the node is to have.
        end: of the script.
        output: of the script.
        now: Unix seconds.
    """
    answer = output.answer
    if answer is None or end.code == TOO_MUCH:
        return NodeResult(node, (without_answer(images, end, output),))
    skew = None if answer.time is None else answer.time - now
    missing = [image for image in images if image not in answer.present]
    failures = _missing(missing, output.reasons, skew)
    message = output.messages[-1] if output.messages else ""
    if not missing and answer.proof == "printed":
        failures = [Failure(Cause.NO_PROOF, tuple(images))]
    elif not missing and answer.proof != "sent":
        cause = cause_of_pull(message, skew)
        failures = [Failure(Cause.PROOF if cause is Cause.PULL else cause, tuple(images), message)]
    warnings = []
    if skew is not None and is_wrong(skew):
        detail = skew_text(skew)
        failures = [
            Failure(Cause.CLOCK, one.images, f"{detail}; {one.detail}")
            if one.cause in _OF_CLOCKS
            else one
            for one in failures
        ]
        if not any(one.cause is Cause.CLOCK for one in failures):
            warnings.append(Failure(Cause.CLOCK, (), detail))
    if unpinned := tuple(image for image in images if image in output.unpinned):
        warnings.append(Failure(Cause.NOT_PINNED, unpinned, output.unpinned[unpinned[0]]))
    if answer.config_path is False:
        warnings.append(Failure(Cause.NO_CONFIG_PATH, ()))
    return NodeResult(
        node,
        tuple(failures),
        tuple(warnings),
        pinned=None if answer.can_pin is False else len(answer.pinned),
        free=answer.free,
        skew=skew,
    )


def without_answer(images: Sequence[str], end: ScriptEnd, output: NodeOutput) -> Failure:
    """Return why a script gave no answer that can be used.

    Args:
        images: that the script was to look at.
        end: of the script.
        output: of the script.
    """
    if end.code == TIMED_OUT:
        return Failure(Cause.TIMED_OUT, tuple(images))
    if end.code == TOO_MUCH:
        detail = f"it sent more than {output.total} bytes"
        return Failure(Cause.UNREADABLE, tuple(images), detail)
    if end.cause is not None:
        return Failure(end.cause, tuple(images), end.detail)
    cause = cause_of_end(end.code, output.messages, output.others)
    lines = output.messages or output.others
    if cause is Cause.BUSY:
        lines = deque()  # the script says the same
    return Failure(cause, tuple(images), lines[-1] if lines else "")


def _missing(
    images: Sequence[str], reasons: Mapping[str, str], skew: float | None
) -> list[Failure]:
    """Return one failure for each cause, with the first of its texts."""
    found: dict[Cause, tuple[list[str], str]] = {}
    for image in images:
        reason = reasons.get(image, "")
        of_cause, _ = found.setdefault(cause_of_pull(reason, skew), ([], reason))
        of_cause.append(image)
    return [Failure(cause, tuple(names), text) for cause, (names, text) in found.items()]


def checked(
    results: Sequence[NodeResult], lacking: Collection[str], images: Sequence[str]
) -> list[NodeResult]:
    """Return the results, those failed that say proven of a node that the registry says lacks some.

    A node prints its results itself, so the registry's own record of its proof decides.

    Args:
        results: as the nodes' output shows them.
        lacking: nodes that have not proved every image, by the registry's record.
        images: that each was to prove.
    """
    different = (Failure(Cause.DIFFERENT, tuple(images)),)
    return [
        replace(one, failures=different) if one.proven and one.node in lacking else one
        for one in results
    ]


def node_lines(result: NodeResult, total: int) -> list[str]:
    """Return the lines about a node for people; the first says how it ended.

    Args:
        total: images that it was to have.
    """
    after = f", after {result.attempts} tries" if result.attempts > 1 else ""
    seconds = f"{result.seconds:.0f} s{after}"
    if result.proven:
        pins = " (its runtime cannot pin)" if result.pinned is None else f", {result.pinned} pinned"
        lines = [f"{result.node}: proven: {counted_of(total, total, 'image')}{pins}, {seconds}"]
    else:
        lines = [f"{result.node}: {failure_text(one, total)}" for one in result.failures]
        lines[0] += f" ({seconds})"
    for one in result.warnings:
        lines.append(f"{result.node}: warning: {failure_text(one, total)}")
    return lines


def failure_text(failure: Failure, total: int) -> str:
    """Return a failure for people.

    Args:
        total: images that the node was to have.
    """
    text = TEXTS[failure.cause][0]
    if failure.images:
        names = (
            "every image" if len(failure.images) == total else join_names(failure.images, _NAMES)
        )
        text = f"{text} ({names})"
    return f"{text}: {failure.detail}" if failure.detail else text


def remedies(results: Sequence[NodeResult]) -> list[tuple[Cause, list[str], str]]:
    """Return each cause with its nodes and its remedy, in the order of `Cause`."""
    nodes: dict[Cause, list[str]] = {}
    for result in results:
        for cause in dict.fromkeys(one.cause for one in (*result.failures, *result.warnings)):
            nodes.setdefault(cause, []).append(result.node)
    texts = {cause: TEXTS[cause][1] for cause in nodes}
    if Cause.CLOCK in nodes and is_wrong_here([result.skew for result in results]):
        texts[Cause.CLOCK] = HERE_IS_WRONG
    return [(cause, nodes[cause], texts[cause]) for cause in Cause if cause in nodes]
