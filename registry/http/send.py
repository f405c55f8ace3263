"""The byte path out: part of a file to a socket, by sendfile, without passing through Python.

A blob is never content-encoded: clients check its digest and resume by byte range. Ranges follow
RFC 9110, section 14. A request for several ranges is answered with the whole content, which that
section allows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, Protocol

from aiohttp.web_response import StreamResponse

from mayfly.registry.http.body import HTTPRequest
from mayfly.registry.http.errors import RangeInvalid
from mayfly.registry.http.proving import proving, wait_for_proof
from mayfly.registry.http.receipts import Receipts
from mayfly.registry.http.sendfile import sendfile
from mayfly.storage.errors import BlobUnknown, ContentCorrupt, Interrupted, ManifestUnknown
from mayfly.storage.interface import Content, OpenContent
from mayfly.storage.text import counted, counted_of

logger = logging.getLogger("mayfly")

_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")

_PROOF_ATTEMPTS = 3
"""Proofs taken at the end of one transfer while the file's change time keeps moving."""


class Sending(Protocol):
    """Observes the sending of one blob; `registry.coverage.observer` implements it."""

    def part(
        self, first: int, count: int, size: int, receipts: Receipts
    ) -> AbstractContextManager[None]:
        """Enclose the sending of ``count`` bytes from byte ``first`` on, of a blob of ``size``.

        Args:
            receipts: tells how much of it the client's host has acknowledged.
        """

    def count(self, sent: int) -> None:
        """Count more bytes as given to the kernel."""

    def ahead(self, count: int) -> None:
        """Note how many bytes the next step may send, or 0 if it sent none."""

    def corrupt(self) -> None:
        """Note that the content does not have its digest."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Parse a ``Range`` header for content of ``size`` bytes.

    Returns:
        The offset and number of bytes to send, or None for the whole content.

    Raises:
        RangeInvalid: no byte of the content lies in the range.
    """
    if header is None or "," in header or not header.startswith("bytes="):
        return None
    found = _RANGE.fullmatch(header)
    if found is None or header == "bytes=-":
        raise RangeInvalid(f"range {header[:60]!r} cannot be read", size)
    first, last = found.groups()
    if not first:
        length = min(int(last), size)
        start, end = size - length, size - 1
    else:
        start = int(first)
        end = min(int(last), size - 1) if last else size - 1
    if start > end or start >= size:
        raise RangeInvalid(f"range {header[:60]!r} lies outside {counted(size, 'byte')}", size)
    return start, end - start + 1


async def send_head(http: HTTPRequest, content: Content, headers: dict[str, str]) -> StreamResponse:
    """Answer HEAD for content."""
    response, _, _ = _begin(http, content, headers)
    await response.prepare(http)
    await response.write_eof()
    return response


async def send_whole(
    http: HTTPRequest, content: Content, headers: dict[str, str]
) -> StreamResponse:
    """Answer GET or HEAD with a whole file whose bytes were verified a moment ago.

    Raises:
        ManifestUnknown: it was deleted meanwhile.
        ConnectionError: the client is gone, or the file ended early and the connection was cut.
    """
    response = StreamResponse(headers=headers)
    response.content_length = content.size
    try:
        opened = content.open()
    except FileNotFoundError:
        raise ManifestUnknown("manifest unknown") from None
    with opened:
        await response.prepare(http)
        if http.method != "HEAD":
            await opened.send(_Connection(http), 0, content.size)
    await response.write_eof()
    return response


