"""`manifest.parse`: what is a manifest, what is refused and why, and robustness."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.errors import DigestInvalid, ManifestInvalid, ManifestTooLarge, StorageError
from mayfly.storage.json_object import MAX_DEPTH, MAX_VALUES
from mayfly.storage.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_DESCRIPTORS,
    MAX_SIZE,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    folded,
    parse,
    parse_stored,
)
from tests.support.images import (
    CONFIG_TYPE,
    FOREIGN_TYPE,
    LAYER_TYPE,
    descriptor,
    image_body,
    index_body,
)

SUBJECT = descriptor(b"subject", OCI_MANIFEST)
IMAGE = json.loads(image_body(b"{}", [b"layer"]))
INDEX = json.loads(index_body([parse(image_body())]))


def _body(base: dict[str, Any], **changes: Any) -> bytes:
    """A manifest with some fields changed; None takes a field out."""
    return json.dumps({k: v for k, v in (base | changes).items() if v is not None}).encode()


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (image_body(), OCI_MANIFEST),
        (image_body(docker=True), DOCKER_MANIFEST),
        (index_body(), OCI_INDEX),
        (index_body(docker=True), DOCKER_LIST),
        (_body(IMAGE, mediaType=None), OCI_MANIFEST),
        (_body(INDEX, mediaType=None), OCI_INDEX),
        (_body(IMAGE, mediaType=""), OCI_MANIFEST),
        (b"\r\n\t " + image_body() + b"\n\n", OCI_MANIFEST),
    ],
)
def test_media_type(body: bytes, media_type: str) -> None:
    """The media type comes from the content, and is the same with, and without, a Content-Type."""
    assert parse(body).media_type == media_type
    assert parse(body, media_type).media_type == media_type
    assert parse_stored(body).media_type == media_type
    assert parse(body).body is body


def test_image_fields() -> None:
    """Config first, then the layers in order, subject, artifact type, annotations."""
    body = _body(
        IMAGE, subject=SUBJECT, artifactType="application/x", annotations={"a": "b"}, unknown=[1]
    )
    found = parse(body)
    layer = Descriptor(LAYER_TYPE, digests.of(b"layer"), 5)
    assert found.blobs == (Descriptor(CONFIG_TYPE, digests.of(b"{}"), 2), layer)
    assert found.manifests == ()
    assert found.subject == Descriptor(OCI_MANIFEST, digests.of(b"subject"), 7)
    assert (found.artifact_type, found.annotations) == ("application/x", {"a": "b"})


def test_index_fields() -> None:
    """Children, and no artifact type but its own."""
    child = parse(image_body())
    found = parse(index_body([child], subject=SUBJECT))
    expected = Descriptor(OCI_MANIFEST, digests.of(child.body), len(child.body))
    assert (found.manifests, found.blobs) == ((expected,), ())
    assert found.artifact_type is None
    assert parse(index_body(artifactType="application/x")).artifact_type == "application/x"


def test_artifact_type_of_an_image_is_its_config_s() -> None:
    """Without a type of its own an image manifest goes by its config's media type."""
    assert parse(image_body()).artifact_type == CONFIG_TYPE
    assert parse(_body(IMAGE, artifactType="")).artifact_type == CONFIG_TYPE


@pytest.mark.parametrize("algorithm", digests.HEX_LENGTHS)
def test_descriptors_of_either_algorithm(algorithm: str) -> None:
    """References may use any registered algorithm."""
    body = image_body(config=descriptor(b"{}", CONFIG_TYPE, algorithm))
    assert parse(body).blobs[0].digest == digests.of(b"{}", algorithm)


@pytest.mark.parametrize(
    ("layer", "distributable"),
    [
        (descriptor(b"x"), True),
        (descriptor(b"x", urls=[]), True),
        (descriptor(b"x", urls=["https://example.com/x"]), False),
        (descriptor(b"x", urls=None), True),
        (descriptor(b"x", FOREIGN_TYPE), False),
        (descriptor(b"x", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"), False),
    ],
)
def test_distributable(layer: dict[str, object], distributable: bool) -> None:
    """Foreign layers are known by their type or by having URLs of their own."""
    assert parse(image_body(layers=[layer])).blobs[1].distributable is distributable


SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"schemaVersion": 1, "name": "a/b", "fsLayers": [], "history": []}', None),
        (b'{"schemaVersion": 1}', f"{SCHEMA1}+json"),
        (_body(IMAGE, mediaType=f"{SCHEMA1}+prettyjws"), None),
        (_body(IMAGE, mediaType=None), f"{SCHEMA1}+prettyjws"),
    ],
)
def test_schema_1_is_refused_with_a_remedy(body: bytes, content_type: str | None) -> None:
    """A client that pushes a schema 1 manifest is told what it is and what to do."""
    with pytest.raises(ManifestInvalid, match=r"schema 1 .* docker 1\.10"):
        parse(body, content_type)


