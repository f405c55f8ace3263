"""Scripts of nodes that wait for one download each, in the state directory.

A script holds a credential. Its file is named by the SHA-256 of its token, so that the directory
tells no token, and is 0600. A token is good for `LIFETIME_SECONDS` while its server runs, and for
one complete download: while one is under way there is no other, and one that breaks leaves the
token as it was.

    HASH            waits
    HASH.sending    is being sent; after a crash of the server it counts as spent
    neither         spent, too old, or never there
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from mayfly.storage.files import Attributes, replace_file

SCRIPTS = "scripts"
LIFETIME_SECONDS = 600

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_SENDING = ".sending"


class Scripts:
    """The scripts in a state directory. Its methods do file I/O.

    Args:
        state_dir: the state directory.
    """

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / SCRIPTS

    def add(self, text: bytes) -> str:
        """Keep a script; the token for its download.

        Raises:
            OSError: it cannot be written.
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self.drop_old()
        token = secrets.token_urlsafe(32)
        replace_file(self._path(token), text, Attributes(0o600))
        return token

    def claim(self, token: str) -> bytes | None:
        """Take a script for a download; None if there is none. Then call `spend` or `give_back`.

        Raises:
            OSError: it cannot be read; it was given back.
        """
        self.drop_old()
        path = self._path(token)
        sending = path.with_name(path.name + _SENDING)
        try:
            path.rename(sending)
        except FileNotFoundError:
            return None
        try:
            return sending.read_bytes()
        except OSError:
            self.give_back(token)
            raise

    def spend(self, token: str) -> None:
        """Remove a script that was downloaded; without success it still counts as spent."""
        path = self._path(token)
        with suppress(OSError):
            path.with_name(path.name + _SENDING).unlink()

    def give_back(self, token: str) -> None:
        """Let a script whose download broke be downloaded again."""
        path = self._path(token)
        with suppress(OSError):
            path.with_name(path.name + _SENDING).rename(path)

    def drop_old(self) -> None:
        """Remove the scripts whose time is over."""
        self._drop(time.time() - LIFETIME_SECONDS)

    def drop_all(self) -> None:
        """Remove every script: their server ends."""
        self._drop(math.inf)

    def _drop(self, oldest: float) -> None:
        with suppress(OSError):
            for path in self._directory.iterdir():
                with suppress(OSError):
                    if path.stat().st_mtime < oldest:
                        path.unlink()

    def _path(self, token: str) -> Path:
        return self._directory / hashlib.sha256(token.encode()).hexdigest()


def is_token(text: str) -> bool:
    """Whether a text has the form of a token."""
    return _TOKEN.fullmatch(text) is not None
