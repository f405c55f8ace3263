"""The composition root: lock the state directory, open the store, set up security, bind, serve.

Concrete classes are made here and in the commands; all other modules see Protocols. The command
line passes the settings, `serving` runs the server that is made here, `housekeeping` the work
beside the requests.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mayfly.registry import log
from mayfly.registry.access.audit import Audit
from mayfly.registry.access.guard import Guard
from mayfly.registry.access.security import Security, certificate_identity, secure
from mayfly.registry.api.app import App, malformed_request
from mayfly.registry.api.context import AS_WRITTEN, NO_MIRROR, Mirror, NameResolver
from mayfly.registry.clock import SystemClock
from mayfly.registry.control.readiness import announced, login_to
from mayfly.registry.control.report import Corruption, storage_used
from mayfly.registry.coverage.store_queries import ReaderQueries
from mayfly.registry.coverage.upgrade_lists import read_images, read_nodes
from mayfly.registry.errors import LifetimeError
from mayfly.registry.exit_codes import exit_by_signal
from mayfly.registry.housekeeping import housekeeping
from mayfly.registry.http.bind import address_of, bound_sockets
from mayfly.registry.http.connection import HTTPServer
from mayfly.registry.http.connections import Connections, Limits
from mayfly.registry.http.origin import Origins
from mayfly.registry.http.send import ContentSender
from mayfly.registry.http.tcp_info import TCPInfo
from mayfly.registry.http.watchdog import Timeouts
from mayfly.registry.lifecycle.plan import RunPlan
from mayfly.registry.process import open_files
from mayfly.registry.process.child import check_command
from mayfly.registry.process.systemd import Notifier, take_sockets
from mayfly.registry.serving import Lifecycle, RunningServer, nothing_recorded
from mayfly.registry.settings.choices import OnCorrupt, PrefetchIncomplete, Until, Via
from mayfly.registry.settings.errors import ConfigError, unusable
from mayfly.registry.settings.readers import Address
from mayfly.registry.settings.settings import Settings
from mayfly.registry.state import runs
from mayfly.registry.state.directory import StateDir
from mayfly.registry.state.runs import Run
from mayfly.registry.state.scripts import Scripts
from mayfly.registry.version import VERSION
from mayfly.storage.directory.layout import BASE
from mayfly.storage.directory.reader import DirectoryReader
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.files import Attributes, replace_file
from mayfly.storage.interface import Reader, Store
from mayfly.storage.readonly import ReadOnlyStore
from mayfly.storage.reference import canonical_host
from mayfly.storage.text import counted

if TYPE_CHECKING:
    from mayfly.registry.evictions import Evictions
    from mayfly.registry.nodes.carrier import Carrier
    from mayfly.registry.nodes.prefetch import Prefetch
    from mayfly.registry.state.private import Login
    from mayfly.registry.telemetry.metrics import Metrics
    from mayfly.registry.telemetry.recording import Recording
    from mayfly.registry.upstream.health import UpstreamRecord
    from mayfly.storage.bundle.open import Bundles
    from mayfly.storage.bundle.verified import BundleFault
    from mayfly.storage.digest import Digest
    from mayfly.storage.overlay import OverlayStore
    from mayfly.storage.upkeep.maintainable import Maintainable

logger = logging.getLogger("mayfly")

_MAX_SCRAPERS = 16
"""Connections to the address of metrics at a time."""

WORKER_THREADS = 16
"""Threads for blocking storage calls; each may hold a batch of an upload."""

_LISTED = "images.txt"
"""In the state directory: the images of ``--until-pulled``, unless a plain list names them."""


def run(settings: Settings, command: tuple[str, ...] = ()) -> int:
    """Serve until a condition ends the server.

    Args:
        settings: of the server.
        command: of `mayfly run`; the server runs as long as it does.

    Returns:
        The exit code; minus a signal's number if the command died by it.

    Raises:
        ConfigError: the settings cannot be carried out on this host.
        LifetimeError: the command cannot be started.
    """
    plan = _plan(settings, command)
    _check(settings, plan)
    open_files.raise_limit()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Until `serving` installs its own handlers: a start that is interrupted also cleans up.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, exit_by_signal)
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(StateDir.claim(settings.state_dir))
        this_run = stack.enter_context(_begin_run(settings))
        plan = plan._replace(elapsed=this_run.elapsed)
        root = stack.enter_context(_root(settings))
        bundles = _open_bundles(settings)
        if bundles is not None:
            stack.enter_context(contextlib.closing(bundles))
        plan = plan._replace(until_pulled=_listed(settings, bundles))
        stores = stack.enter_context(_open_store(settings, root, bundles))
        if bundles is not None:
            _warn_of_incomplete_images(bundles, stores.seen)
        # A signal handler that raised while the event loop is made would leave a part of one.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            runner = stack.enter_context(asyncio.Runner())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return runner.run(_serve(settings, plan, state, this_run, root, stores, bundles))


def _abandon(loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor) -> None:
    """Do not wait for the threads, as closing the loop would.

    Killing them is safe: no content becomes visible before it is complete.
    """
    threads.shutdown(wait=False, cancel_futures=True)
    loop.set_default_executor(ThreadPoolExecutor(1))


def _plan(settings: Settings, command: tuple[str, ...]) -> RunPlan:
    return RunPlan(
        drain_timeout=settings.drain_timeout,
        idle_timeout=settings.idle_timeout,
        unused_timeout=settings.unused_timeout,
        max_lifetime=settings.max_lifetime,
        until_all=settings.until is Until.ALL,
        until_stop=settings.until is Until.STOP,
        until_pulled=settings.until_pulled,
        nodes=read_nodes(settings.nodes) if settings.nodes is not None else None,
        accept=settings.accept,
        node_identity=settings.node_identity,
        stop_file=settings.stop_file,
        exit_with_parent=settings.exit_with_parent,
        exit_on_stdin_eof=settings.exit_on_stdin_eof,
        stop_on_corrupt=settings.on_corrupt is OnCorrupt.STOP,
        prefetch=settings.prefetch is not Via.NONE,
        prefetch_must_complete=settings.prefetch_incomplete is PrefetchIncomplete.STOP,
        report=settings.report,
        command=command,
    )


def _check(settings: Settings, plan: RunPlan) -> None:
    """Find causes of a failing start before it makes a CA, users or files.

    Raises:
        ConfigError: settings do not go together, or the list of images cannot be used.
        LifetimeError: the command is not there.
    """
    plan.check()
    _check_upstreams(settings)
    if _keeps_space(settings):
        from mayfly.registry.evictions import space_rules

        # Read again by `_evictions`.
        space_rules(settings.gc_high, settings.gc_low, settings.protect)
        if settings.read_only:
            raise ConfigError("--gc-high evicts from the root: leave --read-only out")
    if plan.until_pulled is not None:
        from mayfly.registry.upstream.pulled import ALL, images_to_pull

        # Read again by `Lifecycle`; the images of `all` are known once the bundles are open.
        if plan.until_pulled != ALL and images_to_pull(plan.until_pulled, None) is None:
            read_images(plan.until_pulled)
    if plan.prefetch and plan.nodes is not None:
        _carrier(settings).check(plan.nodes.names)
    if plan.command:
        check_command(plan.command[0], os.environ)


def _check_upstreams(settings: Settings) -> None:
    """Check that the settings of upstreams go together.

    Raises:
        ConfigError: they do not.
    """
    hosts = [canonical_host(one.host) for one in settings.upstream]
    default = settings.upstream_default
    if default is not None and canonical_host(default) not in hosts:
        raise ConfigError(f"--upstream-default {default}: also give --upstream {default}")
    if len(set(hosts)) < len(hosts):
        raise ConfigError("--upstream: each HOST can be given once")
    for name, given in (("auth", settings.upstream_auth), ("ca", settings.upstream_ca)):
        if given is None:
            continue
        if not hosts:
            raise ConfigError(f"--upstream-{name} is of no use without --upstream")
        try:
            given.open("rb").close()
        except OSError as error:
            raise ConfigError(f"--upstream-{name} {given}: {error.strerror}") from None
    if hosts and settings.read_only:
        raise ConfigError("--upstream keeps fetched content in the root: leave --read-only out")


def _keeps_space(settings: Settings) -> bool:
    return any(one is not None for one in (settings.gc_high, settings.gc_low, settings.protect))


def _begin_run(settings: Settings) -> Run:
    inputs = runs.inputs_of(settings.bundles, settings.until_pulled, settings.nodes)
    try:
        return Run.begin(settings.state_dir, settings.max_lifetime, inputs, settings.signing_key)
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
    # Imported only for bundles: a tenth of the start.
    from mayfly.storage.bundle.diagnostics import Code
    from mayfly.storage.bundle.open import open_bundles

    bundles = open_bundles(settings.bundles, settings.state_dir)
    for notice in bundles.notices:
        level = logging.INFO if notice.code is Code.MADE_BY else logging.WARNING
        log.event(level, "bundle", str(notice), **notice.to_json())
    for path, names in bundles.names.ambiguous().items():
        logger.warning("%s is in several upstreams; ask for %s", path, " or ".join(names))
    return bundles


def _listed(settings: Settings, bundles: Bundles | None) -> Path | None:
    """The file of the images that nodes must pull: the operator's, or one made of it."""
    if settings.until_pulled is None:
        return None
    from mayfly.registry.upstream.pulled import images_to_pull

    names = images_to_pull(settings.until_pulled, bundles)
    if names is None:
        return settings.until_pulled
    made = settings.state_dir / _LISTED
    replace_file(made, "".join(f"{name}\n" for name in names).encode(), Attributes(0o600))
    return made


