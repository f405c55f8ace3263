"""Requests in parts that can be mutated one by one, and written as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Header = tuple[bytes, bytes]


@dataclass
class Message:
    """A request as it goes over the wire; nothing in it needs to be right.

    Attributes:
        path: segments, joined by slashes.
        query: parameters, joined by ``&``.
        framing: how the body's end is told: by ``length``, by ``chunks``, or not at all.
        pieces: of the body; the chunks, where it is sent in chunks.
    """

    method: bytes
    path: list[bytes]
    query: list[bytes] = field(default_factory=list)
    headers: list[Header] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    framing: str = "none"
    version: bytes = b"HTTP/1.1"

    def render(self) -> bytes:
        """The bytes of the request."""
        target = b"/".join(self.path)
        if self.query:
            target += b"?" + b"&".join(self.query)
        headers, body = list(self.headers), b"".join(self.pieces)
        if self.framing == "length":
            headers.append((b"Content-Length", str(len(body)).encode()))
        elif self.framing == "chunks":
            headers.append((b"Transfer-Encoding", b"chunked"))
            body = chunked(self.pieces)
        lines = [b" ".join((self.method, target, self.version))]
        lines += [name + b": " + value for name, value in headers]
        return b"\r\n".join([*lines, b"", b""]) + body


def chunked(pieces: Sequence[bytes]) -> bytes:
    """A body in chunked coding."""
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces if p) + b"0\r\n\r\n"


def message(
    method: str,
    target: str,
    headers: Sequence[tuple[str, str]] = (),
    pieces: Sequence[bytes] | None = None,
    framing: str = "length",
) -> Message:
    """A valid request; without ``pieces`` it has no body."""
    path, _, query = target.partition("?")
    return Message(
        method.encode(),
        path.encode().split(b"/"),
        query.encode().split(b"&") if query else [],
        [(b"Host", b"registry.test"), *((n.encode(), v.encode()) for n, v in headers)],
        list(pieces or ()),
        "none" if pieces is None else framing,
    )
