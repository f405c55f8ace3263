"""Heads against a second reader of RFC 9112, strict to the letter: no head is read in two ways."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from aiohttp import http_parser
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.registry.http import aiohttp_internals
from mayfly.registry.http.framing import HEAD_END, FramingInvalid, body_length, read_head
from tests.fuzz.budget import EXAMPLES

PARSERS = {"C": http_parser.HttpRequestParserC, "Python": http_parser.HttpRequestParserPy}

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])")
_VISIBLE = rb"[\x21-\x7e\x80-\xff]"
_VALUE = rb"|" + _VISIBLE + rb"(?:[\t\x20-\x7e\x80-\xff]*" + _VISIBLE + rb")?"
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*(" + _VALUE + rb")[ \t]*")


class Read(NamedTuple):
    """A head, as far as two readers could disagree on it; the length None is that of chunks."""

    method: bytes
    target: bytes
    minor: int
    fields: tuple[tuple[bytes, bytes], ...]
    length: int | None


@pytest.fixture(params=PARSERS, autouse=True, scope="module")
def parser(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both of aiohttp's parsers: machines without a compiled one use the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aiohttp_internals, "HttpRequestParser", PARSERS[request.param])
        yield


def strictly(head: bytes) -> Read | None:
    """Read a head by the grammar of RFC 9112 alone; None if it does not fit."""
    lines = head.removesuffix(HEAD_END).split(b"\r\n")
    line = _LINE.fullmatch(lines[0])
    found = [_FIELD.fullmatch(one) for one in lines[1:]]
    fields = tuple((one[1].lower(), one[2]) for one in found if one is not None)
    if line is None or len(fields) < len(found):
        return None
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
    length: int | None
    match lengths, codings:
        case [], []:
            length = 0
        case [text], [] if text.isdigit():
            length = int(text)
        case [], [b"chunked"] if line[3] == b"1":
            length = None
        case _:
            return None
    return Read(line[1], line[2], int(line[3]), fields, length)


def by_parser(head: bytes) -> Read | None:
    """Read a head as the server does; None if it is refused."""
    try:
        read = read_head(head)
        length = body_length(read)
    except FramingInvalid:
        return None
    fields = ((name.lower(), value.strip(b" \t")) for name, value in read.raw_headers)
    method, target = (text.encode("utf-8", "surrogateescape") for text in (read.method, read.path))
    return Read(method, target, read.version[1], tuple(fields), length)


SEEDS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PUT /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
        b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
        b"PATCH http://h/x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\nX: \r\n\r\n",
    ]
)
PIECES = st.binary(min_size=1, max_size=2) | st.sampled_from(
    [
        b"\0", b"\t", b"\n", b"\r", b"\x0b", b"\x0c", b" ", b"\x7f", b"\x85", b"\xa0", b":", b",",
        b"\r\n", b"\r\n ", b"\r\n\t", b"\r\nContent-Length: 7", b"\r\nTransfer-Encoding: chunked",
        b"\r\nTransfer-Encoding: identity", b"\r\ncontent-length:", b"\r\nHost: y", b"chunked",
        b"\xe2\x84\xaa", b"0", b"-", b"+", b"_", b"HTTP/1.1", b" HTTP/1.1", b"\r\n:", b"CONNECT",
        b"PRI * HTTP/2.0", b"\r\nSec-WebSocket-Key1: x",
    ]
)  # fmt: skip
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 3), st.just(b"") | PIECES), min_size=1, max_size=3
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=SEEDS, edits=EDITS)
def test_no_head_is_read_in_two_ways(seed: bytes, edits: list[tuple[float, int, bytes]]) -> None:
    """What the server takes fits the grammar, and means the same by it."""
    head = seed
    for place, removed, piece in edits:
        at = round(place * len(head))
        head = head[:at] + piece + head[at + removed :]
    # As the connection cuts it out of what it receives.
    text, end, _ = head.lstrip(b"\r\n").partition(HEAD_END)
    if end and (read := by_parser(text + end)) is not None:
        assert read == strictly(text + end)


@given(seed=SEEDS)
def test_plain_heads_are_taken(seed: bytes) -> None:
    """The second reader is no stranger to what the server takes."""
    read = by_parser(seed)
    assert read is not None
    assert read == strictly(seed)
