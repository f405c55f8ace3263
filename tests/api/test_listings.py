"""Tags, catalog and referrers over a real socket: order, pages, Link, filters, exact types."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mayfly.storage import manifest as manifests
from mayfly.storage.manifest import MAX_SIZE, OCI_INDEX, OCI_MANIFEST
from tests.support.images import descriptor, digest_of, image_body
from tests.support.pushing import CONFIG, push_blob, push_image, push_manifest, refused
from tests.support.registry import Client

REPO = "team/app"
BAD_NUMBERS = ["-1", "x", "1.5", "", "+1", " 1", "1e3", "\u0661", "9" * 5000, "0x10"]


async def _pages(client: Client, url: str, key: str) -> tuple[list[list[Any]], list[str]]:
    """Every page from ``url`` on, following Link; the links."""
    pages: list[list[Any]] = []
    links: list[str] = []
    while True:
        async with client.get(url) as answer:
            assert answer.status == 200, await answer.text()
            pages.append((await answer.json(content_type=None))[key])
            link = answer.headers.get("Link")
        if link is None:
            return pages, links
        found = re.fullmatch(r'<(/v2/[^>]+)>; rel="next"', link)
        assert found, link
        links.append(url := found[1])


async def test_tags(client: Client) -> None:
    """All tags in lexical order, in a document of the protocol's form."""
    for tag in ("v10", "v9", "Z", "a"):
        await push_image(client, REPO, tag)
    async with client.get(f"/v2/{REPO}/tags/list") as answer:
        assert answer.headers["Content-Type"] == "application/json"
        assert "Link" not in answer.headers
        assert await answer.json() == {"name": REPO, "tags": ["Z", "a", "v10", "v9"]}


async def test_tag_pages(client: Client) -> None:
    """Pages of at most n; a Link when, and only when, there is more."""
    tags = ["a", "b", "c", "d", "e"]
    await push_blob(client, REPO, CONFIG)
    url = f"{digest_of(image_body())}?{'&'.join(f'tag={t}' for t in tags)}"
    await push_manifest(client, REPO, url, image_body())
    for n in (1, 2, 3, 4, 5, 100):
        pages, links = await _pages(client, f"/v2/{REPO}/tags/list?n={n}", "tags")
        assert pages == [tags[i : i + n] for i in range(0, len(tags), n)]
        assert len(links) == len(pages) - 1


async def test_tags_after(client: Client) -> None:
    """``last`` need not be a tag; beyond the end there is nothing."""
    for tag in ("a", "c"):
        await push_image(client, REPO, tag)
    for last, expected in (("", ["a", "c"]), ("a", ["c"]), ("b", ["c"]), ("c", []), ("~", [])):
        async with client.get(f"/v2/{REPO}/tags/list", params={"last": last}) as answer:
            assert (await answer.json())["tags"] == expected


@pytest.mark.parametrize("url", [f"/v2/{REPO}/tags/list", "/v2/_catalog"])
async def test_none_wanted(client: Client, url: str) -> None:
    """``n=0`` is an empty page and no Link."""
    await push_image(client, REPO, "v1")
    async with client.get(url, params={"n": "0"}) as answer:
        assert answer.status == 200
        assert "Link" not in answer.headers
        found = await answer.json()
    assert found.get("tags", found.get("repositories")) == []


@pytest.mark.parametrize("url", [f"/v2/{REPO}/tags/list", "/v2/_catalog"])
async def test_bad_number(client: Client, url: str) -> None:
    """``n`` that is no number of entries is refused."""
    await push_image(client, REPO, "v1")
    for n in BAD_NUMBERS:
        async with client.get(url, params={"n": n}) as answer:
            await refused(answer, 400, "PAGINATION_NUMBER_INVALID")


@pytest.mark.parametrize("repository", ["no/such", "team"])
async def test_tags_of_an_unknown_repository(client: Client, repository: str) -> None:
    """A name that is no repository, be it the parent of one."""
    await push_image(client, REPO, "v1")
    async with client.get(f"/v2/{repository}/tags/list") as answer:
        await refused(answer, 404, "NAME_UNKNOWN")