AMBIGUOUS = {
    "image with manifests": _body(IMAGE, manifests=[]),
    "index with layers": _body(INDEX, layers=[]),
    "index with config": _body(INDEX, config=IMAGE["config"]),
    "no type, both": _body(IMAGE, mediaType=None, manifests=INDEX["manifests"]),
    # Go's decoder takes a field's name in any case, a long s for an s: these are the same to it.
    "index with Layers": _body(INDEX, Layers=IMAGE["layers"], Config=IMAGE["config"]),
    "index with a long s": _body(INDEX)[:-1] + rb', "layer\u017f": []}',
    "image with Manifests": _body(IMAGE, Manifests=INDEX["manifests"]),
    "two layers by case": _body(IMAGE, LAYERS=[]),
    "image called index": _body(IMAGE, mediaType=OCI_INDEX),
    "index called image": _body(INDEX, mediaType=OCI_MANIFEST),
    "docker image called list": _body(IMAGE, mediaType=DOCKER_LIST),
}


@pytest.mark.parametrize("body", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_content(body: bytes) -> None:
    """CVE-2021-41190: bytes that could be an image to one client and an index to another."""
    with pytest.raises(ManifestInvalid):
        parse(body)


@pytest.mark.parametrize("body", [image_body(), index_body(), _body(IMAGE, mediaType=None)])
@pytest.mark.parametrize(
    "content_type", [DOCKER_MANIFEST, DOCKER_LIST, "application/json", "", "text/html; x", "\udcff"]
)
def test_content_type_that_contradicts(body: bytes, content_type: str) -> None:
    """A Content-Type other than the content's own is refused: clients would be misled by it."""
    with pytest.raises(ManifestInvalid):
        parse(body, content_type)


NOT_JSON = {
    "nothing": b"",
    "blank": b" \n",
    "text": b"not json",
    "half": image_body()[:-1],
    "two documents": image_body() + b"{}",
    "single quotes": b"{'schemaVersion': 2}",
    "trailing comma": b'{"schemaVersion": 2,}',
    "NaN": _body(IMAGE, annotations=None)[:-1] + b', "x": NaN}',
    "Infinity": image_body()[:-1] + b', "x": -Infinity}',
    "control character": image_body()[:-1] + b', "x": "\n"}',
    "not UTF-8": image_body()[:-1] + b', "x": "\xff"}',
    "UTF-8 of a surrogate": image_body()[:-1] + b', "x": "\xed\xa0\x80"}',
    "UTF-16": image_body().decode().encode("utf-16"),
    "UTF-16 without a mark": image_body().decode().encode("utf-16-le"),
    "UTF-32": image_body().decode().encode("utf-32"),
    "byte order mark": b"\xef\xbb\xbf" + image_body(),
    "NUL": b"\0" + image_body(),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(20),
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep inside": image_body()[:-1] + b', "x": ' + b"[" * 500_000 + b"]" * 500_000 + b"}",
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_not_json(body: bytes) -> None:
    """What RFC 8259 does not take for JSON in UTF-8, other clients could not read back."""
    with pytest.raises(ManifestInvalid) as refused:
        parse(body)
    assert len(refused.value.message) < 300


DUPLICATED = {
    "two lists of manifests": b'{"schemaVersion":2,"manifests":[],"manifests":[]}',
    "two media types": image_body()[:-1] + f',"mediaType":"{OCI_MANIFEST}"}}'.encode(),
    "two configs": image_body()[:-1] + b',"config":' + json.dumps(IMAGE["config"]).encode() + b"}",
    "two layers": image_body()[:-1] + b',"layers":[]}',
    "two digests": image_body().replace(b'"digest"', b'"digest":"sha256:x","digest"', 1),
}


@pytest.mark.parametrize("body", DUPLICATED.values(), ids=DUPLICATED)
def test_duplicate_fields(body: bytes) -> None:
    """A field given twice means one thing here and another to the next parser: refused."""
    with pytest.raises(ManifestInvalid):
        parse(body)


@pytest.mark.parametrize("body", [b"null", b"1", b"[]", b'"x"', b"true", b"[{}]"])
def test_json_that_is_no_object(body: bytes) -> None:
    """A manifest is an object."""
    with pytest.raises(ManifestInvalid):
        parse(body)


@pytest.mark.parametrize("version", [None, 0, 3, "2", 2.0, 2.5, [2], {}, True, -2])
def test_schema_version(version: object) -> None:
    """Only schemaVersion 2 is served."""
    for base in (IMAGE, INDEX):
        with pytest.raises(ManifestInvalid):
            parse(_body(base, schemaVersion=version))


BAD_FIELDS: tuple[dict[str, object], ...] = (
    {"mediaType": 1},
    {"mediaType": ["x"]},
    {"mediaType": "application/json"},
    {"mediaType": "application/vnd.oci.artifact.manifest.v1+json"},
    {"annotations": []},
    {"annotations": {"a": 1}},
    {"annotations": {"a": {}}},
    {"annotations": "a"},
    {"artifactType": 1},
    {"artifactType": {}},
    {"subject": []},
    {"subject": "sha256:x"},
    {"subject": {}},
)


@pytest.mark.parametrize("change", BAD_FIELDS, ids=str)
@pytest.mark.parametrize("base", [IMAGE, INDEX], ids=["image", "index"])
def test_bad_field(base: dict[str, Any], change: dict[str, object]) -> None:
    """A field of the wrong kind is refused by name."""
    with pytest.raises(ManifestInvalid) as refused:
        parse(_body(base, **change))
    assert any(word in refused.value.message for word in (next(iter(change)), "media type"))


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [1]])
def test_bad_config(value: object) -> None:
    """An image manifest has a config, which is a descriptor."""
    with pytest.raises(ManifestInvalid):
        parse(_body(IMAGE, config=value))


