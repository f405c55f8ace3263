"""Image names: their grammar, and how docker reads the short forms.

A full name is ``host/repository:tag`` or ``host/repository@digest``. Names and tags follow the OCI
distribution-spec, "Pulling manifests"; they are checked again wherever a path is built, so that no
path is made from unchecked text. Short forms are read as docker reads them
(github.com/distribution/reference, ``ParseNormalizedNamed``): without a host a name is Docker
Hub's, and a single word there is below ``library/``.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import NameInvalid, TagInvalid

MAX_NAME_LENGTH = 255
"""Longest repository name in bytes: many clients stop there (spec), and one path part holds it."""

DOCKER_HUB = "docker.io"
"""Docker Hub's host as image names have it."""

HUB_ADDRESS = "registry-1.docker.io"
"""The host where Docker Hub's registry answers."""

HUB_ALIASES = ("index.docker.io", HUB_ADDRESS)
"""Other names of Docker Hub, in image names and in files of logins."""

LOCAL = "localhost"
"""The host of images that came from no registry, as podman names them."""

LATEST = "latest"
"""The tag of a name without tag and digest."""

_OFFICIAL = "library/"
"""The path of Docker Hub's official images, which short names leave out."""

_LONGEST = 1024
"""Characters of a full name: a repository has 255, a tag 128, a digest 135, a host 255."""

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PART = re.compile(_COMPONENT)
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")

_ATTACHED_TAG = re.compile(r"(?:sha256|sha512)-[0-9a-f]{64}(?:\.(?:sig|att|sbom))?")
"""The OCI fallback tag of referrers, and those of cosign before version 3."""


def check_repository(name: str) -> str:
    """Return a valid repository name unchanged.

    Raises:
        NameInvalid: the name is outside the grammar or longer than `MAX_NAME_LENGTH`.
    """
    if is_repository_name(name):
        return name
    if len(name) > MAX_NAME_LENGTH:
        raise NameInvalid(f"repository name is longer than {MAX_NAME_LENGTH} characters")
    raise NameInvalid(
        f"invalid repository name {name!r}: lower-case letters, digits, "
        "separators . _ - inside a part, parts joined by /"
    )


def is_repository_name(text: str) -> bool:
    """Whether a text is a valid repository name."""
    return len(text) <= MAX_NAME_LENGTH and _NAME.fullmatch(text) is not None


def is_component(text: str) -> bool:
    """Whether a text is valid between two slashes of a repository name."""
    return _PART.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether a text is a valid tag."""
    return _TAG.fullmatch(text) is not None


def is_attached_tag(tag: str) -> bool:
    """Whether a tag is one by which a manifest's referrers are found: ``sha256-HEX[.sig]``."""
    return _ATTACHED_TAG.fullmatch(tag) is not None


def check_tag(tag: str) -> str:
    """Return a valid tag unchanged.

    Raises:
        TagInvalid: the tag is outside the grammar.
    """
    if not is_tag(tag):
        raise TagInvalid(
            f"invalid tag {tag[:150]!r}: up to 128 letters, digits, _ . - "
            "and not beginning with . or -"
        )
    return tag


def check_reference(text: str) -> Digest | str:
    """Return the digest, or the tag, by which a manifest is asked for: a digest has a colon.

    Raises:
        TagInvalid, DigestInvalid: the reference is outside its grammar.
    """
    return digests.parse(text) if ":" in text else check_tag(text)


class WrittenName(NamedTuple):
    """The parts of an image name as they are written; None for a part that is left out."""

    host: str | None
    path: str
    tag: str | None
    digest: Digest | None


def split_name(text: str) -> WrittenName:
    """Split an image name, short or full, without adding anything to it.

    Raises:
        NameInvalid, TagInvalid, DigestInvalid: a part is outside its grammar.
    """
    if len(text) > _LONGEST:
        raise NameInvalid(f"image name {text[:100]!r}… has {len(text)} characters")
    name, at, encoded = text.partition("@")
    head, colon, tail = name.rpartition(":")
    # A colon before a slash is a port's.
    name, tag = (head, tail) if colon and "/" not in tail else (name, None)
    first, slash, rest = name.partition("/")
    # docker's rule for telling a host from the first part of a path.
    is_host = slash and (set(first) & set(".:") or first == LOCAL or first != first.lower())
    host, path = (first, rest) if is_host else (None, name)
    if host is not None and not _HOST.fullmatch(host):
        raise NameInvalid(f"invalid registry host {host[:100]!r} in image name {text[:300]!r}")
    check_repository(path)
    if tag is not None:
        check_tag(tag)
    return WrittenName(host, path, tag, digests.parse(encoded) if at else None)


class Reference(NamedTuple):
    """A full image name.

    Attributes:
        host: of the upstream registry, lower case, with its port if it has one.
        repository: within that registry.
        tag: None if the name has none, or also has a digest.
        digest: of a name that ends in ``@digest``.
    """

    host: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        end = f":{self.tag}" if self.tag else f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}{end}"

    @property
    def stored_as(self) -> tuple[str, str]:
        """The repositories that a store may have it in: pushed by its full path or by its word."""
        return self.repository, short_path(self.repository)


def parse_reference(text: str) -> Reference:
    """Read an image name as docker does: ``x`` is ``docker.io/library/x``, without a tag.

    Raises:
        NameInvalid, TagInvalid, DigestInvalid: a part is outside its grammar.
    """
    written = split_name(text)
    host = canonical_host(written.host or DOCKER_HUB)
    path = hub_path(written.path) if host == DOCKER_HUB else written.path
    # As docker: if there are both, the digest counts.
    tag = None if written.digest else written.tag
    return Reference(host, check_repository(path), tag, written.digest)


def hub_path(path: str) -> str:
    """Return the full path of a Docker Hub image: ``x`` is ``library/x``."""
    return path if "/" in path else _OFFICIAL + path


def short_path(path: str) -> str:
    """Return the path without ``library/``."""
    return path.removeprefix(_OFFICIAL)


def canonical_host(host: str) -> str:
    """Return a registry's host in the form to compare: lower case, Docker Hub by one name."""
    lower = host.lower()
    return DOCKER_HUB if lower in HUB_ALIASES else lower


def address_of(host: str) -> str:
    """Return the host that answers for a registry: Docker Hub's is not the one in its names."""
    return HUB_ADDRESS if host == DOCKER_HUB else host


def is_full_name(text: str) -> bool:
    """Whether an annotation's value can be an image name, rather than a tag alone."""
    return "/" in text or ":" in text


def split_stored(name: str) -> tuple[str, str]:
    """Split the name of a stored image into its repository, and its tag or digest.

    Args:
        name: ``repository:tag``, ``repository@digest`` or a repository alone.
    """
    separator = "@" if "@" in name else ":"
    repository, found, reference = name.partition(separator)
    return repository, reference if found else ""


def page_of(names: Sequence[str], after: str, limit: int, prefix: str = "") -> list[str]:
    """Return up to ``limit`` of sorted names that follow ``after`` and begin with ``prefix``."""
    start = max(bisect_right(names, after), bisect_left(names, prefix))
    following = names[start : start + limit]
    return list(takewhile(lambda name: name.startswith(prefix), following))
