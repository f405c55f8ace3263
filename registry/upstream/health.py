"""One upstream: its client, whether it can be asked now, and figures of its use."""

from __future__ import annotations

import logging
import time
from typing import TypedDict

from mayfly.registry import log
from mayfly.registry.upstream.client import Registry

_REST_SECONDS = 10.0
"""For which an upstream that failed is not asked."""

_FAILURES = 2
"""Lookups in a row that fail before the upstream itself counts as failing."""


class UpstreamRecord(TypedDict):
    """The use of one upstream.

    Attributes:
        host: as it stands in image names.
        hits: requests that were answered from cached content.
        misses: requests that waited for the upstream.
        stale: requests answered by a tag that could not be compared with the upstream's.
        downloads: blobs that were fetched.
        bytes: fetched, manifests included.
        reachable: whether the last lookup succeeded.
    """

    host: str
    hits: int
    misses: int
    stale: int
    downloads: int
    bytes: int
    reachable: bool


class UpstreamHost:
    """An upstream.

    Args:
        registry: its client.

    Attributes:
        name: its host, as it stands in image names.
        hits, misses, stale, downloads, bytes: see `UpstreamRecord`.
    """

    def __init__(self, registry: Registry) -> None:
        self.name = registry.host
        self.registry = registry
        self.hits = self.misses = self.stale = self.downloads = self.bytes = 0
        self._failures = 0
        self._rests_until = 0.0
        self._reported = False

    @property
    def is_failing(self) -> bool:
        """Whether it is not asked now, since it failed a moment ago."""
        return time.monotonic() < self._rests_until

    def answered(self) -> None:
        """Note that a lookup succeeded, or found nothing."""
        self._failures = 0
        if self._reported:
            self._reported = False
            log.event(
                logging.INFO, "upstream_reachable", f"{self.name} answers again", host=self.name
            )

    def failed(self, reason: str) -> None:
        """Note that a lookup failed, and log the first in a row."""
        self._failures += 1
        if self._failures >= _FAILURES:
            self._rests_until = time.monotonic() + _REST_SECONDS
        if not self._reported:
            self._reported = True
            log.event(
                logging.WARNING,
                "upstream_unreachable",
                f"{reason}; cached content of {self.name} is served as it is",
                host=self.name,
                reason=reason,
            )

    def record(self) -> UpstreamRecord:
        """The use so far."""
        return {
            "host": self.name,
            "hits": self.hits,
            "misses": self.misses,
            "stale": self.stale,
            "downloads": self.downloads,
            "bytes": self.bytes,
            "reachable": not self._reported,
        }
