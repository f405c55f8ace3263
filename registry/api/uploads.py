"""Handlers of ``/v2/<name>/blobs/uploads/``: sessions, chunks, single-request pushes, mounts."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import AsyncIterator

from mayfly.registry.access.needs import Need
from mayfly.registry.api.context import Context, answer
from mayfly.registry.api.errors import ParameterInvalid, upload_range
from mayfly.registry.api.request import Handler, Request
from mayfly.registry.api.visible import visible
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.registry.threads import in_thread, in_turn
from mayfly.storage import digest as digests
from mayfly.storage.digest import CANONICAL, Digest
from mayfly.storage.errors import (
    BlobUnknown,
    DigestInvalid,
    NameInvalid,
    SizeInvalid,
    StorageFull,
    UploadOffset,
    UploadUnknown,
)
from mayfly.storage.interface import Upload
from mayfly.storage.reference import check_repository
from mayfly.storage.text import counted

_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?([0-9]{1,19})-([0-9]{1,19})(?:/(?:[0-9]+|\*))?")


def track_push(handler: Handler) -> Handler:
    """Record the push that a request is part of, from its begin to its end."""

    @functools.wraps(handler)
    async def observed(context: Context, http: HTTPRequest, request: Request) -> Response:
        with context.observer.track_push(context.peer, request.repository):
            return await handler(context, http, request)

    return observed


def mount_needs(request: Request) -> tuple[Need, ...]:
    """Return the right to pull from the source of a mount.

    It is optional, since a mount that is not possible becomes an upload; the handler checks it.
    """
    source = _mount_source(request)
    if source is None:
        return ()
    try:
        return (Need("repository", check_repository(source), "pull"),)
    except NameInvalid:
        return ()


def _mount_source(request: Request) -> str | None:
    """Return the repository that a cross-repository mount names as its source."""
    return (request.parameter("from") or None) if request.parameter("mount") else None


@track_push
async def begin(context: Context, http: HTTPRequest, request: Request) -> Response:
    """POST: mount a blob, take a whole one, or open a session."""
    algorithm = CANONICAL
    # The spec: a mount that is not possible, for whatever reason, becomes an upload.
    with contextlib.suppress(DigestInvalid):
        digest = digests.parse(request.parameter("mount") or "")
        algorithm = digest.algorithm
        if await _mount(context, request, digest):
            return _created(request, digest)
    if whole := request.parameter("digest"):
        return await _monolithic(context, http, request, digests.parse(whole))
    algorithm = request.parameter("digest-algorithm") or algorithm
    upload = await in_thread(context.store.begin_upload, request.repository, algorithm)
    return answer(202, headers=_session_headers(request, upload, 0))


async def status(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET: report a session's offset, so that a client can resume after a cut or a restart."""
    upload = context.store.upload(request.repository, request.upload_id)
    return answer(204, headers=_session_headers(request, upload, upload.offset))


@track_push
async def patch(context: Context, http: HTTPRequest, request: Request) -> Response:
    """PATCH: append a chunk, or a stream of unknown length."""
    upload = context.store.upload(request.repository, request.upload_id)
    async with _cancel_on_disk_error(upload):
        offset = await _append(context, http, upload)
    return answer(202, headers=_session_headers(request, upload, offset))


@track_push
async def finish(context: Context, http: HTTPRequest, request: Request) -> Response:
    """PUT: append the rest, verify, publish."""
    upload = context.store.upload(request.repository, request.upload_id)
    wanted = request.parameter("digest")
    if wanted is None:
        raise DigestInvalid("the digest parameter is missing")
    digest = digests.parse(wanted)
    async with _cancel_on_disk_error(upload):
        await _append(context, http, upload)
        await in_thread(upload.commit, digest)
    return _created(request, digest)


async def cancel(context: Context, http: HTTPRequest, request: Request) -> Response:
    """DELETE: end a session and drop its bytes."""
    upload = context.store.upload(request.repository, request.upload_id)
    await in_thread(upload.cancel)
    return answer(204)


