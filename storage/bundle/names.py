"""Resolves the repository of a request over all bundles that are served.

A bundle's repository is served under its path, without the host: docker, containerd and podman ask
a mirror for that path. So ``docker.io/library/x`` is ``library/x``; it is also found as ``x`` and
by its full name. If two upstreams share a path, both are served under full names, and containerd's
``ns`` parameter picks one; without it the path is an error, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from mayfly.storage.bundle.errors import BundleConflict, NameAmbiguous
from mayfly.storage.reference import (
    DOCKER_HUB,
    canonical_host,
    check_repository,
    is_repository_name,
    short_path,
)


def full_name(host: str, repository: str) -> str:
    """Return a repository name that begins with the host; "_" replaces a port's colon."""
    part = re.sub(r"[^a-z0-9.-]+", "_", host).strip("_")
    return f"{part}/{repository}"


def _foreign(repository: str, host: str | None) -> str:
    """Return the name of another upstream's repository; the grammar may not allow it."""
    return repository if host is None else full_name(host, repository)


def _nowhere(_repository: str) -> bool:
    return False


class BundleNames:
    """Which repository a name means, over all bundles that are served.

    Args:
        known: upstream host and repository of everything in the bundles.

    Raises:
        BundleConflict: a full name that is needed to tell two upstreams apart is taken.
        NameInvalid: such a full name would be too long.
    """

    def __init__(self, known: Iterable[tuple[str, str]]) -> None:
        self._hosts: dict[str, dict[str, str]] = {}
        for host, repository in sorted(set(known)):
            self._hosts.setdefault(repository, {})[host] = repository
        for repository, hosts in self._hosts.items():
            if len(hosts) > 1:
                for host in hosts:
                    hosts[host] = self._free(check_repository(full_name(host, repository)))
        self._aliases: dict[str, tuple[str | None, str]] = dict(self._every_alias())
        self._upstreams = {
            name: (host, repository)
            for repository, hosts in self._hosts.items()
            for host, name in hosts.items()
        }

    def canonical(self, host: str, repository: str) -> str:
        """Return the name under which a known upstream's repository is served."""
        return self._hosts[repository][host]

    def upstream(self, name: str) -> tuple[str, str] | None:
        """Return the upstream host and repository of a served name; None for any other name.

        Of a path that several upstreams share, only the full names are served names.
        """
        return self._upstreams.get(name)

    def ambiguous(self) -> dict[str, list[str]]:
        """Return the full names to use instead of each path that several upstreams share."""
        return {path: [*hosts.values()] for path, hosts in self._hosts.items() if len(hosts) > 1}

    def meant(self, repository: str, ns: str | None = None) -> str:
        """Return the repository that a request means, if no pushed repository has its exact name.

        It reads tables only, and does the same work for a name that no bundle has: before a caller
        is known to have a right, neither the answer nor its time may tell names apart. A name
        without a meaning (see `resolve`) is returned as it is.
        """
        host = canonical_host(ns) if ns else None
        foreign = _foreign(repository, host)
        if not is_repository_name(foreign):
            foreign = repository
        return self._name(repository, host, foreign) or repository

    def resolve(
        self,
        repository: str,
        ns: str | None = None,
        exists: Callable[[str], bool] = _nowhere,
    ) -> str:
        """Return the repository that a request means.

        An upstream that is named and is not the bundles' own for this path gives a name that no
        bundle has: content of one upstream is never served as another's.

        Args:
            repository: as asked for.
            ns: the value of containerd's parameter, the host of the image's own name.
            exists: whether the writable store has a repository of exactly this name; asked only
                where the name could also stand for another.

        Raises:
            NameAmbiguous: several upstreams have it and ``ns`` does not say which.
            NameInvalid: ``ns`` is no host.
        """
        host = canonical_host(ns) if ns else None
        name = self._name(repository, host, _foreign(repository, host))
        if name is None:
            raise NameAmbiguous(repository, [*self._hosts[repository].values()])
        if self._is_alias(repository) and exists(repository):
            return repository
        return name if name == repository else check_repository(name)

    def _name(self, repository: str, host: str | None, foreign: str) -> str | None:
        """Look up the name in the tables; None where several upstreams share the path.

        Args:
            foreign: the name if ``host`` is not one of the bundles' for this path.
        """
        hosts = self._hosts.get(repository)
        upstream, name = self._aliases.get(repository, (host, repository))
        if hosts is None:
            return name if host in (None, upstream) else foreign
        if host is not None:
            return hosts.get(host, foreign)
        return next(iter(hosts.values())) if len(hosts) == 1 else None

    def _is_alias(self, repository: str) -> bool:
        """Whether the name stands for another one and is not a bundle's own."""
        _, name = self._aliases.get(repository, ("", repository))
        return repository not in self._hosts and name != repository

    def _free(self, name: str) -> str:
        if name in self._hosts:
            raise BundleConflict(
                f"repository {name} is in the bundles both by that path and as the full name of "
                "another: serve them apart"
            )
        return name

    def _every_alias(self) -> Iterable[tuple[str, tuple[str, str]]]:
        """Yield each further name of a repository, with its upstream and its canonical name."""
        for repository, hosts in self._hosts.items():
            for host, name in hosts.items():
                yield full_name(host, repository), (host, name)
                short = short_path(repository)
                if host == DOCKER_HUB and "/" not in short:
                    yield short, (host, name)
                    yield full_name(host, short), (host, name)


class ServedNames:
    """Which repository a request means where bundles are served over a writable store.

    Args:
        names: over the bundles.
        exists: whether the writable store has a repository of exactly this name.
    """

    def __init__(self, names: BundleNames, exists: Callable[[str], bool]) -> None:
        self._names = names
        self._exists = exists

    def meant(self, repository: str, ns: str | None) -> str:
        """See `BundleNames.meant`."""
        return self._names.meant(repository, ns)

    def resolve(self, repository: str, ns: str | None) -> str:
        """See `BundleNames.resolve`. Reads the writable store."""
        return self._names.resolve(repository, ns, self._exists)
