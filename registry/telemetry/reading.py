"""The server's own counts at one moment, for `metrics`; imports no library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

UpstreamUse = Mapping[str, Any]
"""A record of `registry.upstream.health`."""


@dataclass(frozen=True)
class Reading:
    """The server's own counts at one moment.

    Attributes:
        nodes: that coverage waits for, those of them that have every image; None without coverage.
        images: that coverage waits for.
        pairs: state → pairs of node and image in it.
        node_bytes: node of ``--nodes`` → bytes of content that were sent to it.
        transfers: direction → transfers under way.
        bytes_in, bytes_out: of bodies.
        ends: condition → seconds until it ends the server if nothing happens.
        corrupt: digests of bundles' content that were found corrupt.
        denied: reason → refused requests.
        upstreams: the use of each upstream.
    """

    nodes: tuple[int, int] | None = None
    images: int = 0
    pairs: Mapping[str, int] = field(default_factory=dict)
    node_bytes: Mapping[str, int] = field(default_factory=dict)
    transfers: Mapping[str, int] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    ends: Mapping[str, float] = field(default_factory=dict)
    corrupt: int = 0
    denied: Mapping[str, int] = field(default_factory=dict)
    upstreams: Iterable[UpstreamUse] = ()
