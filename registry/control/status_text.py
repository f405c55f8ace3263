"""Status, reports and coverage as plain text, a row for each node, no wider than the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from mayfly.registry.coverage.coverage import claims_text
from mayfly.registry.coverage.states import HAS_IMAGE, State, accepted, stated
from mayfly.registry.durations import exact, readable
from mayfly.registry.ending import EndKind
from mayfly.registry.notices import text as notice_text
from mayfly.registry.text import escaped, join_names
from mayfly.storage.text import counted, counted_of, format_size

if TYPE_CHECKING:
    from mayfly.registry.control.report import (
        Corruption,
        CorruptRecord,
        CoverageRecord,
        DeniedRecord,
        EndRecord,
        ImageRecord,
        ProofRecord,
        Report,
        TransferRecord,
    )
    from mayfly.registry.upstream.health import UpstreamRecord

MIN_WIDTH = 40

_MOST_ROWS = 200
_MOST_NAMES = 10
_MOST_TRANSFERS = 20
_MOST_REFUSED = 20


def grid(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Align rows in columns, two blanks apart.

    Cells that are too wide are shortened in the middle, the widest column first: the ends of an
    image's name are the most specific.
    """
    if not rows:
        return []
    columns = len(rows[0])
    widths = [max(len(row[i]) for row in rows) for i in range(columns)]
    room = max(width - 2 * (columns - 1), columns)
    while sum(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    return [
        "  ".join(shorten(cell, widths[i]).ljust(widths[i]) for i, cell in enumerate(row)).rstrip()
        for row in rows
    ]


def shorten(text: str, width: int) -> str:
    """Return a text in at most ``width`` characters, without its middle if it is longer."""
    if len(text) <= width:
        return text
    if width < 3:
        return text[:width]
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


class NodeRow(NamedTuple):
    """One node of a coverage record.

    Attributes:
        name: of the node.
        missing: image → its state, of the images that the node lacks.
        evidence: state → number of images, of those that it has.
        wanted: number of images that the node must have.
    """

    name: str
    missing: Mapping[str, State]
    evidence: Mapping[State, int]
    wanted: int

    @property
    def has(self) -> int:
        """Number of images that the node has."""
        return self.wanted - len(self.missing)


def node_rows(coverage: CoverageRecord) -> list[NodeRow]:
    """Return the nodes of a coverage record's matrix, incomplete ones first."""
    matrix, enough = coverage["matrix"], accepted(State(coverage["accept"]))
    rows = []
    for node in next(iter(matrix.values()), {}):
        states = {image: State(cells[node]) for image, cells in matrix.items()}
        missing = {image: state for image, state in states.items() if state not in enough}
        evidence = Counter(states.values())
        rows.append(NodeRow(node, missing, evidence, len(matrix)))
    return sorted(rows, key=lambda row: not row.missing)


def progress(coverage: CoverageRecord) -> str:
    """Return the progress of coverage in one line: ``1 of 3 nodes covered; missing: node-ctr``."""
    lacking = [row.name for row in node_rows(coverage) if row.missing]
    silent = coverage["nodes_wanted"] - len(coverage["nodes"])
    if coverage["complete"]:
        lacking, silent = [], 0
    return progress_text(coverage["nodes_covered"], coverage["nodes_wanted"], lacking, silent)


def progress_text(covered: int, wanted: int, lacking: Sequence[str], silent: int) -> str:
    """Return the line of `progress`.

    Args:
        covered, wanted: numbers of nodes.
        lacking: names of nodes that lack an image.
        silent: number of nodes that pulled nothing yet, if it is not known which.
    """
    names = [*lacking, *([f"{silent} that pulled nothing yet"] if silent > 0 else [])]
    line = f"{counted_of(covered, wanted, 'node')} covered"
    return f"{line}; missing: {join_names(names, _MOST_NAMES)}" if names else line


def coverage_lines(coverage: CoverageRecord, width: int) -> list[str]:
    """Return coverage as a summary line and a row for each node with the images it lacks."""
    rows, absent = node_rows(coverage), coverage["absent"]
    nodes = counted_of(coverage["nodes_covered"], coverage["nodes_wanted"], "node")
    lines = [f"coverage: {nodes}"]
    lines += [f"not in the registry: {image}" for image in absent[:_MOST_ROWS]]
    proofs = coverage.get("proofs", {})
    if rows:
        lines += _node_grid(rows[:_MOST_ROWS], frozenset(absent), width, proven=bool(proofs))
    lines += _proof_lines(proofs)
    more = coverage["nodes_wanted"] - len(coverage["nodes"])
    if more > 0:
        lines.append(f"{counted(more, 'more node')} pulled nothing yet")
    return [*lines, *_more(len(coverage["nodes"]) - _MOST_ROWS)]


def _proof_lines(proofs: Mapping[str, ProofRecord]) -> list[str]:
    """Return a line about the nodes' own answers; none without any."""
    if not proofs:
        return []
    images = sum(one["images"] for one in proofs.values())
    pinned = sum(one["pinned"] for one in proofs.values())
    tightest = min(proofs, key=lambda node: proofs[node]["free"])
    return [
        f"self-reported by {counted(len(proofs), 'node')}: {counted(images, 'image')}, {pinned} "
        f"pinned; least free space {format_size(proofs[tightest]['free'])} at {tightest}"
    ]


_SHOWN_EVIDENCE = (State.PROVEN, State.PRESENT_BEFORE, State.SERVED, State.CLAIMED)


def evidence(row: NodeRow) -> str:
    """Return by which evidence a node has images: ``2 proven, 1 served``."""
    shown = [f"{row.evidence[one]} {one}" for one in _SHOWN_EVIDENCE if row.evidence.get(one)]
    return ", ".join(shown) or "-"


def _node_grid(
    rows: Sequence[NodeRow], absent: Collection[str], width: int, *, proven: bool
) -> list[str]:
    table = [["node", "images"], *([row.name, f"{row.has} of {row.wanted}"] for row in rows)]
    if proven:
        shown_by = ["evidence", *map(evidence, rows)]
        table = [[*row, by] for row, by in zip(table, shown_by, strict=True)]
    left = grid(table, max(width // 2, MIN_WIDTH // 2))
    start = max(map(len, left)) + 2
    shown = ["missing", *(_fitting(missing_images(row, absent), width - start) for row in rows)]
    return [f"{a:<{start}}{b}".rstrip() for a, b in zip(left, shown, strict=True)]


def missing_images(row: NodeRow, absent: Collection[str] = ()) -> list[str]:
    """Return the images that a node lacks, without those absent from the registry."""
    return stated({one: state for one, state in row.missing.items() if one not in absent})


def _fitting(names: Sequence[str], width: int) -> str:
    """Return as many names as fit, and the number of the others."""
    # Each name takes a column at least.
    for most in range(min(len(names), width), 1, -1):
        text = join_names(names, most)
        if len(text) <= width:
            return text
    if not names:
        return "-"
    rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return shorten(names[0], max(width - len(rest), 3)) + rest


def status_lines(found: Mapping[str, Any], width: int) -> list[str]:
    """Return the status of a running server as text.

    Args:
        found: its answer to ``status``.
        width: columns; at least `MIN_WIDTH` are used.
    """
    found = escaped(found)
    width = max(width, MIN_WIDTH)
    rows = [
        ["state", f"{found['state']}, for {readable(found['seconds'])}"],
        ["at", f"{found['url']}, pid {found['pid']}, version {found['version']}"],
        ["idle for", readable(found["idle_seconds"])],
        *ends_rows(found.get("ends", ())),
        ["in", format_size(found["bytes_in"])],
        ["out", format_size(found["bytes_out"])],
    ]
    lines = grid(rows, width)
    lines += transfer_lines(found["transfers"], width)
    lines += [f"warning: {notice_text(warning)}" for warning in found["warnings"]]
    for path, names in found["ambiguous"].items():
        lines.append(f"ambiguous: {path} is in several upstreams; ask for {' or '.join(names)}")
    lines += upstream_lines(found.get("upstreams", ()), width)
    lines += denied_lines(found.get("denied", ()), width, _MOST_REFUSED)
    lines += corrupt_lines(found["corrupt"])
    if found["coverage"] is not None:
        lines += ["", *coverage_lines(found["coverage"], width)]
    return lines


_ENDS: Mapping[str, str] = {
    EndKind.COVERED: "when every node has every image",
    EndKind.IDLE: "when idle",
    EndKind.UNUSED: "if nothing is pulled",
    EndKind.DEADLINE: "at the end of its lifetime",
    EndKind.COMMAND: "with its command",
    EndKind.STOP_FILE: "when the stop file appears",
    EndKind.PARENT: "with its parent process",
    EndKind.STANDARD_INPUT: "with its standard input",
}


def ends_rows(records: Sequence[EndRecord]) -> list[list[str]]:
    """Return the row of the conditions that end the server; none if only an operator does.

    Args:
        records: none from an older server; conditions of a newer one are shown as they are.
    """
    found = []
    for record in records:
        text = end_text(record["conditions"])
        seconds = record["seconds"]
        found.append(text if seconds is None else f"{text} (in {readable(seconds)})")
    return [["ends", ", or ".join(found)]] if found else []


def end_text(conditions: Sequence[str]) -> str:
    """Return conditions that end the server together: ``when idle and with its command``."""
    return " and ".join(_ENDS.get(kind, kind) for kind in conditions)


def upstream_lines(records: Sequence[UpstreamRecord], width: int) -> list[str]:
    """Return the use of mirrored registries, a row each.

    Args:
        records: none from an older server.
    """
    if not records:
        return []
    rows = [["upstream", "fetched", "blobs", "from here", "asked", "stale"]]
    for one in records:
        host = one["host"] if one["reachable"] else f"{one['host']} (unreachable)"
        counts = (one["downloads"], one["hits"], one["misses"], one["stale"])
        fetched, *others = format_size(one["bytes"]), *map(str, counts)
        rows.append([host, fetched, *others])
    return ["", *grid(rows, width)]


def amount(found: Mapping[str, Any], before: Mapping[str, Any] | None, key: str) -> str:
    """Return a number of bytes, and their rate since an earlier answer, if there is one."""
    text = format_size(found[key])
    if before is not None and found["seconds"] > before["seconds"]:
        rate = (found[key] - before[key]) / (found["seconds"] - before["seconds"])
        text += f", {format_size(round(rate))}/s"
    return text


def transfer_lines(records: Sequence[TransferRecord], width: int) -> list[str]:
    """Return transfers under way, a row each."""
    if not records:
        return []
    rows = [["under way", "content", "bytes", "rate"]]
    for one in records[:_MOST_TRANSFERS]:
        per_second = f"{format_size(round(rate(one)))}/s"
        rows.append([actor(one), content(one), format_size(one["bytes"]), per_second])
    return ["", *grid(rows, width), *_more(len(records) - _MOST_TRANSFERS)]


def rate(transfer: TransferRecord) -> float:
    """Return the bytes per second since the transfer began."""
    return transfer["bytes"] / transfer["seconds"] if transfer["seconds"] else 0.0


def actor(transfer: TransferRecord) -> str:
    """Return the direction, and the node and address at the other end."""
    return f"{transfer['direction']} by {peer(transfer)}"


def peer(transfer: TransferRecord) -> str:
    """Return the node and address at the other end."""
    node, address = transfer["node"], transfer["address"]
    return f"{node} ({address})" if address and address != node else node


def content(transfer: TransferRecord) -> str:
    """Return the repository, with the digest of a pull."""
    digest = transfer["digest"]
    return f"{transfer['repository']}@{digest}" if digest else transfer["repository"]


def denied_lines(records: Sequence[DeniedRecord], width: int, most: int) -> list[str]:
    """Return refused requests by user and address, a row each.

    Args:
        records: most frequent first; none from an older server.
        width: columns.
        most: rows.
    """
    if not records:
        return []
    rows = [["denied", "user", "address"]]
    rows += [[str(one["requests"]), one["user"] or "-", one["address"]] for one in records[:most]]
    return ["", *grid(rows, width), *_more(len(records) - most)]


def aborted_lines(transfers: Sequence[TransferRecord], requests: int) -> list[str]:
    """Return the transfers that were aborted, a line each."""
    if requests and not transfers:
        return [f"cut: {counted(requests, 'request')}"]
    lines = [
        f"cut: {one['direction']} of {content(one)} by {peer(one)}, at {format_size(one['bytes'])}"
        for one in transfers[:_MOST_ROWS]
    ]
    return [*lines, *_more(len(transfers) - _MOST_ROWS)]


def corrupt_lines(records: Sequence[CorruptRecord]) -> list[str]:
    """Return corrupt content of bundles, a line each, not shortened, so that it can be copied."""
    lines = [f"corrupt: {corruption_text(one)}" for one in records[:_MOST_ROWS]]
    return [*lines, *_more(len(records) - _MOST_ROWS)]


def corruption_text(found: Corruption) -> str:
    """Describe corrupt content of a bundle, the images that need it, and the remedy."""
    bundle, digest, file = found["bundle"], found["digest"], found["file"] or found["bundle"]
    match found["problem"]:
        case "digest_mismatch":
            place = f"bytes {found['first_byte']} to {found['last_byte']}"
            # Of an archive the file is the bundle itself.
            if PurePath(file).name != PurePath(bundle).name:
                place += f" of {file}"
            fact, remedy = f"{digest} is corrupt ({place})", "fetch the bundle again and restart"
        case "file_changed":
            fact = f"{digest} is not served, since the file was changed after the start"
            remedy = "restart to serve the file as it is now"
        case "file_gone":
            fact = f"{digest} was there at the start and is gone"
            remedy = "fetch the bundle again and restart"
        case _:
            fact = f"{digest} is not served, since a link or a special file is in its place"
            remedy = "fetch the bundle again and restart"
    images = join_names(found["images"] or found["repositories"], _MOST_NAMES)
    affected = f"; images that need it: {images}" if images else ""
    return f"{bundle}: {fact}{affected}; {remedy}"


def _more(left: int) -> list[str]:
    return [f"… and {left} more"] if left > 0 else []


def report_text(content: Report, width: int) -> str:
    """Return a report as text for people.

    Args:
        content: the report, as its JSON.
        width: columns; at least `MIN_WIDTH` are used.
    """
    content = escaped(content)
    width = max(width, MIN_WIDTH)
    lines = _summary(content, width)
    if content["images"]:
        lines += ["", *_images(content["images"], width)]
    if content["images_left_out"]:
        left = counted(content["images_left_out"], "more image is", "more images are")
        lines.append(f"{left} left out: reading their manifests took too long")
    lines += prefetch_lines(content)
    lines += safety_lines(content)
    if content["coverage"]:
        lines += ["", *coverage_lines(content["coverage"], width)]
    lines += denied_lines(content["denied"], width, _MOST_ROWS)
    lines += upstream_lines(content.get("upstreams", ()), width)
    lines += corrupt_lines(content["corrupt"])
    lines += aborted_lines(content["cut"], content["cut_requests"])
    lines += asked_again_lines(content["asked_again"])
    lines += recorded_lines(content)
    return "\n".join(lines) + "\n"


def prefetch_lines(content: Report) -> list[str]:
    """Return the result of `--prefetch`, with a line for each node that proved too little."""
    from mayfly.registry.nodes.causes import TEXTS, Cause

    found = content.get("prefetch")  # an older server's report has none
    if found is None:
        return []
    proven = counted_of(found["proven"], found["nodes"], "node")
    lines = [f"prefetch: {proven} proved every image, in {readable(found['seconds'])}"]
    for one in found["unprepared"][:_MOST_ROWS]:
        text = f"{one['node']}: {TEXTS[Cause(one['code'])][0]}"
        lines.append(f"prefetch: {text}: {one['detail']}" if one["detail"] else f"prefetch: {text}")
    return [*lines, *_more(found["nodes"] - found["proven"] - _MOST_ROWS)]


def safety_lines(content: Report) -> list[str]:
    """Return the last answer to ``mayfly wait --safe-to-stop``; nothing if nobody asked."""
    found = content.get("safe_to_stop")  # an older server's report has none
    if found is None:
        return []
    from mayfly.registry.cluster.record import finding_text, unseen_text

    if found["safe"]:
        return [f"safe to stop: yes, at {found['time']}"]
    troubles = [*map(finding_text, found["findings"]), *map(unseen_text, found["unseen"])]
    count = len(troubles) + found["left_out"]
    shown = [f"not safe to stop: {text}" for text in troubles[:_MOST_ROWS]]
    return [
        f"safe to stop: no, at {found['time']}: {counted(count, 'trouble')}",
        *shown,
        *_more(count - len(shown)),
    ]


def recorded_lines(content: Report) -> list[str]:
    """Return lines about the events that were recorded, and those that were lost."""
    lines = []
    if audit := content.get("audit"):
        lines.append(f"audit: {audit['file']}, event {audit['events']}, head {audit['head']}")
        if audit["unwritten"]:
            lines.append(f"audit: {counted(audit['unwritten'], 'event')} could not be written")
    for one in content.get("notified", ()):
        if one["waiting_bytes"] or one["dropped"]:
            waiting = f"{format_size(one['waiting_bytes'])} of events wait for the next start"
            dropped = f"{counted(one['dropped'], 'event')} dropped"
            lines.append(f"notify: {one['receiver']} did not take all: {waiting}, {dropped}")
    return lines


def claims_line(content: Report) -> str:
    """Return the warning that exit code 0 rests on claims, "" if it does not."""
    if not content["coverage"] or content["exit_code"] != 0:
        return ""
    text = claims_text(content["coverage"]["claimed"])
    return f"exit code 0 rests on claims: {text}" if text else ""


def asked_again_lines(nodes: Mapping[str, int]) -> list[str]:
    """Return a warning of nodes that requested content again; none without any."""
    if not nodes:
        return []
    names = [f"{node} ({count})" for node, count in sorted(nodes.items())]
    shown = join_names(names, _MOST_NAMES)
    return [
        f"warning: asked again for images they had: {shown}. Pods with imagePullPolicy Always, "
        "and from Kubernetes 1.35 on pods with other credentials, ask at every start and will fail "
        "without this registry"
    ]


def ended_text(reason: str, detail: Mapping[str, Any]) -> str:
    """Return why a server ended, as text that follows "ended because"."""
    duration = exact(float(detail["seconds"])) if "seconds" in detail else ""
    match reason:
        case "covered":
            return "every node has every image"
        case "command":
            return _command_ended(detail)
        case "deadline":
            return f"the maximum lifetime of {duration} was over"
        case "idle":
            return f"no request came for {duration}"
        case "unused":
            return f"no image was pulled and no request came for {duration}"
        case "signal":
            return f"it received {detail['signal']}"
        case "stop":
            return "mayfly stop asked for it"
        case "stop-file":
            return f"the stop file appeared: {detail['file']}"
        case "parent":
            return f"the process that started it ended (pid {detail['pid']})"
        case "standard-input":
            return "its standard input was closed"
        case "prefetch":
            return (
                f"{counted(int(detail['nodes']), 'node')} did not prove every image to --prefetch"
            )
        case "failed":
            return f"content of {detail['bundle']} is corrupt"
        case _:
            # A newer server's report, read by an older command.
            return reason


def _command_ended(detail: Mapping[str, Any]) -> str:
    if not detail:
        return "a signal came before the command was started"
    name, code = detail["command"], int(detail["exit_code"])
    if code >= 0:
        return f"{name} ended with exit code {code}"
    # Imported only for this case.
    from mayfly.registry.process.child import signal_name

    number = signal_name(-code)
    return f"{name} was ended by {number}"


def _summary(content: Report, width: int) -> list[str]:
    # The reason is not shortened, so that a path in it can be copied.
    ended = f"ended because {ended_text(content['reason'], content['reason_detail'])}"
    return [ended, *grid(summary_rows(content), width)]


def summary_rows(content: Report) -> list[list[str]]:
    """Return names and values of a run as a whole."""
    rows = [
        ["ran", f"{readable(content['seconds'])}, from {content['started']}"],
        ["in, out", f"{format_size(content['bytes_in'])}, {format_size(content['bytes_out'])}"],
        ["peak memory", format_size(content["peak_memory"]["server"])],
    ]
    before, after = content["storage_before"], content["storage_after"]
    if before is not None and after is not None:
        rows.append(["storage", f"{format_size(before)} before, {format_size(after)} after"])
    return rows


def _images(images: list[ImageRecord], width: int) -> list[str]:
    rows = [["image", "pushed by", "pulled by"]]
    for image in images[:_MOST_ROWS]:
        pulled = [pull["node"] for pull in image["pulls"] if pull["state"] in HAS_IMAGE]
        by = (", ".join(image["pushed_by"]) or "-", ", ".join(pulled) or "-")
        rows.append([image["name"], *by])
    return [*grid(rows, width), *_more(len(images) - _MOST_ROWS)]
