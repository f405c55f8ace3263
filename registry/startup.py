"""Imports the server, or the client, fast: without what neither needs, and without pauses.

aiohttp's package imports its client, websockets, forms, cookies and compression, whatever is asked
of it. None of them is used to serve a registry, and together they take a third of the time of the
import. So empty modules stand in for them while the server is imported:

    UNUSED     stay empty: parts of aiohttp that a server never calls
    DEFERRED   become the real module at the first use of a name in it
    ELSEWHERE  empty during the import only: modules that other code may need later

The client is imported whole, but it does not load the system's CAs, twice, for contexts that
`registry.upstream` does not use.
"""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from types import ModuleType
from typing import Any

UNUSED = (
    "aiohttp._cookie_helpers",
    "aiohttp.client",
    "aiohttp.client_middleware_digest_auth",
    "aiohttp.client_middlewares",
    "aiohttp.compression_utils",
    "aiohttp.connector",
    "aiohttp.cookiejar",
    "aiohttp.formdata",
    "aiohttp.http_websocket",
    "aiohttp.multipart",
    "aiohttp.payload",
    "aiohttp.payload_streamer",
    "aiohttp.resolver",
    "aiohttp.tracing",
    "aiohttp.web_exceptions",
)

DEFERRED = ("attr.validators", "idna")
"""Imported by attrs and yarl at their start, used for other validators and hosts than ours."""

ELSEWHERE = ("urllib.request",)
"""aiohttp's helpers take from it what finds the proxies of a client."""

_LOADERS = ("load_default_certs", "set_default_verify_paths")
"""Methods of a TLS context that load CAs of the system; a class above may have them."""


def import_server(*, as_client: bool = False) -> ModuleType:
    """Import `registry.server`, and of aiohttp only what serves.

    The garbage collector is off meanwhile, and what was imported is exempt from it for good.

    Args:
        as_client: whether the server will send requests of its own: aiohttp is imported whole.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        if not as_client:
            import_aiohttp()
        from mayfly.registry import server
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
    return server


def import_client() -> None:
    """Import aiohttp with its client. TLS contexts that it makes for itself trust nobody."""
    import ssl

    own = {name: vars(ssl.SSLContext).get(name) for name in _LOADERS}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for name in _LOADERS:
            setattr(ssl.SSLContext, name, _load_nothing)
        import aiohttp  # noqa: F401 - this is the import that saves
    finally:
        for name, method in own.items():
            delattr(ssl.SSLContext, name)
            if method is not None:
                setattr(ssl.SSLContext, name, method)
        gc.freeze()
        if collecting:
            gc.enable()


def _load_nothing(context: object, *purpose: object) -> None:
    """Stands in for the methods that load CAs."""


def import_aiohttp() -> None:
    """Import aiohttp's server without the modules above.

    Should a future aiohttp not serve without one of them, it is imported whole.
    """
    stand_ins: dict[str, ModuleType] = {name: _Unused(name) for name in (*UNUSED, *ELSEWHERE)}
    stand_ins |= {name: _Deferred(name) for name in DEFERRED}
    stand_ins = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        import aiohttp.web_server  # noqa: F401 - this is the import that saves
    except Exception:
        for name in [*sys.modules]:
            if name in stand_ins or name.partition(".")[0] == "aiohttp":
                del sys.modules[name]
    for name in ELSEWHERE:
        if name in stand_ins:
            sys.modules.pop(name, None)


class _Unused(ModuleType):
    """Stands in for a module that is not imported: every name in it is an empty exception class.

    A class serves where only its name is needed, an exception also in an ``except``.
    """

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


class _Deferred(ModuleType):
    """Stands in for a module until a name in it is used, and passes on to it from then on."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        with _importing:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
            return getattr(importlib.import_module(self.__name__), name)


_importing = threading.RLock()
