"""A registry from start to stop: claim, open, secure, bind; what follows is `registry.lifecycle`.

This is where concrete classes meet (DESIGN.md, composition root); the command line only brings
the settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mayfly.registry import log
from mayfly.registry.access.audit import Audit
from mayfly.registry.access.guard import Guard
from mayfly.registry.access.security import Security, certificate_identity, secure
from mayfly.registry.api.app import App
from mayfly.registry.api.context import NameResolver, identity
from mayfly.registry.clock import SystemClock
from mayfly.registry.control.announce import announced, login_to
from mayfly.registry.control.report import Corruption, storage_used
from mayfly.registry.coverage.held import Held
from mayfly.registry.coverage.images import read_nodes
from mayfly.registry.durations import exact
from mayfly.registry.http.connections import Connections, Limits
from mayfly.registry.http.listener import address_of, listening
from mayfly.registry.http.origin import Origins
from mayfly.registry.http.protocol import HTTPServer
from mayfly.registry.http.sweep import Patience
from mayfly.registry.lifecycle.errors import LifetimeError
from mayfly.registry.lifecycle.life import Launch, Life
from mayfly.registry.lifecycle.plan import Plan
from mayfly.registry.process import open_files
from mayfly.registry.process.systemd import Notifier, take_sockets
from mayfly.registry.settings.choices import OnCorrupt, Until
from mayfly.registry.settings.errors import ConfigError, unusable
from mayfly.registry.settings.settings import Settings
from mayfly.registry.state import runs
from mayfly.registry.state.directory import StateDir
from mayfly.registry.state.runs import Run
from mayfly.registry.threads import in_thread
from mayfly.storage.directory.reader import DirectoryReader
from mayfly.storage.directory.space import format_size
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import StorageError
from mayfly.storage.interface import Store
from mayfly.storage.readonly import ReadOnlyStore

if TYPE_CHECKING:
    from mayfly.storage.bundle.open import Bundles
    from mayfly.storage.bundle.verified import Fault
    from mayfly.storage.digest import Digest

logger = logging.getLogger("mayfly")

WORKER_THREADS = 16
"""Threads for blocking storage calls; each may hold a batch of an upload."""

_HOUSEKEEPING_SECONDS = 3600.0
_RELOAD_SECONDS = 2.0


def run(settings: Settings, command: tuple[str, ...] = ()) -> int:
    """Serve until the lifetime ends.

    Args:
        settings: of the server.
        command: of `mayfly run`; the server lives as long as it runs.

    Returns:
        The exit code; minus a signal's number if the command died by it.

    Raises:
        ConfigError: the settings cannot be carried out on this host.
        LifetimeError: the command cannot be started.
    """
    plan = _plan(settings, command)
    open_files.raise_limit()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Until the lifetime takes them over: an end in the middle of the start is tidy, too.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(StateDir.claim(settings.state_dir))
        this_run = stack.enter_context(_begin_run(settings))
        plan = replace(plan, elapsed=this_run.elapsed)
        root = stack.enter_context(_root(settings))
        bundles = _open_bundles(settings)
        if bundles is not None:
            stack.enter_context(contextlib.closing(bundles))
        store = stack.enter_context(_open_store(settings, root, bundles))
        if bundles is not None:
            _tell_gaps(bundles, store)
        runner = stack.enter_context(asyncio.Runner())
        return runner.run(_serve(settings, plan, state, this_run, root, store, bundles))


def _leave_behind(loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor) -> None:
    """Let the threads end without waiting for them, which closing the loop would do.

    Killing them is safe: nothing becomes visible before it is complete.
    """
    threads.shutdown(wait=False, cancel_futures=True)
    loop.set_default_executor(ThreadPoolExecutor(1))


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _plan(settings: Settings, command: tuple[str, ...]) -> Plan:
    return Plan(
        drain_timeout=settings.drain_timeout,
        idle_timeout=settings.idle_timeout,
        unused_timeout=settings.unused_timeout,
        max_lifetime=settings.max_lifetime,
        until_all=settings.until is Until.ALL,
        until_pulled=settings.until_pulled,
        nodes=read_nodes(settings.nodes) if settings.nodes is not None else None,
        accept=settings.accept,
        node_identity=settings.node_identity,
        stop_file=settings.stop_file,
        exit_with_parent=settings.exit_with_parent,
        exit_on_stdin_eof=settings.exit_on_stdin_eof,
        stop_on_corrupt=settings.on_corrupt is OnCorrupt.STOP,
        report=settings.report,
        command=command,
    )


def _begin_run(settings: Settings) -> Run:
    serves = runs.serving(settings.bundles, settings.until_pulled, settings.nodes)
    try:
        return Run.begin(settings.state_dir, settings.max_lifetime, serves, settings.signing_key)
    except OSError as error:
        raise unusable("--state-dir", settings.state_dir, error) from None


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


def _open_bundles(settings: Settings) -> Bundles | None:
    if not settings.bundles:
        return None
    # Bundles are imported only by who serves some: a tenth of the start.
    from mayfly.storage.bundle.open import open_bundles

    bundles = open_bundles(settings.bundles, settings.state_dir)
    for notice in bundles.notices:
        logger.warning("%s", notice)
    for path, names in bundles.names.ambiguous().items():
        logger.warning("%s is in several upstreams; ask for %s", path, " or ".join(names))
    return bundles


def _tell_gaps(bundles: Bundles, store: DirectoryReader) -> None:
    """Warn of images that neither the bundles nor the store have whole."""
    from mayfly.storage.images import find_blob

    def has(repository: str, digest: Digest) -> bool:
        return find_blob(store, repository, digest) is not None

    for line in bundles.lacking(has):
        log.tell(logging.WARNING, "incomplete_image", line)


@contextlib.contextmanager
def _open_store(
    settings: Settings, root: Path, bundles: Bundles | None
) -> Iterator[DirectoryReader]:
    if settings.read_only and bundles is None:
        if not root.is_dir():
            raise ConfigError(f"root {root}: there is no such directory to serve read-only")
        yield DirectoryReader(root)
        return
    try:
        if bundles is not None:
            from mayfly.storage.overlay import OverlayStore

            store: DistributionStore = OverlayStore(
                root,
                bundles.layer,
                allow_sparse=settings.allow_sparse,
                reserve=settings.reserve,
            )
        else:
            store = DistributionStore(
                root, allow_sparse=settings.allow_sparse, reserve=settings.reserve
            )
    except OSError as error:
        raise unusable("root", root, error) from error
    with contextlib.closing(store):
        yield store


async def _serve(
    settings: Settings,
    plan: Plan,
    state: StateDir,
    this_run: Run,
    root: Path,
    store: DirectoryReader,
    bundles: Bundles | None,
) -> int:
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor(WORKER_THREADS, "storage")
    loop.set_default_executor(threads)
    with contextlib.ExitStack() as stack:
        stack.callback(_leave_behind, loop, threads)
        sockets = [taken.socket for taken in take_sockets(os.environ)]
        sockets = sockets or stack.enter_context(listening(settings.listen))
        addresses = [address_of(bound) for bound in sockets]
        # What is bound counts, not what was asked for: systemd's sockets may be open to anyone.
        settings = replace(settings, listen=tuple(addresses))
        security = stack.enter_context(secure(settings, this_run))
        login = login_to(settings, security, addresses[0])
        life = Life(
            plan,
            state,
            Held(store),
            SystemClock(),
            own_hosts=(login.host, *map(str, addresses)),
            shared=security.is_shared,
            notifier=Notifier.take(os.environ),
        )
        if security.authentication is None:
            life.observer.nodes.without_credentials()
        if plan.nodes is not None:
            _tell_of_proxies(settings, life)
        if bundles is not None:
            _watch(bundles, life)
        try:
            audit = Audit(settings.audit)
        except OSError as error:
            raise ConfigError(f"--audit {settings.audit}: {error.strerror}") from None
        async with _background(settings, security, this_run, store, bundles, audit):
            launch = Launch(
                _connections(settings, security, store, bundles, life, audit, sockets),
                login,
                announced(settings, security, login, plan.nodes.names if plan.nodes else ()),
                storage=lambda: storage_used(root),
                denied=audit.refusals,
                ambiguous=bundles.names.ambiguous() if bundles is not None else {},
                wiped=(root,) if settings.ephemeral else (),
            )
            return await _live(life, launch, this_run)


async def _live(life: Life, launch: Launch, this_run: Run) -> int:
    """Serve until the end and end the run, except if this start fails to continue one."""
    this_run.serving()
    try:
        code = await life.run(launch)
    except (ConfigError, LifetimeError):
        if not this_run.continued:
            this_run.end()
        raise
    this_run.end()
    return code


def _watch(bundles: Bundles, life: Life) -> None:
    """Have the lifetime told of content that is not what it should be."""
    loop = asyncio.get_running_loop()

    def told(fault: Fault, repositories: list[str], images: list[str]) -> None:
        # Hashing may outlive the loop, by a moment.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(
                life.corrupt,
                Corruption(
                    digest=str(fault.digest),
                    bundle=fault.bundle,
                    problem=fault.problem,
                    file=fault.file,
                    first_byte=fault.first,
                    last_byte=fault.last,
                    repositories=repositories,
                    images=images,
                ),
            )

    bundles.watch(told)


def _tell_of_proxies(settings: Settings, life: Life) -> None:
    """Have nodes that hide behind a proxy's address noticed."""
    external, trusted = settings.external_url, settings.trusted_proxy
    life.observer.nodes.behind_proxies(
        Origins(external, trusted).trusts,
        external.origin + external.prefix if external is not None else "",
        trusts_any=bool(trusted),
    )


