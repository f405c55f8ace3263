"""The registry behind a real socket in the test's own event loop: fixtures for a `conftest.py`."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from mayfly.auth.policy import OPEN
from mayfly.registry.access.audit import Audit
from mayfly.registry.access.guard import Guard
from mayfly.registry.api.app import App
from mayfly.registry.api.context import AS_WRITTEN, NO_MIRROR, Mirror, NameResolver
from mayfly.registry.http.file_sender import FileSender
from mayfly.registry.http.send import ContentSender
from mayfly.registry.pki.context import ServerTLS
from mayfly.registry.state.scripts import Scripts
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.interface import Store
from tests.support.certificates import self_signed
from tests.support.lifecycle_hooks import lifecycle_hooks
from tests.support.on_socket import Served
from tests.support.secured import Secured, secured
from tests.support.settings import settings_with
from tests.support.wire import TIMEOUT, Wire

Client = TestClient[Any, Any]


def open_to_everyone(
    store: Store,
    names: NameResolver = AS_WRITTEN,
    mirror: Mirror = NO_MIRROR,
    scripts: Scripts | None = None,
    **settings: Any,
) -> App:
    """A registry over a store, without users, and with some settings."""
    guard = Guard(lambda: OPEN, None, lambda http: None, Audit())
    own, hooks = settings_with(**settings), lifecycle_hooks()
    return App(store, guard, hooks, ContentSender(), own, names, mirror=mirror, scripts=scripts)


@pytest.fixture
def store(root: Path) -> Iterator[DistributionStore]:
    """The store that the registry serves."""
    made = DistributionStore(root)
    yield made
    made.close()


ClientWith = Callable[..., Awaitable[Client]]
"""See `client_with`."""


@pytest.fixture
def client_with(
    store: DistributionStore, aiohttp_client: Callable[..., Awaitable[Client]]
) -> ClientWith:
    """Make a client of a registry with these settings, by their keys; others have their default."""

    def make(**settings: Any) -> Awaitable[Client]:
        return aiohttp_client(Served(open_to_everyone(store, **settings)), auto_decompress=False)

    return make


@pytest.fixture
async def client(client_with: ClientWith) -> Client:
    """A client of a registry that runs for this test."""
    return await client_with()


@pytest.fixture
async def wire(client: Client) -> AsyncIterator[Wire]:
    """The same registry, byte by byte."""
    assert client.server.port is not None
    made = Wire(client.server.port)
    yield made
    made.hang_up()


@pytest.fixture
def may_log_errors(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """For a test that makes the server fail on purpose: it looks at the log by itself."""
    return caplog


@pytest.fixture(autouse=True)
def clean_log(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing a client does makes the server log an error or a traceback."""
    yield
    if "may_log_errors" in request.fixturenames:
        return
    records = [r for when in ("setup", "call") for r in caplog.get_records(when)]
    loud = [r for r in records if r.levelno >= logging.ERROR or r.exc_info]
    assert [f"{r.name}: {r.getMessage()} {r.exc_info}" for r in loud] == []


@pytest.fixture
def handshake_seconds() -> float:
    """How long a handshake with `server` may take; for tests to override."""
    return TIMEOUT


@pytest.fixture
def files() -> FileSender:
    """Sends the files of `server`; for tests to override."""
    return FileSender()


@pytest.fixture
async def server(
    store: DistributionStore, tmp_path: Path, handshake_seconds: float, files: FileSender
) -> AsyncIterator[Secured]:
    """The same store behind TLS, in the way of `mayfly serve`."""
    pair = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=pair.certificate)
    context = ServerTLS(pair.certificate, pair.key).context
    async with secured(store, context, trust, handshake_seconds, files) as made:
        yield made
