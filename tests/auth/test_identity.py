"""Names, certificates and what an identity shows."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from mayfly.auth.errors import CredentialsInvalid, InputInvalid
from mayfly.auth.identity import (
    ANONYMOUS,
    Credential,
    Identity,
    check_name,
    check_node,
    from_certificate,
)


@pytest.mark.parametrize("name", ["a", "alice", "Alice B.", "j\u00f6rg", "x" * 255, "a+robot"])
def test_valid_names(name: str) -> None:
    """Whatever htpasswd can hold and a log can show is a name."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a:b",
        " a",
        "a ",
        "#a",
        "a\nb",
        "a\0b",
        "a\x1b[0m",
        "a\u2028b",
        "a\u202eb",
        "\udc80",
        "x" * 256,
        "\u00f6" * 128,
        "robot+a",
    ],
)
def test_invalid_names(name: str) -> None:
    """A name cannot end early in a header or file, forge a log line, or be a robot's."""
    with pytest.raises(InputInvalid):
        check_name(name)


def test_identity_is_frozen_and_keeps_secrets() -> None:
    """An identity cannot be changed; its secrets, and a credential's, are not printed."""
    identity = Identity("bob", "basic", fingerprint="do-not-print")
    with pytest.raises(FrozenInstanceError):
        identity.name = "admin"
    assert "do-not-print" not in repr(identity)
    assert "do-not-print" not in repr(Credential("bob", "do-not-print"))
    assert ANONYMOUS.anonymous
    assert not identity.anonymous


def _certificate(*subject: tuple[str, str]) -> dict[str, object]:
    return {"subject": tuple((pair,) for pair in subject)}


def test_certificate_of_a_node() -> None:
    """A kubelet's common name gives user and node, its organizations give groups."""
    identity = from_certificate(
        _certificate(
            ("organizationName", "system:nodes"),
            ("organizationName", "rack-1"),
            ("commonName", "system:node:node-7"),
        )
    )
    assert identity == Identity(
        "node-7", "certificate", groups=frozenset({"rack-1"}), node="node-7"
    )


def test_certificate_of_a_user() -> None:
    """Another common name is a user and no node."""
    assert from_certificate(_certificate(("commonName", "ci"))) == Identity("ci", "certificate")


@pytest.mark.parametrize(
    "subject",
    [
        (),
        (("commonName", "a"), ("commonName", "b")),
        (("commonName", ""),),
        (("commonName", "robot+x"),),
        (("commonName", "system:node:robot+x"),),
        (("commonName", "system:admin"),),
        (("commonName", "a"), ("organizationName", "b\nc")),
    ],
)
def test_certificate_without_a_usable_name(subject: tuple[tuple[str, str], ...]) -> None:
    """A certificate that does not name exactly one valid user is nobody's."""
    with pytest.raises(CredentialsInvalid):
        from_certificate(_certificate(*subject))


@pytest.mark.parametrize("name", ["10.0.0.8", "fe80::1", "node-1", "2001:db8::1"])
def test_node(name: str) -> None:
    """A node is named as a user is, or by an address."""
    assert check_node(name) == name


@pytest.mark.parametrize(
    "name", ["", "a:b", "fe80::1%eth0", "fe80::1%\x1b[31mHI\n", "fe80::1%" + "x" * 2000]
)
def test_name_that_no_node_has(name: str) -> None:
    """The zone of an address is any text, and no part of a name."""
    with pytest.raises(InputInvalid):
        check_node(name)
