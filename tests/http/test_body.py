"""A body between a connection that hands over all it may and a reader that asks now and then."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.registry.http.body import Body, allocate
from mayfly.registry.http.errors import BodyIncomplete
from tests.fuzz.budget import EXAMPLES
from tests.support.beside import run_what_is_ready
from tests.support.wire import TIMEOUT, chunked


class Greedy(asyncio.Transport):
    """Hands over what has come in pieces, as long as it is not paused, without a break."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__()
        self.pieces = pieces
        self.body: Body
        self.is_paused = True
        self.written = b""
        self.resumed = 0

    def resume_reading(self) -> None:
        self.is_paused = False
        self.resumed += 1
        asyncio.get_running_loop().call_soon(self.hand_over)

    def pause_reading(self) -> None:
        self.is_paused = True

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def hand_over(self) -> None:
        """Receive as a connection does: into the room there is, which must be some."""
        while self.pieces and not self.is_paused and not self.body.complete:
            room = self.body.receive_buffer()
            assert room, "asked for, and no room"
            piece = self.pieces.pop(0)
            if len(piece) > len(room):
                self.pieces.insert(0, piece[len(room) :])
            count = min(len(piece), len(room))
            room[:count] = piece[:count]
            self.body.received(count)


def body_of(
    transport: Greedy, length: int | None, expects: bool = False
) -> tuple[Body, list[bytes]]:
    """A body that comes by this connection, and what came after it."""
    ended: list[bytes] = []
    transport.body = Body(transport, length, expects, ended.append)
    return transport.body, ended


async def _read(body: Body, size: int) -> bytes:
    found = b""
    buffer = allocate(size)
    async with asyncio.timeout(TIMEOUT):
        while count := await body.read_into(buffer):
            found += buffer[:count]
    return found


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    points = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(points)]


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097])
async def test_more_than_the_buffer(length: int) -> None:
    """A connection with more at hand than there is room for is stopped when the room is used."""
    data = bytes(range(256)) * 256 + b"x" * length
    for body_length, raw in ((len(data), data), (None, chunked(data))):
        transport = Greedy([raw + b"NEXT"])
        body, ended = body_of(transport, body_length)
        assert await _read(body, 65536) == data
        assert ended == ([b"NEXT"] if body_length is None else [b""])


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    data=st.binary(max_size=30_000),
    sizes=st.lists(st.integers(1, 9000), max_size=8),
    cuts=st.lists(st.integers(0, 60_000), max_size=20),
    held=st.integers(0, 40_000),
    buffer=st.sampled_from([1, 100, 4095, 4096, 4097, 10_000]),
    is_chunked=st.booleans(),
)
def test_any_pieces(
    data: bytes, sizes: list[int], cuts: list[int], held: int, buffer: int, is_chunked: bool
) -> None:
    """However a body comes, and into whatever buffer, its content and what follows are the same."""
    raw, length = data, len(data)
    if is_chunked:
        pieces, at = [], 0
        for size in [*sizes, len(data)]:
            pieces.append(data[at : at + size])
            at += size
        raw = chunked(*pieces)
    elif not data:
        return
    raw += b"GET / HTTP/1.1\r\n\r\n"
    held = min(held, len(raw))

    async def run() -> None:
        transport = Greedy(_cut(raw[held:], cuts))
        body, ended = body_of(transport, None if is_chunked else length)
        body.buffer(raw[:held])
        assert await _read(body, buffer) == data
        assert b"".join([*ended, *transport.pieces]) == b"GET / HTTP/1.1\r\n\r\n"

    asyncio.run(run())


async def test_nothing_is_asked_for_before_it_is_wanted() -> None:
    """A held body is used first; the sender is read only while somebody waits."""
    transport = Greedy([b"second"])
    body, _ = body_of(transport, 11)
    body.buffer(b"first")
    buffer = allocate(4096)
    assert body.receive_buffer() is None
    assert transport.resumed == 0
    assert await body.read_into(buffer[:5]) == 5
    assert transport.resumed == 0
    assert await body.read_into(buffer) == 6
    assert transport.resumed == 1
    assert bytes(buffer[:6]) == b"second"
    assert await body.read_into(buffer) == 0


