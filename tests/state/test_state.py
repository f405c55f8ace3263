"""The state directory, the control socket, and the private files."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mayfly.registry.control import client
from mayfly.registry.control import socket as control_module
from mayfly.registry.control.socket import ControlServer, Message, encode, runtime_directory
from mayfly.registry.errors import LifetimeError, NotRunning
from mayfly.registry.process.child import environment
from mayfly.registry.settings.errors import ConfigError, unusable
from mayfly.registry.state.directory import CONTROL_SOCKET, FILES, StateDir
from mayfly.registry.state.private import Login, client_config, removed_if_killed
from tests.support.process import descriptors, until

HOLD = """
import sys
from pathlib import Path
from mayfly.registry.state.private import Login, client_config, removed_if_killed
from mayfly.registry.state.directory import StateDir
path = Path(sys.argv[1])
state = StateDir.claim(path)
(path / "ready.json").write_text("{}")
login = Login("http://h:1", "h:1", "u", "p")
with client_config(path, login) as private, removed_if_killed(private):
    print(private, flush=True)
    sys.stdin.read()
"""
"""Holds a state directory, with private files, until its input ends."""


def hold(directory: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str], *, kill: bool = False) -> None:
    if kill:
        process.kill()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    process.wait()


def wait_gone(path: Path) -> None:
    """Until a path is gone: the guard works after the death of what it guards, and is nobody's
    child by then, so there is nothing else to wait on."""
    for _ in range(1000):
        if not path.exists():
            return
        subprocess.run(["sleep", "0.01"], check=True)
    raise AssertionError(f"{path} is still there")


def test_two_servers_cannot_share_it(tmp_path: Path) -> None:
    """A second server is refused with the holder's pid and a remedy; later it may start."""
    process, _ = hold(tmp_path)
    try:
        with pytest.raises(ConfigError) as raised:
            StateDir.claim(tmp_path)
        assert f"(pid {process.pid}) already runs" in str(raised.value)
        assert f"mayfly stop --state-dir {tmp_path}" in str(raised.value)
    finally:
        end(process)
    with StateDir.claim(tmp_path) as state:
        assert state.path == tmp_path


def test_kill_leaves_no_private_files(tmp_path: Path) -> None:
    """After kill -9 the guard removes the credentials without a new start."""
    process, private = hold(tmp_path)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((private / "config.json").stat().st_mode) == 0o600
    end(process, kill=True)
    wait_gone(private)


def test_next_start_repairs(tmp_path: Path) -> None:
    """Entries of a killed server are removed by the next one; files of the run stay."""
    (tmp_path / "ready.json").write_text("{}")
    (tmp_path / "coverage.jsonl").write_text("")
    (tmp_path / "run-abc").mkdir()
    (tmp_path / "run-abc" / "config.json").write_text("{}")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / CONTROL_SOCKET))
    stale.close()
    with StateDir.claim(tmp_path) as state:
        assert state.repaired == ("control.sock", "ready.json", "run-abc")
        assert sorted(os.listdir(tmp_path)) == ["coverage.jsonl", "lock"]
    assert StateDir.claim(tmp_path).repaired == ()


def test_new_directory_is_private(tmp_path: Path) -> None:
    """A new state directory is private."""
    with StateDir.claim(tmp_path / "a" / "b"):
        assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777, 0o2777])
def test_directory_that_others_may_write_is_refused(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that others may write is refused with a remedy and left unchanged."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "ready.json").write_text("{}")
    state.chmod(mode)
    with pytest.raises(ConfigError, match=r"written by other users .*a CA key.*chmod go-w"):
        StateDir.claim(state)
    assert os.listdir(state) == ["ready.json"]
    # What the message says works: a directory of one's own in a volume that is open.
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == state)
    with pytest.raises(ConfigError, match=r"does not exist yet, such as .*/state/mayfly"):
        StateDir.claim(state)
    StateDir.claim(state / "mayfly").release()


