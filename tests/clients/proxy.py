"""A proxy that breaks a download once, to see how a client goes on."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from contextlib import suppress
from typing import Self

BUFFER = 64 * 1024


class CuttingProxy:
    """Passes connections on to a server; the first to answer more than `after` bytes is cut."""

    def __init__(self, host: str, after: int) -> None:
        address, _, port = host.partition(":")
        self._server_address = (address, int(port))
        self._after = after
        self._lock = threading.Lock()
        self._requests = bytearray()
        self.cut = False
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
            self._pass_answers(server, client)
            # Either side may be gone already.
            for end in (client, server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            upward.join()

    def _pass_requests(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(BUFFER):
                with self._lock:
                    self._requests += data
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _pass_answers(self, server: socket.socket, client: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while data := server.recv(BUFFER):
                client.sendall(data)
                passed += len(data)
                if passed > self._after and self._may_cut():
                    return

    def _may_cut(self) -> bool:
        with self._lock:
            first, self.cut = not self.cut, True
            return first


class _Handler(socketserver.BaseRequestHandler):
    server: _Listener

    def handle(self) -> None:
        self.server.proxy.handle(self.request)


class _Listener(socketserver.ThreadingTCPServer):
    # Connections that clients keep open must not hold up the end of a test.
    daemon_threads = True

    def __init__(self, address: tuple[str, int], proxy: CuttingProxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler)
