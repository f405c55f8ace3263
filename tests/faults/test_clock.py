"""A wall clock that is set while the registry works: what is in use stays, what is not goes."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from mayfly.auth.users import hash_password
from mayfly.storage import digest as digests
from mayfly.storage.directory.ages import Ages
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import BlobUnknown, UploadUnknown
from mayfly.storage.upkeep.collect import collect
from tests.auth.clock import Clock
from tests.faults.disk_pushes import Pushes, noise
from tests.support.client import basic
from tests.support.images import digest_of, files, image_body, push, put
from tests.support.process import Mayfly, need

YEAR = 365 * 24 * 3600.0
HOUR = 3600.0
BLOBS = "docker/registry/v2/blobs/sha256"


class Clocks:
    """The wall clock and the monotonic one, running alike unless one is set."""

    def __init__(self) -> None:
        self.wall, self.steady = Clock(), Clock(50.0)
        self.ages = Ages(self.wall, self.steady)

    def advance(self, seconds: float) -> None:
        self.wall.advance(seconds)
        self.steady.advance(seconds)

    def is_old(self, modified: float, age: float = HOUR) -> bool:
        return self.ages.older_than(age)(modified)


def test_even_clock() -> None:
    """Where nobody sets the clock, age is the difference, also for files older than the process."""
    clocks = Clocks()
    assert clocks.is_old(clocks.wall() - HOUR - 1)
    assert not clocks.is_old(clocks.wall() - HOUR + 1)
    written = clocks.wall()
    clocks.advance(HOUR - 1)
    assert not clocks.is_old(written)
    clocks.advance(2)
    assert clocks.is_old(written)


@pytest.mark.parametrize("jump", [YEAR, -YEAR, 60.0, -60.0])
def test_set_clock(jump: float) -> None:
    """What was written just before the clock was set is old once the age has really passed.

    At the latest by the time that the clock was set back later, if that is little.
    """
    clocks = Clocks()
    written = clocks.wall()
    clocks.advance(10)
    clocks.wall.advance(jump)
    assert not clocks.is_old(written)
    clocks.advance(HOUR - 11)
    assert not clocks.is_old(written)
    clocks.advance(12 + 60)
    assert clocks.is_old(written)


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_written_after_the_clock_was_set(jump: float) -> None:
    """What was written after the clock was set is not old either, and becomes old in its time."""
    clocks = Clocks()
    clocks.wall.advance(jump)
    written = clocks.wall()
    for _ in range(3):
        assert not clocks.is_old(written)
        clocks.advance(HOUR / 3 - 1)
    clocks.advance(10)
    assert clocks.is_old(written)


def test_set_again_and_again() -> None:
    """Each time the clock is set the wait begins anew, and it ends."""
    clocks = Clocks()
    written = clocks.wall()
    for _ in range(5):
        clocks.advance(HOUR - 1)
        clocks.wall.advance(YEAR)
        assert not clocks.is_old(written)
    clocks.advance(HOUR + 1)
    assert clocks.is_old(written)


def test_set_while_collecting() -> None:
    """A test that was made before the clock was set says no from then on."""
    clocks = Clocks()
    is_old = clocks.ages.older_than(HOUR)
    old = clocks.wall() - 2 * HOUR
    assert is_old(old)
    clocks.wall.advance(-YEAR)
    assert not is_old(old) and not is_old(clocks.wall())


def test_slewed_clock() -> None:
    """A clock that is corrected slowly, for days, is not a clock that is set."""
    clocks = Clocks()
    written = clocks.wall()
    for _ in range(500):
        clocks.advance(900)
        clocks.wall.advance(0.9)
        clocks.ages.older_than(HOUR)
    assert clocks.is_old(written)


def test_future_of_another_run() -> None:
    """A file from the future, of a run with another clock, goes once this one ran for the age."""
    clocks = Clocks()
    written = clocks.wall() + YEAR
    assert not clocks.is_old(written)
    clocks.advance(HOUR)
    assert clocks.is_old(written)


@pytest.fixture
def clocks() -> Clocks:
    """A pair that tells the files' real times at first."""
    made = Clocks()
    made.wall.now = time.time()
    made.ages = Ages(made.wall, made.steady)
    return made


