"""The table of routes, as tests of each endpoint and method need it."""

from __future__ import annotations

from mayfly.registry.api.request import Route
from mayfly.registry.api.routes import ROUTES

METHODS: dict[str, tuple[str, ...]] = {}
"""The methods of each endpoint, in the order in which ``Allow`` lists them."""

for _route in ROUTES:
    METHODS[_route.endpoint] = METHODS.get(_route.endpoint, ()) + _route.methods


def route_of(endpoint: str, method: str) -> Route:
    """The route that a request by a method of an endpoint takes."""
    (found,) = (one for one in ROUTES if one.endpoint == endpoint and method in one.methods)
    return found
