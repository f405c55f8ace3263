"""The event of a request, for the audit file and webhooks (`registry.telemetry`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mayfly.registry.access.errors import AccessDenied, Unauthorized
from mayfly.registry.api import errors
from mayfly.registry.api.blobs import OCTET_STREAM
from mayfly.registry.api.context import Context
from mayfly.registry.api.request import Request
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.registry.telemetry import events
from mayfly.registry.telemetry.events import Action, Event, Outcome, Target


async def handle(
    put: Callable[[Event], None], context: Context, http: HTTPRequest, request: Request
) -> Response:
    """Call the handler of a request, and record how that ended."""
    try:
        response = await request.route.handler(context, http, request)
    except (ConnectionError, asyncio.CancelledError):
        _record(put, context, http, request, "cut")
        raise
    except (AccessDenied, Unauthorized):
        raise  # the audit has it already, folded and within its bounds
    except Exception as error:
        _, code = errors.TABLE.get(type(error), errors.UNKNOWN)
        _record(put, context, http, request, "failed", reason=code)
        raise
    _record(put, context, http, request, "done", response=response)
    return response


def _record(
    put: Callable[[Event], None],
    context: Context,
    http: HTTPRequest,
    request: Request,
    outcome: Outcome,
    *,
    reason: str = "",
    response: Response | None = None,
) -> None:
    action = _action(request)
    if action is None or (response is not None and response.status == 202 and action == "push"):
        return  # a session was begun; the push ends with another request
    if request.route.endpoint == "session" and "Set-Cookie" not in getattr(response, "headers", ()):
        return  # refused by a redirect to the page; the audit has it already
    if action == "push" and request.parameter("mount") and response is not None:
        action = "mount"
    peer, identity = context.peer, context.caller.identity
    event = events.new(action, outcome)
    event["target"] = _target(http, request, response)
    event["request"] = events.asked_by(peer.address, request.method, http.headers)
    event["actor"] = {"name": identity.name}
    event["node"] = peer.node
    event["credential"] = identity.source
    event["bytes"] = _transferred(http, request, response)
    if reason:
        event["reason"] = reason
    put(event)


def _action(request: Request) -> Action | None:
    event = request.route.event
    if request.method != "HEAD":
        return event
    return "check" if event == "pull" else None


def _target(http: HTTPRequest, request: Request, response: Response | None) -> Target:
    target: Target = {"repository": request.repository}
    digest = str(request.digest) if request.digest is not None else ""
    if not digest and response is not None:
        digest = response.headers.get("Docker-Content-Digest", "")
    if digest:
        target["digest"] = digest
    if request.tag is not None:
        target["tag"] = request.tag
    if request.route.endpoint == "manifest":
        headers = http.headers if request.method == "PUT" else getattr(response, "headers", {})
        if media_type := headers.get("Content-Type", "").partition(";")[0].strip():
            target["mediaType"] = events.short(media_type)
    elif request.route.endpoint in ("blob", "upload", "uploads"):
        target["mediaType"] = OCTET_STREAM
        if request.parameter("mount") and (source := request.parameter("from")):
            target["fromRepository"] = events.short(source)
    return target


def _transferred(http: HTTPRequest, request: Request, response: Response | None) -> int:
    """Bytes of content that went in or out; of a cut response, with its head."""
    if request.method in ("PUT", "POST", "PATCH"):
        return http.announced_length or 0
    if response is not None:
        return response.content_length if request.method == "GET" else 0
    return http.sent
