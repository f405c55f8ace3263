"""How much is tried: little in `make test`, much in `make soak`; and the seed it starts from."""

from __future__ import annotations

import os
import secrets

REQUESTS = int(os.environ.get("MAYFLY_FUZZ_REQUESTS", "1000"))
"""Mutated requests that the servers of `tests.fuzz.test_wire` get in all."""

EXAMPLES = int(os.environ.get("MAYFLY_FUZZ_EXAMPLES", "60"))
"""Examples of each property test."""

SEED = int(os.environ.get("MAYFLY_FUZZ_SEED") or secrets.randbelow(2**32))
"""Seed of the mutations; each failure names it, and given again it sends the same bytes."""
