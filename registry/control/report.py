"""The report of a run, as JSON for programs; `table` makes the text for people."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mayfly.registry.address import canonical_address
from mayfly.registry.coverage.coverage import Snapshot
from mayfly.registry.coverage.facts import Key
from mayfly.registry.coverage.observer import Observer, Transfer
from mayfly.registry.coverage.states import ResolvedImage, State
from mayfly.registry.threads import in_thread, with_pauses
from mayfly.storage.files import Attributes, replace_file

if TYPE_CHECKING:
    from mayfly.registry.cluster.record import ReportedSafety
    from mayfly.registry.nodes.prefetch import NodeResult
    from mayfly.registry.telemetry.recording import AuditRecord, NotifiedRecord
    from mayfly.registry.upstream.health import UpstreamRecord

_KIB = 1024
_MAX_NAME = 100

_READ_SECONDS = 3.0
"""Time to read manifests: the end of a server must not wait longer."""

MAX_GAPS = 10_000
"""Entries of a coverage record's ``missing``; the others are counted."""

MAX_UNPREPARED = 1_000
"""Nodes that a report names after a prefetch; the others are counted."""


class Memory(TypedDict):
    """Peak resident memory in bytes: of this process, and of the largest child that has ended."""

    server: int
    command: int


class PullRecord(TypedDict):
    """The pulls of one image by one node.

    Attributes:
        node: its name.
        state: of the node with the image.
        bytes: of blobs below the image that reached the node since it asked for the image.
        first: when it first asked for the image.
        last: when it last asked for it, or content of it last moved.
        retries: how often a blob was asked for again after a transfer of it ended early.
    """

    node: str
    state: State
    bytes: int
    first: str
    last: str
    retries: int


class ImageRecord(TypedDict):
    """One image that was pushed or asked for; ``name`` by its tag where it has one.

    ``pulls`` has one record for each node that asked for it.
    """

    name: str
    digest: str
    pushed_by: list[str]
    pulls: list[PullRecord]


class GapRecord(TypedDict):
    """An image that a node must have and lacks."""

    node: str
    image: str
    state: State


class ProofRecord(TypedDict):
    """A node's own answer, as a summary: self-reported, not seen by this server.

    Attributes:
        time: of its last proof.
        images: number that it says it has.
        pinned: number of those that kubelet's garbage collection spares.
        free: bytes left for images.
    """

    time: str
    images: int
    pinned: int
    free: int


class CoverageRecord(TypedDict):
    """The progress of the upgrade.

    Attributes:
        accept: the weakest state that counts as having an image.
        matrix: image → node → `State`; of more than `coverage.MAX_CELLS` nodes are left out.
        declared: names of `--nodes`, empty where it is a number.
        claimed: covered node → number of its images that rest on its runtime's claim alone.
        proofs: node → its own answer; of the nodes that gave one.
        absent: images of the list that the registry lacks.
        missing: images that known nodes lack, absent ones aside; empty if coverage is complete.
        missing_left_out: number of further ones.
    """

    complete: bool
    nodes_wanted: int
    nodes_covered: int
    nodes: list[str]
    accept: State
    declared: list[str]
    matrix: dict[str, dict[str, State]]
    claimed: dict[str, int]
    proofs: dict[str, ProofRecord]
    absent: list[str]
    missing: list[GapRecord]
    missing_left_out: int


class EndRecord(TypedDict):
    """Conditions that end the server when they are met together.

    Attributes:
        conditions: kinds of `ending.EndKind`.
        seconds: until then if nothing happens meanwhile; None if that cannot be told.
    """

    conditions: list[str]
    seconds: float | None


class TransferRecord(TypedDict):
    """A transfer that is under way, or was when it was aborted.

    Attributes:
        direction: ``pull`` or ``push``.
        digest: of the blob; None for a push.
        node: as coverage names it.
        address: of the peer.
        bytes: transferred so far.
        seconds: since its start.
    """

    direction: str
    repository: str
    digest: str | None
    node: str
    address: str
    bytes: int
    seconds: float


class DeniedRecord(TypedDict):
    """The number of refused requests of one user from one address."""

    user: str
    address: str
    requests: int


class Corruption(TypedDict):
    """Corrupt content of a bundle, which is not served.

    Attributes:
        digest: of the content.
        bundle: that contains it, as the operator named the bundle.
        problem: ``digest_mismatch``, ``file_changed``, ``file_gone`` or ``file_refused``.
        file: that contains the bytes; None if that is not known.
        first_byte, last_byte: their range in the file.
        repositories: that link to it.
        images: that need it, at most 100.
    """

    digest: str
    bundle: str
    problem: str
    file: str | None
    first_byte: int | None
    last_byte: int | None
    repositories: list[str]
    images: list[str]


