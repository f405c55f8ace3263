"""Records refused requests: user, address, request and reason; never a password, token or header.

Refusals are counted by user and address for the report, and written as JSON lines to the file of
``--audit``. Any client can cause any number of them, so everything is bounded:

- A refusal equal to one written in the last `FOLD_SECONDS` is only counted. The count is written
  after that time, as ``repeated``.
- An address may cause `ADDRESS_BURST` lines at once and `ADDRESS_RATE` a second, all addresses
  `BURST` and `RATE`. Further lines are dropped. The next line has their number as
  ``dropped_before``; at the end they get a line of their own, ``dropped``. The log has an
  allowance of the same size.
- The file is renamed to ``FILE.1`` before it grows beyond `MAX_FILE_BYTES`; one such file is kept.

One task writes the lines, so that a slow disk never delays a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from aiohttp.web_request import BaseRequest

from mayfly.auth.errors import TokenInvalid
from mayfly.auth.identity import MAX_NAME_BYTES
from mayfly.auth.limits import BoundedDict, TokenBucket
from mayfly.auth.networks import network_of
from mayfly.registry import log
from mayfly.registry.access.needs import AccessRequest
from mayfly.registry.address import canonical_address
from mayfly.registry.threads import uncancelled

logger = logging.getLogger("mayfly")

MAX_FILE_BYTES = 16 * 1024 * 1024
"""Size at which the file is renamed, in bytes; with the renamed one there is twice that at most."""

FOLD_SECONDS = 60.0
"""Seconds for which equal refusals are counted after the first one's line."""

ADDRESS_BURST, ADDRESS_RATE = 50, 1.0
BURST, RATE = 500, 20.0
"""Lines at once, and lines a second: for an address (of IPv6, a /64), and for all of them."""

_QUEUE = 1_000
_MAX_COUNTED = 1_000
_SWEEP_SECONDS = 10.0

Line = dict[str, str]

_RENEWED = TokenInvalid("expired").code
"""The reason that is not logged as a warning: clients fetch a new token by themselves."""


