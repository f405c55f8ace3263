"""The registry's URL as clients see it, and clients' addresses, also behind a proxy.

The URLs in responses (the realm of a challenge, ``Location``, ``Link``) begin with the first of
these that is known:

    --external-url      set by the operator
    a trusted proxy     ``X-Forwarded-Proto`` and ``-Host``; ``Forwarded`` (RFC 7239) where the
                        request has no ``X-Forwarded-For``
    the request         ``Host``, and whether it came over TLS

Forwarding headers from other peers are ignored: they could name any host and any client.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.settings.readers import Address, ExternalURL, Network

_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(?::\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::\d{1,5})?")
_MAX_HOPS = 32
"""Proxies of a chain that are read, the nearest ones."""


class Forwarded(NamedTuple):
    """A request as trusted proxies describe it; None for facts that they do not give.

    Attributes:
        client: the address of the nearest host that is not a trusted proxy.
        scheme: of the client's request, ``http`` or ``https``.
        host: with port, to which the client sent the request.
    """

    client: str | None = None
    scheme: str | None = None
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Origins:
    """Tells how clients reach a registry.

    Attributes:
        external: of ``--external-url``.
        trusted: networks of proxies whose forwarding headers are believed.
    """

    external: ExternalURL | None = None
    trusted: tuple[Network, ...] = ()

    @property
    def prefix(self) -> str:
        """The path before ``/v2/``, as clients see it; "" for none."""
        return self.external.prefix if self.external is not None else ""

    def of(self, http: HTTPRequest) -> str:
        """The URL before ``/v2/`` under which this request's client reaches the registry."""
        if self.external is not None:
            return self.external.origin + self.external.prefix
        said = self.forwarded(http) or Forwarded()
        over_tls = http.get_extra_info("ssl_object") is not None
        scheme = said.scheme or ("https" if over_tls else "http")
        host = http.headers.get("Host", "") if said.host is None else said.host
        if not _HOST.fullmatch(host):
            host = str(Address(*http.get_extra_info("sockname", ("localhost", 0))[:2]))
        return f"{scheme}://{host}"

    def forwarded(self, http: HTTPRequest) -> Forwarded | None:
        """The forwarding headers of this request; None if its peer is no trusted proxy."""
        peer = http.get_extra_info("peername")
        if not self.trusted or not peer or not self.trusts(str(peer[0])):
            return None
        # Most proxies write X-Forwarded-For, and pass on a Forwarded that the client sent.
        header = http.headers.getall("Forwarded", [])
        if header and "X-Forwarded-For" not in http.headers:
            hops = [_parameters(hop) for hop in _last(header)]
            clients = [hop.get("for", "") for hop in hops]
            nearest = hops[-1]
            scheme, host = nearest.get("proto", ""), nearest.get("host", "")
        else:
            clients = _last(http.headers.getall("X-Forwarded-For", []))
            scheme = "".join(_last(http.headers.getall("X-Forwarded-Proto", []))[-1:])
            host = "".join(_last(http.headers.getall("X-Forwarded-Host", []))[-1:])
        scheme = scheme.lower()
        return Forwarded(
            self._client(clients),
            scheme if scheme in ("http", "https") else None,
            host if _HOST.fullmatch(host) else None,
        )

    def _client(self, chain: list[str]) -> str | None:
        """The nearest address in a chain that is not a trusted proxy's; others may be forged."""
        found = None
        for text in reversed(chain):
            address = _address(text)
            if address is None:
                return found
            found = address
            if not self.trusts(address):
                break
        return found

    def trusts(self, address: str) -> bool:
        """Whether an address belongs to a trusted proxy."""
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self.trusted)


DIRECT = Origins()
"""The origins of a registry without a proxy: each client reaches it by the host that its request
names."""


def _last(values: Iterable[str]) -> list[str]:
    """The last elements of a list header, those of the nearest hops."""
    parts = ",".join(values).rsplit(",", _MAX_HOPS)
    return [part.strip(" \t") for part in parts[-_MAX_HOPS:]]


def _parameters(hop: str) -> dict[str, str]:
    """The parameters of one element of ``Forwarded``."""
    pairs = (part.partition("=") for part in hop.split(";"))
    return {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


def _address(text: str) -> str | None:
    """The address in a hop, which may have a port, and brackets (RFC 7239, 6)."""
    text = text.strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        # A zone may be any text.
        return str(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return None
