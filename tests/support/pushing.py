"""Content pushed to a registry over HTTP, as clients do it, and what an answer must look like."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from aiohttp import ClientResponse

from mayfly.storage.manifest import OCI_MANIFEST
from tests.support.images import digest_of, files, image_body
from tests.support.registry import Client

CONFIG = b"{}"


async def push_blob(client: Client, repository: str, data: bytes, algorithm: str = "sha256") -> str:
    """Push a blob in one request; its digest."""
    digest = digest_of(data, algorithm)
    url = f"/v2/{repository}/blobs/uploads/?digest={digest}"
    async with client.post(url, data=BytesIO(data)) as answer:
        assert answer.status == 201, await answer.text()
    return digest


async def begin(client: Client, repository: str, query: str = "") -> str:
    """Open an upload session; its Location."""
    async with client.post(f"/v2/{repository}/blobs/uploads/{query}") as answer:
        assert answer.status == 202, await answer.text()
        return answer.headers["Location"]


async def push_manifest(
    client: Client, repository: str, reference: str, body: bytes, media_type: str = OCI_MANIFEST
) -> ClientResponse:
    """PUT a manifest whose references are there; the answer, read."""
    url = f"/v2/{repository}/manifests/{reference}"
    headers = {"Content-Type": media_type}
    async with client.put(url, data=BytesIO(body), headers=headers) as answer:
        assert answer.status == 201, await answer.text()
        await answer.read()
    return answer


async def push_image(client: Client, repository: str, tag: str, **fields: Any) -> bytes:
    """Push an image without layers; the manifest's bytes."""
    await push_blob(client, repository, CONFIG)
    body = image_body(CONFIG, **fields)
    await push_manifest(client, repository, tag, body)
    return body


async def refused(answer: ClientResponse, status: int, *codes: str) -> list[dict[str, Any]]:
    """Assert an OCI error document with this status and these codes; its errors."""
    text = await answer.text()
    assert answer.status == status, text
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    errors: list[dict[str, Any]] = json.loads(text)["errors"]
    assert [error["code"] for error in errors] == list(codes), text
    return errors


def content(root: Path) -> dict[str, bytes]:
    """Every file of a store; sessions, links, data, and whatever else was left."""
    return files(root)
