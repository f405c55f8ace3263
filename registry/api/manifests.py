"""Handlers of ``/v2/<name>/manifests/<reference>``."""

from __future__ import annotations

from functools import partial

from mayfly.registry.api.context import COMMON_HEADERS, Context, answer, read_document
from mayfly.registry.api.manifest_cache import Cached
from mayfly.registry.api.request import Request
from mayfly.registry.coverage.manifest_graph import ManifestRefs
from mayfly.registry.errors import UpstreamUnavailable
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.registry.threads import in_thread
from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import ContentCorrupt, ManifestTooLarge, ManifestUnknown, StorageError
from mayfly.storage.interface import Content
from mayfly.storage.reference import check_tag


async def get(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET and HEAD: send the exact bytes that were pushed, with their media type."""
    asked = None if request.digest is None else str(request.digest)
    try:
        fetched = None if request.method == "HEAD" else asked
        with context.observer.asking(context.peer, request.repository, fetched):
            await context.mirror.bring_manifest(
                context.client, request.repository, request.reference
            )
            digest, content, cached = await _load(context, request)
    except (StorageError, UpstreamUnavailable):
        if asked is not None:
            await context.observer.prepare(context.peer, request.repository)
            context.observer.manifest_failed(context.peer, request.repository, asked)
        raise
    name = str(digest)
    refs = context.observer.graph.cached_complete(request.repository, name)
    if refs is None:
        refs = await _learn(context, request.repository, digest, cached)
    context.observer.manifest_served(
        context.peer,
        request.repository,
        name,
        refs,
        head=request.method == "HEAD",
        tag=request.tag,
    )
    headers = {"Docker-Content-Digest": name}
    if cached.body is None:
        headers |= COMMON_HEADERS | {"Content-Type": cached.media_type}
        return await context.content.send_whole(http, content, headers)
    return answer(body=cached.body, content_type=cached.media_type, headers=headers)


async def put(context: Context, http: HTTPRequest, request: Request) -> Response:
    """PUT: store a manifest by tag, or by digest with any number of ``tag`` parameters."""
    if http.body is not None and (http.body.length or 0) > manifests.MAX_SIZE:
        raise ManifestTooLarge(f"manifest is larger than {manifests.MAX_SIZE} bytes")
    tags = (request.tag,) if request.tag else request.query.get("tag", ())
    for tag in tags:
        check_tag(tag)
    # Before the first byte is read: requests that wait here take no memory.
    gate, client = context.manifests.gate, context.client
    async with gate.admit(client, http.body.length if http.body is not None else 0):
        body = await read_document(http, manifests.MAX_SIZE)
        announced = http.headers.get("Content-Type")
        media_type = announced.partition(";")[0].strip() if announced else None
        manifest = await gate.parse(client, body, media_type)
        digest = request.digest or digests.of(body)
        await in_thread(context.store.put_manifest, request.repository, manifest, digest, tags)
    context.observer.manifest_pushed(context.peer, request.repository, str(digest), tags)
    response = answer(201)
    response.headers["Location"] = f"/v2/{request.repository}/manifests/{digest}"
    response.headers["Docker-Content-Digest"] = str(digest)
    if manifest.subject is not None:
        response.headers["OCI-Subject"] = str(manifest.subject.digest)
    if request.digest is not None:
        for tag in tags:
            response.headers.add("OCI-Tag", tag)
    return response


async def delete(context: Context, http: HTTPRequest, request: Request) -> Response:
    """DELETE: by tag remove the tag alone, by digest the manifest and every tag on it."""
    if request.tag is not None:
        await in_thread(context.store.delete_tag, request.repository, request.tag)
    else:
        assert request.digest is not None
        await in_thread(context.store.delete_manifest, request.repository, request.digest)
    return answer(202)


async def _load(context: Context, request: Request) -> tuple[Digest, Content, Cached]:
    """Load the manifest a reference names: its digest, content and parsed form.

    Raises:
        ManifestUnknown: there is none.
    """
    digest = context.digest_of(request.repository, request.reference)
    head = request.method == "HEAD"
    while True:
        try:
            content, cached = await _read(context, request.repository, digest, head=head)
            return digest, content, cached
        except ManifestUnknown:
            # The tag may have moved since it was read, and its former manifest may be deleted.
            before = digest
            digest = context.digest_of(request.repository, request.reference)
            if digest == before:
                raise


async def _read(
    context: Context, repository: str, digest: Digest, *, head: bool
) -> tuple[Content, Cached]:
    """Return the manifest of a digest, and its content.

    Raises:
        ManifestUnknown: it is missing or damaged in the store, so that clients push it again.
        ContentCorrupt: it is damaged in a bundle.
    """
    content = context.store.manifest(repository, digest)
    if (cached := context.manifests.known(digest)) is not None:
        return content, cached
    load = partial(
        context.manifests.load,
        context.client,
        head=head,
        on_read=partial(context.store.compare, repository, digest),
    )
    try:
        return content, await load(digest, content)
    except ContentCorrupt:
        if content.proof is not None:
            raise
        await in_thread(context.store.examine, digest)
        # A push may have repaired it meanwhile, or a bundle beneath has a good copy.
        content = context.store.manifest(repository, digest)
        try:
            return content, await load(digest, content)
        except ContentCorrupt as error:
            if content.proof is not None:
                raise
            raise ManifestUnknown(error.message, {"reference": str(digest)}) from None


async def _learn(context: Context, repository: str, digest: Digest, cached: Cached) -> ManifestRefs:
    """Give coverage the descendants of a manifest, without reading on the event loop."""
    refs = cached.refs.required
    if cached.refs.optional:
        refs = await in_thread(cached.refs.within, context.store, repository)
    await context.observer.learn(repository, str(digest), refs)
    return refs
