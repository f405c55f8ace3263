"""The recording of one run: the audit file and the webhooks, made from the settings."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit

from mayfly.registry.settings.choices import AuditLevel
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.settings.settings import Settings
from mayfly.registry.telemetry import event_log, events
from mayfly.registry.telemetry.chained_file import ChainedFile
from mayfly.registry.telemetry.event_log import EventLog
from mayfly.registry.telemetry.events import Event, Source
from mayfly.registry.telemetry.webhook import Webhook
from mayfly.storage.files import OPEN_TO_OTHERS, exposed_mode, open_regular

logger = logging.getLogger("mayfly")

_LEVELS = {
    AuditLevel.DENIED: event_log.is_denial,
    AuditLevel.WRITES: event_log.is_denial_or_change,
    AuditLevel.ALL: event_log.is_any,
}
_DIRECTORY = "notify"
"""In the state directory: events that wait for their receivers."""

_MAX_SECRET_BYTES = 4096


class AuditRecord(TypedDict):
    """The audit file as the run left it.

    Attributes:
        file: its path.
        events: number of the last event, counted from the first one of the file's chain.
        head: SHA-256 of the last event's line.
        unwritten: number of events that are not in the file.
    """

    file: str
    events: int
    head: str
    unwritten: int


class NotifiedRecord(TypedDict):
    """The events that a receiver of ``--notify`` got.

    Attributes:
        receiver: host and port.
        delivered: number of events.
        dropped: number of events that found no room.
        waiting_bytes: size of events that the next run delivers.
    """

    receiver: str
    delivered: int
    dropped: int
    waiting_bytes: int


class Recording:
    """Takes events and keeps them. Belongs to one event loop.

    Args:
        settings: of the server.
        run: ID of the run.
        address: that the server listens on.

    Raises:
        ConfigError: a file cannot be written or read.
    """

    def __init__(self, settings: Settings, run: str, address: str) -> None:
        self._source: Source = {"addr": address, "instanceID": run}
        self._path = settings.audit
        self._level = settings.audit_level
        self._file = _open_audit(settings.audit) if settings.audit is not None else None
        self._webhooks = _webhooks(settings)
        self._working: list[asyncio.Future[None]] = []
        self._flush: Callable[[], None] = _nothing
        self._logs = [EventLog(hook, hook.name, _is_done) for hook in self._webhooks]
        self._audit_log: EventLog | None = None
        if self._file is not None:
            takes = _LEVELS[self._level]
            self._audit_log = EventLog(self._file, f"--audit {settings.audit}", takes)
            self._logs.append(self._audit_log)

    @property
    def takes_requests(self) -> bool:
        """Whether requests that are not refused have events that anything keeps."""
        return bool(self._webhooks) or self._level is not AuditLevel.DENIED

    def put(self, event: Event) -> None:
        """Take an event; never waits."""
        event["source"] = self._source
        for one in self._logs:
            one.put(event)

    def corrupt(self, digest: str, problem: str) -> None:
        """Record content of a bundle that does not match its digest."""
        event = events.new("corrupt", "failed")
        event["target"] = {"digest": digest}
        event["reason"] = problem
        self.put(event)

    @contextlib.asynccontextmanager
    async def running(self, flush: Callable[[], None]) -> AsyncIterator[None]:
        """Record the start, then write and post events until the block or `end` ends.

        Args:
            flush: called before the end; puts the counts of refusals that have no event yet.
        """
        self._flush = flush
        self.put(events.new("start"))
        self._working = [asyncio.ensure_future(one.write()) for one in self._logs]
        self._working += [asyncio.ensure_future(hook.deliver()) for hook in self._webhooks]
        try:
            yield
        finally:
            await self._finish()

    async def end(self, reason: str, exit_code: int) -> Kept:
        """Record the end of the server, write and post all queued events, and return the records.

        Args:
            reason: `ending.EndKind`.
            exit_code: of the server.
        """
        self._flush()
        ended = events.new("end")
        ended["reason"] = reason
        ended["exit_code"] = exit_code
        self.put(ended)
        await self._finish()
        return self._audit_record(), [
            NotifiedRecord(
                receiver=hook.receiver,
                delivered=hook.delivered,
                dropped=hook.dropped,
                waiting_bytes=hook.waiting,
            )
            for hook in self._webhooks
        ]

    async def _finish(self) -> None:
        working, self._working = self._working, []
        if not working:
            return
        for task in working:
            task.cancel()
        # A writer that failed must neither keep the others from their end nor the report from its
        # file.
        for ended in await asyncio.gather(*working, return_exceptions=True):
            if isinstance(ended, Exception):
                logger.error("events are no longer recorded", exc_info=ended)
        for one in self._logs:
            await one.finish()
        await asyncio.gather(*(hook.finish() for hook in self._webhooks))
        if self._file is not None:
            self._file.close()

    def _audit_record(self) -> AuditRecord | None:
        if self._file is None or self._audit_log is None:
            return None
        number, digest = self._file.head
        lost = self._audit_log.lost
        return AuditRecord(file=str(self._path), events=number, head=digest, unwritten=lost)


Kept = tuple[AuditRecord | None, list[NotifiedRecord]]
"""The audit file and the receivers at the end of a run, for the report."""


def _nothing() -> None:
    """Nothing is held back."""


def _is_done(event: Event) -> bool:
    """Whether a webhook gets this event: distribution's notifications have nothing else."""
    return event["outcome"] == "done" and (
        event["action"] in events.CHANGES or event["action"] == "pull"
    )


def _open_audit(path: Path) -> ChainedFile:
    try:
        return ChainedFile(path)
    except OSError as error:
        raise ConfigError(f"--audit {path}: {error.strerror}") from None


def _webhooks(settings: Settings) -> list[Webhook]:
    if not settings.notify:
        return []
    secret = None
    if settings.notify_secret is not None:
        secret = _read_secret(settings.notify_secret)
    try:
        directory = settings.state_dir / _DIRECTORY
        return [Webhook(url, directory, secret) for url in dict.fromkeys(settings.notify)]
    except OSError as error:
        name = urlsplit(settings.notify[0]).hostname
        raise ConfigError(f"--notify {name}: {directory}: {error.strerror}") from None


def _read_secret(path: Path) -> bytes:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            mode = exposed_mode(os.fstat(file.fileno()), OPEN_TO_OTHERS)
            secret = file.read(_MAX_SECRET_BYTES + 1).strip()
    except OSError as error:
        raise ConfigError(f"--notify-secret {path}: {error.strerror}") from None
    if mode is not None:
        raise ConfigError(
            f"--notify-secret {path}: the key is open to others (mode {mode}); run: chmod 600 "
            f"{path} (in a Kubernetes Secret volume: defaultMode: 0400)"
        )
    if not 16 <= len(secret) <= _MAX_SECRET_BYTES:
        raise ConfigError(
            f"--notify-secret {path}: a key has 16 to {_MAX_SECRET_BYTES} bytes, "
            f"this has {len(secret)}"
        )
    return secret
