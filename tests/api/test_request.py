"""`request.parse`: every path to its one meaning, everything else to a named error."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mayfly.registry.api.errors import EndpointUnknown, MethodUnsupported, ParameterInvalid
from mayfly.registry.api.parse import MAX_PATH_LENGTH, Paths, parse
from mayfly.registry.api.request import Request, Route
from mayfly.registry.api.routes import ROUTES
from mayfly.storage import digest as digests
from mayfly.storage.errors import DigestInvalid, NameInvalid, TagInvalid
from mayfly.storage.reference import check_repository
from tests.support.endpoints import METHODS, route_of

SHA = "sha256:" + "ab" * 32
SHA512 = "sha512:" + "cd" * 64
NAMED_ERRORS = (
    EndpointUnknown,
    MethodUnsupported,
    ParameterInvalid,
    NameInvalid,
    TagInvalid,
    DigestInvalid,
)

PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "/v2": ("base", {}),
    "/v2/": ("base", {}),
    "/": ("root", {}),
    "/livez": ("live", {}),
    "/readyz": ("ready", {}),
    "/v2/_catalog": ("catalog", {}),
    "/v2/a/tags/list": ("tags", {"repository": "a"}),
    "/v2/a/b/c/tags/list": ("tags", {"repository": "a/b/c"}),
    "/v2/a/manifests/v1": ("manifest", {"repository": "a", "tag": "v1"}),
    "/v2/a/manifests/_": ("manifest", {"repository": "a", "tag": "_"}),
    f"/v2/a/manifests/{SHA}": ("manifest", {"repository": "a", "digest": SHA}),
    f"/v2/a/manifests/{SHA512}": ("manifest", {"repository": "a", "digest": SHA512}),
    f"/v2/a/blobs/{SHA}": ("blob", {"repository": "a", "digest": SHA}),
    "/v2/a/blobs/uploads/": ("uploads", {"repository": "a"}),
    "/v2/a/blobs/uploads": ("uploads", {"repository": "a"}),
    "/v2/a/blobs/uploads/x-y": ("upload", {"repository": "a", "upload_id": "x-y"}),
    f"/v2/a/referrers/{SHA}": ("referrers", {"repository": "a", "digest": SHA}),
    "/mayfly/v1/nodes/worker-1/nonce": ("nonce", {"node": "worker-1"}),
    "/mayfly/v1/nodes/worker-1/proof": ("proof", {"node": "worker-1"}),
    "/mayfly/v1/nodes/Worker%20One/proof": ("proof", {"node": "Worker One"}),
    "/mayfly/v1/nodes/fd00::1/proof": ("proof", {"node": "fd00::1"}),
    f"/mayfly/v1/scripts/{'-' * 43}": ("script", {"token": "-" * 43}),
    "/mayfly/v1/nodes/proof/proof": ("proof", {"node": "proof"}),
    # Repositories called like the protocol's own words.
    "/v2/tags/list/tags/list": ("tags", {"repository": "tags/list"}),
    "/v2/manifests/tags/list": ("tags", {"repository": "manifests"}),
    "/v2/tags/manifests/list": ("manifest", {"repository": "tags", "tag": "list"}),
    "/v2/a/manifests/manifests/manifests": (
        "manifest",
        {"repository": "a/manifests", "tag": "manifests"},
    ),
    f"/v2/blobs/uploads/blobs/{SHA}": (
        "blob",
        {"repository": "blobs/uploads", "digest": SHA},
    ),
    "/v2/blobs/blobs/uploads/": ("uploads", {"repository": "blobs"}),
    "/v2/uploads/blobs/uploads/": ("uploads", {"repository": "uploads"}),
    "/v2/blobs/uploads/blobs/uploads/": ("uploads", {"repository": "blobs/uploads"}),
    "/v2/blobs/uploads/manifests/v1": (
        "manifest",
        {"repository": "blobs/uploads", "tag": "v1"},
    ),
    "/v2/v2/tags/list": ("tags", {"repository": "v2"}),
    # Percent-encoding of what needs none.
    "/v2/%61/manifests/v%31": ("manifest", {"repository": "a", "tag": "v1"}),
    f"/v2/a/blobs/{quote(SHA, safe='')}": ("blob", {"repository": "a", "digest": SHA}),
}


@pytest.mark.parametrize("path", PATHS)
def test_path(path: str) -> None:
    """Each path has one meaning, for each of its methods."""
    endpoint, fields = PATHS[path]
    if "digest" in fields:
        fields = fields | {"digest": digests.parse(fields["digest"])}
    for method in METHODS[endpoint]:
        assert parse(method, path, "") == Request(route_of(endpoint, method), method, **fields)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.endpoint} {route.methods}")
def test_path_of_a_route_leads_to_it(route: Route) -> None:
    """Every route is reached by its own path, with and without a slash at the end."""
    path = route.path.format(
        name="a/b", reference="v1", digest=SHA, id="x", node="n", token="t" * 43, file="page.css"
    )
    for method in route.methods:
        for written in {path, path.rstrip("/") or "/"}:
            assert parse(method, written, "").route is route


def _misread(routes: Sequence[Route]) -> set[str]:
    """Paths of routes that lead to another route, or to another repository.

    Repositories and tags are called like each word of a path, as far as their grammar allows.
    """
    words = {part for route in routes for part in route.path.split("/") if part and part[0] != "{"}
    parts = ["team", *sorted(filter(_is_repository, words))]
    names = ["/".join(some) for count in (1, 2) for some in product(parts, repeat=count)]
    values = {"{reference}": ["v1", SHA, *sorted(words)], "{digest}": [SHA], "{id}": ["x-y"]}
    paths, found = Paths(routes), set()
    for route in routes:
        if not route.path.startswith("/v2/{name}/"):
            continue
        last = route.path.rpartition("/")[2]
        for name, value in product(names, values.get(last, [""])):
            path = route.path.format(name=name, reference=value, digest=value, id=value)
            try:
                methods, repository, _ = paths.find(path.removeprefix("/v2/").split("/"))
            except NAMED_ERRORS:
                found.add(path)
                continue
            if methods.get(route.methods[0]) is not route or "/".join(repository) != name:
                found.add(path)
    return found


def _is_repository(word: str) -> bool:
    try:
        check_repository(word)
    except NameInvalid:
        return False
    return True


def test_path_of_a_route_is_no_other_routes() -> None:
    """Whatever its repository and tag are called, a path is read as its own route's."""
    advice = "a path needs two parts after {name}, the first no word of another path"
    assert sorted(_misread(ROUTES))[:5] == [], advice


