"""An upload resumes at the offset that the server reports, whatever ended the server."""

from __future__ import annotations

import hashlib
import random
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.client import Answer, ask
from tests.support.process import PATIENCE, Mayfly

CHUNK = 5_000_000
HALF = CHUNK // 2
BLOB = random.Random(2).randbytes(3 * CHUNK)
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"


@pytest.fixture
def start(start_mayfly: Callable[..., Mayfly]) -> Iterator[Callable[..., Mayfly]]:
    """Start servers on one root; nothing a client or a signal does may log a traceback."""
    servers: list[Mayfly] = []

    def start(**options: str) -> Mayfly:
        servers.append(start_mayfly(**options))
        return servers[-1]

    yield start
    for server in servers:
        assert "Traceback" not in server.output(), server.describe()


def request(
    server: Mayfly, method: str, path: str, body: bytes | None = None, **headers: str
) -> Answer:
    """One request on a connection of its own."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(server.host, method, path, body, fields)


def address(server: Mayfly) -> tuple[str, int]:
    """Where the server listens."""
    host, _, port = server.host.partition(":")
    return host, int(port)


def begin(server: Mayfly) -> str:
    """Begin an upload and send its first chunk; the upload's location."""
    answer = request(server, "POST", "/v2/resume/blobs/uploads/")
    assert answer.status == 202
    return send_chunk(server, answer.headers["Location"], 0, CHUNK)


def send_chunk(server: Mayfly, location: str, start: int, end: int) -> str:
    """Send bytes start to end of the blob; the upload's next location."""
    answer = patch(server, location, start, end)
    assert answer.status == 202
    assert answer.headers["Range"] == f"0-{end - 1}"
    return answer.headers["Location"]


def patch(server: Mayfly, location: str, start: int, end: int) -> Answer:
    """Offer bytes start to end of the blob; the answer."""
    place = f"{start}-{end - 1}"
    return request(server, "PATCH", location, BLOB[start:end], Content_Range=place)


def send_half_a_chunk(server: Mayfly, location: str) -> socket.socket:
    """Promise a second chunk, send half of it, and wait until the server has more than before."""
    connection = socket.create_connection(address(server), timeout=30)
    head = (
        f"PATCH {location} HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: {CHUNK}\r\n"
        f"Content-Range: {CHUNK}-{2 * CHUNK - 1}\r\n\r\n"
    )
    connection.sendall(head.encode() + BLOB[CHUNK : CHUNK + HALF])
    server.wait_for(lambda: upload_size(server.root) > CHUNK)
    return connection


def upload_size(root: Path) -> int:
    """How much of the only upload is on disk."""
    (data,) = root.glob("docker/registry/v2/repositories/resume/_uploads/*/data")
    return data.stat().st_size


def ask_offset(server: Mayfly, location: str) -> int:
    """The offset at which the server says an upload is."""
    answer = request(server, "GET", location)
    assert answer.status == 204
    first, _, last = answer.headers["Range"].partition("-")
    assert first == "0"
    return int(last) + 1


def finish(server: Mayfly, location: str, offset: int) -> None:
    """Send what is missing from an offset on, in two requests, and read the blob back."""
    location = send_chunk(server, location, offset, offset + CHUNK)
    separator = "&" if "?" in location else "?"
    closing_chunk = f"{location}{separator}digest={DIGEST}"
    answer = request(server, "PUT", closing_chunk, BLOB[offset + CHUNK :])
    assert answer.status == 201
    answer = request(server, "GET", answer.headers["Location"])
    assert answer.status == 200
    assert answer.body == BLOB


def ask_to_stop(server: Mayfly) -> None:
    """SIGTERM, and wait until the server has taken notice."""
    server.popen.send_signal(signal.SIGTERM)
    server.wait_for(lambda: "stopping" in server.output())


def test_server_killed_within_a_chunk(start: Callable[..., Mayfly]) -> None:
    """After SIGKILL in the middle of a chunk, a server on the same port takes the rest."""
    server = start()
    location = begin(server)
    with send_half_a_chunk(server, location):
        server.kill()
    restarted = start(listen=server.host)
    assert restarted.host == server.host
    offset = ask_offset(restarted, location)
    assert CHUNK < offset <= CHUNK + HALF
    finish(restarted, location, offset)


def test_server_stopped_between_chunks(start: Callable[..., Mayfly]) -> None:
    """After a clean stop between two chunks, exactly what was acknowledged is there."""
    server = start()
    location = begin(server)
    server.stop()
    restarted = start(listen=server.host)
    assert ask_offset(restarted, location) == CHUNK
    finish(restarted, location, CHUNK)


def test_server_stopped_within_a_chunk(start: Callable[..., Mayfly]) -> None:
    """A stop lets a chunk that is under way arrive and be acknowledged before it ends."""
    server = start()
    location = begin(server)
    with send_half_a_chunk(server, location) as connection:
        ask_to_stop(server)
        connection.sendall(BLOB[CHUNK + HALF : 2 * CHUNK])
        assert connection.recv(4096).startswith(b"HTTP/1.1 202 ")
    assert server.popen.wait(PATIENCE) == 0
    restarted = start(listen=server.host)
    assert ask_offset(restarted, location) == 2 * CHUNK
    finish(restarted, location, 2 * CHUNK)


def test_server_told_twice_to_stop_within_a_chunk(start: Callable[..., Mayfly]) -> None:
    """A second SIGTERM ends the wait for a chunk at once; what had arrived is kept."""
    server = start()
    location = begin(server)
    with send_half_a_chunk(server, location):
        ask_to_stop(server)
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(PATIENCE) == 128 + signal.SIGTERM
    restarted = start(listen=server.host)
    offset = ask_offset(restarted, location)
    assert CHUNK <= offset <= CHUNK + HALF
    finish(restarted, location, offset)


def test_client_gone_within_a_chunk(start: Callable[..., Mayfly]) -> None:
    """A client that went away in the middle of a chunk resumes where the server is."""
    server = start()
    location = begin(server)
    send_half_a_chunk(server, location).close()

    def taken() -> bool:
        # Until the server notices that the client is gone, an offset may be out of date at once.
        offset = ask_offset(server, location)
        assert CHUNK < offset <= CHUNK + HALF
        answer = patch(server, location, offset, 2 * CHUNK)
        assert answer.status in (202, 416)
        return answer.status == 202

    server.wait_for(taken)
    finish(server, location, 2 * CHUNK)


def test_chunk_at_a_wrong_offset_harms_nothing(start: Callable[..., Mayfly]) -> None:
    """A chunk sent again after a restart is refused, and the upload continues."""
    server = start()
    location = begin(server)
    server.kill()
    restarted = start(listen=server.host)
    assert patch(restarted, location, 0, CHUNK).status == 416
    assert ask_offset(restarted, location) == CHUNK
    finish(restarted, location, CHUNK)
