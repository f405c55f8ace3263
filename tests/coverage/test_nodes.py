"""The node of a client."""

from __future__ import annotations

import json
import re

import pytest

from mayfly.registry.coverage.nodes import NodeNames
from mayfly.registry.notices import REMEDY, text
from mayfly.registry.settings.choices import NodeIdentity
from tests.support.process import REPO

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
    """Nodes are named by credential, by address, or by either."""
    assert names(how, *declared).name(user, node, address) == expected


def test_shared_credential_at_three_addresses() -> None:
    """With one credential for all nodes, each address is a node, without a warning."""
    found = names(AUTO)
    for address in (A, B, "10.0.0.9"):
        assert found.name("robot+x", None, address) == address
        found.pulled(address, "robot+x", address, runtime=True)
    assert not found.notices.all()


UNNAMED, ONE, TWO = ("pull", None), ("robot+x", "worker-1"), ("robot+y", "worker-2")


@pytest.mark.parametrize(
    "callers", [[ONE, UNNAMED], [UNNAMED, ONE], [ONE, UNNAMED, TWO], [UNNAMED, ONE, TWO]]
)
def test_node_that_its_address_does_not_tell(callers: list[tuple[str, str | None]]) -> None:
    """A node named by its address, and another node at that address, are one notice."""
    found = names(AUTO)
    for _ in range(3):
        for user, node in callers:
            found.pulled(found.name(user, node, A), user, A, runtime=True)
    (notice,) = found.notices.all()
    assert notice == {"code": "address_shared", "node": "worker-1", "address": A}
    assert REMEDY in text(notice)


@pytest.mark.parametrize("how", [AUTO, CREDENTIAL])
def test_nodes_with_credentials_may_share_an_address(how: NodeIdentity) -> None:
    """Three runtimes of one machine, each with its own credential, are no notice, also if a client
    makes its first request without it, as docker does."""
    found = names(how)
    for user, node in (ONE, TWO, ("robot+z", "worker-3")):
        found.name("", None, A)  # is answered 401, and pulls nothing
        found.pulled(found.name(user, node, A), user, A, runtime=True)
    assert found.notices.all() == []


def test_a_caller_is_named_without_a_notice() -> None:
    """A node's first try without credentials does not count as a second node."""
    found = names(AUTO, "worker-1")
    for user, node in (("", None), ("robot+x", "worker-1"), ("", None)):
        found.name(user, node, A)
    found.pulled("worker-1", "robot+x", A, runtime=True)
    assert not found.notices.all()


@pytest.mark.parametrize(
    ("how", "user", "node", "told"),
    [
        (AUTO, "pull", A, "user pull at 10.0.0.7 pulls and counts as node 10.0.0.7"),
        (AUTO, "", A, "a client at 10.0.0.7 pulls and counts as node 10.0.0.7"),
        (ADDRESS, "robot+x", A, "user robot+x at 10.0.0.7 pulls and counts as node 10.0.0.7"),
        (CREDENTIAL, "pull", "pull", "user pull at 10.0.0.7 pulls and counts as node pull"),
    ],
)
def test_pulls_of_a_node_that_is_not_listed(
    how: NodeIdentity, user: str, node: str, told: str
) -> None:
    """A node that is not listed but pulls is a notice, since coverage would never be complete."""
    found = names(how, "worker-1")
    found.pulled(node, user, A, runtime=False)
    assert not found.notices.all()
    for _ in range(3):
        found.pulled(node, user, A, runtime=True)
    (notice,) = found.notices.all()
    assert notice == {"code": "pull_not_listed", "node": node, "user": user, "address": A}
    assert text(notice).startswith(f"{told}, which --nodes does not list")
    counted = names(how)
    counted.pulled(node, user, A, runtime=True)
    assert not counted.notices.all()


def test_notices_and_addresses_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Made-up addresses fill neither memory nor log."""
    found = names(AUTO, "worker-1")
    for i in range(30_000):
        address = f"10.{i // 65536}.{i // 256 % 256}.{i % 256}"
        found.pulled(found.name("", None, address), "", address, runtime=False)
        found.pulled("worker-1", "robot+x", f"1{address}", runtime=False)
    for i in range(100):
        assert found.is_unknown(f"worker-{i + 2}")
    assert len(found.notices.all()) == len(caplog.records) == 20
    assert len(found._unnamed_at) == len(found._named_at) == 10_000


def test_unknown_node() -> None:
    """If names are listed, a credential for another node is refused with a notice."""
    assert names(AUTO, "worker-1").is_unknown("worker-2")
    assert not names(AUTO, "worker-1").is_unknown("worker-1")
    assert not names(AUTO, "worker-1").is_unknown(None)
    assert not names(AUTO).is_unknown("worker-2")


def test_names_that_no_address_can_be() -> None:
    """Without authentication, nodes listed by name are a notice."""
    found = names(AUTO, "worker-1", A, "fe80::1")
    found.without_credentials()
    (notice,) = found.notices.all()
    assert notice == {"code": "names_without_authentication", "nodes": ("worker-1",)}
    assert "names: worker-1; list addresses" in text(notice)
    only = names(AUTO, A)
    only.without_credentials()
    assert not only.notices.all()


def test_proxy_that_forwards_no_address() -> None:
    """A pull that counts as the trusted proxy is a notice, once; a named node's is not."""
    found = names(AUTO)
    found.behind_proxies(lambda address: address == A, "https://registry.example", trusts_any=True)
    assert found.notices.all() == []
    found.pulled("worker-1", "robot+x", A, runtime=True)
    found.pulled(B, "pull", B, runtime=True)
    assert found.notices.all() == []
    other = names(AUTO)
    other.behind_proxies(lambda address: address == A, "", trusts_any=True)
    for _ in range(2):
        other.pulled(A, "pull", A, runtime=True)
    (notice,) = other.notices.all()
    assert notice == {"code": "proxy_hides_addresses", "address": A}
    assert "X-Forwarded-For" in text(notice)
    assert REMEDY in text(notice)


@pytest.mark.parametrize(
    ("how", "url", "trusts_any", "declared", "warned"),
    [
        (AUTO, "https://x", False, (), True),
        (AUTO, "https://x", False, (A, "worker-1"), True),
        (AUTO, "https://x", False, ("worker-1",), False),
        (AUTO, "https://x", True, (), False),
        (AUTO, "", False, (), False),
        (CREDENTIAL, "https://x", False, (), False),
    ],
)
def test_proxy_that_nobody_trusts(
    how: NodeIdentity, url: str, trusts_any: bool, declared: tuple[str, ...], warned: bool
) -> None:
    """A proxy that is not trusted is a notice from the start if nodes are known by address."""
    found = names(how, *declared)
    found.behind_proxies(lambda address: False, url, trusts_any=trusts_any)
    assert [one["code"] for one in found.notices.all()] == ["proxy_not_trusted"] * warned


def test_every_notice_has_words_and_a_schema() -> None:
    """Each notice has a sentence for people and a schema for programs."""
    added = set()
    for path in (REPO / "registry").rglob("*.py"):
        added |= set(re.findall(r"\.(?:notices|reached)\.add\(\s*\"([a-z_]+)\"", path.read_text()))
    schema = json.loads((REPO / "docs/commands.schema.json").read_text())
    known = [one["properties"] for one in schema["$defs"]["warning"]["oneOf"]]
    assert {one["code"]["const"] for one in known} == added
    for one in known:
        code = one["code"]["const"]
        shown = text({name: ["x"] if name == "nodes" else "x" for name in one} | {"code": code})
        assert not shown.startswith(f"{code}: ")
