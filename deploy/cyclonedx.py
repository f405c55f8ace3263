"""The parts of a file that is built, in CycloneDX 1.6; both builders import this."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path


def bill(components: Sequence[dict[str, object]], version: str) -> dict[str, object]:
    """Return the document that lists components of this version of Mayfly."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "mayfly", "version": version}},
        "components": components,
    }


def distribution(name: str, version: str) -> dict[str, object]:
    """Return the component for a Python distribution."""
    normalized = re.sub(r"[-_.]+", "-", name).lower()
    purl = f"pkg:pypi/{normalized}@{version}"
    return {"type": "library", "name": name, "version": version, "purl": purl}


def hashes(path: Path) -> list[dict[str, str]]:
    """Return the digest of a file."""
    return [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}]
