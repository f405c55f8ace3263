"""The names and addresses of this host, for its certificate.

Nothing here asks a name server: a start must not wait for one, least of all without a network.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from mayfly.registry.pki.errors import TrustError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ALWAYS = ("localhost", "127.0.0.1", "::1")
"""In every certificate."""

MAX_ADDRESSES = 256
"""Addresses taken from the interfaces; Go clients refuse handshake messages over 64 KiB."""

# kube-proxy in IPVS mode binds every Service's address here; none of them is this host's own.
_FOREIGN_INTERFACES = frozenset({"kube-ipvs0"})

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")

# rtnetlink(7), linux/rtnetlink.h, linux/if_addr.h
_NLMSGHDR = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_RTATTR = struct.Struct("=HH")
_NLMSG_ERROR, _NLMSG_DONE, _RTM_NEWADDR, _RTM_GETADDR = 2, 3, 20, 22
_NLM_F_REQUEST_DUMP = 0x301
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_TEMPORARY = 1
_TIMEOUT_SECONDS = 1.0


def canonical(name: str) -> str:
    """One spelling for each host name or address: lower case, no final dot, RFC 5952 for IPv6.

    Raises:
        TrustError: it is neither a name that a certificate can hold nor an IP address.
    """
    bare = name.removeprefix("[").removesuffix("]")
    with contextlib.suppress(ValueError):
        # A zone means something on this host only.
        return str(ipaddress.ip_address(bare.partition("%")[0]))
    lowered = bare.lower().removesuffix(".")
    if _DNS_NAME.fullmatch(lowered):
        return lowered
    raise TrustError(
        f"{name!r} is neither a DNS name nor an IP address; write names outside ASCII in punycode"
    )


def is_address(name: str) -> bool:
    """Whether a canonical name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def wanted_names(given: Iterable[str] = ()) -> tuple[str, ...]:
    """Every canonical name and address a certificate of this host should hold, in a fixed order.

    ``given`` has the operator's additions (host names, listen addresses), as for `needed_names`.

    Raises:
        TrustError: a given name is no name.
    """
    names = dict.fromkeys((*ALWAYS, *host_names(), *needed_names(given)))
    for address in local_addresses()[:MAX_ADDRESSES]:
        names[str(address)] = None
    return tuple(names)


def needed_names(listen: Iterable[str], names: Iterable[str] = ()) -> tuple[str, ...]:
    """The canonical names and addresses a certificate must hold, in a fixed order.

    An unspecified address such as 0.0.0.0 adds nothing if the operator gave a name to reach the
    host by, otherwise all addresses of the host.

    Args:
        listen: addresses to serve on.
        names: by which the operator says the host is reached.

    Raises:
        TrustError: one is no name.
    """
    given = [canonical(name) for name in names]
    found = dict.fromkeys((*ALWAYS, *given))
    for name in map(canonical, listen):
        if not (is_address(name) and ipaddress.ip_address(name).is_unspecified):
            found[name] = None
        elif not given:
            found.update(dict.fromkeys(map(str, local_addresses()[:MAX_ADDRESSES])))
    return tuple(found)


def host_names(hosts_file: Path = Path("/etc/hosts")) -> tuple[str, ...]:
    """The host's own name, and the names that share a line with it in the hosts file."""
    own = socket.gethostname().lower().removesuffix(".")
    if not _DNS_NAME.fullmatch(own):
        return ()
    try:
        text = hosts_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return (own,)
    return tuple(dict.fromkeys((own, *_aliases(own, text))))


def _aliases(own: str, hosts: str) -> Iterator[str]:
    # Only the host's own lines: a hosts file may name thousands of blocked sites as 127.0.0.1.
    for line in hosts.lower().splitlines():
        names = line.partition("#")[0].split()[1:]
        if own in names:
            yield from filter(_DNS_NAME.fullmatch, names)


def local_addresses() -> tuple[Address, ...]:
    """The addresses of this host's interfaces, in the kernel's order.

    Left out: IPv6 link-local (a certificate cannot name the zone), IPv6 temporary addresses (they
    change by the day), and interfaces that only hold other services' addresses. Where netlink is
    not to be had, the addresses that routes to the outside start from.
    """
    try:
        return tuple(dict.fromkeys(parse_addresses(_dump())))
    except OSError:
        return tuple(dict.fromkeys(_route_sources()))


def parse_addresses(dump: bytes) -> Iterator[Address]:
    """The addresses in the kernel's answer to RTM_GETADDR.

    Raises:
        OSError: the kernel answered with an error.
    """
    for kind, body in _messages(dump):
        if kind == _NLMSG_ERROR:
            raise OSError(-struct.unpack_from("=i", body)[0], "netlink refused")
        if kind != _RTM_NEWADDR:
            continue
        _, _, flags, _, index = _IFADDRMSG.unpack_from(body)
        attributes = dict(_attributes(body[_IFADDRMSG.size :]))
        # On a point-to-point link ADDRESS is the peer's and LOCAL our own.
        packed = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))
        if packed is None:
            continue
        address = ipaddress.ip_address(packed)
        if address.version == 6 and (address.is_link_local or flags & _IFA_F_TEMPORARY):
            continue
        if _interface(index) not in _FOREIGN_INTERFACES:
            yield address


def _dump() -> bytes:
    """The kernel's whole answer to "which addresses?"."""
    request = _NLMSGHDR.pack(
        _NLMSGHDR.size + _IFADDRMSG.size, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0
    ) + _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    answer = b""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.settimeout(_TIMEOUT_SECONDS)
        netlink.send(request)
        while not any(kind in (_NLMSG_DONE, _NLMSG_ERROR) for kind, _ in _messages(answer)):
            answer += netlink.recv(1 << 16)
    return answer


def _messages(dump: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _NLMSGHDR.size <= len(dump):
        length, kind, *_ = _NLMSGHDR.unpack_from(dump, offset)
        yield kind, dump[offset + _NLMSGHDR.size : offset + length]
        offset += max(_align(length), _NLMSGHDR.size)


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _RTATTR.size <= len(body):
        length, kind = _RTATTR.unpack_from(body, offset)
        yield kind, body[offset + _RTATTR.size : offset + length]
        offset += max(_align(length), _RTATTR.size)


def _align(length: int) -> int:
    return (length + 3) & ~3


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def _route_sources() -> Iterator[Address]:
    # Connecting a datagram socket sends nothing; the targets are documentation addresses.
    for family, target in (
        (socket.AF_INET, "192.0.2.1"),
        (socket.AF_INET6, "2001:db8::1"),
    ):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            yield ipaddress.ip_address(probe.getsockname()[0])
