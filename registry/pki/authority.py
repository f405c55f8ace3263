"""`--tls auto`: a CA of our own, and a server certificate for every name of this host.

Four files in the state directory: ``ca.crt`` and ``tls.crt``, and 0600 ``ca.key`` and ``tls.key``.
They are used again by the next start as long as they serve, so nodes that trust the CA keep
trusting it:

- The CA is made for a run and outlives it by a margin. A new one is made when there is none, and by
  the start of a run that it would not outlast; never during a run. One that is not valid yet is
  never replaced: nodes may trust it, and the clock of a host that has just booted may be behind. A
  run that is continued uses it; another one does not start.
- Made with `constrain`, it may sign the names that it was made for and no others (RFC 5280,
  4.2.1.10). A start that needs another one fails.
- The server certificate is short-lived. A new one is made, by the same CA and for the same key
  (which clients may have pinned), when it lacks a wanted name, is within the last third of its
  life, does not fit its key or the CA. `renew` does that while the server runs. A key that others
  could read is also replaced.
- A CA key that others could read, or a file of another user, is refused: only the operator knows
  their use of it.

Each key is in place before its certificate. A crash between the two leaves a certificate that is
absent, expired or does not fit, and each of these is mended by the rules above.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from mayfly.registry.pki.certificate import (
    Certificate,
    check_key_mode,
    fingerprint,
    is_constrained,
    read_authority,
    read_pair,
)
from mayfly.registry.pki.errors import TrustError
from mayfly.registry.text import to_the_minute
from mayfly.storage.files import Attributes, locked_at_once, replace_file

CA_LIFETIME = timedelta(days=365)
"""Lifetime of the CA of a run without a deadline."""

CA_MARGIN = timedelta(days=7)
"""By which the CA outlives the deadline of the run it is made for."""

CA_LEAST_AHEAD = timedelta(days=30)
"""Life that a CA must have left for another run without a deadline."""

LEAF_LIFETIME = timedelta(days=7)
"""Lifetime of the server certificate; `renew` is called far more often."""

BACKDATE = timedelta(days=1)
"""Nodes without a time server lag; a certificate from the future is refused like a forged one."""

_KEY = Attributes(0o600)
_CERTIFICATE = Attributes(0o644)


@dataclass(frozen=True)
class CertificateFiles:
    """Where the certificates of `--tls auto` lie.

    ``fingerprint`` is the CA's SHA-256, in the form openssl prints. ``made`` lists the certificates
    that this call made: both in a fresh state directory, none when all could be used again.
    ``authority`` is the CA; ``replaced`` the one whose place it took.
    """

    ca: Path
    certificate: Path
    key: Path
    fingerprint: str
    made: frozenset[Literal["ca", "certificate"]]
    authority: Certificate
    replaced: Certificate | None = None


def ensure(
    directory: Path,
    names: Collection[str],
    now: datetime,
    *,
    extra: Collection[str] = (),
    deadline: datetime | None = None,
    continued: bool = False,
    constrain: bool = False,
) -> CertificateFiles:
    """See to it that ``directory`` holds a CA and a server certificate for all of ``names``.

    Costs milliseconds, and no `cryptography`, when nothing has to be made.

    Args:
        directory: of the four files.
        names: canonical, see `registry.pki.addresses`; the certificate must have them.
        now: in UTC, as the other times.
        extra: names that it should have, too, if the CA may sign any.
        deadline: of the run.
        continued: whether the run is one that nodes trust the CA for already.
        constrain: whether a CA that is made may sign ``names`` only.

    Raises:
        TrustError: a file there is damaged, open to others or another user's; the CA's key is gone
            or another CA's, or the CA may not sign a name, or any though it should be constrained,
            or is not valid yet: replacing that CA would cut off every node that trusts it.
        OSError: the directory cannot be written.
    """
    ca, ca_key = directory / "ca.crt", directory / "ca.key"
    made: set[Literal["ca", "certificate"]] = set()
    replaced = None
    with locked(directory):
        _check_owner(ca, ca_key)
        if ca_key.exists():
            check_key_mode(ca_key)
        authority = read_authority(ca) if ca.exists() else None
        if authority is not None and not continued and (early := authority.not_yet_valid(now)):
            raise TrustError(
                f"{ca}: this CA {early} (date -u): set the clock; if it is right now, and was "
                "ahead when the CA was made, remove ca.crt and ca.key for another CA, which every "
                "node must be told to trust"
            )
        if authority is None or not _is_good_for(authority, now, deadline, continued=continued):
            replaced = authority
            ends = now + CA_LIFETIME if deadline is None else deadline + CA_MARGIN
            _make_authority(ca, ca_key, now, ends, names if constrain else None)
            authority = read_authority(ca)
            made.add("ca")
        elif constrain and not is_constrained(ca):
            raise TrustError(
                f"{ca}: this CA may sign any name, so --tls-constrain cannot be had with it; "
                "remove ca.crt and ca.key for another CA, which every node must be told to trust"
            )
        if _renew_leaf(directory, authority, names, extra, now):
            made.add("certificate")
        print_of_ca = fingerprint(ca.read_bytes())
    paths = (ca, directory / "tls.crt", directory / "tls.key")
    return CertificateFiles(*paths, print_of_ca, frozenset(made), authority, replaced)


def renew(
    directory: Path, names: Collection[str], now: datetime, *, extra: Collection[str] = ()
) -> bool:
    """Renew the server certificate if that is due, while the server runs; True if it was renewed.

    The arguments are `ensure`'s. The CA stays as it is.

    Raises:
        TrustError, OSError: as `ensure`; or the CA has expired.
    """
    with locked(directory):
        authority = read_authority(directory / "ca.crt")
        if authority.expired(now):
            # Without the time of this host: it is the same problem at each attempt.
            raise TrustError(
                f"{authority.path}: this CA expired {to_the_minute(authority.not_after)}: set the "
                "clock if it is wrong, otherwise stop Mayfly and start it again, for another CA, "
                "which every node must be told to trust"
            )
        return _renew_leaf(directory, authority, names, extra, now)


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


def _is_good_for(
    ca: Certificate, now: datetime, deadline: datetime | None, *, continued: bool
) -> bool:
    """Whether a CA can be used by the run that starts now."""
    if continued:
        return now < ca.not_after
    end = now + CA_LEAST_AHEAD if deadline is None else deadline
    return end < ca.not_after


def _check_owner(*files: Path) -> None:
    """Refuse files that another user put there.

    Raises:
        TrustError: one is neither ours nor root's.
    """
    for file in files:
        if file.exists() and (owner := file.stat().st_uid) not in (0, os.geteuid()):
            raise TrustError(
                f"{file}: belongs to user {owner}, who may have planted it; remove ca.crt and "
                "ca.key for another CA, or make the file yours if you know where it is from"
            )


def _renew_leaf(
    directory: Path,
    authority: Certificate,
    names: Collection[str],
    extra: Collection[str],
    now: datetime,
) -> bool:
    certificate, key = directory / "tls.crt", directory / "tls.key"
    wanted = names if is_constrained(authority.path) else dict.fromkeys((*names, *extra))
    if _serves(certificate, key, authority, wanted, now):
        return False
    _make_leaf(authority, directory / "ca.key", certificate, key, wanted, now)
    return True


def _serves(
    certificate: Path, key: Path, authority: Certificate, names: Collection[str], now: datetime
) -> bool:
    """Whether the server certificate there can be used again."""
    if not (certificate.exists() and key.exists()):
        return False
    try:
        found = read_pair(certificate, key, authority.path)
    except TrustError:
        # Half replaced, or made by a CA that is gone: replace it.
        return False
    if not found.names.issuperset(names) or now < found.not_before:
        return False
    # One that ends with its CA cannot be renewed for longer.
    lifetime = found.not_after - found.not_before
    is_old = now >= found.not_after - lifetime / 3
    return not is_old or found.not_after >= authority.not_after


def _make_authority(
    ca: Path, ca_key: Path, now: datetime, ends: datetime, permitted: Collection[str] | None
) -> None:
    from mayfly.registry.pki.issue import new_authority

    certificate_pem, key_pem = new_authority(now - BACKDATE, ends, permitted)
    replace_file(ca_key, key_pem, _KEY)
    replace_file(ca, certificate_pem, _CERTIFICATE)


def _make_leaf(
    authority: Certificate,
    ca_key: Path,
    certificate: Path,
    key: Path,
    names: Collection[str],
    now: datetime,
) -> None:
    from mayfly.registry.pki.issue import new_leaf

    ends = min(now + LEAF_LIFETIME, authority.not_after)
    certificate_pem, key_pem = new_leaf(
        authority.path, ca_key, names, now - BACKDATE, ends, _private_key(key)
    )
    replace_file(key, key_pem, _KEY)
    replace_file(certificate, certificate_pem, _CERTIFICATE)


def _private_key(key: Path) -> bytes | None:
    """The server's key, if it is still nobody else's."""
    try:
        _check_owner(key)
        check_key_mode(key)
        return key.read_bytes()
    except (FileNotFoundError, TrustError):
        return None
