"""Names that stand for others: ``x`` for ``library/x``, and what containerd's ``ns`` picks.

A refusal tells nobody that a name stands for another. A token for the name as asked for opens what
the name means, and only what its bearer may open by password.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from mayfly.auth.roles import Role
from mayfly.auth.users import hash_password
from mayfly.storage import digest as digests
from tests.security.registries import ROUNDS, Registry, push_image, registry
from tests.support.client import Answer, Header, basic, bearer

KNOWN = [("docker.io", "library/x"), ("quay.io", "app"), ("ghcr.io", "app"), ("quay.io", "team/y")]
SERVED = ("library/x", "quay.io/app", "ghcr.io/app", "team/y")

GRANTS = [
    ("admin", Role.ADMIN, "**"),
    ("canonical", Role.GUEST, "library/x"),
    ("short", Role.GUEST, "x"),
    ("full", Role.GUEST, "docker.io/library/x"),
    ("quay", Role.GUEST, "quay.io/app"),
    ("path", Role.GUEST, "app"),
    ("sole", Role.GUEST, "team/y"),
    ("nobody", Role.GUEST, "elsewhere"),
]
PASSWORD = "correct horse"
FORM: Header = ("Content-Type", "application/x-www-form-urlencoded")

# A name and ns → the repository meant. One that no bundle has is nobody's but the admin's.
MEANINGS: dict[tuple[str, str | None], str] = {
    ("x", None): "library/x",
    ("x", "docker.io"): "library/x",
    ("x", "quay.io"): "quay.io/x",
    ("library/x", None): "library/x",
    ("library/x", "docker.io"): "library/x",
    ("library/x", "quay.io"): "quay.io/library/x",
    ("docker.io/library/x", None): "library/x",
    ("docker.io/x", None): "library/x",
    ("app", "quay.io"): "quay.io/app",
    ("app", "ghcr.io"): "ghcr.io/app",
    ("app", "docker.io"): "docker.io/app",
    ("quay.io/app", None): "quay.io/app",
    ("team/y", None): "team/y",
    ("team/y", "quay.io"): "team/y",
    ("team/y", "ghcr.io"): "ghcr.io/team/y",
    ("quay.io/team/y", None): "team/y",
    ("elsewhere", "quay.io"): "elsewhere",
}

# Each user's repositories: as they are meant, never as they are written.
ALLOWED = {
    "admin": {*SERVED},
    "canonical": {"library/x"},
    "short": set[str](),
    "full": set[str](),
    "quay": {"quay.io/app"},
    "path": set[str](),
    "sole": {"team/y"},
    "nobody": set[str](),
}


@pytest.fixture
async def aliased(memory: Path) -> AsyncIterator[Registry]:
    """A registry whose names are resolved as by bundles, with an image in each repository."""
    users = {name: hash_password(PASSWORD, ROUNDS) for name, _, _ in GRANTS}
    async with registry(memory / "aliased", users=users, grants=GRANTS, known=KNOWN) as made:
        for repository in SERVED:
            push_image(made.store, repository, "1")
        yield made


def _target(name: str, ns: str | None) -> str:
    return f"/v2/{name}/manifests/1" + (f"?ns={quote(ns)}" if ns is not None else "")


def _requests(name: str, ns: str | None) -> Iterator[tuple[str, str]]:
    """Every endpoint of a repository, and a mount that names it as its source."""
    digest = digests.of(b"content")
    parameters = {} if ns is None else {"ns": ns}
    query = urlencode(parameters)
    for path, methods in {
        "tags/list": ("GET",),
        "manifests/1": ("GET", "HEAD", "PUT", "DELETE"),
        f"manifests/{digest}": ("GET", "PUT"),
        f"blobs/{digest}": ("GET", "HEAD", "DELETE"),
        f"referrers/{digest}": ("GET",),
        "blobs/uploads/": ("POST",),
        "blobs/uploads/0": ("GET", "PATCH", "PUT", "DELETE"),
    }.items():
        for method in methods:
            yield method, f"/v2/{name}/{path}?{query}"
    mount = urlencode({"mount": str(digest), "from": name, **parameters})
    yield "POST", f"/v2/target/blobs/uploads/?{mount}"


def _without_rights(made: Registry) -> dict[str, list[Header]]:
    """The headers of every kind of caller without a right in `KNOWN`."""
    now = time.time()
    return {
        "no credentials": [],
        "a wrong password": [basic("nobody", "wrong")],
        "no grant": [basic("nobody", PASSWORD)],
        "another token": [made.bearer("repository:elsewhere:pull", now=now)],
        "a stale token": [made.bearer("repository:elsewhere:pull", now=now - 3600)],
    }


NAMES = {"nothing-here", *(name for name, _ in MEANINGS), "app"} - {"elsewhere"}
ANY_NS = [None, "docker.io", "quay.io", "", " ", "a" * 300, 'a",error="b']


@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize("ns", ANY_NS)
async def test_refusal_tells_no_alias(ns: str | None, pushed: bool, aliased: Registry) -> None:
    """A caller without rights gets the same answer for a name of a bundle as for one of nothing.

    Nothing is read for it, and a name costs the same lookups whatever it means, so the time of a
    refusal tells no names either.
    """
    if pushed:
        push_image(aliased.store, "x", "1")
    for caller, headers in _without_rights(aliased).items():
        told: dict[str, list[tuple[object, ...]]] = {}
        steps: dict[str, list[tuple[str, ...]]] = {}
        for name in sorted(NAMES):
            told[name], steps[name] = [], []
            named = re.compile(rf"\b{re.escape(name)}\b")
            for method, target in _requests(name, ns):
                aliased.record.clear()
                answer = await aliased.server.ask(method, target, headers)
                steps[name].append(tuple(aliased.record))
                shown = named.sub("NAME", answer.challenge or "")
                body = named.sub("NAME", answer.body.decode())
                assert answer.status in (401, 403), (caller, method, target)
                told[name].append((method, answer.status, shown, body))
        for name in NAMES:
            assert told[name] == told["nothing-here"], (caller, name)
            assert steps[name] == steps["nothing-here"], (caller, name)
        read = {step for one in steps["nothing-here"] for step in one}
        assert read <= {"names.meant", "policy.resource_actions"}, caller


@pytest.mark.parametrize("ns", ANY_NS)
async def test_token_takes_the_same_steps_for_every_name(ns: str | None, aliased: Registry) -> None:
    """A token without rights is issued or refused without a look into the store."""
    for headers in ([], [basic("nobody", PASSWORD)], [basic("nobody", "wrong")]):
        steps = {}
        for name in sorted(NAMES):
            aliased.record.clear()
            query = {"scope": f"repository:{name}:pull"} | ({} if ns is None else {"ns": ns})
            await aliased.server.ask("GET", f"/auth/token?{urlencode(query)}", headers)
            steps[name] = tuple(aliased.record)
        assert len(set(steps.values())) == 1, headers
        read = set(steps["nothing-here"])
        assert read <= {"names.meant", "policy.resource_actions", "policy.grant"}


async def _ask(made: Registry, name: str, ns: str | None, *headers: Header) -> Answer:
    return await made.server.ask("GET", _target(name, ns), headers)


async def _buy(made: Registry, asked: Answer, user: str, *, post: bool = False) -> Header:
    """A token as a client gets it: from the realm of a challenge, for its scope."""
    found = re.fullmatch(
        r'Bearer realm="([^"]+)",service="([^"]+)",scope="([^"]+)"', asked.challenge or ""
    )
    assert found is not None, asked.challenge
    realm = found[1].removeprefix(made.server.url)
    fields = {"service": found[2], "scope": found[3]}
    if post:
        form = {"grant_type": "password", "username": user, "password": PASSWORD, **fields}
        answer = await made.server.ask("POST", realm, [FORM], urlencode(form).encode())
    else:
        target = f"{realm}{'&' if '?' in realm else '?'}{urlencode(fields)}"
        answer = await made.server.ask("GET", target, [basic(user, PASSWORD)])
    assert answer.status == 200, answer.body
    return bearer(answer.json["token"])


@pytest.mark.parametrize("user", ALLOWED)
async def test_token_for_the_name_as_asked(user: str, aliased: Registry) -> None:
    """It opens what the name means, if its bearer may: the same as the password, and no more."""
    by_password = {}
    tokens = {}
    for (name, ns), meant in MEANINGS.items():
        answer = await _ask(aliased, name, ns, basic(user, PASSWORD))
        by_password[name, ns] = answer.status
        refused = 404 if user == "admin" or (user, name) == ("nobody", "elsewhere") else 403
        assert answer.status == (200 if meant in ALLOWED[user] else refused), (name, ns)
        asked = await _ask(aliased, name, ns)
        for post in (False, True):
            token = await _buy(aliased, asked, user, post=post)
            answer = await _ask(aliased, name, ns, token)
            assert answer.status == {403: 401}.get(by_password[name, ns], by_password[name, ns])
            tokens[name, ns] = token
    for bought, (name, ns) in itertools.product(tokens, MEANINGS):
        answer = await _ask(aliased, name, ns, tokens[bought])
        if answer.status == 200:
            assert by_password[name, ns] == 200, (bought, name, ns)
            # The name that the scope holds, and what it means for the ns it was bought with.
            assert MEANINGS[name, ns] in (bought[0], MEANINGS[bought]), (bought, name, ns)


async def test_path_of_two_upstreams(aliased: Registry) -> None:
    """Upstreams that share a path are named only to callers with rights to their repositories."""
    for user, status in (("admin", 409), ("path", 409), ("quay", 403), ("nobody", 403)):
        answer = await _ask(aliased, "app", None, basic(user, PASSWORD))
        assert (answer.status == 403) == (status == 403), (user, answer.body)
        assert (b"ghcr.io" in answer.body) == (user == "admin"), (user, answer.body)


async def test_pushed_name_comes_before_the_alias(aliased: Registry) -> None:
    """A repository pushed as ``x`` is what ``x`` means from then on, and its rights count."""
    push_image(aliased.store, "x", "1")
    for user, status in (("short", 200), ("canonical", 401)):
        token = await _buy(aliased, await _ask(aliased, "x", None), user)
        assert (await _ask(aliased, "x", None, token)).status == status


async def test_mount_source_that_is_too_long_as_written(memory: Path) -> None:
    """A source whose name is valid only by what it means is refused like any other."""
    path = "library/" + "a" * 246
    users = {"nobody": hash_password(PASSWORD, ROUNDS)}
    grants = [("nobody", Role.GUEST, "elsewhere")]
    query = urlencode({"mount": str(digests.of(b"content")), "from": f"docker.io/{path}"})
    known = [("docker.io", path)]
    async with registry(memory / "long", users=users, grants=grants, known=known) as made:
        target = f"/v2/target/blobs/uploads/?{query}"
        answer = await made.server.ask("POST", target, [basic("nobody", PASSWORD)])
    assert (answer.status, answer.code) == (403, "DENIED")
