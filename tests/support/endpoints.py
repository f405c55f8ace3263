"""The table of routes and its description, as tests of each endpoint and method need them."""

from __future__ import annotations

from typing import Any

import yaml

from mayfly.registry.api.request import Route
from mayfly.registry.api.routes import ROUTES
from tests.support.process import REPO

DOCUMENT: dict[str, Any] = yaml.safe_load((REPO / "docs/openapi.yaml").read_text())
"""docs/openapi.yaml."""

METHODS: dict[str, tuple[str, ...]] = {}
"""The methods of each endpoint, in the order in which ``Allow`` lists them."""

for _route in ROUTES:
    METHODS[_route.endpoint] = METHODS.get(_route.endpoint, ()) + _route.methods


def route_of(endpoint: str, method: str) -> Route:
    """The route that a request by a method of an endpoint takes."""
    found = [one for one in ROUTES if one.endpoint == endpoint and method in one.methods]
    assert len(found) == 1, f"{len(found)} routes are called {endpoint!r} and take {method}"
    return found[0]
