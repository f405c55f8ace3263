"""From one repository into another: mounts, upload sessions, lists. Nothing leaks across.

`developer` works on ``team/**``, `other` on ``other/**``; neither may read the other's.
"""

from __future__ import annotations

import time
from pathlib import Path
from uuid import UUID

import pytest

from mayfly.auth.errors import InputInvalid
from mayfly.auth.globs import parse_glob
from mayfly.auth.identity import Permission
from mayfly.auth.policy import EVERYTHING
from mayfly.auth.roles import Role
from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.digest import CANONICAL, Digest
from mayfly.storage.errors import BlobUnknown
from mayfly.storage.interface import Content
from tests.security.registries import (
    NOBODY,
    Registry,
    by_password,
    image_manifest,
    push_blob,
    push_image,
    registry,
)
from tests.support.client import Header, basic, bearer

UPLOADS = "/v2/team/app/blobs/uploads/"
CONTENT = b"what is secret in other/app"


@pytest.fixture
def secret(closed: Registry) -> Digest:
    """A blob that is in ``other/app`` alone."""
    return push_blob(closed.store, "other/app", CONTENT)


def _holds(made: Registry, repository: str, digest: Digest) -> bool:
    try:
        made.store.blob(repository, digest)
    except BlobUnknown:
        return False
    return True


async def test_named_mount_needs_pull_on_its_source(closed: Registry, secret: Digest) -> None:
    """Without pull on the source a caller uploads, as if it were empty; with both rights, mounts.

    Push on the target itself is needed by either.
    """
    target = f"{UPLOADS}?mount={secret}&from=other/app"
    for wanted in (target, f"{UPLOADS}?mount={digests.of(b'nowhere')}&from=other/app"):
        begun = await closed.server.ask("POST", wanted, [by_password("developer")])
        assert (begun.status, begun.body) == (202, b"")
        assert begun.headers["Range"] == "0-0"
    refused = await closed.server.ask("POST", target, [by_password("guest")])
    assert (refused.status, refused.code) == (403, "DENIED")
    assert "other/app" not in refused.body.decode()
    assert not _holds(closed, "team/app", secret)
    mounted = await closed.server.ask("POST", target, [by_password("admin")])
    assert mounted.status == 201
    assert _holds(closed, "team/app", secret)


async def test_mount_challenge_asks_for_both(closed: Registry, secret: Digest) -> None:
    """Without a token that may push, the challenge names both repositories.

    A token for the target alone is enough for an upload, and gets one, unless its bearer may pull
    from the source: then another token can mount, and the client is asked to get one.
    """
    target = f"{UPLOADS}?mount={secret}&from=other/app"
    both = 'scope="repository:team/app:pull,push repository:other/app:pull"'
    anonymous = await closed.server.ask("POST", target)
    assert anonymous.status == 401 and anonymous.challenge is not None
    assert anonymous.challenge.endswith(both)
    token = closed.bearer("repository:team/app:pull", now=time.time())
    insufficient = await closed.server.ask("POST", target, [token])
    assert insufficient.status == 401 and insufficient.challenge is not None
    assert insufficient.challenge.endswith(f'{both},error="insufficient_scope"')
    token = closed.bearer("repository:team/app:pull,push", now=time.time())
    assert (await closed.server.ask("POST", target, [token])).status == 202
    assert not _holds(closed, "team/app", secret)
    able = closed.token("repository:team/app:pull,push", name="admin", now=time.time())
    asked = await closed.server.ask("POST", target, [bearer(able)])
    assert asked.status == 401 and asked.challenge is not None
    assert asked.challenge.endswith(f'{both},error="insufficient_scope"')
    assert "the token does not grant pull on repository other/app" in asked.body.decode()
    nowhere = f"{UPLOADS}?mount={secret}&from=not/there"
    assert (await closed.server.ask("POST", nowhere, [bearer(able)])).status == 401
    sufficient = closed.bearer(
        "repository:team/app:pull,push repository:other/app:pull", now=time.time()
    )
    assert (await closed.server.ask("POST", target, [sufficient])).status == 201


@pytest.mark.parametrize("caller", ["developer", "token", "robot"])
async def test_mount_without_a_source_finds_only_what_is_readable(
    caller: str, closed: Registry, secret: Digest
) -> None:
    """An unnamed source is looked for where the caller may pull: else an upload, as if unknown."""
    now = time.time()
    robot = closed.robots.issue("node", [_permission("team/**")], 60, now)
    header: dict[str, Header] = {
        "developer": by_password("developer"),
        "token": closed.bearer("repository:team/app:pull,push", now=now),
        "robot": basic(robot.name, robot.password),
    }
    unknown = digests.of(b"nowhere")
    for digest in (secret, unknown):
        answer = await closed.server.ask("POST", f"{UPLOADS}?mount={digest}", [header[caller]])
        assert answer.status == 202
    assert not _holds(closed, "team/app", secret)
    readable = push_blob(closed.store, "team/base", b"readable")
    answer = await closed.server.ask("POST", f"{UPLOADS}?mount={readable}", [header[caller]])
    # A token names what it is for, and this one does not name team/base.
    assert answer.status == (202 if caller == "token" else 201)


