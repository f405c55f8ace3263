"""A slow line to a server: every connection shares one number of bytes a second."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from contextlib import suppress
from typing import Self

_PIECE = 64 * 1024


class SlowProxy:
    """Passes connections on; what the server answers is paced.

    Attributes:
        host: where it listens.
        passed: bytes of answers so far.
    """

    def __init__(self, host: str, bytes_per_second: float) -> None:
        address, _, port = host.partition(":")
        self._server_address = (address, int(port))
        self._rate = bytes_per_second
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self.passed = 0
        self._listener = _Listener(("127.0.0.1", 0), self)
        self._thread = threading.Thread(target=self._listener.serve_forever)
        self.host = f"127.0.0.1:{self._listener.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()

    def handle(self, client: socket.socket) -> None:
        with socket.create_connection(self._server_address) as server:
            upward = threading.Thread(target=_pass, args=(client, server))
            upward.start()
            with suppress(OSError):
                while data := server.recv(_PIECE):
                    self._pace(len(data))
                    client.sendall(data)
            for end in (client, server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            upward.join()

    def _pace(self, size: int) -> None:
        """Wait until so many bytes more are due."""
        with self._lock:
            self.passed += size
            due = self._began + self.passed / self._rate
        time.sleep(max(due - time.monotonic(), 0))


def _pass(client: socket.socket, server: socket.socket) -> None:
    with suppress(OSError):
        while data := client.recv(_PIECE):
            server.sendall(data)
        server.shutdown(socket.SHUT_WR)


class _Handler(socketserver.BaseRequestHandler):
    server: _Listener

    def handle(self) -> None:
        self.server.proxy.handle(self.request)


class _Listener(socketserver.ThreadingTCPServer):
    # Connections that clients keep open must not hold up the end of a test.
    daemon_threads = True

    def __init__(self, address: tuple[str, int], proxy: SlowProxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler)
