"""Follows the state for all viewers, and makes the server-sent events of its changes.

While somebody looks, one task makes a view each second, whatever the number of browsers, and less
often where that takes long:

    looks ──► view ──► versions: section or node → version at which it changed last
                              │
       stream at version n ◄──┴── all that changed after n, as one event with the new version

So nothing is queued: a slow stream gets all changes since its last event in one. A browser that
reconnects with ``Last-Event-ID`` continues in the same way; an unknown or expired id gets the whole
state. Events of the same two versions are made once, in turns with other tasks.

Past `MAX_STREAMS` a stream gets the changes and ends, and its browser comes back a little later:
more people than that see the same, some seconds late.

When the server drains, each stream gets the last changes and ends. Streams that begin then get one
event and end: browsers come back each second, so that they show the drain, and hold nothing up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from mayfly.registry.clock import first_done
from mayfly.registry.notification import Notification
from mayfly.registry.page.view import NodeView, View
from mayfly.registry.threads import with_pauses

logger = logging.getLogger("mayfly")

MAX_STREAMS = 128
"""Open at once; further ones get one event and end."""

MAX_STREAMS_OF_ONE = 64
"""The most streams of one client address, which may be that of a proxy."""

MAX_SENDING = 8 * 2**20
"""Bytes of different events that are being sent. The readers of the oldest ones are cut."""

TICK_SECONDS = 1.0
"""Between two views, at least."""

_MAX_TICK_SECONDS = 5.0

_SHARE = 0.02
"""The part of the time that making views may take, as far as `_MAX_TICK_SECONDS` allow."""

_AT_ONCE = 100
"""Nodes, images or layers that are made into text before others get a turn."""

STREAM_SECONDS = 300.0
"""Longest stream; the browser reconnects and is authenticated again."""

QUIET_SECONDS = 15.0
"""After which a comment shows that the stream lives, and a client that left is noticed."""

KEPT_SECONDS = 30.0
"""For which the state is kept when nobody looks, for browsers that come back."""

_FRESH_SECONDS = 0.2
"""For which a view is as good as a new one."""

_MAX_GONE = 1_000
_MAX_SHARED = 16
"""Events of the current version that are kept."""

_ALL = -1
"""Version of a stream that has received nothing."""

RETRY = b"retry: 1000\n\n"
"""Milliseconds after which a browser comes back."""

RETRY_LATER = b"retry: 5000\n\n"
"""For streams past the bounds."""

COMMENT = b":\n\n"


class Feed:
    """The events for all viewers. Belongs to one event loop.

    Args:
        look: makes a view.
        forget: is called when nobody has looked for a while.
    """

    def __init__(
        self, look: Callable[[], Awaitable[View]], forget: Callable[[], None] = lambda: None
    ) -> None:
        self._look = look
        self._on_forget = forget
        self._epoch = secrets.token_hex(4)
        self._version = 0
        self._view: View | None = None
        self._run_version = self._served_version = 0
        self._node_versions: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        """Node that is no longer there → version."""
        self._whole_before = 0
        """Streams at earlier versions get the whole state, since `_gone` lacks nodes of theirs."""
        self._shared: dict[int, bytes] = {}
        """Version before → event up to the current one."""
        self._changed = Notification()
        self._looking, self._making = asyncio.Lock(), asyncio.Lock()
        self._looked = -math.inf
        """Monotonic time of the last look."""
        self._task: asyncio.Task[None] | None = None
        self._forgetting: asyncio.TimerHandle | None = None
        self._streams: Counter[str] = Counter()
        """Client address → its streams that last."""
        self._sending = _Sending()
        self.draining = False

    async def view(self) -> View:
        """Return the current view, for pages without scripts."""
        await self._bring_up_to_date()
        assert self._view is not None
        if not self.streams:
            self._rest()
        return self._view

    @property
    def streams(self) -> int:
        """The number of streams that last."""
        return self._streams.total()

    def drain(self) -> None:
        """Have all streams end, after their last changes."""
        self._looked = -math.inf  # the view from before the drain is out of date
        self.draining = True
        self._changed.notify()

    @contextlib.contextmanager
    def _stream(self, client: str) -> Iterator[bool]:
        """Count a stream while it lasts; False if there are too many for that."""
        if self.streams >= MAX_STREAMS or self._streams.get(client, 0) >= MAX_STREAMS_OF_ONE:
            yield False
            return
        self._streams[client] += 1
        self._keep()
        try:
            yield True
        finally:
            self._streams[client] -= 1
            if not self._streams[client]:
                del self._streams[client]
            if not self.streams:
                self._rest()

    def _rest(self) -> None:
        """Stop looking, since nobody does, and forget the state a little later."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._keep()
        with contextlib.suppress(RuntimeError):  # the loop is closing
            self._forgetting = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget)

    def _keep(self) -> None:
        """Do not forget the state after all."""
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None

    def _forget(self) -> None:
        if self._looking.locked() or self._making.locked():
            self._rest()  # it is in use
            return
        self._forgetting = None
        self._view = None
        self._node_versions, self._gone, self._shared = {}, {}, {}
        self._on_forget()
        self._epoch = secrets.token_hex(4)

    async def events(
        self, last_id: str | None, client: str, cut: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[bytes, None]:
        """Yield events and comments until the server drains or `STREAM_SECONDS` are over.

        There is one event if `MAX_STREAMS` last already, or `MAX_STREAMS_OF_ONE` of this client.

        Args:
            last_id: ``Last-Event-ID`` of the request.
            client: address of the client.
            cut: disconnects the client, which takes an event too slowly.
        """
        with self._stream(client) as lasts:
            end = time.monotonic() + (STREAM_SECONDS if lasts else 0)
            yield RETRY if lasts else RETRY_LATER
            await self._bring_up_to_date()
            if self._task is None and lasts and not self.draining:
                self._task = asyncio.create_task(self._follow())
            at = self._version_of(last_id)
            while True:
                is_last = self.draining or time.monotonic() >= end
                if is_last:
                    await self._bring_up_to_date()
                if at < self._version:
                    event, at = await self._event(at)
                    with self._sending.hold(event, cut):
                        yield event
                if is_last:
                    return
                if at == self._version and not self.draining:
                    changed = self._changed.next()
                    await first_done(changed, asyncio.sleep(QUIET_SECONDS))
                    if not changed.done():
                        yield COMMENT

    def _version_of(self, last_id: str | None) -> int:
        epoch, _, number = (last_id or "").partition(".")
        if epoch != self._epoch or not number.isascii() or not number.isdigit():
            return _ALL
        known = int(number[:18])
        return known if known <= self._version else _ALL

    async def _follow(self) -> None:
        took = 0.0
        while True:
            await asyncio.sleep(max(TICK_SECONDS, min(took / _SHARE, _MAX_TICK_SECONDS)))
            began = time.monotonic()
            try:
                await self._refresh()
                took = time.monotonic() - began
            except Exception:
                logger.exception("the rollout page could not be brought up to date")

    async def _bring_up_to_date(self) -> None:
        """Look, unless the task does, whose views are recent enough."""
        if self._task is None or self.draining:
            await self._refresh()

    async def _refresh(self) -> None:
        """Look, unless somebody did just now, and note the changes."""
        async with self._looking:
            if self._view is None or time.monotonic() - self._looked >= _FRESH_SECONDS:
                was_draining = self.draining
                await self._take(await self._look())
                if self.draining == was_draining:
                    self._looked = time.monotonic()

    async def _take(self, view: View) -> None:
        """Note the changes. Meanwhile the view before this one is the current one."""
        before, version = self._view, self._version + 1
        known = before.nodes if before is not None else {}
        items = with_pauses(view.nodes.items())
        changed = [name async for name, node in items if known.get(name) != node]
        gone = [name async for name in with_pauses(known) if name not in view.nodes]
        is_run_new = before is None or view.run != before.run
        is_served_new = before is None or view.served != before.served
        self._view = view
        if not (changed or gone or is_run_new or is_served_new):
            return
        self._version = version
        if is_run_new:
            self._run_version = version
        if is_served_new:
            self._served_version = version
        # A new dict: events that are being made have the one of their view.
        self._node_versions = self._node_versions | dict.fromkeys(changed, version)
        for name in gone:
            del self._node_versions[name]
        left = {name: since for name, since in self._gone.items() if name not in view.nodes}
        self._gone = left | dict.fromkeys(gone, version)
        if len(self._gone) > _MAX_GONE:
            self._gone = {}
            self._whole_before = version
        self._shared.clear()
        self._changed.notify()

    async def _event(self, at: int) -> tuple[bytes, int]:
        """Return the event of the changes since a version, and the version that it leads to."""
        async with self._making:
            if at < self._whole_before:
                at = _ALL
            found, version = self._shared.get(at), self._version
            if found is None:
                found = await self._made_event(at)
                if version == self._version and len(self._shared) < _MAX_SHARED:
                    self._shared[at] = found
            return found, version

    async def _made_event(self, at: int) -> bytes:
        # All of one moment, although views may come while it is made: the next event has the rest.
        view, version, versions = self._view, self._version, self._node_versions
        assert view is not None
        is_served_new = self._served_version > at
        gone = [name for name, since in self._gone.items() if since > at and at != _ALL]
        parts = [f"id: {self._epoch}.{version}\ndata: {{"]
        parts.append(f'"whole":{_text(at == _ALL)},"now":{int(time.time())}')
        if self._run_version > at:
            parts.append(f',"run":{_text(view.run)}')
        if is_served_new:
            parts.append(f',"served":{{"sources":{_text(view.served["sources"])},"images":[')
            parts += [piece async for piece in with_pauses(_items(view.served["images"]))]
            parts.append('],"layers":[')
            parts += [piece async for piece in with_pauses(_items(view.served["layers"]))]
            parts.append("]}")
        changed = [name async for name in with_pauses(view.nodes) if versions[name] > at]
        if changed:
            parts.append(',"nodes":{')
            parts += [piece async for piece in with_pauses(_nodes(view.nodes, changed))]
            parts.append("}")
        if gone:
            parts.append(f',"gone":{_text(gone)}')
        parts.append("}\n\n")
        return "".join(parts).encode()


class _Sending:
    """The events that are being sent, each counted once, within `MAX_SENDING`."""

    def __init__(self) -> None:
        self._held: dict[object, tuple[bytes, Callable[[], None]]] = {}
        """Stream → event and the function that cuts the stream, oldest stream first."""
        self._streams: Counter[int] = Counter()
        """Identity of an event → number of streams."""
        self.bytes = 0

    @contextlib.contextmanager
    def hold(self, event: bytes, cut: Callable[[], None]) -> Iterator[None]:
        """Count an event while it is sent; where there is no room, cut the oldest streams."""
        stream = object()
        self._held[stream] = event, cut
        self._streams[id(event)] += 1
        if self._streams[id(event)] == 1:
            self.bytes += len(event)
        try:
            while self.bytes > MAX_SENDING and (first := next(iter(self._held))) is not stream:
                self._drop(first)()
            yield
        finally:
            if stream in self._held:
                self._drop(stream)

    def _drop(self, stream: object) -> Callable[[], None]:
        event, cut = self._held.pop(stream)
        self._streams[id(event)] -= 1
        if not self._streams[id(event)]:
            del self._streams[id(event)]
            self.bytes -= len(event)
        return cut


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _items(found: Sequence[object]) -> Iterator[str]:
    """Yield the items of a list in JSON, some at a time, without its brackets."""
    for start in range(0, len(found), _AT_ONCE):
        yield ("," if start else "") + _text(found[start : start + _AT_ONCE])[1:-1]


def _nodes(nodes: Mapping[str, NodeView], names: Sequence[str]) -> Iterator[str]:
    """Yield nodes by their names in JSON, some at a time, without its braces."""
    for start in range(0, len(names), _AT_ONCE):
        records = {name: _node_record(nodes[name]) for name in names[start : start + _AT_ONCE]}
        yield ("," if start else "") + _text(records)[1:-1]


def _node_record(node: NodeView) -> dict[str, Any]:
    """Return a node as an event has it; empty parts are left out."""
    record: dict[str, Any] = {"states": node.states}
    if node.pulling:
        record["pulling"] = node.pulling
    if node.failed:
        record["failed"] = node.failed
    if node.proof is not None:
        record["proof"] = node.proof
    return record
