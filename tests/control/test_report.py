"""The report, as JSON and as text."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.activity import Activity
from mayfly.registry.cluster.record import FindingRecord, ReportedSafety, UnseenRecord
from mayfly.registry.control import report as reports
from mayfly.registry.control import status_text
from mayfly.registry.control.report import (
    CorruptRecord,
    CoverageRecord,
    GapRecord,
    ImageRecord,
    Memory,
    PrefetchRecord,
    ProofRecord,
    PullRecord,
    Report,
    TransferRecord,
    UnpreparedRecord,
    denied_records,
    image_records,
    iso,
    peak_memory,
    storage_used,
    write,
)
from mayfly.registry.coverage.ledger import Ledger
from mayfly.registry.coverage.manifest_graph import ManifestGraph, ManifestRefs
from mayfly.registry.coverage.observer import Observer
from mayfly.registry.coverage.pulls import SETTLED_SECONDS, Pulls
from mayfly.registry.coverage.states import State
from mayfly.registry.ending import EndKind
from mayfly.registry.upstream.health import UpstreamRecord
from tests.support.fakes import FakeClock, FakeStore, digest
from tests.support.process import resident_bytes


def _pull(node: str, state: State = State.SERVED) -> PullRecord:
    first, last = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
    return PullRecord(node=node, state=state, bytes=9, first=first, last=last, retries=1)


MATRIX = {
    "docker.io/library/nginx:1.25": {"node-a": State.CLAIMED, "node-b": State.MISSING},
    "quay.io/team/app:2": {"node-a": State.SERVED, "node-b": State.FAILED},
}
COVERAGE = CoverageRecord(
    complete=False,
    nodes_wanted=2,
    nodes_covered=1,
    nodes=["node-a", "node-b"],
    declared=["node-a", "node-b"],
    matrix=MATRIX,
    claimed={"node-a": 1},
    proofs={},
    accept=State.CLAIMED,
    absent=[],
    missing=[
        GapRecord(node="node-b", image="docker.io/library/nginx:1.25", state=State.MISSING),
        GapRecord(node="node-b", image="quay.io/team/app:2", state=State.FAILED),
    ],
    missing_left_out=0,
)
CUT = TransferRecord(
    direction="pull",
    repository="r",
    digest=digest("layer"),
    node="node-b",
    address="10.0.0.7",
    bytes=2048,
    seconds=4.0,
)
REPORT = Report(
    version="1",
    pid=7,
    reason="deadline",
    reason_detail={"seconds": 3600.0},
    exit_code=3,
    started="2026-01-01T00:00:00Z",
    stopped="2026-01-01T01:00:00Z",
    seconds=3600.0,
    peak_memory=Memory(server=50 * 1024 * 1024, command=0),
    bytes_in=5 * 1024**3,
    bytes_out=100,
    images=[
        ImageRecord(
            name="team/app:2",
            digest=digest("app"),
            pushed_by=["admin"],
            pulls=[_pull("node-a"), _pull("node-c", State.FAILED)],
        )
    ],
    images_left_out=0,
    coverage=COVERAGE,
    denied=denied_records({("", "10.0.0.8"): 1, ("eve", "::ffff:10.0.0.9"): 3}),
    corrupt=[
        CorruptRecord(
            digest=digest("layer"),
            bundle="upgrade.tar",
            problem="digest_mismatch",
            file="/b/upgrade.tar",
            first_byte=512,
            last_byte=1023,
            repositories=["team/app"],
            images=["team/app:2"],
            found="2026-01-01T00:10:00Z",
        )
    ],
    upstreams=[
        UpstreamRecord(
            host="docker.io",
            hits=7,
            misses=2,
            stale=1,
            downloads=3,
            bytes=3 * 1024**2,
            reachable=False,
        )
    ],
    storage_before=0,
    storage_after=1024,
    cut=[CUT],
    cut_requests=1,
    asked_again={"node-a": 1},
    audit={"file": "/var/log/audit.jsonl", "events": 12, "head": "5c" * 32, "unwritten": 1},
    notified=[
        {"receiver": "events:8080", "delivered": 9, "dropped": 2, "waiting_bytes": 2048},
        {"receiver": "other", "delivered": 11, "dropped": 0, "waiting_bytes": 0},
    ],
    prefetch=PrefetchRecord(
        nodes=3,
        proven=2,
        seconds=61.0,
        unprepared=[
            UnpreparedRecord(
                node="node-b", code="disk_full", detail="no\x1b space", images=2, attempts=1
            )
        ],
    ),
    safe_to_stop=ReportedSafety(
        time="2026-01-01T00:59:00Z",
        safe=False,
        images=2,
        nodes=2,
        uses=7,
        findings=[
            FindingRecord(
                code="always_pulls",
                nodes=["node-a"],
                images=["team/app:2"],
                workload={"kind": "Pod", "namespace": "team", "name": "web-0"},
                role="container",
                part="c",
                when="restart",
                detail="",
            )
        ],
        unseen=[UnseenRecord(code="node", node="node-b", detail="no\x1b answer")],
        left_out=3,
    ),
)


def test_json(tmp_path: Path) -> None:
    """The file has the whole report and is replaced atomically."""
    target = tmp_path / "reports" / "report.json"
    write(REPORT, target)
    assert json.loads(target.read_text()) == REPORT
    assert [entry.name for entry in target.parent.iterdir()] == ["report.json"]


def test_table() -> None:
    """The text has the same content for people."""
    text = status_text.report_text(REPORT, 100)
    for part in (
        "ended because the maximum lifetime of 1h was over\n",
        "1h 0m 0s",
        "5.0 GiB, 100 B",
        "50.0 MiB",
        "0 B before, 1.0 KiB after",
        "coverage: 1 of 2 nodes",
        "team/app:2  admin      node-a\n",
        "node-b  0 of 2  docker.io/library/nginx:1.25, quay.io/team/app:2 (failed)",
        "node-a  2 of 2  -",
        "docker.io (unreachable)  3.0 MiB  3      7          2      1\n",
        "3       eve   10.0.0.9",
        "1       -     10.0.0.8",
        f"corrupt: upgrade.tar: {digest('layer')} is corrupt (bytes 512 to 1023); images that need "
        "it: team/app:2; fetch the bundle again and restart",
        f"cut: pull of r@{digest('layer')} by node-b (10.0.0.7), at 2.0 KiB",
        "warning: asked again for images they had: node-a (1). Pods with",
    ):
        assert part in text


UNSHORTENED = ("ended", "corrupt", "cut", "warning", "audit", "notify", "prefetch", "safe", "not")


@pytest.mark.parametrize("width", [1, 40, 80, 200])
def test_table_is_no_wider_than_asked(width: int) -> None:
    """Rows keep to the width by shortening names; problems are not shortened."""
    many = {f"node-{i:03}": State.SERVED if i else State.MISSING for i in range(100)}
    matrix = {"x" * 90: many, "y" * 90: many}
    coverage: CoverageRecord = {**COVERAGE, "nodes": [*many], "matrix": matrix}
    lines = status_text.report_text({**REPORT, "coverage": coverage}, width).splitlines()
    rows = [line for line in lines if not line.startswith(UNSHORTENED)]
    assert max(map(len, rows)) <= max(width, 40)
    nodes = [line for line in rows if line.startswith("node-")]
    assert len(nodes) == 100
    assert nodes[0].startswith("node-000  0 of 2")
    assert nodes[0].endswith("and 1 more") or width == 200


def test_upgrade_of_many_nodes_is_short() -> None:
    """Each node has one row, whatever the number of images; incomplete nodes come first."""
    nodes = [f"node-{i:02}" for i in range(24)]
    images = [f"team/app-{i:02}:1" for i in range(12)]
    matrix = {image: dict.fromkeys(nodes, State.SERVED) for image in images}
    for image in images[3:5]:
        matrix[image]["node-17"] = State.MISSING
    coverage: CoverageRecord = {**COVERAGE, "nodes_wanted": 24, "nodes": nodes, "matrix": matrix}
    lines = status_text.coverage_lines(coverage, 100)
    assert len(lines) == 1 + 1 + 24
    assert lines[2] == "node-17  10 of 12  team/app-03:1, team/app-04:1"


def test_what_nodes_say_of_themselves_is_shown_as_that() -> None:
    """By which evidence each node has its images, and the nodes' own figures in one line."""
    matrix = {
        "a:1": {"n1": State.PROVEN, "n2": State.CLAIMED},
        "b:1": {"n1": State.PRESENT_BEFORE, "n2": State.SERVED},
        "c:1": {"n1": State.PROVEN, "n2": State.MISSING},
    }
    proof = ProofRecord(time="2026-01-01T00:00:00Z", images=3, pinned=2, free=5 * 1024**3)
    coverage: CoverageRecord = {
        **COVERAGE,
        "nodes": ["n1", "n2"],
        "matrix": matrix,
        "accept": State.CLAIMED,
        "proofs": {"n1": proof},
    }
    text = "\n".join(status_text.coverage_lines(coverage, 120))
    assert "2 proven, 1 present before" in text
    assert "1 served, 1 claimed" in text
    assert "self-reported by 1 node: 3 images, 2 pinned; least free space 5.0 GiB at n1" in text


