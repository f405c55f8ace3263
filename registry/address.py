"""IP addresses in one form, so that they compare as text; and whether a host is this machine."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit


@lru_cache(maxsize=4096)
def canonical_address(address: str) -> str:
    """Return an IP address in its canonical form, without a zone, IPv4-mapped IPv6 as IPv4.

    Other text is returned unchanged.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def is_loopback(host: str) -> bool:
    """Whether a ``host[:port]`` is this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
