"""Which requests have an event in the audit file and at webhooks."""

from __future__ import annotations

from mayfly.registry.api.routes import ROUTES

WITHOUT_EVENT = {
    "root GET", "root HEAD", "live GET", "live HEAD", "ready GET", "ready HEAD", "base HEAD",
    "upload GET", "upload PATCH", "upload DELETE", "nonce GET", "status GET", "events GET",
    "file GET", "logout POST", "metrics GET", "metrics HEAD", "script GET",
}  # fmt: skip
"""Endpoint and method of requests that have none: looks at the server, and parts of an upload."""


def test_routes_without_event() -> None:
    """Each route has an event, or is one of those that are named here."""
    found = {
        f"{route.endpoint} {method}"
        for route in ROUTES
        for method in route.methods
        if route.event is None or (method == "HEAD" and route.event != "pull")
    }
    advice = "give the route an event in registry/api/routes.py, or name it here"
    assert found == WITHOUT_EVENT, advice