def _warn_of_incomplete_images(bundles: Bundles, store: Reader) -> None:
    """Warn of images that neither the bundles nor the store have in full."""
    from mayfly.storage.reading import find_blob

    def has(repository: str, digest: Digest) -> bool:
        return find_blob(store, repository, digest) is not None

    for gap in bundles.lacking(has):
        log.event(logging.WARNING, "incomplete_image", str(gap), **gap.to_json())


@dataclass(frozen=True)
class _Stores:
    """The store of a server, by the interfaces that its parts need.

    Attributes:
        seen: as clients see it, to read.
        served: takes requests; read-only if it is served so.
        mirror: fetches content that is not here.
        maintained: the same, if it takes changes.
        names: the repository that a request means.
        upstreams: returns the use of each upstream.
    """

    seen: Reader
    served: Store
    maintained: Maintainable | None
    names: NameResolver
    mirror: Mirror = NO_MIRROR
    upstreams: Callable[[], list[UpstreamRecord]] = list


@contextlib.contextmanager
def _open_store(settings: Settings, root: Path, bundles: Bundles | None) -> Iterator[_Stores]:
    if settings.read_only and bundles is None:
        if not root.is_dir():
            raise ConfigError(f"root {root}: there is no such directory to serve read-only")
        reader = DirectoryReader(root)
        yield _Stores(reader, ReadOnlyStore(reader), None, AS_WRITTEN)
        return
    try:
        upper = DistributionStore(
            root, allow_sparse=settings.allow_sparse, reserve=settings.reserve
        )
    except OSError as error:
        raise unusable("--root", root, error) from error
    with contextlib.closing(upper):
        if bundles is None:
            yield _stores(settings, upper, AS_WRITTEN)
            return
        from mayfly.storage.bundle.names import ServedNames
        from mayfly.storage.overlay import OverlayStore

        names = ServedNames(bundles.names, upper.has_repository)
        yield _stores(settings, OverlayStore(upper, bundles.layer), names)


