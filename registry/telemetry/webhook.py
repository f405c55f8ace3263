"""A webhook: posts events to a URL, in distribution's envelope.

Events wait in a file, so that neither a slow receiver delays a request nor a restart loses any. A
receiver that is down or answers with an error gets them again, after a pause that doubles up to
`MAX_PAUSE_SECONDS`; each event may therefore arrive more than once, with the same ``id``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mayfly.registry import log
from mayfly.registry.telemetry.events import MEDIA_TYPE, Event
from mayfly.registry.threads import in_thread
from mayfly.storage.files import Attributes, replace_file
from mayfly.storage.text import counted

if TYPE_CHECKING:
    import aiohttp

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Size of the file of waiting events; an event that does not fit is dropped, counted and logged."""

SIGNATURE = "X-Mayfly-Signature"
"""Header with ``sha256=`` and the HMAC-SHA-256 of the body, as hexadecimal digits."""

TIMEOUT_SECONDS = 10.0
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 60.0
LAST_SECONDS = 5.0
"""Time at the end of the server for waiting events; the next start sends the rest."""

_BATCH_BYTES = 256 * 1024
_PRIVATE = Attributes(0o600)


class Webhook:
    """Posts events to a URL; a sink of the event log. Belongs to one event loop.

    Args:
        url: of the receiver. A name and password in it become Basic credentials.
        directory: private; for the file of waiting events.
        secret: key of the signature; None sends none.

    Attributes:
        name, receiver: for messages and the report; without credentials.
        delivered, dropped: numbers of events, since the start.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, url: str, directory: Path, secret: bytes | None = None) -> None:
        self._url = url
        self._secret = secret
        parts = urlsplit(url)
        self.receiver = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
        self.name = f"the webhook at {self.receiver}"
        self.delivered = 0
        self.dropped = 0
        directory.mkdir(mode=0o700, exist_ok=True)
        digest = hashlib.sha256(url.encode()).hexdigest()[:16]
        self._file = directory / f"{digest}.jsonl"
        self._position = directory / f"{digest}.sent"
        self._sent, self._size = self._resume()
        self._lock = threading.Lock()
        """Held while the file or the position changes."""
        self._added = asyncio.Event()
        if self.waiting:
            self._added.set()

    @property
    def waiting(self) -> int:
        """Bytes of events that are not delivered."""
        return self._size - self._sent

    def _resume(self) -> tuple[int, int]:
        """The sizes of the sent part and of the file; a line that a crash cut off is removed."""
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "rb+") as file:
            content = file.read()
            size = content.rfind(b"\n") + 1
            file.truncate(size)
        try:
            sent = int(self._position.read_text())
        except (FileNotFoundError, ValueError):
            sent = 0
        # A position that is no beginning of a line is of another file.
        fits = 0 < sent <= size and content[sent - 1 : sent] == b"\n"
        return (sent if fits else 0), size

    async def append(self, added: list[Event]) -> None:
        """Put events into the file; those without room are dropped.

        Raises:
            OSError: none is in the file.
        """
        lines = [json.dumps(event, separators=(",", ":")).encode() + b"\n" for event in added]
        if self._size + sum(map(len, lines)) > MAX_FILE_BYTES and self._sent > MAX_FILE_BYTES // 2:
            await in_thread(self._drop_sent)
        room = MAX_FILE_BYTES - self._size
        kept = []
        for line in lines:
            room -= len(line)
            if room < 0:
                break
            kept.append(line)
        if dropped := len(lines) - len(kept):
            self.dropped += dropped
            log.event(
                logging.WARNING,
                "events_lost",
                f"{self.name} is too slow: "
                f"{counted(self.dropped, 'event was', 'events were')} dropped",
                same=self.name,
                sink=self.name,
                events=self.dropped,
            )
        if kept:
            await in_thread(self._append, b"".join(kept))
            self._added.set()

    def _append(self, data: bytes) -> None:
        with self._lock, self._file.open("rb+") as file:
            try:
                file.seek(self._size)
                file.write(data)
                file.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(self._size)
                raise
            self._size += len(data)

    def _drop_sent(self) -> None:
        """Replace the file by one of the waiting events alone."""
        with self._lock:
            with self._file.open("rb") as file:
                file.seek(self._sent)
                waiting = file.read(self.waiting)
            # A crash after this sends everything again, and loses nothing.
            self._position.unlink(missing_ok=True)
            replace_file(self._file, waiting, _PRIVATE)
            self._sent, self._size = 0, len(waiting)

    async def deliver(self) -> None:
        """Post waiting events until cancelled."""
        pause = FIRST_PAUSE_SECONDS
        async with self._session() as session:
            while True:
                await self._added.wait()
                self._added.clear()
                while self.waiting:
                    if await self._post(session):
                        pause = FIRST_PAUSE_SECONDS
                        continue
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, MAX_PAUSE_SECONDS)

    async def finish(self) -> None:
        """Post the waiting events once, for `LAST_SECONDS` at most; call it after `deliver`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS), self._session() as session:
                while self.waiting and await self._post(session):
                    pass

    def _session(self) -> aiohttp.ClientSession:
        # Imported only where there is a webhook.
        import aiohttp

        return aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),  # a receiver could fill another one
        )

    async def _post(self, session: aiohttp.ClientSession) -> bool:
        """Post the oldest events; whether they were taken, and that is noted."""
        import aiohttp

        try:
            batch = await in_thread(self._oldest)
        except OSError as error:
            return self._failed(f"its events cannot be read: {error.strerror}")
        body = b'{"events":[' + b",".join(batch.splitlines()) + b"]}"
        headers = {"Content-Type": MEDIA_TYPE}
        if self._secret is not None:
            digest = hmac.new(self._secret, body, "sha256").hexdigest()
            headers[SIGNATURE] = f"sha256={digest}"
        try:
            async with session.post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as response:
                problem = "" if response.status < 300 else f"status {response.status}"
                if 300 <= response.status < 400:
                    problem += ", and redirects are not followed: give the URL that it leads to"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            problem = type(error).__name__
        if problem:
            return self._failed(problem)
        try:
            await in_thread(self._advance, len(batch))
        except OSError as error:
            return self._failed(f"the delivery cannot be noted: {error.strerror}")
        self.delivered += batch.count(b"\n")
        return True

    def _failed(self, problem: str) -> bool:
        log.event(
            logging.WARNING,
            "webhook_failed",
            f"{self.name} does not get events: {problem}",
            same=self.name,
            sink=self.name,
            problem=problem,
        )
        return False

    def _oldest(self) -> bytes:
        """The oldest waiting lines, at least one."""
        with self._file.open("rb") as file:
            file.seek(self._sent)
            batch = file.read(min(_BATCH_BYTES, self.waiting))
            end = batch.rfind(b"\n") + 1
            return batch[:end] if end else batch + file.readline()

    def _advance(self, size: int) -> None:
        with self._lock:
            sent = self._sent + size
            if sent < self._size:
                replace_file(self._position, str(sent).encode(), _PRIVATE)
                self._sent = sent
                return
            # The position is removed first: a crash between the two sends again, and loses nothing.
            self._position.unlink(missing_ok=True)
            os.truncate(self._file, 0)
            self._sent = self._size = 0
