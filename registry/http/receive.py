"""The byte path in: a request's body to an upload session, hashed while it is written.

A batch is received straight into one of two buffers. A worker thread hashes and writes it while the
event loop receives the next batch into the other. Batches shrink with the number of uploads, so
that their memory is bounded whatever the number of clients.
"""

from __future__ import annotations

import asyncio

from mayfly.registry.activity import Activity
from mayfly.registry.http.body import Body, allocate
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.threads import in_thread, uncancelled
from mayfly.storage.interface import Upload

_MAX_BATCH = 1024 * 1024
_MIN_BATCH = 64 * 1024
_TOTAL_MEMORY = 32 * 1024 * 1024
"""Bytes that all buffers together may hold before batches shrink."""


class Receiver:
    """Receives bodies into upload sessions; one for a server.

    Attributes:
        active: uploads that are being received.
    """

    def __init__(self) -> None:
        self.active = 0

    async def receive(self, activity: Activity, http: HTTPRequest, upload: Upload, at: int) -> int:
        """Append the whole body to an upload, and return the upload's new offset.

        Content that arrived before a failure stays in the session: the client can resume from
        there.

        Args:
            activity: counts the bytes as they arrive.
            at: the upload's offset, in bytes.

        Raises:
            BodyIncomplete: the body ended before its announced end.
            UploadOffset, UploadUnknown, StorageFull: see `storage.interface.Upload.write`.
        """
        if http.body is None:
            return at
        self.active += 1
        try:
            return await self._receive(activity, http.body, upload, at)
        finally:
            self.active -= 1

    async def _receive(self, activity: Activity, body: Body, upload: Upload, at: int) -> int:
        writing: asyncio.Future[None] | None = None
        try:
            size = min(self._batch_size(), body.length or _MAX_BATCH)
            filling, written = allocate(size), allocate(size)
            while count := await body.read_into(filling):
                activity.bytes_in += count
                if writing is not None:
                    await uncancelled(writing)  # where the reader is cancelled it continues
                writing = in_thread(upload.write, [filling[:count]], at)
                at += count
                filling, written = written, filling
                if len(filling) > (size := self._batch_size()):
                    filling = allocate(size)  # more uploads run than when this one began
            if writing is not None:
                await uncancelled(writing)
            return at
        finally:
            if writing is not None:
                # Also where the body was cut: bytes that arrived count, and no write may land
                # later.
                await asyncio.wait([writing])
                writing.exception()  # marks it as retrieved, where another error is raised
                # Its exception has this frame in the traceback: a cycle with the buffers otherwise.
                writing = None

    def _batch_size(self) -> int:
        return max(_MIN_BATCH, min(_MAX_BATCH, _TOTAL_MEMORY // 2 // max(self.active, 1)))
