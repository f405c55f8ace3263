"""Full and failing disks beneath a server: refused clearly, read on, nothing lost, no restart."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mayfly.registry.exit_codes import Exit
from mayfly.storage.directory.writeback import STEP
from tests.faults import disk_mounts
from tests.faults.disk_mounts import MIB, ext4, fill, free, limit, run, thin, tmpfs, with_quota
from tests.faults.disk_pushes import Pushes, Refused, noise
from tests.faults.flood_load import LONG
from tests.support.commands import mayfly
from tests.support.images import digest_of
from tests.support.process import PATIENCE, Mayfly

Start = Callable[..., Mayfly]

QUICK = ("--drain-timeout", "1s")
"""A server that refused part of a push waits for the rest of it when it ends."""

FAILING = """
import errno, os, pathlib
below, switch = os.environ["FAIL_BELOW"], pathlib.Path(os.environ["FAIL_WHILE"])

def failing(name, real, changes):
    def call(what, *args, **kwargs):
        path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)
        if str(path).startswith(below) and changes(args) and switch.exists():
            if switch.read_text() == name:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(what, *args, **kwargs)
    return call

os.write = failing("write", os.write, lambda args: True)
os.fsync = failing("fsync", os.fsync, lambda args: True)
os.fdatasync = failing("fdatasync", os.fdatasync, lambda args: True)
os.open = failing("open", os.open, lambda args: args[0] & os.O_WRONLY)
"""
"""Makes the server's calls fail below its root, while a file names which."""


@pytest.fixture
def place(workspace: Path) -> Iterator[Path]:
    """A directory for mounts, empty at the end."""
    path = workspace / "mounts"
    path.mkdir()
    yield path
    disk_mounts.run("rm", "-rf", "--one-file-system", path)


@contextlib.contextmanager
def reading(client: Pushes) -> Iterator[None]:
    """Meanwhile somebody pulls everything, again and again, and at least once."""
    over, failed = threading.Event(), []

    def pull() -> None:
        try:
            client.check()
            while not over.is_set():
                client.check()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=pull)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert failed == []


def sessions(root: Path) -> list[str]:
    """What lies in upload sessions and among temporary files."""
    found = []
    for directory, _, files in os.walk(root):
        if "/_uploads/" in f"{directory}/" or "/scratch/" in f"{directory}/":
            found += [f"{directory}/{name}" for name in files]
    return found


def test_push_that_cannot_fit(start_mayfly: Start, place: Path) -> None:
    """A length that does not fit is refused with the sizes before a byte of the body is sent."""
    with (
        tmpfs(place / "small", 16 * MIB) as small,
        start_mayfly(*QUICK, root=small / "root") as server,
    ):
        client = Pushes(server.host)
        for method in ("POST", "PATCH", "PUT"):
            target = "/v2/a/blobs/uploads/"
            if method != "POST":
                target = client.ask("POST", target)[1]["Location"]
            target += f"?digest={digest_of(b'')}"
            status, _, body = client.ask(method, target, b"", **{"Content-Length": str(5 << 30)})
            assert status == 413
            assert b'"DENIED"' in body and b"space left" in body
            assert b"5.0 GiB more do not fit" in body and b"MiB are free" in body
            assert sessions(small) == []


def test_reserve(start_mayfly: Start, place: Path) -> None:
    """Blobs leave the reserve free, whether or not they tell their length; manifests may use it."""
    with (
        tmpfs(place / "small", 16 * MIB) as small,
        start_mayfly(*QUICK, "--reserve", "12MiB", root=small / "root") as server,
    ):
        client = Pushes(server.host)
        client.push("a", "1", noise(2 * MIB, 1))
        for announced in (True, False):
            with pytest.raises(Refused, match=r"12\.0 MiB stay reserved"):
                client.blob("a", noise(3 * MIB, 2), announced=announced)
        fill(small, leave=MIB)
        manifest = client.ask("GET", "/v2/a/manifests/1")[2]
        assert client.ask("PUT", "/v2/a/manifests/2", manifest)[0] == 201
        client.check()


