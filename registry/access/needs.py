"""What a request needs before it may reach storage: every (resource, action) pair.

The rules are one table. A request without an entry is denied, so an endpoint added later is closed
until someone decides who may use it (`tests/registry/test_access.py` holds the table to the
handlers). Source of the actions: CNCF distribution's token scope documentation.
"""

from __future__ import annotations

from typing import NamedTuple

from mayfly.registry.api.errors import AccessDenied
from mayfly.registry.api.request import Endpoint, Request
from mayfly.storage.errors import NameInvalid
from mayfly.storage.names import check_repository


class Need(NamedTuple):
    """One action on one resource, in the words of a token's scope."""

    type: str
    name: str
    action: str


PUBLIC: frozenset[tuple[Endpoint, str]] = frozenset(
    {
        (Endpoint.ROOT, "GET"),
        (Endpoint.ROOT, "HEAD"),
        (Endpoint.LIVE, "GET"),
        (Endpoint.LIVE, "HEAD"),
        (Endpoint.READY, "GET"),
        (Endpoint.READY, "HEAD"),
        (Endpoint.TOKEN, "GET"),
        (Endpoint.TOKEN, "POST"),
    }
)
"""Answered without asking who it is; the token endpoint checks credentials itself."""

ACTIONS: dict[tuple[Endpoint, str], tuple[str, ...]] = {
    (Endpoint.BASE, "GET"): (),
    (Endpoint.BASE, "HEAD"): (),
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
"""Actions needed on the request's own repository. ``/v2/`` has none: it tells clients how to log
in, and whether they are."""


def needs(request: Request) -> tuple[Need, ...]:
    """Every pair that must be allowed.

    The source of a mount is not among them: a mount that cannot be done is an upload, so the
    handler asks for pull on the source itself (`optional_needs`).

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
    return tuple(Need("repository", request.repository, action) for action in actions)


def optional_needs(request: Request) -> tuple[Need, ...]:
    """Pairs that the request does not require but can use: challenges ask for them too."""
    source = mount_source(request)
    if source is None:
        return ()
    try:
        return (Need("repository", check_repository(source), "pull"),)
    except NameInvalid:
        return ()


def mount_source(request: Request) -> str | None:
    """The repository that a cross-repository mount names as its source."""
    if request.endpoint is Endpoint.UPLOADS and request.parameter("mount"):
        return request.parameter("from") or None
    return None
