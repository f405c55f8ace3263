"""Names, paths and parameters that try something: the right code, and nothing changed on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from mayfly.registry.api.routes import ROUTES
from mayfly.storage.directory.store import DistributionStore
from tests.support.endpoints import METHODS
from tests.support.images import digest_of, image_body
from tests.support.pushing import content, push_blob, push_image
from tests.support.registry import Client
from tests.support.wire import Wire

REPO = "team/app"
SHA = digest_of(b"x")

BAD_NAMES = (
    "..", "../..", "../../etc", "a/../b", "%2e%2e", "%2e%2e/%2e%2e", "..%2f..", "%2fetc%2fpasswd",
    "a%2fb", "a%00", "%00", "a%0d%0aX-Injected:%201", "a%5c..", "%c0%ae%c0%ae", "%ff%fe", "%252e",
    "A", "Team/App", "_uploads", "a/_manifests", "_mayfly/scratch", "-", ".", "a//b", "a" * 256,
    "a/" * 130 + "a", "~root", "a%20b", "%25", "%", "a:5000", "%E2%80%AE",
)  # fmt: skip
_VALUES = {"reference": "v1", "digest": SHA, "id": "1b671a64-40d5-491e-99b0-da01ff1f3341"}
RESTS = {
    route.path.removeprefix("/v2/{name}/").format(**_VALUES): route.endpoint
    for route in ROUTES
    if route.path.startswith("/v2/{name}/")
}
"""What follows the repository in a path → endpoint."""


@pytest.mark.parametrize("rest", RESTS)
async def test_bad_name(client: Client, wire: Wire, root: Path, rest: str) -> None:
    """Every endpoint by every method refuses a name outside the grammar, and touches nothing."""
    await push_image(client, REPO, "v1")
    before = content(root)
    for name in BAD_NAMES:
        for method in METHODS[RESTS[rest]]:
            body = None if method in ("GET", "HEAD", "DELETE") else b"x"
            answer = await wire.ask(method, f"/v2/{name}/{rest}", body)
            assert answer.status == 400, (method, name)
            if method != "HEAD":
                assert answer.codes == ["NAME_INVALID"], (method, name)
            assert "X-Injected" not in answer.headers
            assert str(root).encode() not in answer.body
    assert content(root) == before


UNKNOWN = (
    "/v1/", "/v2/x", "/v2/a/b", "/v2//", "//v2/", "/v2/_catalog/", "/metrics/", "/..",
    "/../v2/", "/v2/../livez", "/%2e%2e/", "/v2/a/tags/list/", "/v2/a/manifests", "/auth/token",
    "/v2/%2e%2e/%2e%2e/etc/passwd", "/v2/./", "/v2/a/tags/list%00", "/v2/a/tags%2flist",
    "/favicon.ico", "/index.html",
)  # fmt: skip


async def test_unknown_path(client: Client, wire: Wire, root: Path) -> None:
    """A path that is none of the registry's: 404 in JSON, by every method."""
    await push_image(client, REPO, "v1")
    before = content(root)
    for target in UNKNOWN:
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            answer = await wire.ask(method, target)
            if target == "/auth/token" and method not in METHODS["token"]:
                continue
            assert answer.status in (404, 400), (method, target)
            if method != "HEAD":
                assert answer.codes
    assert content(root) == before


async def test_wrong_method(client: Client, wire: Wire, root: Path) -> None:
    """A path with a method it does not have: 405 with those it has."""
    await push_image(client, REPO, "v1")
    before = content(root)
    paths = {f"/v2/{REPO}/{rest}": endpoint for rest, endpoint in RESTS.items()}
    paths |= {"/v2/": "base", "/v2/_catalog": "catalog", "/livez": "live"}
    for target, endpoint in paths.items():
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "LINK"):
            if method in METHODS[endpoint]:
                continue
            answer = await wire.ask(method, target)
            assert answer.status == 405, (method, target)
            assert answer.headers["Allow"] == ", ".join(METHODS[endpoint])
            if method != "HEAD":
                assert answer.codes == ["UNSUPPORTED"]
    assert content(root) == before


async def test_head_is_get_without_the_body(client: Client, wire: Wire) -> None:
    """Wherever HEAD is allowed it answers as GET does, date apart, and sends no body."""
    body = await push_image(client, REPO, "v1")
    targets = [
        "/v2/", "/livez", "/readyz", f"/v2/{REPO}/manifests/v1", f"/v2/{REPO}/manifests/none",
        f"/v2/{REPO}/manifests/{digest_of(body)}", f"/v2/{REPO}/blobs/{digest_of(b'{}')}",
        f"/v2/{REPO}/blobs/{SHA}", "/v2/A/manifests/v1", "/nowhere",
    ]  # fmt: skip
    for target in targets:
        get, head = await wire.ask("GET", target), await wire.ask("HEAD", target)
        assert head.status == get.status, target
        assert head.body == b""
        for found in (get, head):
            found.headers.popall("Date")
        assert head.headers == get.headers, target


