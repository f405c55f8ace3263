"""Sets up users, grants and authentication from the settings."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from mayfly.auth import signing
from mayfly.auth.errors import AuthError
from mayfly.auth.generate import EphemeralUsers, ephemeral_users
from mayfly.auth.policy import ANYONE, EVERYTHING, Grant, Policy
from mayfly.auth.robots import Robots
from mayfly.auth.roles import Role
from mayfly.auth.throttle import Throttle
from mayfly.auth.tokens import TokenIssuer
from mayfly.auth.users import Users
from mayfly.auth.verify import CredentialVerifier
from mayfly.registry.access import files
from mayfly.registry.access.errors import PolicyFileInvalid
from mayfly.registry.access.guard import REALM, Authentication
from mayfly.registry.access.logins import Logins
from mayfly.registry.access.policy_files import load_grants, load_key, load_users
from mayfly.registry.access.watch import FileBacked
from mayfly.registry.settings.choices import Anonymous
from mayfly.registry.settings.settings import Settings
from mayfly.registry.state.directory import CREDENTIALS, SIGNING_KEY
from mayfly.registry.state.runs import Run
from mayfly.storage.files import Attributes, replace_file

logger = logging.getLogger("mayfly")

_PRIVATE = Attributes(0o600)


def identities(
    settings: Settings, choice: Path | str, run: Run
) -> tuple[Callable[[], Policy], Authentication, EphemeralUsers | None]:
    """Return a function that gives the current policy, the authentication, and the run's users.

    Args:
        choice: of ``--auth``: ``auto``, or the directory of ``htpasswd`` and ``grants.toml``.
        run: the run that users and tokens belong to; a continued one keeps those it has.

    Raises:
        AuthError: a policy file or the signing key cannot be used.
        OSError: the state directory cannot be written.
    """
    users: Callable[[], Users]
    policy: Callable[[], Policy]
    made: EphemeralUsers | None = None
    if isinstance(choice, str):
        made = ephemeral_users(_passwords(settings.state_dir) if run.continued else None)
        fixed_users, fixed_policy = made.users, made.policy
        users, policy = (lambda: fixed_users), (lambda: fixed_policy)
        _publish_users(settings.state_dir, made)
    else:
        users = FileBacked(choice / "htpasswd", load_users, _broken, _reloaded)
        policy = FileBacked(choice / "grants.toml", load_grants, _broken, _reloaded)
    if settings.anonymous is Anonymous.PULL:
        policy = _with_anonymous_pull(policy)
    return policy, _authentication(settings, users, run), made


def _authentication(settings: Settings, users: Callable[[], Users], run: Run) -> Authentication:
    key = _signing_key(settings, run)
    robots = Robots(key, run.id)
    verifier = CredentialVerifier(users, robots)
    logins = Logins(verifier, Throttle())
    return Authentication(verifier, logins, TokenIssuer(key, REALM, run.id), robots)


def _signing_key(settings: Settings, run: Run) -> bytes:
    """Return the operator's key or the run's own; a copy is left for `mayfly credentials`."""
    copy = settings.state_dir / SIGNING_KEY
    before = _earlier_key(copy) if run.continued else None
    if settings.signing_key is not None:
        key = load_key(settings.signing_key)
    elif run.continued and not run.earlier_key_file and copy.exists():
        return load_key(copy)
    else:
        key = signing.new_key()
    if before not in (None, key):
        logger.warning(
            "changed since the previous start: the signing key; tokens and credentials "
            "signed with the earlier one are refused"
        )
    replace_file(copy, key, _PRIVATE)
    return key


def _earlier_key(copy: Path) -> bytes | None:
    """Return the key of the previous start; None if it had none."""
    try:
        return files.read(copy, files.PRIVATE).strip()
    except PolicyFileInvalid:
        return None


def _with_anonymous_pull(policy: Callable[[], Policy]) -> Callable[[], Policy]:
    """Add pull for everyone to a policy; built again only when the policy changes."""
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


def _passwords(state_dir: Path) -> dict[str, str]:
    """Return the passwords of a continued run by user; empty where the earlier start made none."""
    path = state_dir / CREDENTIALS
    if not path.exists():
        return {}
    try:
        found = json.loads(files.read(path, files.PRIVATE))
        return {str(name): str(password) for name, password in found.items()}
    except (ValueError, AttributeError):
        raise PolicyFileInvalid(path, "is damaged", "remove it for new users") from None


def _publish_users(state_dir: Path, made: EphemeralUsers) -> None:
    document = {one.name: one.password for one in (made.admin, made.pull)}
    replace_file(state_dir / CREDENTIALS, json.dumps(document).encode() + b"\n", _PRIVATE)


def _broken(error: AuthError) -> None:
    where = error.path if isinstance(error, PolicyFileInvalid) else "a policy file"
    logger.error("%s not reloaded, the old content stays in force: %s", where, error)


def _reloaded(path: Path) -> None:
    logger.warning("%s reloaded", path)
