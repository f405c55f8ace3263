"""Names where registries are mirrored: the repository that a request means, and its upstream.

Content of an upstream is kept under its full name, as in a bundle with images of several registries
(``quay.io/org/app``), so that content of one upstream is never served under another's name:

    asked for                               kept as               from
    org/app?ns=quay.io, quay.io/org/app     quay.io/org/app       quay.io org/app
    library/nginx of a bundle               library/nginx         docker.io library/nginx
    library/nginx, default docker.io        library/nginx         docker.io library/nginx
    org/app?ns=other.io, with a default     other.io/org/app      no upstream

With a default upstream, names without host belong to that upstream and to clients that push here.
A pushed tag wins, and is never looked up at the upstream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from mayfly.storage.bundle.names import BundleNames, full_name
from mayfly.storage.reference import (
    DOCKER_HUB,
    LOCAL,
    canonical_host,
    check_repository,
    hub_path,
    is_repository_name,
)

_PORT = re.compile("_[0-9]{1,5}$")


class Origin(NamedTuple):
    """The upstream of a repository.

    Attributes:
        host: of the upstream, as image names have it.
        repository: its name at the upstream.
        exclusive: whether only the upstream has content of this name, so that pushes are refused.
    """

    host: str
    repository: str
    exclusive: bool


class Resolver(Protocol):
    """See `registry.api.context.NameResolver`."""

    def meant(self, repository: str, ns: str | None) -> str:
        """Return the canonical name by tables alone, without reading the store."""

    def resolve(self, repository: str, ns: str | None) -> str:
        """Return the canonical name."""


class UpstreamNames:
    """Names of bundles, of upstreams and of pushed images: a `Resolver`.

    Args:
        hosts: of the upstreams.
        default: the upstream of names without host; None for none.
        served: resolves names of content that is here.
        bundles: names in the bundles that are served; None without bundles.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        default: str | None,
        served: Resolver,
        bundles: BundleNames | None = None,
    ) -> None:
        self._hosts = {_prefix(host): host for host in map(canonical_host, hosts)}
        self._upstreams = frozenset(self._hosts.values())
        self._default = default
        self._served = served
        self._bundles = bundles

    def meant(self, repository: str, ns: str | None) -> str:
        name = self._map(repository, ns, self._served.meant(repository, ns))
        return name if is_repository_name(name) else repository

    def resolve(self, repository: str, ns: str | None) -> str:
        return check_repository(self._map(repository, ns, self._served.resolve(repository, ns)))

    def _map(self, repository: str, ns: str | None, served: str) -> str:
        """Return the name by tables; every name takes the same look-ups.

        Args:
            repository: as requested.
            ns: as requested.
            served: the name by the content that is here.
        """
        host, path = self._split(repository, canonical_host(ns) if ns else None)
        kept = self._kept_as(host, path)
        return served if kept is None or self._bundled(served) is not None else kept

    def _kept_as(self, host: str | None, path: str) -> str | None:
        """Return the name under which a host's repository is kept; None to keep the request's."""
        if host is None:
            return None
        if host not in self._upstreams:
            # Without the host it would name a repository of the default upstream.
            return None if self._default is None else full_name(host, path)
        path = _path(host, path)
        taken = self._bundled(path)
        is_short = host == self._default and (taken is None or taken[0] == host)
        return path if is_short and not _has_host(path) else full_name(host, path)

    def _bundled(self, name: str) -> tuple[str, str] | None:
        return self._bundles.upstream(name) if self._bundles is not None else None

    def origin(self, repository: str) -> Origin | None:
        """Return the upstream of a canonical repository; None without one."""
        if known := self._bundled(repository):
            host, path = known
            return Origin(host, path, exclusive=False) if host in self._upstreams else None
        first, slash, rest = repository.partition("/")
        if slash and first in self._hosts:
            host = self._hosts[first]
            return Origin(host, _path(host, rest), exclusive=True)
        if self._default is None or (slash and _is_host(first)):
            return None
        return Origin(self._default, _path(self._default, repository), exclusive=False)

    def _split(self, repository: str, ns: str | None) -> tuple[str | None, str]:
        """Return the host that a request names, by ``ns`` or before the path, and the path."""
        first, slash, rest = repository.partition("/")
        # A client may send one of this registry's own names as ``ns``.
        if slash and first in self._hosts and (ns is None or ns not in self._upstreams):
            return self._hosts[first], rest
        return ns, repository


def _prefix(host: str) -> str:
    return full_name(host, "").rstrip("/")


def _path(host: str, path: str) -> str:
    return hub_path(path) if host == DOCKER_HUB else path


def _has_host(path: str) -> bool:
    first, slash, _ = path.partition("/")
    return bool(slash) and _is_host(first)


def _is_host(first: str) -> bool:
    """Whether the first part of a stored name is a host, whose port follows an underscore."""
    return "." in first or _PORT.search(first) is not None or first == LOCAL
