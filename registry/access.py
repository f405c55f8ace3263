"""What a request needs before it may reach storage: every (resource, action) pair.

The rules are one table. A request without an entry is denied, so an endpoint added later is closed
until someone decides who may use it (`tests/registry/test_access.py` holds the table to the
handlers). Source of the actions: CNCF distribution's token scope documentation.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from registry.errors import AccessDenied
from registry.request import Endpoint, Request


class Need(NamedTuple):
    """One action on one resource, in the words of a token's scope."""

    type: str
    name: str
    action: str


class Policy(Protocol):
    """Says whether an action is allowed. Never changed by a request."""

    def allows(self, need: Need) -> bool:
        """Whether the caller may do this."""


class AllowAll:
    """The policy of a registry that listens on loopback without authentication."""

    def allows(self, need: Need) -> bool:
        return True


PUBLIC: frozenset[tuple[Endpoint, str]] = frozenset(
    {
        (Endpoint.LIVE, "GET"),
        (Endpoint.LIVE, "HEAD"),
        (Endpoint.READY, "GET"),
        (Endpoint.READY, "HEAD"),
        (Endpoint.BASE, "GET"),
        (Endpoint.BASE, "HEAD"),
    }
)
"""Asked for without any right to a resource."""

ACTIONS: dict[tuple[Endpoint, str], tuple[str, ...]] = {
    (Endpoint.TAGS, "GET"): ("pull",),
    (Endpoint.MANIFEST, "GET"): ("pull",),
    (Endpoint.MANIFEST, "HEAD"): ("pull",),
    (Endpoint.MANIFEST, "PUT"): ("pull", "push"),
    (Endpoint.MANIFEST, "DELETE"): ("delete",),
    (Endpoint.BLOB, "GET"): ("pull",),
    (Endpoint.BLOB, "HEAD"): ("pull",),
    (Endpoint.BLOB, "DELETE"): ("delete",),
    (Endpoint.UPLOADS, "POST"): ("pull", "push"),
    (Endpoint.UPLOAD, "GET"): ("pull", "push"),
    (Endpoint.UPLOAD, "PATCH"): ("pull", "push"),
    (Endpoint.UPLOAD, "PUT"): ("pull", "push"),
    (Endpoint.UPLOAD, "DELETE"): ("pull", "push"),
    (Endpoint.REFERRERS, "GET"): ("pull",),
}
"""Actions needed on the request's own repository."""


def needs(request: Request) -> tuple[Need, ...]:
    """Every pair that must be allowed.

    Raises:
        AccessDenied: no rule covers this request.
    """
    key = (request.endpoint, request.method)
    if key in PUBLIC:
        return ()
    if key == (Endpoint.CATALOG, "GET"):
        return (Need("registry", "catalog", "*"),)
    actions = ACTIONS.get(key)
    if actions is None:
        raise AccessDenied("no access rule covers this request")
    wanted = [Need("repository", request.repository, action) for action in actions]
    source = mount_source(request)
    if source:
        wanted.append(Need("repository", source, "pull"))
    return tuple(wanted)


def mount_source(request: Request) -> str | None:
    """The repository that a cross-repository mount names as its source."""
    if request.endpoint is Endpoint.UPLOADS and request.parameter("mount"):
        return request.parameter("from")
    return None


def enforce(policy: Policy, request: Request) -> None:
    """Let a request pass only if everything it needs is allowed.

    Raises:
        AccessDenied: something is not.
    """
    for need in needs(request):
        if not policy.allows(need):
            raise AccessDenied(
                f"{need.action} on {need.type} {need.name} is not allowed",
                {"type": need.type, "name": need.name, "action": need.action},
            )
