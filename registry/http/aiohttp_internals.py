"""The parts of aiohttp that its documentation does not promise: all that the server uses of it.

`tests/http/test_aiohttp_internals.py` asserts their names, signatures and results, for the compiled
parser and for the one in Python.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _without_client() -> Iterator[None]:
    """Import modules of aiohttp without the package's own code.

    `aiohttp.http` exports the parser. But importing it runs the package's code, which imports
    aiohttp's client, connector, cookies and forms: 60 ms and 7 MiB of each start. Here an empty
    package stands for it, and a later ``import aiohttp`` loads the real package.
    """
    spec = importlib.util.find_spec("aiohttp") if "aiohttp" not in sys.modules else None
    if spec is not None:
        sys.modules["aiohttp"] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        if spec is not None:
            del sys.modules["aiohttp"]


with _without_client():
    from aiohttp.base_protocol import BaseProtocol
    from aiohttp.http_exceptions import HttpProcessingError
    from aiohttp.http_parser import HttpRequestParser
    from aiohttp.http_parser import RawRequestMessage as Head

_NO_LOOP: Any = object()
_NO_PROTOCOL = BaseProtocol(_NO_LOOP)
"""The parser passes them on to bodies, which it never sees."""

_LIMIT = 2**16
"""Bytes of a body at which the parser would pause."""


def parse_head(head: bytes, max_line: int) -> Head | None:
    """Parse the complete head of one request, by a parser that sees nothing else.

    Args:
        head: from the request line to the empty line.
        max_line: the most bytes of a line in it.

    Returns:
        The head's parts, or None if the parser does not take all of it for one head.

    Raises:
        HttpProcessingError, ValueError: it is malformed.
    """
    parser = HttpRequestParser(
        _NO_PROTOCOL,
        _NO_LOOP,
        _LIMIT,
        max_line_size=max_line,
        max_field_size=max_line,
        response_with_body=False,  # the head is all there is, whatever it announces
    )
    messages, _, rest = parser.feed_data(head)
    if len(messages) != 1 or rest:
        return None
    message: Head = messages[0][0]
    # The parsed head, written down again, must equal the bytes received: the request line exactly
    # (it also takes RTSP/1.0), then as many lines as there are fields, and the empty one.
    line = f"{message.method} {message.path} HTTP/{message.version[0]}.{message.version[1]}\r\n"
    is_whole = (
        head.startswith(line.encode("utf-8", "surrogateescape"))
        and head.endswith(b"\r\n\r\n")
        and head.count(b"\r\n") == len(message.raw_headers) + 2
    )
    return message if is_whole else None


__all__ = ["Head", "HttpProcessingError", "HttpRequestParser", "parse_head"]
