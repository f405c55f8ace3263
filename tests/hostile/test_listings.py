"""Attacks by lists: of more repositories than the caller may see, and of those they may."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.directory.layout import Layout
from mayfly.storage.directory.store import DistributionStore
from tests.hostile.harness import LONG, Hostile
from tests.security.servers import make_auth
from tests.support.beside import repeating
from tests.support.client import basic
from tests.support.images import push

REPOSITORIES = 20_000 if LONG else 4_000
CLIENTS = 30
BLOB = b"a layer"
PASSWORD = "a long enough password"


def _headers(user: str) -> dict[str, str]:
    return dict([basic(user, PASSWORD)])


def _connect(host: str) -> http.client.HTTPConnection:
    name, _, port = host.rpartition(":")
    return http.client.HTTPConnection(name, int(port), timeout=60)


def _ask(line: http.client.HTTPConnection, user: str, method: str, path: str) -> int:
    line.request(method, path, headers=_headers(user))
    with line.getresponse() as answer:
        answer.read()
        return answer.status


@pytest.mark.parametrize(
    ("user", "method", "path", "status"),
    [
        ("dev", "GET", "/v2/_catalog?n=1", 200),
        ("all", "GET", "/v2/_catalog", 200),
        ("dev", "POST", f"/v2/team/app/blobs/uploads/?mount={digests.of(b'nowhere')}", 202),
        ("all", "POST", f"/v2/team/app/blobs/uploads/?mount={digests.of(b'nowhere')}", 202),
    ],
    ids=["catalog of one", "catalog of all", "mount from one", "mount from all"],
)
def test_walks_through_repositories(
    hostile: Hostile, tmp_path: Path, user: str, method: str, path: str, status: int
) -> None:
    """A client that walks through all repositories takes no thread from pulls and pushes."""
    root = tmp_path / "root"
    store = DistributionStore(root)
    push(store, "team/app", BLOB)
    store.close()
    repositories = Layout(root).repositories
    for number in range(REPOSITORIES):
        (repositories / f"other/{number // 100}/{number}/_layers").mkdir(parents=True)
    auth = tmp_path / "auth"
    grants = [("dev", "developer", "team/**"), ("all", "developer", "**")]
    make_auth(auth, {"dev": PASSWORD, "all": PASSWORD}, grants)
    server = hostile.serve("--auth", str(auth), "--drain-timeout", "1s", root=root)
    blob = f"/v2/team/app/blobs/{digests.of(BLOB)}"
    name = f"{CLIENTS} clients that walk through {REPOSITORIES} repositories: {user} {method}"
    # The first check of a password is slow, and those of one address wait for each other.
    line = _connect(server.host)
    assert [_ask(line, one, "HEAD", blob) for one in ("dev", "all")] == [200, 200]
    line.close()
    with hostile.attack(name, before="HEAD of a blob took 30 s") as under:

        def attack() -> None:
            line = _connect(under.host)
            assert _ask(line, user, method, path) == status
            line.close()

        with repeating(attack, at_once=CLIENTS):
            heads, line = 0, _connect(under.host)
            while under.going():
                assert _ask(line, "dev", "HEAD", blob) == 200
                heads += 1
            line.close()
        under.note(f"{heads} HEADs of a blob meanwhile")
    assert heads >= 10