def test_image_that_nobody_can_have_is_named_once() -> None:
    """An image that the registry lacks is a line of its own, not a part of every node's."""
    matrix = {"a:1": {"n1": State.ABSENT, "n2": State.ABSENT}}
    coverage: CoverageRecord = {
        **COVERAGE,
        "nodes": ["n1", "n2"],
        "matrix": matrix,
        "absent": ["a:1"],
    }
    lines = status_text.coverage_lines(coverage, 80)
    assert [line for line in lines if "a:1" in line] == ["not in the registry: a:1"]


NEWER = (*((name,) for name in sorted(reports._NEWER)), ("coverage", "proofs"))
"""Fields that reports and status did not have from the start."""


@pytest.mark.parametrize("path", NEWER, ids=".".join)
def test_text_without_a_newer_field(tmp_path: Path, path: tuple[str, ...]) -> None:
    """The command may be newer than the server that it asks, and than a report that it reads."""
    found: Any = copy.deepcopy(REPORT)
    *above, key = path
    part = found
    for name in above:
        part = part[name]
    del part[key]
    (tmp_path / "report.json").write_text(json.dumps(found))
    assert "team/app:2" in status_text.report_text(reports.load(tmp_path / "report.json"), 100)


def test_table_says_what_was_recorded() -> None:
    """The head of the audit file, and receivers that lack events."""
    lines = status_text.report_text(REPORT, 80).splitlines()
    assert f"audit: /var/log/audit.jsonl, event 12, head {'5c' * 32}" in lines
    assert "audit: 1 event could not be written" in lines
    (late,) = [line for line in lines if "did not take" in line]
    assert late.startswith("notify: events:8080 did not take all: 2.0 KiB of events wait")
    assert late.endswith("2 events dropped")


