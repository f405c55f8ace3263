"""The periodic and one-time work beside the requests: certificates, expiry, collection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from mayfly.registry.access.audit import Audit
from mayfly.registry.access.security import Security
from mayfly.registry.durations import exact
from mayfly.registry.settings.settings import Settings
from mayfly.registry.state import runs
from mayfly.registry.state.runs import Run
from mayfly.registry.state.scripts import Scripts
from mayfly.registry.threads import in_thread
from mayfly.storage.errors import StorageError
from mayfly.storage.text import counted, format_size

if TYPE_CHECKING:
    from mayfly.registry.evictions import Evictions
    from mayfly.storage.bundle.open import Bundles
    from mayfly.storage.upkeep.maintainable import Maintainable

logger = logging.getLogger("mayfly")

_HOUR = 3600.0
_RENEW_CHECK_SECONDS = 60.0
"""Short, so that a certificate made under a wrong clock is replaced soon after the clock is set."""
_CERTIFICATE_CHECK_SECONDS = 2.0
_SCRIPT_CHECK_SECONDS = 60.0


@contextlib.asynccontextmanager
async def housekeeping(
    settings: Settings,
    security: Security,
    this_run: Run,
    store: Maintainable | None,
    bundles: Bundles | None,
    audit: Audit,
    evictions: Evictions | None,
    scripts: Scripts,
) -> AsyncIterator[None]:
    """Run all tasks beside the requests while the block runs.

    Args:
        settings: of the server.
        security: whose certificates are reloaded and renewed.
        this_run: gets heartbeats.
        store: whose uploads expire and which is collected; None if it is read-only.
        bundles: whose missing digests are computed; None without bundles.
        audit: whose repeats are counted.
        evictions: from the store; None for none.
        scripts: of nodes, which expire, and which are removed at the end: they hold credentials.
    """
    tasks: list[asyncio.Future[None]] = [
        asyncio.ensure_future(audit.count_repeats()),
        asyncio.ensure_future(_send_heartbeats(this_run)),
        asyncio.ensure_future(_drop_scripts(scripts)),
    ]
    if security.authentication is not None:
        # The first login would wait for this import otherwise.
        from mayfly.auth import signing

        tasks.append(in_thread(signing.preload))
    if security.tls is not None:
        tasks.append(asyncio.ensure_future(_reload_certificates(security)))
    if security.renew is not None:
        tasks.append(asyncio.ensure_future(_renew_certificate(security.renew)))
    if store is not None:
        if settings.upload_expiry is not None:
            purging = _purge_uploads(store, settings.upload_expiry)
            tasks.append(asyncio.ensure_future(purging))
        if settings.gc_interval is not None:
            collecting = _collect(store, settings.gc_interval, settings.gc_grace)
            tasks.append(asyncio.ensure_future(collecting))
    if evictions is not None:
        tasks.append(asyncio.ensure_future(evictions.watch()))
    if bundles is not None and bundles.unhashed:
        tasks.append(asyncio.ensure_future(_hash_bundles(bundles)))
    try:
        yield
    finally:
        _interrupt(store, bundles)
        for task in tasks:
            task.cancel()
        await in_thread(scripts.drop_all)
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _drop_scripts(scripts: Scripts) -> None:
    while True:
        await in_thread(scripts.drop_old)
        await asyncio.sleep(_SCRIPT_CHECK_SECONDS)


async def _send_heartbeats(this_run: Run) -> None:
    while True:
        await asyncio.sleep(runs.HEARTBEAT_SECONDS)
        await in_thread(this_run.heartbeat)


def _interrupt(store: Maintainable | None, bundles: Bundles | None) -> None:
    """Stop the threads that hash large content: they would delay the end."""
    if bundles is not None:
        bundles.interrupt()
    if store is not None:
        store.interrupt()


async def _renew_certificate(renew: Callable[[], str | None]) -> None:
    logged = None
    while True:
        await asyncio.sleep(_RENEW_CHECK_SECONDS)
        problem = await in_thread(renew)
        if problem is not None and problem != logged:
            logger.error("the server's certificate was not renewed: %s", problem)
        logged = problem


async def _reload_certificates(security: Security) -> None:
    assert security.tls is not None
    while True:
        await asyncio.sleep(_CERTIFICATE_CHECK_SECONDS)
        await in_thread(security.tls.reload_if_changed)


async def _purge_uploads(store: Maintainable, expiry: float) -> None:
    while True:
        try:
            purged = await in_thread(store.purge_uploads, expiry)
        except (OSError, StorageError) as error:
            logger.warning("stale upload sessions could not be dropped: %s", error)
        else:
            if purged:
                logger.info("dropped %d upload sessions idle for %s", purged, exact(expiry))
        await asyncio.sleep(min(_HOUR, expiry / 2))


async def _collect(store: Maintainable, interval: float, grace: float) -> None:
    while True:
        await asyncio.sleep(interval)
        # Imported by the first collection, not by the start.
        from mayfly.storage.upkeep.collect import collect

        try:
            found = await in_thread(collect, store, grace)
        except (OSError, StorageError) as error:
            logger.warning("garbage collection failed: %s", error)
        else:
            if found.blobs:
                logger.info("freed %s that no image refers to", format_size(found.size))
            if found.unread:
                logger.warning(
                    "%s cannot be read: %s first; all blobs of their repositories are kept "
                    "(mayfly verify finds the damage)",
                    counted(len(found.unread), "manifest"),
                    found.unread[0],
                )


async def _hash_bundles(bundles: Bundles) -> None:
    """Compute the digests that old docker archives lack; their images are served after that."""
    logger.info(
        "computing digests of %s of layers; their images are served after that",
        format_size(bundles.unhashed),
    )
    try:
        await in_thread(bundles.hash, lambda size: None)
    except StorageError as error:
        logger.error("some images of a bundle cannot be served: %s", error.message)
    else:
        logger.info("all digests are computed: every image can be pulled")