def _connections(
    settings: Settings,
    security: Security,
    store: DirectoryReader,
    bundles: Bundles | None,
    life: Life,
    audit: Audit,
    sockets: list[socket.socket],
) -> Connections:
    origins = Origins(settings.external_url, settings.trusted_proxy)
    guard = Guard(security.policy, security.authentication, certificate_identity, audit, origins)
    served: Store = ReadOnlyStore(store)
    if isinstance(store, DistributionStore) and not settings.read_only:
        served = store
    app = App(served, guard, life, _names(store, bundles), origins.prefix)
    tls = security.tls.context if security.tls is not None else None
    return Connections(HTTPServer(app, origins), sockets, tls, _limits(settings))


def _limits(settings: Settings) -> Limits:
    most = open_files.most_connections()
    if settings.max_connections is not None:
        if settings.max_connections > most:
            logger.warning("the limit on open files leaves room for %d connections", most)
        most = min(most, settings.max_connections)
    patience = Patience(settings.header_timeout, settings.stall_timeout, settings.vanished_timeout)
    return Limits(most, patience)


def _names(store: DirectoryReader, bundles: Bundles | None) -> NameResolver:
    if bundles is None:
        return identity
    from mayfly.storage.overlay import OverlayStore

    assert isinstance(store, OverlayStore)
    names, exists = bundles.names, store.has_repository
    return lambda repository, ns: names.resolve(repository, ns, exists)


