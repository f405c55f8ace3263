"""The lock on a directory of keys or node configuration: one Mayfly process at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mayfly.registry.pki.errors import TrustError
from mayfly.storage.files import locked_at_once


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make ``directory`` if need be, and keep other processes out of it meanwhile.

    Raises:
        TrustError: another process holds it.
        OSError: it cannot be made.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked_at_once(directory))
        except BlockingIOError:
            raise TrustError(
                f"{directory}: another mayfly process is at work here; try again when it is done"
            ) from None
        yield
