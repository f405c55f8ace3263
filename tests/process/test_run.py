"""`mayfly run` with real processes: environment, exit status, cleanup."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mayfly.registry.errors import LifetimeError
from mayfly.registry.process.child import check_command
from tests.support.process import PATIENCE, alive, poll
from tests.support.stub import BLOB, BLOB_SIZE, MANIFEST
from tests.support.stubs import Stub, pull, pulling, status_of, without_private

Start = Callable[..., Stub]

ENVIRONMENT = """
import json, os, stat
private = os.environ["DOCKER_CONFIG"]
print(json.dumps({
    "given": {name: value for name, value in os.environ.items() if name.startswith("MAYFLY_")},
    "private": sorted(os.listdir(private)),
    "modes": [stat.S_IMODE(os.stat(path).st_mode) for path in (private, private + "/config.json")],
    "auth": json.load(open(os.environ["REGISTRY_AUTH_FILE"])),
    "ours": [name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY", "WATCHDOG"))],
}))
"""


def test_environment(start: Start) -> None:
    """The command gets the registry's login, and no variable meant for Mayfly alone."""
    given = {"NOTIFY_SOCKET": "/nowhere", "LISTEN_FDS": "1", "MAYFLY_CA": "/of/another"}
    # Settings of the user who runs the tests are not the test's.
    own = {name: os.environ[name] for name in os.environ if not name.startswith("MAYFLY_")}
    stub = start(sys.executable, "-c", ENVIRONMENT, env=own | given)
    assert stub.code() == 0, stub.describe()
    seen = json.loads(stub.output().splitlines()[0])
    host = seen["given"]["MAYFLY_HOST"]
    assert seen == {
        "given": {
            "MAYFLY_URL": f"http://{host}",
            "MAYFLY_HOST": host,
            "MAYFLY_USERNAME": "user",
            "MAYFLY_PASSWORD": "secret",
            "MAYFLY_STATE_DIR": str(stub.state_dir),
        },
        "private": ["bin", "config.json"],
        "modes": [0o700, 0o600],
        "auth": {"auths": {host: {"auth": "dXNlcjpzZWNyZXQ="}}},
        "ours": [],
    }
    assert sorted(os.listdir(stub.state_dir)) == ["lock", "report.json"]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], -signal.SIGTERM),
        (["sh", "-c", "kill -SEGV $$"], -signal.SIGSEGV),
        (["sh", "-c", "kill -KILL $$"], -signal.SIGKILL),
        (["no-such-command"], 127),
        (["./none"], 127),
        (["/etc/passwd"], 126),
        (["/"], 126),
    ],
)
def test_exit_code(start: Start, command: list[str], code: int) -> None:
    """Mayfly exits like its command, also by signal; a command that cannot start is 126 or 127."""
    stub = start(*command)
    assert stub.code() == code, stub.describe()
    assert without_private(stub.state_dir)
    assert "Traceback" not in stub.output()
    if code in (126, 127):
        assert "cannot run" in stub.output()
        assert not (stub.state_dir / "ready.json").exists()