@pytest.mark.parametrize("value", [None, 1, "x", {}, [1], [{}], [[]], [None]])
def test_bad_lists(value: object) -> None:
    """Layers and manifests are lists of descriptors."""
    with pytest.raises(ManifestInvalid):
        parse(_body(IMAGE, layers=value))
    if value is not None:  # without manifests it would be an image
        with pytest.raises(ManifestInvalid):
            parse(_body(INDEX, manifests=value))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"mediaType": ""}, ManifestInvalid),
        ({"mediaType": None}, ManifestInvalid),
        ({"digest": None}, ManifestInvalid),
        ({"digest": ""}, DigestInvalid),
        ({"digest": "sha256:abc"}, DigestInvalid),
        ({"digest": "md5:" + "0" * 32}, DigestInvalid),
        ({"digest": "../../etc/passwd"}, DigestInvalid),
        ({"size": None}, ManifestInvalid),
        ({"size": -1}, ManifestInvalid),
        ({"size": 1.0}, ManifestInvalid),
        ({"size": "1"}, ManifestInvalid),
        ({"size": True}, ManifestInvalid),
        ({"urls": "https://example.com/x"}, ManifestInvalid),
        ({"urls": [1]}, ManifestInvalid),
        ({"annotations": {"a": 1}}, ManifestInvalid),
        ({"annotations": {"a": None}}, ManifestInvalid),
        ({"platform": "linux"}, ManifestInvalid),
        ({"platform": {"os": 1}}, ManifestInvalid),
        ({"platform": {"os.features": "x"}}, ManifestInvalid),
        ({"data": 1}, ManifestInvalid),
        ({"artifactType": []}, ManifestInvalid),
        ({"size": 2**63}, ManifestInvalid),
        ({"size": 10**400}, ManifestInvalid),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_descriptor(change: dict[str, object], error: type[Exception]) -> None:
    """A broken descriptor is refused wherever it stands, and its place is named."""
    broken = {k: v for k, v in (descriptor(b"x") | change).items() if v is not None}
    for body, where in (
        (_body(IMAGE, config=broken), "config"),
        (_body(IMAGE, layers=[descriptor(b"x"), broken]), "layers[1]"),
        (_body(IMAGE, subject=broken), "subject"),
        (_body(INDEX, manifests=[broken]), "manifests[0]"),
    ):
        with pytest.raises(error) as refused:
            parse(body)
        assert where in refused.value.message  # type: ignore[attr-defined]
        assert len(str(refused.value)) < 500


