"""Seekable zstd files: served in place by frames, and refused or proven wrong when they lie."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import random
import ssl
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
import zstandard

from mayfly.storage import digest as digests
from mayfly.storage.bundle import frames as pool_module
from mayfly.storage.bundle import seekable as seekable_module
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.frames import FramePool
from mayfly.storage.bundle.seekable import FRAME_SIZE, Frames, SeekableWriter, frames_of
from mayfly.storage.errors import ContentCorrupt
from tests.bundle.builders import Layout, layers, proof_of, read, tar
from tests.bundle.conftest import OpenAll
from tests.bundle.makers import seek_table, seekable
from tests.support.client import get_cut
from tests.support.commands import mayfly_here
from tests.support.images import digest_of
from tests.support.process import PATIENCE, REPO, Mayfly

StartMayfly = Callable[..., Mayfly]

LARGE = random.Random(7).randbytes(5 * 2**20)
SMALL = layers("small")[0]


@pytest.fixture
def layout() -> Layout:
    """An image with a layer of several frames, and one with a small layer."""
    made = Layout()
    made.name(made.image(tar({"large": LARGE})), "quay.example/team/app:large")
    made.name(made.image(SMALL), "quay.example/team/app:small")
    return made


@pytest.fixture
def plain(layout: Layout) -> bytes:
    """It as a tar."""
    return tar(layout.all_files())


def write(path: Path, data: bytes) -> Path:
    """A file of these bytes."""
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("checksums", [False, True])
@pytest.mark.parametrize("frame", [512, 70_000, 2**20, 2**23])
def test_served(
    frame: int, checksums: bool, plain: bytes, tmp_path: Path, open_all: OpenAll
) -> None:
    """Every byte is there, whatever the frames, with checksums in the list or without."""
    if frame == 512:
        plain = plain[: len(plain) // 512 * 512]
    path = write(tmp_path / "b.tar.zst", seekable(plain, frame, checksums))
    layer = open_all(path).layer
    for data in (tar({"large": LARGE}), SMALL):
        extent = layer.blob("team/app", digests.of(data))
        proof_of(extent).establish()
        assert read(extent) == data
        with extent.open() as opened:
            assert opened.read(len(data) - 5, 100) == data[-5:]
            assert opened.read(70_000 - 3, 9) == data[70_000 - 3 : 70_000 + 6]
            assert opened.read(len(data) + 1, 9) == b""


def test_sent(plain: bytes, start_mayfly: StartMayfly, tmp_path: Path) -> None:
    """To many clients at once, whole and by ranges; nothing is copied to the disk."""
    server = start_mayfly(str(write(tmp_path / "b.tar.zst", seekable(plain, 100_000))))
    data = tar({"large": LARGE})
    path = f"/v2/team/app/blobs/{digest_of(data)}"
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: get_cut(server.host, path), range(16))) == [(200, data)] * 16
    for first, last in ((0, 0), (99_000, 101_000), (1_500_000, 4_500_000), (len(data) - 1, None)):
        end = len(data) - 1 if last is None else last
        connection = http.client.HTTPConnection(server.host, timeout=PATIENCE)
        wanted = f"bytes={first}-{'' if last is None else last}"
        connection.request("GET", path, headers={"Range": wanted})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (206, data[first : end + 1])
        connection.close()
    assert not [one for one in server.root.rglob("data") if one.stat().st_size > 1000]


def test_damaged_frame(plain: bytes, start_mayfly: StartMayfly, tmp_path: Path) -> None:
    """The transfer is cut where the frame begins, the blob refused from then on, and named."""
    packed = bytearray(seekable(plain, 100_000))
    sizes = _sizes(bytes(packed))
    place = sum(size for size, _ in sizes[:20])
    packed[place + 50] ^= 1
    packed[place + 5000] ^= 1
    path = write(tmp_path / "b.tar.zst", bytes(packed))
    server = start_mayfly(str(path))
    data = tar({"large": LARGE})
    blob = f"/v2/team/app/blobs/{digest_of(data)}"
    status, body = get_cut(server.host, blob)
    assert status == 500 or len(body) < len(data)
    assert get_cut(server.host, blob)[0] == 500
    assert get_cut(server.host, f"/v2/team/app/blobs/{digest_of(SMALL)}") == (200, SMALL)
    assert f"{digest_of(data)} is corrupt" in server.output()
    assert "Traceback" not in server.output()
    done = mayfly_here("verify", path)
    assert done.returncode == 4
    assert digest_of(data) in done.stdout + done.stderr
    done = mayfly_here("import", "--root", tmp_path / "root", path)
    assert done.returncode == 5
    assert digest_of(data) in done.stderr


def _sizes(packed: bytes) -> list[tuple[int, int]]:
    """The list of frames."""
    count = struct.unpack("<I", packed[-9:-5])[0]
    return list(struct.iter_unpack("<II", packed[-9 - 8 * count : -9]))


def _with_sizes(packed: bytes, sizes: list[tuple[int, int]]) -> bytes:
    body = packed[: sum(size for size, _ in _sizes(packed))]
    return body + seek_table(b"".join(struct.pack("<II", *one) for one in sizes), len(sizes))


@pytest.mark.parametrize("how", ["gap", "short", "long", "many", "reserved", "table", "huge"])
def test_lying_list(how: str, plain: bytes, tmp_path: Path, open_all: OpenAll) -> None:
    """A list that does not agree with the file is refused in one line that names it."""
    packed = seekable(plain, 50_000)
    sizes = _sizes(packed)
    wanted = "damaged|do not fill it|not of the size|frames|ends|cut short|checksum"
    match how:
        case "gap":
            packed = _with_sizes(packed, sizes[1:])
        case "short":
            packed = _with_sizes(packed, [(c, d - 512) for c, d in sizes])
        case "long":
            packed = _with_sizes(packed, [(c, d + 512) for c, d in sizes])
        case "many":
            packed = packed[:-9] + struct.pack("<IBI", 2**31, 0, 0x8F92EAB1)
        case "reserved":
            packed = packed[:-5] + bytes([4]) + packed[-4:]
        case "table":
            at = len(packed) - 9 - 8 * len(sizes) - 8
            packed = packed[:at] + b"xxxx" + packed[at + 4 :]
        case "huge":
            packed = _with_sizes(packed, [(sizes[0][0], 2**31), *sizes[1:]])
    path = write(tmp_path / "b.tar.zst", packed)
    with pytest.raises(BundleInvalid, match=wanted) as caught:
        open_all(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bomb(tmp_path: Path) -> None:
    """A frame that states 16 MiB where the list says 1,000 bytes is not decompressed."""
    bomb = zstandard.compress(bytes(16 * 2**20))
    packed = bomb + seek_table(struct.pack("<II", len(bomb), 1000), 1)
    with write(tmp_path / "b", packed).open("rb") as file:
        frames = frames_of(file.fileno(), FramePool())
        assert frames is not None
        tracemalloc.start()
        with pytest.raises(ContentCorrupt, match="not of the size"):
            frames.read(0, 10)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


def test_expands_too_far(tmp_path: Path) -> None:
    """A file that expands to more than 100 times its size is refused, in place and by import."""
    data = tar({"blobs/sha256/x": bytes(80 * 2**20)})
    path = write(tmp_path / "b.tar.zst", seekable(data, 2**23))
    for words in (["ls", path], ["import", "--root", tmp_path / "root", path]):
        done = mayfly_here(*words)
        assert done.returncode == 5
        assert f"{path}: it expands to more than 100 times its size" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    # A list alone can say so, too: nothing is decompressed before.
    frame = zstandard.compress(bytes(2**23))
    table = struct.pack("<II", len(frame), 2**23) * 100
    path.write_bytes(frame * 100 + seek_table(table, 100))
    assert path.stat().st_size < 10**6
    assert "it expands to more than 100 times" in mayfly_here("ls", path).stderr


def test_frame_without_its_size(tmp_path: Path) -> None:
    """Frames of streams do not state their sizes; one that is longer than listed is refused."""
    made = zstandard.ZstdCompressor().compressobj()
    frame = made.compress(b"x" * 5000) + made.flush()
    for size, good in ((5000, True), (4000, False), (6000, False)):
        packed = frame + seek_table(struct.pack("<II", len(frame), size), 1)
        with write(tmp_path / "b", packed).open("rb") as file:
            frames = frames_of(file.fileno(), FramePool())
            assert frames is not None
            if good:
                assert frames.read(0, 9000) == b"x" * 5000
            else:
                with pytest.raises(ContentCorrupt):
                    frames.read(0, 9000)


@contextlib.contextmanager
def opened(path: Path, pool: FramePool) -> Iterator[Frames]:
    """The frames of a file."""
    with path.open("rb") as file:
        frames = frames_of(file.fileno(), pool)
        assert frames is not None
        yield frames


def test_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all of two files from several threads keeps no more than the bound for both."""
    monkeypatch.setattr(pool_module, "_MAX_CACHED", 300_000)
    pool = FramePool()
    data = random.Random(1).randbytes(3 * 2**20)
    path = write(tmp_path / "b", seekable(data, 50_000))
    with opened(path, pool) as one, opened(path, pool) as other, ThreadPoolExecutor(4) as threads:
        for frames in (one, other, one):
            found = threads.map(lambda at, of=frames: of.read(at, 60_000), range(0, 2**21, 60_000))
            assert b"".join(found)[: 2**21] == data[: 2**21]
            assert 200_000 < pool._cache.size <= 300_000


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Has decompression take 50 ms; the frames, each with how many were decompressed just then."""
    found: list[tuple[int, int]] = []
    decompress, lock, now = Frames._decompress, threading.Lock(), [0]

    def slowly(self: Frames, number: int) -> bytes:
        with lock:
            now[0] += 1
            found.append((number, now[0]))
        time.sleep(0.05)
        try:
            return decompress(self, number)
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(Frames, "_decompress", slowly)
    return found


def test_a_frame_is_decompressed_once(slow: list[tuple[int, int]], tmp_path: Path) -> None:
    """For all that read it at the same time, also if its bytes cannot be kept."""
    data = random.Random(1).randbytes(30_000)
    with opened(write(tmp_path / "b", seekable(data, 10_000)), FramePool()) as frames:
        with ThreadPoolExecutor(12) as threads:
            assert set(threads.map(lambda _: frames.read(5, 9000), range(12))) == {data[5:9005]}
        assert [number for number, _ in slow] == [0]


@pytest.mark.usefixtures("slow")
def test_a_damaged_frame_is_an_error_for_all(tmp_path: Path) -> None:
    """For all that wait for it; the others continue, and nobody is left waiting."""

    def read(at: int) -> bool:
        with contextlib.suppress(ContentCorrupt):
            return len(frames.read(at, 100)) == 100
        return False

    # The second frame: that the first one begins like zstd is how the file is recognised.
    packed = bytearray(seekable(random.Random(1).randbytes(30_000), 10_000))
    packed[_sizes(bytes(packed))[0][0]] ^= 1
    with opened(write(tmp_path / "b", bytes(packed)), FramePool()) as frames:
        with ThreadPoolExecutor(12) as threads:
            assert [*threads.map(read, [10_000] * 6 + [0] * 3 + [20_000] * 3)] == [
                *[False] * 6,
                *[True] * 6,
            ]
        assert not read(10_000)


def test_few_frames_are_decompressed_at_a_time(slow: list[tuple[int, int]], tmp_path: Path) -> None:
    """However many are asked for, of however many files."""
    data = random.Random(1).randbytes(30_000)
    path, pool = write(tmp_path / "b", seekable(data, 3000)), FramePool()
    with opened(path, pool) as one, opened(path, pool) as other, ThreadPoolExecutor(16) as threads:
        for frames in (one, other):
            for at in range(0, 30_000, 3000):
                threads.submit(frames.read, at, 10)
    assert len(slow) == 20
    assert max(running for _, running in slow) == 2


def test_unsent_memory_is_bounded(tmp_path: Path, plain: bytes, open_all: OpenAll) -> None:
    """Clients that do not read keep 64 KiB each once 16 MiB wait; others get all the same."""
    layer = open_all(write(tmp_path / "b.tar.zst", seekable(plain, 2**20))).layer
    data = tar({"large": LARGE})
    kept: list[int] = []
    all_stuck = asyncio.Event()

    class Stuck:
        """Takes nothing."""

        async def send_file(self, file: BinaryIO, offset: int, count: int) -> None:
            kept.append(os.fstat(file.fileno()).st_size)
            if len(kept) == 100:
                all_stuck.set()
            await asyncio.Event().wait()

    class Counting:
        """Takes everything."""

        def __init__(self) -> None:
            self.found = bytearray()

        async def send_file(self, file: BinaryIO, offset: int, count: int) -> None:
            self.found += os.pread(file.fileno(), count, offset)

    async def send() -> None:
        with layer.blob("team/app", digests.of(data)).open() as content:
            for _ in range(2):
                kept.clear()
                stuck = [asyncio.create_task(content.send(Stuck(), 0, 10**6)) for _ in range(100)]
                await all_stuck.wait()
                all_stuck.clear()
                assert sum(kept) <= 2**24 + 100 * 2**16
                reader = Counting()
                await content.send(reader, 0, len(data))
                assert reader.found == data
                for task in stuck:
                    task.cancel()
                await asyncio.gather(*stuck, return_exceptions=True)
                # What they left is free again: the first ones get large parts.
                assert max(kept) == 10**6

    asyncio.run(asyncio.wait_for(send(), 30))


def test_what_is_sent_stays_as_it_was(tmp_path: Path, plain: bytes, open_all: OpenAll) -> None:
    """The kernel may send the pages of a file later: each part has a file of its own."""
    layer = open_all(write(tmp_path / "b.tar.zst", seekable(plain, 2**20))).layer
    data = tar({"large": LARGE})
    files: list[int] = []

    class Kept:
        """Keeps a descriptor of everything that is sent."""

        async def send_file(self, file: BinaryIO, offset: int, count: int) -> None:
            files.append(os.dup(file.fileno()))

    async def send() -> None:
        with layer.blob("team/app", digests.of(data)).open() as opened:
            await opened.send(Kept(), 0, len(data))

    asyncio.run(send())
    assert b"".join(os.pread(one, 2**20, 0) for one in files) == data
    for one in files:
        os.close(one)


def test_export(layout: Layout, tmp_path: Path, open_all: OpenAll) -> None:
    """What ``export`` writes to FILE.zst is served in place, and is a tar to every zstd reader."""
    source = layout.write_tar(tmp_path / "source.tar")
    root, packed = tmp_path / "root", tmp_path / "out.tar.zst"
    assert mayfly_here("import", "--root", root, source).returncode == 0
    assert mayfly_here("export", "--all", "-o", packed, "--root", root).returncode == 0
    layer = open_all(packed).layer
    data = tar({"large": LARGE})
    assert read(layer.blob("team/app", digests.of(data))) == data
    with packed.open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        whole = reader.read()
    with packed.open("rb") as file:
        frames = frames_of(file.fileno(), FramePool())
        assert frames is not None
        assert frames.read(0, 2**30) == whole
    # An import reads it in place, too.
    done = mayfly_here("import", "--root", tmp_path / "again", packed)
    assert done.returncode == 0
    assert "expanding" not in done.stderr


@pytest.mark.parametrize("size", [0, 1, FRAME_SIZE, FRAME_SIZE + 1])
def test_writer(size: int, tmp_path: Path) -> None:
    """The writer's files have as many bytes as were written, also none."""
    data = random.Random(size).randbytes(size)
    with (tmp_path / "b").open("wb") as file:
        writer = SeekableWriter(file)
        for at in range(0, size, 700_000):
            writer.write(data[at : at + 700_000])
        writer.finish()
    with (tmp_path / "b").open("rb") as file:
        frames = frames_of(file.fileno(), FramePool())
        found = b"" if frames is None else frames.read(0, size + 1)
    assert found == data


