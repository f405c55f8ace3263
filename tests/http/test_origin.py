"""How clients reach the registry: what the operator says, a trusted proxy, or the request."""

from __future__ import annotations

import ipaddress
from typing import cast

import pytest
from multidict import CIMultiDict

from mayfly.registry.http.origin import Forwarded, Origins
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.settings.readers import read_external_url, read_network

PROXY = (ipaddress.ip_network("10.0.0.0/8"),)


class Request:
    """What `Origins` reads of a request."""

    def __init__(self, peer: str, *headers: tuple[str, str], tls: bool = False) -> None:
        self._known = {"peername": (peer, 1234), "sockname": ("192.0.2.1", 5000)}
        if tls:
            self._known["ssl_object"] = ("", 0)
        self.headers = CIMultiDict(headers)

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._known.get(name, default)


def request(peer: str, *headers: tuple[str, str], tls: bool = False) -> HTTPRequest:
    return cast("HTTPRequest", Request(peer, *headers, tls=tls))


HOST = ("Host", "inner:5000")
FORWARDED = ("Forwarded", 'for=192.0.2.9;proto=https;host="outer:443"')
X = (
    ("X-Forwarded-For", "192.0.2.9"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "outer:443"),
)


@pytest.mark.parametrize(
    ("trusted", "asked", "origin"),
    [
        ((), request("10.0.0.1", HOST), "http://inner:5000"),
        ((), request("10.0.0.1", HOST, tls=True), "https://inner:5000"),
        ((), request("10.0.0.1", ("Host", "a b")), "http://192.0.2.1:5000"),
        ((), request("10.0.0.1", HOST, FORWARDED, *X), "http://inner:5000"),
        (PROXY, request("192.0.2.5", HOST, FORWARDED, *X), "http://inner:5000"),
        (PROXY, request("10.0.0.1", HOST), "http://inner:5000"),
        (PROXY, request("10.0.0.1", HOST, FORWARDED), "https://outer:443"),
        (PROXY, request("::ffff:10.0.0.1", HOST, *X), "https://outer:443"),
        (PROXY, request("10.0.0.1", HOST, *X[:2]), "https://inner:5000"),
        (PROXY, request("10.0.0.1", HOST, ("X-Forwarded-Proto", "gopher")), "http://inner:5000"),
        (PROXY, request("10.0.0.1", HOST, ("X-Forwarded-Host", 'a"b')), "http://inner:5000"),
    ],
)
def test_origin(
    trusted: tuple[ipaddress.IPv4Network, ...], asked: HTTPRequest, origin: str
) -> None:
    """Forwarding headers count from a trusted proxy only, and only where they are well-formed."""
    assert Origins(None, trusted).of(asked) == origin
    external = read_external_url("https://registry.example:8443/hub/")
    assert Origins(external, trusted).of(asked) == "https://registry.example:8443/hub"


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ((), None),
        ((("X-Forwarded-For", "192.0.2.9"),), "192.0.2.9"),
        ((("X-Forwarded-For", "192.0.2.9, 10.0.0.7"),), "192.0.2.9"),
        ((("X-Forwarded-For", "198.51.100.1, 192.0.2.9"),), "192.0.2.9"),
        ((("X-Forwarded-For", "192.0.2.9"), ("X-Forwarded-For", "10.0.0.7")), "192.0.2.9"),
        ((("X-Forwarded-For", "unknown, 10.0.0.7"),), "10.0.0.7"),
        ((("X-Forwarded-For", "\x1b[31m"),), None),
        ((("X-Forwarded-For", ", ".join(["10.0.0.2"] * 5000)),), "10.0.0.2"),
        ((("Forwarded", 'for="[2001:db8::1]:4711"'),), "2001:db8::1"),
        ((("Forwarded", "for=192.0.2.9:80, for=10.0.0.7"),), "192.0.2.9"),
        ((("Forwarded", "for=192.0.2.9"), ("X-Forwarded-For", "192.0.2.8")), "192.0.2.8"),
        ((("Forwarded", 'for="[fe80::1%\x1b[2Jx]"'),), "fe80::1"),
        ((("X-Forwarded-For", "fe80::1%" + "x" * 5000),), "fe80::1"),
    ],
)
def test_client(headers: tuple[tuple[str, str], ...], client: str | None) -> None:
    """The client is the nearest address that is no trusted proxy's; what it claims is not."""
    assert Origins(None, PROXY).forwarded(request("10.0.0.1", *headers)) == Forwarded(client)
    assert Origins(None, PROXY).forwarded(request("192.0.2.5", *headers)) is None
    assert Origins().forwarded(request("10.0.0.1", *headers)) is None


@pytest.mark.parametrize("text", [
    "", "registry.example", "ftp://a", "https://", "https://a:0", "https://a:65536", "https://a b",
    "https://a/b?c", "https://a/../b c", "https://u@a", "https://a//b",
])  # fmt: skip
def test_bad_external_url(text: str) -> None:
    """A URL that clients could not use is refused."""
    with pytest.raises(ValueError, match=r"expected a URL|a port is"):
        read_external_url(text)


def test_networks() -> None:
    """One address is a network, too; host bits are a mistake."""
    assert read_network("10.1.2.3") == ipaddress.ip_network("10.1.2.3/32")
    with pytest.raises(ValueError, match="expected an address or a network"):
        read_network("10.1.2.3/8")
