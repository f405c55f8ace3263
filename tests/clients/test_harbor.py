"""Harbor's replication with its provider Docker Registry, replayed: the requests that it makes.

Read from Harbor's src/pkg/reg/adapter/native, src/pkg/registry/client.go and
src/controller/replication/transfer/image/transfer.go. `Harbor` is its client of a registry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from mayfly.storage.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.support.client import Answer, ask, basic
from tests.support.commands import mayfly
from tests.support.images import descriptor, digest_of, image_body, index_body
from tests.support.process import Mayfly

ACCEPTS = ", ".join(
    (
        OCI_INDEX,
        DOCKER_LIST,
        OCI_MANIFEST,
        DOCKER_MANIFEST,
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
    )
)
CHUNK = 10 * 1024 * 1024
LARGE = bytes(range(256)) * (100 * 1024)
"""25 MiB: three chunks."""


class Harbor:
    """A client of one registry, with one login."""

    def __init__(self, host: str, login: tuple[str, str]) -> None:
        self._host = host
        self._login = login

    def request(self, method: str, url: str, body: bytes | None = None, **headers: str) -> Answer:
        """Ask; after a challenge once more, with a token for the scope that it names."""
        parts = urlsplit(url)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = ask(self._host, method, path, body, given)
        if answer.status != 401:
            return answer
        assert answer.challenge is not None
        fields = dict(re.findall(r'(\w+)="([^"]*)"', answer.challenge))
        query = urlencode({"service": fields["service"], "scope": fields.get("scope", "")})
        realm = f"{urlsplit(fields['realm']).path}?{query}"
        login = dict([basic(*self._login)])
        token = ask(self._host, "GET", realm, None, login).json["token"]
        return ask(self._host, method, path, body, {**given, "Authorization": f"Bearer {token}"})

    def catalog(self) -> list[str]:
        found: list[str] = []
        url = "/v2/_catalog?n=1000"
        while url:
            answer = self.request("GET", url)
            assert answer.status == 200
            found += answer.json["repositories"]
            link = re.search(r'<([^>]+)>; rel="next"', answer.headers.get("Link", ""))
            url = link[1] if link else ""
        return found

    def exists(self, repository: str, reference: str) -> str:
        """The digest of a manifest; "" without it."""
        answer = self.request("HEAD", f"/v2/{repository}/manifests/{reference}", Accept=ACCEPTS)
        assert answer.status in (200, 404)
        assert answer.status == 404 or int(answer.headers["Content-Length"]) > 0
        return answer.headers["Docker-Content-Digest"] if answer.status == 200 else ""

    def push_blob(self, repository: str, data: bytes, *, by_chunk: bool) -> None:
        digest = digest_of(data)
        if self.request("HEAD", f"/v2/{repository}/blobs/{digest}").status == 200:
            return
        location = self._begin(repository)
        if not by_chunk or len(data) <= CHUNK:
            answer = self.request("PUT", _with(location, digest), data)
            assert answer.status == 201
            return
        for start in range(0, len(data), CHUNK):
            end = min(start + CHUNK, len(data)) - 1
            is_last = end == len(data) - 1
            url = _with(location, digest) if is_last else _with(location)
            method = "PUT" if is_last else "PATCH"
            part = data[start : end + 1]
            answer = self.request(method, url, part, Content_Range=f"{start}-{end}")
            assert answer.status == (201 if is_last else 202), answer.body
            location = answer.headers["Location"]

    def resume(self, repository: str, data: bytes) -> None:
        """A chunk that was refused: ask where the upload stands, and continue from there."""
        location = self._begin(repository)
        answer = self.request(
            "PATCH", _with(location), data[:CHUNK], Content_Range=f"0-{CHUNK - 1}"
        )
        location = answer.headers["Location"]
        wrong = self.request("PATCH", _with(location), b"x", Content_Range="5-5")
        assert wrong.status == 416
        status = self.request("GET", _with(location))
        assert status.status == 204
        first, last = status.headers["Range"].split("-")
        assert (int(first), int(last)) == (0, CHUNK - 1)
        rest = data[int(last) + 1 :]
        url = _with(status.headers["Location"], digest_of(data))
        part = f"{int(last) + 1}-{len(data) - 1}"
        assert self.request("PUT", url, rest, Content_Range=part).status == 201

    def _begin(self, repository: str) -> str:
        answer = self.request("POST", f"/v2/{repository}/blobs/uploads/", b"")
        assert answer.status == 202
        return answer.headers["Location"]

    def push_manifest(self, repository: str, reference: str, body: bytes, kind: str) -> None:
        url = f"/v2/{repository}/manifests/{reference}"
        answer = self.request("PUT", url, body, Content_Type=kind)
        assert answer.status == 201, answer.body
        assert answer.headers["Docker-Content-Digest"] == digest_of(body)


def _with(location: str, digest: str = "") -> str:
    """A session's URL with its query parsed and written anew, as Harbor does."""
    parts = urlsplit(location)
    query = sorted([*parse_qsl(parts.query), *([("digest", digest)] if digest else [])])
    return f"{parts.path}?{urlencode(query)}" if query else parts.path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mayfly]:
    """With a developer and a maintainer, as the page on Harbor has it."""
    place = tmp_path_factory.mktemp("harbor")
    auth = place / "auth"
    auth.mkdir()
    for user, role in (("developer", "developer"), ("maintainer", "maintainer")):
        words = ("--auth", auth)
        done = mayfly("user", "add", user, "--password-stdin", *words, stdin="secret-of-harbor")
        assert done.returncode == 0, done.stderr
        grant = ("--user", user, "--role", role, "--repositories", "mirror/**")
        done = mayfly("grant", "add", *grant, *words)
        assert done.returncode == 0, done.stderr
    with Mayfly(place / "root", place / "state", "--auth", str(auth)) as running:
        yield running


