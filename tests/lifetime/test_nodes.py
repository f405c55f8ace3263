"""Which node a caller is."""

from __future__ import annotations

import pytest

from registry.lifetime.nodes import REMEDY, NodeIdentity, NodeNames

AUTO, CREDENTIAL, ADDRESS = NodeIdentity
A, B = "10.0.0.7", "10.0.0.8"


def names(how: NodeIdentity, *declared: str) -> NodeNames:
    return NodeNames(how, frozenset(declared), lambda user: user in ("pull", "robot+x"))


@pytest.mark.parametrize(
    ("how", "user", "node", "address", "declared", "expected"),
    [
        # Issued for a node: that node, whatever the address.
        (AUTO, "robot+x", "worker-1", A, (), "worker-1"),
        (CREDENTIAL, "robot+x", "worker-1", A, (), "worker-1"),
        (ADDRESS, "robot+x", "worker-1", A, (), A),
        # A user is a node where it is listed as one; else several may use it.
        (AUTO, "worker-1", None, A, ("worker-1",), "worker-1"),
        (AUTO, "worker-1", None, A, (), A),
        (CREDENTIAL, "worker-1", None, A, (), "worker-1"),
        (AUTO, "ci", None, A, (A,), A),
        (AUTO, "ci", None, A, ("ci", A), "ci"),
        # What was issued to everybody names nobody, though somebody lists it.
        (AUTO, "pull", None, A, ("pull",), A),
        (AUTO, "pull", None, A, (), A),
        (CREDENTIAL, "pull", None, A, (), "pull"),
        # Nobody in particular.
        (AUTO, "", None, A, (), A),
        (CREDENTIAL, "", None, A, (), A),
        (AUTO, "", None, "", (), "unknown"),
        (ADDRESS, "", None, "", (), "unknown"),
        (AUTO, "ci", None, "", (), "ci"),
    ],
)
def test_name(
    how: NodeIdentity,
    user: str,
    node: str | None,
    address: str,
    declared: tuple[str, ...],
    expected: str,
) -> None:
    """By the credential, by the address, or by whichever says more."""
    assert names(how, *declared).name(user, node, address) == expected


def test_shared_credential_at_three_addresses() -> None:
    """One credential for all nodes: as many nodes as addresses, and nothing to warn of."""
    found = names(AUTO)
    addresses = (A, B, "10.0.0.9")
    assert [found.name("robot+x", None, address) for address in addresses] == [*addresses]
    assert not found.notices


@pytest.mark.parametrize(
    "callers",
    [
        [("robot+x", "worker-1"), ("robot+y", "worker-2")],
        [("robot+x", "worker-1"), ("pull", None)],
        [("pull", None), ("robot+x", "worker-1")],
    ],
)
def test_translated_addresses(callers: list[tuple[str, str | None]]) -> None:
    """Several nodes at one address are said once, with what to do."""
    found = names(AUTO)
    for _ in range(3):
        for user, node in callers:
            found.name(user, node, A)
    assert len(found.notices) == 1
    assert REMEDY in next(iter(found.notices))
    assert not names(CREDENTIAL).notices


def test_notices_and_addresses_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Addresses that a client makes up fill neither memory nor log."""
    found = names(AUTO, "worker-1")
    for i in range(30_000):
        found.name("", None, f"10.{i // 65536}.{i // 256 % 256}.{i % 256}")
    for i in range(100):
        assert found.is_unknown(f"worker-{i + 2}")
    assert len(found.notices) == len(caplog.records) == 20
    assert len(found._unnamed_at) <= 10_000


def test_unknown_node() -> None:
    """With names listed, a credential for another node is one that nobody waits for."""
    assert names(AUTO, "worker-1").is_unknown("worker-2")
    assert not names(AUTO, "worker-1").is_unknown("worker-1")
    assert not names(AUTO, "worker-1").is_unknown(None)
    assert not names(AUTO).is_unknown("worker-2")


def test_names_that_no_address_can_be() -> None:
    """Without credentials a node that is listed by name can never be seen."""
    found = names(AUTO, "worker-1", A, "fe80::1")
    found.without_credentials()
    (notice,) = found.notices
    assert "names: worker-1; list addresses" in notice
    only = names(AUTO, A)
    only.without_credentials()
    assert not only.notices