@pytest.mark.parametrize("source", ["", "&from=other/app", "&from=../x"])
async def test_mount_looks_only_where_the_caller_may_pull(
    source: str, closed: Registry, secret: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same lookups, and none elsewhere, whether or not a blob is where the caller may not pull.

    So the time an answer takes tells nothing either.
    """
    for repository in ("team/base", "team/other", "zoo/app"):
        push_blob(closed.store, repository, repository.encode())
    looked: list[str] = []
    find = closed.store.blob

    def blob(repository: str, digest: Digest) -> Content:
        looked.append(repository)
        return find(repository, digest)

    monkeypatch.setattr(closed.store, "blob", blob)
    monkeypatch.setattr(closed.store, "repositories_with", None)
    seen = []
    for digest in (secret, digests.of(b"nowhere")):
        target = f"{UPLOADS}?mount={digest}{source}"
        assert (await closed.server.ask("POST", target, [by_password("developer")])).status == 202
        seen.append(list(looked))
        looked.clear()
    assert seen == [[] if source else ["team/base", "team/other"]] * 2


def _permission(pattern: str) -> Permission:
    return Permission(Role.DEVELOPER, parse_glob(pattern))


@pytest.mark.parametrize(
    "source", ["other/../other/app", "other%2fapp", "/other/app", "other/app/"]
)
async def test_crooked_mount_source_is_no_source(
    source: str, closed: Registry, secret: Digest
) -> None:
    """Another spelling of the source gets round neither the check nor the store: an upload."""
    target = f"{UPLOADS}?mount={secret}&from={source}"
    for name in ("developer", "admin"):
        answer = await closed.server.ask("POST", target, [by_password(name)])
        found = source == "other%2fapp" and name == "admin"
        assert answer.status == (201 if found else 202), answer.body
    assert _holds(closed, "team/app", secret) == (source == "other%2fapp")


async def test_the_first_of_two_sources_counts_everywhere(closed: Registry, secret: Digest) -> None:
    """The source that is checked is the source that is mounted from."""
    for query in (
        f"?mount={secret}&from=team/base&from=other/app",
        f"?mount={secret}&from=&from=other/app",
        f"?from=team/base&mount={secret}&From=other/app",
        f"?mount=&mount={secret}&from=other/app",
    ):
        answer = await closed.server.ask("POST", UPLOADS + query, [by_password("developer")])
        assert answer.status == 202, query
        assert not _holds(closed, "team/app", secret)


async def test_manifest_cannot_bring_in_a_foreign_blob(closed: Registry, secret: Digest) -> None:
    """A manifest that names another repository's blob or manifest is not taken."""
    kind = ("Content-Type", manifests.OCI_MANIFEST)
    body = image_manifest(CONTENT)
    target = "/v2/team/app/manifests/thief"
    answer = await closed.server.ask("PUT", target, [by_password("developer"), kind], body)
    assert (answer.status, answer.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    for path in (f"blobs/{secret}", f"manifests/{secret}"):
        answer = await closed.server.ask("GET", f"/v2/team/app/{path}", [by_password("developer")])
        assert answer.status == 404


async def test_upload_belongs_to_its_repository(closed: Registry) -> None:
    """A session's id opens nothing in another repository, and ids out of grammar nothing at all."""
    upload = closed.store.begin_upload("other/app", CANONICAL)
    upload.write([CONTENT], 0)
    digest = digests.of(CONTENT)
    for name in (upload.id, upload.id.upper(), "..", "x", "%2e%2e", upload.id + "%2f", "data"):
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            answer = await closed.server.ask(
                method, f"{UPLOADS}{name}?digest={digest}", [by_password("developer")]
            )
            assert answer.status in (400, 404), (name, method)
    assert closed.store.upload("other/app", upload.id).offset == len(CONTENT)
    assert not _holds(closed, "team/app", digest)


async def test_upload_is_checked_at_each_step(closed: Registry) -> None:
    """Each step of a session needs push in the repository, also by the caller who began it."""
    begun = await closed.server.ask("POST", UPLOADS, [by_password("developer")])
    location = begun.headers["Location"]
    for name in ("guest", "other", NOBODY):
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            answer = await closed.server.ask(method, location, [by_password(name)], b"x")
            assert answer.status == 403
    assert (await closed.server.ask("GET", location, [by_password("developer")])).status == 204


async def test_upload_of_another_is_found_by_its_id_alone(closed: Registry) -> None:
    """A caller with push may end a session whose random name it knows; none is listed."""
    names = set()
    for _ in range(20):
        begun = await closed.server.ask("POST", UPLOADS, [by_password("developer")])
        names.add(begun.headers["Docker-Upload-UUID"])
    assert {UUID(name).version for name in names} == {4} and len(names) == 20
    listed = await closed.server.ask("GET", UPLOADS, [by_password("admin")])
    assert listed.status == 405
    ended = await closed.server.ask("DELETE", UPLOADS + names.pop(), [by_password("maintainer")])
    assert ended.status == 204


REPOSITORIES = ("other/app", "other/base", "secret", "team/app", "team/base/deep", "zoo/app")
SEEN = {
    "admin": REPOSITORIES,
    "developer": ("team/app", "team/base/deep"),
    "limited-guest": ("team/app", "team/base/deep"),
    "other": ("other/app", "other/base"),
}


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("how", ["password", "token"])
async def test_catalog_names_what_may_be_pulled(how: str, name: str, closed: Registry) -> None:
    """A caller sees exactly the permitted repositories, in one page or following its links."""
    for repository in REPOSITORIES:
        push_image(closed.store, repository, "1")
    scope = "registry:catalog:*"
    token = bearer(closed.token(scope, name=name, now=time.time()))
    headers = [by_password(name) if how == "password" else token]
    whole = await closed.server.ask("GET", "/v2/_catalog", headers)
    assert whole.json == {"repositories": list(SEEN[name])}
    found, target = [], "/v2/_catalog?n=1"
    for _ in range(len(REPOSITORIES) + 1):
        page = await closed.server.ask("GET", target, headers)
        found += page.json["repositories"]
        link = page.headers.get("Link")
        if link is None:
            break
        assert any(
            f"last={seen.replace('/', '%2F')}" in link or seen in link for seen in SEEN[name]
        )
        target = link.partition(">")[0].lstrip("<")
    assert tuple(found) == SEEN[name]
    # last= is a place to continue from, whether or not the caller may see it.
    after = await closed.server.ask("GET", "/v2/_catalog?last=secret", headers)
    assert after.json["repositories"] == [seen for seen in SEEN[name] if seen > "secret"]


async def test_anonymous_catalog_is_of_what_is_open(opened: Registry) -> None:
    """Where anyone may pull, anyone sees; a token for one repository does not show the others."""
    push_image(opened.store, "team/app", "1")
    assert (await opened.server.ask("GET", "/v2/_catalog")).json == {"repositories": ["team/app"]}
    token = opened.bearer("repository:team/app:pull", now=time.time())
    assert (await opened.server.ask("GET", "/v2/_catalog", [token])).status == 401


async def test_lists_of_unreadable_repositories_are_refused(closed: Registry) -> None:
    """Tags and referrers show nothing to callers without pull rights, whatever filter or page."""
    digest = push_image(closed.store, "other/app", "1")
    queries = ("", "?n=1", "?last=0", "?artifactType=a")
    paths = [f"/v2/other/app/tags/list{query}" for query in queries]
    paths += [f"/v2/other/app/referrers/{digest}{query}" for query in queries]
    token = closed.bearer("repository:team/app:pull", now=time.time())
    for path in paths:
        for headers, status in (([by_password("developer")], 403), ([token], 401), ([], 401)):
            assert (await closed.server.ask("GET", path, headers)).status == status


async def test_robot_gets_nothing_from_grants(closed: Registry) -> None:
    """A short-lived credential does what it carries: not more by its name, nor after a token."""
    for repository in ("team/app", "other/app"):
        push_image(closed.store, repository, "1")
    robot = closed.robots.issue("developer", [_permission("other/**")], 60, time.time())
    header = basic(robot.name, robot.password)
    assert (await closed.server.ask("GET", "/v2/other/app/tags/list", [header])).status == 200
    assert (await closed.server.ask("GET", "/v2/team/app/tags/list", [header])).status == 403
    catalog = await closed.server.ask("GET", "/v2/_catalog", [header])
    assert catalog.json == {"repositories": ["other/app"]}
    asked = "/auth/token?scope=repository:team/app:pull&scope=repository:other/app:pull,delete"
    answer = await closed.server.ask("GET", asked, [header])
    assert answer.json["scope"] == "repository:other/app:pull"


async def test_robot_outlives_no_role(closed: Registry) -> None:
    """No credential carries a role that changes rights."""
    for role in (Role.ADMIN, Role.PROJECT_ADMIN):
        with pytest.raises(InputInvalid):
            closed.robots.issue("node", [Permission(role, EVERYTHING)], 60, time.time())


async def test_upstreams_are_named_to_callers_with_rights(memory: Path) -> None:
    """A path that several upstreams share is refused like any other to a caller without rights."""
    grants = [("developer", Role.DEVELOPER, glob) for glob in ("team/**", "docker.io/**")]
    known = [
        (host, name) for host in ("docker.io", "quay.io") for name in ("team/app", "other/app")
    ]
    async with registry(memory / "shared", grants=grants, known=known) as made:
        for repository, headers, status in (
            ("other/app", [], 401),
            ("other/app", [by_password("developer")], 403),
            ("team/app", [by_password("developer")], 400),
        ):
            answer = await made.server.ask("GET", f"/v2/{repository}/tags/list", headers)
            assert answer.status == status
            assert ("docker.io/team/app" in answer.body.decode()) == (status == 400)
            assert "quay.io" not in answer.body.decode()
