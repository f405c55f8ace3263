"""The server's TLS: what it accepts, how it takes over new certificates, whom it recognises."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mayfly.auth.identity import from_certificate
from mayfly.registry.pki.authority import CertificateFiles, ensure
from mayfly.registry.pki.context import ServerTLS
from mayfly.registry.pki.errors import TrustError
from tests.support.certificates import CLIENT, DAY, self_signed
from tests.support.serving import ask, serving


@pytest.fixture
def own(tmp_path: Path, identity: CertificateFiles) -> CertificateFiles:
    """A copy of the certificates for a test to change."""
    directory = tmp_path / "own"
    shutil.copytree(identity.ca.parent, directory)
    return CertificateFiles(
        directory / "ca.crt",
        directory / "tls.crt",
        directory / "tls.key",
        identity.fingerprint,
        frozenset(),
        identity.authority,
    )


def _renew(own: CertificateFiles) -> None:
    """Put a new pair in place, with another key, as an operator does."""
    own.certificate.unlink()
    own.key.unlink()
    ensure(own.ca.parent, ("localhost", "127.0.0.1"), datetime.now(UTC))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("server_name", ["127.0.0.1", "localhost"])
def test_clients_connect_with_and_without_a_server_name(
    identity: CertificateFiles, version: ssl.TLSVersion, server_name: str
) -> None:
    """A client of an address sends no server name, and gets the certificate all the same."""
    tls = ServerTLS(identity.certificate, identity.key)
    with serving(tls.context) as server:
        ask(server.host, identity.ca, version=version, server_name=server_name)
    assert server.asked == ["/v2/"]


def test_old_tls_is_refused(identity: CertificateFiles) -> None:
    """TLS 1.1 ends in the handshake, and weak ciphers are not offered."""
    tls = ServerTLS(identity.certificate, identity.key)
    assert tls.context.minimum_version == ssl.TLSVersion.TLSv1_2
    ciphers = [cipher["name"] for cipher in tls.context.get_ciphers()]
    assert ciphers
    assert all("GCM" in name or "CHACHA20" in name for name in ciphers)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.set_ciphers("AES128-SHA")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    client, server = _handshake(old, tls.context)
    assert isinstance(server, ssl.SSLError)
    assert isinstance(client, ssl.SSLError)


Side = ssl.SSLObject | ssl.SSLError


def _handshake(
    client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[Side, Side]:
    """Both ends of a handshake in memory, or the error each of them ended with."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, session=session),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    ends: list[Side] = list(sides)
    for _ in range(6):
        for index, side in enumerate(sides):
            # A side that failed says something vaguer when asked again.
            if not isinstance(ends[index], ssl.SSLError):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError as error:
                    ends[index] = error
    server_end = ends[1]
    if isinstance(server_end, ssl.SSLObject) and isinstance(ends[0], ssl.SSLObject):
        server_end.write(b"x")
        ends[0].read(1)
    return ends[0], server_end


def _trusting(identity: CertificateFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(identity.ca)
    return context


@pytest.mark.parametrize(
    ("version", "reused"), [(ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, False)]
)
def test_sessions_across_a_reload(
    own: CertificateFiles, version: ssl.TLSVersion, reused: bool
) -> None:
    """TLS 1.2 resumes, also after a renewal; TLS 1.3 has no tickets."""
    tls = ServerTLS(own.certificate, own.key)
    client = _trusting(own)
    client.maximum_version = version
    first, _ = _handshake(client, tls.context)
    assert isinstance(first, ssl.SSLObject)
    _renew(own)
    assert tls.reload_if_changed()
    second, _ = _handshake(client, tls.context, first.session)
    assert isinstance(second, ssl.SSLObject)
    assert second.session_reused is reused


def test_http_1_1_is_agreed_on(identity: CertificateFiles) -> None:
    """By ALPN, and a client that only speaks HTTP/2 is not cut off by it."""
    tls = ServerTLS(identity.certificate, identity.key)
    for offered, agreed in ((["h2", "http/1.1"], "http/1.1"), (["h2"], None)):
        client = _trusting(identity)
        client.set_alpn_protocols(offered)
        side, _ = _handshake(client, tls.context)
        assert isinstance(side, ssl.SSLObject)
        assert side.selected_alpn_protocol() == agreed


def test_a_renewed_pair_is_shown_to_the_next_client(own: CertificateFiles) -> None:
    """The context that the listener has stays the same."""
    tls = ServerTLS(own.certificate, own.key)
    context = tls.context
    with serving(tls.context) as server:
        first = ask(server.host, own.ca)
        assert not tls.reload_if_changed()
        _renew(own)
        assert ask(server.host, own.ca) == first
        assert tls.reload_if_changed()
        assert not tls.reload_if_changed()
        assert ask(server.host, own.ca) != first
    assert tls.context is context


def test_a_connection_survives_a_reload(own: CertificateFiles) -> None:
    """What was agreed on before continues."""
    tls = ServerTLS(own.certificate, own.key)
    client, server = _handshake(_trusting(own), tls.context)
    _renew(own)
    assert tls.reload_if_changed()
    assert isinstance(server, ssl.SSLObject)
    assert isinstance(client, ssl.SSLObject)
    server.write(b"still here")
    assert client.read(100) == b"still here"


def test_asyncio_servers_follow_too(own: CertificateFiles) -> None:
    """asyncio wraps the context in memory, not around a socket."""
    tls = ServerTLS(own.certificate, own.key)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async def main() -> tuple[str, str]:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls.context)
        async with server:
            host = "127.0.0.1:{1}".format(*server.sockets[0].getsockname())
            first = await asyncio.to_thread(ask, host, own.ca)
            _renew(own)
            assert tls.reload_if_changed()
            return first, await asyncio.to_thread(ask, host, own.ca)

    first, second = asyncio.run(main())
    assert first != second