def _stores(
    settings: Settings, store: DistributionStore | OverlayStore, names: NameResolver
) -> _Stores:
    if settings.read_only:
        return _Stores(store, ReadOnlyStore(store), None, names)
    return _Stores(store, store, store, names)


@contextlib.asynccontextmanager
async def _mirroring(
    settings: Settings, stores: _Stores, bundles: Bundles | None, evictions: Evictions | None
) -> AsyncIterator[_Stores]:
    """Put the upstreams beneath a store.

    Raises:
        ConfigError: the CAs cannot be read.
    """
    if not settings.upstream:
        yield stores
        return
    assert stores.maintained is not None  # `_check_upstreams`
    # Imported only for upstreams: a client takes a third of the start.
    from mayfly.registry.upstream import mirror as mirrors
    from mayfly.registry.upstream.health import UpstreamHost
    from mayfly.registry.upstream.names import UpstreamNames
    from mayfly.registry.upstream.registries import Reach, Registries
    from mayfly.registry.upstream.store import MirrorStore

    urls = {canonical_host(one.host): one.url for one in settings.upstream}
    login = settings.upstream_auth
    reach = Reach(
        {host: url for host, url in urls.items() if url is not None},
        ca=settings.upstream_ca,
        logins=() if login is None else (login,),
    )
    try:
        registries = Registries(reach, mirrors.CONNECTIONS)
    except OSError as error:  # also ssl.SSLError
        raise ConfigError(
            f"--upstream-ca {settings.upstream_ca}: not a PEM file of certificates: "
            f"{error.strerror or error}"
        ) from None
    default = settings.upstream_default
    names = UpstreamNames(
        urls,
        None if default is None else canonical_host(default),
        stores.names,
        bundles.names if bundles is not None else None,
    )
    async with registries:
        hosts = [UpstreamHost(registries.at(host, mirrors.ATTEMPTS)) for host in urls]
        async with mirrors.Mirror(
            stores.maintained,
            names,
            hosts,
            settings.upstream_ttl,
            evictions.make_room if evictions is not None else None,
        ) as mirror:
            served = MirrorStore(stores.served, mirror)
            yield replace(
                stores, served=served, names=names, mirror=mirror, upstreams=mirror.records
            )


