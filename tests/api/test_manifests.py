"""Manifests over a real socket: exact bytes and types, tags, deletes, and every refusal."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_SIZE,
    OCI_INDEX,
    OCI_MANIFEST,
    parse,
)
from tests.support.images import descriptor, digest_of, image_body, index_body
from tests.support.pushing import CONFIG, content, push_blob, push_image, push_manifest, refused
from tests.support.registry import Client

REPO = "team/app"
TYPES = {
    OCI_MANIFEST: image_body(),
    DOCKER_MANIFEST: image_body(docker=True),
    OCI_INDEX: index_body(),
    DOCKER_LIST: index_body(docker=True),
}


@pytest.mark.parametrize("media_type", TYPES)
async def test_exact_bytes_and_type(client: Client, media_type: str) -> None:
    """A pushed manifest is returned byte for byte, by tag and digest, for GET and HEAD alike."""
    await push_blob(client, REPO, CONFIG)
    body = b"\n " + TYPES[media_type] + b"\n"
    answer = await push_manifest(client, REPO, "v1", body, media_type)
    digest = digest_of(body)
    assert answer.headers["Docker-Content-Digest"] == digest
    for reference in ("v1", digest):
        for method in ("GET", "HEAD"):
            url = f"/v2/{REPO}/manifests/{reference}"
            async with client.request(method, url) as answer:
                assert answer.status == 200
                assert answer.headers["Content-Type"] == media_type
                assert answer.headers["Docker-Content-Digest"] == digest
                assert answer.headers["Content-Length"] == str(len(body))
                assert await answer.read() == (body if method == "GET" else b"")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_tag_that_moves_while_it_is_read(
    client: Client, store: DistributionStore, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """If a tag moves and its former manifest is deleted meanwhile, its new one is sent."""
    old = await push_image(client, REPO, "v1")
    new = parse(image_body(CONFIG, annotations={"version": "new"}))
    read = store.tag

    def tag(repository: str, tag: str) -> digests.Digest:
        found = read(repository, tag)
        if found == digests.of(old):
            store.put_manifest(REPO, new, digests.of(new.body), ("v1",))
            store.delete_manifest(REPO, found)
        return found

    monkeypatch.setattr(store, "tag", tag)
    async with client.request(method, f"/v2/{REPO}/manifests/v1") as answer:
        assert answer.status == 200
        assert answer.headers["Docker-Content-Digest"] == digest_of(new.body)


async def test_location_can_be_fetched(client: Client) -> None:
    """The Location of a 201 is the manifest by its digest."""
    await push_blob(client, REPO, CONFIG)
    answer = await push_manifest(client, REPO, "v1", image_body())
    async with client.get(answer.headers["Location"]) as found:
        assert await found.read() == image_body()
    assert answer.headers["Location"].endswith(digest_of(image_body()))


@pytest.mark.parametrize(
    "content_type", [None, f"{OCI_MANIFEST}; charset=utf-8", f" {OCI_MANIFEST} "]
)
async def test_content_type_as_clients_write_it(client: Client, content_type: str | None) -> None:
    """With parameters, or none at all: the type is the content's."""
    await push_blob(client, REPO, CONFIG)
    headers = {"Content-Type": content_type} if content_type else {}
    skip = () if content_type else ("Content-Type",)
    url = f"/v2/{REPO}/manifests/v1"
    async with client.put(
        url, data=image_body(), headers=headers, skip_auto_headers=skip
    ) as answer:
        assert answer.status == 201, await answer.text()
    async with client.get(url) as answer:
        assert answer.headers["Content-Type"] == OCI_MANIFEST


async def test_by_digest_with_tags(client: Client) -> None:
    """A push by digest with several tags names each in OCI-Tag, and all of them resolve."""
    await push_blob(client, REPO, CONFIG)
    digest = digest_of(image_body(), "sha512")
    answer = await push_manifest(client, REPO, f"{digest}?tag=a&tag=b&tag=c", image_body())
    assert answer.headers.getall("OCI-Tag") == ["a", "b", "c"]
    assert answer.headers["Docker-Content-Digest"] == digest
    for tag in "abc":
        async with client.head(f"/v2/{REPO}/manifests/{tag}") as found:
            assert found.headers["Docker-Content-Digest"] == digest


