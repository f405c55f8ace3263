"""The row of open rollout pages: the fleet with and without them, in turns of the same round."""

from __future__ import annotations

import contextlib
import http.client
import re
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator

from benchmarks import load
from benchmarks.bench import CPU, PEAK, RATE, Bench, Figures
from benchmarks.peers import Peer
from benchmarks.server import Server

PAGES = 50
_TURNS = 4
TITLE = f"the fleet beside {PAGES} open rollout pages, and without: {_TURNS} turns of each"

KEPT = "% of the MiB/s without"
GREW = "MiB more than without"
COSTS = "% of the CPU s/GiB without"
EVENTS = "events/s"
_WITHOUT = " without"

_SECONDS = 60.0
"""Within which each page has its first event."""

Fleet = Callable[[Server, str], Figures]


def measure(fleet: Fleet, bench: Bench, peer: Peer, verify: bool) -> Figures:
    """Measure two servers of the same store in turns, one of them with open pages.

    Args:
        fleet: pulls from a server.
    """
    with (
        bench.serve_stored(peer) as (alone, authorization),
        bench.serve_stored(peer) as (looked_at, other_authorization),
    ):
        without, beside = [], []
        events = 0.0
        # Both servers are warm before the first round.
        for server, login in ((alone, authorization), (looked_at, other_authorization)):
            fleet(server, login)
        for turn in range(_TURNS):
            for is_looked_at in (turn % 2 == 0, turn % 2 == 1):
                if not is_looked_at:
                    without.append(fleet(alone, authorization))
                    continue
                with open_pages(looked_at) as pages:
                    began = time.monotonic()
                    beside.append(fleet(looked_at, other_authorization))
                    pages.check()
                    events = pages.events / (time.monotonic() - began)
        one, other = _middle(beside), _middle(without)
        return {
            KEPT: _percent(beside, without, RATE),
            COSTS: _percent(beside, without, CPU),
            GREW: looked_at.peak_mib() - alone.peak_mib(),
            EVENTS: events,
            RATE: one[RATE],
            RATE + _WITHOUT: other[RATE],
            CPU: one[CPU],
            CPU + _WITHOUT: other[CPU],
            PEAK: looked_at.peak_mib(),
            PEAK + _WITHOUT: alone.peak_mib(),
        }


def _middle(turns: list[Figures]) -> Figures:
    return {name: statistics.median(one[name] for one in turns) for name in (RATE, CPU)}


def _percent(beside: list[Figures], without: list[Figures], figure: str) -> float:
    pairs = zip(beside, without, strict=True)
    return 100 * statistics.median(one[figure] / other[figure] for one, other in pairs)


class Pages:
    """Open pages.

    Attributes:
        events: received since all of them had their first.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._selector = selectors.DefaultSelector()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._first = 0
        self.events = 0
        self.ended = 0

    def open(self) -> None:
        """Load each with its files, and begin to follow its events."""
        for _ in range(PAGES):
            self._selector.register(self._follow(), selectors.EVENT_READ, [b""])
        self._thread.start()
        end = time.monotonic() + _SECONDS
        while self._first < PAGES:
            if time.monotonic() > end or self.ended:
                raise RuntimeError(f"only {self._first} of {PAGES} pages have an event")
            time.sleep(0.01)
        self.events = 0

    def check(self) -> None:
        """See that they are open.

        Raises:
            RuntimeError: one was closed.
        """
        if self.ended:
            raise RuntimeError(f"{self.ended} of {PAGES} pages were closed")

    def close(self) -> None:
        """Close them."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(_SECONDS)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _follow(self) -> socket.socket:
        connection = http.client.HTTPConnection(self._server.address, timeout=_SECONDS)
        with contextlib.closing(connection):
            page = self._get(connection, "/").decode()
            for path in re.findall(r'(?:href|src)="(mayfly/v1/page/[^"]+)"', page):
                self._get(connection, f"/{path}")
        head = (
            f"GET /mayfly/v1/events HTTP/1.1\r\nHost: {self._server.address}\r\n"
            f"Authorization: {load.LOOKER_BASIC}\r\n\r\n"
        )
        made = socket.create_connection(("127.0.0.1", self._server.port), timeout=_SECONDS)
        made.sendall(head.encode())
        return made

    def _get(self, connection: http.client.HTTPConnection, path: str) -> bytes:
        headers = {"Accept": "text/html", "Authorization": load.LOOKER_BASIC}
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path} answered {answer.status}")
        return body

    def _read(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.1):
                line = key.fileobj
                assert isinstance(line, socket.socket)
                data = line.recv(1 << 20)
                if not data:
                    self.ended += 1
                    self._selector.unregister(line)
                    line.close()
                    continue
                rest: list[bytes] = key.data
                found = (rest[0] + data).count(b"\ndata: ")
                rest[0] = (rest[0] + data)[-6:]
                if found and len(rest) == 1:
                    rest.append(b"")
                    self._first += 1
                self.events += found


@contextlib.contextmanager
def open_pages(server: Server) -> Iterator[Pages]:
    """Keep pages of a server open until the block ends."""
    pages = Pages(server)
    try:
        pages.open()
        yield pages
    finally:
        pages.close()