def _evictions(settings: Settings, stores: _Stores, lifecycle: Lifecycle) -> Evictions | None:
    if not _keeps_space(settings):
        return None
    # Imported only for a mirror whose space is kept.
    from mayfly.registry.evictions import Evictions, space_rules

    rules = space_rules(settings.gc_high, settings.gc_low, settings.protect)
    if rules is None or stores.maintained is None:
        return None
    in_use = lifecycle.observer.pulled_now
    return Evictions(stores.maintained, rules, settings.gc_grace, in_use)


async def _serve(
    settings: Settings,
    plan: RunPlan,
    state: StateDir,
    this_run: Run,
    root: Path,
    stores: _Stores,
    bundles: Bundles | None,
) -> int:
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor(WORKER_THREADS, "storage")
    loop.set_default_executor(threads)
    with contextlib.ExitStack() as stack:
        stack.callback(_abandon, loop, threads)
        sockets = [taken.socket for taken in take_sockets(os.environ)]
        sockets = sockets or stack.enter_context(bound_sockets(settings.listen))
        addresses = [address_of(bound) for bound in sockets]
        # The bound addresses count, not the setting: systemd's sockets may listen anywhere.
        settings = replace(settings, listen=tuple(addresses), root=root)
        recording = _recording(settings, this_run, addresses[0])
        audit = Audit(recording.put if recording is not None else None)
        security = stack.enter_context(secure(settings, this_run))
        login = login_to(settings, security, addresses[0])
        lifecycle = Lifecycle(
            plan,
            state,
            ReaderQueries(stores.seen),
            SystemClock(),
            own_hosts=(login.host, *map(str, addresses)),
            is_shared=security.is_shared,
            notifier=Notifier.take(os.environ),
        )
        if security.authentication is None:
            lifecycle.observer.nodes.without_credentials()
        if plan.nodes is not None:
            _check_proxies(settings, lifecycle)
        if bundles is not None:
            _watch_bundles(bundles, lifecycle, recording)
        evictions = _evictions(settings, stores, lifecycle)
        metrics = _metrics(settings, lifecycle, audit)
        scripts = Scripts(settings.state_dir)
        async with (
            housekeeping(
                settings, security, this_run, stores.maintained, bundles, audit, evictions, scripts
            ),
            recording.running(audit.finish) if recording is not None else contextlib.nullcontext(),
            _mirroring(settings, stores, bundles, evictions) as stores,
            _metrics_served(settings, metrics),
        ):
            server = RunningServer(
                _connections(
                    settings,
                    security,
                    stores,
                    lifecycle,
                    audit,
                    recording,
                    metrics,
                    sockets,
                    scripts,
                ),
                login,
                announced(settings, security, login, plan.nodes.names if plan.nodes else ()),
                # Not the root itself: a state directory may lie in it.
                measure_storage=lambda: storage_used(root / BASE),
                denied=audit.refusals,
                upstreams=stores.upstreams,
                sources=tuple(path.name for path in settings.bundles),
                ambiguous=bundles.names.ambiguous() if bundles is not None else {},
                cleanup_paths=(root,) if settings.ephemeral else (),
                end_recording=recording.end if recording is not None else nothing_recorded,
                prefetch=_prefetch(settings, plan, security, login) if plan.prefetch else None,
            )
            return await _run(lifecycle, server, this_run)


