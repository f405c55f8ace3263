"""Where bodies end: by their announcement, and by their chunks, in whatever pieces they come."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aiohttp import http_parser
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.registry.http import aiohttp_internals
from mayfly.registry.http.framing import (
    MAX_HEAD,
    MAX_LINE,
    ChunkedReader,
    ContentLengthReader,
    FramingInvalid,
    body_length,
    expects_continue,
    may_be_head,
    read_head,
)
from tests.fuzz.budget import EXAMPLES
from tests.support.wire import chunked

PARSERS = {"C": http_parser.HttpRequestParserC, "Python": http_parser.HttpRequestParserPy}


@pytest.fixture(params=PARSERS, autouse=True, scope="module")
def parser(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both of aiohttp's parsers: machines without a compiled one use the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aiohttp_internals, "HttpRequestParser", PARSERS[request.param])
        yield


def _head(*fields: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"PUT /x HTTP/" + version, b"Host: x", *fields]
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n"


@pytest.mark.parametrize(
    ("field", "length"),
    [
        (b"Accept: */*", 0),
        (b"Content-Length: 0", 0),
        (b"Content-Length:5", 5),
        (b"content-LENGTH:  5 ", 5),
        (b"Content-Length: 0005", 5),
        (b"Content-Length: 9999999999999999999", 10**19 - 1),
        (b"TRANSFER-encoding:\tChunked ", None),
        (b"X-Content-Length: 5", 0),
        (b"Content-Length-X: 5", 0),
        (b"X: Content-Length: 5", 0),
        (b"X: transfer-encoding: chunked", 0),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5", 5),
        (b"Content-Encoding: gzip\r\nContent-Length: 5", 5),
    ],
)
def test_announcements(field: bytes, length: int | None) -> None:
    """One plain field says how long a body is; one that only looks like it says nothing."""
    for fields in ([field], [field, b"Z: 1"], [b"A: 1", field]):
        assert body_length(read_head(_head(*fields))) == length


@pytest.mark.parametrize("field", [
    b"Content-Length:", b"Content-Length: ", b"Content-Length: +5", b"Content-Length: -5",
    b"Content-Length: 0x5", b"Content-Length: 1_0", b"Content-Length: 5, 5",
    b"Content-Length: 5 5", b"Content-Length: 5;", b"Content-Length: \xb2",
    b"Content-Length: \xd9\xa5", b"Content-Length: 18446744073709551616",
    b"Content-Length: 5\0", b"Content-Length: \x0b5", b"Content-Length: 10000000000000000000",
    b"Content-Length: 5\r\nContent-Length: 5", b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 0\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"Content-Length : 5",
    b"Transfer-Encoding\t: chunked", b" Content-Length: 5", b"X: y\rContent-Length: 5",
    b"X: y\nContent-Length: 5", b"X: y\n\tTransfer-Encoding : chunked",
    b"Content-Length: 5\nX: y", b"Content-Length: 5\rX: y", b"Content-Length:\r\n 5",
    b"Transfer-Encoding: chunked\r\nX: y\rTransfer-Encoding: identity",
    b"Transfer-Encoding:", b"Transfer-Encoding: gzip", b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: chunked,",
    b"Transfer-Encoding: ,chunked", b"Transfer-Encoding: chunked;a=b",
    b'Transfer-Encoding: "chunked"', b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chun\xe2\x84\xaaed", b"Transfer-Encoding: chunked\x0b",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip",
    b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", b"X: y\n", b"X: y\r", b"X", b": y",
    b"X: y\r\n z", b"X\xff: y", b"X: \0",
])  # fmt: skip
def test_unclear_announcements(field: bytes) -> None:
    """All else that names a length or a coding is refused, and what is no field at all."""
    for fields in ([field], [field, b"Z: 1"]):
        with pytest.raises(FramingInvalid):
            body_length(read_head(_head(*fields)))


def test_chunks_belong_to_http_1_1() -> None:
    """Chunks and 100 Continue are of HTTP/1.1; a length is of HTTP/1.0, too."""
    with pytest.raises(FramingInvalid):
        body_length(read_head(_head(b"Transfer-Encoding: chunked", version=b"1.0")))
    assert body_length(read_head(_head(b"Content-Length: 5", version=b"1.0"))) == 5
    assert not expects_continue(read_head(_head(b"Expect: 100-continue", version=b"1.0")))


def test_expectation() -> None:
    """Only the field Expect, in any case, makes a client one that waits."""
    for field in (b"Expect: 100-continue", b"EXPECT:100-Continue \t"):
        assert expects_continue(read_head(_head(field)))
    for field in (b"X: Expect: 100-continue", b"X-Expect: 100-continue", b"Expect: 100-continue2"):
        assert not expects_continue(read_head(_head(field)))


@pytest.mark.parametrize("inner", [
    b"GET /a HTTP/1.1\r\nHost: x\n\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a HTTP/1.1\nHost: x\n\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /a HTTP/1.1\r\nHost: x\r\n", b"GET /a HTTP/1.1\r\nHost: x", b"\r\n\r\n", b"",
    b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\nabc",
    b"\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n",
])  # fmt: skip
def test_one_head_and_all_of_it(inner: bytes) -> None:
    """What the parser does not take for exactly one head is refused, whatever else it makes of it.

    The first of a head's ends is the one that both see.
    """
    with pytest.raises(FramingInvalid):
        read_head(inner)


def test_the_target_as_sent() -> None:
    """Neither the path nor the query is decoded or normalized."""
    for target in (b"/a/../%2e%2E//b?c=%20&d", b"http://h:1/a?b", b"/a#b?c", b"//a//?"):
        head = read_head(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head.path.encode("utf-8", "surrogateescape") == target


def test_may_be_head() -> None:
    """What begins with no method will be no head."""
    for data in (b"G", b"GET", b"GET ", b"GET \xff", b"M-SEARCH * "):
        assert may_be_head(data)
    for data in (b" GET", b"\x16\x03", b"a" * 33, b"GET\t/", b"\xc3\xa9 /"):
        assert not may_be_head(data)


def _head_of(size: int, line: int) -> bytes:
    """A head of a size, with a longest line of a size."""
    head = b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * (line - 3) + b"\r\nB: "
    return head + b"b" * (size - len(head) - 4) + b"\r\n\r\n"


def _of_version(version: bytes) -> bytes:
    return b"GET / " + version + b"\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (_head_of(MAX_HEAD, MAX_LINE), None),
        (_head_of(MAX_HEAD + 1, MAX_LINE), 431),
        (_head_of(MAX_HEAD, MAX_LINE + 1), 431),
        (_of_version(b"HTTP/1.1"), None),
        (_of_version(b"HTTP/1.0"), None),
        (b"GET / HTTP/1.0\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (_of_version(b"HTTP/2.0"), 505),
        (_of_version(b"HTTP/0.9"), 505),
        (_of_version(b"HTTP/1.1 "), 400),
        (_of_version(b"http/1.1"), 400),
        (_of_version(b"ICY/1.1"), 400),
        (_of_version(b"RTSP/1.0"), 400),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    ],
)
def test_read_head(head: bytes, status: int | None) -> None:
    """A head has 80 KiB, a line of it 64 KiB, and the version 1.0 or 1.1."""
    if status is None:
        read_head(head)
        return
    with pytest.raises(FramingInvalid) as refused:
        read_head(head)
    assert refused.value.status == status


@pytest.mark.parametrize(
    "version", [b"HTTP/1.2", b"HTTP/1.11", b"HTTP/3.0", b"HTTP/11", b"HTTP/1", b""]
)
def test_other_versions(version: bytes) -> None:
    """A version that is not 1.0 or 1.1 is refused; the parsers differ in which they can read."""
    with pytest.raises(FramingInvalid) as refused:
        read_head(_of_version(version))
    assert refused.value.status in (400, 505)


def test_crumbs_are_decoded_in_turns() -> None:
    """A body of tiny chunks is decoded a bounded number of them at once, and all of it at last."""
    raw, content, turns, at = chunked(*[b"x"] * 20_000), 0, 0, 0
    framing = ChunkedReader()
    while not framing.complete:
        piece = bytearray(raw[at:])
        count, used = framing.decode(memoryview(piece), memoryview(piece))
        assert 0 < used <= 8 * 1024
        content, at, turns = content + count, at + used, turns + 1
    assert (content, at) == (20_000, len(raw))
    assert turns >= 10


def _decode(
    framing: ChunkedReader | ContentLengthReader, raw: bytes, cuts: list[int], size: int
) -> tuple[bytes, bytes]:
    """The content, and what is left, when raw bytes come in some pieces into a small buffer."""
    content = b""
    at = turn = 0
    while at < len(raw) and not framing.complete:
        room = framing.limit(size)
        assert 0 < room <= size
        piece = bytearray(raw[at : at + min(room, cuts[turn % len(cuts)])])
        filled, used = framing.decode(memoryview(piece), memoryview(piece))
        assert used == len(piece) or framing.complete
        content += piece[:filled]
        at += used
        turn += 1
    return content, raw[at:]


CUTS = st.lists(st.integers(1, 5000), min_size=1, max_size=10)
EXTENSION = st.sampled_from([b"", b";", b";a", b" ; a=b", b";" + b"x" * 4000, b';a="\xff"'])
TRAILER = st.sampled_from([b"", b"A: b\r\n", b"A: b\r\n" * 500, b"\0\r\n"])


@settings(max_examples=EXAMPLES * 3, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.binary(min_size=1, max_size=200), EXTENSION), max_size=30),
    last=EXTENSION,
    trailer=TRAILER,
    zeros=st.integers(0, 12),
    rest=st.sampled_from([b"", b"\r\n", b"GET / HTTP/1.1\r\n\r\n"]),
    cuts=CUTS,
    size=st.integers(1, 20_000),
)
def test_chunked(
    chunks: list[tuple[bytes, bytes]],
    last: bytes,
    trailer: bytes,
    zeros: int,
    rest: bytes,
    cuts: list[int],
    size: int,
) -> None:
    """Any pieces, any buffer: the same content, and what follows the body is left alone."""
    raw = b"".join(
        b"0" * zeros + b"%X%s\r\n%s\r\n" % (len(data), extension, data)
        for data, extension in chunks
    )
    raw += b"0" + last + b"\r\n" + trailer + b"\r\n" + rest
    framing = ChunkedReader()
    assert _decode(framing, raw, cuts, size) == (b"".join(data for data, _ in chunks), rest)
    assert framing.complete


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.binary(min_size=1, max_size=3000), rest=st.binary(max_size=9), cuts=CUTS)
def test_sized(data: bytes, rest: bytes, cuts: list[int]) -> None:
    """A body of a length has that many bytes; not one more is received into its reader's buffer."""
    framing = ContentLengthReader(len(data))
    assert _decode(framing, data + rest, cuts, 1000) == (data, rest)
    assert framing.complete


