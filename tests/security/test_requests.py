"""Requests bent out of shape: refused in the registry's own words, and never let past a check."""

from __future__ import annotations

import base64
import json

import pytest

from mayfly.registry.access.guard import REALM
from tests.security.registries import Registry, by_password, push_blob, push_image
from tests.security.wire import parse
from tests.support.client import Answer, Header

TAGS = "/v2/team/app/tags/list"


def _is_ours(answer: Answer) -> bool:
    """Whether an answer is an OCI error document, without a word of the machinery below."""
    document = json.loads(answer.body)
    told = answer.body.lower()
    return set(document) == {"errors"} and not any(
        word in told for word in (b"traceback", b"aiohttp", b"python", b"<html")
    )


OVERSIZED: dict[str, list[Header]] = {
    "one header of 64 KiB": [("X-Filler", "x" * 65536)],
    "a header name of 64 KiB": [("X" * 65536, "x")],
    "20000 headers": [(f"X-{n}", "x") for n in range(20_000)],
    "1 MiB of Basic": [("Authorization", "Basic " + "QUJD" * 262_144)],
    "1 MiB of Bearer": [("Authorization", "Bearer " + "a" * 1_048_576)],
}


@pytest.mark.parametrize("headers", OVERSIZED.values(), ids=OVERSIZED.keys())
async def test_oversized_head_is_refused(headers: list[Header], closed: Registry) -> None:
    """A head that is too large is a bad request at once, and the next request is served."""
    answer = await _ask_and_be_cut(closed, headers)
    assert answer.status in (400, 431)
    assert _is_ours(answer)
    assert (await closed.server.ask("GET", "/livez")).status == 200


async def _ask_and_be_cut(made: Registry, headers: list[Header]) -> Answer:
    """Send a request to a server that may answer and hang up before it is all sent."""
    reader, writer = await made.server.connect()
    try:
        writer.write(made.server.render("GET", "/v2/", headers, b""))
        received = b""
        try:
            while piece := await reader.read(65536):
                received += piece
        except ConnectionError:
            assert received, "cut without an answer"
        return parse(received)
    finally:
        writer.close()


async def test_long_target_is_refused(closed: Registry) -> None:
    """So is a path or query beyond reason."""
    for target in (
        "/v2/" + "a/" * 4000 + "tags/list",
        "/v2/" + "a" * 3000 + "/tags/list",
        "/v2/_catalog?" + "&".join(f"a{n}=1" for n in range(500)),
        "/auth/token?scope=" + "a" * 7000,
    ):
        answer = await closed.server.ask("GET", target, [by_password("admin")])
        assert answer.status == 400, target[:60]
        assert _is_ours(answer)


async def test_long_form_is_refused(closed: Registry) -> None:
    """A login form of 1 MiB is not read to its end."""
    answer = await closed.server.ask("POST", "/auth/token", [], b"username=" + b"x" * 1_048_576)
    assert answer.status == 400
    assert _is_ours(answer)


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


AUTHORIZATIONS = {
    "empty": "",
    "scheme alone": "Basic",
    "bearer alone": "Bearer",
    "bearer and spaces": "Bearer    ",
    "no scheme": _b64(b"developer:correct horse developer"),
    "not base64": "Basic !!!!",
    "not padded": "Basic YWJjZA",
    "not UTF-8": "Basic " + _b64(b"\xff\xfe:\xff"),
    "no colon": "Basic " + _b64(b"developer"),
    "no name": "Basic " + _b64(b":correct horse developer"),
    "empty both": "Basic " + _b64(b":"),
    "NUL": "Basic " + _b64(b"devel\0oper:x"),
    "line end in the name": "Basic " + _b64(b"developer\r\nX-Evil: 1:x"),
    "8000 characters": "Basic " + _b64(b"a" * 3000 + b":" + b"b" * 2900),
    "another scheme": 'Digest username="admin"',
    "Negotiate": "Negotiate YII=",
    "two in one": "Basic " + _b64(b"guest:x") + ", Basic " + _b64(b"guest:correct horse guest"),
    "Unicode": "Basic \u00e9\u00e9\u00e9\u00e9",
    "tab for a space": "Basic\t" + _b64(b"developer:correct horse developer"),
}


@pytest.mark.parametrize("value", AUTHORIZATIONS.values(), ids=AUTHORIZATIONS.keys())
@pytest.mark.parametrize("target", ["/v2/", "/auth/token"])
async def test_malformed_authorization_is_refused(
    target: str, value: str, closed: Registry
) -> None:
    """A header that proves nothing is 401, also where anonymous callers would be let in."""
    answer = await closed.server.ask("GET", target, [("Authorization", value)])
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    assert "X-Evil" not in answer.headers


HOSTS = {
    'quote"': False,
    'evil.example",error="x': False,
    "evil.example/path": False,
    "evil.example?query": False,
    "user@evil.example": False,
    "evil.example, other": False,
    "evil.example\tx": False,
    "evil.example:port": False,
    "evil.example:123456": False,
    "[::1": False,
    "[evil]:1": False,
    "\u00e9.example": False,
    "": False,
    "a" * 300: False,
    "registry.example:5000": True,
    "[fd00::2]:5000": True,
    "10.0.0.1": True,
}


