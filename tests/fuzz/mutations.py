"""What is done to valid requests: in their parts, in their framing, and in their bytes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz.messages import Message

METHODS = (
    b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"get",
    b"PRI", b"", b"G\0T", b"X" * 300,
)  # fmt: skip
ODD = (
    b"", b"/", b"..", b"../../../etc/passwd", b"%2e%2e", b"%2f", b"%2F..%2f", b"%00", b"%", b"%zz",
    b"%ff", b"%c3%28", b"a" * 300, b"-1", b"0", b"1", b"007", b"1e3", b"9" * 25, b"0x10", b"NaN",
    b"null", b"*", b"sha256:" + b"0" * 64, b"sha256:" + b"F" * 64, b"sha512:" + b"0" * 128, b"a/b",
    b"md5:" + b"0" * 32, b"sha256:", b":", b"_uploads", b"_catalog", b"blobs", b"uploads", b"tags",
    b"manifests", b"list", b"latest", b"v2", b"a=b=c", b"%26", b";", b"%0d%0aX-Evil:%201", b"'",
    b"a", b"%ed%b3%bf", b"a/" * 200, b"sha512", b"v1.0", b"fuzz/a", b"private/app", b"docker.io",
    b"{}",
)  # fmt: skip
"""What HTTP lets through, so that it comes to whatever reads it next."""

RAW = (
    b"\0", b"\xff\xfe", b"\xc0\xae", "\u0130".encode(), b"\xed\xb3\xbf", b"\r\n", b"\r\nX-Evil: 1",
    b"\n", b"\t", b" ", b'"', b"<script>", b"#", b"?", b"&", b"a" * 9000, b"9" * 5000, b"\r",
    b"\x7f",
)  # fmt: skip
PARAMETERS = (
    b"n", b"last", b"digest", b"mount", b"from", b"ns", b"tag", b"artifactType", b"scope",
    b"digest-algorithm", b"service", b"account", b"offline_token", b"",
)  # fmt: skip
HEADERS = (
    b"Host", b"Range", b"Content-Range", b"Content-Type", b"Content-Length", b"Transfer-Encoding",
    b"Authorization", b"Expect", b"Connection", b"Upgrade", b"Accept", b"If-None-Match",
    b"If-Range", b"Content-Encoding", b"Trailer", b"TE", b"Cookie", b"X-Forwarded-For", b"X\0Y",
    b"", b"A" * 9000,
)  # fmt: skip
VALUES = (
    b"bytes=0-", b"bytes=-1", b"bytes=5-2", b"bytes=0-0,2-3", b"bytes=" + b"9" * 30 + b"-", b"0-99",
    b"100-199", b"bytes 0-9/10", b"99999999999999999999-1", b"9-1", b"chunked", b"gzip, chunked",
    b"chunked, chunked", b"identity", b"xchunked", b"chunked\r\nContent-Length: 5", b"-5", b"+5",
    b"5, 5", b"5,6", b"18446744073709551616", b"Basic", b"Basic !", b"Basic Og==", b"Bearer",
    b"Bearer e30.e30.e30", b"Bearer " + b"a" * 9000, b"Negotiate x", b"100-continue", b"200-ok",
    b"close", b"keep-alive", b"upgrade", b"h2c", b"websocket", b"text/html; charset=utf-16",
    b"a:b:c", b"[::1]:5000", b"evil.test:99999999", b"a@b/c?d",
)  # fmt: skip
VERSIONS = (
    b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.1 ", b"HTTP/1", b"", b"HTTP/1.11", b"ICY/1.1",
)  # fmt: skip


@dataclass(frozen=True)
class Exchange:
    """What one connection is used for.

    Attributes:
        pieces: what is written, piece by piece.
        vanish: whether the connection is broken at once after that.
        posts: how many upload sessions these bytes can open at most.
    """

    pieces: tuple[bytes, ...]
    vanish: bool
    posts: int


class Chance(random.Random):
    """What happens to be chosen.

    Attributes:
        raw: whether HTTP itself may be broken.
    """

    raw = False

    def nasty(self) -> bytes:
        """A text to put in a place where another was."""
        return self.choice((*ODD, *RAW) if self.raw else ODD)

    def value(self) -> bytes:
        """A text to put where a value was."""
        return self.choice(VALUES) if self.random() < 0.5 else self.nasty()


class Mutator:
    """Makes exchanges of valid requests; the same for the same seed."""

    def __init__(self, seed: object) -> None:
        self._chance = Chance(str(seed))

    def exchange(self, seeds: list[Message]) -> Exchange:
        """The next one."""
        chance = self._chance
        chance.raw = chance.random() < 0.5
        count = chance.choice((1, 1, 1, 1, 2, 3, 8))
        data = b"".join(self._request(chance.choice(seeds)) for _ in range(count))
        if chance.raw and chance.random() < 0.6:
            data = self._bytes(data, chance.choice(seeds).render())
        vanish = chance.random() < 0.12
        if vanish:
            data = data[: chance.randrange(len(data) + 1)]
        return Exchange(tuple(self._split(data)), vanish, data.count(b"POST"))

    def _request(self, seed: Message) -> bytes:
        made = copy.deepcopy(seed)
        parts = (*_IN_PARTS, *_IN_HTTP) if self._chance.raw else _IN_PARTS
        for _ in range(self._chance.choice((0, 1, 1, 1, 2, 3))):
            self._chance.choice(parts)(self._chance, made)
        data = made.render()
        if self._chance.raw and self._chance.random() < 0.2:
            head, end, body = data.partition(b"\r\n\r\n")
            data = self._chance.choice((_bad_line_ends, _bad_chunks))(
                self._chance, head, end + body
            )
        return data

    def _bytes(self, data: bytes, other: bytes) -> bytes:
        for _ in range(self._chance.choice((1, 1, 2, 4, 16))):
            at = self._chance.randrange(len(data) + 1)
            size = self._chance.choice((1, 1, 2, 8, 64, 500))
            match self._chance.randrange(6):
                case 0:
                    data = data[:at] + self._chance.randbytes(1) + data[at + 1 :]
                case 1:
                    data = data[:at] + self._chance.randbytes(size) + data[at:]
                case 2:
                    data = data[:at] + data[at + size :]
                case 3:
                    data = data[: at + size] + data[at:]
                case 4:
                    data = data[:at] + self._chance.nasty() + data[at:]
                case _:
                    data = data[:at] + other[self._chance.randrange(len(other)) :]
        return data

    def _split(self, data: bytes) -> list[bytes]:
        cuts = self._chance.choice((0, 0, 0, 1, 3, 9))
        ends = sorted(self._chance.randrange(len(data) + 1) for _ in range(cuts))
        starts = [0, *ends]
        return [data[a:b] for a, b in zip(starts, [*ends, len(data)], strict=True)]


def _method(chance: Chance, made: Message) -> None:
    made.method = chance.choice(METHODS)


def _segment(chance: Chance, made: Message) -> None:
    at = chance.randrange(len(made.path))
    match chance.randrange(4):
        case 0:
            made.path[at] = chance.nasty()
        case 1:
            made.path.insert(at, chance.nasty())
        case 2:
            made.path[at] += chance.nasty()
        case _:
            del made.path[at]
            made.path = made.path or [b""]


def _encoded(chance: Chance, made: Message) -> None:
    at = chance.randrange(len(made.path))
    written = b"".join(
        b"%%%02x" % byte if chance.random() < 0.5 else bytes([byte]) for byte in made.path[at]
    )
    made.path[at] = written


def _absolute(chance: Chance, made: Message) -> None:
    made.path[0] = chance.choice(
        (b"http://registry.test", b"HTTPS://a:b@c", b"http:/", b"//x", b"*")
    )


def _parameter(chance: Chance, made: Message) -> None:
    new = chance.choice(PARAMETERS) + b"=" + chance.value()
    match chance.randrange(4):
        case 0 if made.query:
            del made.query[chance.randrange(len(made.query))]
        case 1 if made.query:
            at = chance.randrange(len(made.query))
            made.query[at] = made.query[at].partition(b"=")[0] + b"=" + chance.nasty()
        case 2:
            made.query += [new] * chance.choice((2, 64, 65, 300))
        case _:
            made.query.append(new)


def _header(chance: Chance, made: Message) -> None:
    new = chance.choice(HEADERS), chance.value()
    match chance.randrange(4):
        case 0 if made.headers:
            del made.headers[chance.randrange(len(made.headers))]
        case 1 if made.headers:
            at = chance.randrange(len(made.headers))
            made.headers[at] = made.headers[at][0], chance.value()
        case 2:
            made.headers += [new] * chance.choice((2, 40, 400))
        case _:
            made.headers.append(new)


def _value(chance: Chance, made: Message) -> None:
    """A known header takes another value."""
    name = chance.choice((b"Range", b"Content-Range", b"Content-Type", b"Authorization", b"Accept"))
    made.headers = [header for header in made.headers if header[0] != name]
    made.headers.append((name, chance.value()))


def _length(chance: Chance, made: Message) -> None:
    size = sum(map(len, made.pieces))
    wrong = chance.choice((size - 1, size + 1, size * 2, 0, 10**6, 10**12, -1))
    made.framing = "none"
    made.headers.append((b"Content-Length", str(wrong).encode()))


def _framing(chance: Chance, made: Message) -> None:
    made.framing = chance.choice(("none", "length", "chunks"))
    if chance.random() < 0.3:
        made.headers.append((b"Content-Length", str(chance.randrange(9999)).encode()))


def _body(chance: Chance, made: Message) -> None:
    body = bytearray(b"".join(made.pieces))
    for _ in range(chance.choice((1, 3, 20))):
        at = chance.randrange(len(body) + 1)
        body[at : at + chance.choice((0, 1, 9))] = chance.nasty()
    made.pieces = [bytes(body)]
    made.framing = chance.choice(("length", "chunks"))


def _version(chance: Chance, made: Message) -> None:
    made.version = chance.choice(VERSIONS)


_IN_PARTS: tuple[Callable[[Chance, Message], None], ...] = (
    _segment, _encoded, _parameter, _parameter, _value, _framing, _body,
)  # fmt: skip
_IN_HTTP = (_method, _absolute, _header, _length, _version)


def _bad_line_ends(chance: Chance, head: bytes, rest: bytes) -> bytes:
    lines = head.split(b"\r\n")
    at = chance.randrange(len(lines))
    lines[at] = (
        chance.choice((b" ", b"\t", b":", b"")) + lines[at] + chance.choice((b" ", b"\r", b""))
    )
    return chance.choice((b"\n", b"\r", b"\r\n", b"\n\r")).join(lines) + rest


def _bad_chunks(chance: Chance, head: bytes, rest: bytes) -> bytes:
    """A body in chunks, one of which is not as it says."""
    sizes = (
        b"-1",
        b"0x5",
        b"5;ext=1",
        b"ffffffffffffffff1",
        b"FFFFFFFF",
        b" 5",
        b"5\n",
        b"",
        b"zz",
    )
    body = rest[4:]
    chunk = chance.choice(sizes) + b"\r\n" + body[:5] + chance.choice((b"\r\n", b"", b"\n"))
    end = chance.choice((b"0\r\n\r\n", b"0\r\nTrailer: x\r\n\r\n", b"0\r\n", b""))
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    return b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""]) + chunk + end
