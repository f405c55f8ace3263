"""The server's TLS: one context for the listener's whole life, and fresh certificates behind it.

The context given to the listener never changes. On each ClientHello its server name callback
(which OpenSSL calls whether or not a name was sent) hands the connection over to the context that
holds the newest good certificates. So a reload is one assignment: no handshake sees a certificate
without its key, as it would while ``load_cert_chain`` works on a live context; a broken new pair
never comes near a connection; and a new client CA takes effect together with the pair.

Sessions of TLS 1.3 are not resumed: the clients of registries keep none (Go's by default), and the
tickets cost a tenth of a handshake. Sessions of TLS 1.2 are the listener context's and outlive a
reload.
"""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime
from pathlib import Path

from mayfly.registry.pki.certificate import Certificate, load_authority, load_pair, read_pair
from mayfly.registry.pki.errors import TrustError
from mayfly.registry.text import to_the_minute
from mayfly.storage.files import Stamp, stamp_at

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and AEAD only (RFC 9325, 4.2). TLS 1.3 has no others."""

ALPN = ("http/1.1",)

_LOG = logging.getLogger(__name__)

_Stamps = tuple[Stamp | None, ...]


class ServerTLS:
    """The certificates a listener shows, kept up to date with their files.

    Attributes:
        context: for the listener, in whatever way it does TLS.
        certificate: the one that clients get now.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path | None = None,
        *,
        renewed: bool = False,
    ) -> None:
        """Load the pair; with ``client_ca``, also ask clients for a certificate of that CA.

        A client without a certificate is served, as nobody in particular. One whose certificate
        that CA did not sign, or which has expired, fails in the handshake. TLS 1.3 is the least
        then, and no session is resumed, so that a CA taken out of the file stops working at once.
        If the pair is ``renewed`` by the server itself, nobody needs to be warned of its end.

        Raises:
            TrustError: the pair or the CA cannot be used, see `registry.pki.certificate`, or the
                certificate has expired or is not valid yet.
        """
        self._certificate_file = certificate
        self._key_file = key
        self._client_ca_file = client_ca
        self._renewed = renewed
        self._seen = self._stamps()
        self._current, self.certificate = self._load()
        self.context = self._blank()
        self.context.sni_callback = self._hand_over

    def reload_if_changed(self) -> bool:
        """Take over certificates whose files changed; to be called every few seconds.

        Files that cannot be used are logged as an error, once for each change, and the old
        certificates stay. Costs a few stat calls when nothing changed, which follow symlinks and so
        see Kubernetes' swap of a volume's ``..data``. Returns whether new certificates are in use.
        """
        # Looked at before the files are read: a change in between is seen the next time.
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._seen = stamps
        try:
            self._current, self.certificate = self._load()
        except (TrustError, OSError) as error:
            _LOG.error("TLS certificate not reloaded, the old one stays in use: %s", error)
            return False
        _LOG.info(
            "TLS certificate reloaded, valid until %s", to_the_minute(self.certificate.not_after)
        )
        return True

    def _load(self) -> tuple[ssl.SSLContext, Certificate]:
        certificate = read_pair(self._certificate_file, self._key_file)
        now = datetime.now(UTC)
        certificate.check_time(now)
        context = self._blank()
        load_pair(context, self._certificate_file, self._key_file)
        if self._client_ca_file is not None:
            load_authority(context, self._client_ca_file)
        if not self._renewed:
            for warning in certificate.warnings(now):
                _LOG.warning("%s", warning)
        return context, certificate

    def _blank(self) -> ssl.SSLContext:
        """A server context without certificates."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(ALPN)
        # Client-chosen renegotiation costs the server a handshake each.
        context.options |= ssl.OP_NO_RENEGOTIATION
        # All that is left is strong: the client knows best which its processor is fast at.
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        context.num_tickets = 0
        if self._client_ca_file is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
            # A resumed session keeps the identity it began with, even of a CA removed since. TLS
            # 1.2 resumes from a cache, too, which the ssl module has no switch for.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    def _hand_over(
        self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _: ssl.SSLContext
    ) -> None:
        connection.context = self._current

    def _stamps(self) -> _Stamps:
        # They have the change time, which also shows a chmod that mends a key's mode.
        files = (self._certificate_file, self._key_file, self._client_ca_file)
        return tuple(stamp_at(file) for file in files if file is not None)
