"""Which connections are cut, as a table of what the kernel counts and what is being done."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

import pytest

from mayfly.registry.http.tcp_info import TCPInfo
from mayfly.registry.http.watchdog import (
    IDLE_GRACE_SECONDS,
    MIN_PROGRESS,
    ConnectionWatchdog,
    Timeouts,
)
from tests.auth.clock import Clock

HEADER, STALL, VANISHED = 30.0, 300.0, 60.0
QUIET = TCPInfo(0, 0, unsent=False, unacked=False, probes=0, last_sent=0.0, last_ack=0.0)


@dataclass(eq=False)
class Connection:
    """What a `registry.http.connection.Connection` says of its client."""

    serving: bool = False
    requests: int = 0
    awaits_body: bool = False
    is_writing: bool = False
    counts: TCPInfo = QUIET


class Judge:
    """A watchdog over one connection, with time that passes when told to."""

    def __init__(self, connection: Connection, **timeouts: float | None) -> None:
        self.connection = connection
        self.clock = Clock()
        self.crowded = False
        limits = {"header": HEADER, "stall": STALL, "vanished": VANISHED, **timeouts}
        server: Any = None
        self._watchdog = ConnectionWatchdog(
            server, Timeouts(**limits), lambda: self.crowded, self.clock
        )

    def after(self, seconds: float, **counts: Any) -> bool:
        """Whether it is cut so much later, the counts being these by then."""
        self.clock.advance(seconds)
        self.connection.counts = self.connection.counts._replace(**counts)
        one: Any = self.connection
        return self._watchdog._exceeded(one, self.connection.counts) is not None


def test_connection_that_never_asks() -> None:
    """It has the header's time for its first request, whether or not it has begun one."""
    for received in (0, 10):
        judge = Judge(Connection())
        assert not judge.after(0)
        assert not judge.after(HEADER - 1, received=received)
        assert judge.after(1)


def test_kept_connection() -> None:
    """Between requests it may be silent for ever; a header has its time from where it begins."""
    judge = Judge(Connection(requests=3, counts=QUIET._replace(received=500)))
    assert not judge.after(0)
    assert not judge.after(10_000)
    assert not judge.after(10, received=510)
    assert not judge.after(HEADER - 1, received=520)
    assert judge.after(1, received=530)


def test_what_is_not_asked_for_is_no_progress() -> None:
    """A client that takes nothing of its response gains no time by sending something else."""
    judge = Judge(Connection(serving=True, requests=1, counts=QUIET._replace(unsent=True)))
    assert not judge.after(0)
    assert not judge.after(STALL - 1, received=10 * MIN_PROGRESS)
    assert judge.after(1, received=20 * MIN_PROGRESS)


def test_crowd() -> None:
    """A silent connection gives up its place to those that wait; one at work does not."""
    judge = Judge(Connection(requests=1))
    judge.crowded = True
    assert not judge.after(0)
    assert not judge.after(IDLE_GRACE_SECONDS - 1)
    assert judge.after(1)
    for counts in (QUIET._replace(unacked=True), QUIET._replace(unsent=True)):
        judge = Judge(Connection(requests=1, counts=counts))
        judge.crowded = True
        assert not judge.after(0) and not judge.after(STALL - 1)
    judge = Judge(Connection(serving=True, requests=1, awaits_body=True))
    judge.crowded = True
    assert not judge.after(0) and not judge.after(STALL - 1)


@pytest.mark.parametrize("direction", ["received", "acknowledged"])
def test_transfer(direction: str) -> None:
    """It is cut when less than `MIN_PROGRESS` has moved in the stall timeout, at any time."""
    judge = Judge(Connection(serving=True, requests=1, awaits_body=True))
    assert not judge.after(0)
    for turn in range(1, 100):
        assert not judge.after(STALL - 1, **{direction: turn * MIN_PROGRESS})
    moved = 99 * MIN_PROGRESS
    assert not judge.after(STALL - 1, **{direction: moved + MIN_PROGRESS - 1})
    assert judge.after(1)


def test_waiting_for_us() -> None:
    """A client that owes nothing is not cut, whatever time we take."""
    judge = Judge(Connection(serving=True, requests=1))
    assert not judge.after(0)
    assert not judge.after(STALL * 10)
    judge.connection.awaits_body = True
    assert not judge.after(STALL - 1)
    assert judge.after(1)