class CorruptRecord(Corruption):
    """Corrupt content and the time at which it was found: ISO 8601 in UTC."""

    found: str


class UnpreparedRecord(TypedDict):
    """A node that did not prove every image to `--prefetch`.

    Attributes:
        code: the first cause, a `causes.Cause`.
        detail: the text of ssh or of a program of the node.
        images: number of those that it lacks.
        attempts: tries that were made.
    """

    node: str
    code: str
    detail: str
    images: int
    attempts: int


class PrefetchRecord(TypedDict):
    """How `--prefetch` ended.

    Attributes:
        nodes: number of those that were to have every image.
        proven: number of those that proved it.
        seconds: from its begin to its end.
        unprepared: the others, at most `MAX_UNPREPARED`.
    """

    nodes: int
    proven: int
    seconds: float
    unprepared: list[UnpreparedRecord]


class Report(TypedDict):
    """The report (docs/lifetime.md, "The report"). Times are ISO 8601 in UTC, sizes bytes.

    Attributes:
        images_left_out: number of further images, whose manifests took too long to read.
        audit: None without ``--audit``.
        notified: one record for each receiver of ``--notify``.
        prefetch: None without ``--prefetch``.
        safe_to_stop: the last answer to ``mayfly wait --safe-to-stop``; None if nobody asked.
    """

    version: str
    pid: int
    reason: str
    reason_detail: dict[str, str | float]
    exit_code: int
    started: str
    stopped: str
    seconds: float
    peak_memory: Memory
    bytes_in: int
    bytes_out: int
    images: list[ImageRecord]
    images_left_out: int
    coverage: CoverageRecord | None
    denied: list[DeniedRecord]
    corrupt: list[CorruptRecord]
    upstreams: list[UpstreamRecord]
    storage_before: int | None
    storage_after: int | None
    cut: list[TransferRecord]
    cut_requests: int
    asked_again: dict[str, int]
    audit: AuditRecord | None
    notified: list[NotifiedRecord]
    prefetch: PrefetchRecord | None
    safe_to_stop: ReportedSafety | None


def prefetch_record(
    results: Sequence[NodeResult], nodes: int, skipped: int, seconds: float
) -> PrefetchRecord:
    """Return the record of a prefetch that has ended.

    Args:
        results: of the nodes that ended.
        nodes: how many were to have every image.
        skipped: how many of them had proved that before.
        seconds: it took.
    """
    unprepared = [
        UnpreparedRecord(
            node=result.node,
            code=result.failures[0].cause,
            detail=result.failures[0].detail,
            images=sum(len(failure.images) for failure in result.failures),
            attempts=result.attempts,
        )
        for result in results
        if not result.proven
    ]
    return PrefetchRecord(
        nodes=nodes,
        proven=skipped + sum(result.proven for result in results),
        seconds=round(seconds, 1),
        unprepared=unprepared[:MAX_UNPREPARED],
    )


def write(report: Report, path: Path) -> None:
    """Replace a file by the report, atomically; one JSON object.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(report, indent=2) + "\n").encode(), Attributes(0o644))


def read(path: Path, pid: int) -> Report | None:
    """Return the report of the server with this process ID; None if there is none."""
    try:
        found: Report = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("pid") == pid else None


_NEWER = frozenset({"upstreams", "audit", "notified", "prefetch", "safe_to_stop"})
"""Fields that reports did not have from the start."""


def load(path: Path) -> Report:
    """Return the report in a file; one of an older server lacks fields of `_NEWER`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object, or lacks a part of a report.
    """
    found: Report = json.loads(path.read_bytes())
    if not isinstance(found, dict) or not found.keys() >= Report.__required_keys__ - _NEWER:
        raise ValueError("not a report")
    return found


def iso(unix: float) -> str:
    """Format Unix seconds as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def peak_memory() -> Memory:
    """Return the peak memory of this process and of its children.

    ``ru_maxrss`` of a forked process begins at its parent's size (Linux), so ``VmHWM`` comes
    first.
    """
    own = _high_water() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _KIB
    return Memory(server=own, command=child)


def _high_water() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * _KIB for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None


