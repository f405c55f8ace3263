"""`mayfly serve` as a process: ready, precedence, read-only, ephemeral, signals, clean stops."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mayfly.registry.version import VERSION
from tests.support import client
from tests.support.commands import command_line, environment
from tests.support.images import files
from tests.support.process import PATIENCE, Mayfly, Process
from tests.support.wire import message

StartMayfly = Callable[..., Mayfly]
AT_ONCE = ("--drain-timeout", "0s")
"""A stop that waits for no node to continue what it began."""

UPLOADS = "/v2/team/app/blobs/uploads/"


def ask(host: str, method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One request; status and body."""
    answer = client.ask(host, method, target, body)
    return answer.status, answer.body


def read_ready(state_dir: Path) -> dict[str, object] | None:
    """What ready.json says, once it is there."""
    with contextlib.suppress(FileNotFoundError):
        found: dict[str, object] = json.loads((state_dir / "ready.json").read_text())
        return found
    return None


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[Process, str]]]:
    """Start `mayfly serve` with exactly these arguments; the process, and where it listens."""
    started: list[Process] = []

    def start(*arguments: str | Path, **env: str) -> tuple[Process, str]:
        (tmp_path / "state").mkdir(exist_ok=True)
        directories = ["--state-dir", tmp_path / "state"]
        argv = command_line("serve", *directories, *AT_ONCE, *arguments)
        process = Process(argv, tmp_path / "output.log", env=environment(**env))
        started.append(process)
        ready = process.wait_for(
            lambda: (
                (found := read_ready(tmp_path / "state"))
                and (found if found["pid"] == process.pid else None)
            )
        )
        return process, str(ready["url"]).partition("://")[2]

    yield start
    for process in started:
        if process.running:
            process.kill()


def test_ready_and_stop(start_mayfly: StartMayfly) -> None:
    """ready.json says where, who and which version while the port answers, and goes at the end."""
    server = start_mayfly(*AT_ONCE)
    ready = read_ready(server.state_dir)
    assert ready is not None
    assert (ready["url"], ready["pid"]) == (f"http://{server.host}", server.pid)
    assert ready["version"] == VERSION
    assert ask(server.host, "GET", "/readyz") == (200, b"ok\n")
    assert server.output().count("\n") == 1
    assert f"ready at http://{server.host}" in server.output()
    assert server.stop() == 0
    assert not (server.state_dir / "ready.json").exists()
    assert files(server.state_dir).keys() - {"output.log"} == {"lock", "report.json"}
    assert "Traceback" not in server.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_cleanly(start_mayfly: StartMayfly, number: signal.Signals) -> None:
    """Either signal: exit code 0, idle connections closed, nothing left but the content."""
    server = start_mayfly(*AT_ONCE)
    digest = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
    assert ask(server.host, "POST", f"{UPLOADS}?digest={digest}", b"x")[0] == 201
    idle = http.client.HTTPConnection(server.host, timeout=PATIENCE)
    idle.request("GET", "/livez")
    idle.getresponse().read()
    server.popen.send_signal(number)
    assert server.popen.wait(PATIENCE) == 0
    idle.close()
    assert number.name in server.output()
    assert "Traceback" not in server.output()
    assert not [p for p in server.root.rglob("*") if p.parent.name == "scratch"]
    assert {Path(n).name for n in files(server.root)} == {"data", "link", "_mayfly_size_1"}


def test_restart_keeps_content_and_sessions(start_mayfly: StartMayfly) -> None:
    """After a stop and a start the blob is there, and a session resumes where it stood."""
    server = start_mayfly(*AT_ONCE)
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE)
    connection.request("POST", UPLOADS)
    location = connection.getresponse().headers["Location"]
    connection.close()
    assert ask(server.host, "PATCH", location, b"before ")[0] == 202
    server.stop()
    again = start_mayfly(*AT_ONCE, root=server.root, state_dir=server.state_dir)
    assert ask(again.host, "PATCH", location, b"after")[0] == 202
    digest = f"sha256:{hashlib.sha256(b'before after').hexdigest()}"
    assert ask(again.host, "PUT", f"{location}?digest={digest}")[0] == 201
    assert ask(again.host, "GET", f"/v2/team/app/blobs/{digest}") == (200, b"before after")


