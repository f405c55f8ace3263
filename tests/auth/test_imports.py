"""The cost of importing auth."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

from mayfly import auth

HEAVY = ("jwt", "bcrypt", "cryptography", "aiohttp", "tomllib", "mayfly.storage", "mayfly.registry")
LIGHT_MODULES = sorted(
    f"mayfly.auth.{module.name}"
    for module in pkgutil.iter_modules(auth.__path__)
    if module.name not in ("grants", "toml")
)


def test_import_is_light() -> None:
    """No module of auth loads a cryptographic library or another package when imported."""
    code = (
        f"import sys\nfor name in {LIGHT_MODULES}: __import__(name)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