def test_size_limit() -> None:
    """Exactly the limit is a manifest, one byte more is too large, whatever the bytes are."""
    body = image_body()
    assert parse(body + b" " * (MAX_SIZE - len(body))).media_type == OCI_MANIFEST
    for over in (body + b" " * (MAX_SIZE - len(body) + 1), b"x" * (MAX_SIZE + 1)):
        with pytest.raises(ManifestTooLarge):
            parse(over)


def test_large_index() -> None:
    """As many children as a manifest may have are read, one more is refused by that number."""
    child = descriptor(b"x", OCI_MANIFEST)
    assert len(parse(index_body(manifests=[child] * MAX_DESCRIPTORS)).manifests) == MAX_DESCRIPTORS
    with pytest.raises(ManifestInvalid, match=f"manifests has more than {MAX_DESCRIPTORS} entries"):
        parse(index_body(manifests=[child] * (MAX_DESCRIPTORS + 1)))
    layers = [descriptor(b"x")] * (MAX_DESCRIPTORS + 1)
    with pytest.raises(ManifestInvalid, match=f"layers has more than {MAX_DESCRIPTORS} entries"):
        parse(image_body(layers=layers))


def test_referrer_descriptor() -> None:
    """What stands in the referrers list: type, digest, size, and what there is besides."""
    body = image_body(artifactType="application/x", annotations={"a": "b"})
    digest = digests.of(body)
    assert parse(body).referrer(digest) == {
        "mediaType": OCI_MANIFEST,
        "digest": str(digest),
        "size": len(body),
        "artifactType": "application/x",
        "annotations": {"a": "b"},
    }
    bare = index_body(annotations={})
    assert parse(bare).referrer(digests.of(bare)).keys() == {"mediaType", "digest", "size"}


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([OCI_MANIFEST, OCI_INDEX, DOCKER_LIST, descriptor(b"x"), 2, [], {}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "annotations"]
)


def _survives(body: bytes, content_type: str | None = None) -> None:
    try:
        found = parse(body, content_type)
    except StorageError as error:
        assert error.message
    else:
        json.dumps(found.referrer(digests.of(body)))
        assert parse_stored(body).media_type == found.media_type


@given(
    base=st.sampled_from([IMAGE, INDEX]), changes=st.dictionaries(FIELDS, JSON_VALUES, max_size=3)
)
@settings(max_examples=150)
def test_any_fields(base: dict[str, Any], changes: dict[str, Any]) -> None:
    """Whatever is in the fields: a manifest, or an error with a name."""
    _survives(json.dumps(base | changes).encode())


@given(body=st.binary(max_size=200), content_type=st.none() | st.text(max_size=20))
@settings(max_examples=150)
def test_any_bytes(body: bytes, content_type: str | None) -> None:
    """Whatever the bytes are: a manifest, or an error with a name."""
    _survives(body, content_type)


@given(at=st.integers(0, len(image_body()) - 1), value=st.integers(0, 255))
@settings(max_examples=150)
def test_any_flipped_byte(at: int, value: int) -> None:
    """A manifest with one byte changed: a manifest, or an error with a name."""
    body = bytearray(image_body())
    body[at] = value
    _survives(bytes(body))


def test_deep_nesting_leaves_the_interpreter_whole() -> None:
    """After a refusal for depth the next manifest is read as ever."""
    with pytest.raises(ManifestInvalid, match="nested"):
        manifests.parse(NOT_JSON["deep lists"])
    assert manifests.parse(image_body()).media_type == OCI_MANIFEST


OLD_MANIFEST = json.dumps(
    {
        "schemaVersion": 1,
        "name": "old/app",
        "fsLayers": [{"blobSum": str(digests.of(b"layer"))}],
        "history": [],
        "signatures": [],
    }
).encode()