def _stalled_upload(host: str, length: int, body: bytes) -> socket.socket:
    """A push that is under way for sure: the server has asked for its body, which stalls."""
    name, _, port = host.rpartition(":")
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    stalled = socket.create_connection((name, int(port)), timeout=PATIENCE)
    headers = {"Content-Length": str(length), "Expect": "100-continue"}
    stalled.sendall(message("POST", f"{UPLOADS}?digest={digest}", b"", headers))
    assert stalled.recv(100).startswith(b"HTTP/1.1 100 ")
    stalled.sendall(body[: length // 2])
    return stalled


def _stopping(server: Process) -> Callable[[], bool]:
    """Whether a server has taken note of a signal."""
    return lambda: "stopping: " in server.output()


def test_transfer_under_way_may_finish(start_mayfly: StartMayfly) -> None:
    """A push begun before the signal ends with 201, and then the server with 0."""
    server = start_mayfly("--drain-timeout", "60s")
    body = os.urandom(300_000)
    with _stalled_upload(server.host, len(body), body) as stalled:
        server.popen.send_signal(signal.SIGTERM)
        server.wait_for(_stopping(server))
        stalled.sendall(body[len(body) // 2 :])
        assert stalled.recv(1000).startswith(b"HTTP/1.1 201 ")
    assert server.popen.wait(PATIENCE) == 0
    assert "Traceback" not in server.output()
    names = [Path(n).name for n in files(server.root)]
    assert names == ["_mayfly_size_300000", "data", "link"]


def test_pull_under_way_may_finish(start_mayfly: StartMayfly) -> None:
    """A blob whose reader has paused is sent to its end after the signal."""
    server = start_mayfly("--drain-timeout", "60s")
    data = os.urandom(1024) * 20_000
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert ask(server.host, "POST", f"{UPLOADS}?digest={digest}", data)[0] == 201
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", f"/v2/team/app/blobs/{digest}")
        answer = connection.getresponse()
        received = answer.read(1000)
        server.popen.send_signal(signal.SIGTERM)
        server.wait_for(_stopping(server))
        assert received + answer.read() == data
    assert server.popen.wait(PATIENCE) == 0
    assert "Traceback" not in server.output()


@pytest.mark.parametrize(
    ("second", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=lambda v: str(v)
)
def test_second_signal_leaves_now(
    start_mayfly: StartMayfly, second: signal.Signals, code: int
) -> None:
    """A transfer hangs and the operator insists: exit code 128 + signal, no traceback."""
    server = start_mayfly()
    with _stalled_upload(server.host, 300_000, os.urandom(300_000)):
        server.popen.send_signal(signal.SIGTERM)
        server.wait_for(_stopping(server))
        assert server.running
        server.popen.send_signal(second)
        assert server.popen.wait(PATIENCE) == code, server.output()
    assert "Traceback" not in server.output()
    assert "Exception" not in server.output()
    assert not [p for p in server.root.rglob("*") if p.parent.name == "scratch"]


def test_second_signal_removes_an_ephemeral_root(
    serve: Callable[..., tuple[Process, str]], tmp_path: Path
) -> None:
    """Leaving now still leaves nothing."""
    (tmp_path / "tmp").mkdir()
    options = ("--ephemeral", "--listen", "127.0.0.1:0", "--drain-timeout", "60s")
    process, host = serve(*options, TMPDIR=str(tmp_path / "tmp"))
    with _stalled_upload(host, 300_000, os.urandom(300_000)):
        process.popen.send_signal(signal.SIGINT)
        process.wait_for(_stopping(process))
        process.popen.send_signal(signal.SIGINT)
        assert process.popen.wait(PATIENCE) == 130
    assert list((tmp_path / "tmp").iterdir()) == []


def test_signals_without_end(serve: Callable[..., tuple[Process, str]], tmp_path: Path) -> None:
    """However often and late a signal comes, what the server made for itself is removed."""
    (tmp_path / "tmp").mkdir()
    options = ("--ephemeral", "--listen", "127.0.0.1:0")
    process, _ = serve(*options, TMPDIR=str(tmp_path / "tmp"))
    while process.running:
        process.popen.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(0.002)
    assert process.popen.returncode in (0, 143), process.output()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_signal_during_the_start(tmp_path: Path) -> None:
    """A signal that comes before the port answers leaves no scratch root either."""
    (tmp_path / "tmp").mkdir()
    options = ["--ephemeral", "--state-dir", tmp_path / "state", "--listen", "127.0.0.1:0"]
    argv = command_line("serve", *options)
    env = environment(TMPDIR=str(tmp_path / "tmp"))
    with Process(argv, tmp_path / "output.log", env=env) as process:
        # Not any file: tempfile tries whether it may write there, with one of its own.
        process.wait_for(lambda: any(one.is_dir() for one in (tmp_path / "tmp").iterdir()))
        process.popen.send_signal(signal.SIGTERM)
        process.popen.wait(PATIENCE)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "Traceback" not in process.output()


def test_ephemeral(serve: Callable[..., tuple[Process, str]], tmp_path: Path) -> None:
    """A scratch root that is there while it runs and gone afterwards; --root is not touched."""
    (tmp_path / "tmp").mkdir()
    process, host = serve(
        "--ephemeral",
        "--listen",
        "127.0.0.1:0",
        "--root",
        tmp_path / "untouched",
        TMPDIR=str(tmp_path / "tmp"),
    )
    digest = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
    assert ask(host, "POST", f"{UPLOADS}?digest={digest}", b"x")[0] == 201
    (scratch,) = (tmp_path / "tmp").iterdir()
    assert scratch.stat().st_mode & 0o077 == 0
    assert {Path(n).name for n in files(scratch)} == {"data", "link", "_mayfly_size_1"}
    assert process.stop() == 0
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "untouched").exists()


@pytest.mark.parametrize(
    ("flag", "variable", "in_file", "status"),
    [
        (None, None, None, 202),
        (None, None, "true", 405),
        (None, "false", "true", 202),
        ("--read-only", "false", "false", 405),
        ("--no-read-only", "true", "true", 202),
    ],
)
def test_precedence(
    serve: Callable[..., tuple[Process, str]],
    tmp_path: Path,
    flag: str | None,
    variable: str | None,
    in_file: str | None,
    status: int,
) -> None:
    """Flag, environment, file, default: a process takes the strongest that is given."""
    (tmp_path / "root").mkdir()
    options: list[str | Path] = ["--root", tmp_path / "root", "--listen", "127.0.0.1:0"]
    if in_file is not None:
        (tmp_path / "mayfly.toml").write_text(f"read_only = {in_file}\n")
        options += ["--config", tmp_path / "mayfly.toml"]
    env = {} if variable is None else {"MAYFLY_READ_ONLY": variable}
    _, host = serve(*options, *([flag] if flag else []), **env)
    assert ask(host, "POST", UPLOADS)[0] == status


def test_read_only(start_mayfly: StartMayfly) -> None:
    """Every change is 405 UNSUPPORTED, every read is served, the directory stays as it was."""
    writable = start_mayfly(*AT_ONCE)
    digest = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
    assert ask(writable.host, "POST", f"{UPLOADS}?digest={digest}", b"x")[0] == 201
    writable.stop()
    before = files(writable.root)
    server = start_mayfly("--read-only", *AT_ONCE, root=writable.root)
    blob = f"/v2/team/app/blobs/{digest}"
    for method, target in (
        ("POST", UPLOADS),
        ("POST", f"{UPLOADS}?digest={digest}"),
        ("POST", f"{UPLOADS}?mount={digest}&from=team/app"),
        ("PATCH", f"{UPLOADS}1b671a64-40d5-491e-99b0-da01ff1f3341"),
        ("DELETE", blob),
        ("DELETE", "/v2/team/app/manifests/v1"),
        ("DELETE", f"/v2/team/app/manifests/{digest}"),
    ):
        status, body = ask(server.host, method, target, b"x")
        assert status == 405, (method, target, body)
        assert json.loads(body)["errors"][0]["code"] == "UNSUPPORTED"
    manifest = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
    assert ask(server.host, "PUT", "/v2/team/app/manifests/v1", manifest)[0] == 405
    assert ask(server.host, "GET", blob) == (200, b"x")
    assert json.loads(ask(server.host, "GET", "/v2/_catalog")[1]) == {"repositories": ["team/app"]}
    server.stop()
    assert files(writable.root) == before


def test_read_only_makes_nothing(start_mayfly: StartMayfly, tmp_path: Path) -> None:
    """A read-only server writes nothing into its root, which may be on a read-only filesystem."""
    root = tmp_path / "root"
    (root / "docker/registry/v2/repositories").mkdir(parents=True)
    before = sorted(root.rglob("*"))
    server = start_mayfly("--read-only", *AT_ONCE, root=root)
    assert ask(server.host, "GET", "/v2/_catalog")[0] == 200
    assert sorted(root.rglob("*")) == before
    server.stop()
    assert sorted(root.rglob("*")) == before


def test_two_servers_on_one_root(start_mayfly: StartMayfly, tmp_path: Path) -> None:
    """A second server on the root of a running one: both serve what either was given."""
    first = start_mayfly(*AT_ONCE)
    second = start_mayfly(*AT_ONCE, root=first.root, state_dir=tmp_path / "second")
    for number, (giver, taker) in enumerate(((first, second), (second, first))):
        data = b"%d" % number
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert ask(giver.host, "POST", f"{UPLOADS}?digest={digest}", data)[0] == 201
        assert ask(taker.host, "GET", f"/v2/team/app/blobs/{digest}") == (200, data)
    second.stop()
    digest = f"sha256:{hashlib.sha256(b'after').hexdigest()}"
    assert ask(first.host, "POST", f"{UPLOADS}?digest={digest}", b"after")[0] == 201


def test_one_server_for_a_state_directory(start_mayfly: StartMayfly, tmp_path: Path) -> None:
    """A second server with the state directory of a running one is refused, and harms nothing."""
    first = start_mayfly(state_dir=tmp_path / "state")
    argv = command_line("serve", "--state-dir", first.state_dir, "--root", tmp_path / "other")
    with Process(argv, tmp_path / "second.log", env=environment()) as second:
        assert second.popen.wait(PATIENCE) == 2
    assert f"mayfly stop --state-dir {first.state_dir}" in second.output()
    ready = read_ready(first.state_dir)
    assert ready is not None
    assert ready["pid"] == first.pid
    first.stop()
    assert read_ready(first.state_dir) is None
