"""What an operator's words about a registry mean."""

from __future__ import annotations

import pytest

from mayfly.registry.nodes.target import parse
from mayfly.registry.pki.errors import TrustError


@pytest.mark.parametrize(
    ("given", "registry", "url"),
    [
        ("Registry.Example.com:5000", "registry.example.com:5000", "https"),
        ("10.0.0.5", "10.0.0.5", "https"),
        ("https://10.0.0.5:443/", "10.0.0.5:443", "https"),
        ("[FD00::0:2]:5000", "[fd00::2]:5000", "https"),
        ("[fd00::2]", "[fd00::2]", "https"),
        ("host:05000", "host:5000", "https"),
    ],
)
def test_a_registry_with_a_ca_speaks_tls(
    ca_pem: bytes, given: str, registry: str, url: str
) -> None:
    """The host is spelled as image names spell it."""
    target = parse(given, ca_pem)
    assert target.registry == registry
    assert target.url == f"{url}://{registry}"
    assert target.ca == ca_pem


@pytest.mark.parametrize("given", ["127.0.0.1:5000", "localhost:5000", "127.1.2.3"])
def test_loopback_without_a_ca_is_plain(given: str) -> None:
    """As `serve` listens on loopback without TLS."""
    target = parse(given)
    assert not target.tls
    assert target.loopback


@pytest.mark.parametrize("given", ["10.0.0.5:5000", "registry.example.com", "[::1]:5000"])
def test_elsewhere_tls_has_to_be_said(given: str) -> None:
    """The guess "no TLS" would let anybody be the registry; the error says both ways out."""
    with pytest.raises(TrustError, match=r"--ca FILE, or write https://.* or http://"):
        parse(given)
    assert parse(f"https://{given}").tls
    assert parse(f"https://{given}").ca is None
    assert not parse(f"http://{given}").tls


def test_no_tls_and_a_ca_contradict(ca_pem: bytes) -> None:
    """One of them is a mistake."""
    with pytest.raises(TrustError, match="says no TLS, but a CA is given"):
        parse("http://10.0.0.5:5000", ca_pem)


@pytest.mark.parametrize(
    "given",
    [
        "",
        ":5000",
        "host:",
        "host:0",
        "host:65536",
        "host:port",
        "host/path",
        "ftp://host",
        "fd00::2",
        "0.0.0.0:5000",
        "[::]:5000",
        "*.example.com",
        "a b:1",
        "host:5000\n",
        "../..:1",
    ],
)
def test_what_is_no_registry_is_refused(ca_pem: bytes, given: str) -> None:
    """Nothing of it can become a path or a line in a file."""
    with pytest.raises(TrustError):
        parse(given, ca_pem)


def test_mirrors_are_spelled_as_image_names_spell_them() -> None:
    """Docker Hub has one name; each upstream counts once."""
    given = ["index.docker.io", "Quay.io", "docker.io", "registry-1.docker.io", "r.example:5000"]
    assert parse("localhost", mirrors=given).mirrors == ("docker.io", "quay.io", "r.example:5000")


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "https://quay.io", "a b", "a..b", "_default", "x:y", '"']
)
def test_what_is_no_upstream_is_refused(name: str) -> None:
    """The error shows how to write one."""
    with pytest.raises(TrustError, match=r"docker\.io, quay\.io"):
        parse("localhost", mirrors=[name])


def test_the_ca_is_named_in_errors() -> None:
    """By the file it came from."""
    with pytest.raises(TrustError, match="ca-file: holds no PEM certificate"):
        parse("host", b"noise", ca_source="ca-file")


def test_certs_dir_is_absolute() -> None:
    """It is written into files that know no working directory."""
    with pytest.raises(TrustError, match="absolute path"):
        parse("localhost", certs_dir="certs.d")


def test_a_registry_below_a_path() -> None:
    """The path is part of the URL, and of no image name."""
    target = parse("https://registry.example/hub/")
    assert (target.registry, target.path) == ("registry.example", "/hub")
    assert target.url == "https://registry.example/hub"


@pytest.mark.parametrize("given", ["registry.example/hub", "https://x/hub?a", "https://x/a//b"])
def test_a_path_that_is_none(given: str) -> None:
    """A path needs a scheme before it, and has no other parts of a URL behind it."""
    with pytest.raises(TrustError, match="HOST:PORT"):
        parse(given)
