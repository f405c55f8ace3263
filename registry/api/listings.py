"""Handlers of lists: catalog, tags and referrers.

Catalog and tags are paged as in the spec's "Listing Tags": ``n`` entries after ``last``, and a
``Link`` to the next page when there is one.
"""

from __future__ import annotations

import json
from itertools import islice
from urllib.parse import quote

from mayfly.registry.api.context import JSON, Context, answer
from mayfly.registry.api.errors import PaginationInvalid
from mayfly.registry.api.request import Request
from mayfly.registry.api.visible import visible
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.registry.threads import in_turn
from mayfly.storage.manifest import MAX_SIZE, OCI_INDEX

CATALOG_PAGE = 1000
"""Repositories on a page unless the client asks for fewer."""


async def catalog(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET ``/v2/_catalog``: list the repositories that the caller may pull from."""
    asked = _limit(request)
    if asked == 0:
        return _page("repositories", [], {}, None)
    limit = min(asked or CATALOG_PAGE, CATALOG_PAGE)
    last = request.parameter("last") or ""
    names = await in_turn(context.client, _readable, context, last, limit + 1)
    link = f"/v2/_catalog?n={limit}&last={quote(names[limit - 1])}" if len(names) > limit else None
    return _page("repositories", names[:limit], {}, link)


def _readable(context: Context, after: str, limit: int) -> list[str]:
    caller = context.caller
    ranges = caller.readable(listing=True)
    return list(islice(visible(context.store, ranges, caller.can_list, after), limit))


async def tags(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET ``/v2/<name>/tags/list``: list a repository's tags."""
    limit = _limit(request)
    last = request.parameter("last") or ""
    known = await in_turn(context.client, context.store.tags, request.repository)
    names = [name for name in known if name > last]
    shown = names if limit is None else names[:limit]
    link = None
    if limit and len(names) > limit:
        link = f"/v2/{request.repository}/tags/list?n={limit}&last={quote(shown[-1])}"
    return _page("tags", shown, {"name": request.repository}, link)


async def referrers(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET ``/v2/<name>/referrers/<digest>``: list the manifests that refer to one, as an index."""
    assert request.digest is not None
    headers: dict[str, str] = {}
    wanted = request.parameter("artifactType")
    if wanted:
        headers["OCI-Filters-Applied"] = "artifactType"
    await context.mirror.bring_referrers(context.client, request.repository, request.digest)
    page, last = await in_turn(context.client, _referrers_page, context, request, wanted)
    if last is not None:
        path = f"/v2/{request.repository}/referrers/{request.digest}"
        kept = f"&artifactType={quote(wanted, safe='')}" if wanted else ""
        headers["Link"] = f'<{path}?last={last}{kept}>; rel="next"'
    return answer(body=page, content_type=OCI_INDEX, headers=headers)


def _referrers_page(
    context: Context, request: Request, wanted: str | None
) -> tuple[bytes, str | None]:
    """Return an index within the size of a manifest, and its last digest where more follow."""
    assert request.digest is not None
    after = request.parameter("last") or ""
    # Joined once, as bytes: the whole may be 4 MiB.
    page = [f'{{"schemaVersion": 2, "mediaType": "{OCI_INDEX}", "manifests": ['.encode()]
    last = ""
    room = MAX_SIZE - 1024
    more = None
    for descriptor in context.store.referrers(request.repository, request.digest, after):
        if wanted and descriptor.get("artifactType") != wanted:
            continue
        text = json.dumps(descriptor).encode()
        room -= len(text) + 2
        if room < 0 and last:
            more = last
            break
        page += [b", ", text] if last else [text]
        last = str(descriptor["digest"])
    page.append(b"]}")
    return b"".join(page), more


def _limit(request: Request) -> int | None:
    text = request.parameter("n")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise PaginationInvalid(f"n is {text[:40]!r}, not a number of entries")
    return int(text)


def _page(key: str, names: list[str], fields: dict[str, str], link: str | None) -> Response:
    headers = {"Link": f'<{link}>; rel="next"'} if link else {}
    return answer(
        body=json.dumps(fields | {key: names}).encode(), content_type=JSON, headers=headers
    )