async def send(
    http: HTTPRequest, content: Content, headers: dict[str, str], sending: Sending
) -> StreamResponse:
    """Answer GET with content, or the part of it that ``Range`` asks for.

    Raises:
        RangeInvalid: see `parse_range`.
        BlobUnknown: the content was deleted before its first byte was sent.
        ContentCorrupt: a bundle's content does not have its digest.
        ConnectionError: the client is gone, or the content ended early or is corrupt and the
            connection was cut.
    """
    response, offset, count = _begin(http, content, headers)
    if count == 0:
        await response.prepare(http)
        await response.write_eof()
        return response
    try:
        opened = content.open()
    except FileNotFoundError:
        raise BlobUnknown("blob unknown to repository") from None
    receipts = Receipts(http.transport)
    with (
        opened,
        sending.part(offset, count, content.size, receipts),
        _proving(content, opened) as done,
    ):
        await response.prepare(http)
        receipts.begin()
        # The last byte of a bundle's content waits for the proof, so that no client has corrupt
        # content whole.
        held_back = int(done is not None)
        connection = _Connection(http, sending.count, receipts.take, sending.ahead)
        await opened.send(connection, offset, count - held_back)
        if done is not None:
            await _await_proof(http, content, opened, done, sending)
            receipts.close()
            await opened.send(connection, offset + count - 1, 1)
    await response.write_eof()
    return response


def _begin(
    http: HTTPRequest, content: Content, headers: dict[str, str]
) -> tuple[StreamResponse, int, int]:
    """Return the response, and the offset and number of bytes of its body."""
    part = parse_range(http.headers.get("Range"), content.size)
    offset, count = part or (0, content.size)
    response = StreamResponse(status=206 if part else 200, headers=headers)
    response.headers["Accept-Ranges"] = "bytes"
    if part:
        response.headers["Content-Range"] = f"bytes {offset}-{offset + count - 1}/{content.size}"
    response.content_length = count
    return response, offset, count


class _Connection:
    """The connection of a request; see `storage.interface.Sink`.

    Args:
        http: the request.
        progress, release, ahead: see `registry.http.sendfile.sendfile`.
    """

    def __init__(
        self,
        http: HTTPRequest,
        progress: Callable[[int], None] = lambda sent: None,
        release: Callable[[int], None] = os.close,
        ahead: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._http = http
        self._callbacks = progress, release, ahead

    async def send_file(self, file: BinaryIO, offset: int, count: int) -> None:
        transport = self._http.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("client is gone")
        if count == 0:
            return
        part = file, offset, count, *self._callbacks
        # The TLS transport encrypts files itself (`registry.http.tls`).
        encrypting = getattr(transport, "sendfile", None)
        if encrypting is not None:
            sent = await encrypting(*part)
        else:
            sent = await sendfile(self._http.protocol, transport, *part)
        if sent != count:
            # The length is promised already; only a cut tells the client that it is not met.
            transport.abort()
            raise ConnectionResetError(f"file ended after {counted_of(sent, count, 'byte')}")


@contextmanager
def _proving(content: Content, opened: OpenContent) -> Iterator[asyncio.Future[None] | None]:
    """Prove a bundle's content while it is sent; None for other content."""
    proof = opened.proof()
    if proof is None:
        yield None
        return
    with proving(proof, content.size) as done:
        yield done


async def _await_proof(
    http: HTTPRequest,
    content: Content,
    opened: OpenContent,
    done: asyncio.Future[None],
    sending: Sending,
) -> None:
    try:
        await wait_for_proof(http, done)
        await _prove_unchanged(http, content, opened)
    except (ContentCorrupt, Interrupted) as error:
        if isinstance(error, ContentCorrupt):
            sending.corrupt()
        # Corrupt content is reported as a fault of its own, and a stop that is asked for may cut.
        expected = error.reported or isinstance(error, Interrupted)
        level = logging.DEBUG if expected else logging.ERROR
        logger.log(level, "a transfer was cut: %s (%s)", error, content.proof)
        if http.transport is not None:
            http.transport.abort()
        raise ConnectionResetError("content is corrupt") from error


async def _prove_unchanged(http: HTTPRequest, content: Content, opened: OpenContent) -> None:
    """Check that content was not written to while it was sent, also if it was proven long ago.

    If only its change time moved it is hashed again, a bounded number of times.
    """
    for _ in range(_PROOF_ATTEMPTS):
        now = opened.proof()
        if now is None or now.holds:
            return
        with proving(now, content.size) as again:
            await wait_for_proof(http, again)
    raise ContentCorrupt("the bundle's file keeps changing while it is served")
