"""The files of the page that browsers load: style, scripts and icon."""

from __future__ import annotations

import hashlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

TYPES: Mapping[str, str] = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

NAMES = (
    "page.css",
    "page.js",
    "feed.js",
    "format.js",
    "layers.js",
    "lists.js",
    "matrix.js",
    "icon.svg",
)
"""All of them; nothing else is served."""


class PageFile(NamedTuple):
    """A file.

    Attributes:
        body: its bytes.
        content_type: as a browser is told.
        etag: changes with the content.
    """

    body: bytes
    content_type: str
    etag: str


def find(name: str) -> PageFile | None:
    """Return a file; None if the page has none of this name. Reads at the first call."""
    return _read(name) if name in NAMES else None


@cache
def _read(name: str) -> PageFile:
    body = pkgutil.get_data("mayfly.registry.page", f"static/{name}")
    assert body is not None
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return PageFile(body, TYPES[name.rpartition(".")[2]], etag)


def text(name: str) -> str:
    """Return a file of the page as text."""
    return _read(name).body.decode()
