"""The rights that a request needs before it may reach storage: (resource, action) pairs.

Each route has a `Rule`. A route without one is denied, so a new endpoint is closed until it
gets a rule. Source of the actions: CNCF distribution's token scope documentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mayfly.auth.scope import NODE, PROVE
from mayfly.registry.access.errors import AccessDenied

if TYPE_CHECKING:
    from mayfly.registry.telemetry.events import Action


class Need(NamedTuple):
    """One action on one resource, in the words of a token's scope."""

    type: str
    name: str
    action: str


class Rule(NamedTuple):
    """The rights that a route needs.

    Attributes:
        actions: needed on the request's own repository.
        node_actions: needed on the request's own node.
        needs: the same for every request of the route.
        public: whether credentials are not looked at.
        login: whether anonymous callers are asked to log in although nothing is needed.
        session: whether a browser's session counts as proof (`access.sessions`).
    """

    actions: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    public: bool = False
    login: bool = False
    node_actions: tuple[str, ...] = ()
    session: bool = False


PUBLIC = Rule(public=True)
LOGIN = Rule(login=True)
CATALOG = Rule(needs=(Need("registry", "catalog", "*"),))
STATUS = Rule(needs=(Need("registry", "status", "*"),), session=True)
STOP = Rule(needs=(Need("registry", "stop", "*"),), session=True)
PULL = Rule(("pull",))
PUSH = Rule(("pull", "push"))
DELETE = Rule(("delete",))
OWN_NODE = Rule(node_actions=(PROVE,))
"""For a credential that was issued for the node that the path names."""

_ACTIONS: dict[tuple[str, ...], Action] = {
    PULL.actions: "pull",
    PUSH.actions: "push",
    DELETE.actions: "delete",
}


class AccessRequest(NamedTuple):
    """The facts of a request that decide on access, or that the audit records.

    Attributes:
        endpoint: the name of its route.
        method: of HTTP.
        rule: of its route; None denies.
        repository: "" where the endpoint has none.
        optional: pairs that the request does not require but can use: challenges also ask for them.
        ns: the registry that containerd asks on behalf of, "" without.
        node: that the path names, "" without.
    """

    endpoint: str
    method: str
    rule: Rule | None
    repository: str = ""
    optional: tuple[Need, ...] = ()
    ns: str = ""
    node: str = ""

    @property
    def public(self) -> bool:
        """Whether it is answered without looking at credentials."""
        return self.rule is not None and self.rule.public

    @property
    def action(self) -> Action:
        """The action of its event."""
        if self.rule is not None and self.rule.node_actions:
            return "prove"
        if self.rule is None or not (self.rule.actions or self.rule.needs):
            return "login"
        if self.rule == STOP:
            return "stop"
        return _ACTIONS.get(self.rule.actions, "list")

    def needs(self) -> tuple[Need, ...]:
        """Return every pair that must be allowed.

        Raises:
            AccessDenied: no rule covers this request.
        """
        if self.rule is None:
            raise AccessDenied("no access rule covers this request")
        own = [Need("repository", self.repository, action) for action in self.rule.actions]
        of_node = [Need(NODE, self.node, action) for action in self.rule.node_actions]
        return (*self.rule.needs, *own, *of_node)
