"""Image names: what they mean, and which repository a request means by one.

A full name is ``host/repository:tag``, read as docker does (github.com/distribution/reference,
``ParseNormalizedNamed``). A bundle's repository is served under its path, without the host: that is
what a mirror is asked for, by docker, containerd and podman alike. So ``docker.io/library/x`` is
``library/x``; it is also found as ``x`` and by its full name. When two upstreams share a path, both
are served under full names and containerd's ``ns`` parameter picks one; without it the path is an
error, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mayfly.storage import digest as digests
from mayfly.storage.bundle.errors import BundleConflict, NameAmbiguous
from mayfly.storage.digest import Digest
from mayfly.storage.errors import NameInvalid
from mayfly.storage.names import check_repository, check_tag

DOCKER_HUB = "docker.io"
LOCAL = "localhost"
"""The host of images that came from no registry, as podman has it."""

_LONGEST = 1024
"""Characters of a full name: a repository has 255, a tag 128, a digest 135, a host 255."""

_HUB_NAMES = frozenset({"index.docker.io", "registry-1.docker.io"})
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")


class Reference(NamedTuple):
    """A full image name.

    Attributes:
        host: of the upstream registry, lower case, with its port if it has one.
        repository: within that registry.
        tag: None when the name has none, or has a digest too.
        digest: of a name that ends in ``@digest``.
    """

    host: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        end = f":{self.tag}" if self.tag else f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}{end}"


def split_reference(text: str) -> Reference:
    """Read an image name as docker does: ``x`` is ``docker.io/library/x``, without a tag.

    Raises:
        NameInvalid, TagInvalid, DigestInvalid: a part is outside its grammar.
    """
    if len(text) > _LONGEST:
        raise NameInvalid(f"image name {text[:100]!r}… has {len(text)} characters")
    name, at, encoded = text.partition("@")
    digest = digests.parse(encoded) if at else None
    head, colon, tail = name.rpartition(":")
    name, tag = (head, check_tag(tail)) if colon and "/" not in tail else (name, None)
    first, slash, rest = name.partition("/")
    # docker's rule for telling a host from the first part of a path.
    is_host = slash and (set(first) & set(".:") or first == LOCAL or first != first.lower())
    host, path = (first, rest) if is_host else (DOCKER_HUB, name)
    if not _HOST.fullmatch(host):
        raise NameInvalid(f"invalid registry host {host[:100]!r} in image name {text[:300]!r}")
    host = canonical_host(host)
    if host == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    # As docker: where there are both, the digest is what counts.
    return Reference(host, check_repository(path), None if digest else tag, digest)


def is_full_name(text: str) -> bool:
    """Whether an annotation's value can be an image name, rather than a tag alone."""
    return "/" in text or ":" in text


def canonical_host(host: str) -> str:
    """The host as it is compared: lower case, Docker Hub under one name."""
    lower = host.lower()
    return DOCKER_HUB if lower in _HUB_NAMES else lower


def full_name(host: str, repository: str) -> str:
    """The repository name that says the upstream too; a port's colon is not in its grammar."""
    part = re.sub(r"[^a-z0-9.-]+", "_", host).strip("_")
    return f"{part}/{repository}"


def _nowhere(_repository: str) -> bool:
    return False


class Names:
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
            choice = " or ".join(hosts.values())
            raise NameAmbiguous(
                f"repository {repository} is in several upstreams: ask for {choice}, or say which "
                "by the ns parameter",
                {"name": repository, "candidates": [*hosts.values()]},
            )
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
                short = repository.removeprefix("library/")
                if host == DOCKER_HUB and "/" not in short:
                    yield short, (host, name)
                    yield full_name(host, short), (host, name)
