"""The byte path out: content, or a range of it, to a client. `file_sender` sends a file.

A blob is never content-encoded: clients check its digest and resume by byte range. Ranges follow
RFC 9110, section 14. A request for several ranges is answered with the whole content, which that
section allows.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import BinaryIO, Protocol

from mayfly.registry.http.errors import RangeInvalid
from mayfly.registry.http.file_sender import FileSender
from mayfly.registry.http.proving import Prover, wait_for_proof
from mayfly.registry.http.receipts import Receipts
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.storage.errors import BlobUnknown, ContentCorrupt, Interrupted, ManifestUnknown
from mayfly.storage.interface import Content, OpenContent
from mayfly.storage.text import counted

logger = logging.getLogger("mayfly")

_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")

_PROOF_ATTEMPTS = 3
"""Proofs taken at the end of one transfer while the file's change time keeps moving."""


class SendingObserver(Protocol):
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

    def ahead(self, end: int) -> None:
        """Note that up to ``end`` bytes of the part may soon have been sent; for any thread."""

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


class ContentSender:
    """Answers requests with content; one for a server.

    Attributes:
        files: the threads that send.
    """

    def __init__(self, files: FileSender | None = None) -> None:
        self.files = files or FileSender()
        self._prover = Prover()

    async def send_head(
        self, http: HTTPRequest, content: Content, headers: dict[str, str]
    ) -> Response:
        """Answer HEAD for content."""
        response, _, _ = _part(http, content, headers)
        http.begin(response)
        return response

    async def send_whole(
        self, http: HTTPRequest, content: Content, headers: dict[str, str]
    ) -> Response:
        """Answer GET or HEAD with a whole file whose bytes were verified a moment ago.

        Raises:
            ManifestUnknown: it was deleted meanwhile.
            ConnectionError: the client is gone, or the file ended early and the connection was cut.
        """
        response = Response(headers=headers, length=content.size)
        try:
            opened = content.open()
        except FileNotFoundError:
            raise ManifestUnknown("manifest unknown") from None
        with opened, closing(Receipts(http.transport)) as receipts:
            http.begin(response)
            if http.method != "HEAD":
                await opened.send(_ContentSink(self.files, http, receipts.begin()), 0, content.size)
        return response

    async def send(
        self, http: HTTPRequest, content: Content, headers: dict[str, str], sending: SendingObserver
    ) -> Response:
        """Answer GET with content, or the part of it that ``Range`` asks for.

        Raises:
            RangeInvalid: see `parse_range`.
            BlobUnknown: the content was deleted before its first byte was sent.
            ContentCorrupt: a bundle's content does not have its digest.
            ConnectionError: the client is gone, or the content ended early or is corrupt and the
                connection was cut.
        """
        response, offset, count = _part(http, content, headers)
        if count == 0:
            http.begin(response)
            return response
        try:
            opened = content.open()
        except FileNotFoundError:
            raise BlobUnknown("blob unknown to repository") from None
        receipts = http.connection.receipts = Receipts(http.transport)
        with (
            opened,
            sending.part(offset, count, content.size, receipts),
            self._proving(content, opened) as done,
        ):
            http.begin(response)
            # The last byte of a bundle's content waits for the proof, so that no client has corrupt
            # content whole.
            held_back = int(done is not None)
            sink = _ContentSink(self.files, http, receipts.begin(), sending)
            await opened.send(sink, offset, count - held_back)
            if done is not None:
                await self._await_proof(http, content, opened, done, sending)
                await opened.send(sink, offset + count - 1, 1)
        return response

    @contextmanager
    def _proving(
        self, content: Content, opened: OpenContent
    ) -> Iterator[asyncio.Future[None] | None]:
        """Prove a bundle's content while it is sent; None for other content."""
        proof = opened.proof()
        if proof is None:
            yield None
            return
        with self._prover.proving(proof, content.size) as done:
            yield done

    async def _await_proof(
        self,
        http: HTTPRequest,
        content: Content,
        opened: OpenContent,
        done: asyncio.Future[None],
        sending: SendingObserver,
    ) -> None:
        try:
            await wait_for_proof(http, done)
            await self._prove_unchanged(http, content, opened)
        except (ContentCorrupt, Interrupted) as error:
            if isinstance(error, ContentCorrupt):
                sending.corrupt()
            # Corrupt content is reported as a fault of its own, and a stop that is asked for may
            # cut.
            expected = error.reported or isinstance(error, Interrupted)
            level = logging.DEBUG if expected else logging.ERROR
            logger.log(level, "a transfer was cut: %s (%s)", error, content.proof)
            http.drop()
            raise ConnectionResetError("content is corrupt") from error

    async def _prove_unchanged(
        self, http: HTTPRequest, content: Content, opened: OpenContent
    ) -> None:
        """Check that content was not written to while it was sent, also if it was proven long ago.

        If only its change time moved it is hashed again, a bounded number of times.
        """
        for _ in range(_PROOF_ATTEMPTS):
            now = opened.proof()
            if now is None or now.holds:
                return
            with self._prover.proving(now, content.size) as again:
                await wait_for_proof(http, again)
        raise ContentCorrupt("the bundle's file keeps changing while it is served")


def _part(
    http: HTTPRequest, content: Content, headers: dict[str, str]
) -> tuple[Response, int, int]:
    """Return the response, and the offset and number of bytes of its body."""
    part = parse_range(http.headers.get("Range"), content.size)
    offset, count = part or (0, content.size)
    response = Response(206 if part else 200, headers=headers, length=count)
    response.headers["Accept-Ranges"] = "bytes"
    if part:
        response.headers["Content-Range"] = f"bytes {offset}-{offset + count - 1}/{content.size}"
    return response, offset, count


class _ContentSink:
    """The body of a response; see `storage.interface.Sink` and `file_sender.Watcher`.

    Args:
        files: that send it.
        http: the request.
        descriptor: a duplicate of the connection's.
        sending: observes it.
    """

    def __init__(
        self,
        files: FileSender,
        http: HTTPRequest,
        descriptor: int,
        sending: SendingObserver | None = None,
    ) -> None:
        self._files = files
        self._http = http
        self._transport = http.transport
        self._descriptor = descriptor
        self._sending = sending
        self._before = 0
        """Bytes sent before the file that is being sent now."""

    async def send_file(self, file: BinaryIO, offset: int, count: int) -> None:
        if self._transport is None or (not count and self._http.is_gone()):
            raise ConnectionResetError("client is gone")
        part = file, offset, count, self
        await self._files.send(self._transport, self._descriptor, *part)
        self._before += count

    def count(self, sent: int) -> None:
        self._http.sent += sent
        if self._sending is not None:
            self._sending.count(sent)

    def ahead(self, end: int) -> None:
        if self._sending is not None:
            self._sending.ahead(self._before + end)
