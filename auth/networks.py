"""Networks: groups of addresses that one client can use at no cost, and that count as one."""

from __future__ import annotations


def network_of(address: str) -> str:
    """Return the network an address belongs to: itself, or the /64 of an IPv6 address.

    A host, or a customer, has a whole /64 (RFC 6177).
    """
    if ":" not in address:
        return address
    import ipaddress

    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(found) >> 64 << 64))
