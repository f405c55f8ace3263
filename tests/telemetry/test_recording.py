"""The events of a real server: every action once, in the file and at a receiver."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.exit_codes import Exit
from mayfly.registry.telemetry.chain import check
from mayfly.storage.manifest import OCI_MANIFEST
from tests.faults import disk_mounts
from tests.faults.disk_mounts import fill, tmpfs
from tests.support.beside import Request, answering
from tests.support.client import Answer, ask, basic
from tests.support.commands import assert_refused, mayfly, run_mayfly
from tests.support.images import digest_of, image_body
from tests.support.process import PATIENCE, Mayfly

Start = Callable[..., Mayfly]

CONFIG = b"{}"
SECRET = "0123456789abcdef-a-secret"


@pytest.fixture
def received() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a receiver, and the events that it got."""
    events: list[dict[str, Any]] = []

    def receive(request: Request) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        events.extend(json.loads(body)["events"])
        request.reply(202)

    with answering(receive) as host:
        yield f"http://{host}/events", events


def recorded(file: Path) -> list[dict[str, Any]]:
    """The events of a file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def act(host: str) -> None:
    """Push, mount, pull, look, list and delete."""

    def done(status: int, method: str, target: str, body: bytes | None = None) -> Answer:
        headers = {"Content-Type": OCI_MANIFEST, "User-Agent": "agent " + "x" * 2000}
        answer = ask(host, method, target, body, headers)
        assert answer.status == status, (method, target, answer.body)
        return answer

    config = digest_of(CONFIG)
    done(201, "POST", f"/v2/team/app/blobs/uploads/?digest={config}", CONFIG)
    done(201, "POST", f"/v2/other/blobs/uploads/?mount={config}&from=team/app")
    session = done(202, "POST", "/v2/team/app/blobs/uploads/").headers["Location"]
    session = done(202, "PATCH", session, b"layer").headers["Location"]
    done(201, "PUT", f"{session}?digest={digest_of(b'layer')}")
    body = image_body(CONFIG, [b"layer"])
    done(201, "PUT", "/v2/team/app/manifests/1", body)
    done(200, "HEAD", "/v2/team/app/manifests/1")
    done(200, "GET", "/v2/team/app/manifests/1")
    done(200, "GET", f"/v2/team/app/blobs/{digest_of(b'layer')}")
    done(404, "GET", "/v2/team/app/manifests/none")
    done(200, "GET", "/v2/_catalog")
    done(202, "DELETE", "/v2/team/app/manifests/1")
    done(200, "GET", "/livez")


DONE = [
    ("push", "done", ""),
    ("mount", "done", ""),
    ("push", "done", ""),
    ("push", "done", "1"),
    ("check", "done", "1"),
    ("pull", "done", "1"),
    ("pull", "done", ""),
    ("pull", "failed", "none"),
    ("list", "done", ""),
    ("delete", "done", "1"),
]


def shapes(found: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Action, outcome and tag of each event of a request."""
    return [
        (one["action"], one["outcome"], one["target"].get("tag", ""))
        for one in found
        if "request" in one
    ]


def test_every_action(
    start_mayfly: Start, tmp_path: Path, received: tuple[str, list[dict[str, Any]]]
) -> None:
    """The file has every request, the receiver what distribution sends; both end with the run."""
    url, posted = received
    audit, key = tmp_path / "audit.jsonl", tmp_path / "key"
    key.write_text(SECRET)
    key.chmod(0o640)
    options = ("--audit", str(audit), "--audit-level", "all", "--notify", url)
    server = start_mayfly(*options, "--notify-secret", str(key))
    act(server.host)
    assert server.stop() == 0
    found = recorded(audit)
    assert [found[0]["action"], found[-1]["action"]] == ["start", "end"]
    assert (found[-1]["reason"], found[-1]["exit_code"]) == ("signal", 0)
    assert shapes(found) == DONE
    assert shapes(posted) == [
        one for one in DONE if one[1] == "done" and one[0] not in ("check", "list")
    ]
    push, mount, layer = found[1], found[2], found[3]
    assert push["target"]["digest"] == digest_of(CONFIG)
    assert push["bytes"] == len(CONFIG)
    assert push["credential"] == "anonymous"
    assert push["node"] == push["request"]["addr"] == "127.0.0.1"
    assert push["request"]["host"] == server.host
    assert len(push["request"]["useragent"]) < 600
    assert mount["target"]["fromRepository"] == "team/app"
    assert layer["target"] == {
        "repository": "team/app",
        "digest": digest_of(b"layer"),
        "mediaType": "application/octet-stream",
    }
    manifest = found[4]["target"]
    assert manifest["mediaType"] == OCI_MANIFEST
    assert manifest["digest"] == digest_of(image_body(CONFIG, [b"layer"]))
    assert {one["source"]["instanceID"] for one in found} == {found[0]["source"]["instanceID"]}
    assert found[7]["bytes"] == len(b"layer")
    assert found[8]["reason"] == "MANIFEST_UNKNOWN"
    report = json.loads((server.state_dir / "report.json").read_text())
    assert report["audit"]["events"] == len(found)
    assert report["notified"][0]["delivered"] == len(posted)
    head = report["audit"]["head"]
    done = mayfly("audit", "verify", audit, "--head", head)
    assert done.returncode == 0, done.stderr
    assert f"the head is event {len(found)}" in done.stdout
    assert SECRET not in audit.read_text() + json.dumps(posted) + server.output()