@pytest.mark.parametrize("code", [0, 7])
def test_exit_code_where_children_are_ignored(start: Start, code: int) -> None:
    """The exit code is known even if Mayfly was started with SIGCHLD ignored."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        stub = start("sh", "-c", f"exit {code}")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert stub.code() == code, stub.describe()


def test_script_without_interpreter(start: Start, tmp_path: Path) -> None:
    """A file that the kernel does not execute is reported in one line, with exit code 126."""
    script = tmp_path / "script"
    script.write_text("echo no interpreter line\n")
    script.chmod(0o755)
    stub = start(str(script))
    assert stub.code() == 126
    assert f"mayfly: {script}: Exec format error; a script has to name" in stub.output()


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (b"#!/bin/sh\r\n", "its lines end in CR LF"),
        (b"#!/usr/bin/env sh\r\n", "its lines end in CR LF"),
        (b"#! /bin/nosh -e\n", "its first line names /bin/nosh, which is not there"),
        (b"#!/bin/sh -e\n", None),
        (b"#!\t/usr/bin/env sh\n", None),
        (b"#!" + b" " * 300, None),
    ],
)
def test_script_whose_interpreter_is_not_there(
    tmp_path: Path, first: bytes, says: str | None
) -> None:
    """It is found before the registry starts, since the kernel would say that the file is not."""
    script = tmp_path / "script"
    script.write_bytes(first + b"exit 0\n")
    script.chmod(0o755)
    if says is None:
        check_command(str(script), os.environ)
        return
    with pytest.raises(LifetimeError, match=says) as raised:
        check_command(str(script), os.environ)
    assert raised.value.exit_code == 126


def test_what_to_do_about_a_file_that_is_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the remedy: a path for the file that lies here, chmod, or its shell."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "upgrade.sh").write_text("#!/bin/sh\n")
    for name, says in (
        ("upgrade.sh", "command not found; the file that lies here is ./upgrade.sh"),
        ("./upgrade.sh", "it may not be executed; run chmod"),
        ("./", "it is a directory"),
        ("upgrade", "command not found$"),
    ):
        with pytest.raises(LifetimeError, match=says):
            check_command(name, {"PATH": "/usr/bin:/bin"})


def test_pipe_signal_is_as_usual(start: Start) -> None:
    """Python ignores SIGPIPE for itself; the command does not inherit that."""
    stub = start("sh", "-c", "grep -E 'SigIgn' /proc/self/status")
    assert stub.code() == 0
    ignored = int(stub.output().splitlines()[0].split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1))


TRAPS = """
for name in TERM HUP USR1 USR2; do trap "echo $name; touch $1/$name" $name; done
touch "$1/trapped"
until [ -e "$1/TERM" ]; do sleep 0.01; done
exit 5
"""


@pytest.fixture
def no_nohup() -> Iterator[None]:
    """No shell can trap a signal that was ignored when it began, as nohup(1) has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_signals_are_handed_on(start: Start, tmp_path: Path, no_nohup: None) -> None:
    """Each signal reaches the command, which decides what it means; so does the exit code."""
    stub = start("sh", "-c", TRAPS, "sh", str(tmp_path)).ready()
    poll((tmp_path / "trapped").exists)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        stub.popen.send_signal(number)
        poll((tmp_path / number.name[3:]).exists)
    assert stub.code() == 5, stub.describe()


STUBBORN = 'trap "" TERM; echo $$ > "$1.draft"; mv "$1.draft" "$1"; while :; do sleep 0.01; done'


