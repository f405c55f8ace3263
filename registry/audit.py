"""What was refused: to whom, from where, and what. Never a password, token or header.

Kept as counts for the report, and as JSON lines in the file of ``--audit``. The lines are written
by one task of their own, so that a slow disk never holds up a request; what a flood brings beyond
the queue is counted, and the count is written in its place.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import Counter
from pathlib import Path

import aiofiles
from aiohttp.web_request import BaseRequest

from auth.identity import MAX_NAME_BYTES
from registry import log
from registry.lifetime.images import plain
from registry.request import Request

logger = logging.getLogger("mayfly")

_QUEUE = 10_000
_MAX_COUNTED = 1_000

_RENEWED = "invalid token: expired"
"""Every client gets itself a new token then; nobody has to do anything."""


class Audit:
    """Counts and records refusals. Belongs to one event loop."""

    def __init__(self, file: Path | None = None) -> None:
        self.refusals: Counter[tuple[str, str]] = Counter()
        """(user, address) → refusals; past `_MAX_COUNTED` pairs the rest counts as ``("", "")``."""
        self._file = file
        if file is not None:
            os.close(_private(str(file), os.O_WRONLY | os.O_APPEND | os.O_CREAT))
        self._queue: asyncio.Queue[str] = asyncio.Queue(_QUEUE)
        self._dropped = 0

    def refused(self, http: BaseRequest, request: Request, user: str, why: str) -> None:
        """Record a refusal."""
        address = plain(http.remote or "")
        user = user[:MAX_NAME_BYTES]
        known = (user, address) in self.refusals or len(self.refusals) < _MAX_COUNTED
        self.refusals[(user, address) if known else ("", "")] += 1
        text = f"{user or 'a client'} at {address} was refused: {why}"
        level = logging.DEBUG if why == _RENEWED else logging.WARNING
        log.tell(level, "refused", text, same=f"{user} {address}", user=user, address=address)
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

        A file that can no longer be written ends the record, which is said once; counting goes on.
        """
        if self._file is None:
            return
        try:
            await self._write(self._file)
        except OSError as error:
            self._file = None
            logger.error("--audit is no longer written: %s", error)

    async def _write(self, path: Path) -> None:
        async with aiofiles.open(path, "a", opener=_private) as file:
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
