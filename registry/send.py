"""The byte path out: part of a file to a socket, by sendfile, without passing through Python.

A blob is never content-encoded: clients check its digest and resume by byte range. Ranges follow
RFC 9110 section 14; of several ranges in one request none is honoured and the whole is sent, which
that section allows.
"""

from __future__ import annotations

import asyncio
import re

from aiohttp import web

from registry.context import COMMON_HEADERS
from registry.errors import RangeInvalid
from storage.errors import BlobUnknown
from storage.interface import Extent

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Read a ``Range`` header against content of ``size`` bytes.

    Returns:
        The offset and number of bytes to send, or None for the whole content.

    Raises:
        RangeInvalid: no byte of the content lies in the range.
    """
    if header is None or "," in header or not header.startswith("bytes="):
        return None
    found = _RANGE.fullmatch(header)
    if found is None or header == "bytes=-":
        raise RangeInvalid(f"range {header[:60]!r} cannot be read", size)
    first, last = found.groups()
    if not first:
        length = min(int(last), size)
        start, end = size - length, size - 1
    else:
        start = int(first)
        end = min(int(last), size - 1) if last else size - 1
    if start > end or start >= size:
        raise RangeInvalid(f"range {header[:60]!r} lies outside {size} bytes", size)
    return start, end - start + 1


async def send(
    http: web.BaseRequest, extent: Extent, headers: dict[str, str]
) -> web.StreamResponse:
    """Answer GET or HEAD with content, or the part of it that ``Range`` asks for.

    Raises:
        RangeInvalid: see `parse_range`.
        BlobUnknown: the content was deleted before its first byte was sent.
        ConnectionError: the client is gone, or the file ended early and the connection was cut.
    """
    part = parse_range(http.headers.get("Range"), extent.size)
    offset, count = part or (0, extent.size)
    response = web.StreamResponse(status=206 if part else 200, headers=COMMON_HEADERS)
    response.headers.update(headers)
    response.headers["Accept-Ranges"] = "bytes"
    if part:
        response.headers["Content-Range"] = f"bytes {offset}-{offset + count - 1}/{extent.size}"
    response.content_length = count
    if http.method == "HEAD" or count == 0:
        await response.prepare(http)
        await response.write_eof()
        return response
    try:
        file = extent.path.open("rb", buffering=0)
    except FileNotFoundError:
        raise BlobUnknown("blob unknown to repository") from None
    with file:
        await response.prepare(http)
        transport = http.transport
        if transport is None:
            raise ConnectionResetError("client is gone")
        sent = await asyncio.get_running_loop().sendfile(
            transport, file, extent.offset + offset, count
        )
        if sent != count:
            # The length is already promised; only a cut tells the client that it is not met.
            transport.abort()
            raise ConnectionResetError(f"file ended after {sent} of {count} bytes")
    await response.write_eof()
    return response
