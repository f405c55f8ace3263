"""Proofs of bundles' content: hashed in threads, once for all who wait for the same one.

A proof that nobody waits for is given up after `GRACE_SECONDS`: a client that reconnects at once,
as most do, joins it, and it does not delay the end of the server.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from mayfly.registry.http.body import HTTPRequest
from mayfly.storage.bundle.errors import Interrupted
from mayfly.storage.interface import Proof

GRACE_SECONDS = 5.0
"""How long a proof continues after its last waiter has gone."""

_SMALL = 4 * 1024 * 1024
"""Bytes up to which content does not queue behind large layers."""

_LOOK_SECONDS = 1.0
"""Between two looks whether the client is still there."""

_hashing = ThreadPoolExecutor(2, "hash")
"""For large layers, two at a time: more would make a disk seek between them."""


class _Taking:
    """One proof under way; its counts are shared by the event loop and the thread that hashes."""

    def __init__(self, proof: Proof, size: int) -> None:
        self._proof = proof
        self._lock = threading.Lock()
        self._waiting = 0
        self._since = time.monotonic()
        """When the last waiter left."""
        self._is_given_up = False
        threads = None if size <= _SMALL else _hashing
        loop = asyncio.get_running_loop()
        self.done = loop.run_in_executor(threads, proof.establish, self._step)
        self.done.add_done_callback(self._ended)

    def join(self) -> bool:
        """Wait for it, too; False if it was given up just before."""
        with self._lock:
            self._waiting += 1
            return not self._is_given_up

    def leave(self) -> None:
        """Wait for it no more."""
        with self._lock:
            self._waiting -= 1
            self._since = time.monotonic()

    def _step(self, count: int) -> None:
        with self._lock:
            late = time.monotonic() - self._since > GRACE_SECONDS
            self._is_given_up = not self._waiting and late
        if self._is_given_up:
            raise Interrupted("nobody waits for it")

    def _ended(self, done: asyncio.Future[None]) -> None:
        if _under_way.get(self._proof) is self:
            del _under_way[self._proof]
        if not done.cancelled():
            done.exception()  # mark it as retrieved, also when every client has gone


_under_way: dict[Proof, _Taking] = {}


@contextmanager
def proving(proof: Proof, size: int) -> Iterator[asyncio.Future[None]]:
    """Prove content while this context lasts; the future is shared and must not be cancelled.

    Args:
        size: of the content, in bytes.
    """
    if proof.holds:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        yield done
        return
    taking = _under_way.get(proof)
    if taking is None or not taking.join():
        taking = _under_way[proof] = _Taking(proof, size)
        taking.join()
    try:
        yield taking.done
    finally:
        taking.leave()


async def proven(http: HTTPRequest, proof: asyncio.Future[None]) -> None:
    """Wait for a proof as long as the client does.

    Raises:
        ConnectionResetError: the client is gone.
        ContentCorrupt, BundleChanged, Interrupted: see `Proof.establish`.
    """
    while not proof.done():
        if http.transport is None or http.transport.is_closing():
            raise ConnectionResetError("client is gone")
        await asyncio.wait([proof], timeout=_LOOK_SECONDS)
    proof.result()