async def test_by_digest_without_tags(client: Client) -> None:
    """A push by digest alone makes no tag."""
    await push_blob(client, REPO, CONFIG)
    answer = await push_manifest(client, REPO, digest_of(image_body()), image_body())
    assert "OCI-Tag" not in answer.headers
    async with client.get(f"/v2/{REPO}/tags/list") as found:
        assert await found.json() == {"name": REPO, "tags": []}


@pytest.mark.parametrize("reference", ["v1", "digest"])
@pytest.mark.parametrize("kind", ["image", "index"])
async def test_subject(client: Client, kind: str, reference: str) -> None:
    """OCI-Subject says that the referrers list knows, also of a subject that is not there."""
    await push_blob(client, REPO, CONFIG)
    subject = descriptor(b"not there", OCI_MANIFEST)
    body = image_body(subject=subject) if kind == "image" else index_body(subject=subject)
    wanted = digest_of(body) if reference == "digest" else reference
    media_type = OCI_MANIFEST if kind == "image" else OCI_INDEX
    answer = await push_manifest(client, REPO, wanted, body, media_type)
    assert answer.headers["OCI-Subject"] == subject["digest"]
    plain = await push_manifest(client, REPO, "plain", image_body())
    assert "OCI-Subject" not in plain.headers


async def test_tag_moves(client: Client) -> None:
    """The next read after a push by tag sees the new manifest."""
    for number in range(5):
        body = await push_image(client, REPO, "latest", annotations={"n": str(number)})
        async with client.get(f"/v2/{REPO}/manifests/latest") as answer:
            assert await answer.read() == body


async def test_delete_tag(client: Client) -> None:
    """202; the tag is gone at once, the manifest stays."""
    body = await push_image(client, REPO, "v1")
    async with client.delete(f"/v2/{REPO}/manifests/v1") as answer:
        assert (answer.status, await answer.read()) == (202, b"")
    async with client.get(f"/v2/{REPO}/manifests/v1") as answer:
        await refused(answer, 404, "MANIFEST_UNKNOWN")
    async with client.get(f"/v2/{REPO}/manifests/{digest_of(body)}") as answer:
        assert await answer.read() == body


async def test_delete_by_digest(client: Client) -> None:
    """202; the manifest and its tags are gone at once, though they were just served."""
    body = await push_image(client, REPO, "v1")
    url = f"/v2/{REPO}/manifests/{digest_of(body)}"
    async with client.get(url) as answer:
        assert answer.status == 200
    async with client.delete(url) as answer:
        assert answer.status == 202
    for reference in ("v1", digest_of(body)):
        for method in ("GET", "HEAD", "DELETE"):
            path = f"/v2/{REPO}/manifests/{reference}"
            async with client.request(method, path) as answer:
                assert answer.status == 404


@pytest.mark.parametrize("reference", ["v1", digest_of(b"x")])
@pytest.mark.parametrize("repository", [REPO, "no/such"])
async def test_unknown(client: Client, reference: str, repository: str) -> None:
    """404 with the reference that was asked for."""
    await push_blob(client, REPO, CONFIG)
    for method in ("GET", "DELETE"):
        async with client.request(method, f"/v2/{repository}/manifests/{reference}") as answer:
            (error,) = await refused(answer, 404, "MANIFEST_UNKNOWN")
            assert error["detail"]["reference"] == reference