def test_broken() -> None:
    """What the event loop has not noticed, since it neither reads nor writes, is closed here."""
    judge = Judge(Connection(serving=True, requests=1))
    assert not judge.after(0)
    assert judge.after(1, broken=True)


def test_next_request_begins_anew() -> None:
    """What one request took is not held against the next."""
    judge = Judge(Connection(serving=True, requests=1, is_writing=True))
    assert not judge.after(0) and not judge.after(STALL - 1)
    judge.connection.requests = 2
    assert not judge.after(2) and not judge.after(STALL - 1)
    assert judge.after(1)


@pytest.mark.parametrize("where", ["here", "unsent", "unacked"])
def test_answer_that_is_not_taken(where: str) -> None:
    """It has been handled and has not arrived: it continues or is cut; then it may be kept."""
    judge = Judge(Connection(requests=1))
    assert not judge.after(0)

    def owed(is_owed: bool) -> dict[str, bool]:
        judge.connection.is_writing = is_owed and where == "here"
        return {name: is_owed and where == name for name in ("unsent", "unacked")}

    for turn in range(5):
        assert not judge.after(STALL - 1, **owed(True), acknowledged=turn * MIN_PROGRESS)
    assert not judge.after(10_000, **owed(False))
    assert not judge.after(10_000)
    assert not judge.after(1, **owed(True))
    assert not judge.after(STALL - 1, acknowledged=5 * MIN_PROGRESS - 1)
    assert judge.after(1)


@pytest.mark.parametrize(
    ("counts", "cut"),
    [
        # Sent again after half a minute of silence, and a quarter of a minute for the answer.
        ({"unacked": True, "last_ack": 61.0, "last_sent": 16.0}, True),
        ({"unacked": True, "last_ack": 59.0, "last_sent": 16.0}, False),
        # Sent again a moment ago: the answer is on its way.
        ({"unacked": True, "last_ack": 100.0, "last_sent": 0.1}, False),
        # A crawling reader: sent again ever more rarely, but answered each time.
        ({"unacked": True, "last_ack": 100.0, "last_sent": 100.0}, False),
        ({"unacked": False, "last_ack": 10_000.0, "last_sent": 10_000.0}, False),
        ({"probes": 3, "last_ack": 61.0, "last_sent": 61.0}, True),
        ({"probes": 2, "last_ack": 61.0, "last_sent": 61.0}, False),
    ],
)
def test_vanished(counts: dict[str, Any], cut: bool) -> None:
    """A host is gone when what it was asked was not answered; silence alone says nothing."""
    judge = Judge(Connection(serving=True, requests=1))
    assert judge.after(1, **counts) == cut


def test_never() -> None:
    """Each timeout can be off."""
    judge = Judge(Connection(requests=0), header=None, stall=None, vanished=None)
    assert not judge.after(0) and not judge.after(10**9, probes=9, last_ack=10.0**9)
    judge.connection.serving = judge.connection.awaits_body = True
    assert not judge.after(0) and not judge.after(10**9)
    assert Timeouts(None, None, None).interval > 0


def test_counts_of_a_socket() -> None:
    """The kernel's counts are read from where they are."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
        with client, server:
            client.sendall(b"x" * 1000)
            server.sendall(b"y" * 300)
            assert server.recv(2000) == b"x" * 1000
            assert client.recv(300) == b"y" * 300
            counts = TCPInfo.of(server)
            assert (counts.received, counts.acknowledged) == (1000, 300)
            assert not counts.unsent and not counts.unacked and counts.probes == 0
            server.setblocking(False)
            try:
                while server.send(b"z" * 65536):
                    pass
            except BlockingIOError:
                assert TCPInfo.of(server).unsent


def test_kernel_that_tells_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 4.6, and under qemu: nothing is known, and no connection is cut for that."""
    assert TCPInfo.is_known()
    answer = bytes(104)  # as of Linux 3.17
    monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: answer)
    assert not TCPInfo.is_known()
    connection: Any = Connection()
    with socket.socket() as unconnected:
        connection.socket = unconnected
        Judge(connection)._watchdog.check(connection)
