"""The access rules: what each request needs, and that nothing is open by being forgotten."""

from __future__ import annotations

from collections import Counter

import pytest

from mayfly.registry.access.errors import AccessDenied
from mayfly.registry.access.needs import STOP, AccessRequest, Need, Rule
from mayfly.registry.api import health
from mayfly.registry.api.parse import parse
from mayfly.registry.api.request import Request, Route
from mayfly.registry.api.routes import ROUTES

SHA = "sha256:" + "ab" * 32

PULL = Need("repository", "a/b", "pull")
PUSH = Need("repository", "a/b", "push")
DELETE = Need("repository", "a/b", "delete")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v2/", []),
        ("HEAD", "/v2/", []),
        ("GET", "/livez", []),
        ("HEAD", "/readyz", []),
        ("GET", "/v2/_catalog", [Need("registry", "catalog", "*")]),
        ("GET", "/v2/a/b/tags/list", [PULL]),
        ("GET", "/v2/a/b/manifests/v1", [PULL]),
        ("HEAD", f"/v2/a/b/manifests/{SHA}", [PULL]),
        ("PUT", "/v2/a/b/manifests/v1", [PULL, PUSH]),
        ("DELETE", "/v2/a/b/manifests/v1", [DELETE]),
        ("DELETE", f"/v2/a/b/manifests/{SHA}", [DELETE]),
        ("GET", f"/v2/a/b/blobs/{SHA}", [PULL]),
        ("HEAD", f"/v2/a/b/blobs/{SHA}", [PULL]),
        ("DELETE", f"/v2/a/b/blobs/{SHA}", [DELETE]),
        ("POST", "/v2/a/b/blobs/uploads/", [PULL, PUSH]),
        ("GET", "/v2/a/b/blobs/uploads/x", [PULL, PUSH]),
        ("PATCH", "/v2/a/b/blobs/uploads/x", [PULL, PUSH]),
        ("PUT", "/v2/a/b/blobs/uploads/x", [PULL, PUSH]),
        ("DELETE", "/v2/a/b/blobs/uploads/x", [PULL, PUSH]),
        ("GET", f"/v2/a/b/referrers/{SHA}", [PULL]),
    ],
)
def test_needs(method: str, path: str, expected: list[Need]) -> None:
    """Each request's needs, as distribution's token scopes have them."""
    assert sorted(parse(method, path, "").access().needs()) == sorted(expected)


@pytest.mark.parametrize(
    ("query", "extra"),
    [
        (f"mount={SHA}&from=c/d", [Need("repository", "c/d", "pull")]),
        (f"from=c/d&mount={SHA}&digest={SHA}", [Need("repository", "c/d", "pull")]),
        (f"mount={SHA}&from=c/d&from=e/f", [Need("repository", "c/d", "pull")]),
        ("mount=nonsense&from=../x", []),
        (f"mount={SHA}", []),
        (f"mount={SHA}&from=", []),
        ("from=c/d", []),
        (f"mount=&from=c/d&digest={SHA}", []),
    ],
)
def test_mount_is_better_with_its_source(query: str, extra: list[Need]) -> None:
    """Pull on the very repository that is mounted from is asked for, and not needed."""
    access = parse("POST", "/v2/a/b/blobs/uploads/", query).access()
    assert sorted(access.needs()) == sorted([PULL, PUSH])
    assert list(access.optional) == extra


@pytest.mark.parametrize("ns", ["", "docker.io", "docker.io&ns=other"])
def test_facts_of_a_request(ns: str) -> None:
    """Access is told the route's name, the method, the repository and the first ``ns``."""
    request = parse("HEAD", "/v2/a/b/manifests/v1", f"ns={ns}")
    rule = request.route.rule
    expected = AccessRequest("manifest", "HEAD", rule, "a/b", (), ns.partition("&")[0])
    assert request.access() == expected


def test_every_route_has_a_rule_and_a_step() -> None:
    """Each route says which rights it needs, and whether a drain refuses it."""
    assert [route for route in ROUTES if route.rule is None or route.step is None] == []


def test_each_request_has_one_route() -> None:
    """No route hides behind another one with its path and method."""
    found = Counter((route.path, method) for route in ROUTES for method in route.methods)
    assert found.most_common(1)[0][1] == 1
    paths = {(route.endpoint, route.path) for route in ROUTES}
    assert len({endpoint for endpoint, _ in paths}) == len(paths)


@pytest.mark.parametrize("path", ["/x", "/v2/{name}/x", "/v2/_catalog"])
def test_route_without_a_rule_is_denied(path: str) -> None:
    """An endpoint added without a rule is closed to every caller."""
    route = Route("x", path, ("GET",), health.root)
    access = Request(route, "GET", "a").access()
    assert not access.public
    with pytest.raises(AccessDenied):
        access.needs()


def test_only_what_knows_no_content_is_public() -> None:
    """Without a right to anything one learns only that the process lives and how to log in."""
    rules = [(route.endpoint, route.rule) for route in ROUTES if route.rule is not None]
    assert {endpoint for endpoint, rule in rules if rule.public} == {
        "root",
        "live",
        "ready",
        "token",
        "script",
        "file",
        "session",
        "logout",
    }
    without_needs = {
        e
        for e, rule in rules
        if not (rule.public or rule.actions or rule.needs or rule.node_actions)
    }
    assert without_needs == {"base"}
    assert all(not rule.actions and not rule.needs for _, rule in rules if rule.public)


def test_request_that_needs_no_right_is_no_activity() -> None:
    """Else a client without any right could keep an idle registry alive."""
    open_routes = [route for route in ROUTES if route.rule is not None and not _needs(route.rule)]
    assert len(open_routes) > 5
    assert [route.endpoint for route in open_routes if route.counts] == []


def _needs(rule: Rule) -> bool:
    return bool(rule.actions or rule.needs or rule.node_actions)


def test_every_change_needs_more_than_pull() -> None:
    """Methods that change something refuse a user with read rights only."""
    for route in ROUTES:
        assert route.rule is not None
        if route.rule.public:
            continue
        if route.rule.node_actions:
            assert route.rule.node_actions == ("prove",), route
        elif route.endpoint == "stop":
            assert route.rule == STOP
        elif {"PUT", "PATCH", "POST", "DELETE"} & {*route.methods}:
            assert {"push", "delete"} & {*route.rule.actions}, route
        else:
            assert "delete" not in route.rule.actions, route


def test_repositories_are_in_the_path_of_what_needs_them() -> None:
    """A rule about the request's own repository is for paths that name one, and vice versa."""
    for route in ROUTES:
        assert route.rule is not None
        assert ("{name}" in route.path) == bool(route.rule.actions), route
        assert ("{node}" in route.path) == bool(route.rule.node_actions), route