@pytest.mark.parametrize("mode", [0o707, 0o2777])
def test_way_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """Others could rename the directory and put another in its place; a sticky bit keeps them."""
    way = tmp_path / "way"
    (way / "a").mkdir(parents=True)
    for below in (way / "state", way / "a" / "state"):
        way.chmod(mode)
        with pytest.raises(
            ConfigError, match=r"other users may write .*/way \(mode .*in its place"
        ):
            StateDir.claim(below)
        assert not below.exists()
        way.chmod(mode | 0o1000)
        StateDir.claim(below).release()


def test_way_through_links(tmp_path: Path) -> None:
    """The target of a link counts, and so does the directory of the link."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "safe").mkdir(mode=0o700)
    (shared / "open").mkdir()
    (shared / "open").chmod(0o777)
    (tmp_path / "link").symlink_to("shared/safe/../safe")
    StateDir.claim(tmp_path / "link" / "state").release()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(shared / "open")
    with pytest.raises(ConfigError, match=r"other users may write .*/shared/open"):
        StateDir.claim(tmp_path / "link" / "state")
    (shared / "open" / "link").symlink_to(shared / "safe")
    with pytest.raises(ConfigError, match=r"other users may write .*/shared/open"):
        StateDir.claim(shared / "open" / "link")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ConfigError, match="cannot be used: Too many levels"):
        StateDir.claim(tmp_path / "circle")
    assert sorted(os.listdir(shared / "safe")) == ["state"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of other users")
def test_way_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """A directory or link of another user in the path is refused."""
    shared, ours = tmp_path / "shared", tmp_path / "ours"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "theirs").mkdir()
    ours.mkdir()
    (shared / "link").symlink_to(ours)
    for planted in (shared / "theirs", shared / "link"):
        os.chown(planted, 65532, -1, follow_symlinks=False)
    with pytest.raises(ConfigError, match=r"directory .*/theirs on the way belongs to user 65532"):
        StateDir.claim(shared / "theirs" / "state")
    for path in (shared / "link", shared / "link" / "state"):
        with pytest.raises(ConfigError, match=r"link .*/link on the way belongs to user 65532"):
            StateDir.claim(path)
    assert os.listdir(ours) == []


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX) as made,
        control_module.short_path(path.parent, path.name) as at,
    ):
        made.bind(at)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("make", "kind"),
    [(_fifo, "a named pipe"), (_socket, "a socket"), (Path.mkdir, "a directory")],
    ids=["fifo", "socket", "directory"],
)
@pytest.mark.parametrize("linked", [False, True])
def test_odd_file_is_refused_unopened(
    tmp_path: Path, name: str, make: Callable[[Path], None], kind: str, linked: bool
) -> None:
    """Pipes, sockets and directories in the place of a file are refused without opening them."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    make(tmp_path / "odd" if linked else state / name)
    if linked:
        (state / name).symlink_to(tmp_path / "odd")
    with pytest.raises(ConfigError, match=f"--state-dir .*/state: {name} is {kind}, not a file"):
        StateDir.claim(state)
    assert os.listdir(state) == [name]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of other users")
@pytest.mark.parametrize("name", FILES)
def test_planted_file_is_refused(tmp_path: Path, name: str) -> None:
    """A file or link of another user is refused."""
    (tmp_path / "state").mkdir(mode=0o700)
    planted = tmp_path / "state" / name
    (tmp_path / "ours").write_text("")
    planted.write_text("")
    for _ in range(2):
        os.chown(planted, 65532, -1, follow_symlinks=False)
        with pytest.raises(ConfigError, match=f"{name} belongs to user 65532, who may have plant"):
            StateDir.claim(tmp_path / "state")
        planted.unlink()
        planted.symlink_to(tmp_path / "ours")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of other users")
def test_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Root is not exempt: a user's directory may hold a CA key of theirs."""
    os.chown(tmp_path, 65532, -1)
    with pytest.raises(ConfigError, match="belongs to user 65532 and Mayfly runs as 0"):
        StateDir.claim(tmp_path)
    assert os.listdir(tmp_path) == []


def test_lock_is_not_followed(tmp_path: Path) -> None:
    """A symlink in the lock's place does not truncate its target."""
    victim = tmp_path / "victim"
    victim.write_text("kept")
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "lock").symlink_to(victim)
    with pytest.raises(ConfigError, match="cannot be used"):
        StateDir.claim(state)
    assert victim.read_text() == "kept"


