"""One server-side TLS connection as bytes in and bytes out: no socket, no event loop, no thread.

    begun ──feed, advance──► open ──client's close_notify──► ended
      └──────── SSLError ─────┴──► broken: `take` has the alert for the client

The caller feeds received bytes, and sends those that `take` returns after each call. A channel is
used by one thread at a time: while it `is_lent` to the thread that sends a file, by no other.
"""

from __future__ import annotations

import contextlib
import ssl

SMALL_WRITE = 64 * 1024
"""Bytes given to OpenSSL at once. It keeps as much memory for the rest of a connection."""

_MAX_HELLO = 16 * 1024
"""Bytes of a client's first message. It takes one or two thousand; OpenSSL would allow 131,396, and
allocates all of it as soon as that many are announced."""

_HELLO_HEAD = 9
"""Bytes of the heads of the first record and of the message in it (RFC 8446, 5.1 and 4)."""

_HANDSHAKE_RECORD = 22


class TLSChannel:
    """The state of one connection.

    OpenSSL keeps up to a megabyte of buffers for it, which are freed with this object.

    Args:
        context: of the server.

    Attributes:
        tls: OpenSSL's object, for the client's certificate and the like.
        is_open: whether the handshake is done.
        has_ended: whether the client has sent close_notify.
        is_lent: whether a thread is using the channel to send a file.
        write_size: bytes given to OpenSSL at once.
        encrypted: bytes of all records that `encrypt` has returned.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._hello = b""
        self.is_open = self.has_ended = self.is_lent = False
        self.write_size = SMALL_WRITE
        self.encrypted = 0

    def feed(self, data: memoryview) -> None:
        """Take bytes that were received.

        Raises:
            ssl.SSLError: the first message is too large, or its head is fragmented.
        """
        if len(self._hello) < _HELLO_HEAD:
            self._hello += data[: _HELLO_HEAD - len(self._hello)]
            if not _is_acceptable_hello(self._hello):
                raise ssl.SSLError("the first message is too large, or fragmented")
        self._incoming.write(data)

    def advance(self) -> bool:
        """Continue the handshake with the bytes fed so far; return whether it is done.

        Raises:
            ssl.SSLError: it failed.
        """
        if not self.is_open:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                self.is_open = True
        return self.is_open

    def read_into(self, buffer: memoryview) -> int:
        """Decrypt into a buffer; return the number of bytes, fewer than fit once all is decrypted.

        Raises:
            ssl.SSLError: the bytes fed are not from the client, or violate the protocol.
        """
        filled = 0
        with contextlib.suppress(ssl.SSLWantReadError):
            while filled < len(buffer):
                count: int = self.tls.read(len(buffer) - filled, buffer[filled:])  # type: ignore[assignment]
                if not count:
                    self.has_ended = True
                    break
                filled += count
        return filled

    def encrypt(self, data: memoryview) -> list[bytes]:
        """Return records of all of the data, to be sent in this order.

        Raises:
            ssl.SSLError: the channel is closed or broken.
        """
        records = []
        while data:
            data = data[self.tls.write(data[: self.write_size]) :]
            records.append(self._outgoing.read())
        self.encrypted += sum(map(len, records))
        return records

    def take(self) -> bytes:
        """Return OpenSSL's own messages: of the handshake, alerts, answers to key updates."""
        return self._outgoing.read()

    def close(self) -> None:
        """Write close_notify; the client's is not waited for."""
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()


def _is_acceptable_hello(hello: bytes) -> bool:
    """Whether a connection may begin with these bytes, `_HELLO_HEAD` or fewer."""
    if len(hello) < _HELLO_HEAD or hello[0] != _HANDSHAKE_RECORD:
        return True  # OpenSSL itself rejects other records
    record, message = int.from_bytes(hello[3:5]), int.from_bytes(hello[6:9])
    # A head that is fragmented over several records could not be read here; no client sends that.
    return record >= 4 and message <= _MAX_HELLO
