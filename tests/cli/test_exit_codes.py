"""The table of exit codes, each shown by a real process; and errors as JSON."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mayfly.registry.exit_codes import MEANINGS, OTHERS, Exit, describe
from tests.support.commands import command_line, environment, mayfly, started
from tests.support.process import PATIENCE, REPO, Process, poll

Words = list[str | Path]


@pytest.fixture
def options(tmp_path: Path) -> Words:
    """Directories of a server's own, and a port."""
    state = tmp_path / "state"
    return ["--root", tmp_path / "root", "--state-dir", state, "--listen", "127.0.0.1:0"]


@pytest.fixture
def uncovered(tmp_path: Path, options: Words) -> Words:
    """The same, with an image that no node will have."""
    (tmp_path / "images").write_text("team/app:1\n")
    (tmp_path / "nodes").write_text("node-a\nnode-b\n")
    return [*options, "--until-pulled", tmp_path / "images", "--nodes", tmp_path / "nodes"]


@contextmanager
def _serving(tmp_path: Path, *words: str | Path) -> Iterator[Process]:
    """Start a server, and wait until it is ready; if it runs after the block, it is killed."""
    argv = command_line(*words)
    with Process(argv, tmp_path / "log", env=environment(), cwd=REPO) as process:
        process.wait_for(lambda: (tmp_path / "state/ready.json").exists())
        yield process


def test_done(tmp_path: Path, options: Words) -> None:
    """0: stopped on request, with nothing asked for that is missing."""
    with _serving(tmp_path, "serve", *options) as server:
        stop = mayfly("stop", "--state-dir", tmp_path / "state")
        assert (stop.returncode, server.popen.wait(PATIENCE)) == (Exit.DONE, Exit.DONE)
    assert mayfly("run", *options, "--", "true").returncode == Exit.DONE


@pytest.mark.parametrize("ending", ["SIGINT", "SIGTERM", "stop", "stop-file", "unused", "deadline"])
def test_incomplete_coverage_of_a_server(tmp_path: Path, uncovered: Words, ending: str) -> None:
    """3, whatever ended it."""
    more: dict[str, Words] = {
        "unused": ["--unused-timeout", "1s"],
        "deadline": ["--max-lifetime", "1s"],
        "stop-file": ["--stop-file", tmp_path / "stop"],
    }
    if ending in ("unused", "deadline"):
        assert mayfly("serve", *uncovered, *more[ending]).returncode == Exit.INCOMPLETE
        return
    with _serving(tmp_path, "serve", *uncovered, *more.get(ending, [])) as server:
        if ending == "stop":
            stop = mayfly("stop", "--state-dir", tmp_path / "state")
            assert stop.returncode == Exit.INCOMPLETE
            assert "0 of 2 nodes covered; missing: node-a, node-b" in stop.stdout
        elif ending == "stop-file":
            (tmp_path / "stop").touch()
        else:
            server.popen.send_signal(signal.Signals[ending])
        assert server.popen.wait(PATIENCE) == Exit.INCOMPLETE, server.describe()
        assert f"report: {tmp_path}/state/report.json" in server.output()


@pytest.mark.parametrize("ending", ["success", "SIGINT", "SIGTERM", "stop"])
def test_incomplete_coverage_of_run(tmp_path: Path, uncovered: Words, ending: str) -> None:
    """3 also where the command succeeded: what comes after ``&&`` must not run."""
    script = "trap 'exit 0' INT TERM; touch $0/started; "
    script += "exit 0" if ending == "success" else "while :; do sleep 0.05; done"
    words = ["run", *uncovered, "--", "sh", "-c", script, tmp_path]
    with _serving(tmp_path, *words) as server:
        server.wait_for(lambda: (tmp_path / "started").exists())
        if ending == "success":
            server.wait_for(lambda: "waiting for coverage (0 of 2" in server.output())
            server.popen.send_signal(signal.SIGTERM)
        elif ending == "stop":
            assert mayfly("stop", "--state-dir", tmp_path / "state").returncode == Exit.INCOMPLETE
        else:
            server.popen.send_signal(signal.Signals[ending])
        assert server.popen.wait(PATIENCE) == Exit.INCOMPLETE, server.describe()