async def test_held_bytes_stop_the_sender() -> None:
    """Letting a connection continue before its body is read is overruled by the next bytes."""
    transport = Greedy([])
    body, _ = body_of(transport, 1000)
    transport.resume_reading()
    body.buffer(b"x" * 10)
    assert transport.is_paused


async def test_the_sender_is_asked_once_if_it_waits() -> None:
    """100 Continue goes out when the body is wanted, once, and not if the client sent already."""
    transport = Greedy([b"a", b"b"])
    body, _ = body_of(transport, 2, expects=True)
    assert transport.written == b""
    assert await _read(body, 1) == b"ab"
    assert transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    eager = Greedy([b"b"])
    body, _ = body_of(eager, 2, expects=True)
    body.buffer(b"a")
    assert await _read(body, 1) == b"ab"
    assert eager.written == b""


@pytest.mark.parametrize("length", [100, None])
async def test_cut_body(length: int | None) -> None:
    """What came before the end is handed over, then the end is told, again and again."""
    transport = Greedy([b"64\r\nabc" if length is None else b"abc"])
    body, _ = body_of(transport, length)
    buffer = allocate(4096)
    filling = asyncio.ensure_future(body.read_into(buffer))
    await run_what_is_ready(2)  # the reader begins, the connection hands over
    assert not transport.pieces
    body.fail()
    assert await filling == 3
    for _ in range(2):
        with pytest.raises(BodyIncomplete, match="ended early"):
            await body.read_into(buffer)


async def test_broken_chunks_are_told() -> None:
    """What is no HTTP ends the body, and lets no more come."""
    transport = Greedy([b"5\r\nhello\r\nnonsense\r\n", b"never"])
    body, ended = body_of(transport, None)
    with pytest.raises(BodyIncomplete, match="size of a chunk"):
        await _read(body, 4096)
    assert transport.is_paused
    assert transport.pieces == [b"never"]
    assert ended == []


async def test_a_reader_that_gives_up() -> None:
    """A cancelled reader leaves its buffer alone and the sender paused; the next continues."""
    transport = Greedy([])
    body, _ = body_of(transport, 6)
    first = allocate(4096)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await body.read_into(first)
    assert transport.is_paused
    assert body.receive_buffer() is None
    transport.pieces.append(b"abcdef")
    assert await _read(body, 4096) == b"abcdef"
    assert bytes(first[:6]) == bytes(6)


async def test_dropping() -> None:
    """What has arrived can be dropped without waiting; else it is waited for, for a while."""
    body, ended = body_of(Greedy([]), None)
    body.buffer(chunked(b"x" * 200_000) + b"NEXT")
    assert body.discard_pending()
    assert ended == [b"NEXT"]
    transport = Greedy([b"cd"])
    body, _ = body_of(transport, 4)
    body.buffer(b"ab")
    assert not body.discard_pending()
    await body.discard(TIMEOUT)
    assert body.complete
    waiting = Greedy([b"sent"])  # without having been asked
    body, _ = body_of(waiting, 4, expects=True)
    await body.discard(TIMEOUT)
    assert (body.complete, waiting.written) == (True, b"")
    body, _ = body_of(Greedy([b"x"]), 4)
    await body.discard(0)
    assert not body.complete


async def test_read_stops_beyond_the_limit() -> None:
    """A body over the limit is read only so far that it shows."""
    for length in (1_000_000, None):
        raw = b"x" * 1_000_000 if length else chunked(*[b"x" * 1000] * 1000)
        transport = Greedy([raw])
        body, _ = body_of(transport, length)
        assert len(await body.read(70_000)) > 70_000
        assert len(transport.pieces[0]) > 800_000
