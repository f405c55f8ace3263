"""Proofs of bundles' content, hashed in threads and shared by all requests for the same content.

A proof that no request waits for is abandoned after `GRACE_SECONDS`. A client that reconnects at
once, as most do, joins it; and it does not delay the end of the server.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.threads import in_thread_for_many
from mayfly.storage.errors import Interrupted
from mayfly.storage.interface import Proof

GRACE_SECONDS = 5.0
"""For which a proof continues after the last request that waited for it has ended."""

_SMALL = 4 * 1024 * 1024
"""Bytes up to which content does not queue behind large layers."""

_POLL_SECONDS = 1.0
"""Between two checks whether the client is still connected."""

_LARGE_AT_ONCE = 2
"""Large layers hashed at once: more would make a disk seek between them."""


class _Job:
    """One proof in progress; its counts are shared by the event loop and the hashing thread."""

    def __init__(self, proof: Proof, threads: ThreadPoolExecutor | None) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._last_left = time.monotonic()
        """When the last waiting request left."""
        self._is_abandoned = False
        self.done = in_thread_for_many(threads, partial(proof.establish, self._step))

    def join(self) -> bool:
        """Add a waiting request; return False if the proof was abandoned just before."""
        with self._lock:
            self._waiting += 1
            return not self._is_abandoned

    def leave(self) -> None:
        """Remove a waiting request."""
        with self._lock:
            self._waiting -= 1
            self._last_left = time.monotonic()

    def _step(self, count: int) -> None:
        with self._lock:
            late = time.monotonic() - self._last_left > GRACE_SECONDS
            self._is_abandoned = not self._waiting and late
        if self._is_abandoned:
            raise Interrupted("no request waits for it")


class Prover:
    """The proofs in progress of one server."""

    def __init__(self) -> None:
        self._large = ThreadPoolExecutor(_LARGE_AT_ONCE, "hash")
        self._jobs: dict[Proof, _Job] = {}

    @contextmanager
    def proving(self, proof: Proof, size: int) -> Iterator[asyncio.Future[None]]:
        """Prove content while this context lasts; the future is shared: do not cancel it.

        Args:
            size: of the content, in bytes.
        """
        if proof.holds:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            yield done
            return
        job = self._jobs.get(proof)
        if job is None or not job.join():
            job = self._begin(proof, size)
        try:
            yield job.done
        finally:
            job.leave()

    def _begin(self, proof: Proof, size: int) -> _Job:
        job = self._jobs[proof] = _Job(proof, None if size <= _SMALL else self._large)
        job.join()

        def ended(_: asyncio.Future[None]) -> None:
            if self._jobs.get(proof) is job:
                del self._jobs[proof]

        job.done.add_done_callback(ended)
        return job


async def wait_for_proof(http: HTTPRequest, proof: asyncio.Future[None]) -> None:
    """Wait for a proof while the client is connected.

    Raises:
        ConnectionResetError: the client is gone.
        ContentCorrupt, BundleChanged, Interrupted: see `storage.interface.Proof.establish`.
    """
    while not proof.done():
        if http.is_gone():
            raise ConnectionResetError("client is gone")
        await asyncio.wait([proof], timeout=_POLL_SECONDS)
    proof.result()
