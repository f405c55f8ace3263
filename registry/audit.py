"""What was refused: to whom, from where, and what. Never a password, token or header.

Kept as counts for the report, and as JSON lines in the file of ``--audit``. The lines are written
by one task of their own, so that a slow disk never holds up a request; what a flood brings beyond
the queue is counted, and the count is written in its place.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from pathlib import Path

import aiofiles
from aiohttp import web

from registry.request import Request

_QUEUE = 10_000
_MAX_COUNTED = 1_000


class Audit:
    """Counts and records refusals. Belongs to one event loop."""

    def __init__(self, file: Path | None = None) -> None:
        self.refusals: Counter[tuple[str, str]] = Counter()
        """(user, address) → refusals; past `_MAX_COUNTED` pairs the rest counts as ``("", "")``."""
        self._file = file
        self._queue: asyncio.Queue[str] = asyncio.Queue(_QUEUE)
        self._dropped = 0

    def refused(self, http: web.BaseRequest, request: Request, user: str, why: str) -> None:
        """Record a refusal."""
        address = http.remote or ""
        known = (user, address) in self.refusals or len(self.refusals) < _MAX_COUNTED
        self.refusals[(user, address) if known else ("", "")] += 1
        self._record(
            event="refused",
            user=user,
            address=address,
            method=request.method,
            endpoint=request.endpoint.value,
            repository=request.repository,
            why=why,
        )

    async def write(self) -> None:
        """Write lines until cancelled; then what is left in the queue.

        Raises:
            OSError: the file cannot be written.
        """
        if self._file is None:
            return
        async with aiofiles.open(self._file, "a", opener=_private) as file:
            try:
                while True:
                    await file.write(await self._queue.get())
                    if self._queue.empty():
                        await file.flush()
            finally:
                while not self._queue.empty():
                    await file.write(self._queue.get_nowait())

    def _record(self, **fields: str) -> None:
        if self._file is None:
            return
        if self._queue.full():
            self._dropped += 1
            return
        if self._dropped:
            fields["dropped_before"] = str(self._dropped)
            self._dropped = 0
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._queue.put_nowait(json.dumps({"time": now, **fields}) + "\n")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