@pytest.mark.parametrize("kind", ["one frame", "several frames"])
def test_ordinary(kind: str, plain: bytes, tmp_path: Path) -> None:
    """Without a list it is refused in one line that says what to do, and imported whole."""
    parts = [plain] if kind == "one frame" else [plain[:50_000], plain[50_000:]]
    path = write(tmp_path / "b.tar.zst", b"".join(map(zstandard.compress, parts)))
    done = mayfly_here("ls", path)
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    for text in (f"mayfly import {path}", f"zstd --decompress --keep {path}", "in frames"):
        assert text in done.stderr
    done = mayfly_here("import", "--root", tmp_path / "root", path)
    assert done.returncode == 0, done.stderr
    assert "imported 2 images" in done.stdout


def test_list_is_parsed_once(
    plain: bytes, tmp_path: Path, open_all: OpenAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have a million entries."""
    path = write(tmp_path / "b.tar.zst", seekable(plain))
    parsed: list[int] = []
    read_header = seekable_module._read_header

    def counted(descriptor: int, at: int) -> tuple[int, int]:
        parsed.append(at)
        return read_header(descriptor, at)

    monkeypatch.setattr(seekable_module, "_read_header", counted)
    assert open_all(path).tagged_names()
    assert len(parsed) == 1


def test_large_frames(plain: bytes, tmp_path: Path) -> None:
    """Frames that are too large to keep in memory are refused by serve and imported."""
    data = tar({"large": bytes(9 * 2**20)}) + plain
    layout = Layout()
    layout.name(layout.image(data), "quay.example/team/app:1")
    packed = seekable(tar(layout.all_files()), 9 * 2**20)
    path = write(tmp_path / "b.tar.zst", packed)
    done = mayfly_here("ls", path)
    assert done.returncode == 5
    assert "frames of more than 8 MiB: import it" in done.stderr
    assert mayfly_here("import", "--root", tmp_path / "root", path).returncode == 0


def test_without_the_package(plain: bytes, tmp_path: Path) -> None:
    """Where zstandard is not installed the error says how to install it."""
    path = write(tmp_path / "b.tar.zst", seekable(plain))
    script = (
        "import runpy, sys; sys.modules['zstandard'] = None\n"
        "runpy.run_module('mayfly', run_name='__main__')\n"
    )
    for words in (["ls", path], ["import", "--root", tmp_path / "root", path]):
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, words)],
            capture_output=True,
            text=True,
            cwd=REPO,
            timeout=60,
        )
        assert done.returncode == 5, done.stderr
        assert "pip install 'mayfly-registry[zstd]'" in done.stderr


def test_sent_by_tls(plain: bytes, start_mayfly: StartMayfly, tmp_path: Path) -> None:
    """Over TLS the same bytes arrive, also when several clients read them slowly."""
    bundle = write(tmp_path / "b.tar.zst", seekable(plain, 300_000))
    server = start_mayfly(str(bundle), "--tls", "auto", "--auth", "none")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    data = tar({"large": LARGE})

    def get(_number: int) -> bytes:
        connection = http.client.HTTPSConnection(server.host, timeout=30, context=context)
        with contextlib.closing(connection):
            connection.request("GET", f"/v2/team/app/blobs/{digest_of(data)}")
            answer, found = connection.getresponse(), bytearray()
            while part := answer.read(200_000):
                found += part
                time.sleep(0.01)
            return bytes(found)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(get, range(6))) == [data] * 6
