"""What is imported to serve: little, and enough."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SERVE = """
import asyncio, sys
from registry import startup
{change}
startup.import_server()
from mayfly.registry.http.protocol import HTTPServer
from mayfly.registry.api.context import answer

async def handler(http):
    return answer(body=b"served")

async def main():
    server = await asyncio.get_running_loop().create_server(HTTPServer(handler), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    body = await reader.read()
    assert body.endswith(b"served"), body
    writer.close()
    server.close()

asyncio.run(main())
whole = hasattr(sys.modules["aiohttp.client"], "__file__")
print("whole" if whole else "server only", *sorted(sys.modules))
"""


def _imported(change: str = "") -> list[str]:
    """Serve one request in a fresh process; whether aiohttp came whole, and what is imported."""
    command = [sys.executable, "-c", _SERVE.format(change=change)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_server_imports_no_client() -> None:
    """aiohttp's client is not imported, nor what only the client needs."""
    imported = _imported()
    assert imported[:2] == ["server", "only"]
    assert "aiohttp.client_ws" not in imported


def test_an_aiohttp_that_needs_more_is_imported_whole() -> None:
    """Where what is left out turns out to be needed, nothing is left out, and it serves."""
    imported = _imported("startup.CLIENT += ('aiohttp.helpers',)")
    assert imported[0] == "whole"


@pytest.mark.parametrize(
    "rare", ["tomllib", "jwt", "cryptography", "bcrypt", "mayfly.storage.images"]
)
def test_what_an_open_server_does_not_need_waits(rare: str) -> None:
    """Start-up time is a feature: what serves later, or others, is imported then or by them."""
    assert rare not in _imported()
