"""What every handler is given: the store, who is asking, and the answers' common parts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aiohttp.web_response import Response, StreamResponse

from registry.body import HTTPRequest
from registry.guard import Caller, Guard
from registry.lifetime.activity import Activity
from registry.lifetime.drain import Drain
from registry.lifetime.observer import Caller as Peer
from registry.lifetime.observer import Observer
from registry.request import Request
from registry.threads import in_thread as in_thread
from storage.interface import Store

if TYPE_CHECKING:
    from registry.manifest_cache import ManifestCache

SERVER = "mayfly"
COMMON_HEADERS = {"Server": SERVER, "Docker-Distribution-Api-Version": "registry/2.0"}
JSON = "application/json"


Names = Callable[[str, str | None], str]
"""From a repository as asked for and containerd's ``ns`` to the one that is meant."""


def as_asked(repository: str, ns: str | None) -> str:
    """`Names` where there are no bundles."""
    return repository


class Lifeline(Protocol):
    """What the request path tells the lifetime, and asks it; `registry.lifetime.life` has one."""

    activity: Activity
    observer: Observer
    drain: Drain


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler works with. All but caller and peer is the same for every request.

    Attributes:
        caller: who asks, and what they may do.
        peer: the same as coverage and the report know them.
    """

    store: Store
    manifests: ManifestCache
    guard: Guard
    names: Names
    observer: Observer
    caller: Caller
    peer: Peer


Handler = Callable[[Context, HTTPRequest, Request], Awaitable[StreamResponse]]


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
