"""A registry in this process: real sockets and handlers, users and grants of the test's choice.

Waits of failed logins are not slept, bcrypt is of the least cost: what is looked at is the right of
each user. `tests.security.servers` runs it as users do.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mayfly.auth import signing
from mayfly.auth.globs import parse_glob
from mayfly.auth.identity import Identity
from mayfly.auth.policy import ANYONE, Grant, Policy, Subject, SubjectKind
from mayfly.auth.robots import Robots
from mayfly.auth.roles import Role
from mayfly.auth.scope import parse_scopes
from mayfly.auth.throttle import Throttle
from mayfly.auth.tokens import TokenIssuer
from mayfly.auth.users import Users, hash_password
from mayfly.auth.verify import CredentialVerifier
from mayfly.registry.access.audit import Audit
from mayfly.registry.access.guard import REALM, Authentication, Guard
from mayfly.registry.access.logins import Logins
from mayfly.registry.api.app import App
from mayfly.registry.api.context import AS_WRITTEN
from mayfly.registry.coverage.observer import Observer
from mayfly.registry.http.send import ContentSender
from mayfly.registry.state.scripts import Scripts
from mayfly.registry.telemetry.metrics import Metrics
from mayfly.registry.telemetry.reading import Reading
from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.bundle.names import BundleNames, ServedNames
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from tests.security.wire import Server
from tests.support.client import Header, basic, bearer
from tests.support.lifecycle_hooks import LifecycleHooks, lifecycle_hooks
from tests.support.on_socket import serving
from tests.support.settings import settings_with

ROUNDS = 4
PASSWORD = "correct horse {}"

GRANTS: tuple[tuple[str, Role, str], ...] = (
    ("admin", Role.ADMIN, "**"),
    ("project-admin", Role.PROJECT_ADMIN, "team/**"),
    ("maintainer", Role.MAINTAINER, "team/**"),
    ("developer", Role.DEVELOPER, "team/**"),
    ("guest", Role.GUEST, "team/**"),
    ("limited-guest", Role.LIMITED_GUEST, "team/**"),
    ("other", Role.DEVELOPER, "other/**"),
)
NOBODY = "nobody"

_HASHES = {name: hash_password(PASSWORD.format(name), ROUNDS) for name, _, _ in GRANTS}
_HASHES[NOBODY] = hash_password(PASSWORD.format(NOBODY), ROUNDS)


def password_of(name: str) -> str:
    """The password of one of `GRANTS`' users."""
    return PASSWORD.format(name)


def by_password(name: str) -> Header:
    """The Authorization header of one of `GRANTS`' users."""
    return basic(name, password_of(name))


class Recorder:
    """Passes everything on to an object and records the names of what is looked up on it.

    Args:
        target: the object.
        label: of its records.
        record: gets ``label.name``.
    """

    def __init__(self, target: object, label: str, record: list[str]) -> None:
        self._target = target
        self._label = label
        self._record = record

    def __getattr__(self, name: str) -> Any:
        self._record.append(f"{self._label}.{name}")
        return getattr(self._target, name)


@dataclass(frozen=True)
class Registry:
    """A running registry, and all that it was made of."""

    server: Server
    root: Path
    store: DistributionStore
    guard: Guard
    key: bytes
    issuer: TokenIssuer
    robots: Robots
    throttle: Throttle
    observer: Observer
    scripts: Scripts
    hooks: LifecycleHooks
    record: list[str]
    """What requests did with the store, the names and the policy, in order; see `Recorder`."""

    def token(
        self, scope: str, *, name: str = "developer", now: float, issuer: TokenIssuer | None = None
    ) -> str:
        """A token that grants exactly a scope, whatever the policy says."""
        identity = Identity(name, "basic")
        return (issuer or self.issuer).issue(identity, parse_scopes([scope]), now).token

    def bearer(self, scope: str, *, now: float) -> Header:
        """The Authorization header of a token that grants exactly a scope."""
        return bearer(self.token(scope, now=now))


@contextlib.asynccontextmanager
async def registry(
    root: Path,
    *,
    anonymous: bool = False,
    users: Mapping[str, bytes] | None = None,
    grants: Iterable[tuple[str, Role, str]] = GRANTS,
    known: Iterable[tuple[str, str]] = (),
) -> AsyncIterator[Registry]:
    """Run a registry while the block runs.

    Args:
        root: of its store.
        anonymous: whether anyone may pull.
        users: their hashes by name; None for those of `GRANTS`.
        grants: of users.
        known: upstream host and repository of what names are resolved by, as by bundles.
    """
    made = [Grant(Subject(SubjectKind.USER, n), role, parse_glob(glob)) for n, role, glob in grants]
    if anonymous:
        made.append(Grant(ANYONE, Role.LIMITED_GUEST, parse_glob("**")))
    policy = Policy(made)
    users_now = Users(_HASHES if users is None else users)
    key = signing.new_key()
    robots, throttle = Robots(key), Throttle()
    verifier = CredentialVerifier(lambda: users_now, robots)
    logins = Logins(verifier, throttle, sleep=_at_once)
    issuer = TokenIssuer(key, REALM)
    authentication = Authentication(verifier, logins, issuer, robots)
    record: list[str] = []
    watched: Any = Recorder(policy, "policy", record)
    guard = Guard(lambda: watched, authentication, lambda _: None, Audit())
    with contextlib.closing(DistributionStore(root)) as store:
        served: Any = Recorder(store, "store", record)
        names: Any = AS_WRITTEN
        if known:
            names = Recorder(ServedNames(BundleNames(known), store.has_repository), "names", record)
        hooks = lifecycle_hooks()
        scripts = Scripts(root)
        metrics = Metrics(Reading, "1")
        app = App(
            served,
            guard,
            hooks,
            ContentSender(),
            settings_with(),
            names,
            scripts=scripts,
            metrics=metrics,
        )
        try:
            async with serving(app) as port:
                server = Server(f"127.0.0.1:{port}")
                observer = hooks.observer
                made_of = (store, guard, key, issuer, robots, throttle)
                yield Registry(server, root, *made_of, observer, scripts, hooks, record)
        finally:
            logins.close()


async def _at_once(_seconds: float) -> None:
    """In place of sleeping."""


def push_blob(store: DistributionStore, repository: str, content: bytes) -> Digest:
    """Put a blob in a repository."""
    digest = digests.of(content)
    upload = store.begin_upload(repository, digest.algorithm)
    upload.write([content], 0)
    upload.commit(digest)
    return digest


def push_image(store: DistributionStore, repository: str, *tags: str) -> Digest:
    """Put an image of its own, of one configuration and no layers, in a repository."""
    config = json.dumps({"made": os.urandom(8).hex()}).encode()
    body = image_manifest(config)
    push_blob(store, repository, config)
    digest = digests.of(body)
    store.put_manifest(repository, manifests.parse(body, None), digest, tags)
    return digest


def image_manifest(config: bytes) -> bytes:
    """The manifest of an image of one configuration and no layers."""
    described = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": str(digests.of(config)),
        "size": len(config),
    }
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": manifests.OCI_MANIFEST,
            "config": described,
            "layers": [],
        }
    ).encode()
