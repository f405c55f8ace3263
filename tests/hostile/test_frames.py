"""Attacks by clients on a seekable zstd file: little is asked for, and much is decompressed."""

from __future__ import annotations

import http.client
import random
import threading
from contextlib import closing
from pathlib import Path

from tests.bundle.builders import Layout, tar
from tests.bundle.makers import seekable
from tests.hostile.harness import Hostile
from tests.support.images import digest_of

MIB = 1024 * 1024
FRAME = 8 * MIB
IDLE = 64


def test_ranges_of_large_frames(hostile: Hostile, tmp_path: Path) -> None:
    """By single bytes, from more frames than the cache holds, beside clients that do not read."""
    layer = b"".join(random.Random(number).randbytes(MIB) + bytes(7 * MIB) for number in range(9))
    layout = Layout()
    layout.name(layout.image(layer), "quay.example/team/app:1")
    bundle = tmp_path / "b.tar.zst"
    bundle.write_bytes(seekable(tar(layout.all_files()), FRAME))
    server = hostile.serve(str(bundle), "--drain-timeout", "1s")
    path = f"/v2/team/app/blobs/{digest_of(layer)}"
    stopped = threading.Event()
    asked: list[int] = []

    def ask(number: int) -> None:
        chance = random.Random(number)
        with closing(http.client.HTTPConnection(server.host, timeout=60)) as client:
            while not stopped.is_set():
                at = chance.randrange(len(layer))
                client.request("GET", path, headers={"Range": f"bytes={at}-{at}"})
                answer = client.getresponse()
                assert (answer.status, answer.read()) == (206, layer[at : at + 1])
                asked.append(at)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    with hostile.attack_by_lines(
        "single bytes of frames of 8 MiB, and 64 clients that do not read", IDLE, before=""
    ) as (under, unread):
        for idle in unread:
            idle.sendall(f"GET {path} HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode())
        for thread in threads:
            thread.start()
        try:
            while under.going():
                stopped.wait(0.05)
        finally:
            stopped.set()
            for thread in threads:
                thread.join(60)
        under.note(f"{len(asked)} answers")
    assert len(asked) >= len(threads)
