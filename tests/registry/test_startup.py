"""What is imported to serve: little, and enough."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.support.commands import environment
from tests.support.process import Mayfly, remove_tree

BACKGROUND = {"jwt", "cryptography", "_cffi_backend"}
"""Packages that a thread imports after the start, or with it."""

_SERVE = """
import asyncio, sys
from mayfly.registry import startup
startup.import_server()
from mayfly.registry.http.connection import HTTPServer
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
print(*sorted(sys.modules))
"""


@cache
def _imported() -> list[str]:
    """Serve one request in a fresh process, and return what is imported."""
    command = [sys.executable, "-c", _SERVE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_server_imports_no_framework() -> None:
    """Of aiohttp the parser is imported, neither its client nor its web server."""
    imported = _imported()
    assert "aiohttp.http_parser" in imported
    strangers = ("aiohttp.client", "aiohttp.web", "aiohttp.connector", "aiohttp.cookiejar")
    assert [name for name in imported if name.startswith(strangers)] == [
        "aiohttp.client_exceptions"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "aiofiles",
        "bcrypt",
        "cryptography",
        "jwt",
        "mayfly.storage.bundle.verified",
        "mayfly.storage.images",
        "tomllib",
    ],
)
def test_what_an_open_server_does_not_need_waits(name: str) -> None:
    """Start-up time is a feature: what serves later, or others, is imported then or by them."""
    assert name not in _imported()


MOST_MODULES = {(): (163, 439), ("--tls", "auto", "--auth", "auto"): (187, 472)}
"""The most modules, ours and all, that ``serve`` may have imported when ready, by its options.

Each costs a start some 0.2 ms. Raise a number only for a module that every start needs.
"""


@pytest.mark.parametrize("options", MOST_MODULES, ids=" ".join)
def test_modules_imported_when_ready(workspace: Path, options: tuple[str, ...]) -> None:
    """A start imports no more modules than it needs."""
    env = environment(PYTHONPROFILEIMPORTTIME="1")
    home = Path(tempfile.mkdtemp(prefix="own-", dir=workspace))
    server = Mayfly(home / "root", home / "state", *options, env=env)
    try:
        lines = [line for line in server.output().splitlines() if line.startswith("import time:")]
    finally:
        server.stop()
        remove_tree(home)
    names = {line.rpartition("|")[2].strip() for line in lines} - {"imported package"}
    # Tokens' library is imported in the background, for as long as it takes.
    names = {name for name in names if name.partition(".")[0] not in BACKGROUND}
    ours = {name for name in names if name.partition(".")[0] == "mayfly"}
    most_of_ours, most = MOST_MODULES[options]
    assert len(ours) <= most_of_ours, sorted(ours)
    assert len(names) <= most, sorted(names - ours)


_CLIENT = """
import ssl
from mayfly.registry import startup
before = ssl.SSLContext.load_default_certs
startup.import_client()
import aiohttp.connector
assert ssl.SSLContext.load_default_certs is before
assert "set_default_verify_paths" not in vars(ssl.SSLContext)
verified = aiohttp.connector._SSL_CONTEXT_VERIFIED
assert verified.verify_mode == ssl.CERT_REQUIRED, verified.verify_mode
print(len(verified.get_ca_certs()), len(ssl.create_default_context().get_ca_certs()))
"""


def test_a_client_loads_no_trust_of_its_own() -> None:
    """A context that aiohttp makes while it is imported trusts nobody; later ones are as usual."""
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    own, usual = map(int, done.stdout.split())
    assert own == 0
    assert usual > 0