def test_unusable_directory(tmp_path: Path) -> None:
    """A path that cannot be a directory is refused with its name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--state-dir .*file/x cannot be used"):
        StateDir.claim(tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("number", "user", "remedy"),
    [
        (errno.ENOSPC, 0, "; free space there, or name another directory"),
        (errno.EROFS, 0, "; name a directory that can be written"),
        (errno.ENOTDIR, 0, "; name a directory"),
        (
            errno.EACCES,
            0,
            ", such as SELinux (ausearch --message avc) or NFS: name another directory",
        ),
        (errno.EACCES, 7, "; name a directory that may be read and written by user 7"),
        (errno.EIO, 0, ": Input/output error"),
    ],
)
def test_remedies(number: int, user: int, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to do about a directory that the system refuses, where that is known."""
    monkeypatch.setattr("os.geteuid", lambda: user)
    error = OSError(number, os.strerror(number), "/srv/state/lock")
    message = str(unusable("--state-dir", Path("/srv/state"), error))
    assert message.startswith("--state-dir /srv/state cannot be used: lock: ")
    assert message.endswith(remedy)


def test_client_config(tmp_path: Path) -> None:
    """Clients find the login under the host as images name it, and nothing without a login."""
    login = Login("https://h:5000", "h:5000", "user", "pass:word")
    with client_config(tmp_path, login) as private:
        content = json.loads((private / "config.json").read_text())
        assert content == {"auths": {"h:5000": {"auth": "dXNlcjpwYXNzOndvcmQ="}}}
    with client_config(tmp_path, Login("http://h:1", "h:1")) as private:
        assert json.loads((private / "config.json").read_text()) == {"auths": {}}
    assert list(tmp_path.iterdir()) == []


def test_cert_dir(tmp_path: Path) -> None:
    """It has the CA's certificate alone: clients would take a key there for their own."""
    (tmp_path / "ca.crt").write_text("PEM")
    (tmp_path / "ca.key").write_text("secret")
    login = Login("https://h:5000", "h:5000", "user", "p", tmp_path / "ca.crt")
    with client_config(tmp_path, login) as private:
        assert [path.name for path in (private / "certs").iterdir()] == ["ca.crt"]
        assert (private / "certs/ca.crt").read_text() == "PEM"
        given = environment({}, login, private, tmp_path)
        assert given["MAYFLY_CERT_DIR"] == str(private / "certs")
    assert not private.exists()


SERVE = """
import asyncio, sys
from pathlib import Path
from mayfly.registry.control.socket import ControlServer
async def status(request):
    return {"state_dir": sys.argv[1]}
async def serve():
    server = ControlServer(Path(sys.argv[1]), {"status": status}, Path(sys.argv[2]))
    await server.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.close()
asyncio.run(serve())
"""


def test_sockets_of_two_servers_do_not_collide(tmp_path: Path) -> None:
    """Each state directory finds its own server in one runtime directory, also after a kill."""
    runtime = tmp_path / "run"
    directories = [tmp_path / "one", tmp_path / "two"]
    servers = []
    for directory in directories:
        directory.mkdir()
        servers.append(_serving(directory, runtime))
    assert len(list(runtime.iterdir())) == 2
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    for directory in directories:
        assert client.ask(directory, "status") == {"state_dir": str(directory)}
        assert (directory / CONTROL_SOCKET).is_symlink()
    end(servers[0], kill=True)
    with pytest.raises(NotRunning):
        client.ask(directories[0], "status")
    (directories[0] / CONTROL_SOCKET).unlink()  # as the next `StateDir.claim` does
    servers[0] = _serving(directories[0], runtime)
    assert client.ask(directories[0], "status") == {"state_dir": str(directories[0])}
    for server in servers:
        end(server)
    assert list(runtime.iterdir()) == []
    assert [list(directory.iterdir()) for directory in directories] == [[], []]