async def test_catalog(client: Client) -> None:
    """Repositories in lexical order of whole names, in pages, each once."""
    async with client.get("/v2/_catalog") as answer:
        assert await answer.json() == {"repositories": []}
    names = ["a", "a-b", "a/b", "a0", "b"]
    for name in reversed(names):
        await push_blob(client, name, CONFIG)
    for n in (1, 2, 5, 9):
        pages, _ = await _pages(client, f"/v2/_catalog?n={n}", "repositories")
        assert pages == [names[i : i + n] for i in range(0, len(names), n)]
    async with client.get("/v2/_catalog", params={"last": "a/b"}) as answer:
        assert await answer.json() == {"repositories": ["a0", "b"]}


async def test_catalog_page_has_a_limit(client: Client) -> None:
    """Asked for more than a page, a page is what comes."""
    await push_blob(client, REPO, CONFIG)
    async with client.get("/v2/_catalog", params={"n": "999999999"}) as answer:
        assert await answer.json() == {"repositories": [REPO]}


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_no_referrers(client: Client, algorithm: str) -> None:
    """An empty index of exactly the right type, also where nothing is known."""
    await push_image(client, REPO, "v1")
    for name in (REPO, "no/such"):
        url = f"/v2/{name}/referrers/{digest_of(b'x', algorithm)}"
        async with client.get(url) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == OCI_INDEX
            assert await answer.json(content_type=None) == {
                "schemaVersion": 2,
                "mediaType": OCI_INDEX,
                "manifests": [],
            }


async def test_referrers_and_filter(client: Client) -> None:
    """All referrers, or those of one artifact type with the header that says so."""
    image = await push_image(client, REPO, "v1")
    subject = descriptor(image, OCI_MANIFEST)
    made = {}
    for kind in ("application/x.sbom", "application/x.sig+json"):
        made[kind] = image_body(subject=subject, artifactType=kind, annotations={"k": kind})
        await push_manifest(client, REPO, digest_of(made[kind]), made[kind])
    url = f"/v2/{REPO}/referrers/{digest_of(image)}"
    async with client.get(url) as answer:
        assert answer.headers["Content-Type"] == OCI_INDEX
        assert "OCI-Filters-Applied" not in answer.headers
        found = manifests.parse(await answer.read())
    assert sorted(str(m.digest) for m in found.manifests) == sorted(map(digest_of, made.values()))
    for kind, body in made.items():
        async with client.get(url, params={"artifactType": kind}) as answer:
            assert answer.headers["OCI-Filters-Applied"] == "artifactType"
            (listed,) = (await answer.json(content_type=None))["manifests"]
            assert listed == {
                "mediaType": OCI_MANIFEST,
                "digest": digest_of(body),
                "size": len(body),
                "artifactType": kind,
                "annotations": {"k": kind},
            }
    async with client.get(url, params={"artifactType": "application/none"}) as answer:
        assert (await answer.json(content_type=None))["manifests"] == []


async def test_referrers_in_pages(client: Client) -> None:
    """A list too large for one manifest comes in pages, the filter kept, each entry once."""
    image = await push_image(client, REPO, "v1")
    subject = descriptor(image, OCI_MANIFEST)
    made = []
    for number in range(5):
        note = {"big": str(number) * (MAX_SIZE // 3)}
        made.append(image_body(subject=subject, artifactType="a/b+c", annotations=note))
        await push_manifest(client, REPO, f"t{number}", made[-1])
    url = f"/v2/{REPO}/referrers/{digest_of(image)}?artifactType=a%2Fb%2Bc"
    pages, links = await _pages(client, url, "manifests")
    assert len(pages) > 1
    assert all("artifactType=a%2Fb%2Bc" in link for link in links)
    found = [entry["digest"] for page in pages for entry in page]
    assert found == sorted(map(digest_of, made))


@pytest.mark.parametrize("subject", ["latest", "sha256:abc", "md5:" + "0" * 32])
async def test_referrers_of_no_digest(client: Client, subject: str) -> None:
    """A subject is named by digest."""
    async with client.get(f"/v2/{REPO}/referrers/{subject}") as answer:
        await refused(answer, 400, "DIGEST_INVALID")


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/v2/", "application/json", b"{}"),
        ("/v2", "application/json", b"{}"),
        ("/livez", "text/plain", b"ok\n"),
        ("/readyz", "text/plain", b"ok\n"),
    ],
)
async def test_base_and_health(client: Client, path: str, content_type: str, body: bytes) -> None:
    """The protocol's base and the health endpoints answer without any content in the store."""
    for method in ("GET", "HEAD"):
        async with client.request(method, path) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == content_type
            assert answer.headers["Content-Length"] == str(len(body))
            assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
            assert await answer.read() == (body if method == "GET" else b"")
