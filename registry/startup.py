"""Imports the server, or aiohttp's client, without pauses of the garbage collector.

The client does not load the system's CAs, twice, for contexts that `registry.upstream` does not
use.
"""

from __future__ import annotations

import gc
from types import ModuleType

_LOADERS = ("load_default_certs", "set_default_verify_paths")
"""Methods of a TLS context that load CAs of the system; a class above may have them."""


def import_server() -> ModuleType:
    """Import `registry.server`.

    The garbage collector is off meanwhile, and the imported objects are exempt from it for good.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
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
