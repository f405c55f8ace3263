"""Handlers of ``/v2/<name>/manifests/<reference>``."""

from __future__ import annotations

from aiohttp.web_response import StreamResponse

from registry.body import HTTPRequest
from registry.context import Context, answer, in_thread
from registry.manifest_cache import Cached
from registry.request import Request
from storage import digest as digests
from storage import manifest as manifests
from storage.bundle.verified import BundleExtent
from storage.digest import Digest
from storage.errors import ContentCorrupt, ManifestTooLarge, ManifestUnknown
from storage.names import check_tag


async def get(context: Context, http: HTTPRequest, request: Request) -> StreamResponse:
    """GET and HEAD: the exact bytes that were pushed, under their exact media type."""
    digest, cached = await _load(context, request)
    context.observer.manifest_served(
        context.peer,
        request.repository,
        str(digest),
        head=request.method == "HEAD",
        tag=request.tag,
    )
    return answer(
        body=cached.body,
        content_type=cached.media_type,
        headers={"Docker-Content-Digest": str(digest)},
    )


async def put(context: Context, http: HTTPRequest, request: Request) -> StreamResponse:
    """PUT by tag, or by digest with any number of ``tag`` parameters."""
    if http.body is not None and (http.body.length or 0) > manifests.MAX_SIZE:
        raise ManifestTooLarge(f"manifest is larger than {manifests.MAX_SIZE} bytes")
    tags = (request.tag,) if request.tag else tuple(request.query.get("tag", ()))
    for tag in tags:
        check_tag(tag)
    body = await http.read_body(manifests.MAX_SIZE)
    announced = http.headers.get("Content-Type")
    media_type = announced.partition(";")[0].strip() if announced else None
    manifest = await in_thread(manifests.parse, body, media_type)
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


async def delete(context: Context, http: HTTPRequest, request: Request) -> StreamResponse:
    """DELETE: by tag the tag alone, by digest the manifest and every tag on it."""
    if request.tag is not None:
        await in_thread(context.store.delete_tag, request.repository, request.tag)
    else:
        assert request.digest is not None
        await in_thread(context.store.delete_manifest, request.repository, request.digest)
    return answer(202)


async def _load(context: Context, request: Request) -> tuple[Digest, Cached]:
    """The manifest that a reference names, and its digest.

    Raises:
        ManifestUnknown: there is none.
    """
    digest = _resolve(context, request)
    while True:
        try:
            return digest, await _read(context, request.repository, digest)
        except ManifestUnknown:
            # A tag may have moved on since it was read, and what it left may be deleted.
            before, digest = digest, _resolve(context, request)
            if digest == before:
                raise


async def _read(context: Context, repository: str, digest: Digest) -> Cached:
    """The manifest of a digest.

    Raises:
        ManifestUnknown: it is not there, or damaged: so a push brings it again.
        ContentCorrupt: it is damaged in a bundle.
    """
    known = digest in context.manifests
    extent = context.store.manifest(repository, digest)
    try:
        cached = await context.manifests.load(digest, extent)
    except ContentCorrupt:
        if isinstance(extent, BundleExtent):
            raise
        await in_thread(context.store.examine, digest)
        # Whoever mended it meanwhile, or a bundle beneath, may have it whole.
        extent = context.store.manifest(repository, digest)
        try:
            cached = await context.manifests.load(digest, extent)
        except ContentCorrupt as error:
            if isinstance(extent, BundleExtent):
                raise
            raise ManifestUnknown(error.message, {"reference": str(digest)}) from None
    if not known:
        in_thread(context.store.compare, repository, digest, cached.body)
    return cached


def _resolve(context: Context, request: Request) -> Digest:
    if request.digest is not None:
        return request.digest
    assert request.tag is not None
    return context.store.tag(request.repository, request.tag)