@contextlib.asynccontextmanager
async def _background(
    settings: Settings,
    security: Security,
    this_run: Run,
    store: DirectoryReader,
    bundles: Bundles | None,
    audit: Audit,
) -> AsyncIterator[None]:
    """What goes on beside the requests."""
    tasks: list[asyncio.Future[None]] = [
        asyncio.ensure_future(audit.write()),
        asyncio.ensure_future(_give_signs_of_life(this_run)),
    ]
    if security.authentication is not None:
        # The first login would wait for this import otherwise.
        from mayfly.auth import signing

        tasks.append(in_thread(signing.preload))
    if security.tls is not None:
        tasks.append(asyncio.ensure_future(_reload_certificates(security)))
    if security.renew is not None:
        tasks.append(asyncio.ensure_future(_renew_certificate(security.renew)))
    if isinstance(store, DistributionStore) and not settings.read_only:
        if settings.upload_expiry is not None:
            purging = _purge_uploads(store, settings.upload_expiry)
            tasks.append(asyncio.ensure_future(purging))
        if settings.gc_interval is not None:
            collecting = _collect(store, settings.gc_interval, settings.gc_grace)
            tasks.append(asyncio.ensure_future(collecting))
    if bundles is not None and bundles.unhashed:
        tasks.append(asyncio.ensure_future(_hash_bundles(bundles)))
    try:
        yield
    finally:
        _interrupt(store, bundles)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _give_signs_of_life(this_run: Run) -> None:
    while True:
        await asyncio.sleep(runs.SIGN_OF_LIFE_SECONDS)
        await in_thread(this_run.give_sign_of_life)


def _interrupt(store: DirectoryReader, bundles: Bundles | None) -> None:
    """End the threads that hash large content: they would hold up the end."""
    if bundles is not None:
        bundles.interrupt()
    if isinstance(store, DistributionStore):
        store.interrupt()


async def _renew_certificate(renew: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_HOUSEKEEPING_SECONDS)
        await in_thread(renew)


async def _reload_certificates(security: Security) -> None:
    assert security.tls is not None
    while True:
        await asyncio.sleep(_RELOAD_SECONDS)
        await in_thread(security.tls.reload_if_changed)


async def _purge_uploads(store: DistributionStore, expiry: float) -> None:
    while True:
        try:
            purged = await in_thread(store.purge_uploads, expiry)
        except (OSError, StorageError) as error:
            logger.warning("stale upload sessions could not be dropped: %s", error)
        else:
            if purged:
                logger.info("dropped %d upload sessions idle for %s", purged, exact(expiry))
        await asyncio.sleep(min(_HOUSEKEEPING_SECONDS, expiry / 2))


async def _collect(store: DistributionStore, interval: float, grace: float) -> None:
    while True:
        await asyncio.sleep(interval)
        try:
            found = await in_thread(store.collect, grace)
        except (OSError, StorageError) as error:
            logger.warning("garbage collection failed: %s", error)
        else:
            if found.blobs:
                logger.info("freed %s that no image refers to", format_size(found.size))
            if found.unread:
                logger.warning(
                    "%d manifests cannot be read, their repositories keep all blobs: %s, ... "
                    "(mayfly verify finds the damage)",
                    len(found.unread),
                    found.unread[0],
                )


async def _hash_bundles(bundles: Bundles) -> None:
    """Read what old docker archives do not say of themselves; then their images are served."""
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
