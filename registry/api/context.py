"""The arguments of handlers, and the common parts of responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mayfly.auth.networks import network_of
from mayfly.registry.access.guard import Caller, Guard
from mayfly.registry.activity import Activity
from mayfly.registry.api.manifest_cache import ManifestCache
from mayfly.registry.coverage.observer import Observer, Peer
from mayfly.registry.coverage.pulls import Step
from mayfly.registry.http.errors import BodyIncomplete
from mayfly.registry.http.receive import Receiver
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.registry.http.send import ContentSender
from mayfly.registry.settings.settings import Settings
from mayfly.registry.state.scripts import Scripts
from mayfly.registry.threads import Client
from mayfly.storage.digest import Digest
from mayfly.storage.interface import Store

if TYPE_CHECKING:
    from mayfly.registry.api.status import StatusDocument
    from mayfly.registry.page.feed import Feed
    from mayfly.registry.telemetry.metrics import Metrics

SERVER = "mayfly"
COMMON_HEADERS = {"Server": SERVER, "Docker-Distribution-Api-Version": "registry/2.0"}
JSON = "application/json"

_BODY_SECONDS = 60
"""For a body that is read into memory."""


class NameResolver(Protocol):
    """Maps a requested repository and containerd's ``ns`` to the canonical repository."""

    def meant(self, repository: str, ns: str | None) -> str:
        """Return the name by tables alone: for a caller whose rights are not known yet.

        It takes the same time whatever the tables hold.
        """

    def resolve(self, repository: str, ns: str | None) -> str:
        """Return the canonical name; it may read the store.

        Raises:
            NameAmbiguous: the name stands for several repositories.
            NameInvalid: ``ns`` is no host.
        """


class NamesAsWritten:
    """`NameResolver` where there are no bundles: a name means itself."""

    def meant(self, repository: str, ns: str | None) -> str:
        return repository

    def resolve(self, repository: str, ns: str | None) -> str:
        return repository


AS_WRITTEN = NamesAsWritten()


class Mirror(Protocol):
    """Fetches missing content from the upstreams; `registry.upstream.mirror` implements it.

    Handlers call it before they ask the store, which then knows the upstream's content.
    """

    async def bring_manifest(
        self, client: Client, repository: str, reference: Digest | str
    ) -> None:
        """Have the store know a manifest, by digest or tag.

        Args:
            client: that asks; clients share each upstream. Nothing is waited for once it is gone.
            repository: its canonical name.
            reference: a digest or tag.

        Raises:
            ManifestUnknown: neither has it.
            UpstreamUnavailable: it cannot be had now.
            Interrupted: the server is stopping.
            ConnectionError: the client is gone.
        """

    async def bring_referrers(self, client: Client, repository: str, subject: Digest) -> None:
        """Have the store know the referrers of a manifest, as far as they can be had now.

        Args:
            client: see `bring_manifest`.
            repository: its canonical name.
            subject: the manifest.

        Raises:
            ConnectionError: the client is gone.
        """

    async def bring_blob(
        self, client: Client, repository: str, digest: Digest, *, head: bool
    ) -> None:
        """Have the store serve a blob, or know its size.

        Args:
            client: see `bring_manifest`.
            repository: its canonical name.
            digest: of the blob.
            head: whether only the size is wanted.

        Raises:
            BlobUnknown: neither has it.
            UpstreamUnavailable: it cannot be had now.
            Interrupted: the server is stopping.
            ConnectionError: the client is gone.
        """

    async def make_room(self, size: int) -> None:
        """Evict content of upstreams, as far as it makes room for ``size`` more bytes."""


class _NoMirror:
    """`Mirror` of a registry without upstreams."""

    async def bring_manifest(
        self, client: Client, repository: str, reference: Digest | str
    ) -> None:
        """Do nothing."""

    async def bring_referrers(self, client: Client, repository: str, subject: Digest) -> None:
        """Do nothing."""

    async def bring_blob(
        self, client: Client, repository: str, digest: Digest, *, head: bool
    ) -> None:
        """Do nothing."""

    async def make_room(self, size: int) -> None:
        """Evict nothing."""


NO_MIRROR: Mirror = _NoMirror()


class Admission(Protocol):
    """Refuses new work before the end; `registry.lifecycle.drain.Drain` implements it."""

    def admit(self, node: str, step: Step | None, repository: str, digest: Digest | None) -> None:
        """Let a request of a node pass, or raise the error that refuses it."""


class LifecycleHooks(Protocol):
    """The part of the lifetime that requests use; `registry.serving` implements it."""

    activity: Activity
    observer: Observer

    @property
    def drain(self) -> Admission:
        """Refuses requests that begin something new."""

    async def status(self) -> dict[str, Any]:
        """Return the state of the server and of its run (docs/commands.schema.json, "status")."""

    def feed(self) -> Feed:
        """Return the state as the rollout page follows it."""

    def stop(self, text: str) -> None:
        """End the server; ``text`` says why."""


class Context(NamedTuple):
    """The arguments of a handler. All but caller and peer are the same for every request.

    Attributes:
        mirror: fetches content that the store lacks.
        content: sends blobs and large manifests.
        receiver: takes the bodies of uploads.
        names: maps names in requests to repositories.
        scripts: of nodes, each for one download; None without a state directory.
        status: the state of the server as JSON.
        lifecycle: of the server.
        metrics: None where they are off.
        settings: of the server, for handlers that need one.
        caller: the authenticated caller, with the policy.
        peer: the caller as coverage and the report identify it.
        is_gone: whether the request's connection has ended.
    """

    store: Store
    mirror: Mirror
    manifests: ManifestCache
    guard: Guard
    content: ContentSender
    receiver: Receiver
    names: NameResolver
    observer: Observer
    scripts: Scripts | None
    status: StatusDocument
    lifecycle: LifecycleHooks
    metrics: Metrics | None
    settings: Settings
    caller: Caller
    peer: Peer
    is_gone: Callable[[], bool]

    @property
    def client(self) -> Client:
        """The client of the request; all of a user in one network are the same client."""
        return Client((self.peer.user, network_of(self.peer.address)), self.is_gone)

    def digest_of(self, repository: str, reference: Digest | str) -> Digest:
        """Quick. Return the digest of a manifest that is asked for by digest or tag.

        Raises:
            ManifestUnknown: the repository has no such tag.
            BundleConflict: bundles have different images at it.
        """
        return self.store.tag(repository, reference) if isinstance(reference, str) else reference


def answer(
    status: int = 200,
    body: bytes = b"",
    content_type: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return a complete response, with the headers that every response has."""
    found = COMMON_HEADERS | headers if headers else COMMON_HEADERS
    if content_type is not None:
        found = found | {"Content-Type": content_type}
    return Response(status, body, found)


async def read_document(http: HTTPRequest, limit: int) -> bytes:
    """Read a body for which a place is held at the gate; see `HTTPRequest.read_body`.

    Raises:
        BodyIncomplete: also if it takes too long: a slow sender must not keep its place.
    """
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await http.read_body(limit)
    except TimeoutError:
        raise BodyIncomplete(f"the body did not arrive within {_BODY_SECONDS} seconds") from None
