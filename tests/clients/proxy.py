"""Proxies between a client and a server: one break, a slow line, a network that fails at random."""

from __future__ import annotations

import random
import re
import socket
import socketserver
import struct
import threading
import time
from contextlib import suppress
from enum import Enum
from typing import Self

BUFFER = 64 * 1024
STALL = 0.5
STALL = 0.5


class Proxy:
    """Passes connections on to a server; what it does to the answers is a subclass's matter."""

    def __init__(self, host: str) -> None:
        address, _, port = host.partition(":")
        self._server_address = (address, int(port))
        self._lock = threading.Lock()
        self._requests = bytearray()
        self._listener = _Listener(("127.0.0.1", 0), self)
        self._thread = threading.Thread(target=self._listener.serve_forever)
        self.host = f"127.0.0.1:{self._listener.server_address[1]}"

    @property
    def ranges(self) -> list[str]:
        """The Range headers that clients sent."""
        return re.findall(r"(?im)^range: (\S+)", self._requests.decode("latin-1"))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()

    def handle(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._server_address)
        except OSError:
            return  # it is down: the client is told by a closed connection
        with server:
            upward = threading.Thread(target=self._pass_requests, args=(client, server))
            upward.start()
            with suppress(OSError):
                self.pass_answers(server, client)
            # Either side may be gone already.
            for end in (client, server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            upward.join()

    def pass_answers(self, server: socket.socket, client: socket.socket) -> None:
        """Pass on what a server says on one connection."""
        raise NotImplementedError

    def _pass_requests(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(BUFFER):
                with self._lock:
                    self._requests += data
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)


class CuttingProxy(Proxy):
    """The first connection to answer more than `after` bytes is cut."""

    def __init__(self, host: str, after: int) -> None:
        super().__init__(host)
        self._after = after
        self.cut = False

    def pass_answers(self, server: socket.socket, client: socket.socket) -> None:
        passed = 0
        while data := server.recv(BUFFER):
            client.sendall(data)
            passed += len(data)
            if passed > self._after and self._may_cut():
                return

    def _may_cut(self) -> bool:
        with self._lock:
            first, self.cut = not self.cut, True
            return first


class SlowProxy(Proxy):
    """All connections share one number of bytes a second; `passed` counts those so far."""

    def __init__(self, host: str, bytes_per_second: float) -> None:
        super().__init__(host)
        self._rate = bytes_per_second
        self._began = time.monotonic()
        self.passed = 0

    def pass_answers(self, server: socket.socket, client: socket.socket) -> None:
        while data := server.recv(BUFFER):
            with self._lock:
                self.passed += len(data)
                due = self._began + self.passed / self._rate
            time.sleep(max(due - time.monotonic(), 0))
            client.sendall(data)


class Fate(Enum):
    """What becomes of a connection."""

    CLOSED = "closed"
    RESET = "reset"
    STALLED = "stalled, then reset"


class _Line:
    """One connection through a proxy, and how it is to fail."""

    def __init__(self, client: socket.socket, server: socket.socket, fate: Fate) -> None:
        self.fate = fate
        self._ends = (client, server)
        self._is_reset = False

    def fail(self) -> None:
        """Break it."""
        if self.fate is Fate.STALLED:
            time.sleep(STALL)
        if self.fate is Fate.CLOSED:
            self.end()
            return
        self._is_reset = True
        for end in self._ends:
            # Closing it is a reset then. Its waiter wakes up.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):
                end.shutdown(socket.SHUT_RD)

    def end(self) -> None:
        """End it in good order, unless it is broken already."""
        if self._is_reset:
            return
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class FaultyProxy(Proxy):
    """Breaks some connections, each at an offset of its own, in the one direction or the other.

    The offsets are spread evenly over the orders of magnitude: in the head of the first answer,
    and megabytes later. What is chosen depends on the seed only, and on the order of connections.

    Attributes:
        left: how many faults are still to come; with none left it only passes on.
        passed: bytes of answers that were passed on.
    """

    def __init__(self, host: str, seed: int, faults: int, largest: int) -> None:
        super().__init__(host)
        self._chance = random.Random(seed)
        self._largest = largest
        self.left = faults
        self.passed = 0
        self.happened: list[str] = []

    def handle(self, client: socket.socket) -> None:
        with self._lock:
            fate = self._chance.choice(list(Fate))
            downward = self._chance.random() < 0.5
            after = int(self._largest ** self._chance.uniform(0.3, 1))
        try:
            server = socket.create_connection(self._server_address)
        except OSError:
            return  # it is down: the client is told by a closed connection
        line = _Line(client, server, fate)
        # The other direction fails at the largest offset: what is longer than that always fails.
        up, down = (self._largest, after) if downward else (after, self._largest)
        upward = threading.Thread(target=self._pump, args=(line, client, server, up))
        upward.start()
        self._pump(line, server, client, down)
        upward.join()
        # Here, and not by the listener, which would end the stream first: a reset stays one.
        server.close()
        client.close()

    def _pump(self, line: _Line, source: socket.socket, target: socket.socket, after: int) -> None:
        """Pass on what comes, up to a fault; then neither side hears any more."""
        passed = 0
        with suppress(OSError):
            while data := source.recv(BUFFER):
                failing = passed + len(data) > after and self._may_fail()
                part = data[: max(after - passed, 0)] if failing else data
                self._note(part, target)
                target.sendall(part)
                passed += len(part)
                if failing:
                    self.happened.append(f"{line.fate.value} at {passed}")
                    line.fail()
                    return
        line.end()

    def _note(self, data: bytes, target: socket.socket) -> None:
        with self._lock:
            if re.match(rb"(?:GET|HEAD|POST|PUT|PATCH|DELETE) /", data):
                self._requests += data[: 16 * 1024]
            elif target.getpeername() != self._server_address:
                self.passed += len(data)

    def _may_fail(self) -> bool:
        with self._lock:
            if self.left == 0:
                return False
            self.left -= 1
            return True


class _Handler(socketserver.BaseRequestHandler):
    server: _Listener

    def handle(self) -> None:
        self.server.proxy.handle(self.request)


class _Listener(socketserver.ThreadingTCPServer):
    # Connections that clients keep open must not hold up the end of a test.
    daemon_threads = True

    def __init__(self, address: tuple[str, int], proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler)
