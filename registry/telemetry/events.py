"""Events: one request, or one turn of the run, in the shape of distribution's notifications.

The audit file has one event a line, a webhook gets the same in distribution's envelope. Fields of
distribution's notifications keep their names and meaning; ``outcome``, ``node``, ``reason``,
``bytes`` and ``credential`` are added (docs/events.md).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from mayfly.registry.telemetry.trace import traceparent

MEDIA_TYPE = "application/vnd.docker.distribution.events.v2+json"
"""The media type of an envelope: ``{"events": […]}``."""

Action = Literal[
    "pull", "push", "mount", "delete",
    "check", "list", "login", "prove", "stop",
    "start", "end", "corrupt", "resume", "drop",
]  # fmt: skip
"""The action of a request or of the run.

The first four are distribution's. ``check`` is a HEAD, ``prove`` a node's proof or nonce. The last
five are no request's: ``resume`` follows a crash, ``drop`` has the number of events that found no
room.
"""

Outcome = Literal["done", "denied", "failed", "cut"]

CHANGES = frozenset({"push", "mount", "delete"})
"""Actions of requests that change the store."""

OF_THE_RUN = frozenset({"start", "end", "corrupt", "resume", "drop"})
"""Actions that no request asked for."""

MAX_TEXT = 512
"""Characters of a value that a client chose; more is cut off."""


class Target(TypedDict, total=False):
    """The content that a request names. ``size`` is in bytes, ``length`` the same."""

    mediaType: str
    digest: str
    size: int
    length: int
    repository: str
    fromRepository: str
    url: str
    tag: str


class AskedBy(TypedDict, total=False):
    """A request.

    Attributes:
        addr: the client's address.
        host: that it asked for.
        useragent: the client's name.
        traceparent: of the trace that it belongs to; left out without one.
    """

    id: str
    addr: str
    host: str
    method: str
    useragent: str
    traceparent: str


class Actor(TypedDict):
    """The caller's user name; "" for anonymous."""

    name: str


class Source(TypedDict):
    """The registry: its address and the ID of its run."""

    addr: str
    instanceID: str


class Event(TypedDict, total=False):
    """One event.

    Attributes:
        id: unique.
        timestamp: UTC, RFC 3339.
        bytes: of content that were transferred.
        credential: how the caller proved its name (`auth.identity.Source`).
        reason: code of why it was denied, failed or ended.
        detail: the same in words.
        exit_code: of the server, at its end.
        repeated: number of equal events since, which have no line of their own.
        dropped_before: number of events before this one that no sink has.
        torn: size and hash of the rest of a line that a crash cut off before this event.
    """

    id: str
    timestamp: str
    action: Action
    outcome: Outcome
    target: Target
    request: AskedBy
    actor: Actor
    source: Source
    node: str
    reason: str
    detail: str
    exit_code: int
    bytes: int
    credential: str
    repeated: int
    dropped_before: int
    torn: dict[str, Any]


def new(action: Action, outcome: Outcome = "done") -> Event:
    """Return an event of this moment."""
    return {"id": os.urandom(16).hex(), "timestamp": now(), "action": action, "outcome": outcome}


def asked_by(address: str, method: str, headers: Mapping[str, str]) -> AskedBy:
    """Return the request of an event.

    Args:
        address: of the client.
        method: of HTTP.
        headers: of the request.
    """
    found: AskedBy = {
        "addr": address,
        "host": short(headers.get("Host", "")),
        "method": method,
        "useragent": short(headers.get("User-Agent", "")),
    }
    if trace := traceparent(headers):
        found["traceparent"] = trace
    return found


def now() -> str:
    """Return the time in UTC, RFC 3339, with microseconds."""
    seconds = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1e6):06d}Z"


def short(text: str) -> str:
    """Return a client's text, cut off after `MAX_TEXT` characters."""
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"
