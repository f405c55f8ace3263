"""IP addresses of clients in one form, so that they compare as text."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address


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
