"""From settings to the users, their grants, and how they prove who they are."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from auth import grants, signing
from auth.errors import AuthError, PolicyFileInvalid
from auth.generate import OneRun, one_run
from auth.login import Logins
from auth.policy import ANYONE, EVERYTHING, Grant, Policy
from auth.robots import Robots
from auth.roles import Role
from auth.throttle import Throttle
from auth.tokens import TokenIssuer
from auth.users import Users, load_users
from auth.verify import CredentialVerifier
from auth.watch import FileBacked
from registry.config import Settings
from registry.guard import REALM, Authentication
from registry.lifetime.state import CREDENTIALS, SIGNING_KEY
from registry.trust.files import Attributes, publish

logger = logging.getLogger("mayfly")

_PRIVATE = Attributes(0o600)


def identities(
    settings: Settings, choice: Path | str
) -> tuple[Callable[[], Policy], Authentication, OneRun | None]:
    """The policy of each moment, the authentication, and the users made for this run.

    Args:
        choice: of ``--auth``: ``auto``, or the directory of ``htpasswd`` and ``grants.toml``.

    Raises:
        AuthError: a policy file or the signing key cannot be used.
        OSError: the state directory cannot be written.
    """
    users: Callable[[], Users]
    policy: Callable[[], Policy]
    made: OneRun | None = None
    if isinstance(choice, str):
        made = one_run()
        fixed_users, fixed_policy = made.users, made.policy
        users, policy = (lambda: fixed_users), (lambda: fixed_policy)
        _publish_users(settings.state_dir, made)
    else:
        users = FileBacked(choice / "htpasswd", load_users, _broken, _reloaded)
        policy = FileBacked(choice / "grants.toml", grants.load_grants, _broken, _reloaded)
    if settings.anonymous:
        policy = _with_anonymous_pull(policy)
    return policy, _authentication(settings, users), made


def _authentication(settings: Settings, users: Callable[[], Users]) -> Authentication:
    key = signing.load_key(settings.signing_key) if settings.signing_key else signing.new_key()
    publish(settings.state_dir / SIGNING_KEY, key, _PRIVATE)
    robots = Robots(key)
    verifier = CredentialVerifier(users, robots)
    logins = Logins(verifier, Throttle())
    return Authentication(verifier, logins, TokenIssuer(key, REALM), robots)


def _with_anonymous_pull(policy: Callable[[], Policy]) -> Callable[[], Policy]:
    """The policy of each moment, and pull for everyone; made anew only when the policy is."""
    grant = Grant(ANYONE, Role.LIMITED_GUEST, EVERYTHING)
    before = policy()
    opened = before.with_grants(grant)

    def current() -> Policy:
        nonlocal before, opened
        now = policy()
        if now is not before:
            before, opened = now, now.with_grants(grant)
        return opened

    return current


def _publish_users(state_dir: Path, made: OneRun) -> None:
    document = {one.name: one.password for one in (made.admin, made.pull)}
    publish(state_dir / CREDENTIALS, json.dumps(document).encode() + b"\n", _PRIVATE)


def _broken(error: AuthError) -> None:
    where = error.path if isinstance(error, PolicyFileInvalid) else "a policy file"
    logger.error("%s not reloaded, the old content stays in force: %s", where, error)


def _reloaded(path: Path) -> None:
    logger.warning("%s reloaded", path)
