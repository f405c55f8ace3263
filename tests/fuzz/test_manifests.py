"""Manifests of any JSON, and of what is no JSON: a value that holds together, or a named error."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mayfly.registry.api import errors
from mayfly.storage import digest as digests
from mayfly.storage.errors import StorageError
from mayfly.storage.manifest import Manifest, parse, parse_stored
from tests.fuzz.budget import EXAMPLES
from tests.fuzz.documents import ANY_JSON, NUMBERS, TEXTS, texts_of
from tests.support.images import descriptor, image_body, index_body

IMAGE = json.loads(image_body(b"{}", [b"layer"], subject=descriptor(b"x"), annotations={"a": "b"}))
INDEX = json.loads(index_body([parse(image_body())], artifactType="application/x"))
SCHEMA1 = {
    "schemaVersion": 1,
    "name": "old/app",
    "fsLayers": [{"blobSum": str(digests.of(b"layer"))}],
    "signatures": [],
}
ODD_DESCRIPTORS = st.fixed_dictionaries(
    {},
    optional={
        "mediaType": TEXTS | ANY_JSON,
        "digest": st.sampled_from([str(digests.of(b"x")), "sha256:", "md5:0"]) | TEXTS,
        "size": NUMBERS,
        "urls": ANY_JSON,
        "platform": ANY_JSON,
    },
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside one."""
    entries: Any = value.items() if isinstance(value, dict) else ()
    entries = enumerate(value) if isinstance(value, list) else entries
    for key, inner in entries:
        yield (*path, key)
        yield from _places(inner, (*path, key))


@st.composite
def _changed(draw: st.DrawFn) -> Any:
    """A manifest with something of any type beside what it had, or in its place."""
    made = copy.deepcopy(draw(st.sampled_from([IMAGE, INDEX, SCHEMA1])))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        places = list(_places(made))
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        inside = made
        for key in way:
            inside = inside[key]
        if isinstance(inside, dict) and draw(st.booleans()):
            last = draw(TEXTS)  # one that is not looked at, or is spelled otherwise
        inside[last] = draw(ODD_DESCRIPTORS | ANY_JSON)
    return made


BODIES = st.one_of(
    _changed().map(json.dumps),
    _changed().map(json.dumps),
    _changed().flatmap(texts_of),
    ANY_JSON.flatmap(texts_of),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


def _holds(found: Manifest, body: bytes) -> None:
    assert found.body == body
    for one in (*found.blobs, *found.manifests, *([found.subject] if found.subject else [])):
        assert digests.parse(str(one.digest)) == one.digest
        assert one.size is None or 0 <= one.size < 2**63
    assert found.kept_digests() >= {one.digest for one in (*found.blobs, *found.manifests)}
    json.dumps(found.referrer(digests.of(body))).encode("ascii")


@settings(max_examples=EXAMPLES, deadline=None)
@given(body=BODIES, content_type=st.none() | st.sampled_from([IMAGE["mediaType"]]) | TEXTS)
@example(body=b'{"schemaVersion": 2, "config": NaN}', content_type=None)
@example(body=b"[" * 100_000, content_type=None)
@example(body=b'{"a":' * 100_000, content_type=None)
@example(body=b'{"schemaVersion": ' + b"9" * 100_000 + b"}", content_type=None)
@example(body=b"\xff\xfe{\0}\0", content_type="\udcff")
def test_any_manifest(body: bytes, content_type: str | None) -> None:
    """Pushed or stored: a manifest that holds together, or an error that has its status."""
    for understand in (lambda: parse(body, content_type), lambda: parse_stored(body)):
        try:
            found = understand()
        except StorageError as error:
            status, code = errors.TABLE[type(error)]
            assert status < 500
            assert len(errors.body(code, error.message)) < 2000
        else:
            _holds(found, body)


@settings(max_examples=EXAMPLES, deadline=None)
@given(body=BODIES)
def test_what_is_taken_can_be_read_again(body: bytes) -> None:
    """What a push leaves in the store is understood there as the same."""
    try:
        pushed = parse(body)
    except StorageError:
        return
    assert parse_stored(body) == pushed
