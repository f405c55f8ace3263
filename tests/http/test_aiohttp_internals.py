"""What the server uses of aiohttp without a promise: each name, as it has to be."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import aiohttp.base_protocol
import aiohttp.http
import pytest
from aiohttp import http_parser

from mayfly.registry.http import aiohttp_internals
from mayfly.registry.http.framing import MAX_HEAD

PARSERS = {"C": http_parser.HttpRequestParserC, "Python": http_parser.HttpRequestParserPy}
HEAD = b"PUT /a?b=%20 HTTP/1.1\r\nHost: x\r\nA: 1\r\nA: 2\r\nContent-Length: 5\r\n\r\n"


def test_names() -> None:
    """The modules that are imported alone hold what `aiohttp.http` exports."""
    assert http_parser.HttpRequestParser is aiohttp.http.HttpRequestParser
    assert aiohttp_internals.HttpRequestParser is aiohttp.http.HttpRequestParser
    assert aiohttp_internals.HttpProcessingError is aiohttp.http.HttpProcessingError
    assert issubclass(aiohttp.http.HttpProcessingError, Exception)


def test_signatures() -> None:
    """The parser takes what it is given: three arguments by place, three by name."""
    taken = inspect.signature(http_parser.HttpRequestParserPy).parameters
    assert [*taken][:3] == ["protocol", "loop", "limit"]
    assert {"max_line_size", "max_field_size", "response_with_body"} <= set(taken)
    required = [n for n, p in taken.items() if p.default is p.empty]
    assert set(required) <= {"protocol", "loop", "limit"}
    assert [*inspect.signature(http_parser.HttpRequestParserPy.feed_data).parameters][:2] == [
        "self",
        "data",
    ]
    made = inspect.signature(aiohttp.base_protocol.BaseProtocol).parameters
    assert [n for n, p in made.items() if p.default is p.empty] == ["loop"]


@pytest.mark.parametrize("name", PARSERS)
def test_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head's parts, and nothing of the body that it announces."""
    parser: Any = PARSERS[name]
    monkeypatch.setattr(aiohttp_internals, "HttpRequestParser", parser)
    head = aiohttp_internals.parse_head(HEAD, MAX_HEAD)
    assert head is not None
    assert (head.method, head.path, head.version, head.should_close) == (
        "PUT", "/a?b=%20", (1, 1), False,
    )  # fmt: skip
    assert head.headers.getall("a") == ["1", "2"]
    assert head.raw_headers[0] == (b"Host", b"x")
    with pytest.raises((aiohttp.http.HttpProcessingError, ValueError)):
        aiohttp_internals.parse_head(b"no head\r\n\r\n", MAX_HEAD)
    with pytest.raises(aiohttp.http.HttpProcessingError):
        aiohttp_internals.parse_head(HEAD.replace(b"1", b"1" * 100), 100)


_DEFERRED = """
import sys
from mayfly.registry.http import aiohttp_internals
assert "aiohttp.client" not in sys.modules and "aiohttp.web" not in sys.modules
{use}
import aiohttp
assert aiohttp.ClientSession.__module__ == "aiohttp.client"
from aiohttp.http import HttpProcessingError, HttpRequestParser
assert HttpRequestParser is aiohttp_internals.HttpRequestParser
assert HttpProcessingError is aiohttp_internals.HttpProcessingError
from aiohttp import hdrs, web
assert aiohttp.hdrs is hdrs and aiohttp.web is web and aiohttp.__version__
"""


@pytest.mark.parametrize(
    "use",
    [
        "",
        "from aiohttp import ClientSession",
        "from aiohttp import web",
        "import aiohttp.web",
        "from aiohttp.http import HttpRequestParser",
        "from aiohttp import *",
    ],
)
def test_package_is_whole_once_it_is_used(use: str) -> None:
    """The server imports the parser alone; whatever is used of aiohttp later is all there."""
    done = subprocess.run(
        [sys.executable, "-c", _DEFERRED.format(use=use)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_package_that_is_there_is_left_alone() -> None:
    """Where aiohttp was imported before, it stays."""
    code = "import aiohttp, sys\nfrom mayfly.registry.http import aiohttp_internals\n"
    code += "assert sys.modules['aiohttp'] is aiohttp"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
