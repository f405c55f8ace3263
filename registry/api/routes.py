"""The table of routes: each endpoint with its handler, its access rule and its step in a pull.

To add an endpoint, add its route here; CONTRIBUTING.md shows a whole example.
"""

from __future__ import annotations

from mayfly.registry.access.guard import TOKEN_PATH
from mayfly.registry.access.needs import (
    CATALOG,
    DELETE,
    LOGIN,
    OWN_NODE,
    PUBLIC,
    PULL,
    PUSH,
    STATUS,
    STOP,
)
from mayfly.registry.api import (
    blobs,
    health,
    listings,
    manifests,
    metrics,
    nodes,
    page,
    status,
    token,
    uploads,
)
from mayfly.registry.api.request import Route
from mayfly.registry.coverage.pulls import Step

_GET, _READ = ("GET",), ("GET", "HEAD")
_REFERRERS = "/v2/{name}/referrers/{digest}"
_MANIFEST = "/v2/{name}/manifests/{reference}"
_BLOB = "/v2/{name}/blobs/{digest}"
_UPLOADS = "/v2/{name}/blobs/uploads/"
_UPLOAD = "/v2/{name}/blobs/uploads/{id}"
_NONCE = "/mayfly/v1/nodes/{node}/nonce"
_PROOF = "/mayfly/v1/nodes/{node}/proof"
_FILE = "/mayfly/v1/page/{file}"
_SESSION = "/mayfly/v1/session"
_LOGOUT = "/mayfly/v1/logout"
_SCRIPT = "/mayfly/v1/scripts/{token}"

ROUTES: tuple[Route, ...] = (
    # The page asks for the right to the state by itself; without it there is a login.
    Route("root", "/", _READ, page.root, PUBLIC, Step.NEITHER, counts=False),
    Route("live", "/livez", _READ, health.alive, PUBLIC, Step.NEITHER, counts=False),
    Route("ready", "/readyz", _READ, health.ready, PUBLIC, Step.NEITHER, counts=False),
    # The token endpoint checks credentials itself.
    Route("token", TOKEN_PATH, _GET, token.get, PUBLIC, Step.NEITHER, counts=False, event="login"),
    Route(
        "token", TOKEN_PATH, ("POST",), token.post, PUBLIC, Step.NEITHER,
        counts=False, event="login",
    ),
    # No right is needed here, but a login: clients ask it how to log in, and whether they are.
    Route("base", "/v2/", _READ, health.base, LOGIN, Step.NEITHER, counts=False, event="login"),
    Route("catalog", "/v2/_catalog", _GET, listings.catalog, CATALOG, Step.NEITHER, event="list"),
    Route("tags", "/v2/{name}/tags/list", _GET, listings.tags, PULL, Step.NEITHER, event="list"),
    Route("referrers", _REFERRERS, _GET, listings.referrers, PULL, Step.NEITHER, event="list"),
    Route(
        "manifest", _MANIFEST, _READ, manifests.get, PULL, Step.PULL,
        listed_nodes_only=True, event="pull",
    ),
    Route(
        "manifest", _MANIFEST, ("PUT",), manifests.put, PUSH, Step.PUSH,
        listed_nodes_only=True, event="push",
    ),
    Route(
        "manifest", _MANIFEST, ("DELETE",), manifests.delete, DELETE, Step.NEITHER,
        listed_nodes_only=True, event="delete",
    ),
    Route(
        "blob", _BLOB, _READ, blobs.get, PULL, Step.CONTINUE_PULL,
        listed_nodes_only=True, event="pull",
    ),
    Route(
        "blob", _BLOB, ("DELETE",), blobs.delete, DELETE, Step.NEITHER,
        listed_nodes_only=True, event="delete",
    ),
    Route(
        "uploads", _UPLOADS, ("POST",), uploads.begin, PUSH, Step.PUSH,
        optional_needs=uploads.mount_needs, event="push",
    ),
    Route("upload", _UPLOAD, _GET, uploads.status, PUSH, Step.NEITHER),
    Route("upload", _UPLOAD, ("PATCH",), uploads.patch, PUSH, Step.PUSH),
    Route("upload", _UPLOAD, ("PUT",), uploads.finish, PUSH, Step.PUSH, event="push"),
    Route("upload", _UPLOAD, ("DELETE",), uploads.cancel, PUSH, Step.NEITHER),
    Route("nonce", _NONCE, _GET, nodes.nonce, OWN_NODE, Step.NEITHER, listed_nodes_only=True),
    # Looking on must not keep an unused registry alive.
    Route("status", "/mayfly/v1/status", _GET, status.get, STATUS, Step.NEITHER, counts=False),
    Route("events", "/mayfly/v1/events", _GET, page.events, STATUS, Step.NEITHER, counts=False),
    Route(
        "stop", "/mayfly/v1/stop", ("POST",), page.stop, STOP, Step.NEITHER,
        counts=False, event="stop",
    ),
    Route("file", _FILE, _GET, page.file, PUBLIC, Step.NEITHER, counts=False),
    # These check credentials themselves.
    Route(
        "session", _SESSION, ("POST",), page.log_in, PUBLIC, Step.NEITHER,
        counts=False, event="login",
    ),
    Route("logout", _LOGOUT, ("POST",), page.log_out, PUBLIC, Step.NEITHER, counts=False),
    Route("metrics", metrics.PATH, _READ, metrics.get, STATUS, Step.NEITHER, counts=False),
    # Its token is the right to it.
    Route("script", _SCRIPT, _GET, nodes.script, PUBLIC, Step.NEITHER, counts=False),
    Route(
        "proof", _PROOF, ("POST",), nodes.prove, OWN_NODE, Step.NEITHER,
        listed_nodes_only=True, event="prove",
    ),
)  # fmt: skip