@pytest.fixture
def store(tmp_path: Path, clocks: Clocks) -> Iterator[DistributionStore]:
    """A store under those clocks."""
    made = DistributionStore(tmp_path / "root", ages=clocks.ages)
    yield made
    made.close()


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_store(store: DistributionStore, clocks: Clocks, tmp_path: Path, jump: float) -> None:
    """Neither collecting nor expiry takes what a push just wrote; later both do their work."""
    layer, kept = b"a layer whose manifest comes late", b"a layer that stays"
    push(store, "app", layer)
    session = store.begin_upload("app", "sha256")
    session.write([b"half"], 0)
    clocks.wall.advance(jump)
    assert collect(store, HOUR).blobs == ()
    assert store.purge_uploads(HOUR) == 0
    session.write([b" and half"], 4)
    session.commit(digests.of(b"half and half"))
    store.blob("app", digests.of(layer))
    push(store, "app", kept)
    push(store, "app", b"{}")
    put(store, "app", image_body(b"{}", [kept]), "v1")
    left = store.begin_upload("app", "sha256")
    clocks.advance(HOUR + 60)
    assert store.purge_uploads(HOUR) == 1
    collect(store, HOUR)
    with pytest.raises(BlobUnknown):
        store.blob("app", digests.of(layer))
    with pytest.raises(UploadUnknown):
        left.write([b"x"], 0)
    store.blob("app", digests.of(kept))
    assert any("v1" in name for name in files(tmp_path / "root"))


class Set:
    """A server whose wall clock is set at will; the kernel's, and the files' times, stay right."""

    def __init__(self, place: Path) -> None:
        need("faketime")
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        self._file = place / "faketime"
        self.to("+0")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("MAYFLY_")}
        self.env = {
            **inherited,
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def to(self, offset: str) -> None:
        """Set it, as in ``+365d``."""
        draft = self._file.with_suffix(".new")
        draft.write_text(offset + "\n")
        draft.replace(self._file)


@pytest.fixture
def setting(tmp_path: Path) -> Set:
    """The clock of a server under test."""
    return Set(tmp_path)


@pytest.mark.parametrize("jump", ["+365d", "-365d"])
def test_server(setting: Set, tmp_path: Path, jump: str) -> None:
    """Between a push's layers and its manifest the clock is set: nothing is lost, nothing ends."""
    options = ("--gc-interval", "1s", "--gc-grace", "5m", "--upload-expiry", "1h")
    limits = ("--idle-timeout", "1h", "--max-lifetime", "2h", "--drain-timeout", "1s")
    place = tmp_path / "server"
    with Mayfly(place / "root", place / "state", *options, *limits, env=setting.env) as server:
        client = Pushes(server.host)
        client.push("kept", "1", noise(1000, 1))
        layer, half = noise(5000, 2), noise(4000, 3)
        client.blob("app", layer)
        client.blob("app", b"{}")
        session = client.ask("POST", "/v2/app/blobs/uploads/")[1]["Location"]
        assert client.ask("PATCH", session, half)[0] == 202
        setting.to(jump)
        told = parsedate_to_datetime(client.ask("GET", "/v2/")[1]["Date"]).timestamp()
        assert abs(told - time.time()) > YEAR / 2
        # The third time began after the second ended, and that began under the new time.
        with contextlib.closing(Listings(server.root / BLOBS)) as collected:
            server.wait_for(lambda: collected.look() >= 3)
        client.manifest("app", "1", b"{}", layer)
        assert client.ask("PUT", f"{session}?digest={digest_of(half)}")[0] == 201
        client.check()
        setting.to("+0")
        client.push("app", "2", layer, half)
        client.check()
    assert "stopping: SIGTERM" in server.output()


class Listings:
    """Sees how often a directory is listed (inotify(7)); the collector does it each time."""

    _OPENED = 0x20

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        watch = libc.inotify_add_watch(self._descriptor, os.fsencode(directory), self._OPENED)
        assert watch >= 0, os.strerror(ctypes.get_errno())
        self.count = 0

    def look(self) -> int:
        """How many there were since it was made."""
        with contextlib.suppress(BlockingIOError):
            while found := os.read(self._descriptor, 4096):
                # No name follows: the event is the watched directory's own.
                self.count += len(found) // 16
        return self.count

    def close(self) -> None:
        os.close(self._descriptor)


def test_logins(setting: Set, tmp_path: Path) -> None:
    """Tokens end or begin with the wall clock; a user who logs in anew is served at once."""
    users = tmp_path / "auth"
    users.mkdir()
    hashed = hash_password("secret password", rounds=4).decode()
    (users / "htpasswd").write_text(f"alice:{hashed}\n")
    (users / "grants.toml").write_text(
        '[[grant]]\nuser = "alice"\nrole = "developer"\nrepositories = "**"\n'
    )
    place = tmp_path / "server"
    _, login = basic("alice", "secret password")
    with Mayfly(place / "root", place / "state", "--auth", str(users), env=setting.env) as server:
        client = Pushes(server.host)

        def token() -> str:
            target = "/auth/token?service=mayfly&scope=repository:app:pull,push"
            status, _, body = client.ask("GET", target, Authorization=login)
            assert status == 200, body
            return "Bearer " + str(json.loads(body)["token"])

        def status(authorization: str) -> int:
            target = "/v2/app/blobs/uploads/"
            return client.ask("POST", target, Authorization=authorization)[0]

        for offset in ("+0", "+2d", "-2d", "+400d", "+0"):
            before = token()
            assert status(before) == 202
            setting.to(offset)
            assert status(before) in (202, 401)
            assert status(token()) == 202
            assert status(login) == 202
