"""What is imported to serve: little, and enough."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.process import Mayfly, remove_tree

BACKGROUND = {"jwt", "cryptography", "_cffi_backend"}
"""Packages that a thread imports after the start, or with it."""

_SERVE = """
import asyncio, sys
from mayfly.registry import startup
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
    imported = _imported("startup.UNUSED += ('aiohttp.helpers',)")
    assert imported[0] == "whole"


@pytest.mark.parametrize(
    "name",
    [
        "aiofiles",
        "bcrypt",
        "cryptography",
        "http.client",
        "jwt",
        "mayfly.storage.bundle.verified",
        "mayfly.storage.images",
        "tomllib",
        "urllib.request",
    ],
)
def test_what_an_open_server_does_not_need_waits(name: str) -> None:
    """Start-up time is a feature: what serves later, or others, is imported then or by them."""
    assert name not in _imported()


def test_deferred_modules_are_whole_at_their_first_use() -> None:
    """A module whose import waits is the real one as soon as a name in it is used."""
    use = """
import attr, idna, attr.validators, urllib.request
from attr.validators import instance_of
assert isinstance(idna.encode("münchen"), bytes)
assert instance_of(int).type is attr.validators.instance_of(int).type is int
assert callable(urllib.request.urlopen)
"""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from mayfly.registry import startup\nstartup.import_server()\n{use}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


MOST_MODULES = {(): (158, 432), ("--tls", "auto", "--auth", "auto"): (180, 465)}
"""The most modules, ours and all, that ``serve`` may have imported when ready, by its options.

Each costs a start some 0.2 ms. Raise a number only for a module that every start needs.
"""


@pytest.mark.parametrize("options", MOST_MODULES, ids=" ".join)
def test_modules_imported_when_ready(workspace: Path, options: tuple[str, ...]) -> None:
    """A start imports no more modules than it needs."""
    env = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
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
