"""A client that pushes images, remembers what was acknowledged, and looks for all of it."""

from __future__ import annotations

import json
import random
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.support import client
from tests.support.images import digest_of


@dataclass
class Refused(Exception):
    """An answer that is no success."""

    status: int
    code: str
    message: str


@dataclass
class Pushes:
    """One client of one server.

    Attributes:
        host: with port.
        kept: (repository, tag) → digest of the manifest and of each blob, as acknowledged.
    """

    host: str
    tls: ssl.SSLContext | None = None
    kept: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = field(default_factory=dict)

    def ask(
        self,
        method: str,
        target: str,
        body: bytes | Iterator[bytes] | None = None,
        **headers: str,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One request on a connection of its own."""
        answer = client.ask(self.host, method, target, body, headers, tls=self.tls)
        return answer.status, answer.headers, answer.body

    def push(self, repository: str, tag: str, *layers: bytes) -> None:
        """Push an image; remembered once all of it was acknowledged.

        Raises:
            Refused: a step was.
        """
        config = json.dumps({"tag": tag, "repository": repository}).encode()
        for blob in (config, *layers):
            self.blob(repository, blob)
        self.manifest(repository, tag, config, *layers)

    def manifest(self, repository: str, tag: str, config: bytes, *layers: bytes) -> None:
        """Push the manifest of blobs that are there; as `push`.

        Raises:
            Refused: it was.
        """
        described = [
            {"mediaType": "application/octet-stream", "digest": digest_of(b), "size": len(b)}
            for b in (config, *layers)
        ]
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": described[0],
                "layers": described[1:],
            }
        ).encode()
        self._expect(201, "PUT", f"/v2/{repository}/manifests/{tag}", manifest)
        blobs = tuple(str(one["digest"]) for one in described)
        self.kept[repository, tag] = (digest_of(manifest), blobs)

    def blob(self, repository: str, data: bytes, *, announced: bool = False) -> None:
        """Push a blob as docker does, without its length, or in one request with it."""
        uploads = f"/v2/{repository}/blobs/uploads/"
        if announced:
            self._expect(201, "POST", f"{uploads}?digest={digest_of(data)}", data)
            return
        location = self._expect(202, "POST", uploads)["Location"]
        location = self._expect(202, "PATCH", location, _chunks(data))["Location"]
        self._expect(201, "PUT", f"{location}?digest={digest_of(data)}")

    def delete(self, repository: str, tag: str) -> None:
        """Delete an image and its blobs."""
        digest, blobs = self.kept.pop((repository, tag))
        self._expect(202, "DELETE", f"/v2/{repository}/manifests/{digest}")
        for blob in dict.fromkeys(blobs):
            self._expect(202, "DELETE", f"/v2/{repository}/blobs/{blob}")

    def check(self) -> None:
        """Everything acknowledged is there, with its bytes."""
        for (repository, tag), (digest, blobs) in self.kept.items():
            status, _, body = self.ask("GET", f"/v2/{repository}/manifests/{tag}")
            assert (status, digest_of(body)) == (200, digest), f"{repository}:{tag}"
            for blob in blobs:
                status, _, body = self.ask("GET", f"/v2/{repository}/blobs/{blob}")
                assert (status, digest_of(body)) == (200, blob), f"{repository} {blob}"

    def _expect(
        self, wanted: int, method: str, target: str, body: bytes | Iterator[bytes] | None = None
    ) -> Mapping[str, str]:
        status, headers, answer = self.ask(method, target, body)
        if status != wanted:
            error = json.loads(answer)["errors"][0]
            raise Refused(status, error["code"], error["message"])
        return headers


def _chunks(data: bytes) -> Iterator[bytes]:
    """A body in pieces, which http.client sends in chunks."""
    yield from (data[at : at + 65536] for at in range(0, len(data), 65536))


def noise(size: int, seed: object) -> bytes:
    """Bytes that nothing can compress or share."""
    return random.Random(str(seed)).randbytes(size)
