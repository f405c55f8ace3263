"""Attacks by the heads of requests."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from tests.hostile.harness import Hostile, lines
from tests.support.beside import repeating


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


def test_partial_heads(hostile: Hostile) -> None:
    """Heads that never end share one budget: those kept for longest make room."""
    count = 3000 if hostile.long else 600
    part = b"GET / HTTP/1.1\r\nA: " + b"a" * 60_000
    with hostile.attack_by_lines(
        f"{count} heads of 60 KiB without an end", count, before="68 KiB each", growth=64
    ) as (under, made):
        for line in made:
            with contextlib.suppress(ConnectionError):
                line.sendall(part)
        while under.going():
            # A client that means it is served, with a long head in two pieces, too.
            token = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"t" * 20_000
            name, _, port = under.host.rpartition(":")
            with socket.create_connection((name, int(port)), timeout=60) as honest:
                honest.sendall(token)
                honest.sendall(b"\r\n\r\n")
                assert honest.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_long_heads_of_idle_connections(hostile: Hostile) -> None:
    """What a served request leaves behind until the next one counts, too."""
    count = 3000 if hostile.long else 400
    head = b"GET /livez HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 60_000 + b"\r\n\r\n"
    with hostile.attack_by_lines(
        f"{count} idle connections after heads of 60 KiB", count, before="(new)", growth=64
    ) as (under, made):
        for line in made:
            line.sendall(head)
            assert line.recv(4096).startswith(b"HTTP/1.1 200 ")
        while under.going():
            assert b" 200 " in exchange(under.host, head)


def test_head_in_crumbs(hostile: Hostile) -> None:
    """A head that comes byte by byte is searched for its end once."""
    with hostile.attack("heads of 20 KiB, byte by byte, 8 at once", before="(new)") as under:
        while under.going():
            with lines(under.host, 8) as made:
                for line in made:
                    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    line.sendall(b"GET / HTTP/1.1\r\nA: ")
                for _ in range(20_000 if hostile.long else 2000):
                    for line in made:
                        line.sendall(b"a")


def test_pipelined_requests(hostile: Hostile) -> None:
    """Requests that come faster than they are answered wait with their sender."""
    many = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 2000
    with hostile.attack_by_lines(
        "requests without end on 16 connections", 16, before="(new)", growth=32
    ) as (under, made):
        unsent = dict.fromkeys(made, many)
        for line in made:
            line.setblocking(False)
        while under.going():
            for line in made:
                with contextlib.suppress(BlockingIOError):
                    # The kernel may take a part of a request: the rest of it is next.
                    unsent[line] = unsent[line][line.send(unsent[line]) :] or many
                with contextlib.suppress(BlockingIOError):
                    assert line.recv(1 << 20)


ASK = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def leave_unanswered(host: str, data: bytes) -> None:
    """Open a connection, send as much as it takes at once, and close it."""
    with contextlib.suppress(OSError), lines(host, 1) as (line,):
        line.setblocking(False)
        line.send(data)


@pytest.mark.parametrize(("asking", "data"), [("180 KB of requests", ASK * 5800), ("once", ASK)])
def test_clients_that_leave(hostile: Hostile, asking: str, data: bytes) -> None:
    """Clients that ask and leave come faster than they are answered; others do not wait for them.

    They share the prober's address, so that it is only by their kind that they are told apart.
    """
    with (
        hostile.attack(
            f"16 clients that ask {asking} and leave, again and again", before="8 probes in 60 s"
        ) as under,
        repeating(lambda: leave_unanswered(under.host, data), at_once=16),
    ):
        while under.going():
            time.sleep(0.01)