@pytest.mark.parametrize("announced", [True, False] if LONG else [False])
def test_full(start_mayfly: Start, place: Path, announced: bool) -> None:
    """A full disk refuses pushes and serves pulls; deleting makes room, without a restart."""
    with tmpfs(place / "small", 24 * MIB) as small:
        options = (*QUICK, "--gc-interval", "1s", "--gc-grace", "5s", "--reserve", "0")
        with start_mayfly(*options, root=small / "root") as server:
            client = Pushes(server.host)
            for number in range(4):
                client.push(f"kept{number}", "1", noise(4 * MIB, number))
            before = free(small)
            with reading(Pushes(server.host, kept=dict(client.kept))):
                for attempt in range(3):
                    with pytest.raises(Refused, match="space left") as refused:
                        client.blob("big", noise(16 * MIB, attempt), announced=announced)
                    assert (refused.value.status, refused.value.code) == (413, "DENIED")
                    assert sessions(small) == []
            assert free(small) > before - MIB
            client.push("after", "1", noise(2 * MIB, "after"))
            client.delete("kept0", "1")
            server.wait_for(lambda: free(small) > before + MIB)
            client.push("after", "2", noise(4 * MIB, "after delete"))
            client.check()


def test_many_fill_it_at_once(start_mayfly: Start, place: Path) -> None:
    """Of pushes that do not all fit some succeed; those, and only those, are there afterwards."""
    with ext4(place / "small", 32 * MIB) as small:
        with start_mayfly(*QUICK, "--reserve", "0", root=small / "root") as server:
            clients = [Pushes(server.host) for _ in range(6)]
            refused: list[Refused] = []

            def work(number: int) -> None:
                for turn in range(4):
                    try:
                        clients[number].push(
                            f"c{number}", f"{turn}", noise(2 * MIB, (number, turn))
                        )
                    except Refused as error:
                        refused.append(error)

            threads = [threading.Thread(target=work, args=(n,)) for n in range(len(clients))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert refused and {(e.status, e.code) for e in refused} == {(413, "DENIED")}
            assert sum(len(one.kept) for one in clients) > 3
            for one in clients:
                one.check()
            assert sessions(small) == []
        assert mayfly("verify", "--root", small / "root").returncode == 0


def test_quota(start_mayfly: Start, place: Path) -> None:
    """A quota is a full disk; raised, the next push passes."""
    with with_quota(place / "quota") as disk, start_mayfly(*QUICK, root=disk / "root") as server:
        client = Pushes(server.host)
        client.push("kept", "1", noise(MIB, 1))
        limit(disk, 6 * MIB)
        with reading(Pushes(server.host, kept=dict(client.kept))):
            with pytest.raises(Refused, match="space left") as refused:
                client.push("big", "1", noise(12 * MIB, 2))
            assert (refused.value.status, refused.value.code) == (413, "DENIED")
            assert sessions(disk) == []
        limit(disk, None)
        client.push("big", "1", noise(12 * MIB, 2))
        client.check()


def test_read_only_remount(start_mayfly: Start, place: Path) -> None:
    """On a disk that turned read-only pushes are refused with the reason, until it is back."""
    with ext4(place / "disk", 32 * MIB) as disk, start_mayfly(*QUICK, root=disk / "root") as server:
        client = Pushes(server.host)
        client.push("kept", "1", noise(MIB, 1))
        run("mount", "-o", "remount,ro", disk)
        with reading(Pushes(server.host, kept=dict(client.kept))):
            with pytest.raises(Refused, match="Read-only file system") as refused:
                client.push("more", "1", noise(MIB, 2))
            assert (refused.value.status, refused.value.code) == (405, "UNSUPPORTED")
        run("mount", "-o", "remount,rw", disk)
        client.push("more", "1", noise(MIB, 2))
        client.check()


def test_disk_smaller_than_it_says(start_mayfly: Start, place: Path) -> None:
    """A thin disk takes what it cannot store and fails at the sync: that push is refused, too."""
    with thin(place / "disk") as disk, start_mayfly(*QUICK, root=disk / "root") as server:
        client = Pushes(server.host)
        client.push("kept", "1", noise(2 * MIB, 1))
        refused = []
        with reading(Pushes(server.host, kept=dict(client.kept))):
            for number in range(4):
                try:
                    client.push("more", f"{number}", noise(STEP + MIB, number))
                except Refused as error:
                    refused.append((error.status, error.code))
        assert refused and set(refused) <= {(413, "DENIED"), (500, "UNKNOWN")}
        client.check()
        assert sessions(disk) == []


def test_failing_disk(place: Path) -> None:
    """Input and output errors: no push is acknowledged, the reason is told, pulls continue."""
    (place / "sitecustomize.py").write_text(FAILING)
    broken = place / "broken"
    env = {name: os.environ[name] for name in os.environ if not name.startswith("MAYFLY_")}
    env |= {"PYTHONPATH": str(place), "FAIL_BELOW": str(place / "root"), "FAIL_WHILE": str(broken)}
    with Mayfly(place / "root", place / "state", *QUICK, env=env) as server:
        client = Pushes(server.host)
        client.push("kept", "1", noise(MIB, 1))
        for call in ("open", "write", "fsync", "fdatasync"):
            size = STEP + MIB if call == "fdatasync" else MIB
            broken.write_text(call)
            meanwhile = reading(Pushes(server.host, kept=dict(client.kept)))
            with meanwhile, pytest.raises(Refused, match="Input/output error") as refused:
                client.push("more", call, noise(size, call))
            assert (refused.value.status, refused.value.code) == (500, "UNKNOWN")
            assert str(place) not in refused.value.message
            broken.unlink()
            client.push("more", call, noise(size, call))
        client.check()
        assert "Traceback" not in server.output()


def test_import_that_cannot_fit(place: Path, tmp_path: Path, start_mayfly: Start) -> None:
    """`mayfly import` says at once what does not fit, and exits 4; with room it does its work."""
    source = tmp_path / "source"
    with start_mayfly(*QUICK, root=source, state_dir=tmp_path / "state") as server:
        Pushes(server.host).push("app", "1", noise(12 * MIB, 1))
    with tmpfs(place / "small", 8 * MIB) as small:
        done = mayfly("import", source, "--root", small / "root")
        assert done.returncode == 4, done.stderr
        assert "12.0 MiB more do not fit" in done.stderr and "Traceback" not in done.stderr
        assert sessions(small) == [] and free(small) > 7 * MIB
        run("mount", "-o", f"remount,size={32 * MIB}", small)
        assert mayfly("import", source, "--root", small / "root").returncode == 0


@pytest.mark.parametrize("full", ["root", "state-dir"])
def test_start_on_a_full_disk(place: Path, tmp_path: Path, full: str) -> None:
    """A server that finds no room for its store or its state ends with 4 and one line."""
    with ext4(place / "small", 2 * MIB) as small:
        fill(small, leave=0)
        with contextlib.suppress(OSError):
            for number in range(4096):
                (small / f"d{number}").mkdir()
        where = {"root": tmp_path / "root", "state-dir": tmp_path / "state"}
        where[full] = small / "sub"
        arguments = [f"--{name}={path}" for name, path in where.items()]
        done = mayfly("serve", "--listen", "127.0.0.1:0", *arguments)
        assert done.returncode == 4, done.stderr
        assert done.stderr.count("\n") == 1 and "No space left" in done.stderr.replace("no ", "No ")


def test_state_directory_fills_up(start_mayfly: Start, place: Path) -> None:
    """Where the ledger, the audit and the report find no room, images are served all the same."""
    with tmpfs(place / "state", MIB) as state:
        images = place / "images.txt"
        options = ("--until-pulled", str(images), "--nodes", "3", "--audit", str(state / "audit"))
        images.write_text("app:1\n")
        server = start_mayfly(*QUICK, *options, root=place / "root", state_dir=state / "own")
        client = Pushes(server.host)
        client.push("app", "1", noise(1000, 1))
        fill(state, leave=0)
        client.check()
        client.push("app", "2", noise(1000, 2))
        client.check()
        server.popen.terminate()
        assert server.popen.wait(PATIENCE) == Exit.INCOMPLETE  # no node pulled anything
        assert "Traceback" not in server.output(), server.output()
        # Leaving gave some room back; where that is too little the report is shown all the same.
        assert "ended because it received SIGTERM" in server.output()
