"""Proofs over HTTP: a node speaks for itself only, once for each nonce, and within bounds."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from mayfly.auth.identity import Permission
from mayfly.auth.policy import EVERYTHING
from mayfly.auth.roles import Role
from mayfly.registry.coverage import proofs
from mayfly.registry.coverage.proofs import MAX_BODY
from tests.security.registries import Registry, by_password
from tests.support.client import Header, basic, bearer

DIGEST = "sha256:" + "ab" * 32
ENTRY = {
    "image": "web:1",
    "digest": DIGEST,
    "runtime": "docker",
    "time": 1,
    "pinned": False,
    "free": 7,
}


def login(made: Registry, node: str, role: Role = Role.LIMITED_GUEST) -> Header:
    """The Authorization header of a node's own credential."""
    permissions = [Permission(role, EVERYTHING)]
    robot = made.robots.issue("shared-name", permissions, 600, time.time(), node)
    return basic(robot.name, robot.password)


async def nonce_of(made: Registry, node: str, header: Header) -> str:
    """A nonce that the server issued."""
    answer = await made.server.ask("GET", f"/mayfly/v1/nodes/{node}/nonce", [header])
    assert answer.status == 200
    found: str = json.loads(answer.body)["nonce"]
    return found


async def posted(
    made: Registry, node: str, header: Header | None, nonce: str, *images: dict[str, Any]
) -> int:
    """The status of a proof."""
    body = json.dumps({"version": 1, "nonce": nonce, "images": [*images]}).encode()
    headers = [] if header is None else [header]
    answer = await made.server.ask("POST", f"/mayfly/v1/nodes/{node}/proof", headers, body)
    return answer.status


def known(made: Registry, node: str) -> list[str]:
    """The digests that a node is on record to have."""
    return list(made.observer.ledger.facts.proofs(node))


async def test_a_node_proves_for_itself(closed: Registry) -> None:
    """With its credential and a nonce; a node's name may hold what a path must encode."""
    for node, path in (("worker-1", "worker-1"), ("Worker One", "Worker%20One")):
        header = login(closed, node)
        nonce = await nonce_of(closed, path, header)
        assert await posted(closed, path, header, nonce, ENTRY) == 200
        assert known(closed, node) == [DIGEST]


async def test_nobody_proves_for_another_node(closed: Registry) -> None:
    """Neither another node, whatever its role, nor an administrator, a user, or nobody."""
    nonce = await nonce_of(closed, "victim", login(closed, "victim"))
    callers = [
        login(closed, "thief"),
        login(closed, "Victim"),
        login(closed, "victim2", Role.MAINTAINER),
        by_password("admin"),
        None,
    ]
    for header in callers:
        assert await posted(closed, "victim", header, nonce, ENTRY) in (401, 403)
        answer = await closed.server.ask(
            "GET", "/mayfly/v1/nodes/victim/nonce", [] if header is None else [header]
        )
        assert answer.status in (401, 403)
    assert known(closed, "victim") == []
    # A refused attempt does not spend the nonce.
    assert await posted(closed, "victim", login(closed, "victim"), nonce, ENTRY) == 200


async def test_no_token_speaks_for_a_node(closed: Registry) -> None:
    """Not even one that its own credential is exchanged for, with a scope of that name."""
    header = login(closed, "worker-1")
    path = "/auth/token?service=mayfly&scope=node:worker-1:prove&scope=node:worker-1:*"
    answer = await closed.server.ask("GET", path, [header])
    assert answer.status == 200
    found = json.loads(answer.body)
    assert found["scope"] == ""
    nonce = await nonce_of(closed, "worker-1", header)
    assert await posted(closed, "worker-1", bearer(found["token"]), nonce, ENTRY) == 401
    forged = closed.bearer("node:worker-1:prove", now=time.time())
    assert await posted(closed, "worker-1", forged, nonce, ENTRY) == 401
    assert known(closed, "worker-1") == []


async def test_replayed_and_foreign_nonces_are_refused(
    closed: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorded proof, another node's nonce, an invented and an old one change nothing."""
    mine, other = login(closed, "mine"), login(closed, "other")
    nonce = await nonce_of(closed, "mine", mine)
    assert await posted(closed, "mine", mine, nonce, ENTRY) == 200
    assert await posted(closed, "mine", mine, nonce) == 409
    theirs = await nonce_of(closed, "other", other)
    assert await posted(closed, "mine", mine, theirs) == 409
    assert await posted(closed, "mine", mine, "0" * 32) == 409
    monkeypatch.setattr(proofs, "NONCE_SECONDS", 0)
    late = await nonce_of(closed, "mine", mine)
    assert await posted(closed, "mine", mine, late) == 409
    assert known(closed, "mine") == [DIGEST]


async def test_invalid_proofs_are_refused(closed: Registry) -> None:
    """A document of another form, or a large one, is refused and spends no nonce."""
    header = login(closed, "mine")
    nonce = await nonce_of(closed, "mine", header)
    path = "/mayfly/v1/nodes/mine/proof"
    for body in (b"", b"[]", b"{", b"x" * (MAX_BODY + 1)):
        answer = await closed.server.ask("POST", path, [header], body)
        assert (answer.status, answer.code) == (400, "UNSUPPORTED")
    assert await posted(closed, "mine", header, nonce, ENTRY | {"free": -1}) == 400
    assert await posted(closed, "mine", header, nonce, ENTRY) == 200
