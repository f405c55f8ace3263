"""Identify the node that a request comes from, by its credential or its address.

A credential issued for a node names that node. Other credentials are usually shared by several
nodes: one imagePullSecret for all kubelets, one user in all hosts.toml files. Those nodes are
distinguished by address, as long as each has its own. Behind a proxy or NAT they share one, and
then only credentials of their own distinguish nodes.
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
        identity: how nodes are distinguished.
        declared: names of `--nodes`; empty if only their number is known.
        is_shared: whether several nodes use a user's name.

    Attributes:
        declared: as given.
        notices: reasons why nodes may not be distinguished.
    """

    def __init__(
        self,
        identity: NodeIdentity = NodeIdentity.AUTO,
        declared: frozenset[str] = frozenset(),
        is_shared: Callable[[str], bool] = lambda user: False,
    ) -> None:
        self._identity = identity
        self.declared = declared
        self._is_shared = is_shared
        self._named_at: dict[str, str] = {}
        """Address → first node with a credential of its own that pulled from there."""
        self._is_proxy: Callable[[str], bool] = lambda address: False
        self._unnamed_at: dict[str, None] = {}
        """Addresses that were used as the name of a node that pulled."""
        self.notices = Notices("nodes", _MAX_NOTICES)

    def name(self, user: str, node: str | None, address: str) -> str:
        """Return the name of a client's node.

        Args:
            user: name of the credential or certificate; "" without.
            node: that the credential was issued for; None for other credentials.
            address: of the peer; "" without.
        """
        if self._identity is NodeIdentity.ADDRESS:
            return address or "unknown"
        named = node
        if named is None and user in self.declared and not self._is_shared(user):
            named = user
        if named is None and self._identity is NodeIdentity.CREDENTIAL:
            return user or address or "unknown"
        return named or address or user or "unknown"

    def is_unknown(self, node: str | None) -> bool:
        """Whether a credential is for a node that `--nodes` does not list."""
        if node is None or not self.declared or node in self.declared:
            return False
        self.notices.add("node_not_listed", node=node)
        return True

    def without_credentials(self) -> None:
        """Note that the registry has no authentication, so nodes are known by address only."""
        unreachable = sorted(name for name in self.declared if not _is_address(name))
        if unreachable:
            self.notices.add("names_without_authentication", nodes=tuple(unreachable))

    def behind_proxies(
        self, is_proxy: Callable[[str], bool], external_url: str, *, trusts_any: bool
    ) -> None:
        """Set how clients reach the registry, and note if a proxy hides their addresses.

        Args:
            is_proxy: whether an address is a trusted proxy's.
            external_url: by which clients reach the registry; "" if they reach it directly.
            trusts_any: whether a proxy is trusted to forward the client's address.
        """
        self._is_proxy = is_proxy
        by_address = not self.declared or any(map(_is_address, self.declared))
        if self._identity is NodeIdentity.AUTO and external_url and not trusts_any and by_address:
            self.notices.add("proxy_not_trusted", url=external_url)

    def pulled(self, node: str, user: str, address: str, *, runtime: bool) -> None:
        """Note a pull, and look for nodes that cannot be distinguished or do not count.

        Other requests do not show a node: clients try without credentials first, and log in.

        Args:
            node: as returned by `name`.
            user: name of the credential or certificate; "" without.
            address: of the peer; "" without.
            runtime: whether a container runtime pulls.
        """
        if self._identity is NodeIdentity.AUTO and address:
            self._check_address(node, address)
        if runtime and self.declared and node not in self.declared:
            self.notices.add("pull_not_listed", node=node, user=user, address=address)

    def _check_address(self, node: str, address: str) -> None:
        """Note an address from which a node named by it and a node with a credential pull."""
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
