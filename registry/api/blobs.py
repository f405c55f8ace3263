"""Handlers of ``/v2/<name>/blobs/<digest>``."""

from __future__ import annotations

from functools import partial

from mayfly.registry.api.context import COMMON_HEADERS, Context, answer
from mayfly.registry.api.request import Request
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.registry.threads import in_thread

OCTET_STREAM = "application/octet-stream"


async def get(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET and HEAD: send the blob, or the requested range of it."""
    assert request.digest is not None
    digest = str(request.digest)
    headers = COMMON_HEADERS | {"Content-Type": OCTET_STREAM, "Docker-Content-Digest": digest}
    bring = partial(context.mirror.bring_blob, context.client, request.repository, request.digest)
    if request.method == "HEAD":
        await bring(head=True)
        content = await in_thread(context.store.touch, request.repository, request.digest)
        return await context.content.send_head(http, content, headers)
    await context.observer.prepare(context.peer, request.repository)
    with context.observer.sending(context.peer, request.repository, digest) as sending:
        await bring(head=False)
        content = context.store.blob(request.repository, request.digest)
        return await context.content.send(http, content, headers, sending)


async def delete(context: Context, http: HTTPRequest, request: Request) -> Response:
    """DELETE: unlink the blob from this repository."""
    assert request.digest is not None
    await in_thread(context.store.delete_blob, request.repository, request.digest)
    return answer(202)
