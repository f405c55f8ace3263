"""A registry from start to stop: bind, say ready, serve, stop cleanly.

This is where concrete classes meet (DESIGN.md, composition root); the command line only brings
the settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import web

from registry.access import AllowAll
from registry.app import App, HTTPServer
from registry.config import Address, ConfigError, Settings
from registry.context import Context
from registry.manifest_cache import ManifestCache
from registry.version import VERSION
from storage.distribution import DistributionStore
from storage.interface import Store
from storage.readonly import ReadOnlyStore

logger = logging.getLogger("mayfly")

WORKER_THREADS = 16
"""Threads for blocking storage calls; each may hold a batch of an upload."""

DRAIN_SECONDS = 60.0
"""How long transfers that are under way may go on once a stop is asked for."""

STALE_UPLOAD_SECONDS = 7 * 24 * 3600.0
"""An upload session without a write for so long is dropped at start (distribution's default)."""


class SecondSignal(Exception):
    """A stop was asked for twice: leave now. ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(settings: Settings) -> int:
    """Serve until a signal; the process's exit code."""
    with _root(settings) as root, contextlib.closing(_open_store(settings, root)) as store:
        served: Store = ReadOnlyStore(store) if settings.read_only else store
        if not settings.read_only:
            store.purge_uploads(STALE_UPLOAD_SECONDS)
        try:
            with asyncio.Runner() as runner:
                runner.run(_serve(settings, served))
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


async def _serve(settings: Settings, store: Store) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(WORKER_THREADS, "storage"))
    stop = _stop_on_signals(loop)
    context = Context(store, ManifestCache(), AllowAll())
    runner = web.ServerRunner(HTTPServer(App(context)), shutdown_timeout=DRAIN_SECONDS)
    await runner.setup()
    try:
        sockets = [_bind(address) for address in settings.listen]
        for bound in sockets:
            await web.SockSite(runner, bound).start()
        with _announced(settings.state_dir, sockets):
            reason = await stop
            logger.warning("stopping on %s", reason)
    finally:
        cleanup = asyncio.ensure_future(runner.cleanup())
        _second_signal_cancels(loop, cleanup)
        await cleanup


def _bind(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        found = socket.getaddrinfo(
            address.host, address.port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return socket.create_server(found[0][4][:2], family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address}: {error.strerror}; choose another with --listen"
        ) from None


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


@contextlib.contextmanager
def _announced(state_dir: Path, sockets: list[socket.socket]) -> Iterator[None]:
    """While the port answers, ``ready.json`` says so (CONTRACT.md, "Ready")."""
    url = f"http://{Address(*sockets[0].getsockname()[:2])}"
    ready = state_dir / "ready.json"
    state = {"url": url, "pid": os.getpid(), "version": VERSION}
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = state_dir / f".ready.json.{os.getpid()}"
        draft.write_text(json.dumps(state) + "\n")
        draft.replace(ready)
    except OSError as error:
        raise ConfigError(f"--state-dir {state_dir} cannot be used: {error.strerror}") from None
    print(f"mayfly {VERSION} ready at {url}", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        ready.unlink(missing_ok=True)
