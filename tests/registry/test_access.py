"""The access table: what each request needs, and that nothing is open by being forgotten."""

from __future__ import annotations

import pytest

from mayfly.registry.access import needs as access
from mayfly.registry.access.needs import ACTIONS, PUBLIC, Need, needs, optional_needs
from mayfly.registry.api.app import HANDLERS
from mayfly.registry.api.errors import AccessDenied
from mayfly.registry.api.request import METHODS, Endpoint, Request, parse

SHA = "sha256:" + "ab" * 32
EVERY = [(endpoint, method) for endpoint in Endpoint for method in METHODS[endpoint]]

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
    assert sorted(needs(parse(method, path, ""))) == sorted(expected)


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
    request = parse("POST", "/v2/a/b/blobs/uploads/", query)
    assert sorted(needs(request)) == sorted([PULL, PUSH])
    assert list(optional_needs(request)) == extra


@pytest.mark.parametrize(("endpoint", "method"), EVERY)
def test_every_request_has_a_handler_and_a_rule(endpoint: Endpoint, method: str) -> None:
    """What the parser lets through can be handled, and someone has decided who may use it."""
    assert (endpoint, method) in HANDLERS
    needs(Request(endpoint, method, "a"))


def test_no_handler_or_rule_is_left_over() -> None:
    """Handlers and rules are for requests that the parser lets through, each rule in one place."""
    assert HANDLERS.keys() == set(EVERY)
    catalog = (Endpoint.CATALOG, "GET")
    assert ACTIONS.keys() | PUBLIC | {catalog} == set(EVERY)
    assert not ACTIONS.keys() & PUBLIC
    assert catalog not in ACTIONS.keys() | PUBLIC


@pytest.mark.parametrize(("endpoint", "method"), [k for k in EVERY if k[0] is not Endpoint.CATALOG])
def test_request_without_a_rule_is_denied(
    endpoint: Endpoint, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint added without deciding who may use it is closed to everyone."""
    key = (endpoint, method)
    monkeypatch.setattr(access, "PUBLIC", PUBLIC - {key})
    monkeypatch.setattr(access, "ACTIONS", {k: v for k, v in ACTIONS.items() if k != key})
    with pytest.raises(AccessDenied):
        needs(Request(endpoint, method, "a"))


@pytest.mark.parametrize("method", ["HEAD", "POST", "DELETE", "get", ""])
def test_catalog_with_another_method_is_denied(method: str) -> None:
    """The catalog's rule is for GET alone."""
    with pytest.raises(AccessDenied):
        needs(Request(Endpoint.CATALOG, method))


def test_only_what_knows_no_content_is_public() -> None:
    """Without a right to anything one learns only that the process lives and how to log in."""
    assert {endpoint for endpoint, _ in PUBLIC} == {
        Endpoint.ROOT,
        Endpoint.LIVE,
        Endpoint.READY,
        Endpoint.TOKEN,
    }
    assert {e for (e, _), actions in ACTIONS.items() if not actions} == {Endpoint.BASE}


def test_every_change_needs_more_than_pull() -> None:
    """No method that changes something is open to whoever may only read."""
    for (_, method), actions in ACTIONS.items():
        if method in ("PUT", "PATCH", "POST", "DELETE"):
            assert {"push", "delete"} & set(actions)
        else:
            assert "delete" not in actions