@pytest.mark.parametrize("raw", [
    b"\r\n", b"\n", b"-1\r\n", b"+1\r\na\r\n", b"0x1\r\na\r\n", b"1_0\r\n", b" 1\r\na\r\n",
    b"1 \r\na\r\n", b"1\t\r\na\r\n", b"g\r\n", b"1\na\r\n", b"1\ra\r\n", b"1\r\r\na\r\n",
    b"\xb2\r\n", b";a\r\n", b"1;a\rb\r\na\r\n", b"1;a\nb\r\na\r\n", b"1000000000000000\r\n",
    b"f" * 16 + b"\r\n", b"0" * 16 + b"\r\n", b"1;" + b"a" * 4096, b"1" * 5000,
    b"1\r\na0\r\n\r\n", b"1\r\nab\r\n", b"1\r\na\n0\r\n\r\n", b"1\r\na\r0\r\n\r\n",
    b"1\r\na\r\r\n0\r\n\r\n", b"1\r\na\r\n\r\n0\r\n\r\n", b"1\r\na\r\n\n0\r\n\r\n",
    b"0\n\r\n", b"0\r\n\n", b"0\r\nA: b\n\r\n", b"0\r\nA: b\rC: d\r\n\r\n", b"0\r\n\r\r\n",
    b"0\r\nA: " + b"b" * 4096 + b"\r\n\r\n", b"0\r\n" + (b"A: " + b"b" * 1000 + b"\r\n") * 9,
])  # fmt: skip
def test_broken_chunks(raw: bytes) -> None:
    """Sizes, line ends and trailers that two readers could see in two ways, or without an end."""
    for cut in (1, 2, 3, 64, 100_000):
        with pytest.raises(FramingInvalid):
            _decode(ChunkedReader(), raw, [cut], 100_000)
        with pytest.raises(FramingInvalid):
            _decode(ChunkedReader(), b"5\r\nfirst\r\n" + raw, [cut], 100_000)


@settings(max_examples=EXAMPLES * 3, deadline=None)
@given(
    raw=st.lists(st.sampled_from([b"\r", b"\n", b"0", b"1", b"a", b";", b" ", b"\r\n"])), cut=CUTS
)
def test_pieces_change_nothing(raw: list[bytes], cut: list[int]) -> None:
    """Good or bad, a body means the same in one piece and in many."""
    outcomes = []
    for cuts in ([100_000], [1], cut):
        try:
            outcomes.append(_decode(ChunkedReader(), b"".join(raw), cuts, 100_000))
        except FramingInvalid as error:
            outcomes.append((str(error).encode(), b""))
    assert outcomes[0] == outcomes[1] == outcomes[2]
