"""The registry a node is told about."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from mayfly.registry.pki.addresses import canonical, is_address
from mayfly.registry.pki.certificate import pem_certificates
from mayfly.registry.pki.errors import TrustError
from mayfly.storage.reference import canonical_host

_UPSTREAM = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?")
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::(?P<port>[0-9]{1,5}))?")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
_MAX_PORT = 65535


class NodeCredential(NamedTuple):
    """A user name and a password that one node uses."""

    username: str
    password: str

    @property
    def authorization(self) -> str:
        """The value of the Authorization header (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


@dataclass(frozen=True)
class Target:
    """One registry, as nodes are to see it.

    Attributes:
        registry: HOST or HOST:PORT as written in image names; IPv6 in brackets.
        tls: whether it speaks TLS.
        ca: PEM certificates that sign its own; None when nodes trust it anyhow, or without TLS.
        mirrors: upstream registries that are asked of it first, such as docker.io.
        certs_dir: containerd's directory of host configurations, when it is not to be found out.
        credential: the node's own user name and password for it, if the node is to have one.
        path: before ``/v2/``, where a proxy serves it below one; "" for none.
    """

    registry: str
    tls: bool
    ca: bytes | None = None
    mirrors: tuple[str, ...] = ()
    certs_dir: str | None = None
    credential: NodeCredential | None = None
    path: str = ""

    @property
    def url(self) -> str:
        """Where it is: scheme, host, port and path."""
        return f"{'https' if self.tls else 'http'}://{self.registry}{self.path}"

    @property
    def loopback(self) -> bool:
        """Whether it is this host itself, in 127.0.0.0/8 or by the name localhost."""
        return _is_loopback(self.registry)


def parse(
    registry: str,
    ca: bytes | None = None,
    mirrors: Iterable[str] = (),
    *,
    ca_source: str = "CA",
    certs_dir: str | None = None,
    credential: NodeCredential | None = None,
) -> Target:
    """The target that an operator's words mean.

    ``registry`` is HOST:PORT, or begins with ``https://`` or ``http://`` and may have a path then.
    A bare HOST:PORT speaks TLS when a CA is given, and does not when it is on loopback; elsewhere
    it must be said, since the guess "no TLS" would make nodes accept anybody. ``ca_source`` names
    the CA in errors.

    Raises:
        TrustError: one of them is malformed, or they contradict one another.
    """
    scheme, separator, rest = registry.rpartition("://")
    host, slash, path = rest.rstrip("/").partition("/")
    path = slash + path
    if not _PATH.fullmatch(path) or (path and not separator):
        raise TrustError(f"{registry!r} is not HOST:PORT")
    authority = _registry(host, registry)
    if separator and scheme not in ("http", "https"):
        raise TrustError(f"{registry!r}: the scheme is https or http")
    if scheme == "http" and ca is not None:
        raise TrustError(f"{registry!r} says no TLS, but a CA is given; leave one of them out")
    if not separator and ca is None and not _is_loopback(authority):
        raise TrustError(
            f"{registry!r}: does it speak TLS? give --ca FILE, or write https://{authority} when "
            f"nodes trust its certificate already, or http://{authority} to do without TLS"
        )
    if certs_dir is not None and not PurePosixPath(certs_dir).is_absolute():
        raise TrustError(f"{certs_dir!r}: give the directory's absolute path, as the node sees it")
    return Target(
        authority,
        tls=scheme == "https" or ca is not None,
        ca=None if ca is None else pem_certificates(ca, ca_source),
        mirrors=tuple(dict.fromkeys(map(_upstream, mirrors))),
        certs_dir=certs_dir,
        credential=credential,
        path=path,
    )


def _registry(text: str, given: str) -> str:
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise TrustError(f"{given!r} is not HOST:PORT")
    host, port = canonical(match["host"]), match["port"]
    if port is not None and not 0 < int(port) <= _MAX_PORT:
        raise TrustError(f"{given!r}: a port is between 1 and {_MAX_PORT}")
    if "*" in host or (is_address(host) and ipaddress.ip_address(host).is_unspecified):
        raise TrustError(f"{given!r}: give the address that nodes reach the registry at")
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{int(port)}"


def _upstream(name: str) -> str:
    lowered = name.strip().lower()
    if not _UPSTREAM.fullmatch(lowered) or ".." in lowered:
        raise TrustError(
            f"{name!r} is not the name of an upstream registry; write it as image names do, "
            "without a path: docker.io, quay.io, registry.example.com:5000"
        )
    return canonical_host(lowered)  # as image names and certs.d have it


def _is_loopback(registry: str) -> bool:
    host = re.sub(r":[0-9]+\Z", "", registry).strip("[]")
    # Docker before 28 does not take ::1 for a registry without TLS, so it does not count.
    return host == "localhost" or (is_address(host) and host.startswith("127."))