def _carrier(settings: Settings) -> Carrier:
    """How ``run --prefetch`` reaches nodes."""
    from mayfly.registry.nodes.pods import Pods
    from mayfly.registry.nodes.ssh import SSH

    return SSH(settings.ssh_config) if settings.prefetch is Via.SSH else Pods()


def _prefetch(settings: Settings, plan: RunPlan, security: Security, login: Login) -> Prefetch:
    """The prefetch of ``run --prefetch``.

    Raises:
        ConfigError: nodes could not prove anything, or a name cannot stand in their script.
    """
    from mayfly.registry.nodes.prefetch import Prefetch
    from mayfly.registry.nodes.proof import send_proof
    from mayfly.registry.nodes.script import images_of, node_script, with_mirrors
    from mayfly.registry.nodes.target import NodeCredential, Target, parse
    from mayfly.registry.pki.errors import TrustError

    assert plan.until_pulled is not None
    assert plan.nodes is not None
    if security.authentication is None:
        raise ConfigError(
            "--prefetch needs users, since nodes prove their images by credentials of their "
            "own: give --auth auto"
        )
    try:
        ca = login.ca.read_bytes() if login.ca is not None else None
        target = parse(login.url, ca)
        listed = read_images(plan.until_pulled)
        images = images_of([image.text for image in listed], target.registry)
        target = with_mirrors(target, images)
    except TrustError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{login.ca}: {error.strerror}") from None

    def of_node(node: str) -> Target:
        made = security.node_credential(node)
        return replace(target, credential=NodeCredential(made.name, made.password))

    return Prefetch(
        plan.nodes.names,
        tuple(image.reference for image in images),
        lambda node: node_script(of_node(node), node, images),
        _carrier(settings),
        lambda node, proof: send_proof(of_node(node), node, proof),
    )


def _metrics(settings: Settings, lifecycle: Lifecycle, audit: Audit) -> Metrics | None:
    """The metrics of the server; None if they are off.

    Raises:
        ConfigError: the package for them is missing.
    """
    if settings.metrics is None:
        return None
    # Imported only where metrics are on.
    try:
        from mayfly.registry.telemetry.metrics import Metrics
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("prometheus_client"):
            raise
        raise ConfigError(
            "--metrics takes the package prometheus-client (pip install 'mayfly-registry[metrics]')"
        ) from None
    return Metrics(lambda: lifecycle.reading(audit.reasons), VERSION)