@pytest.mark.parametrize("host", HOSTS)
async def test_host_is_echoed_only_where_it_is_one(host: str, closed: Registry) -> None:
    """The realm names the Host that the client wrote if it is HOST[:PORT], else the socket's."""
    answer = await closed.server.ask("GET", "/v2/", [("Host", host)])
    if answer.status == 400:
        assert not HOSTS[host] and answer.challenge is None
        return
    shown = host if HOSTS[host] else closed.server.host
    assert answer.challenge == f'Bearer realm="http://{shown}/auth/token",service="{REALM}"'


async def test_forwarded_headers_are_not_believed(closed: Registry) -> None:
    """What anyone can write about the way here changes neither realm, scheme nor address."""
    forged: list[Header] = [
        ("X-Forwarded-For", "127.9.9.9"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Port", "443"),
        ("X-Real-IP", "127.9.9.9"),
        ("Forwarded", "for=127.9.9.9;host=evil.example;proto=https"),
        ("X-Remote-User", "admin"),
        ("Remote-User", "admin"),
        ("X-Forwarded-User", "admin"),
        ("X-Client-Cert", "admin"),
    ]
    answer = await closed.server.ask("GET", TAGS, forged)
    assert answer.status == 401
    assert answer.challenge is not None
    assert answer.challenge.startswith(f'Bearer realm="http://{closed.server.host}/auth/token"')
    wrong = ("Authorization", "Basic " + _b64(b"developer:wrong"))
    await closed.server.ask("GET", TAGS, [wrong, *forged])
    assert set(closed.guard.audit.refusals) == {("developer", "127.0.0.1")}


PATHS = [
    "/v2/other/secret/../../team/app/manifests/1",
    "/v2/team/app/../../other/secret/manifests/1",
    "/v2/team/../other/secret/manifests/1",
    "/v2/team/%2e%2e/other/secret/manifests/1",
    "/v2/team/..%2fother%2fsecret/manifests/1",
    "/v2/team/app%2f..%2f..%2fother%2fsecret/manifests/1",
    "/v2/other%2Fsecret/manifests/1",
    "/v2/other%252Fsecret/manifests/1",
    "/v2/./other/secret/manifests/1",
    "//v2/other/secret/manifests/1",
    "/v2//other/secret/manifests/1",
    "/v2/other//secret/manifests/1",
    "/v2/other/secret/manifests//1",
    "/v2/other/secret/manifests/1/",
    "/v2/other/secret/manifests/1/.",
    "/V2/other/secret/manifests/1",
    "/v2/Other/Secret/manifests/1",
    "/v2/OTHER/SECRET/manifests/1",
    "/v2/other/secret/Manifests/1",
    "/v2/other/secret/manifests/1%00",
    "/v2/other/secret%00/manifests/1",
    "/v2/other/secret;x=1/manifests/1",
    "/v2/other/secret\\manifests/1",
    "/v2/other\\secret/manifests/1",
    "/v2/other/secret/manifests/1;x",
    "/v2/other/secret /manifests/1",
    "/v2/other/secret%20/manifests/1",
    "/v2/other/secret/manifests/%31%2f",
    "/v1/other/secret/manifests/1",
    "/auth/../v2/other/secret/manifests/1",
    "/livez/../v2/other/secret/manifests/1",
    "/livez/v2/other/secret/manifests/1",
    "/v2/_catalog/../other/secret/manifests/1",
    "/v2/%c0%ae%c0%ae/other/secret/manifests/1",
    "/v2/other/s%c3%a9cret/manifests/1",
    "http://127.0.0.1//v2/other/secret/manifests/1",
    "http://127.0.0.1/v2/team/../other/secret/manifests/1",
    "http://127.0.0.1/v2/other%2fsecret/manifests/1",
    "http:/v2/other/secret/manifests/1",
    "ftp://127.0.0.1/v2/other/secret/manifests/1",
    "/v2/other/secret/manifests/../../../../../../etc/passwd",
    "/v2/other/secret/blobs/../../../../../../etc/passwd",
    "/v2/other/secret/blobs/sha256:../../../../etc/passwd",
    "/v2/other/secret/blobs/uploads/../../x",
    "/v2/other/secret/blobs/uploads/%2e%2e",
]


@pytest.mark.parametrize("target", PATHS)
@pytest.mark.parametrize("name", ["developer", "admin", None])
async def test_crooked_path_leads_nowhere(name: str | None, target: str, closed: Registry) -> None:
    """No other spelling of a path finds a repository, whatever the caller's rights to it are."""
    push_image(closed.store, "other/secret", "1")
    headers = [] if name is None else [by_password(name)]
    for method in ("GET", "HEAD", "DELETE"):
        answer = await closed.server.ask(method, target, headers)
        assert answer.status in (400, 401, 403, 404, 405), (method, answer.status)
        assert b"schemaVersion" not in answer.body
        if name == "admin":
            assert answer.status in (400, 404, 405), (method, answer.status)


async def test_percent_encoding_is_the_same_path(closed: Registry) -> None:
    """%6f is an o: the check is made on what the handler will use."""
    push_image(closed.store, "other/secret", "1")
    target = "/v2/%6fther/s%65cret/%6danifests/%31"
    assert (await closed.server.ask("GET", target, [by_password("other")])).status == 200
    answer = await closed.server.ask("GET", target, [by_password("developer")])
    assert answer.status == 403
    assert "other/secret" in answer.body.decode()


async def test_absolute_form_is_checked_as_its_path(closed: Registry) -> None:
    """A target with scheme and host, as to a proxy, opens no more than its path does."""
    push_image(closed.store, "other/secret", "1")
    target = f"http://{closed.server.host}/v2/other/secret/manifests/1"
    for headers, status in (([], 401), ([by_password("developer")], 403)):
        answer = await closed.server.ask("GET", target, headers)
        assert answer.status == status
        assert b"schemaVersion" not in answer.body
    answer = await closed.server.ask("GET", target, [by_password("other")])
    assert answer.status == 200


async def test_names_made_of_fixed_words_are_checked_as_names(closed: Registry) -> None:
    """A repository named after an endpoint needs a right to that repository, as any other does."""
    for name in ("team/tags/list", "team/blobs/uploads", "team/manifests/1", "team/_catalog"):
        for path in (f"/v2/{name}/manifests/1", f"/v2/{name}/tags/list"):
            if "_" in name:
                assert (await closed.server.ask("GET", path)).status == 400
                continue
            answer = await closed.server.ask("GET", path)
            assert answer.status == 401
            assert f'scope="repository:{name}:pull"' in (answer.challenge or "")


OVERRIDES: list[Header] = [
    ("X-HTTP-Method-Override", "DELETE"),
    ("X-HTTP-Method", "DELETE"),
    ("X-Method-Override", "DELETE"),
    ("X-Original-URL", "/v2/other/secret/manifests/1"),
    ("X-Rewrite-URL", "/v2/other/secret/manifests/1"),
]


@pytest.mark.parametrize("header", OVERRIDES, ids=[name for name, _ in OVERRIDES])
async def test_method_and_path_cannot_be_overridden(header: Header, opened: Registry) -> None:
    """What a request does is in its first line."""
    digest = push_blob(opened.store, "team/app", b"kept")
    for query in ("", "?_method=DELETE"):
        target = f"/v2/team/app/blobs/{digest}{query}"
        answer = await opened.server.ask("GET", target, [header])
        assert (answer.status, answer.body) == (200, b"kept")
    assert opened.store.blob("team/app", digest).size == 4


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "LINK"])
async def test_other_methods_are_refused(method: str, closed: Registry) -> None:
    """A method that the endpoint has not is 405 or no HTTP at all, with nothing echoed."""
    answer = await closed.server.ask(method, TAGS, [("X-Secret", "echo-me")])
    assert answer.status in (400, 405)
    assert b"echo-me" not in answer.body
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_head_is_refused_as_get_is(closed: Registry) -> None:
    """HEAD tells nothing that GET would not: same status, same challenge, no body."""
    digest = push_blob(closed.store, "team/app", b"content")
    for headers in ([], [by_password("other")]):
        for path in (f"blobs/{digest}", f"manifests/{digest}"):
            get, head = [
                await closed.server.ask(method, f"/v2/team/app/{path}", headers)
                for method in ("GET", "HEAD")
            ]
            assert (get.status, get.challenge) == (head.status, head.challenge)
            assert "Docker-Content-Digest" not in head.headers
            assert head.body == b""


