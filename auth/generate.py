"""Makes credentials, and writes them in the formats that clients read."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mayfly.auth.errors import InputInvalid
from mayfly.auth.identity import Credential
from mayfly.auth.policy import EVERYTHING, Grant, Policy, Subject, SubjectKind
from mayfly.auth.roles import Role
from mayfly.auth.users import Users

ADMIN_NAME = "admin"
PULL_NAME = "pull"

_ALPHABET = string.ascii_letters + string.digits  # safe in shells, URLs and YAML
_LENGTH = 32  # of 62 characters: 190 bits
_RANDOM_PASSWORD_ROUNDS = 4  # bcrypt's least: there is nothing to guess in 190 random bits
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_SECRET_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_HOST = re.compile(r"[A-Za-z0-9.-]+(?::[0-9]{1,5})?|\[[0-9a-fA-F:.]+\](?::[0-9]{1,5})?")


class EphemeralUsers(NamedTuple):
    """The users of ``--auth auto``, which end with the run, and their grants."""

    admin: Credential
    pull: Credential
    users: Users
    policy: Policy


def random_password() -> str:
    """Return a password that cannot be guessed, of letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))


def ephemeral_users(passwords: Mapping[str, str] | None = None) -> EphemeralUsers:
    """Make the users ``admin`` (everything) and ``pull`` (pull from every repository).

    Args:
        passwords: by user, of a run that continues after a crash; missing ones are made.
    """
    known = passwords or {}
    admin = Credential(ADMIN_NAME, known.get(ADMIN_NAME) or random_password())
    pull = Credential(PULL_NAME, known.get(PULL_NAME) or random_password())
    users = Users({one.name: _hash(one.password) for one in (admin, pull)})
    policy = Policy(
        [
            Grant(Subject(SubjectKind.USER, ADMIN_NAME), Role.ADMIN, EVERYTHING),
            Grant(Subject(SubjectKind.USER, PULL_NAME), Role.LIMITED_GUEST, EVERYTHING),
        ]
    )
    return EphemeralUsers(admin, pull, users, policy)


def _hash(password: str) -> bytes:
    """Return a bcrypt hash of a random password, the same in every start of a run.

    Refresh tokens end when the hash changes, so that they survive a restart. The salt may follow
    from the password: salt prevents tables of guesses, and none contains 190 random bits.
    """
    import bcrypt

    salt = hashlib.sha256(b"salt " + password.encode()).hexdigest()[:21] + "."
    return bcrypt.hashpw(password.encode(), f"$2b${_RANDOM_PASSWORD_ROUNDS:02d}${salt}".encode())


def docker_config(hosts: Sequence[str], credential: Credential) -> dict[str, object]:
    """Return the content of ``~/.docker/config.json`` (and podman's ``auth.json``).

    Args:
        hosts: each ``host`` or ``host:port``, as in image names: of this registry, and of the
            registries that it mirrors.

    Raises:
        InputInvalid: a host is of another form; a URL or path would silently match no image.
    """
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise InputInvalid(f"invalid registry host {host[:64]!r}: expected host or host:port")
    pair = f"{credential.name}:{credential.password}"
    auth = base64.b64encode(pair.encode()).decode()
    return {"auths": {host: {"auth": auth} for host in hosts}}


def kubernetes_secret(
    name: str, namespace: str, hosts: Sequence[str], credential: Credential
) -> dict[str, object]:
    """Return the Secret for ``imagePullSecrets``, of type ``kubernetes.io/dockerconfigjson``.

    Raises:
        InputInvalid: the name is not a DNS subdomain, the namespace not a DNS label (Kubernetes'
            rules, from RFC 1123), or a host as in `docker_config`.
    """
    if len(name) > 253 or not _SECRET_NAME.fullmatch(name):
        raise InputInvalid(
            f"invalid Secret name {name[:64]!r}: lower-case letters, digits, - and ."
        )
    if not _NAMESPACE.fullmatch(namespace):
        raise InputInvalid(
            f"invalid namespace {namespace[:64]!r}: lower-case letters, digits and -"
        )
    config = json.dumps(docker_config(hosts, credential), separators=(",", ":"))
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": base64.b64encode(config.encode()).decode()},
    }
