"""Identifies the node that a request comes from, by its credential or its address.

A credential issued for a node names that node and no other. Any other is usually shared by several
nodes: one imagePullSecret for all kubelets, one user in all hosts.toml files. Those nodes are told
apart by address, as long as addresses are their own. Behind a proxy or NAT they are not, and then
only credentials of their own tell nodes apart.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from mayfly.registry.notices import Notices
from mayfly.registry.settings.choices import NodeIdentity

_MAX_ADDRESSES = 10_000
_MAX_NOTICES = 20


class NodeNames:
    """Maps the caller of a request to the name of its node.

    Args:
        how: nodes are told apart.
        declared: names of nodes that are listed; empty where only their number is known.
        shared: whether a user's name is one that several nodes use by its kind.

    Attributes:
        notices: why nodes may not be told apart.
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
        """Address → the first node with a credential of its own that pulled from there."""
        self._is_proxy: Callable[[str], bool] = lambda address: False
        self._unnamed_at: dict[str, None] = {}
        """Addresses that were taken as the name of a node that pulled."""
        self.notices = Notices("nodes", _MAX_NOTICES)

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
        self.notices.add("node_not_listed", node=node)
        return True

    def without_credentials(self) -> None:
        """Note that the registry has no authentication, so nodes are known by address alone."""
        unreachable = sorted(name for name in self._declared if not _is_address(name))
        if unreachable:
            self.notices.add("names_without_authentication", nodes=tuple(unreachable))

    def behind_proxies(
        self, is_proxy: Callable[[str], bool], external_url: str, *, trusts_any: bool
    ) -> None:
        """Learn how clients reach the registry, and note where their addresses do not arrive.

        Args:
            is_proxy: whether an address is a trusted proxy's.
            external_url: at which clients reach the registry, if not directly; "" if they do.
            trusts_any: whether any proxy is trusted to say for whom it asks.
        """
        self._is_proxy = is_proxy
        by_address = not self._declared or any(map(_is_address, self._declared))
        if self._how is NodeIdentity.AUTO and external_url and not trusts_any and by_address:
            self.notices.add("proxy_not_trusted", url=external_url)

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
            self._look_for_translation(node, address)
        if runtime and self._declared and node not in self._declared:
            self.notices.add("pull_not_listed", node=node, user=user, address=address)

    def _look_for_translation(self, node: str, address: str) -> None:
        """Notice several nodes behind one address.

        Nodes with credentials of their own may share an address. A node that only its address names
        is in doubt where another one pulls from there, too.
        """
        if node == address:
            if self._is_proxy(address):
                self.notices.add("proxy_hides_addresses", address=address)
            if len(self._unnamed_at) < _MAX_ADDRESSES:
                self._unnamed_at[address] = None
        elif len(self._named_at) < _MAX_ADDRESSES:
            self._named_at.setdefault(address, node)
        if address in self._unnamed_at and address in self._named_at:
            named = self._named_at[address]
            self.notices.add("address_shared", node=named, address=address)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