def test_usage() -> None:
    """2: wrong options, values, variables."""
    for words in (["frobnicate"], ["serve", "--listen", "x"], ["wait"], ["wait", "--timeout", "x"]):
        assert mayfly(*words).returncode == Exit.USAGE
    assert mayfly("status", env={"MAYFLY_STATEDIR": "/x"}).returncode == Exit.USAGE


def test_wait_timed_out(tmp_path: Path, uncovered: Words) -> None:
    """3, and one line that says how far it is."""
    with _serving(tmp_path, "serve", *uncovered) as server:
        wait = mayfly("wait", "--covered", "--timeout", "1s", "--state-dir", tmp_path / "state")
        expected = "mayfly: timed out after 1s: 0 of 2 nodes covered; missing: node-a, node-b\n"
        assert (wait.returncode, wait.stdout, wait.stderr) == (Exit.INCOMPLETE, "", expected)
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(PATIENCE) == Exit.INCOMPLETE


def test_storage(tmp_path: Path) -> None:
    """4: stored content is corrupt."""
    hexes = "ab" * 32
    blob = tmp_path / "docker/registry/v2/blobs/sha256/ab" / hexes / "data"
    blob.parent.mkdir(parents=True)
    blob.write_text("not what its digest says")
    assert mayfly("verify", "--root", tmp_path).returncode == Exit.STORAGE


def test_bundle(tmp_path: Path, options: Words) -> None:
    """5: what is no bundle, or a broken one."""
    bad = tmp_path / "bad.tar"
    bad.write_text("no tar at all")
    assert mayfly("serve", *options, bad).returncode == Exit.BUNDLE
    assert mayfly("import", bad, "--root", tmp_path / "root").returncode == Exit.BUNDLE
    with tarfile.open(bad, "w") as empty:
        empty.addfile(tarfile.TarInfo("a"), io.BytesIO())
    assert mayfly("serve", *options, bad).returncode == Exit.BUNDLE


NOT_RUNNING: dict[str, Words] = {
    "status": ["status"],
    "watch": ["status", "--watch"],
    "wait": ["wait", "--covered"],
    "stop": ["stop"],
    "credentials": ["credentials"],
    "node-config": ["node-config", "show"],
}


@pytest.mark.parametrize("command", NOT_RUNNING)
def test_not_running(tmp_path: Path, command: str) -> None:
    """6: for every command that asks a server, also where one was killed."""
    (tmp_path / "ready.json").write_text(json.dumps({"url": "http://h:1", "pid": os.getpid()}))
    (tmp_path / "lock").write_text("999999999\n")
    (tmp_path / "control.sock").symlink_to("/nowhere/gone.sock")
    done = mayfly(*NOT_RUNNING[command], "--state-dir", tmp_path)
    assert (done.returncode, done.stdout) == (Exit.NOT_RUNNING, "")
    assert done.stderr.startswith(f"mayfly: no Mayfly runs with the state directory {tmp_path}; ")


def test_run_hands_on_the_code_of_its_command(tmp_path: Path, options: Words) -> None:
    """The command's own where that is not 0; as a shell where it cannot be started."""
    assert mayfly("run", *options, "--", "sh", "-c", "exit 7").returncode == 7
    assert mayfly("run", *options, "--", "no-such-command").returncode == 127
    (tmp_path / "file").touch()
    assert mayfly("run", *options, "--", str(tmp_path / "file")).returncode == 126


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """130 and 143: a command that was interrupted says nothing more."""
    signals = 1 << (signal.SIGTERM - 1) | 1 << (signal.SIGINT - 1)
    with started("wait", "--ready", "--state-dir", tmp_path) as waiting:

        def catches_signals() -> bool:
            if b"wait" not in Path(f"/proc/{waiting.pid}/cmdline").read_bytes():
                return False
            status = Path(f"/proc/{waiting.pid}/status").read_text()
            return int(status.split("SigCgt:")[1].split()[0], 16) & signals == signals

        poll(catches_signals)
        waiting.send_signal(number)
        _, errors = waiting.communicate(timeout=PATIENCE)
    assert (waiting.returncode, errors) == (code, "")


