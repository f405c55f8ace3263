"""The byte path in: a request's body to an upload session, hashed while it is written.

Pieces are gathered to batches; a worker thread hashes and writes one batch while the event loop
receives the next. So a connection holds two batches at most, and a batch is smaller the more
uploads run: memory is bounded whatever the number of clients.
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.client_exceptions import ClientError

from registry.context import in_thread
from registry.errors import BodyIncomplete
from registry.lifetime.activity import Activity
from storage.interface import Upload

_LARGEST_BATCH = 1024 * 1024
_SMALLEST_BATCH = 64 * 1024
_MEMORY = 16 * 1024 * 1024
"""Bytes that all batches together may hold before they shrink."""

_CUT = (web.RequestPayloadError, ClientError, ConnectionError, asyncio.IncompleteReadError)
"""How aiohttp says that a body will not come to its end."""

_active = 0


async def receive(activity: Activity, http: web.BaseRequest, upload: Upload, at: int) -> int:
    """Append the whole body to an upload that stands at byte ``at``; where it stands then.

    What arrived before a failure stays in the session: the client can go on from there.

    Raises:
        BodyIncomplete: the body ended before its announced end.
        UploadOffset, UploadUnknown, StorageFull: see `storage.interface.Upload.write`.
    """
    global _active
    await _continue(http)
    _active += 1
    try:
        return await _pump(activity, http, upload, at)
    finally:
        _active -= 1


async def _pump(activity: Activity, http: web.BaseRequest, upload: Upload, at: int) -> int:
    writing: asyncio.Future[None] | None = None
    pieces: list[bytes] = []
    held = 0
    try:
        while True:
            piece = await _next(http)
            if piece:
                pieces.append(piece)
                held += len(piece)
                activity.bytes_in += len(piece)
                if held < _batch_size():
                    continue
            if writing is not None:
                await writing
                writing = None
            if pieces:
                writing = in_thread(upload.write, pieces, at)
                at += held
                pieces, held = [], 0
            if not piece:
                break
        if writing is not None:
            await writing
            writing = None
        return at
    except _CUT:
        if writing is not None:
            await writing
        if pieces:
            await in_thread(upload.write, pieces, at)
        raise BodyIncomplete("the request's body ended early") from None
    finally:
        if writing is not None and not writing.done():
            # Never leave a write behind that could land after whatever comes next.
            await asyncio.wait([writing])


def _batch_size() -> int:
    return max(_SMALLEST_BATCH, min(_LARGEST_BATCH, _MEMORY // max(_active, 1)))


async def read_body(http: web.BaseRequest, limit: int) -> bytes:
    """A whole small body; of one over ``limit`` bytes only so much that it shows.

    Raises:
        BodyIncomplete: the body ended before its announced end.
    """
    await _continue(http)
    body = bytearray()
    try:
        while len(body) <= limit and (piece := await _next(http)):
            body += piece
    except _CUT:
        raise BodyIncomplete("the request's body ended early") from None
    return bytes(body)


async def _next(http: web.BaseRequest) -> bytes:
    """The next bytes of a body; none at its end. Raises one of `_CUT`."""
    try:
        return await http.content.readany()
    except RuntimeError as error:
        # aiohttp's word for a connection that was lost before the read began.
        if http.transport is None:
            raise ConnectionResetError("client is gone") from error
        raise


async def _continue(http: web.BaseRequest) -> None:
    """Ask for the body of a client that waits to be asked (RFC 9110 section 10.1.1)."""
    if http.headers.get("Expect", "").lower() == "100-continue" and http.transport is not None:
        http.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
