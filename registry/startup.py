"""Starting fast: what is worth doing before the server's modules are imported."""

from __future__ import annotations

import os
from types import ModuleType


def import_server() -> ModuleType:
    """Import `registry.server` without paying for aiohttp's client.

    aiohttp makes the TLS context of its client when it is imported, and reads the system's whole
    CA bundle for it: about a third of our start-up time. A registry is no client; for the moment
    of the import OpenSSL is shown an empty bundle. What does speak TLS as a client (copying from
    another registry) makes a context of its own.
    """
    saved = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = os.devnull
    try:
        from registry import server
    finally:
        if saved is None:
            del os.environ["SSL_CERT_FILE"]
        else:
            os.environ["SSL_CERT_FILE"] = saved
    return server