def test_prefetch_is_in_the_report() -> None:
    """How many nodes had everything before the command, and why the others had not."""
    lines = status_text.report_text(REPORT, 80).splitlines()
    assert "prefetch: 2 of 3 nodes proved every image, in 1m 1s" in lines
    assert r"prefetch: node-b: its disk is full: no\x1b space" in lines


def test_safety_is_in_the_report() -> None:
    """Which pod on which node fails when, what was not seen, and when that was judged."""
    lines = status_text.report_text(REPORT, 80).splitlines()
    assert "safe to stop: no, at 2026-01-01T00:59:00Z: 5 troubles" in lines
    assert (
        "not safe to stop: Pod team/web-0, container c, on node-a: fails when it restarts: "
        "team/app:2: imagePullPolicy Always asks the registry at every start"
    ) in lines
    assert r"not safe to stop: node-b: the node was not seen: no\x1b answer" in lines
    found = REPORT["safe_to_stop"]
    assert found is not None
    safe: Report = {**REPORT, "safe_to_stop": {**found, "safe": True}}
    lines = status_text.report_text(safe, 80).splitlines()
    assert "safe to stop: yes, at 2026-01-01T00:59:00Z" in lines


def test_table_without_anything() -> None:
    """A run in which nothing happened has a short report."""
    empty: Report = {**REPORT, "images": [], "coverage": None, "denied": [], "corrupt": []}
    empty |= {"cut": [], "cut_requests": 0, "asked_again": {}, "storage_before": None}
    empty |= {"audit": None, "notified": [], "upstreams": [], "prefetch": None}
    empty |= {"safe_to_stop": None}
    assert len(status_text.report_text(empty, 80).splitlines()) == 4


def test_progress() -> None:
    """Progress is one line, with incomplete nodes and those that were not seen yet."""
    assert status_text.progress(COVERAGE) == "1 of 2 nodes covered; missing: node-b"
    more: CoverageRecord = {**COVERAGE, "nodes_wanted": 5}
    assert status_text.progress(more).endswith("missing: node-b, 3 that pulled nothing yet")


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [("short", 10, "short"), ("0123456789", 7, "012…789"), ("0123456789", 2, "01")],
)
def test_shorten(text: str, width: int, shown: str) -> None:
    """Shortening keeps the ends of a name."""
    assert status_text.shorten(text, width) == shown


