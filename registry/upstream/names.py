"""Which repository a request means where other registries are mirrored, and whose content it is.

Content of an upstream is kept under its full name, as in a bundle that several upstreams share
(``quay.io/org/app``), so that nothing of one upstream is ever served as another's:

    asked for                               kept as               from
    org/app?ns=quay.io, quay.io/org/app     quay.io/org/app       quay.io org/app
    library/nginx of a bundle               library/nginx         docker.io library/nginx
    library/nginx, default docker.io        library/nginx         docker.io library/nginx
    org/app?ns=other.io, with a default     other.io/org/app      no upstream

With a default upstream a name without host is shared by that upstream and by those who push here.
A pushed tag wins, and is never looked up elsewhere.
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
        host: as it stands in image names.
        repository: within that registry.
        exclusive: whether the name is the upstream's alone, so that pushes to it are refused.
    """

    host: str
    repository: str
    exclusive: bool


class Resolver(Protocol):
    """See `registry.api.context.NameResolver`."""

    def meant(self, repository: str, ns: str | None) -> str:
        """Return the name by tables alone."""

    def resolve(self, repository: str, ns: str | None) -> str:
        """Return the canonical name."""


class UpstreamNames:
    """Names of bundles, of upstreams and of what is pushed here: a `Resolver`.

    Args:
        hosts: of the upstreams.
        default: the one that names without host belong to; None for none.
        served: resolves names of what is here already.
        bundles: names of the bundles that are served; None without bundles.
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
        """The name by the tables, of which it reads the same for every name.

        Args:
            served: the name by what is here.
        """
        host, path = self._split(repository, canonical_host(ns) if ns else None)
        kept = self._kept_as(host, path)
        return served if kept is None or self._bundled(served) is not None else kept

    def _kept_as(self, host: str | None, path: str) -> str | None:
        """The name of what a host has; None if it is not changed."""
        if host is None:
            return None
        if host not in self._upstreams:
            # With a default the bare name would be that upstream's.
            return None if self._default is None else full_name(host, path)
        path = _path(host, path)
        taken = self._bundled(path)
        is_short = host == self._default and (taken is None or taken[0] == host)
        return path if is_short and not _has_host(path) else full_name(host, path)

    def _bundled(self, name: str) -> tuple[str, str] | None:
        return self._bundles.upstream(name) if self._bundles is not None else None

    def origin(self, repository: str) -> Origin | None:
        """The upstream of a repository, as `resolve` returns it; None if it has none here."""
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
        """The host that a request names, by ``ns`` or before the path; None without."""
        first, slash, rest = repository.partition("/")
        # Also with the ``ns`` of this registry itself, by one of its names.
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