BAD_DIGEST = {"mediaType": "x", "digest": "y", "size": 1}
REFUSED = {
    "not JSON": (b"not json", 400, "MANIFEST_INVALID"),
    "empty": (b"", 400, "MANIFEST_INVALID"),
    "schema 1": (b'{"schemaVersion": 1, "fsLayers": []}', 400, "MANIFEST_INVALID"),
    "ambiguous": (image_body(manifests=[]), 400, "MANIFEST_INVALID"),
    "nested too deeply": (b"[" * 200_000, 400, "MANIFEST_INVALID"),
    "another type": (index_body(), 400, "MANIFEST_INVALID"),
    "bad digest inside": (image_body(subject=BAD_DIGEST), 400, "DIGEST_INVALID"),
    "wrong size": (image_body(config=descriptor(CONFIG, size=9)), 400, "SIZE_INVALID"),
    "missing blob": (image_body(b"absent"), 400, "MANIFEST_BLOB_UNKNOWN"),
    "too large": (image_body() + b" " * MAX_SIZE, 413, "MANIFEST_INVALID"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("streamed", [False, True], ids=["length", "chunked"])
async def test_refused(client: Client, root: Path, case: str, streamed: bool) -> None:
    """Each with its code, nothing stored, and the connection good for the next request."""
    body, status, code = REFUSED[case]
    await push_blob(client, REPO, CONFIG)
    before = content(root)

    async def pieces() -> object:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    async with client.put(
        f"/v2/{REPO}/manifests/v1",
        data=pieces() if streamed else BytesIO(body),
        headers={"Content-Type": OCI_MANIFEST},
    ) as answer:
        await refused(answer, status, code)
    assert content(root) == before
    await push_manifest(client, REPO, "v1", image_body())


async def test_every_missing_blob_is_named(client: Client) -> None:
    """One error for each reference that is missing."""
    await push_blob(client, REPO, CONFIG)
    missing = [b"one", b"two", b"three"]
    url = f"/v2/{REPO}/manifests/v1"
    async with client.put(
        url, data=image_body(CONFIG, missing), headers={"Content-Type": OCI_MANIFEST}
    ) as answer:
        errors = await refused(answer, 400, *["MANIFEST_BLOB_UNKNOWN"] * 3)
    assert [e["detail"]["digest"] for e in errors] == [digest_of(m) for m in missing]


async def test_wrong_digest(client: Client, root: Path) -> None:
    """A manifest under a digest that is not its own."""
    await push_blob(client, REPO, CONFIG)
    before = content(root)
    wrong = digest_of(b"other")
    url = f"/v2/{REPO}/manifests/{wrong}?tag=v1"
    async with client.put(url, data=image_body(), headers={"Content-Type": OCI_MANIFEST}) as answer:
        (error,) = await refused(answer, 400, "DIGEST_INVALID")
    assert error["detail"] == {"expected": wrong, "actual": digest_of(image_body())}
    assert content(root) == before


@pytest.mark.parametrize("tag", ["-x", "a/b", "", "a" * 129])
async def test_bad_tag_parameter(client: Client, root: Path, tag: str) -> None:
    """One bad tag of several refuses the whole, before anything is stored."""
    await push_blob(client, REPO, CONFIG)
    before = content(root)
    url = f"/v2/{REPO}/manifests/{digest_of(image_body())}"
    async with client.put(url, params=[("tag", "good"), ("tag", tag)], data=image_body()) as answer:
        await refused(answer, 400, "TAG_INVALID")
    assert content(root) == before


async def test_largest_manifest(client: Client) -> None:
    """A manifest of exactly the limit goes in and comes out."""
    await push_blob(client, REPO, CONFIG)
    body = image_body() + b" " * (MAX_SIZE - len(image_body()))
    await push_manifest(client, REPO, "large", body)
    async with client.get(f"/v2/{REPO}/manifests/large") as answer:
        assert await answer.read() == body


@pytest.mark.parametrize("damage", [b"", b"{", b" " * len(image_body(CONFIG))])
async def test_stored_manifest_that_was_damaged(
    client: Client,
    store: DistributionStore,
    damage: bytes,
    may_log_errors: pytest.LogCaptureFixture,
) -> None:
    """A manifest that is empty, cut or overwritten is unknown, so a client pushes it again."""
    body = image_body(CONFIG)
    await push_blob(client, REPO, CONFIG)
    digest = digests.of(body)
    store.put_manifest(REPO, parse(body), digest, ("v1",))
    store.manifest(REPO, digest).path.write_bytes(damage)
    for reference in ("v1", str(digest)):
        async with client.get(f"/v2/{REPO}/manifests/{reference}") as answer:
            (error,) = await refused(answer, 404, "MANIFEST_UNKNOWN")
            assert "damaged" in error["message"]
        async with client.head(f"/v2/{REPO}/manifests/{reference}") as answer:
            assert answer.status == 404
    assert may_log_errors.text.count(f"{digest} is damaged") == 1
    await push_manifest(client, REPO, "v1", body)
    async with client.get(f"/v2/{REPO}/manifests/v1") as answer:
        assert await answer.read() == body


async def test_internal_error_shows_nothing(
    client: Client,
    store: DistributionStore,
    may_log_errors: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error nobody foresaw is an opaque 500; what happened is in the log alone."""

    def fail(*_: object) -> None:
        raise RuntimeError("the secret of the house")

    monkeypatch.setattr(store, "tag", fail)
    async with client.get(f"/v2/{REPO}/manifests/v1") as answer:
        (error,) = await refused(answer, 500, "UNKNOWN")
    assert "secret" not in json.dumps(error)
    assert "the secret of the house" in may_log_errors.text