def storage_used(directory: Path) -> int:
    """Return the bytes on disk of the files below a directory, which itself takes none.

    Walks the tree: call it in a worker thread.
    """
    total = 0
    waiting = [str(directory)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue  # removed during the walk
    return total


async def image_records(observer: Observer) -> tuple[list[ImageRecord], int]:
    """Return every image pushed or asked for; children of an index are part of it, not images.

    Manifests may have to be read, in a thread and for `_READ_SECONDS` at most.

    Returns:
        The images, and the number of images left out because reading took too long.
    """
    facts = observer.ledger.facts
    pushed, pulled = facts.pushers(), facts.pullers()
    until = time.monotonic() + _READ_SECONDS
    children: set[Key] = set()
    found: list[tuple[Key, ImageRecord]] = []
    left_out = 0
    async for key in with_pauses(dict.fromkeys((*pushed, *pulled))):
        target = observer.states.resolve_cached(*key)
        if target is None:
            left = until - time.monotonic()
            if left <= 0:
                left_out += 1
                continue
            reading = in_thread(observer.states.resolve, *key)
            await asyncio.wait([reading], timeout=left)
            if not reading.done():
                reading.cancel()
                left_out += 1
                continue
            target = reading.result()
        repository, digest = key
        children.update((repository, child) for child in (target.manifests if target else ()))
        tags = facts.tags(repository, digest)
        names = [f"{repository}:{tag}" for tag in tags] or [f"{repository}@{digest}"]
        pulls = _pull_records(observer, key, target, pulled.get(key, []))
        by = pushed.get(key, [])
        found += [
            (key, ImageRecord(name=name, digest=digest, pushed_by=by, pulls=pulls))
            for name in names
        ]
    records = [one for key, one in found if key not in children or "@" not in one["name"]]
    return sorted(records, key=lambda record: record["name"]), left_out


def _pull_records(
    observer: Observer, key: Key, target: ResolvedImage | None, nodes: Iterable[str]
) -> list[PullRecord]:
    ledger = observer.ledger
    found = []
    for node in nodes:
        pull = ledger.facts.pulls(node)[key]
        found.append(
            PullRecord(
                node=node,
                state=observer.states.of(node, target),
                bytes=pull.bytes,
                first=iso(ledger.unix(pull.first)),
                last=iso(ledger.unix(pull.last)),
                retries=pull.retries,
            )
        )
    return found


def coverage_record(found: Snapshot, unix: Callable[[int], int]) -> CoverageRecord:
    """Return the progress of the upgrade. Slow if nodes and images are many.

    Args:
        found: coverage as it was.
        unix: the Unix time of a fact, `Ledger.unix`.
    """
    gaps = (
        GapRecord(node=gap.node, image=gap.image, state=gap.state)
        for gap in found.missing()
        if gap.node is not None and gap.image is not None
    )
    missing = list(islice(gaps, MAX_GAPS))
    return CoverageRecord(
        complete=found.complete,
        nodes_wanted=found.nodes.count,
        nodes_covered=len(found.covered),
        nodes=list(found.rows),
        accept=found.accept,
        declared=list(found.nodes.names),
        matrix=found.matrix(),
        claimed=found.claimed(),
        proofs={
            node: ProofRecord(
                time=iso(unix(proof.time)),
                images=proof.images,
                pinned=proof.pinned,
                free=proof.free,
            )
            for node, proof in found.proofs.items()
        },
        absent=list(found.absent),
        missing=missing,
        missing_left_out=found.gaps - len(missing),
    )


def denied_records(denied: Mapping[tuple[str, str], int]) -> list[DeniedRecord]:
    """Return refused requests, most frequent first, from (user, address) → count.

    Clients choose the names, so names are shortened and control characters replaced.
    """
    found = [
        DeniedRecord(user=_printable(user), address=canonical_address(address), requests=count)
        for (user, address), count in denied.items()
    ]
    return sorted(found, key=lambda record: -record["requests"])


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[:_MAX_NAME])


def transfer_records(transfers: Iterable[Transfer], now: float) -> list[TransferRecord]:
    """Return transfers as data, in the order of their start.

    Args:
        transfers: of the observer.
        now: of its clock, in seconds.
    """
    records = []
    for one in sorted(transfers, key=lambda one: one.begun):
        repository, _, digest = one.what.partition("@")
        records.append(
            TransferRecord(
                direction=one.direction,
                repository=repository,
                digest=digest or None,
                node=one.peer.node,
                address=one.peer.address,
                bytes=one.bytes,
                seconds=round(now - one.begun, 3),
            )
        )
    return records
