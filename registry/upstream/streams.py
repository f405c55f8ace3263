"""A blob on its way from a source to a target: hashed in order, from any byte on, never kept whole.

A target may lose bytes that it was sent, so that a part is sent again. The state of the hash is
marked now and then; the source is then read from the last mark before that part. The last bytes are
handed on only if all of it has its digest, so that no target is given a whole blob that is wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from mayfly.registry.threads import in_thread
from mayfly.registry.upstream.errors import ContentWrong, UpstreamError
from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.text import counted_of

if TYPE_CHECKING:
    from hashlib import _Hash

_MARK_EVERY = 16 * 1024 * 1024
"""Bytes between two marks: most that is read again for nothing."""

Open = Callable[[int], AsyncGenerator[bytes, None]]
"""The bytes of a blob from a byte on."""


class BlobStream:
    """The bytes of one blob.

    Args:
        digest: of all of it.
        size: in bytes.
        label: of the source with the blob, for messages.
        source: where the bytes come from.

    Attributes:
        digest: of all of it.
        size: in bytes.
        problem: why the source did not give them; the library between hides it.
    """

    def __init__(self, digest: Digest, size: int, label: str, source: Open) -> None:
        self.digest = digest
        self.size = size
        self.problem: UpstreamError | None = None
        self._label = label
        self._open = source
        self._marks: list[tuple[int, _Hash]] = [(0, digests.hasher(digest.algorithm))]

    async def pieces(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """The bytes from ``start`` up to ``end``.

        Raises:
            ContentWrong: they have another digest, or another size.
            UpstreamError: they cannot be fetched.
        """
        try:
            async with aclosing(self._hashed(start, end)) as stream:
                async for piece in stream:
                    yield piece
        except UpstreamError as error:
            self.problem = error
            raise

    async def _hashed(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        while self._marks[-1][0] > start:
            self._marks.pop()
        at, hasher = self._marks[-1]
        hasher = hasher.copy()
        if self.size == 0:
            self._check(hasher)
        if start == end:
            return
        hashing: asyncio.Future[None] | None = None
        async with aclosing(self._open(at)) as stream:
            async for piece in stream:
                if hashing is not None:
                    await hashing
                # Hashed by another thread while it is sent, and the next one arrives.
                hashing = in_thread(hasher.update, piece)
                before, at = at, at + len(piece)
                is_mark = at - self._marks[-1][0] >= _MARK_EVERY
                if is_mark or at >= self.size:
                    await hashing
                if at >= self.size:
                    self._check(hasher)
                if is_mark:
                    self._marks.append((at, hasher.copy()))
                if at > start:
                    yield piece[max(0, start - before) : end - before]
                if at >= end:
                    return
        raise ContentWrong(f"{self._label}: ended after {counted_of(at, self.size, 'byte')}")

    def _check(self, hasher: _Hash) -> None:
        if hasher.hexdigest() != self.digest.hex:
            raise ContentWrong(
                f"{self._label} arrived with other content than its digest says; it was not taken"
            )