def test_denied_rows_are_bounded() -> None:
    """Of refused requests the most frequent are shown, and how many rows are left out."""
    records = denied_records({("eve", f"10.0.0.{n}"): n for n in range(1, 6)})
    lines = status_text.denied_lines(records, 80, 2)
    assert [line.split() for line in lines] == [
        [], ["denied", "user", "address"], ["5", "eve", "10.0.0.5"], ["4", "eve", "10.0.0.4"],
        ["…", "and", "3", "more"],
    ]  # fmt: skip
    assert status_text.denied_lines([], 80, 2) == []


def test_denied_names_are_harmless() -> None:
    """A made-up name cannot move the cursor of a terminal that shows the report."""
    (record,) = denied_records({("\x1b[2J" + "x" * 500, "10.0.0.9"): 1})
    assert record["user"].isprintable()
    assert len(record["user"]) == 100


def test_success_that_rests_on_claims() -> None:
    """Exit code 0 with claims among its evidence says so."""
    assert status_text.claims_line({**REPORT, "exit_code": 0}) == (
        "exit code 0 rests on claims: "
        "images claimed by the node's runtime, not served by this registry: node-a (1)"
    )
    assert status_text.claims_line(REPORT) == ""
    assert status_text.claims_line({**REPORT, "exit_code": 0, "coverage": None}) == ""


@pytest.mark.parametrize(
    ("kind", "detail", "why"),
    [
        (EndKind.COVERED, {}, "every node has every image"),
        (EndKind.COMMAND, {"command": "sh", "exit_code": 7}, "sh ended with exit code 7"),
        (EndKind.COMMAND, {"command": "sh", "exit_code": -2}, "sh was ended by SIGINT"),
        (EndKind.COMMAND, {"command": "sh", "exit_code": -9}, "sh was ended by SIGKILL"),
        (EndKind.COMMAND, {}, "a signal came before the command was started"),
        (EndKind.DEADLINE, {"seconds": 7200.0}, "the maximum lifetime of 2h was over"),
        (EndKind.IDLE, {"seconds": 600.0}, "no request came for 10m"),
        (EndKind.UNUSED, {"seconds": 60.0}, "no image was pulled and no request came for 1m"),
        (EndKind.SIGNAL, {"signal": "SIGTERM"}, "it received SIGTERM"),
        (EndKind.STOP, {}, "mayfly stop asked for it"),
        (EndKind.STOP_FILE, {"file": "/run/stop"}, "the stop file appeared: /run/stop"),
        (EndKind.PARENT, {"pid": 7}, "the process that started it ended (pid 7)"),
        (EndKind.STANDARD_INPUT, {}, "its standard input was closed"),
        (EndKind.FAILED, {"digest": "x", "bundle": "/b.tar"}, "content of /b.tar is corrupt"),
    ],
)
def test_why_it_ended(kind: EndKind, detail: dict[str, str | float], why: str) -> None:
    """For people each end is a sentence."""
    content: Report = {**REPORT, "reason": kind, "reason_detail": detail}
    assert status_text.report_text(content, 100).splitlines()[0] == f"ended because {why}"


def test_every_end_has_a_sentence() -> None:
    """No kind of end is shown by its name alone."""
    some: dict[str, str | float] = {
        "seconds": 60.0,
        "signal": "SIGTERM",
        "file": "/f",
        "pid": 7,
        "bundle": "/b",
        "nodes": 2,
    }
    for kind in EndKind:
        detail: dict[str, str | float] = {} if kind is EndKind.COMMAND else some
        content: Report = {**REPORT, "reason": kind, "reason_detail": detail}
        assert status_text.report_text(content, 100).splitlines()[0] != f"ended because {kind}"


@pytest.mark.parametrize(
    ("problem", "file", "says"),
    [
        ("digest_mismatch", "/b/layout/blobs/sha256/1", "is corrupt (bytes 512 to 1023 of /b/"),
        ("file_changed", "/b/upgrade.tar", "the file was changed after the start"),
        ("file_gone", None, "was there at the start and is gone"),
        ("file_refused", None, "a link or a special file is in its place"),
    ],
)
def test_corrupt_content_in_words(problem: str, file: str | None, says: str) -> None:
    """Each problem names the fault, the affected images and the remedy."""
    record: CorruptRecord = {**REPORT["corrupt"][0], "problem": problem, "file": file}
    found = status_text.corruption_text(record)
    assert found.startswith(f"upgrade.tar: {digest('layer')} ")
    assert says in found
    assert "; images that need it: team/app:2; " in found
    assert found.endswith(("restart", "restart to serve the file as it is now"))