@contextlib.asynccontextmanager
async def _metrics_served(settings: Settings, metrics: Metrics | None) -> AsyncIterator[None]:
    """Serve metrics on an address of their own, if one is set.

    Raises:
        ConfigError: the address cannot be bound.
    """
    if metrics is None or not isinstance(settings.metrics, Address):
        yield
        return
    from mayfly.registry.api.metrics import MetricsApp

    with bound_sockets([settings.metrics], "--metrics") as sockets:
        limits = Limits(_MAX_SCRAPERS, _timeouts(settings))
        connections = Connections(HTTPServer(MetricsApp(metrics)), sockets, None, limits)
        connections.listeners.resume()
        url = f"http://{address_of(sockets[0])}/metrics"
        log.event(logging.INFO, "metrics", f"metrics at {url}", url=url)
        try:
            yield
        finally:
            await connections.listeners.close()
            await connections.close(0.0)


def _recording(settings: Settings, this_run: Run, address: Address) -> Recording | None:
    """The recording of the run; None if nothing is to be recorded."""
    if settings.audit is None and not settings.notify:
        return None
    # Imported only where something is recorded.
    from mayfly.registry.telemetry.recording import Recording

    return Recording(settings, this_run.id, str(address))


async def _run(lifecycle: Lifecycle, server: RunningServer, this_run: Run) -> int:
    """Serve, then end the run, except if this start failed to continue an earlier one."""
    this_run.keep()
    try:
        code = await lifecycle.run(server)
    except (ConfigError, LifetimeError):
        if not this_run.continued:
            this_run.end()
        raise
    this_run.end()
    return code


def _watch_bundles(bundles: Bundles, lifecycle: Lifecycle, recording: Recording | None) -> None:
    """Report and record content of bundles that turns out to be corrupt."""
    loop = asyncio.get_running_loop()

    def on_fault(fault: BundleFault, repositories: list[str], images: list[str]) -> None:
        # A thread that hashes may outlive the loop by a moment.
        with contextlib.suppress(RuntimeError):
            if recording is not None:
                loop.call_soon_threadsafe(recording.corrupt, str(fault.digest), fault.problem)
            loop.call_soon_threadsafe(
                lifecycle.on_corruption,
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

    bundles.watch(on_fault)


def _check_proxies(settings: Settings, lifecycle: Lifecycle) -> None:
    """Have coverage warn of proxies that hide the addresses of nodes."""
    external, trusted = settings.external_url, settings.trusted_proxy
    lifecycle.observer.nodes.behind_proxies(
        Origins(external, trusted).trusts,
        external.origin + external.prefix if external is not None else "",
        trusts_any=bool(trusted),
    )


def _connections(
    settings: Settings,
    security: Security,
    stores: _Stores,
    lifecycle: Lifecycle,
    audit: Audit,
    recording: Recording | None,
    metrics: Metrics | None,
    sockets: list[socket.socket],
    scripts: Scripts,
) -> Connections:
    origins = Origins(settings.external_url, settings.trusted_proxy)
    guard = Guard(security.policy, security.authentication, certificate_identity, audit, origins)
    put_event = recording.put if recording is not None and recording.takes_requests else None
    app = App(
        stores.served,
        guard,
        lifecycle,
        ContentSender(),
        settings,
        stores.names,
        origins.prefix,
        stores.mirror,
        put_event=put_event,
        scripts=scripts,
        metrics=metrics,
    )
    tls = security.tls.context if security.tls is not None else None
    server = HTTPServer(app, origins, malformed_request)
    if not TCPInfo.is_known():
        text = (
            "this kernel does not tell enough of connections (Linux does from 4.6 on): stalled "
            "clients are not disconnected"
        )
        log.event(logging.WARNING, "old_kernel", text)
    return Connections(server, sockets, tls, _limits(settings))


def _limits(settings: Settings) -> Limits:
    most = open_files.max_connections()
    if settings.max_connections is not None:
        if settings.max_connections > most:
            room = counted(most, "connection")
            logger.warning("the limit on open files leaves room for %s", room)
        most = min(most, settings.max_connections)
    return Limits(most, _timeouts(settings))


def _timeouts(settings: Settings) -> Timeouts:
    return Timeouts(settings.header_timeout, settings.stall_timeout, settings.vanished_timeout)