@pytest.mark.parametrize(
    ("path", "misread"),
    [
        ("/v2/{name}/_new", "/v2/team/manifests/_new"),
        ("/v2/{name}/uploads/{reference}", "/v2/team/blobs/uploads/v1"),
        ("/v2/{name}/_new/{reference}", None),
    ],
)
def test_misread_path_is_found(path: str, misread: str | None) -> None:
    """A path that is also a tag's, or the end of another, is found; one as advised is neither."""
    added = route_of("tags", "GET")._replace(endpoint="new", path=path)
    found = _misread([*ROUTES, added]) - _misread(ROUTES)
    assert misread in found if misread else not found


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "method",
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "", "X" * 99],
)
def test_method(path: str, method: str) -> None:
    """A method a path does not have is refused with those it has."""
    endpoint, _ = PATHS[path]
    if method in METHODS[endpoint]:
        assert parse(method, path, "").method == method
    else:
        with pytest.raises(MethodUnsupported) as refused:
            parse(method, path, "")
        assert refused.value.allow == METHODS[endpoint]


UNKNOWN_PATHS = (
    "", "v2/", "/v1/", "/v3/", "/V2/", "//v2/", "/v2//", "/v2/a", "/v2/a/", "/v2/a/b", "*",
    "/v2/a/tags", "/v2/a/tags/", "/v2/a/tags/lists", "/v2/a/tags/list/", "/v2/a/b/c/d/e/f",
    "/v2/a/blob/x", "/v2/_catalog/", "/v2/a/_catalog", "/livez/", "/readyz/x", "/metrics/",
    "/x/v2/a/tags/list", "v2/a/tags/list", "http://host/v2", "/v2/?", "/%762/", "/v2%2f",
    "/mayfly/v1/nodes/", "/mayfly/v1/nodes/a", "/mayfly/v1/nodes//proof", "/mayfly/v1/nodes/proof",
    "/mayfly/v1/nodes/a/b/proof", "/mayfly/v1/nodes/a/proof/", "/mayfly/v1/nodes/a%2Fb/nonce",
    "/mayfly/v1/nodes/a%0A/nonce", "/mayfly/v1/nodes/a:b/nonce", "/mayfly/v1/nodes/%FF/nonce",
    "/mayfly/v2/nodes/a/proof", "/mayfly/v1/scripts/", f"/mayfly/v1/scripts/{'x' * 42}",
    f"/mayfly/v1/scripts/{'x' * 42}%2f", f"/mayfly/v1/scripts/{'x' * 43}/",
    "/mayfly/v1/scripts/../x",
    f"/v2/a/manifests/{SHA}/x", f"/v2/a/blobs/{SHA}/", f"/v2/a/referrers/{SHA}/", "/v2/a/Tags/list",
)  # fmt: skip


