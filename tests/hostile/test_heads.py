"""Attacks by the heads of requests."""

from __future__ import annotations

import socket

from tests.hostile.harness import Hostile


def exchange(host: str, data: bytes) -> bytes:
    """Send bytes on a connection of their own; the beginning of the answer."""
    name, _, port = host.rpartition(":")
    with socket.create_connection((name, int(port)), timeout=60) as line:
        line.sendall(data)
        return line.recv(4096)


def test_blanks_in_a_length(hostile: Hostile) -> None:
    """A head is read in time that grows with its length alone, whatever its fields hold."""
    with hostile.attack("64,000 blanks in `Content-Length`", before="stalled for 29 s") as under:
        head = b"PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: x" + b" " * 64_000 + b"y\r\n\r\n"
        while under.going():
            assert b" 400 " in exchange(under.host, head)