def test_stored_schema1_is_served_and_its_layers_are_known() -> None:
    """An old volume's manifest keeps its type, and its layers from the collector."""
    found = parse_stored(OLD_MANIFEST)
    assert found.media_type == "application/vnd.docker.distribution.manifest.v1+prettyjws"
    assert [blob.digest for blob in found.blobs] == [digests.of(b"layer")]
    with pytest.raises(ManifestInvalid):
        parse(OLD_MANIFEST)


def test_artifact_manifest() -> None:
    """The artifact manifest of the 1.1 release candidates is read; it has no schemaVersion."""
    body = json.dumps(
        {
            "mediaType": OCI_ARTIFACT,
            "artifactType": "application/x",
            "blobs": [descriptor(b"x")],
            "subject": SUBJECT,
            "annotations": {"a": "b"},
        }
    ).encode()
    found = parse(body, OCI_ARTIFACT)
    assert (found.media_type, found.artifact_type) == (OCI_ARTIFACT, "application/x")
    assert [blob.digest for blob in found.blobs] == [digests.of(b"x")]
    assert found.subject is not None
    assert parse_stored(body) == found


def test_index_of_blobs() -> None:
    """Entries of an index that are layers by their type are its blobs, not its children."""
    layer, child = descriptor(b"x"), descriptor(b"y", OCI_MANIFEST)
    cache = descriptor(b"z", "application/vnd.buildkit.cacheconfig.v0")
    for read in (parse, parse_stored):
        found = read(index_body(manifests=[layer, child, cache]))
        assert [one.digest for one in found.blobs] == [digests.of(b"x"), digests.of(b"z")]
        assert [one.digest for one in found.manifests] == [digests.of(b"y")]


LONG_S, KELVIN = "\u017f", "\u212a"


def _renamed(fields: dict[str, Any], name: str, spelling: str) -> dict[str, Any]:
    return {spelling if key == name else key: value for key, value in fields.items()}


SPELLINGS = {
    "top level": (_renamed(IMAGE, "layers", "LAYERS"), "layers"),
    "top level, long s": (_renamed(IMAGE, "layers", f"layer{LONG_S}"), "layers"),
    "config": (IMAGE | {"config": _renamed(IMAGE["config"], "digest", "Digest")}, "digest"),
    "layer": (IMAGE | {"layers": [_renamed(descriptor(b"x"), "size", f"{LONG_S}ize")]}, "size"),
    "beside": (IMAGE | {"layers": [descriptor(b"x") | {"dige\u017ft": "sha256:x"}]}, "digest"),
    "subject": (IMAGE | {"subject": _renamed(SUBJECT, "mediaType", "mediatype")}, "mediaType"),
    "child": (INDEX | {"manifests": [descriptor(b"x", OCI_MANIFEST, Urls=[])]}, "urls"),
    "platform": (
        INDEX | {"manifests": [descriptor(b"x", OCI_MANIFEST, platform={"OS": "linux"})]},
        "os",
    ),
}


@pytest.mark.parametrize(("fields", "name"), SPELLINGS.values(), ids=SPELLINGS)
def test_spelling_of_fields(fields: dict[str, Any], name: str) -> None:
    """Go's decoder takes a field's name in any case, others do not: refused on the way in."""
    for ensure_ascii in (True, False):
        with pytest.raises(ManifestInvalid, match=f"must be spelled {name}"):
            parse(json.dumps(fields, ensure_ascii=ensure_ascii).encode())


NOT_FOLDED = (
    *("di\u0261est", "d\u0131gest", "DI\u0130gest", "dige\ufb06", "\uff24igest", "\u00df"),
    *("digest ", "digest\0"),
)


@pytest.mark.parametrize("name", NOT_FOLDED, ids=ascii)
def test_spelling_that_go_does_not_fold(name: str) -> None:
    """Unicode's simple folding joins the long s and the Kelvin sign to ASCII, and no other."""
    assert parse(image_body(layers=[descriptor(b"x") | {name: 1}])).blobs
    assert folded(f"{KELVIN}{LONG_S}") == "ks"


def test_spelling_elsewhere_is_free() -> None:
    """Annotations and fields that nobody decodes into a structure may be named as one likes."""
    annotations = {"Digest": "a", "digest": "b", "DIGEST": "c"}
    body = _body(IMAGE, annotations=annotations, x={"Digest": 1, "digest": 2})
    assert parse(body).annotations == annotations
    assert parse(image_body(layers=[descriptor(b"x", annotations=annotations)])).blobs


