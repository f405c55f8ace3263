"""CRI-O: a drop-in that pins images; mirrors and trust are podman's files.

CRI-O takes ``pinned_images`` of the last file that has it, at its start and on SIGHUP. A name is
matched exactly, unless it has a ``*`` at its end or at both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from mayfly.registry.nodes.merging import read_toml, table_at
from mayfly.registry.nodes.plan import PlannedFile
from mayfly.registry.pki.errors import TrustError

PINS_CONF = "/etc/crio/crio.conf.d/50-mayfly-pins.conf"


def pins_file(images: Iterable[str]) -> PlannedFile:
    """Return the drop-in that pins images, by their full names."""
    lines = ",\n".join(f"  {_toml_text(name)}" for name in images)
    return PlannedFile(PINS_CONF, f"[crio.image]\npinned_images = [\n{lines}\n]\n".encode())


def pinned_in(existing: bytes) -> list[str]:
    """Return the images that a configuration of CRI-O pins.

    Raises:
        TrustError: it is none.
    """
    image = table_at(table_at(read_toml(existing), "crio"), "image")
    pinned = image.get("pinned_images", [])
    if not isinstance(pinned, list) or not all(isinstance(name, str) for name in pinned):
        raise TrustError("--merge: pinned_images is not a list of strings")
    return pinned


def _toml_text(text: str) -> str:
    # TOML has no pairs of surrogates, and does not take DEL as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