class Audit:
    """Counts and records refusals. Belongs to one event loop.

    Args:
        file: of ``--audit``; None only counts.
        clock: seconds, monotonic.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, file: Path | None = None, clock: Callable[[], float] = time.monotonic):
        self.refusals: Counter[tuple[str, str]] = Counter()
        """(user, address) → refusals; past `_MAX_COUNTED` pairs the rest counts as ``("", "")``."""
        self._file = file
        if file is not None:
            os.close(_private(str(file), os.O_WRONLY | os.O_APPEND | os.O_CREAT))
        self._clock = clock
        self._queued_lines: list[str] = []
        self._added = asyncio.Event()
        self._allowances = _Allowances(clock)
        self._log_allowances = _Allowances(clock)
        self._folded: BoundedDict[tuple[str, ...], _Folded] = BoundedDict(
            _MAX_COUNTED, lambda _, oldest: self._put_count(oldest)
        )
        self._dropped = 0

    def refused(
        self, http: BaseRequest, request: AccessRequest, user: str, code: str, detail: str
    ) -> None:
        """Record a refusal.

        Args:
            http: the request, for its address.
            request: what was asked for.
            user: the name that was claimed; "" without one.
            code: the reason: ``denied`` for a lack of rights, else `auth.errors.AuthError.code`.
            detail: the reason in words.
        """
        address = canonical_address(http.remote or "")
        user = user[:MAX_NAME_BYTES]
        known = (user, address) in self.refusals or len(self.refusals) < _MAX_COUNTED
        self.refusals[(user, address) if known else ("", "")] += 1
        text = f"{user or 'a client'} at {address} was refused: {detail}"
        level = logging.DEBUG if code == _RENEWED else logging.WARNING
        if self._log_allowances.take(network_of(address)):
            log.event(level, "refused", text, same=f"{user} {address}", user=user, address=address)
        if self._file is None:
            return
        self._record(
            {
                "event": "refused",
                "user": user,
                "address": address,
                "method": request.method,
                "endpoint": request.endpoint,
                "repository": request.repository,
                "code": code,
                "detail": detail,
            }
        )

    async def write(self) -> None:
        """Write queued lines until cancelled, and the rest of the queue then.

        When the file can no longer be written, that is logged once, and refusals are only counted.
        """
        if self._file is None:
            return
        try:
            await self._write(self._file)
        except OSError as error:
            self._file = None
            logger.error("--audit is no longer written: %s", error)

    async def _write(self, path: Path) -> None:
        written = _Rotated(path)
        under_way: asyncio.Future[None] | None = None
        try:
            while True:
                await self._wait_for_lines()
                under_way = asyncio.ensure_future(written.append(self._queued()))
                await uncancelled(under_way)
        finally:
            if under_way is not None:
                await under_way
            self._put_counts(self._clock())
            if self._dropped:
                self._put({"event": "dropped"})
            await written.append(self._queued())

    async def _wait_for_lines(self) -> None:
        """Return once lines are queued, due counts of repeats among them."""
        while not self._queued_lines:
            self._added.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._added.wait()
            self._put_counts(self._clock() - FOLD_SECONDS)

    def _queued(self) -> str:
        lines, self._queued_lines = self._queued_lines, []
        return "".join(lines)

    def _record(self, line: Line) -> None:
        key = tuple(line.values())
        like = self._folded.get(key)
        if like is not None and self._clock() - like.since < FOLD_SECONDS:
            like.count += 1
            return
        self._put_counts(self._clock() - FOLD_SECONDS)
        if not self._allowances.take(network_of(line["address"])):
            self._dropped += 1
            return
        self._folded[key] = _Folded(line, self._clock())
        self._put(line)

    def _put_counts(self, until: float) -> None:
        """Write the counts of refusals first seen until a moment."""
        while self._folded:
            oldest = next(iter(self._folded.values()))
            if oldest.since > until:
                return
            self._folded.popitem(last=False)
            self._put_count(oldest)

    def _put_count(self, folded: _Folded) -> None:
        if folded.count:
            self._put(folded.line | {"repeated": str(folded.count)})

    def _put(self, line: Line) -> None:
        if len(self._queued_lines) >= _QUEUE:
            self._dropped += 1
            return
        if self._dropped:
            line = line | {"dropped_before": str(self._dropped)}
            self._dropped = 0
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._queued_lines.append(json.dumps({"time": now, **line}) + "\n")
        self._added.set()


class _Folded:
    """A refusal that was written, and the number of equal ones since."""

    def __init__(self, line: Line, since: float) -> None:
        self.line = line
        self.since = since
        self.count = 0


class _Allowances:
    """Token buckets for lines: one for each network and one for all."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._all = TokenBucket(BURST, RATE, clock)
        self._of_network: BoundedDict[str, TokenBucket] = BoundedDict(_MAX_COUNTED)

    def take(self, network: str) -> bool:
        """Count one more line if there may be one; return whether."""
        own = self._of_network.get(network)
        if own is None:
            own = TokenBucket(ADDRESS_BURST, ADDRESS_RATE, self._clock)
        if not (own.allows() and self._all.allows()):
            return False
        own.take()
        self._all.take()
        self._of_network[network] = own
        return True


class _Rotated:
    """A file that is renamed before it grows too large; a pipe or terminal is written as it is."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        found = self._path.stat()
        self._size = found.st_size
        self._may_grow = not stat.S_ISREG(found.st_mode)

    async def append(self, text: str) -> None:
        """Write some lines.

        Raises:
            OSError: they are not written.
        """
        if not text:
            return
        size = len(text.encode())
        if self._size and self._size + size > MAX_FILE_BYTES and not self._may_grow:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._size = 0
        # Imported only where refusals are recorded in a file.
        import aiofiles

        async with aiofiles.open(self._path, "a", opener=_private) as file:
            await file.write(text)
        self._size += size


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