def _client(served: Mayfly, user: str = "developer") -> Harbor:
    return Harbor(served.host, (user, "secret-of-harbor"))


def _push(harbor: Harbor, repository: str, tag: str, *, by_chunk: bool) -> tuple[bytes, bytes]:
    """Copy an index of one image; its bytes, and the image's."""
    config = b'{"os": "linux"}'
    image = image_body(config, [LARGE])
    entry = descriptor(image, OCI_MANIFEST, platform={"os": "linux", "architecture": "amd64"})
    index = index_body(manifests=[entry])
    assert harbor.exists(repository, tag) == ""
    assert harbor.exists(repository, digest_of(image)) == ""
    for data in (config, LARGE):
        harbor.push_blob(repository, data, by_chunk=by_chunk)
    harbor.push_manifest(repository, digest_of(image), image, OCI_MANIFEST)
    harbor.push_manifest(repository, tag, index, OCI_INDEX)
    assert harbor.exists(repository, tag) == digest_of(index)
    return index, image


@pytest.mark.parametrize("by_chunk", [False, True])
def test_into_mayfly(served: Mayfly, by_chunk: bool) -> None:
    """Health, then HEAD of the manifest and of each blob, POST, PUT or PATCH, manifests last."""
    harbor = _client(served)
    assert harbor.request("GET", "/v2/").status == 200
    repository = f"mirror/chunks-{str(by_chunk).lower()}"
    index, _ = _push(harbor, repository, "v1", by_chunk=by_chunk)
    assert harbor.exists(repository, "v1") == digest_of(index)  # the second run skips it


def test_a_chunk_that_failed_goes_on(served: Mayfly) -> None:
    """Where the upload stands is told as Harbor reads it."""
    _client(served).resume("mirror/resumed", LARGE)


def test_out_of_mayfly(served: Mayfly) -> None:
    """The catalogue has what the user may pull; tags, manifests, blobs whole and in parts."""
    harbor = _client(served)
    repository = "mirror/out"
    index, image = _push(harbor, repository, "v1", by_chunk=True)
    assert repository in harbor.catalog()
    assert harbor.request("GET", f"/v2/{repository}/tags/list").json["tags"] == ["v1"]
    for reference, body in (("v1", index), (digest_of(image), image)):
        answer = harbor.request("GET", f"/v2/{repository}/manifests/{reference}", Accept=ACCEPTS)
        assert answer.body == body
        assert answer.headers["Docker-Content-Digest"] == digest_of(body)
    url = f"/v2/{repository}/blobs/{digest_of(LARGE)}"
    whole = harbor.request("GET", url, Accept_Encoding="identity")
    assert (int(whole.headers["Content-Length"]), whole.body) == (len(LARGE), LARGE)
    part = harbor.request("GET", url, Range=f"bytes={CHUNK}-{2 * CHUNK - 1}")
    assert (part.status, part.body) == (206, LARGE[CHUNK : 2 * CHUNK])


def test_deletions(served: Mayfly) -> None:
    """HEAD of the tag, then DELETE of its digest; a maintainer may, a developer may not."""
    repository = "mirror/deleted"
    _push(_client(served), repository, "v1", by_chunk=False)
    for user, status in (("developer", 403), ("maintainer", 202)):
        harbor = _client(served, user)
        digest = harbor.exists(repository, "v1")
        answer = harbor.request("DELETE", f"/v2/{repository}/manifests/{digest}")
        # A token without the right is refused like no token, so that clients ask for another.
        assert answer.status in (status, 401 if status == 403 else status)
    assert _client(served).exists(repository, "v1") == ""


def test_a_wrong_password_is_unhealthy(served: Mayfly) -> None:
    """Without a login, 401 counts as healthy; with a wrong one it is told."""
    assert ask(served.host, "GET", "/v2/").status == 401
    wrong = dict([basic("developer", "no")])
    assert ask(served.host, "GET", "/v2/", None, wrong).status == 401
