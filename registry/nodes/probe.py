"""Look at nodes before an upgrade, over ssh, and change nothing on them.

The script is `script.sh` up to its last line, which would begin the work, and then `probe.sh`, so
that both find a node's runtime in the same way. It holds no credential. Its output is input
from another machine, as in `node_output`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from mayfly.registry.nodes.carrier import ScriptEnd
from mayfly.registry.nodes.causes import Cause, is_wrong, skew_text
from mayfly.registry.nodes.node_output import NodeOutput
from mayfly.registry.nodes.prefetch import Failure, without_answer
from mayfly.registry.nodes.programs import TOO_MUCH, run_program
from mayfly.registry.nodes.script import NodeImage, reading_script
from mayfly.registry.nodes.ssh import SSH
from mayfly.registry.nodes.target import Target
from mayfly.storage.text import format_size

KUBELET_SHARE = 0.85
"""The used part of the images' file system above which kubelet collects images
(imageGCHighThresholdPercent)."""

TIMEOUT_SECONDS = 120.0
"""For a look at one node."""

_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
"""uname -m → the architecture's name in images."""

_NO_REGISTRY = Target("", tls=True)
_MARK = "mayfly-check "
_MAX_NUMBER = 2**53
_KIB = 1024
_DETAIL = 200


def probe_script(target: Target | None, images: Sequence[NodeImage]) -> str:
    """Return the script that looks at a node.

    Args:
        target: the registry that it is to reach; None to leave that out.
        images: that it is to have.

    Raises:
        TrustError: a name cannot stand in the script.
    """
    return reading_script(target or _NO_REGISTRY, images, "probe.sh")


@dataclass(slots=True)
class Look:
    """The facts that a node showed; None where it showed nothing.

    Attributes:
        time: Unix seconds by its clock.
        architecture: as images have it; the node's own word for an unknown one.
        user: number of the user that the script runs as.
        runtime: "none" if none answers.
        kubelet: whether it has one.
        config_path: whether kubelet's own pulls use the files of `node-config`.
        total, free: bytes of the file system of its images.
        sender: whether it has a program that can send a proof.
        reaches: whether it reaches the registry; None if it cannot be said.
        detail: why it does not.
        has: images that its runtime lists.
        complete: whether it showed all.
    """

    time: int | None = None
    architecture: str | None = None
    user: int | None = None
    runtime: str | None = None
    kubelet: bool | None = None
    config_path: bool | None = None
    total: int | None = None
    free: int | None = None
    sender: bool | None = None
    reaches: bool | None = None
    detail: str = ""
    has: set[str] = field(default_factory=set)
    complete: bool = False

    def take(self, line: bytes, images: Collection[str]) -> None:
        """Take a line of the script's output; any other line is ignored."""
        text = line.decode(errors="replace")
        if not text.startswith(_MARK):
            return
        key, _, value = text.removeprefix(_MARK).strip().partition(" ")
        match key:
            case "time":
                self.time = _number(value)
            case "machine":
                self.architecture = _ARCHITECTURES.get(value, value[:32])
            case "user":
                self.user = _number(value)
            case "runtime":
                known = ("containerd", "docker", "podman", "none")
                self.runtime = value if value in known else None
            case "kubelet":
                self.kubelet = {"yes": True, "no": False}.get(value)
            case "config_path":
                self.config_path = {"yes": True, "no": False}.get(value)
            case "space":
                total, _, free = value.partition(" ")
                in_total, left = _number(total), _number(free)
                if in_total is not None and left is not None:
                    self.total, self.free = in_total * _KIB, left * _KIB
            case "sender":
                self.sender = {"yes": True, "no": False}.get(value)
            case "reach":
                word, _, detail = value.partition(" ")
                self.reaches = {"yes": True, "no": False}.get(word)
                self.detail = detail[:_DETAIL]
            case "has" if value in images:
                self.has.add(value)
            case "done":
                self.complete = True


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > 16:
        return None
    number = int(text)
    return number if number < _MAX_NUMBER else None


@dataclass(frozen=True, slots=True)
class NodeFindings:
    """The findings on one node.

    Attributes:
        architecture: None if the node did not show it.
        findings: empty if all is in order.
        skew: seconds by which its clock is ahead; None if unknown.
    """

    node: str
    architecture: str | None
    findings: tuple[Failure, ...]
    skew: float | None = None


async def look_at_nodes(
    nodes: Sequence[str],
    images: Sequence[str],
    script: str,
    ssh: SSH,
    need: Callable[[str, Collection[str]], int],
    concurrency: int,
) -> list[NodeFindings]:
    """Look at every node, a few at a time; if this is cancelled, every ssh is ended.

    Args:
        nodes: their names.
        images: that they are to have, by their full names.
        script: of `probe_script`.
        ssh: how nodes are reached.
        need: returns the bytes that a node of an architecture needs for images that it lacks.
        concurrency: nodes at a time.
    """
    places = asyncio.Semaphore(concurrency)

    async def look(node: str) -> NodeFindings:
        async with places:
            return await _look(node, images, script, ssh, need)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(look(node)) for node in nodes]
    return [task.result() for task in tasks]


async def _look(
    node: str,
    images: Sequence[str],
    script: str,
    ssh: SSH,
    need: Callable[[str, Collection[str]], int],
) -> NodeFindings:
    found, output, wanted = Look(), NodeOutput(images), frozenset(images)
    code = await run_program(
        ssh.words(node),
        script.encode(),
        on_stdout=lambda line: found.take(line, wanted),
        on_stderr=output.stderr,
        most=output.most,
        total=output.total,
        seconds=TIMEOUT_SECONDS,
    )
    if not found.complete or code == TOO_MUCH:
        failure = without_answer(images, ScriptEnd(code), output)
        return NodeFindings(node, found.architecture, (failure,))
    now = time.time()
    findings = tuple(judge(found, images, now, need))
    skew = None if found.time is None else found.time - now
    return NodeFindings(node, found.architecture, findings, skew)


def judge(
    found: Look,
    images: Sequence[str],
    now: float,
    need: Callable[[str, Collection[str]], int],
) -> list[Failure]:
    """Return the failures that a prefetch would meet on a node.

    Args:
        found: its answer.
        images: that it is to have.
        now: Unix seconds.
        need: see `look_at_nodes`.
    """
    findings = []
    if found.user != 0:
        findings.append(Failure(Cause.NOT_ROOT, ()))
    if found.runtime in (None, "none"):
        findings.append(Failure(Cause.NO_RUNTIME, ()))
    if found.time is not None and is_wrong(skew := found.time - now):
        findings.append(Failure(Cause.CLOCK, (), skew_text(skew)))
    if found.reaches is False:
        findings.append(Failure(Cause.NO_REGISTRY, (), found.detail))
    if found.config_path is False:
        findings.append(Failure(Cause.NO_CONFIG_PATH, ()))
    if found.sender is False:
        findings.append(Failure(Cause.NO_SENDER, ()))
    lacking = tuple(image for image in images if image not in found.has)
    if found.total is not None and found.free is not None and found.architecture is not None:
        needed = need(found.architecture, lacking)
        room, share = found.free, ""
        if found.kubelet is not False:
            room = max(int(found.total * KUBELET_SHARE) - (found.total - found.free), 0)
            share = f" below {KUBELET_SHARE:.0%}, where kubelet begins to remove images,"
        if needed > room:
            detail = (
                f"some {format_size(needed)} needed, {format_size(room)} left{share} of "
                f"{format_size(found.total)}"
            )
            findings.append(Failure(Cause.NO_ROOM, lacking, detail))
    return findings
