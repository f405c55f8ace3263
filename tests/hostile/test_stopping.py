"""What must end a server does, whatever its clients, its threads and its bundles are doing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.disk_pushes import Pushes
from tests.hostile.harness import Hostile, lines
from tests.hostile.test_heads import exchange
from tests.support.process import REPO, Mayfly

HUGE = 1 << 40
"""Bytes of a sparse file: to hash it takes a quarter of an hour at best."""

DIGEST = "sha256:" + "ab" * 32

END_OF_LAYER = (
    f"GET /v2/library/app/blobs/{DIGEST} HTTP/1.1\r\nHost: x\r\nRange: bytes={HUGE - 9}-\r\n\r\n"
).encode()
"""Asks for its last bytes, which are sent once all of it was hashed."""

ENDED = 60.0
"""Seconds in which the server has to be gone; a guard, far below what it must not wait for."""


def huge_layout(place: Path) -> Path:
    """An OCI directory of one image with a huge layer, not of the digest it has."""
    blobs = place / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    with (blobs / DIGEST.partition(":")[2]).open("wb") as layer:
        layer.truncate(HUGE)

    def put(document: dict[str, object]) -> dict[str, object]:
        data = json.dumps(document).encode()
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    kind = "application/vnd.oci.image."
    config = put({"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}})
    manifest = put(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}manifest.v1+json",
            "config": {"mediaType": f"{kind}config.v1+json", **config},
            "layers": [{"mediaType": f"{kind}layer.v1.tar", "digest": DIGEST, "size": HUGE}],
        }
    )
    entry = {
        "mediaType": f"{kind}manifest.v1+json",
        "annotations": {"io.containerd.image.name": "docker.io/library/app:1"},
        **manifest,
    }
    index = {"schemaVersion": 2, "manifests": [entry]}
    (place / "index.json").write_text(json.dumps(index))
    (place / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return place


def end_it(server: Mayfly, how: str) -> None:
    """Ask the server to end."""
    if how == "stop":
        argv = [sys.executable, "-m", "mayfly", "stop", "--state-dir", str(server.state_dir)]
        subprocess.run(argv, cwd=REPO, check=True, timeout=ENDED, capture_output=True)
    elif how != "deadline":
        server.popen.send_signal(getattr(signal, how))


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stop", "deadline"])
def test_hashing_for_clients_that_left(hostile: Hostile, tmp_path: Path, how: str) -> None:
    """Nobody waits for a hash that nobody wants."""
    options = ["--drain-timeout", "600s", str(huge_layout(tmp_path / "layout"))]
    options += ["--max-lifetime", "15s"] if how == "deadline" else []
    server = hostile.serve(*options)
    with hostile.attack(
        f"ended by {how}: hashing for clients that left", before="17.5 s", may_end=True
    ) as under:
        with lines(under.host, 8) as made:
            for line in made:
                line.sendall(END_OF_LAYER)
                assert line.recv(4096).startswith(b"HTTP/1.1 206 ")
        while how != "deadline" and under.going():
            time.sleep(0.05)
        begun = time.monotonic()
        end_it(server, how)
        assert server.popen.wait(ENDED) in (0, 3), server.describe()
        if how != "deadline":
            under.note(f"gone after {time.monotonic() - begun:.1f} s")


def test_clients_that_stay(hostile: Hostile, tmp_path: Path) -> None:
    """Clients that wait for what cannot be had in time are cut at the end of the drain."""
    server = hostile.serve("--drain-timeout", "1s", str(huge_layout(tmp_path / "layout")))
    with hostile.attack_by_lines(
        "SIGTERM while 8 clients wait for a hash", 8, before="", may_end=True
    ) as (under, made):
        for line in made:
            line.sendall(END_OF_LAYER)
        while under.going():
            time.sleep(0.05)
        end_it(server, "SIGTERM")
        assert server.popen.wait(ENDED) == 3, server.describe()


def test_hashing_an_upload(hostile: Hostile) -> None:
    """An upload that has to be hashed anew does not hold up the end either."""
    server = hostile.serve("--drain-timeout", "1s")
    location = Pushes(server.host).ask("POST", "/v2/app/blobs/uploads/")[1]["Location"]
    session = location.rpartition("/")[2]
    (data,) = server.root.glob(f"docker/registry/v2/repositories/app/_uploads/{session}/data")
    with data.open("r+b") as file:
        file.truncate(HUGE)
    finish = f"PUT {location}?digest={DIGEST} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with hostile.attack_by_lines(
        "SIGTERM while an upload is hashed", 1, before="", may_end=True
    ) as (under, (line,)):
        line.sendall(finish.encode())
        while under.going():
            time.sleep(0.05)
        end_it(server, "SIGTERM")
        assert server.popen.wait(ENDED) == 3, server.describe()
    data.unlink()


def test_nobody_keeps_an_unused_server_alive(hostile: Hostile) -> None:
    """Connections, probes and refused requests are no use of a registry."""
    server = hostile.serve("--unused-timeout", "4s", "--auth", "auto", "--drain-timeout", "1s")
    refused = b"GET /v2/app/manifests/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with hostile.attack(
        "connections, probes and refused requests without end",
        before="alive for ever",
        may_end=True,
    ) as under:
        end = time.monotonic() + ENDED
        while server.running:
            assert time.monotonic() < end, "it is kept alive"
            for data in (b"", b"GET / HTTP/1.0\r\n\r\n", b"GET /v2/ HTTP/1.0\r\n\r\n", refused):
                with contextlib.suppress(OSError):
                    if data:
                        exchange(under.host, data)
                    else:
                        name, _, port = under.host.rpartition(":")
                        socket.create_connection((name, int(port)), timeout=5).close()
            time.sleep(0.1)
    assert server.popen.wait() == 0, server.describe()
    assert "nothing was pulled" in server.output()