def test_second_signal(start: Start, tmp_path: Path) -> None:
    """A command that ignores the first SIGTERM does not survive the second."""
    pid_file = tmp_path / "pid"
    stub = start("sh", "-c", STUBBORN, "sh", str(pid_file))
    poll(pid_file.exists)
    stub.popen.send_signal(signal.SIGTERM)
    # The server answers on: it is the command's to end.
    assert status_of(stub.ready().port, "a", "GET", "/v2/team/app/manifests/1") == 200
    stub.popen.send_signal(signal.SIGTERM)
    assert stub.code() == 143
    assert not alive(int(pid_file.read_text()))
    assert without_private(stub.state_dir)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_reaches_the_command_once(tmp_path: Path, times: int) -> None:
    """The terminal sends SIGINT to both processes, so it is not forwarded."""
    script = f"""
        trap 'echo INT >> {tmp_path}/signals' INT
        touch {tmp_path}/trapped
        until [ -e {tmp_path}/enough ]; do sleep 0.01; done
        exit 9
    """
    options = json.dumps({"state_dir": str(tmp_path / "state")})
    argv = [sys.executable, "-m", "tests.support.stub", options, "sh", "-c", script]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(argv[0], argv)
    try:
        poll((tmp_path / "trapped").exists)
        for i in range(times):
            os.write(terminal, b"\x03")
            if i == 0:
                poll((tmp_path / "signals").exists)
                # The kernel joins a second one to one that still waits.
                poll(lambda: not _waits(pid, signal.SIGINT))
        if times == 1:
            (tmp_path / "enough").write_text("")
        poll(lambda: bool(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(terminal)
    if times == 1:
        assert code == 9
        assert (tmp_path / "signals").read_text() == "INT\n"
    else:
        assert code == 130


def _waits(pid: int, number: signal.Signals) -> bool:
    """Whether a signal has been sent to a process and not delivered yet (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = [
        line.split()[1] for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))
    ]
    return any(int(one, 16) & (1 << (number - 1)) for one in pending)


TOLD = (
    'trap "touch $1/told; exit" TERM; echo $$ > "$1/draft"; mv "$1/draft" "$1/pid"; sleep 60 & wait'
)


def test_kill_of_the_server(start: Start, tmp_path: Path) -> None:
    """After kill -9 the command gets SIGTERM, its files are removed, and the next start works."""
    stub = start("sh", "-c", TOLD, "sh", str(tmp_path))
    poll((tmp_path / "pid").exists)
    assert not without_private(stub.state_dir)
    stub.kill()
    poll((tmp_path / "told").exists)
    poll(lambda: not alive(int((tmp_path / "pid").read_text())))
    poll(lambda: without_private(stub.state_dir))
    assert (stub.state_dir / "ready.json").exists()
    following = start("sh", "-c", "exit 4")
    assert following.code() == 4
    assert not (stub.state_dir / "ready.json").exists()


def test_deadline_ends_the_command(start: Start, tmp_path: Path) -> None:
    """At the deadline a running command gets SIGTERM, and the exit code is 3."""
    stub = start("sh", "-c", TOLD, "sh", str(tmp_path), max_lifetime=6.0)
    assert stub.code() == 3
    assert (tmp_path / "told").exists()


def test_standard_input_is_the_commands(tmp_path: Path) -> None:
    """The command inherits the standard input."""
    options = json.dumps({"state_dir": str(tmp_path / "state")})
    argv = [sys.executable, "-m", "tests.support.stub", options, "cat"]
    done = subprocess.run(
        argv, input=b"hello\n", stdout=subprocess.PIPE, check=True, timeout=PATIENCE
    )
    assert done.stdout == b"hello\n"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "IMAGES.txt"
    path.write_text("team/app:1\nteam/web:1\n")
    return path


def test_upgrade(start: Start, images: Path) -> None:
    """The server stays after its command until both nodes have both images, and reports it."""
    stub = start("true", until_pulled=images, nodes="2", max_lifetime=60.0).ready()
    for node in ("node-a", "node-b"):
        for repository in ("team/app", "team/web"):
            assert stub.running
            pull(stub.port, node, repository)
    assert stub.code() == 0, stub.describe()
    report = stub.report()
    row = {"node-a": "served", "node-b": "served"}
    assert report["reason"] == "covered"
    assert report["coverage"]["matrix"] == {"team/app:1": row, "team/web:1": row}
    assert report["coverage"]["complete"]
    assert report["bytes_out"] == 4 * BLOB_SIZE
    image = report["images"][0]
    assert (image["name"], image["digest"], image["pushed_by"]) == ("team/app:1", MANIFEST, [])
    for record, node in zip(image["pulls"], ("node-a", "node-b"), strict=True):
        assert (record["node"], record["state"], record["retries"]) == (node, "served", 0)
        assert record["bytes"] == BLOB_SIZE
        assert report["started"] <= record["first"] <= record["last"] <= report["stopped"]
    assert report["storage_before"] == report["storage_after"] == 12345
    assert not (stub.state_dir / "coverage.jsonl").exists()


def test_node_that_never_pulls(start: Start, images: Path, tmp_path: Path) -> None:
    """If a node does not pull, the deadline ends the server with exit code 3 and the gaps."""
    nodes = tmp_path / "nodes"
    nodes.write_text("node-a\nnode-b\n")
    stub = start("true", until_pulled=images, nodes=str(nodes), max_lifetime=8.0).ready()
    for repository in ("team/app", "team/web"):
        pull(stub.port, "node-a", repository)
    assert stub.code() == 3, stub.describe()
    missing = stub.report()["coverage"]["missing"]
    assert [(gap["node"], gap["image"], gap["state"]) for gap in missing] == [
        ("node-b", "team/app:1", "missing"),
        ("node-b", "team/web:1", "missing"),
    ]
    assert "node-b  0 of 2  team/app:1, team/web:1" in stub.output()


def test_coverage_survives_kill(start: Start, images: Path) -> None:
    """Images confirmed before kill -9 need not be pulled again."""
    stub = start(until_pulled=images, nodes="1", max_lifetime=60.0).ready()
    pull(stub.port, "node-a", "team/app")
    stub.kill()
    stub = start(until_pulled=images, nodes="1", max_lifetime=60.0).ready()
    pull(stub.port, "node-a", "team/web")
    assert stub.code() == 0, stub.describe()
    assert stub.report()["coverage"]["matrix"]["team/app:1"] == {"node-a": "served"}


def test_drain(start: Start) -> None:
    """On SIGTERM a transfer under way completes, and new pulls are refused meanwhile."""
    stub = start(rate=100_000.0).ready()
    port = stub.port
    with pulling(port) as response:
        stub.popen.send_signal(signal.SIGTERM)
        poll(lambda: not (stub.state_dir / "ready.json").exists())
        assert status_of(port, "node-b", "GET", "/v2/team/app/manifests/1") == 503
        assert status_of(port, "node-a", "GET", f"/v2/team/app/manifests/{MANIFEST}") == 200
        assert len(response.read()) == BLOB_SIZE - 1
    assert stub.code() == 0, stub.describe()
    assert stub.report()["cut"] == []


def test_drain_that_takes_too_long(start: Start) -> None:
    """After the drain timeout the transfer is aborted and named, with exit code 3."""
    stub = start(rate=10_000.0, drain_timeout=0.3).ready()
    with pulling(stub.port):
        stub.popen.send_signal(signal.SIGTERM)
        assert stub.code() == 3, stub.describe()
    (cut,) = stub.report()["cut"]
    assert (cut["direction"], cut["repository"], cut["digest"]) == ("pull", "team/app", BLOB)
    assert (cut["node"], cut["address"]) == ("node-a", "127.0.0.1")
    assert 0 < cut["bytes"] < BLOB_SIZE


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_drain_cut_by_a_second_signal(start: Start, number: signal.Signals, code: int) -> None:
    """A second signal does not wait, and still leaves a report."""
    stub = start(rate=10_000.0).ready()
    with pulling(stub.port):
        stub.popen.send_signal(number)
        poll(lambda: not (stub.state_dir / "ready.json").exists())
        stub.popen.send_signal(number)
        assert stub.code() == code, stub.describe()
    assert len(stub.report()["cut"]) == 1


def test_idle_not_during_a_transfer(start: Start) -> None:
    """A transfer that takes three times the idle timeout is served whole; then idle ends it."""
    stub = start(rate=30_000.0, idle_timeout=1.0).ready()
    with pulling(stub.port) as response:
        assert len(response.read()) == BLOB_SIZE - 1
    assert stub.code() == 0, stub.describe()
    assert stub.report()["reason"] == "idle"


def test_unused(start: Start) -> None:
    """The unused timeout ends a server without pulls."""
    stub = start(unused_timeout=0.1)
    assert stub.code() == 0, stub.describe()
    assert stub.report()["reason"] == "unused"


def test_stop_file(start: Start, tmp_path: Path) -> None:
    """The appearance of a file stops the server."""
    stub = start(stop_file=tmp_path / "stop").ready()
    (tmp_path / "stop").write_text("")
    assert stub.code() == 0, stub.describe()
    assert stub.report()["reason"] == "stop-file"


@pytest.mark.parametrize(
    "options", [{"stop_file": "/nowhere/stop"}, {"nodes": "1"}, {"exit_on_stdin_eof": True}]
)
def test_settings_that_cannot_work(start: Start, options: dict[str, object]) -> None:
    """Conditions that cannot work are refused before the server is ready."""
    stub = start(**options)
    assert stub.code() == 2
    assert len(stub.output().splitlines()) == 1


def test_one_server_in_a_state_directory(start: Start) -> None:
    """A second server is refused with exit code 2, and the first is not disturbed."""
    first = start().ready()
    second = start()
    assert second.code() == 2
    assert f"a Mayfly (pid {first.pid}) already runs" in second.output()
    assert status_of(first.port, "a", "GET", f"/v2/team/app/blobs/{BLOB}") == 200
    assert first.stop() == 0