@pytest.mark.parametrize(
    ("level", "kept"), [("denied", set()), ("writes", {"push", "mount", "delete"})]
)
def test_levels(start_mayfly: Start, tmp_path: Path, level: str, kept: set[str]) -> None:
    """A level has the events that its name says, and those of the run."""
    audit = tmp_path / "audit.jsonl"
    server = start_mayfly("--audit", str(audit), "--audit-level", level)
    act(server.host)
    assert server.stop() == 0
    found = recorded(audit)
    assert {one["action"] for one in found} == {"start", "end"} | kept
    assert shapes(found) == [one for one in DONE if one[0] in kept]


def test_kill_and_restart(start_mayfly: Start, tmp_path: Path) -> None:
    """After kill -9 the chain continues in the same run, and nothing is unexplained."""
    audit = tmp_path / "audit.jsonl"
    options = ("--audit", str(audit), "--audit-level", "all")
    state = tmp_path / "state"
    for turn in range(3):
        server = start_mayfly(*options, state_dir=state, root=tmp_path / "root")
        act(server.host)
        server.wait_for(lambda turn=turn: _deletes(audit) > turn)
        server.kill()
        with audit.open("ab") as file:
            file.write(b'{"number":')  # as a kill in the middle of a write leaves it
    server = start_mayfly(*options, state_dir=state, root=tmp_path / "root")
    assert server.stop() == 0
    found = check(audit)
    assert found.broken is None
    assert [cut.bytes for cut in found.cuts] == [len(b'{"number":')] * 3
    report = json.loads((state / "report.json").read_text())
    assert check(audit, report["audit"]["head"]).found == report["audit"]["events"]
    lines = [json.loads(line) for line in audit.read_text().splitlines() if line[-1] == "}"]
    assert len({one["source"]["instanceID"] for one in lines if "source" in one}) == 1


def test_second_server_with_the_same_file(start_mayfly: Start, tmp_path: Path) -> None:
    """It is refused at its start, while the first one runs; after a kill the next one may start."""
    audit = tmp_path / "audit.jsonl"
    first = start_mayfly("--audit", str(audit), state_dir=tmp_path / "1", root=tmp_path / "root1")
    where = ("--root", tmp_path / "root2", "--state-dir", tmp_path / "2")
    options = ("--listen", "127.0.0.1:0", "--audit", audit)
    assert_refused(mayfly("serve", *where, *options), f"--audit {audit}", "another server writes")
    first.kill()
    second = start_mayfly("--audit", str(audit), state_dir=tmp_path / "2", root=tmp_path / "root2")
    assert second.stop() == 0
    assert check(audit).broken is None


def _deletes(audit: Path) -> int:
    """The number of deletions that are in the file: the last thing that `act` does."""
    return audit.read_bytes().count(b'"action":"delete"')


def test_full_disk(start_mayfly: Start, workspace: Path) -> None:
    """While the disk of the file is full requests are served; the file holds when there is room."""
    with tmpfs(workspace / "audit", disk_mounts.MIB) as disk:
        audit = disk / "audit.jsonl"
        server = start_mayfly("--audit", str(audit), "--audit-level", "all")
        act(server.host)
        server.wait_for(lambda: _deletes(audit))
        fill(disk, leave=0)
        for _ in range(20):
            act(server.host)
        server.wait_for(lambda: "cannot be written" in server.output())
        for filler in disk.iterdir():
            if filler != audit:
                filler.unlink()
        server.wait_for(lambda: "is written again" in server.output())
        assert server.stop() == 0
        assert shapes(recorded(audit)) == DONE * 21
        found = check(audit)
        assert (found.broken, found.cuts) == (None, [])


