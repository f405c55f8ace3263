"""Which names and addresses go into the certificate."""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from mayfly.registry.pki import addresses
from mayfly.registry.pki.addresses import canonical, host_names, local_addresses, wanted_names
from mayfly.registry.pki.errors import TrustError
from tests.support.process import need


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Registry.Example.COM.", "registry.example.com"),
        ("[::1]", "::1"),
        ("FD00:0:0:0:0:0:0:2", "fd00::2"),
        ("10.0.0.5", "10.0.0.5"),
        ("*.example.com", "*.example.com"),
        ("node_1", "node_1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_canonical_spelling(given: str, expected: str) -> None:
    """Each name or address has one spelling."""
    assert canonical(given) == expected


@pytest.mark.parametrize(
    "given",
    ["", "a b", "bücher.example", "-a", "a..b", "a/b", "host:5000", "a" * 64, "a.*", "x\n", "."],
)
def test_no_name_is_refused(given: str) -> None:
    """What no certificate can hold is refused, with the text in question."""
    with pytest.raises(TrustError, match="neither a DNS name nor an IP address"):
        canonical(given)


def test_wanted_names_begin_with_loopback_and_hold_the_host() -> None:
    """127.0.0.1, ::1, localhost and the host's name are always there, each once."""
    names = wanted_names(["LOCALHOST", "registry.example.com", "0.0.0.0", "::"])
    assert names[:3] == ("localhost", "127.0.0.1", "::1")
    assert socket.gethostname().lower() in names
    assert "registry.example.com" in names
    assert not {"0.0.0.0", "::"} & set(names)
    assert len(names) == len(set(names))


def test_addresses_are_those_that_ip_shows() -> None:
    """netlink's answer is read as iproute2 reads it."""
    need("ip")
    shown = json.loads(subprocess.check_output(["ip", "-json", "addr"]))
    expected = {
        entry["local"]
        for link in shown
        for entry in link["addr_info"]
        if not (entry["family"] == "inet6" and (entry["scope"] == "link" or "temporary" in entry))
    }
    assert {str(address) for address in local_addresses()} == expected


def _record(family: int, flags: int, *attributes: tuple[int, bytes]) -> bytes:
    """One RTM_NEWADDR message, as in rtnetlink(7)."""
    body = struct.pack("=BBBBI", family, 64, flags, 0, 9999)
    for kind, value in attributes:
        body += struct.pack("=HH", 4 + len(value), kind) + value
        body += b"\0" * (-len(body) % 4)
    return struct.pack("=IHHII", 16 + len(body), 20, 2, 1, 0) + body


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def test_parse_takes_the_local_end_and_leaves_out_what_cannot_be_named() -> None:
    """A peer's, a link-local and a temporary address are left out."""
    dump = (
        _record(socket.AF_INET, 0, (1, _packed("10.8.0.1")), (2, _packed("10.8.0.2")))
        + _record(socket.AF_INET, 1, (1, _packed("10.9.0.1")), (3, b"eth0:sec\0"))
        + _record(socket.AF_INET6, 0, (1, _packed("fe80::1")))
        + _record(socket.AF_INET6, 1, (1, _packed("fd00::abcd")))
        + _record(socket.AF_INET6, 0, (1, _packed("fd00::2")))
        + _record(socket.AF_INET6, 0)
    )
    found = [str(address) for address in addresses.parse_addresses(dump)]
    assert found == ["10.8.0.2", "10.9.0.1", "fd00::2"]


def test_parse_ends_on_any_bytes() -> None:
    """Damaged answers end, whatever length they claim."""
    assert list(addresses.parse_addresses(struct.pack("=IHHII", 0, 7, 0, 0, 0) * 3)) == []


def test_other_services_addresses_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """kube-proxy's dummy interface holds every Service's address."""
    monkeypatch.setattr(addresses, "_interface", lambda index: "kube-ipvs0")
    dump = _record(socket.AF_INET, 0, (1, _packed("10.96.0.1")))
    assert list(addresses.parse_addresses(dump)) == []


def test_without_netlink_the_routes_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the netlink family is forbidden, start-up continues with fewer addresses."""

    def forbidden() -> bytes:
        raise PermissionError("no netlink")

    monkeypatch.setattr(addresses, "_dump", forbidden)
    assert set(local_addresses()) <= set(addresses._route_sources())


def test_host_names_take_the_own_line_of_the_hosts_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aliases count only on lines that name this host."""
    monkeypatch.setattr(socket, "gethostname", lambda: "Node1")
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "127.0.0.1 localhost ads.example.com\n127.0.1.1 node1.example.com node1 # a note\n"
    )
    assert host_names(hosts) == ("node1", "node1.example.com")
    assert host_names(tmp_path / "absent") == ("node1",)


def test_a_host_name_that_is_no_dns_name_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start does not fail for the host's strange name."""
    monkeypatch.setattr(socket, "gethostname", lambda: "my host")
    assert host_names() == ()
