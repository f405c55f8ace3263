"""Proxies between a client and a server: one breaks a download once, one is a slow line."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
import time
from contextlib import suppress
from typing import Self

BUFFER = 64 * 1024


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
        with socket.create_connection(self._server_address) as server:
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
