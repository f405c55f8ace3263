"""Starting fast: what is worth doing while the server's modules are imported."""

from __future__ import annotations

import gc
import sys
from types import ModuleType

CLIENT = (
    "aiohttp.client",
    "aiohttp.client_middleware_digest_auth",
    "aiohttp.client_middlewares",
    "aiohttp.connector",
    "aiohttp.cookiejar",
    "aiohttp.resolver",
    "aiohttp.tracing",
)
"""aiohttp's client, which its package imports whatever is asked of it."""


def import_server() -> ModuleType:
    """Import `registry.server`, and of aiohttp only what serves.

    A registry is no client: what copies from another registry is a process of its own. Garbage is
    not collected meanwhile, and never again among what was imported: all of it stays.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        import_aiohttp(without=CLIENT)
        from mayfly.registry import server
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
    return server


def import_aiohttp(without: tuple[str, ...]) -> None:
    """Import aiohttp's server without some of its other modules, a third of its import time.

    Should a future aiohttp not serve without one of them, it is imported whole.
    """
    sys.modules.update({name: _Absent(name) for name in without if name not in sys.modules})
    try:
        import aiohttp.web_server  # noqa: F401 - this is the import that saves
    except Exception:
        for name in [name for name in sys.modules if name.partition(".")[0] == "aiohttp"]:
            del sys.modules[name]


class _Absent(ModuleType):
    """Stands in for a module that is not imported: every name in it is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