def test_a_broken_pair_keeps_the_old_one_and_is_told_once(
    own: CertificateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a renewal serves nobody anything new; the other half ends it."""
    tls = ServerTLS(own.certificate, own.key, renewed=True)
    old = own.certificate.read_bytes(), own.key.read_bytes()
    _renew(own)
    new_certificate = own.certificate.read_bytes()
    own.certificate.write_bytes(old[0])
    with serving(tls.context) as server:
        first = ask(server.host, own.ca)
        with caplog.at_level(logging.ERROR):
            assert not tls.reload_if_changed()
            assert not tls.reload_if_changed()
        assert len(caplog.records) == 1
        assert "the old one stays in use" in caplog.text
        assert "does not belong" in caplog.text
        assert ask(server.host, own.ca) == first
        own.certificate.write_bytes(new_certificate)
        assert tls.reload_if_changed()
        assert ask(server.host, own.ca) != first


def test_files_that_vanish_keep_the_old_pair(
    own: CertificateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """And when they are back, they are looked at again."""
    tls = ServerTLS(own.certificate, own.key)
    aside = own.key.rename(own.key.with_name("aside"))
    assert not tls.reload_if_changed()
    assert "the old one stays in use" in caplog.text
    aside.rename(own.key)
    assert tls.reload_if_changed()


def test_a_chmod_mends_a_refused_key(
    own: CertificateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """A change of the mode alone is noticed."""
    tls = ServerTLS(own.certificate, own.key)
    own.key.chmod(0o644)
    assert not tls.reload_if_changed()
    assert "chmod 600" in caplog.text
    own.key.chmod(0o600)
    assert tls.reload_if_changed()


def test_kubernetes_symlink_swap_is_followed(own: CertificateFiles, tmp_path: Path) -> None:
    """A Secret volume's files are links through ..data, which is swapped as a whole."""
    volume = tmp_path / "volume"
    for name in ("..one", "..two"):
        shutil.copytree(own.ca.parent, volume / name)
        _renew(own)
    (volume / "..data").symlink_to("..one")
    for name in ("tls.crt", "tls.key"):
        (volume / name).symlink_to(f"..data/{name}")
    tls = ServerTLS(volume / "tls.crt", volume / "tls.key")
    with serving(tls.context) as server:
        first = ask(server.host, own.ca)
        (volume / "..data_tmp").symlink_to("..two")
        (volume / "..data_tmp").rename(volume / "..data")
        assert tls.reload_if_changed()
        assert ask(server.host, own.ca) != first


def test_an_expired_pair_does_not_start(tmp_path: Path) -> None:
    """Nobody could pull; the operator is there to see it."""
    pair = self_signed(tmp_path, begins=-9 * DAY, ends=-DAY)
    with pytest.raises(TrustError, match="expired"):
        ServerTLS(pair.certificate, pair.key)


def test_an_expiry_near_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The pair is served."""
    pair = self_signed(tmp_path, ends=DAY)
    ServerTLS(pair.certificate, pair.key)
    assert "renew it" in caplog.text


def test_a_client_certificate_is_an_identity_and_none_is_none(
    identity: CertificateFiles, tmp_path: Path
) -> None:
    """A client without a certificate is served as nobody; one of a stranger's CA is cut off."""
    known = self_signed(tmp_path, "known", common_names=["node-7"], purpose=CLIENT, ca=True)
    stranger = self_signed(tmp_path, "stranger", common_names=["node-7"], purpose=CLIENT, ca=True)
    tls = ServerTLS(identity.certificate, identity.key, known.certificate)
    with serving(tls.context) as server:
        ask(server.host, identity.ca)
        ask(server.host, identity.ca, (known.certificate, known.key))
        with pytest.raises(OSError, match=r"."):
            ask(server.host, identity.ca, (stranger.certificate, stranger.key))
        # TLS 1.2 would resume identities of CAs that are gone.
        with pytest.raises(OSError, match=r"."):
            ask(server.host, identity.ca, version=ssl.TLSVersion.TLSv1_2)
    assert server.callers == [None, "node-7"]


def test_a_removed_client_ca_stops_working_at_once(own: CertificateFiles, tmp_path: Path) -> None:
    """The CA file is watched like the pair, and no session of before can be resumed."""
    old, new = (
        self_signed(tmp_path, name, common_names=[name], purpose=CLIENT, ca=True)
        for name in ("old", "new")
    )
    client_ca = tmp_path / "clients.crt"
    shutil.copy(old.certificate, client_ca)
    tls = ServerTLS(own.certificate, own.key, client_ca)
    client = _trusting(own)
    client.load_cert_chain(old.certificate, old.key)
    first, server = _handshake(client, tls.context)
    assert isinstance(first, ssl.SSLObject)
    assert isinstance(server, ssl.SSLObject)
    shown = server.getpeercert()
    assert shown is not None
    assert from_certificate(shown).name == "old"
    shutil.copy(new.certificate, client_ca)
    assert tls.reload_if_changed()
    _, refused = _handshake(client, tls.context, first.session)
    assert isinstance(refused, ssl.SSLCertVerificationError)


def test_a_client_ca_that_is_none_is_refused(identity: CertificateFiles, tmp_path: Path) -> None:
    """The file is named."""
    with pytest.raises(TrustError, match=r"absent: cannot be read"):
        ServerTLS(identity.certificate, identity.key, tmp_path / "absent")
