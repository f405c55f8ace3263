"""One blob on its way from an upstream: to a file here, and from that file to every client.

    begun ──► arriving ──► verified, published ──► complete
                 └── broken off, other bytes than the digest names ──► failed

Clients are sent the bytes that have arrived, at their own speed, except the last byte of the blob.
That waits until all bytes were hashed and the blob is published, so that no client gets a wrong
blob whole (ADR 0011). If the download fails, their connections are cut before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import time
from collections.abc import AsyncGenerator, Hashable
from typing import NamedTuple, Self

from mayfly.registry.clock import first_done
from mayfly.registry.errors import UpstreamUnavailable
from mayfly.registry.notification import Notification
from mayfly.registry.threads import in_thread
from mayfly.registry.upstream.errors import UpstreamError
from mayfly.registry.upstream.health import UpstreamHost
from mayfly.storage.digest import Digest
from mayfly.storage.directory.uploads import DirectoryUpload
from mayfly.storage.interface import Sink

SMALL = 64 * 1024
"""Bytes of a blob that is sent only once it is complete: its client hardly waits, and gets an error
instead of a cut connection."""

_BUFFER = 4 * 1024 * 1024
"""Bytes that may arrive while others are being written."""

_START_SECONDS = 600.0
_SLOWEST = 32 * 1024
"""Bytes a second of the slowest download, after some time to start, pauses and retries included."""

POLL_SECONDS = 1.0
"""Between two checks whether a client that waits is still connected."""


class Download:
    """A blob under way. For the event loop's thread, apart from `UnderWay.open`.

    Args:
        host: the upstream.
        source: its repository that the blob is fetched from.
        digest: of the blob.
        size: in bytes, as the upstream announced it.

    Attributes:
        repositories: that get the blob.
        clients: that wait for a turn for it.
        has_turn: whether it was the turn of one of them.
        received: bytes in the file.
    """

    def __init__(self, host: UpstreamHost, source: str, digest: Digest, size: int) -> None:
        self.host = host
        self.source = source
        self.digest = digest
        self.size = size
        self.repositories: dict[str, None] = {}
        self.clients: set[Hashable] = set()
        self.has_turn = False
        self.received = 0
        self._file: io.FileIO | None = None
        self._changed = Notification()
        self._complete = False
        self._failed = False

    @property
    def has_ended(self) -> bool:
        """Whether it is complete or has failed."""
        return self._complete or self._failed

    @property
    def content(self) -> UnderWay:
        """The blob, to be sent."""
        return UnderWay(self)

    async def receive(self, pieces: AsyncGenerator[bytes, None], upload: DirectoryUpload) -> None:
        """Take all bytes from the upstream into an upload.

        Raises:
            UpstreamError: they did not arrive, or too slowly.
            StorageFull, OSError: the disk does not take them.
        """
        self._file = await in_thread(upload.open)
        waiting: list[bytes] = []
        writing: asyncio.Task[None] | None = None

        async def write() -> None:
            while waiting:
                pieces = waiting[:]
                waiting.clear()
                await in_thread(upload.write, pieces, self.received)
                self.received += sum(map(len, pieces))
                self._changed.notify()

        try:
            async with contextlib.aclosing(self._in_time(pieces)) as stream:
                async for piece in stream:
                    self.host.bytes += len(piece)
                    waiting.append(piece)
                    if writing is None or writing.done():
                        if writing is not None:
                            writing.result()
                        writing = asyncio.create_task(write())
                    elif sum(map(len, waiting)) >= _BUFFER:
                        await writing
            if writing is not None:
                await writing
        finally:
            if writing is not None and not writing.done():
                # The upload may be ended only when nothing writes to it.
                waiting.clear()
                await asyncio.wait([writing])
                writing.exception()

    async def _in_time(self, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Yield pieces as long as they arrive fast enough; the time to store them does not count.

        Raises:
            UpstreamError: they do not.
        """
        received, waited = 0, 0.0
        async with contextlib.aclosing(pieces):
            while True:
                began = time.monotonic()
                try:
                    async with asyncio.timeout(_START_SECONDS + received / _SLOWEST - waited):
                        piece = await anext(pieces, None)
                except TimeoutError:
                    spent = waited + time.monotonic() - began
                    raise UpstreamError(
                        f"it arrives too slowly: {received} bytes in {spent:.0f}s"
                    ) from None
                if piece is None:
                    return
                waited += time.monotonic() - began
                received += len(piece)
                yield piece

    def complete(self) -> None:
        """Release the last byte: the blob is verified and published."""
        self._complete = True
        self._end()

    def fail(self) -> None:
        """Cut every client off."""
        self._failed = True
        self._end()

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
        self._changed.notify()

    async def available(self, after: int) -> int:
        """Wait until more than ``after`` bytes may be sent, and return how many.

        Raises:
            UpstreamUnavailable: the download failed.
        """
        while True:
            if self._failed:
                raise UpstreamUnavailable(self.host.name)
            limit = self.size if self._complete else min(self.received, self.size - 1)
            if limit > after or self._complete:
                return limit
            await first_done(self._changed.next())

    async def begun(self) -> None:
        """Wait until its first bytes may be sent; of a small blob, until it is complete.

        Raises:
            UpstreamUnavailable: the download failed.
        """
        await self.available(0 if self.size > SMALL else self.size - 1)

    def open_file(self) -> io.FileIO:
        """Open the file with the bytes that have arrived.

        Raises:
            FileNotFoundError: the download has ended.
        """
        try:
            assert self._file is not None
            return io.FileIO(os.dup(self._file.fileno()), "rb")
        except ValueError:  # it is closed
            raise FileNotFoundError(str(self.digest)) from None


class UnderWay(NamedTuple):
    """The content of a download; see `storage.interface.Content`."""

    download: Download

    @property
    def size(self) -> int:
        return self.download.size

    @property
    def proof(self) -> None:
        """None: the download itself withholds the last byte."""

    def open(self) -> OpenUnderWay:
        return OpenUnderWay(self.download, self.download.open_file())


class OpenUnderWay:
    """See `storage.interface.OpenContent`."""

    def __init__(self, download: Download, file: io.FileIO) -> None:
        self._download = download
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def proof(self) -> None:
        """None: the download itself withholds the last byte."""

    def read(self, offset: int, count: int) -> bytes:
        """Read bytes that have arrived."""
        return os.pread(self._file.fileno(), count, offset)

    async def send(self, sink: Sink, offset: int, count: int) -> None:
        """See `storage.interface.OpenContent.send`.

        Raises:
            UpstreamUnavailable: the download failed; not everything was sent.
        """
        end = offset + count
        while offset < end:
            part = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    part = min(await self._download.available(offset), end) - offset
            # Also with 0 bytes: that raises if the client is gone.
            await sink.send_file(self._file, offset, part)
            offset += part


class Announced(NamedTuple):
    """A blob that an upstream has and this registry does not fetch; see `interface.Content`."""

    size: int

    @property
    def proof(self) -> None:
        """None: there is nothing to prove."""

    def open(self) -> OpenUnderWay:
        raise FileNotFoundError
