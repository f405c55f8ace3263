"""``/mayfly/v1/status``: the state of the server as JSON, made at most once a second for all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from mayfly.registry.api.context import JSON, Context, answer
from mayfly.registry.api.request import Request
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.registry.threads import in_thread

FRESH_SECONDS = 1.0
"""For which a document is given out again: with many nodes and images it takes long to make."""


class StatusDocument:
    """Makes the document, one at a time, and drops it when it is old.

    Args:
        status: returns the state.
    """

    def __init__(self, status: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._status = status
        self._making = asyncio.Lock()
        self._made: bytes | None = None

    async def get(self) -> bytes:
        """Return the document, at most `FRESH_SECONDS` old."""
        async with self._making:
            if self._made is None:
                found = await self._status()
                self._made = await in_thread(_to_json, found)
                asyncio.get_running_loop().call_later(FRESH_SECONDS, self._drop)
            return self._made

    def _drop(self) -> None:
        self._made = None


def _to_json(status: dict[str, Any]) -> bytes:
    return json.dumps(status, ensure_ascii=False).encode() + b"\n"


async def get(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET: the state of the server and of its run."""
    headers = {"Cache-Control": "no-store"}
    return answer(body=await context.status.get(), content_type=JSON, headers=headers)