async def _monolithic(
    context: Context, http: HTTPRequest, request: Request, digest: Digest
) -> Response:
    upload = await in_thread(
        context.store.begin_upload, request.repository, digest.algorithm, resumable=False
    )
    async with _cancel_on_disk_error(upload):
        try:
            await _check_room(context, http.announced_length)
            await context.receiver.receive(context.observer.activity, http, upload, 0)
            await in_thread(upload.commit, digest)
        except BaseException:
            # The client does not know the session, so nobody could resume it.
            with contextlib.suppress(UploadUnknown):
                await in_thread(upload.cancel)
            raise
    return _created(request, digest)


@contextlib.asynccontextmanager
async def _cancel_on_disk_error(upload: Upload) -> AsyncIterator[None]:
    """Cancel the upload when the disk fails.

    Its bytes would keep a full disk full, and clients do not resume it: they begin a new one. After
    a failed sync it is unknown which bytes are stored, and the next sync may succeed all the same
    (fsync(2)), so that a second attempt must not commit it.
    """
    try:
        yield
    except ConnectionError:
        raise
    except (StorageFull, OSError):
        with contextlib.suppress(UploadUnknown):
            await in_thread(upload.cancel)
        raise


async def _mount(context: Context, request: Request, digest: Digest) -> bool:
    """Link the blob from a repository that the caller may pull from; False if there is none.

    Repositories that the caller may not pull from are not read, so that neither the answer nor its
    time reveals whether they have the blob.
    """
    source = _mount_source(request)
    if source is None:
        source = await in_turn(context.client, _readable_holder, context, digest)
    elif not context.caller.allows(Need("repository", source, "pull")):
        return False
    if source is None:
        return False
    try:
        await in_thread(context.store.mount, request.repository, digest, source)
    except (BlobUnknown, NameInvalid):
        return False
    return True


def _readable_holder(context: Context, digest: Digest) -> str | None:
    """Return the first repository with a blob, of those that the caller may pull from."""

    def may_pull(name: str) -> bool:
        return context.caller.allows(Need("repository", name, "pull"))

    for name in visible(context.store, context.caller.readable(), may_pull):
        with contextlib.suppress(BlobUnknown):
            context.store.blob(name, digest)
            return name
    return None


async def _check_room(context: Context, size: int) -> None:
    """Check that a body fits; on a mirror, make room for it.

    Raises:
        StorageFull: it does not fit.
    """
    try:
        context.store.check_room(size)
    except StorageFull:
        await context.mirror.make_room(size)
        context.store.check_room(size)


async def _append(context: Context, http: HTTPRequest, upload: Upload) -> int:
    """Append the body where ``Content-Range`` says, otherwise at the end; return the new offset."""
    await _check_room(context, http.announced_length)
    offset = upload.offset
    header = http.headers.get("Content-Range")
    if header is None:
        return await context.receiver.receive(context.observer.activity, http, upload, offset)
    found = _CONTENT_RANGE.fullmatch(header.strip())
    if found is None:
        raise ParameterInvalid(f"Content-Range {header[:60]!r} is not <first>-<last>")
    first, last = int(found[1]), int(found[2])
    if first != offset:
        raise UploadOffset(f"the upload stands at byte {offset}, not {first}", offset)
    announced = http.body.length if http.body is not None else 0
    if announced is not None and announced != last - first + 1:
        long = counted(announced, "byte")
        raise SizeInvalid(f"Content-Range {header[:60]!r} is not {long} long")
    end = await context.receiver.receive(context.observer.activity, http, upload, first)
    if end != last + 1:
        long = counted(end - first, "byte")
        raise SizeInvalid(f"Content-Range {header[:60]!r} was {long} long")
    return end


def _session_headers(request: Request, upload: Upload, offset: int) -> dict[str, str]:
    return {
        "Location": f"/v2/{request.repository}/blobs/uploads/{upload.id}",
        "Docker-Upload-UUID": upload.id,
        "Range": upload_range(offset),
    }


def _created(request: Request, digest: Digest) -> Response:
    headers = {
        "Location": f"/v2/{request.repository}/blobs/{digest}",
        "Docker-Content-Digest": str(digest),
    }
    return answer(201, headers=headers)