IGNORED = """
import signal, sys, threading, time, weakref
from mayfly.__main__ import main
from mayfly.registry.control import client
from mayfly.registry.errors import NotRunning

class Gone:
    pass

def connect(directory):
    gone = Gone()
    reference = weakref.ref(gone, lambda _: signals and signal.raise_signal(signals.pop()))
    del gone  # calls the callback
    raise NotRunning("none")

start = threading.Thread.start

def start_slowly(thread):
    start(thread)
    time.sleep(0.2)

threading.Thread.start = start_slowly
signals = [signal.Signals(int(sys.argv.pop(1)))]
client.connect = connect
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_where_exceptions_are_ignored(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """As anywhere else, although the interpreter drops what a weak reference's callback raises."""
    words = [str(int(number)), "wait", "--ready", "--state-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", IGNORED, *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_other_ignored_exceptions_are_printed() -> None:
    """With what raised them, as Python does by itself."""
    script = "import sys; from mayfly.__main__ import main; sys.argv = ['mayfly', '--version']"
    script += "; one = type('One', (), {'__del__': lambda self: 1 / 0})()"
    script += "; from mayfly.registry import cli; cli.execute = lambda: globals().pop('one') and 0"
    done = subprocess.run(
        [sys.executable, "-c", script + "; main()"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "ZeroDivisionError" in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["status", "--state-dir", "/nowhere"], "not_running"),
        (["ls", "--root", "/nowhere"], "usage"),
        (["frobnicate"], "usage"),
        (["serve", "--listen", "x"], "usage"),
        (["import", "/nowhere.tar", "--root", "/nowhere"], "bundle"),
        (["node-config", "show"], "usage"),
        (["user", "ls", "--auth", "/nowhere/x"], "usage"),
    ],
)
def test_errors_as_json(words: list[str], code: str) -> None:
    """With --json an error is one document on standard error, and nothing else is anywhere."""
    if words[0] == "node-config":
        words = [*words, "--registry", "not a name"]
    done = mayfly(*words, "--json")
    error = json.loads(done.stderr)["error"]
    assert done.stdout == ""
    assert error.keys() == {"code", "exit_code", "command", "message"}
    assert error["code"] == code
    assert done.returncode == error["exit_code"] == Exit[code.upper()]


BUG = """
import sys
from mayfly.__main__ import main
from mayfly.registry.cli import store
def fail(**_options): raise KeyError("no such thing\\n\\x1b")
store.ls.callback = fail
sys.argv[1:] = ["ls", *sys.argv[1:]]
main()
"""


def _buggy(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BUG, *words],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_internal_error() -> None:
    """1: one line, or one JSON document; the traceback has to be asked for."""
    plain = _buggy()
    assert (plain.returncode, plain.stdout) == (Exit.INTERNAL, "")
    assert plain.stderr.startswith("mayfly: internal error, please report it: KeyError: ")
    assert plain.stderr.endswith("; MAYFLY_LOG_LEVEL=debug shows where\n")
    assert plain.stderr.count("\n") == 1
    told = _buggy("--json")
    assert (told.returncode, told.stdout) == (Exit.INTERNAL, "")
    error = json.loads(told.stderr)["error"]
    assert (error["code"], error["exit_code"]) == ("internal", 1)
    assert "Traceback" in _buggy(MAYFLY_LOG_LEVEL="debug").stderr


def test_user_add_without_a_terminal(tmp_path: Path) -> None:
    """2, and the option that takes the password is named."""
    done = subprocess.run(
        command_line("user", "add", "alice", "--auth", tmp_path),
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == Exit.USAGE
    assert "--password-stdin" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "htpasswd").exists()


def test_reader_that_leaves(tmp_path: Path) -> None:
    """``mayfly … | head`` is no error to talk about."""
    words = " ".join(command_line("serve", "--help"))
    script = f"{{ {words}; echo $? >{tmp_path}/code; }} | head -c 0"
    done = subprocess.run(
        ["sh", "-c", script], env=environment(), capture_output=True, cwd=REPO, timeout=60
    )
    assert done.stderr == b""
    assert (tmp_path / "code").read_text().strip() == "141"


def test_documented() -> None:
    """--help and docs/commands.md have the whole table, and no other page has one of its own."""
    shown = " ".join(mayfly("--help").stdout.split())
    page = (REPO / "docs/commands.md").read_text()
    assert MEANINGS.keys() == set(Exit)
    assert len(describe()) == len(Exit) + len(OTHERS)
    for code, meaning in describe():
        assert f"{code} {meaning}" in shown
        assert f"| {code} | {meaning} |" in page
