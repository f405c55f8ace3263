"""Which machine a request comes from: by its credential, or by its address.

What was issued for a node names that node and no other. Anything else is used by several nodes as
a rule: one imagePullSecret for all kubelets, one user in all hosts.toml files. Those nodes are told
apart by address, as long as addresses are their own. Behind a proxy or NAT they are not, and then
only credentials of their own tell nodes apart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum
from ipaddress import ip_address

from registry import log
from registry.text import join_names

_MAX_ADDRESSES = 10_000
_MAX_NOTICES = 20
_NAMES_SHOWN = 10
REMEDY = "give each node a credential of its own: mayfly credentials --node NAME"


class NodeIdentity(StrEnum):
    """`--node-identity`."""

    AUTO = "auto"
    CREDENTIAL = "credential"
    ADDRESS = "address"


class NodeNames:
    """From the caller of a request to the name of its node.

    Args:
        how: nodes are told apart.
        declared: names of nodes that are listed; empty where only their number is known.
        shared: whether a user's name is one that several nodes use by its kind.

    Attributes:
        notices: why nodes may not be told apart, and what to do, a sentence each.
    """

    def __init__(
        self,
        how: NodeIdentity = NodeIdentity.AUTO,
        declared: frozenset[str] = frozenset(),
        shared: Callable[[str], bool] = lambda user: False,
    ) -> None:
        self._how = how
        self._declared = declared
        self._shared = shared
        self._named_at: dict[str, str] = {}
        """Address → the first node that its credential named and that came from there."""
        self._unnamed_at: dict[str, None] = {}
        """Addresses by which a node was told."""
        self.notices: dict[str, None] = {}

    def name(self, user: str, node: str | None, address: str) -> str:
        """The node that a caller is.

        Args:
            user: the name of the credential or certificate, "" without.
            node: the node that it was issued for, if it was for one.
            address: of the peer, "" without.
        """
        if self._how is NodeIdentity.ADDRESS:
            return address or "unknown"
        named = node
        if named is None and user in self._declared and not self._shared(user):
            named = user
        if named is None and self._how is NodeIdentity.CREDENTIAL:
            return user or address or "unknown"
        return named or address or user or "unknown"

    def is_unknown(self, node: str | None) -> bool:
        """Whether a credential is for a node that is not among those listed."""
        if node is None or not self._declared or node in self._declared:
            return False
        self._notice(f"refused: a credential for node {node}, which --nodes does not list")
        return True

    def without_credentials(self) -> None:
        """No caller has a credential, so that a node is known by its address alone."""
        unreachable = sorted(name for name in self._declared if not _is_address(name))
        if unreachable:
            names = join_names(unreachable, _NAMES_SHOWN)
            self._notice(
                f"without authentication nodes are known by address only, and --nodes lists names: "
                f"{names}; list addresses, or serve with --auth auto"
            )

    def pulled(self, node: str, user: str, address: str, *, runtime: bool) -> None:
        """Look for nodes that cannot be told apart, or that do not count, when one pulls.

        Only pulls count: clients try without credentials first, and log in, before they are a
        node.

        Args:
            node: as `name` gave it.
            user: the name of the credential or certificate, "" without.
            address: of the peer, "" without.
            runtime: whether a container runtime pulls.
        """
        if self._how is NodeIdentity.AUTO and address:
            self._look_for_translation(None if node == address else node, address)
        if runtime and self._declared and node not in self._declared:
            who = f"user {user} at {address}" if user else f"a client at {address}"
            remedy = "or list its address" if node == address else "or list that user"
            self._notice(
                f"{who} pulls and counts as node {node}, which --nodes does not list. If it is "
                f"one of the nodes, log it in with a credential of its own (mayfly credentials "
                f"--node NAME), {remedy}"
            )

    def _look_for_translation(self, named: str | None, address: str) -> None:
        first = self._named_at.get(address)
        if named is None:
            if first is None and len(self._unnamed_at) < _MAX_ADDRESSES:
                self._unnamed_at[address] = None
            elif first is not None:
                self._notice(
                    f"node {first} and a caller without a node's credential share the address "
                    f"{address}: {REMEDY}"
                )
            return
        if first is None and len(self._named_at) < _MAX_ADDRESSES:
            self._named_at[address] = named
        elif first is not None and first != named:
            self._notice(
                f"nodes {first} and {named} share the address {address}, so nodes cannot be told "
                f"apart by address: {REMEDY}"
            )
        if address in self._unnamed_at and first is None:
            self._notice(
                f"node {named} and a caller without a node's credential share the address "
                f"{address}: {REMEDY}"
            )

    def _notice(self, text: str) -> None:
        if text not in self.notices and len(self.notices) < _MAX_NOTICES:
            self.notices[text] = None
            log.tell(logging.WARNING, "nodes", text)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