@pytest.mark.parametrize("path", UNKNOWN_PATHS)
def test_unknown_path(path: str) -> None:
    """A path outside the protocol is unknown, or has an invalid name."""
    with pytest.raises((EndpointUnknown, NameInvalid, TagInvalid, DigestInvalid)):
        parse("GET", path, "")


BAD_NAMES = (
    "", "A", "a/", "/a", "a//b", "..", ".", "a/..", "../a", "a/../b", "a/./b", "%2e%2e", "a/%2E%2e",
    "a%2fb", "a%2Fb", "%2fetc%2fpasswd", "a%00", "%00", "a%0a", "a%0d%0aX: y", "a%20b", "a b",
    "a%25", "%ff", "%c3%28", "%c0%ae%c0%ae", "a%5cb", "a\\b", "é", "%C3%A9", "_a", "a-", "a%",
    "%zz", "a:b", "a@b", "~a", "a" * 256, "a/" * 200 + "a", "%61" * 256, "\udcff", "%u002e",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("rest", ["tags/list", "manifests/v1", f"blobs/{SHA}", "blobs/uploads/"])
def test_bad_name(name: str, rest: str) -> None:
    """A repository name outside the grammar, however written, is `NameInvalid`."""
    with pytest.raises(NameInvalid) as refused:
        parse("GET", f"/v2/{name}/{rest}", "")
    assert len(refused.value.message) < 1200


@pytest.mark.parametrize(
    "tag",
    ["", ".", "..", "-a", "a%20b", "a%00", "%2e%2e", "a" * 129, "é", "a%0a", "a+b", "%2d", "~"],
)
def test_bad_tag(tag: str) -> None:
    """A tag outside the grammar is `TagInvalid`."""
    with pytest.raises(TagInvalid):
        parse("GET", f"/v2/a/manifests/{tag}", "")


@pytest.mark.parametrize(
    "text",
    ["sha256:", "sha256:abc", SHA.upper(), SHA + "0", "md5:" + "0" * 32, ":", "x:y", SHA + "%00"],
)
@pytest.mark.parametrize("kind", ["manifests", "blobs", "referrers"])
def test_bad_digest(kind: str, text: str) -> None:
    """A reference with a colon must be a digest."""
    with pytest.raises(DigestInvalid):
        parse("GET", f"/v2/a/{kind}/{text}", "")


@pytest.mark.parametrize("kind", ["blobs", "referrers"])
@pytest.mark.parametrize("text", ["", "latest", "..", "uploadsx"])
def test_digest_needed(kind: str, text: str) -> None:
    """A blob or a subject has no tag."""
    with pytest.raises(DigestInvalid):
        parse("GET", f"/v2/a/{kind}/{text}", "")


def test_encoded_slash_is_no_separator() -> None:
    """A decoded slash joins no parts, in a name, a tag, a digest or an upload id."""
    for path in ("/v2/a/manifests/b%2fc", "/v2/a/blobs/uploads/x%2fy", f"/v2/a/blobs%2f{SHA}"):
        with pytest.raises((NameInvalid, TagInvalid, DigestInvalid, EndpointUnknown)):
            parse("GET", path, "")


def test_decoded_once() -> None:
    """Text that was encoded twice stays encoded, which makes the name invalid."""
    with pytest.raises(NameInvalid):
        parse("GET", "/v2/%2561/tags/list", "")


def test_long_path() -> None:
    """A path over the limit is refused by its length alone."""
    part = "a/" * MAX_PATH_LENGTH
    with pytest.raises(NameInvalid, match=str(MAX_PATH_LENGTH)):
        parse("GET", f"/v2/{part}tags/list", "")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("n=5&last=a%2Fb", {"n": ("5",), "last": ("a/b",)}),
        ("tag=a&tag=b&tag=a", {"tag": ("a", "b", "a")}),
        ("digest=sha256%3Aabc", {"digest": ("sha256:abc",)}),
        ("a=&b&=c", {"a": ("",), "b": ("",), "": ("c",)}),
        ("x=a+b%20c%2B", {"x": ("a b c+",)}),
        ("a=1;b=2", {"a": ("1;b=2",)}),
        ("x=%00%0d%0a", {"x": ("\0\r\n",)}),
        ("&&&", {}),
        ("n=5#fragment", {"n": ("5#fragment",)}),
    ],
)
def test_query(query: str, expected: dict[str, tuple[str, ...]]) -> None:
    """Parameters in order, decoded once; the first counts where one is wanted."""
    found = parse("GET", "/v2/_catalog", query)
    assert found.query == expected
    for name, values in expected.items():
        assert found.parameter(name) == values[0]
    assert found.parameter("absent") is None


