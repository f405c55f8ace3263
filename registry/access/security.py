"""Sets up a server's TLS, authentication and policy when it starts, from the settings.

Off loopback a registry without other settings makes its own CA, its certificate and users for one
run, so that it is secure with no setup. All of it lies in the state directory with mode 0600; files
that end with the run are removed with it (`registry.state.runs`).
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mayfly.auth.errors import AuthError
from mayfly.auth.identity import ROBOT_PREFIX, Credential, Identity, Permission, from_certificate
from mayfly.auth.policy import EVERYTHING, OPEN, Policy
from mayfly.auth.roles import Role
from mayfly.registry.access.guard import Authentication
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.pki.errors import TrustError
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.settings.settings import Settings
from mayfly.registry.state.directory import CREDENTIALS, SIGNING_KEY
from mayfly.registry.state.runs import Run
from mayfly.registry.text import to_the_minute

if TYPE_CHECKING:
    from mayfly.auth.generate import EphemeralUsers
    from mayfly.registry.pki.authority import CertificateFiles
    from mayfly.registry.pki.context import ServerTLS

logger = logging.getLogger("mayfly")

_NODE_SECONDS = 12 * 3600
"""Lifetime of a node's credential that the server makes itself."""


@dataclass(frozen=True)
class Security:
    """The protection of a running registry.

    Attributes:
        policy: returns the policy of this moment.
        authentication: None where credentials are ignored.
        tls: None for plain HTTP.
        ca: the CA that nodes must trust, where the registry knows it.
        users: the users of ``--auth auto``.
        renew: renews the certificate of ``--tls auto`` if that is due, and returns why it cannot;
            to be called in a thread.
    """

    policy: Callable[[], Policy]
    authentication: Authentication | None
    tls: ServerTLS | None
    ca: Path | None
    users: EphemeralUsers | None
    renew: Callable[[], str | None] | None = None

    def is_shared(self, user: str) -> bool:
        """Return whether several nodes may use this user's credentials, which then name no node."""
        if self.users is not None and user in (self.users.admin.name, self.users.pull.name):
            return True
        return user.startswith(ROBOT_PREFIX)

    def credential(self) -> Credential | None:
        """Return the credential for the command of `mayfly run`; None without authentication."""
        if self.authentication is None:
            return None
        if self.users is not None:
            return self.users.admin
        from mayfly.auth.robots import MAX_LIFETIME

        permission = Permission(Role.MAINTAINER, EVERYTHING)
        robots = self.authentication.robots
        return robots.issue("run", [permission], MAX_LIFETIME, time.time())

    def node_credential(self, node: str) -> Credential:
        """Return a credential that may pull, and that names a node in coverage; for 12 hours."""
        assert self.authentication is not None
        permission = Permission(Role.LIMITED_GUEST, EVERYTHING)
        robots = self.authentication.robots
        return robots.issue(node.lower(), [permission], _NODE_SECONDS, time.time(), node)


@contextmanager
def secure(settings: Settings, run: Run) -> Iterator[Security]:
    """Set up protection as the settings say; to be entered in the event loop that serves.

    Args:
        settings: of the server.
        run: the run that users and tokens belong to.

    Raises:
        ConfigError: a certificate, key or policy file cannot be used.
    """
    authentication = None
    try:
        try:
            # The files of users end with a start that fails, a CA does not: it is made last.
            policy, authentication, users = _identities(settings, run)
            tls, ca, renew = _transport(settings, run)
        except (TrustError, AuthError) as error:
            raise ConfigError(str(error)) from None
        except OSError as error:
            raise ConfigError(f"--state-dir {settings.state_dir}: {error.strerror}") from None
        _warn_of_choices(settings, tls, authentication)
        yield Security(policy, authentication, tls, ca, users, renew)
    finally:
        if authentication is not None:
            authentication.logins.close()


def _transport(
    settings: Settings, run: Run
) -> tuple[ServerTLS | None, Path | None, Callable[[], str | None] | None]:
    choice = settings.tls or ("auto" if settings.exposed else "off")
    if choice == "off":
        if settings.client_ca is not None:
            raise ConfigError("--client-ca needs TLS; add --tls auto or --tls CERT,KEY")
        return None, None, None
    # Imported only where it is used, like the users below.
    from mayfly.registry.pki.certificate import load_authority
    from mayfly.registry.pki.context import ServerTLS

    if choice == "auto":
        if settings.client_ca is not None:
            load_authority(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings.client_ca)
        made = _ensure_certificate(settings, run)
        tls = ServerTLS(made.certificate, made.key, settings.client_ca, renewed=True)
        return tls, made.ca, lambda: _renew_certificate(settings)
    certificate, key = choice
    return ServerTLS(certificate, key, settings.client_ca), None, None


def _names(settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names that the certificate must have, and those that it should have."""
    from mayfly.registry.pki.addresses import needed_names, wanted_names

    listen = [address.host for address in settings.listen]
    external = [settings.external_url.hostname] if settings.external_url is not None else []
    given = [*settings.hostname, *external, *settings.tls_name]
    return needed_names(listen, given), wanted_names([*given, *listen])


def _ensure_certificate(settings: Settings, run: Run) -> CertificateFiles:
    from mayfly.registry.pki.authority import ensure

    needed, wanted = _names(settings)
    now = datetime.now(UTC)
    made = ensure(
        settings.state_dir,
        needed,
        now,
        extra=wanted,
        deadline=None if run.deadline is None else datetime.fromtimestamp(run.deadline, UTC),
        continued=run.continued,
        constrain=settings.tls_constrain,
    )
    if made.replaced is not None:
        logger.warning(
            "the CA is new, since the old one expires on %s, %s: make every node trust it (mayfly "
            "node-config show)",
            to_the_minute(made.replaced.not_after),
            "and this run has no deadline (--max-lifetime)"
            if run.deadline is None
            else "before this run ends",
        )
    elif early := made.authority.not_yet_valid(now):
        logger.warning(
            "the CA %s: set the clock; if it is right, stop Mayfly, remove ca.crt and ca.key in "
            "--state-dir and start it again, for another CA",
            early,
        )
    return made


def _renew_certificate(settings: Settings) -> str | None:
    from mayfly.registry.pki.authority import renew

    needed, wanted = _names(settings)
    try:
        renew(settings.state_dir, needed, datetime.now(UTC), extra=wanted)
    except (TrustError, OSError) as error:
        return str(error)
    return None


def _identities(
    settings: Settings, run: Run
) -> tuple[Callable[[], Policy], Authentication | None, EphemeralUsers | None]:
    choice = settings.auth or ("auto" if settings.exposed else "none")
    if choice != "auto":
        (settings.state_dir / CREDENTIALS).unlink(missing_ok=True)
    if choice == "none":
        (settings.state_dir / SIGNING_KEY).unlink(missing_ok=True)
        return (lambda: OPEN), None, None
    from mayfly.registry.access.identities import identities

    return identities(settings, choice, run)


def certificate_identity(http: HTTPRequest) -> Identity | None:
    """Return the caller that a client certificate names; the handshake has verified it."""
    tls = http.get_extra_info("ssl_object")
    certificate = tls.getpeercert() if tls is not None else None
    return from_certificate(certificate) if certificate else None


def _warn_of_choices(
    settings: Settings, tls: ServerTLS | None, authentication: Authentication | None
) -> None:
    if not settings.exposed:
        return
    if authentication is None:
        logger.warning("anyone who can connect may push and delete: --auth none off loopback")
    elif tls is None:
        logger.warning("passwords travel in the clear: --tls off off loopback")
