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
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
import zstandard

from mayfly.storage import digest as digests
from mayfly.storage.bundle import seekable as module
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.seekable import FRAME_SIZE, SeekableWriter, frames_of
from mayfly.storage.errors import ContentCorrupt
from tests.bundle.builders import Layout, layers, proof_of, read, tar
from tests.bundle.conftest import OpenAll
from tests.bundle.makers import seek_table, seekable
from tests.support.client import get_cut
from tests.support.commands import mayfly
from tests.support.images import digest_of
from tests.support.process import REPO, Mayfly

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
@pytest.mark.parametrize("frame", [512, 70_000, 2**20, 2**24])
def test_served(
    frame: int, checksums: bool, layout: Layout, plain: bytes, tmp_path: Path, open_all: OpenAll
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


def test_sent(layout: Layout, plain: bytes, start_mayfly: StartMayfly, tmp_path: Path) -> None:
    """To many clients at once, whole and by ranges; nothing is copied to the disk."""
    server = start_mayfly(str(write(tmp_path / "b.tar.zst", seekable(plain, 100_000))))
    data = tar({"large": LARGE})
    path = f"/v2/team/app/blobs/{digest_of(data)}"
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: get_cut(server.host, path), range(16))) == [(200, data)] * 16
    for first, last in ((0, 0), (99_000, 101_000), (1_500_000, 4_500_000), (len(data) - 1, None)):
        end = len(data) - 1 if last is None else last
        connection = http.client.HTTPConnection(server.host, timeout=20)
        wanted = f"bytes={first}-{'' if last is None else last}"
        connection.request("GET", path, headers={"Range": wanted})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (206, data[first : end + 1])
        connection.close()
    assert not [one for one in server.root.rglob("data") if one.stat().st_size > 1000]


def test_damaged_frame(
    layout: Layout, plain: bytes, start_mayfly: StartMayfly, tmp_path: Path
) -> None:
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
    done = mayfly("verify", path)
    assert done.returncode == 4
    assert digest_of(data) in done.stdout + done.stderr
    done = mayfly("import", "--root", tmp_path / "root", path)
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
        frames = frames_of(file.fileno())
        assert frames is not None
        tracemalloc.start()
        with pytest.raises(ContentCorrupt, match="not of the size"):
            frames.read(0, 10)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


def test_frame_without_its_size(tmp_path: Path) -> None:
    """Frames of streams do not state their sizes; one that is longer than listed is refused."""
    made = zstandard.ZstdCompressor().compressobj()
    frame = made.compress(b"x" * 5000) + made.flush()
    for size, good in ((5000, True), (4000, False), (6000, False)):
        packed = frame + seek_table(struct.pack("<II", len(frame), size), 1)
        with write(tmp_path / "b", packed).open("rb") as file:
            frames = frames_of(file.fileno())
            assert frames is not None
            if good:
                assert frames.read(0, 9000) == b"x" * 5000
            else:
                with pytest.raises(ContentCorrupt):
                    frames.read(0, 9000)


def test_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading everything from several threads keeps no more than the bound."""
    monkeypatch.setattr(module, "_MAX_CACHED", 300_000)
    data = random.Random(1).randbytes(3 * 2**20)
    with write(tmp_path / "b", seekable(data, 50_000)).open("rb") as file:
        frames = frames_of(file.fileno())
        assert frames is not None
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda at: frames.read(at, 60_000), range(0, len(data), 60_000))
            assert b"".join(found) == data
        kept = frames._cache.values()
        assert sum(map(len, kept)) + module._ENTRY * len(kept) == frames._cached <= 300_000


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
    assert mayfly("import", "--root", root, source).returncode == 0
    assert mayfly("export", "--all", "-o", packed, "--root", root).returncode == 0
    layer = open_all(packed).layer
    data = tar({"large": LARGE})
    assert read(layer.blob("team/app", digests.of(data))) == data
    with packed.open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        whole = reader.read()
    with packed.open("rb") as file:
        frames = frames_of(file.fileno())
        assert frames is not None
        assert frames.read(0, 2**30) == whole
    # An import reads it in place, too.
    done = mayfly("import", "--root", tmp_path / "again", packed)
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
        frames = frames_of(file.fileno())
        found = b"" if frames is None else frames.read(0, size + 1)
    assert found == data


@pytest.mark.parametrize("kind", ["one frame", "several frames"])
def test_ordinary(kind: str, plain: bytes, tmp_path: Path) -> None:
    """Without a list it is refused in one line that says what to do, and imported whole."""
    parts = [plain] if kind == "one frame" else [plain[:50_000], plain[50_000:]]
    path = write(tmp_path / "b.tar.zst", b"".join(map(zstandard.compress, parts)))
    done = mayfly("ls", path)
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    for text in (f"mayfly import {path}", f"zstd --decompress --keep {path}", "in frames"):
        assert text in done.stderr
    done = mayfly("import", "--root", tmp_path / "root", path)
    assert done.returncode == 0, done.stderr
    assert "imported 2 images" in done.stdout


def test_large_frames(plain: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that are too large to keep in memory are refused by serve and imported."""
    data = tar({"large": bytes(40 * 2**20)}) + plain
    layout = Layout()
    layout.name(layout.image(data), "quay.example/team/app:1")
    packed = seekable(tar(layout.all_files()), 40 * 2**20)
    path = write(tmp_path / "b.tar.zst", packed)
    done = mayfly("ls", path)
    assert done.returncode == 5
    assert "frames of more than 32 MiB: import it" in done.stderr
    assert mayfly("import", "--root", tmp_path / "root", path).returncode == 0


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


def test_sent_by_tls(
    layout: Layout, plain: bytes, start_mayfly: StartMayfly, tmp_path: Path
) -> None:
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
