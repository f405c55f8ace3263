"""The event log: takes events from requests without delay, and hands them to its sinks.

One task writes. A sink that fails, such as a file on a full disk, gets its events again after
`RETRY_SECONDS`, as long as the queue has room; events that do not fit are counted, and the
next event has their number.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from mayfly.registry import log
from mayfly.registry.telemetry import events
from mayfly.registry.telemetry.events import CHANGES, OF_THE_RUN, Event
from mayfly.registry.threads import uncancelled
from mayfly.storage.text import counted

MAX_QUEUED = 10_000
"""Events that wait to be written."""

RETRY_SECONDS = 5.0

_BATCH = 500


class Sink(Protocol):
    """A place for events."""

    async def append(self, added: list[Event]) -> None:
        """Keep events.

        Raises:
            OSError: none of them is kept.
        """


def is_denial(event: Event) -> bool:
    """Whether a sink for refusals takes this event: a refusal, or an event of the run."""
    return event["outcome"] == "denied" or event["action"] in OF_THE_RUN


def is_denial_or_change(event: Event) -> bool:
    """Whether a sink for changes takes this event: the same, and changes of the store."""
    return is_denial(event) or event["action"] in CHANGES


def is_any(event: Event) -> bool:
    """Every event."""
    return True


class EventLog:
    """Queues events for one sink.

    Args:
        sink: gets the events.
        name: of the sink, for messages.
        takes: whether the sink takes an event.

    Attributes:
        lost: number of events that the sink never got.
    """

    def __init__(self, sink: Sink, name: str, takes: Callable[[Event], bool]) -> None:
        self._sink = sink
        self._name = name
        self.takes = takes
        self.lost = 0
        self._dropped = 0
        """Number of events that found no room since the last one that did."""
        self._queue: deque[Event] = deque()
        self._added = asyncio.Event()
        self._failing = False

    def put(self, event: Event) -> None:
        """Take an event, if the sink takes it and there is room."""
        if not self.takes(event):
            return
        if len(self._queue) >= MAX_QUEUED:
            self._dropped += 1
            self.lost += 1
            return
        if self._dropped:
            event = event.copy()
            event["dropped_before"] = event.get("dropped_before", 0) + self._dropped
            self._dropped = 0
        self._queue.append(event)
        self._added.set()

    async def write(self) -> None:
        """Hand events to the sink until cancelled."""
        while True:
            await self._added.wait()
            self._added.clear()
            while self._queue:
                if not await self._write_batch():
                    await asyncio.sleep(RETRY_SECONDS)

    async def finish(self) -> None:
        """Hand all queued events to the sink, as far as it takes them; call it after `write`."""
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            last = events.new("drop")
            last["dropped_before"] = dropped
            self._queue.append(last)
        while self._queue:
            if not await self._write_batch():
                self.lost += len(self._queue)
                log.event(
                    logging.ERROR,
                    "events_lost",
                    f"{counted(len(self._queue), 'event is', 'events are')} not in {self._name}",
                    sink=self._name,
                    events=len(self._queue),
                )
                return

    async def _write_batch(self) -> bool:
        """Write the oldest events; False if the sink fails. A batch begun is finished."""
        batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
        writing = asyncio.ensure_future(self._sink.append(batch))
        try:
            await uncancelled(writing)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                await writing
                batch = []
            self._queue.extendleft(reversed(batch))
            raise
        except OSError as error:
            self._queue.extendleft(reversed(batch))
            if not self._failing:
                self._failing = True
                log.event(
                    logging.ERROR,
                    "events_not_written",
                    f"{self._name} cannot be written: {error.strerror or error}",
                    sink=self._name,
                )
            return False
        if self._failing:
            self._failing = False
            log.event(
                logging.INFO,
                "events_written",
                f"{self._name} is written again",
                sink=self._name,
            )
        return True
