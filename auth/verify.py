"""Checks names and passwords.

bcrypt is slow on purpose, so each result is remembered for `REMEMBERED` seconds: two hundred nodes
with one pull credential, or one node that repeats a stale one, cost one bcrypt. Results are stored
under an HMAC-SHA256 of name and password, with a key that exists only in this process. All of them
are forgotten when the users change.

An unknown user takes as long as a known one: bcrypt runs against a made-up hash. Its cost is chosen
from those in the file by a keyed hash of the name, so that, with mixed costs too, unknown names are
slow or fast in the same proportion as known ones, and the same name always is.
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
"""Seconds for which a result is remembered."""

MAX_REMEMBERED = 1024
"""Most results of each kind; failures cannot displace successes."""

Result = Identity | Literal[False]

_MADE_UP_HASH = b"." * 53  # salt and hash of well-formed bcrypt; nothing is known to give it


class CredentialVerifier:
    """Checks names and passwords. Safe for use from several threads.

    Args:
        users: returns the users of this moment; the same object until they change
            (an `registry.access.watch.FileBacked` does).
        robots: checks short-lived credentials; None if there are none.
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
        self._right: BoundedDict[bytes, tuple[float, Result]] = BoundedDict(MAX_REMEMBERED)
        self._wrong: BoundedDict[bytes, tuple[float, Result]] = BoundedDict(MAX_REMEMBERED)

    def digest(self, name: str, password: str) -> bytes:
        """Return a key for these credentials that does not reveal them, valid in this process."""
        encoded = name.encode("utf-8", "surrogatepass")
        text = len(encoded).to_bytes(8) + encoded + password.encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, text, "sha256")

    def recall(self, name: str, password: str) -> Identity | None:
        """Return the caller if no bcrypt is needed: remembered, or a short-lived credential.

        Takes microseconds. None means that they have to be checked.
        """
        if name.startswith(ROBOT_PREFIX):
            try:
                return self._robot(name, password)
            except CredentialsInvalid:
                return None
        return self._remembered(self._users(), self.digest(name, password)) or None

    def check(self, name: str, password: str) -> Identity:
        """Return the caller. Takes one bcrypt unless remembered: to be called in a thread.

        Raises:
            CredentialsInvalid: unknown user, wrong password, or an expired credential.
        """
        if name.startswith(ROBOT_PREFIX):
            return self._robot(name, password)
        encoded = password_bytes(password)
        # No user has such a password, so that a quick answer reveals nothing about the name.
        if encoded is None:
            raise CredentialsInvalid
        users = self._users()
        digest = self.digest(name, password)
        result = self._remembered(users, digest)
        if result is None:
            result = self._bcrypt(users, name, encoded) and _identity(users, name)
            self._remember(users, digest, result)
        if not result:
            raise CredentialsInvalid
        return result

    def renew(self, identity: Identity) -> Identity:
        """Return the owner of a refresh token, as of now.

        A short-lived credential is returned unchanged: it expires by itself.

        Raises:
            TokenInvalid: the user was removed or has another password (``revoked``).
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

    def _remembered(self, users: Users, digest: bytes) -> Result | None:
        now = self._clock()
        with self._lock:
            self._follow(users)
            for table in (self._right, self._wrong):
                until, result = table.get(digest, (now, False))
                if until > now:
                    return result
        return None

    def _remember(self, users: Users, digest: bytes, result: Result) -> None:
        table = self._right if result else self._wrong
        with self._lock:
            if users is not self._known_users:
                return
            table[digest] = (self._clock() + REMEMBERED, result)

    def _follow(self, users: Users) -> None:
        if users is not self._known_users:
            self._known_users = users
            self._right.clear()
            self._wrong.clear()


def _identity(users: Users, name: str) -> Identity:
    return Identity(name, "basic", fingerprint=users.fingerprint(name))