SMUGGLED = {
    "two lengths": b"Content-Length: 5\r\nContent-Length: 50\r\n\r\nhello",
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice removed": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "space before the colon": b"Content-Length : 5\r\n\r\nhello",
    "folded header": b"X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "negative length": b"Content-Length: -1\r\n\r\n",
    "bare line feeds": b"X-A: b\n\n",
}


@pytest.mark.parametrize("rest", SMUGGLED.values(), ids=SMUGGLED.keys())
async def test_ambiguous_framing_is_refused(rest: bytes, closed: Registry) -> None:
    """A body whose end could be read in two ways is no request, and ends the connection."""
    reader, writer = await closed.server.connect()
    line = f"POST /auth/token HTTP/1.1\r\nHost: {closed.server.host}\r\n".encode()
    second = f"GET /livez HTTP/1.1\r\nHost: {closed.server.host}\r\n\r\n".encode()
    writer.write(line + rest + second)
    received = await reader.read()
    writer.close()
    assert received.count(b"HTTP/1.") == 1, received
    assert parse(received, "POST").status == 400


async def test_refused_upload_is_not_asked_for_its_body(closed: Registry) -> None:
    """A client that waits for 100 Continue is refused before it sends a byte of the body."""
    reader, writer = await closed.server.connect()
    head = [("Expect", "100-continue"), ("Content-Length", "1000000000")]
    writer.write(closed.server.render("POST", "/v2/team/app/blobs/uploads/?digest=x", head, b""))
    received = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert received.startswith(b"HTTP/1.1 401 ")