@pytest.mark.parametrize(
    "query", ["a=%ff", "%ff=a", "a=%c3%28", "a=\udcff", "\udc80=1", "&".join(["a=1"] * 65)]
)
def test_bad_query(query: str) -> None:
    """A query that is not UTF-8 or has too many fields."""
    with pytest.raises(ParameterInvalid):
        parse("GET", "/v2/_catalog", query)


@pytest.mark.parametrize("query", ["", "a=1"])
def test_a_query_cannot_be_changed(query: str) -> None:
    """No request can change what another sees."""
    shared = parse("GET", "/v2/", query).query
    assert shared is parse("GET", "/v2/", query).query
    with pytest.raises(TypeError):
        shared["b"] = ("2",)  # type: ignore[index]


def test_a_request_is_read_once() -> None:
    """A fleet's same few requests are not read again; those with long queries are."""
    path = "/v2/read-once/manifests/latest"
    plain, with_ns = (parse("GET", path, query) for query in ("", "ns=a.test"))
    assert plain is parse("GET", path, "")
    assert with_ns is parse("GET", path, "ns=a.test")
    assert with_ns == plain._replace(query={"ns": ("a.test",)})
    assert parse("GET", path, "ns=" + "a" * 300) is not parse("GET", path, "ns=" + "a" * 300)
    assert parse("HEAD", path, "") == plain._replace(method="HEAD")
    with pytest.raises(MethodUnsupported):
        parse("PATCH", path, "")


def test_the_text_of_a_request_holds_no_token() -> None:
    """The path of a script is a secret."""
    request = parse("GET", f"/mayfly/v1/scripts/{'a' * 43}", "")
    assert request.token == "a" * 43
    assert "a" * 43 not in repr(request) + str(request)


PIECES = st.sampled_from(
    ["v2", "a", "tags", "list", "manifests", "blobs", "uploads", "referrers", SHA, "..", "%2e",
     "%2f", "%00", "", "A", "_catalog", "livez", "%", "\udcff", "é", ":", "latest"]
)  # fmt: skip


@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "X"])
    | st.text(max_size=9),
    path=st.lists(PIECES, max_size=8).map("/".join).map("/v2/".__add__) | st.text(max_size=60),
    query=st.text(max_size=40),
)
@example(method="GET", path="/v2/" + "%" * 2000 + "/tags/list", query="%" * 500)
@settings(max_examples=500, deadline=None)
def test_anything(method: str, path: str, query: str) -> None:
    """Whatever is sent: a valid request or one of the named errors."""
    try:
        found = parse(method, path, query)
    except NAMED_ERRORS as error:
        assert error.message
        error.message.encode("utf-8", "surrogatepass")
    else:
        assert found.method in METHODS[found.route.endpoint]
        assert ".." not in found.repository
        assert len(found.repository) <= 255


@given(
    name=st.from_regex(r"[a-z0-9]{1,4}([._-][a-z0-9]{1,4})?(/[a-z0-9]{1,4}){0,3}", fullmatch=True),
    tag=st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}", fullmatch=True),
    encode=st.booleans(),
)
@settings(deadline=None)
def test_valid_names_always_pass(name: str, tag: str, encode: bool) -> None:
    """A valid name and tag come through as they are, percent-encoded or not."""
    written = "".join(f"%{ord(c):02x}" for c in tag) if encode else tag
    found = parse("GET", f"/v2/{name}/manifests/{written}", "")
    assert (found.repository, found.tag, found.digest) == (name, tag, None)
