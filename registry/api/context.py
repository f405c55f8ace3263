"""The context of every handler: store, caller and lifetime; and the common parts of responses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aiohttp.web_response import Response

from mayfly.registry.access.guard import Caller, Guard
from mayfly.registry.api.manifest_cache import ManifestCache
from mayfly.registry.coverage.observer import Caller as Peer
from mayfly.registry.coverage.observer import Observer
from mayfly.registry.coverage.pulls import Step
from mayfly.registry.lifecycle.activity import Activity
from mayfly.storage.interface import Store

SERVER = "mayfly"
COMMON_HEADERS = {"Server": SERVER, "Docker-Distribution-Api-Version": "registry/2.0"}
JSON = "application/json"


NameResolver = Callable[[str, str | None], str]
"""Maps a requested repository and containerd's ``ns`` to the canonical repository."""


def identity(repository: str, ns: str | None) -> str:
    """`NameResolver` where there are no bundles."""
    return repository


class Admission(Protocol):
    """Refuses new work before the end; `registry.lifecycle.drain.Drain` implements it."""

    def admit(self, node: str, step: Step | None, repository: str, digest: str | None) -> None:
        """Let a request of a node pass, or raise the error that refuses it."""


class Lifeline(Protocol):
    """The part of the lifetime that requests use; `registry.lifecycle.life` implements it."""

    activity: Activity
    observer: Observer

    @property
    def drain(self) -> Admission:
        """Refuses requests that begin something new."""


@dataclass(frozen=True, slots=True)
class Context:
    """The arguments of a handler. All but caller and peer are the same for every request.

    Attributes:
        caller: who asks, and what they may do.
        peer: the same as coverage and the report know them.
    """

    store: Store
    manifests: ManifestCache
    guard: Guard
    names: NameResolver
    observer: Observer
    caller: Caller
    peer: Peer


def answer(
    status: int = 200,
    body: bytes = b"",
    content_type: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """A whole response with the headers that all of ours carry."""
    response = Response(status=status, body=body, headers=COMMON_HEADERS)
    if headers:
        response.headers.update(headers)
    if content_type is not None:
        response.headers["Content-Type"] = content_type
    return response
