"""Checking a name and password.

bcrypt is slow on purpose, so each verdict is remembered for `REMEMBERED` seconds: two hundred
nodes with one pull credential, or one node that repeats a stale one, cost one bcrypt. What is
remembered is an HMAC-SHA256 of name and password under a key that lives and dies with the process.
All verdicts are forgotten when the users change.

An unknown user takes as long as a known one: bcrypt then runs against a made-up hash. Its cost is
picked from those in the file by a keyed hash of the name, so that with mixed costs too an unknown
name is slow or fast in the same proportion as known ones, and always the same.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable
from typing import Literal

from mayfly.auth.errors import CredentialsInvalid, TokenInvalid
from mayfly.auth.identity import ROBOT_PREFIX, Identity
from mayfly.auth.limits import BoundedDict
from mayfly.auth.robots import Robots
from mayfly.auth.users import DEFAULT_ROUNDS, Users, password_bytes

REMEMBERED = 60.0
"""Seconds a verdict is remembered."""

MAX_REMEMBERED = 1024
"""Verdicts remembered of each kind; guesses cannot push out successes."""

Verdict = Identity | Literal[False]

_MADE_UP_HASH = b"." * 53  # salt and hash of well-formed bcrypt; nothing is known to give it


class CredentialVerifier:
    """Knows whose name and password are right. Safe for use from several threads.

    Args:
        users: gives the users of this moment; the same object until they change
            (an `registry.access.watch.FileBacked` does).
        robots: checks short-lived credentials; None where there are none.
        clock: seconds, monotonic.
        wall_clock: Unix seconds.
    """

    def __init__(
        self,
        users: Callable[[], Users],
        robots: Robots | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._users = users
        self._robots = robots
        self._clock = clock
        self._wall_clock = wall_clock
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._known_users = users()
        self._right: BoundedDict[bytes, tuple[float, Verdict]] = BoundedDict(MAX_REMEMBERED)
        self._wrong: BoundedDict[bytes, tuple[float, Verdict]] = BoundedDict(MAX_REMEMBERED)

    def digest(self, name: str, password: str) -> bytes:
        """A name for these credentials that does not hold them, valid in this process."""
        encoded = name.encode("utf-8", "surrogatepass")
        text = len(encoded).to_bytes(8) + encoded + password.encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, text, "sha256")

    def recall(self, name: str, password: str) -> Identity | None:
        """The caller, if that can be told without bcrypt: remembered, or a short-lived credential.

        Takes microseconds. None says nothing about the credentials.
        """
        if name.startswith(ROBOT_PREFIX):
            try:
                return self._robot(name, password)
            except CredentialsInvalid:
                return None
        return self._remembered(self._users(), self.digest(name, password)) or None

    def check(self, name: str, password: str) -> Identity:
        """The caller. Takes one bcrypt unless the verdict is remembered: call it in a thread.

        Raises:
            CredentialsInvalid: unknown user, wrong password, or an expired credential.
        """
        if name.startswith(ROBOT_PREFIX):
            return self._robot(name, password)
        encoded = password_bytes(password)
        # No user's, whoever asks: answered at once it tells nothing about the name.
        if encoded is None:
            raise CredentialsInvalid
        users = self._users()
        digest = self.digest(name, password)
        verdict = self._remembered(users, digest)
        if verdict is None:
            verdict = self._bcrypt(users, name, encoded) and _identity(users, name)
            self._remember(users, digest, verdict)
        if not verdict:
            raise CredentialsInvalid
        return verdict

    def renew(self, identity: Identity) -> Identity:
        """The caller a refresh token names, as of now.

        A short-lived credential stands as it is: it ends by itself.

        Raises:
            TokenInvalid: the user is gone or has another password (``revoked``).
        """
        if identity.permissions is not None:
            return identity
        users = self._users()
        current = users.fingerprint(identity.name)
        if not current or not hmac.compare_digest(current, identity.fingerprint):
            raise TokenInvalid("revoked")
        return _identity(users, identity.name)

    def _robot(self, name: str, password: str) -> Identity:
        if self._robots is None:
            raise CredentialsInvalid
        return self._robots.verify(name, password, self._wall_clock())

    def _bcrypt(self, users: Users, name: str, password: bytes) -> bool:
        import bcrypt

        found = users.hash_of(name)
        if found is None:
            bcrypt.checkpw(password, self._made_up(users, name))
            return False
        return bcrypt.checkpw(password, found)

    def _made_up(self, users: Users, name: str) -> bytes:
        costs = users.costs or (DEFAULT_ROUNDS,)
        pick = int.from_bytes(self.digest(name, "")[:8])
        return b"$2b$%02d$" % costs[pick % len(costs)] + _MADE_UP_HASH

    def _remembered(self, users: Users, digest: bytes) -> Verdict | None:
        now = self._clock()
        with self._lock:
            self._follow(users)
            for table in (self._right, self._wrong):
                until, verdict = table.get(digest, (now, False))
                if until > now:
                    return verdict
        return None

    def _remember(self, users: Users, digest: bytes, verdict: Verdict) -> None:
        table = self._right if verdict else self._wrong
        with self._lock:
            if users is not self._known_users:
                return
            table[digest] = (self._clock() + REMEMBERED, verdict)

    def _follow(self, users: Users) -> None:
        if users is not self._known_users:
            self._known_users = users
            self._right.clear()
            self._wrong.clear()


def _identity(users: Users, name: str) -> Identity:
    return Identity(name, "basic", fingerprint=users.fingerprint(name))