@pytest.mark.parametrize("tag", ["-x", ".x", "a%2fb", "%00", "a" * 129, "%2e%2e", "x%0a", "%ff"])
async def test_bad_tag(client: Client, wire: Wire, root: Path, tag: str) -> None:
    """A tag outside the grammar, by every method."""
    await push_image(client, REPO, "v1")
    before = content(root)
    for method in METHODS["manifest"]:
        body = image_body() if method == "PUT" else None
        answer = await wire.ask(method, f"/v2/{REPO}/manifests/{tag}", body)
        assert answer.status == 400
        if method != "HEAD":
            assert answer.codes[0] in ("TAG_INVALID", "NAME_INVALID")
    assert content(root) == before


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:",
        "sha256:abc",
        SHA.upper(),
        SHA + "0",
        "md5:" + "0" * 32,
        "sha256:..%2f..",
        "x:y%00",
    ],
)
async def test_bad_digest(client: Client, wire: Wire, root: Path, digest: str) -> None:
    """A digest outside the grammar, wherever one stands: 400, never 500."""
    await push_image(client, REPO, "v1")
    before = content(root)
    requests = [
        ("GET", f"/v2/{REPO}/blobs/{digest}"),
        ("DELETE", f"/v2/{REPO}/blobs/{digest}"),
        ("GET", f"/v2/{REPO}/manifests/{digest}"),
        ("PUT", f"/v2/{REPO}/manifests/{digest}"),
        ("DELETE", f"/v2/{REPO}/manifests/{digest}"),
        ("GET", f"/v2/{REPO}/referrers/{digest}"),
        ("POST", f"/v2/{REPO}/blobs/uploads/?digest={digest}"),
    ]
    for method, target in requests:
        answer = await wire.ask(method, target, b"x" if method in ("PUT", "POST") else None)
        assert (answer.status, answer.codes[0]) in (
            (400, "DIGEST_INVALID"),
            (400, "NAME_INVALID"),
        ), (method, target)
    assert content(root) == before
    # A mount that cannot be done begins an upload instead (distribution-spec, "Mounting a blob").
    answer = await wire.ask("POST", f"/v2/{REPO}/blobs/uploads/?mount={digest}&from={REPO}", b"")
    assert answer.status == 202


@pytest.mark.parametrize(
    "query",
    [
        "x=%ff", "&".join(["a=1"] * 1000), "n=1&n=2&n=", "last=%00", "last=../../x",
        "last=%F0%9F%90%9B",
        "artifactType=%0d%0aX-Injected:1", "x" * 7000, "=&=&=", "%", "n=1#x", "ns=docker.io&x[]=1",
    ],
)  # fmt: skip
async def test_strange_query(client: Client, wire: Wire, root: Path, query: str) -> None:
    """With any query, lists are answered with 200 or with an error that names the fault."""
    body = await push_image(client, REPO, "v1")
    before = content(root)
    for path in (
        "/v2/_catalog",
        "/v2/",
        f"/v2/{REPO}/tags/list",
        f"/v2/{REPO}/referrers/{digest_of(body)}",
        f"/v2/{REPO}/manifests/v1",
    ):
        answer = await wire.ask("GET", f"{path}?{query}")
        assert answer.status in (200, 400), path
        assert "X-Injected" not in answer.headers
        assert answer.status == 200 or answer.codes
    assert content(root) == before


async def test_longest_names(client: Client, store: DistributionStore) -> None:
    """The longest name and tag that the grammar allows work from push to delete."""
    for name in ("a" * 255, "/".join(["ab"] * 85)):
        body = await push_image(client, name, "t" * 128)
        async with client.get(f"/v2/{name}/manifests/{'t' * 128}") as answer:
            assert await answer.read() == body
        assert name in store.repositories("", 10)
        async with client.delete(f"/v2/{name}/manifests/{digest_of(body)}") as answer:
            assert answer.status == 202


async def test_repositories_called_like_the_protocol(client: Client) -> None:
    """Names made of the protocol's own words are names like any other."""
    for name in ("v2", "blobs", "uploads", "blobs/uploads", "manifests", "tags/list", "referrers"):
        data = name.encode()
        await push_blob(client, name, data)
        body = await push_image(client, name, "list")
        for path, expected in ((f"blobs/{digest_of(data)}", data), ("manifests/list", body)):
            async with client.get(f"/v2/{name}/{path}") as answer:
                assert await answer.read() == expected
        async with client.get(f"/v2/{name}/tags/list") as answer:
            assert await answer.json() == {"name": name, "tags": ["list"]}
