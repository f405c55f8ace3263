"""docs/openapi.yaml says what the handlers, the error table and the grammars say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from mayfly.registry.api.context import COMMON_HEADERS
from mayfly.registry.api.errors import TABLE, UNKNOWN
from mayfly.registry.api.parse import parse
from mayfly.registry.api.routes import ROUTES
from mayfly.storage import digest as digests
from mayfly.storage import reference
from mayfly.storage.manifest import IMAGE_TYPES, INDEX_TYPES
from tests.conftest import Record
from tests.support.endpoints import DOCUMENT
from tests.support.process import REPO

METHODS = ("get", "head", "post", "put", "patch", "delete")
SAMPLES = {
    "name": "a/b",
    "reference": "latest",
    "digest": "sha256:" + "ab" * 32,
    "id": "x",
    "node": "worker-1",
    "token": "t" * 43,
    "file": "page.css",
}

Operation = dict[str, Any]


def _operations() -> Iterator[tuple[str, str, Operation]]:
    """Path, method and description of everything that is described."""
    for path, item in DOCUMENT["paths"].items():
        for method in item.keys() & set(METHODS):
            yield path, method.upper(), item[method]


def _followed(value: dict[str, Any]) -> dict[str, Any]:
    """Return the target of a reference, with the fields beside it."""
    found = dict(value)
    while reference := found.pop("$ref", None):
        target: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        found = {**target, **found}
    return found


def test_every_route_is_described_and_nothing_else() -> None:
    """The paths and methods of the document are those of the table of routes."""
    served = [(route.path, method) for route in ROUTES for method in route.methods]
    found = [(path, method) for path, method, _ in _operations()]
    page = "docs/openapi.yaml"
    assert sorted(set(served) - set(found)) == [], f"{page} lacks these routes"
    assert sorted(set(found) - set(served)) == [], f"{page} has routes that are not served"


def test_the_page_of_the_protocol_has_the_summaries(record: Record) -> None:
    """The table of docs/protocol.md is made of the paths here; ``--record`` writes it."""
    page = REPO / "docs/protocol.md"
    text = page.read_text()
    head, table, rest = _TABLE.split(text, maxsplit=1)
    rows = "".join(
        f"| `{_methods(item)} {_shown(path)}` | {item['summary']} |\n"
        for path, item in DOCUMENT["paths"].items()
    )
    if not record(page, f"{head}{_HEADING}{rows}{rest}"):
        how = "docs/protocol.md is out of date: pytest tests/api/test_openapi.py --record"
        assert table == f"{_HEADING}{rows}", how


_HEADING = "| method and path | purpose |\n|---|---|\n"
_TABLE = re.compile(rf"({re.escape(_HEADING)}(?:\|.*\n)*)")


def _methods(item: dict[str, Any]) -> str:
    """The methods of a path, in the order of `METHODS`."""
    return ", ".join(method.upper() for method in METHODS if method in item)


def _shown(path: str) -> str:
    """A path as the page writes it."""
    return re.sub(r"\{(\w+)\}", r"<\1>", path)


def test_paths_lead_to_their_routes() -> None:
    """A request for a path of the document takes the route of that path."""
    for path, method, _ in _operations():
        route = parse(method, path.format(**SAMPLES), "").route
        assert (route.path, method in route.methods) == (path, True)


def test_operations_are_named_after_what_they_are() -> None:
    """An operation's id is its endpoint and method, so that links between them are plain."""
    for path, method, operation in _operations():
        endpoint = parse(method, path.format(**SAMPLES), "").route.endpoint
        assert operation["operationId"] == f"{endpoint}_{method.lower()}"
        assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
        assert operation["summary"]


def _errors() -> Iterator[tuple[int, set[str]]]:
    """Each status of an error that is described, with its codes."""
    for _, _, operation in _operations():
        for status, response in operation["responses"].items():
            if int(status) < 400:
                continue
            (media_type,) = _followed(response)["content"].items()
            assert media_type[0] == "application/json"
            schema = media_type[1]["schema"]
            assert _followed(schema)["required"] == ["errors"]
            item = schema["properties"]["errors"]["items"]
            yield int(status), set(item["properties"]["code"]["enum"])


def test_statuses_and_codes_are_those_of_the_error_table() -> None:
    """Every status is described with exactly its codes, and every one of the table somewhere."""
    table: dict[int, set[str]] = {}
    for status, code in [*TABLE.values(), UNKNOWN]:
        table.setdefault(status.value, set()).add(code)
    found = dict(_errors())
    assert all(codes == found[status] for status, codes in _errors())
    assert found == table


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [("Repository", reference._NAME.pattern), ("Tag", reference._TAG.pattern)],
)
def test_names_have_the_grammar_of_storage(schema: str, pattern: str) -> None:
    """The expressions are the very ones that names are checked by."""
    described = DOCUMENT["components"]["schemas"][schema]
    assert described["pattern"] == f"^{pattern}$"
    assert described.get("maxLength") in (None, reference.MAX_NAME_LENGTH)


def test_digests_have_the_grammar_of_storage() -> None:
    """The algorithms and lengths are those of `HEX_LENGTHS`, in its order."""
    kinds = [f"{name}:[0-9a-f]{{{size}}}" for name, size in digests.HEX_LENGTHS.items()]
    pattern = DOCUMENT["components"]["schemas"]["Digest"]["pattern"]
    assert pattern == f"^(?:{'|'.join(kinds)})$"


def test_parameters_are_those_that_are_read() -> None:
    """Every query parameter of the document is asked for somewhere in registry/, and vice versa."""
    described = set()
    for path, _, operation in _operations():
        for one in [
            *operation.get("parameters", ()),
            *DOCUMENT["paths"][path].get("parameters", ()),
        ]:
            parameter = _followed(one)
            described |= {parameter["name"]} if parameter["in"] == "query" else set()
    source = "".join(path.read_text() for path in sorted((REPO / "registry/api").glob("*.py")))
    read = set(re.findall(r'(?:parameter|query\.get)\("([a-zA-Z_-]+)"', source))
    # Said for the audience of a token only; there is one service.
    assert described - {"service"} == read


def test_manifests_have_the_types_that_are_served() -> None:
    """The types that can be pushed, and among those that can be pulled."""
    item = DOCUMENT["paths"]["/v2/{name}/manifests/{reference}"]
    pushed = item["put"]["requestBody"]["content"].keys()
    assert pushed == IMAGE_TYPES | INDEX_TYPES
    assert pushed < item["get"]["responses"]["200"]["content"].keys()


def test_what_needs_no_proof_is_open() -> None:
    """Health, login and files are for everyone; all else goes by the document's own security."""
    for path, method, operation in _operations():
        endpoint = parse(method, path.format(**SAMPLES), "").route.endpoint
        health = endpoint in ("root", "live", "ready", "file", "session", "logout")
        assert (operation.get("security") == []) == health
        # The token in the path of a script is all the proof there is.
        assert health or endpoint == "script" or "401" in operation["responses"]


def test_the_version_header_is_said() -> None:
    """The introduction names the header that every answer has."""
    (name, value) = list(COMMON_HEADERS.items())[1]
    assert f"`{name}: {value}`" in DOCUMENT["info"]["description"]
