"""A client of a server under attack, as small as can be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mayfly.storage.manifest import OCI_INDEX, OCI_MANIFEST
from tests.support import client
from tests.support.client import Answer
from tests.support.images import descriptor, digest_of, image_body


@dataclass
class Pusher:
    """Pushes to one server, each request on a connection of its own; `close` is not needed."""

    host: str
    headers: Mapping[str, str] | None = None

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request."""
        return client.ask(self.host, method, path, body, {**(self.headers or {}), **headers})

    def blob(self, repository: str, data: bytes) -> str:
        """Push a blob; its digest."""
        digest = digest_of(data)
        path = f"/v2/{repository}/blobs/uploads/?digest={digest}"
        answer = self.ask("POST", path, data)
        assert answer.status == 201, answer
        return digest

    def put(self, repository: str, reference: str, body: bytes, media_type: str) -> Answer:
        """Push a manifest, whatever comes of it."""
        path = f"/v2/{repository}/manifests/{reference}"
        return self.ask("PUT", path, body, **{"Content-Type": media_type})

    def image(self, repository: str, tag: str | None = None, **fields: Any) -> bytes:
        """Push an image manifest whose config is ``{}``; its bytes."""
        return self._manifest(repository, tag, image_body(**fields), OCI_MANIFEST)

    def index(
        self, repository: str, tag: str | None, children: list[bytes], **fields: Any
    ) -> bytes:
        """Push an index of manifests; its bytes."""
        entries = [
            descriptor(one, OCI_INDEX if b'"manifests"' in one else OCI_MANIFEST)
            for one in children
        ]
        content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        return self._manifest(repository, tag, json.dumps(content | fields).encode(), OCI_INDEX)

    def _manifest(self, repository: str, tag: str | None, body: bytes, media_type: str) -> bytes:
        answer = self.put(repository, tag or digest_of(body), body, media_type)
        assert answer.status == 201, (answer.status, answer.body[:300])
        return body


def at_once(calls: list[Callable[[], Answer]], count: int = 16) -> list[Answer]:
    """Make calls in threads; what each gave."""
    with ThreadPoolExecutor(count) as pool:
        return [one.result(120) for one in [pool.submit(call) for call in calls]]