def test_refused_logins_are_bounded(start_mayfly: Start, tmp_path: Path) -> None:
    """At every level: equal refusals are one event and a count, however many requests there are."""
    audit = tmp_path / "audit.jsonl"
    server = start_mayfly("--audit", str(audit), "--audit-level", "all", "--auth", "auto")
    for _ in range(200):
        refused = ask(server.host, "GET", "/auth/token", headers={"Authorization": "Basic !!!"})
        assert refused.status == 401
    assert server.stop() == 0
    denied = [one for one in recorded(audit) if one["outcome"] == "denied"]
    assert [one.get("repeated") for one in denied] == [None, 199]


def test_cut_pull_has_its_bytes(start_mayfly: Start, tmp_path: Path) -> None:
    """The event of a pull that a client broke off says how much was sent."""
    audit = tmp_path / "audit.jsonl"
    server = start_mayfly("--audit", str(audit), "--audit-level", "all")
    blob = bytes(32 * disk_mounts.MIB)
    pushed = f"/v2/a/blobs/uploads/?digest={digest_of(blob)}"
    assert ask(server.host, "POST", pushed, blob).status == 201
    with closing(HTTPConnection(server.host, timeout=30)) as connection:
        connection.request("GET", f"/v2/a/blobs/{digest_of(blob)}")
        assert len(connection.getresponse().read(4 * disk_mounts.MIB)) == 4 * disk_mounts.MIB
    server.wait_for(lambda: b'"cut"' in audit.read_bytes())
    (cut,) = [one for one in recorded(audit) if one["outcome"] == "cut"]
    assert 4 * disk_mounts.MIB <= cut["bytes"] < len(blob)


def test_unlisted_node_is_recorded(start_mayfly: Start, tmp_path: Path) -> None:
    """A credential for a node that --nodes lacks is refused, and the audit and report say so."""
    audit, images, nodes = (tmp_path / name for name in ("audit", "images", "nodes"))
    images.write_text("team/app:1\n")
    nodes.write_text("node-1\n")
    server = start_mayfly("--auth", "auto")
    where = ("--state-dir", server.state_dir)
    made = json.loads(run_mayfly("credentials", *where, "--node", "ghost", "--format", "json"))
    server.kill()
    options = ("--audit", str(audit), "--until-pulled", str(images), "--nodes", str(nodes))
    server = start_mayfly("--auth", "auto", *options)
    login = dict([basic(made["username"], made["password"])])
    answer = ask(server.host, "GET", "/v2/team/app/manifests/1", headers=login)
    assert (answer.status, answer.code) == (403, "DENIED")
    server.popen.terminate()
    assert server.popen.wait(PATIENCE) == Exit.INCOMPLETE
    (denied,) = [one for one in recorded(audit) if one["outcome"] == "denied"]
    assert (denied["action"], denied["target"]["repository"]) == ("pull", "team/app")
    assert "ghost" in denied["detail"]
    report = json.loads((server.state_dir / "report.json").read_text())
    assert [one["requests"] for one in report["denied"]] == [1]


@pytest.mark.parametrize("kind", ["open", "pipe", "directory"])
def test_key_that_is_no_private_file(tmp_path: Path, kind: str) -> None:
    """A key that others may read, or that nobody writes, is refused at the start."""
    key = tmp_path / "key"
    if kind == "open":
        key.write_text(SECRET)
        key.chmod(0o644)
    elif kind == "pipe":
        os.mkfifo(key)
    else:
        key.mkdir()
    where = ("--root", tmp_path / "root", "--state-dir", tmp_path / "state")
    options = ("--listen", "127.0.0.1:0", "--notify", "http://h/", "--notify-secret", key)
    words = "chmod 600" if kind == "open" else "no regular file"
    assert_refused(mayfly("serve", *where, *options), f"--notify-secret {key}", words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--notify", "ftp://x/"), "expected a URL"),
        (("--notify", "http:///x"), "expected a URL"),
        (("--notify", "http://h:99999/"), "Port out of range"),
        (("--notify", "http://h/", "--notify-secret", "/none"), "No such file"),
        (("--audit-level", "some"), "denied, writes"),
    ],
)
def test_bad_settings(tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    """Each is refused at the start, with its name."""
    where = ("--root", tmp_path / "root", "--state-dir", tmp_path / "state")
    assert_refused(mayfly("serve", *where, "--listen", "127.0.0.1:0", *options), options[0], words)
