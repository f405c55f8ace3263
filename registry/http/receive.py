"""The byte path in: a request's body to an upload session, hashed while it is written.

A batch is received straight into one of two buffers; a worker thread hashes and writes it while
the event loop receives the next into the other. A batch is smaller the more uploads run: memory is
bounded whatever the number of clients.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from mayfly.registry.activity import Activity
from mayfly.registry.http.body import Body, HTTPRequest, allocate
from mayfly.registry.threads import in_thread
from mayfly.storage.interface import Upload

_LARGEST_BATCH = 1024 * 1024
_SMALLEST_BATCH = 64 * 1024
_MEMORY = 32 * 1024 * 1024
"""Bytes that all buffers together may hold before they shrink."""

_active = 0


class Counter(Protocol):
    """Counts received bytes, of all requests."""

    bytes_in: int


async def receive(counter: Counter, http: HTTPRequest, upload: Upload, at: int) -> int:
    """Append the whole body to an upload, and return the upload's new offset.

    What arrived before a failure stays in the session: the client can resume from there.

    Args:
        counter: its ``bytes_in`` grows as content arrives.
        at: the upload's offset, in bytes.

    Raises:
        BodyIncomplete: the body ended before its announced end.
        UploadOffset, UploadUnknown, StorageFull: see `storage.interface.Upload.write`.
    """
    global _active
    if http.body is None:
        return at
    _active += 1
    try:
        return await _receive(counter, http.body, upload, at)
    finally:
        _active -= 1


async def _receive(counter: Counter, body: Body, upload: Upload, at: int) -> int:
    writing: asyncio.Future[None] | None = None
    try:
        size = min(_batch_size(), body.length or _LARGEST_BATCH)
        filling, written = allocate(size), allocate(size)
        while count := await body.fill(filling):
            counter.bytes_in += count
            if writing is not None:
                await asyncio.shield(writing)  # where the reader is cancelled it goes on
            writing = in_thread(upload.write, [filling[:count]], at)
            at += count
            filling, written = written, filling
            if len(filling) > _batch_size():
                filling = allocate(_batch_size())  # more uploads run than when this one began
        if writing is not None:
            await asyncio.shield(writing)
        return at
    finally:
        if writing is not None:
            # Also where the body was cut: what arrived counts, and no write may land later.
            await asyncio.wait([writing])
            writing.exception()  # marks it as retrieved, where another error is raised
            # Its exception has this frame in the traceback: a cycle with both buffers otherwise.
            writing = None


def _batch_size() -> int:
    return max(_SMALLEST_BATCH, min(_LARGEST_BATCH, _MEMORY // 2 // max(_active, 1)))
