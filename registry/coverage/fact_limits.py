"""Bounds of the facts, so that clients cannot make them grow without end.

Facts about the nodes and images of the list have room of their own. Of all other facts each node
may cause a number, and all nodes together may cause a number.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from mayfly.registry.notices import Notices

MAX_LISTED_FACTS = 1_000_000
"""Facts about nodes and images of the list. 500 nodes with 100 images of ten blobs each, none of
them shared, make 600 000."""

MAX_OTHER_FACTS = 100_000
"""Facts about all other nodes and images."""

MAX_NODES = 10_000
"""Nodes beside those that `--nodes` names: one client may have very many addresses. Each takes some
2.4 KiB, and coverage looks at each of them."""

MAX_OTHER_FACTS_PER_NODE = 10_000
"""Facts about images outside the list that one node can cause."""

MAX_PROVEN = 1_000_000
"""Images that all nodes together say they have: some 200 MiB. A node makes as many as one proof
has, `proofs.MAX_IMAGES`, and needs a credential of its own for it."""

_MAX_NOTICES = 100


class CountedNode(Protocol):
    """A node whose facts are counted; ``others`` of them are outside the list."""

    name: str
    others: int


class FactLimits:
    """Counts facts and says whether there is room for another one.

    Args:
        is_listed: whether a node and a repository are of the list.
        declared: names of `--nodes`; these nodes always have room.

    Attributes:
        count: all facts.
        reached: notices of bounds that were reached.
    """

    def __init__(
        self, is_listed: Callable[[str, str], bool], declared: Collection[str] = ()
    ) -> None:
        self._is_listed = is_listed
        self._declared = frozenset(declared)
        self._others = 0
        self._proven = 0
        self.count = 0
        self.reached = Notices("record_full", _MAX_NOTICES)

    def take(self, node: CountedNode, repository: str, nodes: Collection[str]) -> bool:
        """Count one more fact of a node.

        Args:
            node: that causes it.
            repository: it is about.
            nodes: names of the nodes that have facts already.

        Returns:
            Whether there was room; without, nothing is counted.
        """
        if not self._has_room(node, nodes):
            return False
        if self._is_listed(node.name, repository):
            if self.count - self._others - self._proven >= MAX_LISTED_FACTS:
                self.reached.add("record_full_list", most=MAX_LISTED_FACTS)
                return False
        elif node.others >= MAX_OTHER_FACTS_PER_NODE:
            self.reached.add("record_full_node", node=node.name, most=MAX_OTHER_FACTS_PER_NODE)
            return False
        elif self._others >= MAX_OTHER_FACTS:
            self.reached.add("record_full_others", most=MAX_OTHER_FACTS)
            return False
        else:
            node.others += 1
            self._others += 1
        self.count += 1
        return True

    def take_proof(self, node: CountedNode, nodes: Collection[str]) -> bool:
        """Count one more image that a node says it has; see `take`."""
        if not self._has_room(node, nodes):
            return False
        if self._proven >= MAX_PROVEN:
            self.reached.add("record_full_proofs", most=MAX_PROVEN)
            return False
        self._proven += 1
        self.count += 1
        return True

    def release_proofs(self, number: int) -> None:
        """Count some images less that nodes say they have."""
        self._proven -= number
        self.count -= number

    def _has_room(self, node: CountedNode, nodes: Collection[str]) -> bool:
        """Whether there is room for this node."""
        is_known = node.name in nodes or node.name in self._declared
        if not is_known and len(nodes) >= MAX_NODES + len(self._declared):
            self.reached.add("record_full_nodes", most=MAX_NODES)
            return False
        return True

    def release(self, node: CountedNode, repository: str) -> None:
        """Count one fact less."""
        self.count -= 1
        if not self._is_listed(node.name, repository):
            self._others -= 1
            node.others -= 1
