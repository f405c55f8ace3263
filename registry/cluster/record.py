"""The judgement as data, for programs and the report, and as text for people."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

from mayfly.registry.cluster.holders import NAMESPACE
from mayfly.registry.cluster.safety import GAPS, TROUBLES, Gap, Safety, Trouble
from mayfly.registry.cluster.workloads import Role, When
from mayfly.registry.nodes.kubectl import Kubectl
from mayfly.registry.text import join_names
from mayfly.storage.text import counted

MAX_RECORDS = 200
"""Findings, and things unseen, that a report has; the others are counted."""

MAX_NAMES = 20
"""Nodes, and images, of a finding that a report has."""

MAX_BYTES = 48 * 1024
"""The size of a judgement on the control socket, at most."""

_NAMES = 5

_ROLES: Mapping[str, str] = {
    Role.CONTAINER: "container",
    Role.INIT: "init container",
    Role.EPHEMERAL: "ephemeral container",
    Role.VOLUME: "image volume",
}

_WHEN: Mapping[str, str] = {
    When.NOW: "now, when it starts",
    When.RESTART: "when it restarts",
    When.POD_RESTART: "when the whole pod restarts, as after a reboot",
    When.NEW_POD: "when a pod is made from it",
    When.SCHEDULE: "at its next time",
}


class WorkloadRecord(TypedDict):
    """A pod, or an object that makes pods."""

    kind: str
    namespace: str
    name: str


class FindingRecord(TypedDict):
    """See `safety.Finding`."""

    code: str
    nodes: list[str]
    images: list[str]
    workload: WorkloadRecord | None
    role: str | None
    part: str | None
    when: str | None
    detail: str


class UnseenRecord(TypedDict):
    """See `safety.Unseen`."""

    code: str
    node: str | None
    detail: str


class AllowlistRecord(TypedDict):
    """See `safety.Allowlist`."""

    node: str
    policy: str
    patterns: list[str]


class HeldRecord(TypedDict):
    """Images that holders keep on a node."""

    node: str
    images: list[str]


class SafetyRecord(TypedDict):
    """A judgement.

    Attributes:
        safe: whether nothing would fail, and all was seen.
        images: number of those of the upgrade.
        nodes: number of those of the upgrade.
        uses: number of uses of images in pods and templates that were judged.
    """

    safe: bool
    images: int
    nodes: int
    uses: int
    findings: list[FindingRecord]
    unseen: list[UnseenRecord]
    allowlists: list[AllowlistRecord]
    held: list[HeldRecord]


class ReportedSafety(TypedDict):
    """The last judgement before the end, as the report has it.

    Attributes:
        time: at which the server was told of it: ISO 8601 in UTC.
        left_out: number of further findings and things unseen.
    """

    time: str
    safe: bool
    images: int
    nodes: int
    uses: int
    findings: list[FindingRecord]
    unseen: list[UnseenRecord]
    left_out: int


def record_of(safety: Safety, images: int, nodes: int, uses: int) -> SafetyRecord:
    """Return a judgement as data; the arguments are the attributes."""
    return SafetyRecord(
        safe=safety.is_safe,
        images=images,
        nodes=nodes,
        uses=uses,
        findings=[
            FindingRecord(
                code=one.code,
                nodes=[*one.nodes],
                images=[*one.images],
                workload=None
                if one.workload is None
                else WorkloadRecord(
                    kind=one.workload.kind,
                    namespace=one.workload.namespace,
                    name=one.workload.name,
                ),
                role=one.role,
                part=one.part,
                when=one.when,
                detail=one.detail,
            )
            for one in safety.findings
        ],
        unseen=[
            UnseenRecord(code=one.code, node=one.node, detail=one.detail) for one in safety.unseen
        ],
        allowlists=[
            AllowlistRecord(node=one.node, policy=one.policy, patterns=[*one.patterns])
            for one in safety.allowlists
        ],
        held=[HeldRecord(node=node, images=[*images]) for node, images in safety.held],
    )


def finding_text(one: FindingRecord) -> str:
    """Return which pod on which node would fail, and when, in one line."""
    meaning = TROUBLES[Trouble(one["code"])][0]
    detail = f" ({one['detail']})" if one["detail"] else ""
    images = join_names(one["images"], _NAMES)
    nodes = join_names(one["nodes"], _NAMES)
    workload = one["workload"]
    if workload is None:
        return f"{nodes or 'nodes'}: {meaning}{detail}: {images}"
    name = f"{workload['kind']} {workload['namespace']}/{workload['name']}"
    part = f"{_ROLES[one['role'] or Role.CONTAINER]} {one['part']}"
    when = _WHEN[one["when"] or When.NOW]
    return f"{name}, {part}, on {nodes or 'any node'}: fails {when}: {images}: {meaning}{detail}"


def unseen_text(one: UnseenRecord) -> str:
    """Return a line about a thing that was not seen."""
    where = f"{one['node']}: " if one["node"] else ""
    detail = f": {one['detail']}" if one["detail"] else ""
    return f"{where}{GAPS[Gap(one['code'])][0]}{detail}"


def lines_of(found: SafetyRecord, kubectl: Kubectl) -> Iterator[str]:
    """Yield the lines of a judgement for people, with the remedies.

    Args:
        kubectl: by which the cluster was asked.
    """
    yield from map(finding_text, found["findings"])
    yield from map(unseen_text, found["unseen"])
    yield from _remedies(found)
    for held in found["held"]:
        yield f"{held['node']}: pods hold {counted(len(held['images']), 'image')}"
    if found["held"]:
        removal = shlex.join(kubectl.words("delete", "namespace", NAMESPACE))
        yield f"to remove these pods, once their images are no longer needed: {removal}"
    yield summary(found)


def _remedies(found: SafetyRecord) -> Iterator[str]:
    for code in dict.fromkeys(one["code"] for one in found["findings"]):
        yield f"{code}: to do: {TROUBLES[Trouble(code)][1]}"
    for code in dict.fromkeys(one["code"] for one in found["unseen"]):
        yield f"{code}: to do: {GAPS[Gap(code)][1]}"


def patch_lines(found: SafetyRecord) -> Iterator[str]:
    """Yield for each node that needs it the lines of a KubeletConfiguration."""
    for one in found["allowlists"]:
        yield f"# {one['node']}: in kubelet's configuration, then restart kubelet"
        yield f"imagePullCredentialsVerificationPolicy: {one['policy']}"
        if one["patterns"]:
            yield "preloadedImagesVerificationAllowlist:"
        # Entries of kubelet's configuration may be any text.
        yield from (f"- {json.dumps(pattern)}" for pattern in one["patterns"])


def summary(found: SafetyRecord) -> str:
    """Return the last line of a judgement."""
    looked = (
        f"{counted(found['images'], 'image')} on {counted(found['nodes'], 'node')}, "
        f"{counted(found['uses'], 'use')} of them in pods and templates"
    )
    if found["safe"]:
        return f"safe to stop: {looked}"
    return (
        f"not safe to stop: {counted(len(found['findings']), 'finding')}, "
        f"{counted(len(found['unseen']), 'gap')}; {looked}"
    )


def reported(found: SafetyRecord) -> dict[str, Any]:
    """Return a judgement for the server's report: without allowlists, and cut to `MAX_BYTES`."""
    findings, unseen = found["findings"][:MAX_RECORDS], found["unseen"][:MAX_RECORDS]
    findings = [
        {**one, "nodes": one["nodes"][:MAX_NAMES], "images": one["images"][:MAX_NAMES]}
        for one in findings
    ]
    while True:
        left_out = len(found["findings"]) - len(findings) + len(found["unseen"]) - len(unseen)
        document = {
            "safe": found["safe"],
            "images": found["images"],
            "nodes": found["nodes"],
            "uses": found["uses"],
            "findings": findings,
            "unseen": unseen,
            "left_out": left_out,
        }
        if len(json.dumps(document)) <= MAX_BYTES:
            return document
        findings, unseen = findings[: len(findings) // 2], unseen[: len(unseen) // 2]


def read_reported(document: Mapping[str, Any], time: str) -> ReportedSafety:
    """Read a document of `reported`, from another process of the same user.

    Raises:
        ValueError: it is not that.
    """
    try:
        return ReportedSafety(
            time=time,
            safe=bool(document["safe"]),
            images=int(document["images"]),
            nodes=int(document["nodes"]),
            uses=int(document["uses"]),
            findings=[_finding(one) for one in document["findings"]],
            unseen=[
                UnseenRecord(
                    code=Gap(one["code"]),
                    node=None if one["node"] is None else str(one["node"]),
                    detail=str(one["detail"]),
                )
                for one in document["unseen"]
            ],
            left_out=int(document["left_out"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a judgement: {error!r}") from None


def _finding(one: Mapping[str, Any]) -> FindingRecord:
    workload = one["workload"]
    return FindingRecord(
        code=Trouble(one["code"]),
        nodes=[*map(str, one["nodes"])],
        images=[*map(str, one["images"])],
        workload=None
        if workload is None
        else WorkloadRecord(
            kind=str(workload["kind"]),
            namespace=str(workload["namespace"]),
            name=str(workload["name"]),
        ),
        role=None if one["role"] is None else Role(one["role"]),
        part=None if one["part"] is None else str(one["part"]),
        when=None if one["when"] is None else When(one["when"]),
        detail=str(one["detail"]),
    )
