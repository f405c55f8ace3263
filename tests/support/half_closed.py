"""Clients that send all they have to say, shut down their side, and read on."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Literal, Self

from tests.support.secured import NAME
from tests.support.wire import TIMEOUT

Kind = Literal["plain", "close_notify", "TCP alone"]

KINDS: tuple[Kind, ...] = ("plain", "close_notify", "TCP alone")
"""Plain HTTP; TLS that ends with close_notify, and after that TCP; TLS where only TCP ends."""


class HalfClosing:
    """One blocking connection, to be used in threads.

    `ssl.SSLSocket` cannot read on after its close_notify, so TLS goes through memory here.

    Args:
        trust: None for plain HTTP.
        receive_buffer: of the socket, in bytes.
    """

    def __init__(
        self,
        port: int,
        kind: Kind,
        trust: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(("127.0.0.1", port))
        self._kind = kind
        self._ahead = b""
        """What was decrypted and not read yet."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        if kind != "plain":
            assert trust is not None
            self._tls = trust.wrap_bio(self._incoming, self._outgoing, server_hostname=NAME)
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._flush()
                    self._incoming.write(self.socket.recv(65536))
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def _flush(self) -> None:
        self.socket.sendall(self._outgoing.read())

    def send(self, data: bytes, *, last: bool = False) -> None:
        """Send; with ``last`` the end as well, in TLS together with the data."""
        if self._tls is None:
            self.socket.sendall(data)
        elif data:
            self._tls.write(data)
        if last and self._kind == "close_notify":
            self.close_notify()
        self._flush()
        if last:
            self.socket.shutdown(socket.SHUT_WR)

    def close_notify(self) -> None:
        """End TLS at this side, and not TCP."""
        assert self._tls is not None
        # OpenSSL loses what has come and is not decrypted by then.
        with contextlib.suppress(ssl.SSLWantReadError):
            while True:
                self._ahead += self._tls.read(65536)
        with contextlib.suppress(ssl.SSLWantReadError):  # the server's own is to come yet
            self._tls.unwrap()
        self._flush()

    def recv(self, size: int = 65536) -> bytes:
        """What came; empty at the end of the connection."""
        if self._tls is None:
            return self.socket.recv(size)
        if self._ahead:
            found, self._ahead = self._ahead[:size], self._ahead[size:]
            return found
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                received = self.socket.recv(65536)
                if not received:
                    return b""
                self._incoming.write(received)
            except ssl.SSLZeroReturnError:
                return b""

    def read(self, size: int) -> bytes:
        """So many bytes.

        Raises:
            ConnectionError: the connection ended before.
        """
        got = bytearray()
        while len(got) < size:
            piece = self.recv(size - len(got))
            if not piece:
                raise ConnectionError(f"the connection ended after {len(got)} bytes")
            got += piece
        return bytes(got)

    def read_to_end(self) -> bytes:
        """All that comes until the end of the connection."""
        got = bytearray()
        while piece := self.recv():
            got += piece
        return bytes(got)

    def reset(self) -> None:
        """Break the connection with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, *bytes(7)]))
        self.socket.close()