@pytest.mark.parametrize("where", ["annotations", "unknown", "descriptor", "list"])
def test_a_key_twice_anywhere(where: str) -> None:
    """Decoders differ on which of two equal keys counts, so that none is taken, wherever it is."""
    twice = '{"a":"b","a":"b"}'
    added = {
        "annotations": f'"annotations":{twice}',
        "unknown": f'"x":{twice}',
        "descriptor": f'"subject":{json.dumps(SUBJECT)[:-1]},"annotations":{twice}}}',
        "list": f'"x":[[{twice}]]',
    }[where]
    body = image_body()[:-1] + f",{added}}}".encode()
    with pytest.raises(ManifestInvalid, match="twice"):
        parse(body)
    assert parse_stored(body).ambiguous


A, B = digests.of(b"A"), digests.of(b"B")
TWO_READINGS = {
    "case": {"mediaType": LAYER_TYPE, "size": 1, "digest": str(A), "Digest": str(B)},
    "case, other order": {"mediaType": LAYER_TYPE, "size": 1, "DIGEST": str(B), "digest": str(A)},
    "long s": {"mediaType": LAYER_TYPE, "size": 1, "digest": str(A), "dige\u017ft": str(B)},
}


@pytest.mark.parametrize("layer", TWO_READINGS.values(), ids=TWO_READINGS)
def test_both_readings_are_kept(layer: dict[str, object]) -> None:
    """Of a stored manifest that two decoders read differently, the content of both is kept."""
    for ensure_ascii in (True, False):
        body = json.dumps(IMAGE | {"layers": [layer]}, ensure_ascii=ensure_ascii).encode()
        found = parse_stored(body)
        assert found.ambiguous
        assert {A, B} <= found.kept_digests()


def test_both_values_of_a_repeated_key_are_kept() -> None:
    """Also where the name is written with escapes, and where the values are objects."""
    for second in (f'"digest":"{B}"', f'"dig\\u0065st":"\\u0073ha256:{B.hex}"'):
        layer = f'{{"mediaType":"x","size":1,"digest":"{A}",{second}}}'
        body = f'{{"schemaVersion":2,"config":null,"layers":[{layer}]}}'.encode()
        assert {A, B} <= parse_stored(body).kept_digests()


def _stored(**fields: object) -> Manifest:
    return parse_stored(json.dumps({"schemaVersion": 2} | fields).encode())


def test_shapes_that_registry_2_stores() -> None:
    """Lists that are null or absent, sizes that are absent or negative, names in capitals."""
    config = descriptor(b"{}", CONFIG_TYPE)
    for lists in ({}, {"layers": None}):
        assert _stored(mediaType=OCI_MANIFEST, config=config, **lists).layers == ()
    assert _stored(mediaType=OCI_INDEX, manifests=None).media_type == OCI_INDEX
    assert _stored(manifests=None).media_type == OCI_MANIFEST
    capitals = _stored(MediaType=DOCKER_MANIFEST, Config=config, Layers=[descriptor(b"x")])
    assert capitals.media_type == DOCKER_MANIFEST
    assert [one.digest for one in capitals.blobs] == [digests.of(b"{}"), digests.of(b"x")]
    assert not capitals.ambiguous and not capitals.faults
    assert _stored(config=config, annotations={"a": None}).annotations == {"a": ""}
    sizes = [descriptor(b"x") | {"size": -1}, {"digest": str(A)}]
    odd = _stored(config=config, layers=sizes)
    assert [(one.digest, one.size) for one in odd.layers] == [(digests.of(b"x"), None), (A, None)]
    assert [fault.partition(" ")[2] for fault in odd.faults] == [
        "layers[0].size is not a number of bytes",
        "layers[1].mediaType is missing",
        "layers[1].size is not a number of bytes",
    ]


def test_what_cannot_be_read_is_told_and_kept() -> None:
    """A descriptor that is none is a fault; every digest in such a manifest is kept."""
    found = _stored(layers=["no descriptor", descriptor(b"x") | {"digest": f"x{A}"}, str(B)])
    assert found.layers == ()
    assert len(found.faults) == 3
    assert {A, B} <= found.kept_digests()
    many = _stored(layers=[1] * 1000)
    assert len(many.faults) == 20


