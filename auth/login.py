"""The front door for names and passwords: paced, fair, and off the event loop.

An attempt passes these, in order:

1. *Recall.* A remembered right password or a valid short-lived credential is answered at once.
2. *Merge.* The same name and password from the same address, asked again meanwhile, wait for the
   one attempt.
3. *Its pair's turn.* Attempts on one user from one address go one by one, each after the wait that
   `auth.throttle` sets: opening many connections guesses no faster.
4. *Its address's turn.* One bcrypt at a time for each address. An address that sends a thousand
   wrong passwords keeps others waiting for one, not for a thousand.
5. *The workers.* bcrypt runs in a few threads of its own and of low priority (it lets the
   interpreter go on). The same name and password under way for another address is joined, not run
   again.

Nothing here answers "too many requests": clients do not retry that. Past the bounds on what may
wait, an attempt is refused as a wrong password is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from auth.errors import CredentialsInvalid
from auth.identity import MAX_NAME_BYTES, Identity
from auth.throttle import Throttle
from auth.verify import CredentialVerifier

_NICENESS = 5  # about a third of a transfer's share of a busy core
K = TypeVar("K")
F = TypeVar("F", bound="asyncio.Future[Identity]")

MAX_WAITING_PER_PAIR = 16
"""Different passwords that may wait for one user at one address."""

MAX_WAITING_PER_ADDRESS = 512
"""Attempts that may wait at one address."""


class Logins:
    """Checks names and passwords for an event loop. Belongs to one loop.

    Args:
        verifier: checks one name and password.
        throttle: says how long an attempt waits.
        threads: bcrypts at once; by default half the cores, so that a login storm leaves the
            others to transfers.
        sleep: waits some seconds.
    """

    def __init__(
        self,
        verifier: CredentialVerifier,
        throttle: Throttle,
        threads: int | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._verifier = verifier
        self._throttle = throttle
        self._sleep = sleep
        self._workers = ThreadPoolExecutor(
            threads or max(1, (os.cpu_count() or 1) // 2),
            thread_name_prefix="login",
            initializer=_be_nice,
        )
        self._pairs = _Queues(MAX_WAITING_PER_PAIR)
        self._addresses = _Queues(MAX_WAITING_PER_ADDRESS)
        self._attempts: dict[tuple[str, bytes], asyncio.Task[Identity]] = {}
        self._checks: dict[bytes, asyncio.Future[Identity]] = {}

    async def authenticate(self, name: str, password: str, address: str) -> Identity:
        """Who gives this name and password at this address.

        Cancelling the caller leaves others with the same credentials undisturbed.

        Raises:
            CredentialsInvalid: they are not right, or too many attempts are waiting.
        """
        known = self._verifier.recall(name, password)
        if known is not None:
            return known
        # No user's, whoever asks; and what is remembered of a failure holds the name.
        if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise CredentialsInvalid
        digest = self._verifier.digest(name, password)
        key = (address, digest)
        attempt = self._attempts.get(key)
        if attempt is None:
            attempt = asyncio.create_task(self._attempt(name, password, address, digest))
            _keep(self._attempts, key, attempt)
        return await asyncio.shield(attempt)

    def close(self) -> None:
        """Let the threads end; a bcrypt under way is not waited for."""
        for attempt in self._attempts.values():
            attempt.cancel()
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def _attempt(self, name: str, password: str, address: str, digest: bytes) -> Identity:
        async with self._pairs.turn((name, address)):
            await self._sleep(self._throttle.delay(name, address))
            async with self._addresses.turn(address):
                try:
                    identity = await self._check(name, password, digest)
                except CredentialsInvalid:
                    self._throttle.failed(name, address)
                    raise
        self._throttle.succeeded(name, address)
        return identity

    def _check(self, name: str, password: str, digest: bytes) -> asyncio.Future[Identity]:
        running = self._checks.get(digest)
        if running is None:
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._workers, self._verifier.check, name, password)
            _keep(self._checks, digest, running)
        return running


def _be_nice() -> None:
    """Let transfers go first where cores are short. On Linux niceness is a thread's own."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class _Queues:
    """First come, first served, one at a time for each key."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._queues: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for this key's turn and hold it.

        Raises:
            CredentialsInvalid: too many are waiting.
        """
        lock, inside = self._queues.get(key, (asyncio.Lock(), 0))
        if inside >= self._most:
            raise CredentialsInvalid
        self._queues[key] = (lock, inside + 1)
        try:
            async with lock:
                yield
        finally:
            inside = self._queues[key][1] - 1
            if inside:
                self._queues[key] = (lock, inside)
            else:
                del self._queues[key]


def _keep(table: dict[K, F], key: K, future: F) -> None:
    """Hold a future in a table until it is done."""
    table[key] = future
    future.add_done_callback(lambda done: table.pop(key))