def _serving(directory: Path, runtime: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(directory), str(runtime)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("kind", ["absent", "file", "open to others"])
def test_runtime_directory_that_cannot_be_used(tmp_path: Path, kind: str) -> None:
    """The socket lies in the state directory instead, as for a user without a session."""
    runtime = tmp_path / "run"
    match kind:
        case "absent":
            runtime = tmp_path / "none/run"
        case "file":
            runtime.touch()
        case _:
            runtime.mkdir()
            runtime.chmod(0o777)
    directory = tmp_path / "state"
    directory.mkdir()
    server = _serving(directory, runtime)
    assert stat.S_ISSOCK((directory / CONTROL_SOCKET).lstat().st_mode)
    assert client.ask(directory, "status") == {"state_dir": str(directory)}
    end(server)
    assert list(directory.iterdir()) == []


def test_socket_that_was_removed(tmp_path: Path) -> None:
    """If the session's runtime directory is removed, the message names the process."""
    process, _ = hold(tmp_path)
    try:
        with pytest.raises(NotRunning, match=rf"\(pid {process.pid}\) is still starting"):
            client.ask(tmp_path, "status")
        (tmp_path / CONTROL_SOCKET).symlink_to("/nowhere/gone.sock")
        with pytest.raises(ConfigError, match=f"end it with: kill {process.pid}"):
            client.ask(tmp_path, "status")
    finally:
        end(process)


def test_runtime_directory() -> None:
    """The user's own, or the system's; a relative one is none."""
    assert runtime_directory({"XDG_RUNTIME_DIR": "/run/user/7"}) == Path("/run/user/7/mayfly")
    assert runtime_directory({"XDG_RUNTIME_DIR": "x"}) == Path("/run/mayfly")
    assert runtime_directory({}) == Path("/run/mayfly")


def test_guard_spares_what_ends_well(tmp_path: Path) -> None:
    """The guard ends with the block."""
    scratch = tmp_path / "a scratch; directory"
    (scratch / "sub").mkdir(parents=True)
    with removed_if_killed(scratch):
        assert scratch.exists()
    assert not scratch.exists()


async def _status(request: Message) -> Message:
    return {"state": "serving", "asked": request.get("detail")}


async def _refuse(request: Message) -> Message:
    raise ValueError("not now")


async def _never(request: Message) -> Message:
    await asyncio.Event().wait()
    return {}


@pytest.fixture
async def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    monkeypatch.setattr(control_module, "_LAST_ANSWERS_SECONDS", 0.01)
    # Longer than the 107 characters that a socket's address may have.
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    commands = {"status": _status, "refuse": _refuse, "never": _never}
    server = ControlServer(directory, commands)
    await server.start()
    yield directory
    await server.close()
    assert list(directory.iterdir()) == []


async def test_control_socket_is_private(control: Path) -> None:
    """Only the owner may open the socket."""
    assert stat.S_IMODE((control / CONTROL_SOCKET).stat().st_mode) == 0o600


async def test_ask(control: Path) -> None:
    """A request is answered, from a directory whose name is too long for a socket."""
    answer = await asyncio.to_thread(client.ask, control, "status", detail=7)
    assert answer == {"state": "serving", "asked": 7}


async def test_ask_refused(control: Path) -> None:
    """The server's refusal is the client's error."""
    with pytest.raises(LifetimeError, match="not now"):
        await asyncio.to_thread(client.ask, control, "refuse")


async def test_ask_in_vain(control: Path) -> None:
    """An answer that does not come in time is exit code 3."""
    with pytest.raises(client.TimedOut) as raised:
        await asyncio.to_thread(client.ask, control, "never", timeout=0.05)
    assert raised.value.exit_code == 3


@pytest.mark.parametrize(
    "line",
    [b"nonsense\n", b"[]\n", b'"command"\n', b'{"command": []}\n', b'{"command": "x"}\n',
     b"[" * 60_000 + b"\n", b'{"command": ' * 5000 + b"\n"],
)  # fmt: skip
async def test_broken_requests(control: Path, line: bytes) -> None:
    """An invalid request gets an error, and the connection stays open."""
    descriptor = os.open(control, os.O_PATH)
    path = f"/proc/self/fd/{descriptor}/{CONTROL_SOCKET}"
    reader, writer = await asyncio.open_unix_connection(path)
    os.close(descriptor)
    for _ in range(2):
        writer.write(line)
        answer = json.loads(await reader.readline())
        assert answer == {
            "ok": False,
            "error": "not a request; the commands are status, refuse, never",
        }
    writer.write(b"x" * 100_000)
    writer.write_eof()
    assert b"at most 65536 bytes" in await reader.read()
    writer.close()


async def _connect(directory: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    with control_module.short_path(directory) as path:
        return await asyncio.open_unix_connection(path)


async def test_clients_that_wait_and_leave(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of `mayfly wait --timeout` that left hold no descriptor."""
    monkeypatch.setattr(control_module, "_LOOK_SECONDS", 0.02)
    before = descriptors()
    for _ in range(50):
        with pytest.raises(client.TimedOut):
            await asyncio.to_thread(client.ask, control, "never", timeout=0.001)
    await until(lambda: descriptors() <= before)
    # One that only ends its requests still waits for its answer.
    reader, writer = await _connect(control)
    writer.write(b'{"command": "never"}\n')
    writer.write_eof()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(), 0.2)
    writer.close()


async def test_flood_of_connections(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent connections are bounded, and closed after a while."""
    monkeypatch.setattr(control_module, "MAX_CLIENTS", 5)
    before = descriptors()
    held = [await _connect(control) for _ in range(5)]
    with pytest.raises(LifetimeError, match="others are connected: try again"):
        await asyncio.to_thread(client.ask, control, "status")
    for _, writer in held:
        writer.close()
    await until(lambda: descriptors() <= before)
    monkeypatch.setattr(control_module, "_IDLE_SECONDS", 0.05)
    held = [await _connect(control) for _ in range(5)]
    assert [await reader.read() for reader, _ in held] == [b""] * 5
    for _, writer in held:
        writer.close()
    assert await asyncio.to_thread(client.ask, control, "status")


@pytest.mark.parametrize("answer", [b"nonsense\n", b"[]\n", b"{}\n", b'{"ok": false}\n',
                                    b"[" * 100_000 + b"\n"])  # fmt: skip
def test_another_program_answers(tmp_path: Path, answer: bytes) -> None:
    """The answer of another program is an error, not a traceback."""
    with (
        control_module.short_path(tmp_path) as path,
        socket.create_server(path, family=socket.AF_UNIX) as listening,
        ThreadPoolExecutor() as threads,
    ):
        asking = threads.submit(client.ask, tmp_path, "status")
        connection, _ = listening.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)
        with pytest.raises(ConfigError, match="is no Mayfly"):
            asking.result(10)


async def test_server_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits when the server closes gets an error."""
    monkeypatch.setattr(control_module, "_LAST_ANSWERS_SECONDS", 0.01)
    asked = asyncio.Event()

    async def never(request: Message) -> Message:
        asked.set()
        return await _never(request)

    server = ControlServer(tmp_path, {"never": never})
    await server.start()
    asking = asyncio.create_task(asyncio.to_thread(client.ask, tmp_path, "never", timeout=None))
    await asked.wait()
    await server.close()
    with pytest.raises(client.ServerGone):
        await asking


def test_no_server(tmp_path: Path) -> None:
    """Without a server, or after a crash of one, the error says so."""
    with pytest.raises(NotRunning, match="no Mayfly runs with the state directory"):
        client.ask(tmp_path, "status")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / CONTROL_SOCKET))
    stale.close()
    with pytest.raises(NotRunning, match="no Mayfly runs with the state directory"):
        client.ask(tmp_path, "status")
    with pytest.raises(client.TimedOut):
        client.wait_for_server(tmp_path, 0.01)
    (tmp_path / "ready.json").write_text("{}")
    with pytest.raises(NotRunning, match="killed or crashed: start it again"):
        client.ask(tmp_path, "status")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"ok": True, "n": None, "list": [], "deep": {"a": {"b": {"c": {"d": [1, {"e": "é"}]}}}}},
        {"long": list(range(2500)), "coverage": {"matrix": {"a": {"n": "served"}, "b": {}}}},
    ],
)
def test_answer_is_encoded_in_pieces(document: dict[str, object]) -> None:
    """To the same text as at once."""
    assert encode(document).decode() == json.dumps(document) + "\n"