@pytest.mark.parametrize("media_type", ["x\r\nSet-Cookie: a=b", "x", "a/b\n", "é/x", 1])
def test_stored_media_type_is_fit_for_a_header(media_type: object) -> None:
    """A declared type that is no media type is not served as one."""
    assert _stored(mediaType=media_type, layers=[]).media_type == OCI_MANIFEST
    assert _stored(mediaType="application/x+y.z", layers=[]).media_type == "application/x+y.z"


def test_depth_limit() -> None:
    """Exactly the limit is taken, one level more is refused by that number."""
    for depth, refused in ((MAX_DEPTH - 1, False), (MAX_DEPTH, True)):
        body = image_body()[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"
        if refused:
            with pytest.raises(ManifestInvalid, match=f"nested deeper than {MAX_DEPTH} levels"):
                parse(body)
        else:
            assert parse(body).media_type == OCI_MANIFEST


def test_brackets_in_strings_are_no_depth() -> None:
    """Text may have as many brackets and commas as it likes."""
    text = '[{\\"' * 1000 + ",:" * MAX_VALUES
    assert parse(image_body(annotations={"a": text})).annotations == {"a": text}


FLOODS = {
    "objects": b'{"":0},',
    "lists": b"[],",
    "strings": b'"",',
    "numbers": b"0,",
    "nested": b"[",
    "escapes": b'"\\\\",',
}


@pytest.mark.parametrize("piece", FLOODS.values(), ids=FLOODS)
def test_too_many_values(piece: bytes) -> None:
    """What would take hundreds of megabytes as objects is refused before any is made."""
    flood = piece * ((MAX_SIZE - 1000) // len(piece))
    body = image_body()[:-1] + b',"x":[' + flood + b"0]}"
    tracemalloc.start()
    try:
        with pytest.raises(ManifestInvalid, match=f"more than {MAX_VALUES} JSON values"):
            parse(body)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def test_stored_floods_are_read_around() -> None:
    """Of a stored manifest with too many values, the fields that matter are read."""
    flood = b"[" + b'{"":0},' * MAX_VALUES + b"0]"
    found = parse_stored(image_body(b"{}", [b"x"])[:-1] + b',"x":' + flood + b"}")
    assert found.media_type == OCI_MANIFEST
    assert [one.digest for one in found.blobs] == [digests.of(b"{}"), digests.of(b"x")]
    over = parse_stored(image_body(b"{}")[:-1] + b',"LAYERS":' + flood + b"}")
    assert over.media_type == OCI_MANIFEST
    assert any(f"more than {MAX_VALUES} values" in fault for fault in over.faults)


@pytest.mark.parametrize("depth", [MAX_DEPTH, 988, 100_000])
def test_stored_depth_is_read_around(depth: int) -> None:
    """However deep a stored manifest is, what lies above is read, and the rest is told of."""
    deep = b'{"a":' * depth + b"[]" + b"}" * depth
    layer = json.dumps(descriptor(b"x"))[:-1].encode() + b',"y":' + deep + b"}"
    body = image_body()[:-1] + b',"x":' + deep + b',"Layers":[' + layer + b"]}"
    found = parse_stored(body.replace(b', "layers": []', b""))
    assert [one.digest for one in found.layers] == [digests.of(b"x")]
    assert found.faults == (f"values nested deeper than {MAX_DEPTH} levels",)
    with pytest.raises(ManifestInvalid):
        parse(body)


def test_digests_of_text_that_is_no_json() -> None:
    """A manifest that was cut short still says much of what it refers to."""
    body = image_body(b"{}", [b"x"])
    assert manifests.mentioned_digests(body[:-3]) >= {digests.of(b"{}"), digests.of(b"x")}
    long = digests.of(b"x", "sha512")
    assert manifests.mentioned_digests(f"sha256:{'g' * 64} {long}".encode()) == {long}


def test_stored_json_may_be_loose() -> None:
    """What another registry took, with a field twice, is served: only a push is held to more."""
    loose = image_body()[:-1] + b',"schemaVersion":2}'
    assert parse_stored(loose).media_type == OCI_MANIFEST
    with pytest.raises(ManifestInvalid):
        parse(loose)
