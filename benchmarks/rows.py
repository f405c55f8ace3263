"""The rows: one kind of work each, measured in the same way for every registry that can do it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks import catalog, copying, load, looking, making
from benchmarks.bench import CPU, DURABLE, PEAK, RATE, Bench, Figures, sync_tree
from benchmarks.load import Blob, Data, Result
from benchmarks.peers import COPIERS, MAKERS, REGISTRIES, Peer
from benchmarks.server import Server

GIB = 2**30

LOAD_CPU = "load CPU s/GiB"
REQUESTS = "requests/s"
REQUEST_CPU = "CPU us/request"
LOAD_REQUEST_CPU = "load CPU us/request"
HANDSHAKES = "handshakes/s"
HANDSHAKE_CPU = "CPU us/handshake"
LOAD_HANDSHAKE_CPU = "load CPU us/handshake"
CORES = "server cores"
"""CPU seconds of the server for each second of the clock."""

P50 = "p50 ms"
P99 = "p99 ms"
START = "start ms"
START_CPU = "start CPU ms"
SIZE = "program MiB"

NODES = 50
CONNECTIONS = 3
"""Connections of each node: docker and containerd fetch three layers at once."""

STORM_CLIENTS = 32
STORM_SECONDS = 2.0

HANDSHAKE_CLIENTS = 8

Measure = Callable[[Bench, Peer, bool], Figures]
"""Measure a registry; True in the first round, when content is verified, too (untimed)."""


@dataclass(frozen=True)
class Row:
    """One kind of work.

    Attributes:
        main: the figure that registries are compared by.
        peers: by name, those that can do it.
    """

    id: str
    title: str
    main: str
    measure: Measure
    peers: tuple[str, ...]
    tls: bool = False


def _push(
    kind: str,
    clients: int,
    blobs: Callable[[Data], list[Blob]],
    tls: bool,
    bench: Bench,
    peer: Peer,
    verify: bool,
) -> Figures:
    chosen = blobs(bench.data)
    os.sync()  # so that this registry does not wait for writes of others
    with bench.empty() as root:
        with bench.serve(peer, root, tls=tls) as server:
            authorization = bench.login(server, peer)
            before = server.cpu_seconds()
            result = bench.push(server, authorization, kind, chosen, clients)
            figures = _transfer(server, result, before)
            syncing = sync_tree(root)
            if verify:
                bench.pull(server, authorization, chosen, verify=True)
        figures[DURABLE] = result.bytes / load.MIB / (result.seconds + syncing)
        bench.ciphers[peer.name] = result.cipher or bench.ciphers.get(peer.name, "")
    return figures


def _pull(repeat: int, tls: bool, bench: Bench, peer: Peer, verify: bool) -> Figures:
    with bench.serve_stored(peer, tls=tls) as (server, authorization):
        before = server.cpu_seconds()
        blobs = bench.data.large
        result = bench.pull(server, authorization, blobs, clients=2, repeat=repeat)
        figures = _transfer(server, result, before)
        if verify:
            bench.pull(server, authorization, blobs, verify=True)
    bench.ciphers[peer.name] = result.cipher or bench.ciphers.get(peer.name, "")
    return figures


def _fleet(tls: bool, bench: Bench, peer: Peer, verify: bool) -> Figures:
    with bench.serve_stored(peer, tls=tls) as (server, authorization):
        return _fleet_on(server, authorization, bench, verify)


def _bundle_fleet(verified: bool, bench: Bench, peer: Peer, verify: bool) -> Figures:
    bundle = bench.bundle()
    with bench.empty() as root, bench.serve(peer, root, bundle=bundle) as server:
        authorization = bench.login(server, peer)
        if verified:
            bench.pull(server, authorization, bench.data.layers)
        return _fleet_on(server, authorization, bench, verify)


def _fleet_on(server: Server, authorization: str, bench: Bench, verify: bool) -> Figures:
    layers = bench.data.layers
    before = server.cpu_seconds()
    result = bench.pull(
        server,
        authorization,
        layers,
        clients=NODES,
        parallel=CONNECTIONS,
        first=f"/v2/{load.REPOSITORY}/manifests/image",
    )
    figures = _transfer(server, result, before)
    if verify:
        bench.pull(server, authorization, layers, verify=True)
    return figures


def _pages(bench: Bench, peer: Peer, verify: bool) -> Figures:
    def fleet(server: Server, authorization: str) -> Figures:
        return _fleet_on(server, authorization, bench, False)

    return looking.measure(fleet, bench, peer, verify)


def _manifest(method: str, tag: str | None, bench: Bench, peer: Peer, verify: bool) -> Figures:
    with bench.serve_stored(peer) as (server, authorization):
        path = f"/v2/{load.REPOSITORY}/manifests/{tag or bench.image_digest}"
        figures = _storm(server, authorization, method, path)
        if verify and peer.keeps != "nothing":
            load.check_manifest(server, authorization, bench.image_digest)
    return figures


def _base(bench: Bench, peer: Peer, verify: bool) -> Figures:
    with bench.serve_stored(peer) as (server, authorization):
        return _storm(server, authorization, "GET", "/v2/")


def _small_blob(bench: Bench, peer: Peer, verify: bool) -> Figures:
    with bench.serve_stored(peer) as (server, authorization):
        small = bench.data.small
        path = f"/v2/{load.REPOSITORY}/blobs/{small.digest}"
        figures = _storm(server, authorization, "GET", path)
        if verify:
            bench.pull(server, authorization, [small], verify=True)
    return figures


def _tokens(bench: Bench, peer: Peer, verify: bool) -> Figures:
    with bench.serve_stored(peer) as (server, _):
        path = load.token_path(f"repository:{load.REPOSITORY}:pull")
        return _storm(server, load.BASIC, "GET", path)


def _handshakes(bench: Bench, peer: Peer, verify: bool) -> Figures:
    with bench.serve_stored(peer, tls=True) as (server, _):
        cpu = server.cpu_seconds()
        result = load.run(
            server, "handshakes", "", clients=HANDSHAKE_CLIENTS, seconds=STORM_SECONDS
        )
        cpu = server.cpu_seconds() - cpu
        figures = {
            HANDSHAKES: result.count / result.seconds,
            HANDSHAKE_CPU: cpu / result.count * 1e6,
            LOAD_HANDSHAKE_CPU: result.cpu_seconds / result.count * 1e6,
            CORES: cpu / result.seconds,
            P50: result.p50_ms,
            P99: result.p99_ms,
            PEAK: server.peak_mib(),
        }
    bench.ciphers[peer.name] = result.cipher or bench.ciphers.get(peer.name, "")
    return figures


def _start(auth: bool, tls: bool, probe: str, bench: Bench, peer: Peer, verify: bool) -> Figures:
    with bench.serve(peer, bench.stored(peer), auth=auth, tls=tls, probe=probe) as server:
        return {
            START: server.ready_seconds * 1000,
            START_CPU: server.ready_cpu_seconds * 1000,
            PEAK: server.peak_mib(),
            **({} if peer.bytes is None else {SIZE: peer.bytes / 2**20}),
        }


def _storm(server: Server, authorization: str, method: str, path: str) -> Figures:
    cpu = server.cpu_seconds()
    result = load.run(
        server,
        "requests",
        authorization,
        method=method,
        path=path,
        clients=STORM_CLIENTS,
        seconds=STORM_SECONDS,
    )
    cpu = server.cpu_seconds() - cpu
    return {
        REQUESTS: result.count / result.seconds,
        REQUEST_CPU: cpu / result.count * 1e6,
        LOAD_REQUEST_CPU: result.cpu_seconds / result.count * 1e6,
        CORES: cpu / result.seconds,
        P50: result.p50_ms,
        P99: result.p99_ms,
        PEAK: server.peak_mib(),
    }


def _transfer(server: Server, result: Result, cpu_before: float) -> Figures:
    gib = result.bytes / GIB
    cpu = server.cpu_seconds() - cpu_before
    return {
        RATE: result.bytes / load.MIB / result.seconds,
        CPU: cpu / gib,
        LOAD_CPU: result.cpu_seconds / gib,
        CORES: cpu / result.seconds,
        P50: result.p50_ms,
        P99: result.p99_ms,
        PEAK: server.peak_mib(),
    }


def _large(data: Data) -> list[Blob]:
    return data.large


def _middle(data: Data) -> list[Blob]:
    return data.middle


_PULLERS = ("mayfly", *REGISTRIES, "bare")
_PUSHERS = ("mayfly", "mayfly-nosync", *REGISTRIES, "bare")
_MAKERS = ("mayfly", "mayfly-nosync", *MAKERS)
_COPIERS = ("mayfly", *COPIERS)
_OWN = ("mayfly",)

_ALL = (
    Row(
        "push-patch",
        "push 2 x 256 MiB, streamed PATCH as docker does, 1 client",
        RATE,
        partial(_push, "push-patch", 1, _large, False),
        _PUSHERS,
    ),
    Row(
        "push-patch-4",
        "push 8 x 64 MiB, streamed PATCH, 4 clients",
        RATE,
        partial(_push, "push-patch", 4, _middle, False),
        _PUSHERS,
    ),
    Row(
        "push-put",
        "push 2 x 256 MiB, PUT with Content-Length as containerd and crane do, 1 client",
        RATE,
        partial(_push, "push-put", 1, _large, False),
        _PUSHERS,
    ),
    Row(
        "push-tls",
        "push 2 x 256 MiB over TLS, streamed PATCH, 1 client",
        RATE,
        partial(_push, "push-patch", 1, _large, True),
        _PUSHERS,
        tls=True,
    ),
    Row(
        "pull-http",
        "pull 2 x 256 MiB four times, 2 clients",
        RATE,
        partial(_pull, 4, False),
        _PULLERS,
    ),
    Row(
        "pull-tls",
        "pull 2 x 256 MiB twice over TLS, 2 clients",
        RATE,
        partial(_pull, 2, True),
        _PULLERS,
        tls=True,
    ),
    Row(
        "fleet-http",
        "50 nodes pull a manifest and 6 layers of 16 MiB, 3 at once each",
        RATE,
        partial(_fleet, False),
        _PULLERS,
    ),
    Row("fleet-tls", "the same over TLS", RATE, partial(_fleet, True), _PULLERS, tls=True),
    Row(
        "fleet-bundle",
        "the same from a bundle where it lies, which is hashed meanwhile",
        RATE,
        partial(_bundle_fleet, False),
        _OWN,
    ),
    Row(
        "fleet-verified",
        "the same from a bundle whose layers were pulled before",
        RATE,
        partial(_bundle_fleet, True),
        _OWN,
    ),
    Row("pages", looking.TITLE, looking.KEPT, _pages, _OWN),
    Row(
        "manifest-get",
        "GET a manifest by digest, 32 connections",
        REQUESTS,
        partial(_manifest, "GET", None),
        _PULLERS,
    ),
    Row(
        "manifest-tag",
        "GET a manifest by tag, 32 connections",
        REQUESTS,
        partial(_manifest, "GET", "image"),
        _PULLERS,
    ),
    Row(
        "manifest-head",
        "HEAD a manifest by tag, 32 connections",
        REQUESTS,
        partial(_manifest, "HEAD", "image"),
        _PULLERS,
    ),
    Row(
        "small-blob",
        "GET a blob of 4 KiB, 32 connections",
        REQUESTS,
        _small_blob,
        _PULLERS,
    ),
    Row("base", "GET /v2/, 32 connections", REQUESTS, _base, _PULLERS),
    Row("tokens", "tokens for known credentials, 32 connections", REQUESTS, _tokens, _OWN),
    Row(
        "handshakes",
        "full TLS handshakes, each on a new connection that ends after it, 8 at once",
        HANDSHAKES,
        _handshakes,
        _PULLERS,
        tls=True,
    ),
    Row(
        "start",
        "exec to the first 200 of /v2/, no users",
        START,
        partial(_start, False, False, "/v2/"),
        (*_OWN, "mayfly-file", *REGISTRIES, "bare"),
    ),
    Row(
        "start-secure",
        "exec to the first 200 of /readyz over TLS, with users",
        START,
        partial(_start, True, True, "/readyz"),
        (*_OWN, "mayfly-file"),
        tls=True,
    ),
    Row(
        "catalog",
        "10,000 repositories of 10 tags against 100: pages of 100, and the start",
        catalog.PAGE,
        catalog.measure,
        ("mayfly", "docker-registry", "distribution"),
    ),
    Row(
        "create-http",
        making.TITLE,
        RATE,
        partial(making.measure, "distribution", False),
        _MAKERS,
    ),
    Row(
        "create-tls",
        "the same over TLS",
        RATE,
        partial(making.measure, "distribution", True),
        _MAKERS,
    ),
    Row(
        "create-olareg",
        "the same from olareg",
        RATE,
        partial(making.measure, "olareg", False),
        _MAKERS,
    ),
    Row(
        "copy",
        f"{copying.TITLE} to olareg",
        RATE,
        partial(copying.measure, "olareg"),
        _COPIERS,
    ),
    Row(
        "copy-synced",
        "the same to distribution, which syncs each blob",
        RATE,
        partial(copying.measure, "distribution"),
        _COPIERS,
    ),
)

ROWS = {row.id: row for row in _ALL}