async def test_images_by_whom() -> None:
    """Images have the names they were pushed or asked for by, and for each node that asked its
    state, bytes, times and retries; children of an index are part of it, unless somebody named
    them."""
    content = FakeStore()
    index, child, single = digest("index"), digest("child"), digest("single")
    config, layer = digest("config"), digest("layer")
    content.manifests = {
        ("r", index): ManifestRefs(children=(child,)),
        ("r", child): ManifestRefs(blobs=(config, layer)),
        ("r", single): ManifestRefs(blobs=(config,)),
    }
    clock = FakeClock(wall=0)
    ledger = Ledger(None, clock)
    pulls, graph = Pulls(clock.now, ledger.changed), ManifestGraph(content.refs)
    observer = Observer(Activity(clock.now), pulls, ledger, graph, clock)
    ledger.pushed("admin", "r", child)
    ledger.pushed("admin", "r", index, ["1", "latest"])
    a, b = (observer.peer(node, None, None, "containerd/2") for node in "ab")
    observer.manifest_served(a, "r", index, content.manifests["r", index], head=True, tag="1")
    observer.manifest_served(a, "r", child, content.manifests["r", child], head=False, tag=None)
    observer.manifest_served(b, "r", single, content.manifests["r", single], head=False, tag=None)
    await clock.tick(10)
    for blob, sent in ((config, 9), (layer, 5), (layer, 9)):
        with (
            contextlib.suppress(ConnectionError),
            observer.sending(a, "r", blob) as sending,
            sending.part(0, 9, 9),
        ):
            sending.count(sent)
            if sent < 9:
                raise ConnectionResetError
    await clock.tick(SETTLED_SECONDS)
    begun, ended = "1970-01-01T00:00:00Z", "1970-01-01T00:00:10Z"
    had = PullRecord(node="a", state=State.SERVED, bytes=23, first=begun, last=ended, retries=1)
    looked = PullRecord(
        node="b", state=State.INCOMPLETE, bytes=0, first=begun, last=begun, retries=0
    )
    images, left_out = await image_records(observer)
    assert left_out == 0
    assert images == [
        ImageRecord(name="r:1", digest=index, pushed_by=["admin"], pulls=[had]),
        ImageRecord(name="r:latest", digest=index, pushed_by=["admin"], pulls=[had]),
        ImageRecord(name=f"r@{single}", digest=single, pushed_by=[], pulls=[looked]),
    ]


def test_transfers() -> None:
    """Transfers are shown with peer, amount and rate; those beyond the limit are counted."""
    lines = status_text.transfer_lines([CUT] * 30, 200)
    assert lines[2].split() == [
        *("pull", "by", "node-b", "(10.0.0.7)"),
        f"r@{digest('layer')}",
        *("2.0", "KiB", "512", "B/s"),
    ]
    assert lines[-1] == "… and 10 more"
    assert status_text.transfer_lines([], 80) == []


def test_requests_that_were_cut() -> None:
    """Requests that move no content are only counted."""
    assert status_text.aborted_lines([], 2) == ["cut: 2 requests"]
    assert status_text.aborted_lines([], 0) == []


def test_peak_memory() -> None:
    """The peak is this process's own: at least its size now, and plausible."""
    peak = peak_memory()
    assert resident_bytes() <= peak["server"] < 2**40


def test_storage_used(tmp_path: Path) -> None:
    """Disk usage counts the files of a tree without following links; empty directories are 0."""
    (tmp_path / "deep/er").mkdir(parents=True)
    assert storage_used(tmp_path) == 0
    (tmp_path / "deep/er/file").write_bytes(b"x" * 100_000)
    (tmp_path / "deep/loop").symlink_to(tmp_path)
    assert 100_000 <= storage_used(tmp_path) < 200_000
    assert storage_used(tmp_path / "none") == 0


def test_iso() -> None:
    """Times are UTC, whatever the machine's zone."""
    assert iso(0) == "1970-01-01T00:00:00Z"
