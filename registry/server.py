"""A registry from start to stop: open the store, secure, bind, say ready, serve, stop cleanly.

This is where concrete classes meet (DESIGN.md, composition root); the command line only brings
the settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import web

from auth import signing
from registry.announce import announced
from registry.app import App, HTTPServer
from registry.config import ConfigError, Settings
from registry.context import in_thread
from registry.listener import BACKLOG, address_of, listening
from registry.security import Security, secure
from storage.distribution import DistributionStore
from storage.errors import StorageError
from storage.interface import Store
from storage.readonly import ReadOnlyStore

logger = logging.getLogger("mayfly")

WORKER_THREADS = 16
"""Threads for blocking storage calls; each may hold a batch of an upload."""

DRAIN_SECONDS = 60.0
"""How long transfers that are under way may go on once a stop is asked for."""

STALE_UPLOAD_SECONDS = 7 * 24 * 3600.0
"""An upload session without a write for so long is dropped (distribution's default)."""

_HOUSEKEEPING_SECONDS = 3600.0
_RELOAD_SECONDS = 2.0


class SecondSignal(Exception):
    """A stop was asked for twice: leave now. ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(settings: Settings) -> int:
    """Serve until a signal; the process's exit code.

    Raises:
        ConfigError: the settings cannot be carried out on this host.
    """
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--state-dir {settings.state_dir} cannot be used: {error.strerror}"
        ) from None
    with _root(settings) as root, contextlib.closing(_open_store(settings, root)) as store:
        try:
            with asyncio.Runner() as runner:
                runner.run(_serve(settings, store))
        except SecondSignal as second:
            return 128 + second.number
    return 0


@contextlib.contextmanager
def _root(settings: Settings) -> Iterator[Path]:
    if not settings.ephemeral:
        yield settings.root
        return
    scratch = Path(tempfile.mkdtemp(prefix="mayfly-"))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _open_store(settings: Settings, root: Path) -> DistributionStore:
    try:
        return DistributionStore(root, allow_sparse=settings.allow_sparse)
    except OSError as error:
        raise ConfigError(f"root {root} cannot be used: {error.strerror}") from error


async def _serve(settings: Settings, store: DistributionStore) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(WORKER_THREADS, "storage"))
    stop = _stop_on_signals(loop)
    served: Store = ReadOnlyStore(store) if settings.read_only else store
    with secure(settings) as security, listening(settings.listen) as sockets:
        async with _background(settings, security, store), _answering(served, security, sockets):
            with announced(settings, security, [address_of(bound) for bound in sockets]):
                logger.warning("stopping on %s", await stop)


@contextlib.asynccontextmanager
async def _answering(
    store: Store, security: Security, sockets: list[socket.socket]
) -> AsyncIterator[None]:
    """Requests are answered while the block runs; at its end those under way may finish."""
    server = HTTPServer(App(store, security.guard))
    runner = web.ServerRunner(server, shutdown_timeout=DRAIN_SECONDS)
    await runner.setup()
    context = security.tls.context if security.tls is not None else None
    try:
        for bound in sockets:
            await web.SockSite(runner, bound, ssl_context=context, backlog=BACKLOG).start()
        yield
    finally:
        draining = asyncio.ensure_future(runner.cleanup())
        _second_signal_cancels(asyncio.get_running_loop(), draining)
        await draining


@contextlib.asynccontextmanager
async def _background(
    settings: Settings, security: Security, store: DistributionStore
) -> AsyncIterator[None]:
    """What goes on beside the requests."""
    tasks: list[asyncio.Future[None]] = [asyncio.ensure_future(security.guard.audit.write())]
    if security.guard.authentication is not None:
        # The first login would wait for this import otherwise.
        tasks.append(in_thread(signing.preload))
    if security.tls is not None:
        tasks.append(asyncio.ensure_future(_reload_certificates(security)))
    if not settings.read_only:
        tasks.append(asyncio.ensure_future(_purge_uploads(store)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _reload_certificates(security: Security) -> None:
    assert security.tls is not None
    while True:
        await asyncio.sleep(_RELOAD_SECONDS)
        await in_thread(security.tls.reload_if_changed)


async def _purge_uploads(store: DistributionStore) -> None:
    while True:
        try:
            purged = await in_thread(store.purge_uploads, STALE_UPLOAD_SECONDS)
        except (OSError, StorageError) as error:
            logger.warning("stale uploads were not dropped: %s", error)
        else:
            if purged:
                logger.warning("dropped %d upload sessions idle for a week", purged)
        await asyncio.sleep(_HOUSEKEEPING_SECONDS)


def _stop_on_signals(loop: asyncio.AbstractEventLoop) -> asyncio.Future[str]:
    stop: asyncio.Future[str] = loop.create_future()

    def on_signal(number: signal.Signals) -> None:
        if not stop.done():
            stop.set_result(number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


def _second_signal_cancels(loop: asyncio.AbstractEventLoop, draining: asyncio.Future[None]) -> None:
    def on_signal(number: signal.Signals) -> None:
        draining.cancel()
        raise SecondSignal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
