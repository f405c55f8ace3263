"""Request lines of any bytes: one of the named errors, or a request that writes back the same."""

from __future__ import annotations

import json
from urllib.parse import quote, urlencode

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mayfly.registry.api import errors
from mayfly.registry.api.parse import parse
from mayfly.registry.api.request import Request, read_form
from mayfly.registry.api.routes import ROUTES
from mayfly.storage.bundle.errors import NameAmbiguous
from mayfly.storage.bundle.names import BundleNames
from mayfly.storage.digest import Digest
from mayfly.storage.errors import NameInvalid, StorageError
from mayfly.storage.reference import check_repository
from tests.fuzz.budget import EXAMPLES

COMPONENTS = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
WORDS = st.sampled_from(["v2", "blobs", "uploads", "manifests", "tags", "list", "referrers"])
REPOSITORIES = st.lists(COMPONENTS | WORDS, min_size=1, max_size=5).map("/".join)
TAGS = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", fullmatch=True)
DIGESTS = st.one_of(
    st.binary(min_size=32, max_size=32).map(lambda data: Digest("sha256", data.hex())),
    st.binary(min_size=64, max_size=64).map(lambda data: Digest("sha512", data.hex())),
)
WIRE = st.binary(max_size=80).map(lambda data: data.decode("utf-8", "surrogateescape"))
"""What a request line can hold, as the HTTP parser gives it on."""

BYTES_OF_PATH = st.lists(
    WIRE | COMPONENTS | WORDS | st.binary(max_size=6).map(quote), max_size=8
).map("/".join)


@settings(max_examples=EXAMPLES, deadline=None)
@given(method=st.sampled_from(["GET", "PUT", "POST"]) | WIRE, path=BYTES_OF_PATH, query=WIRE)
@example(method="GET", path="/v2/_catalog", query="last=\udcff")
@example(method="GET", path="/v2/a/tags/list", query="\udc80=1")
@example(method="POST", path="/v2/a/blobs/uploads/", query="from=%ed%b3%bf")
def test_any_bytes(method: str, path: str, query: str) -> None:
    """An error that has its status, code and JSON; or a request whose texts are all UTF-8."""
    for sent in (path, "/v2/" + path):
        try:
            found = parse(method, sent, query)
        except (errors.RequestError, StorageError) as error:
            status, code = errors.TABLE[type(error)]
            assert 400 <= status < 500
            assert json.loads(errors.body(code, error.message, error.detail))
        else:
            found.access().needs()
            json.dumps({**found.query}, ensure_ascii=False).encode()


def _written(found: Request, quoted: str) -> tuple[str, str]:
    """The path and query of a request, with any character encoded that one likes."""
    path = found.route.path.format(
        name=found.repository,
        reference=found.digest or found.tag,
        digest=found.digest,
        id=found.upload_id,
    )
    head, _, tail = path.rpartition("/")
    written = "".join(f"%{ord(c):02X}" if c in quoted else c for c in tail)
    return f"{head}/{written}", urlencode(found.query, doseq=True)


@st.composite
def _requests(draw: st.DrawFn) -> Request:
    route = draw(st.sampled_from([route for route in ROUTES if "{name}" in route.path]))
    last = route.path.rpartition("/")[2]
    by_digest = last == "{digest}" or (last == "{reference}" and draw(st.booleans()))
    by_tag = last == "{reference}" and not by_digest
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
    values = st.lists(texts, min_size=1, max_size=3).map(tuple)
    return Request(
        route,
        draw(st.sampled_from(route.methods)),
        draw(REPOSITORIES.filter(lambda name: len(name) <= 255)),
        draw(DIGESTS) if by_digest else None,
        draw(TAGS) if by_tag else None,
        str(draw(st.uuids())) if last == "{id}" else "",
        draw(st.dictionaries(texts, values, max_size=4)),
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(found=_requests(), quoted=st.text("abc0:.-_", max_size=4))
def test_written_and_read(found: Request, quoted: str) -> None:
    """A request that is written as a request line is read as the same, also in part encoded."""
    assert parse(found.method, *_written(found, quoted)) == found


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=WIRE | st.text(max_size=60))
def test_any_form(text: str) -> None:
    """A query or posted form of any text: fields, or one named error."""
    try:
        found = read_form(text)
    except errors.ParameterInvalid:
        return
    assert all(found.values())
    assert read_form(urlencode(found, doseq=True)) == found


KNOWN = BundleNames(
    [
        ("docker.io", "library/app"),
        ("docker.io", "team/app"),
        ("registry.test:5000", "team/app"),
        ("[::1]:5000", "other"),
    ]
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    repository=REPOSITORIES.filter(lambda name: len(name) <= 255)
    | st.sampled_from(["app", "library/app", "team/app", "docker.io/team/app", "other"]),
    ns=st.none() | WIRE | st.sampled_from(["docker.io", "DOCKER.IO", "index.docker.io", "[::1]"]),
    exists=st.booleans(),
)
def test_any_ns(repository: str, ns: str | None, exists: bool) -> None:
    """Whatever ``ns`` says, a request means a repository of a valid name, or none."""
    try:
        meant = KNOWN.resolve(repository, ns, lambda name: exists)
    except (NameInvalid, NameAmbiguous) as error:
        assert error.message
    else:
        assert check_repository(meant) == meant
