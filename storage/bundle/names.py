"""Which repository a request means, over all bundles that are served.

A bundle's repository is served under its path, without the host: that is what docker, containerd
and podman ask a mirror for. So ``docker.io/library/x`` is ``library/x``; it is also found as ``x``
and by its full name. If two upstreams share a path, both are served under full names, and
containerd's ``ns`` parameter picks one; without it the path is an error, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from mayfly.storage.bundle.errors import BundleConflict, NameAmbiguous
from mayfly.storage.reference import DOCKER_HUB, canonical_host, check_repository, short_path


def full_name(host: str, repository: str) -> str:
    """Return the repository name that has the host too; its grammar has no colon for a port."""
    part = re.sub(r"[^a-z0-9.-]+", "_", host).strip("_")
    return f"{part}/{repository}"


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

    def canonical(self, host: str, repository: str) -> str:
        """The name under which a known upstream's repository is served."""
        return self._hosts[repository][host]

    def ambiguous(self) -> dict[str, list[str]]:
        """Each path that several upstreams share → the full names to use instead."""
        return {path: [*hosts.values()] for path, hosts in self._hosts.items() if len(hosts) > 1}

    def resolve(
        self,
        repository: str,
        ns: str | None = None,
        exists: Callable[[str], bool] = _nowhere,
    ) -> str:
        """The repository that a request means.

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
        hosts = self._hosts.get(repository)
        if hosts is None:
            return self._by_alias(repository, host, exists)
        if host is not None:
            return hosts.get(host) or check_repository(full_name(host, repository))
        if len(hosts) > 1:
            raise NameAmbiguous(repository, [*hosts.values()])
        return next(iter(hosts.values()))

    def _by_alias(self, repository: str, host: str | None, exists: Callable[[str], bool]) -> str:
        upstream, name = self._aliases.get(repository, (host, repository))
        if name != repository and exists(repository):
            return repository
        if host not in (None, upstream):
            return check_repository(full_name(str(host), repository))
        return name

    def _free(self, name: str) -> str:
        if name in self._hosts:
            raise BundleConflict(
                f"repository {name} is in the bundles both by that path and as the full name of "
                "another: serve them apart"
            )
        return name

    def _every_alias(self) -> Iterable[tuple[str, tuple[str, str]]]:
        """Every other way to ask for a repository → its upstream, and its name here."""
        for repository, hosts in self._hosts.items():
            for host, name in hosts.items():
                yield full_name(host, repository), (host, name)
                short = short_path(repository)
                if host == DOCKER_HUB and "/" not in short:
                    yield short, (host, name)
                    yield full_name(host, short), (host, name)
