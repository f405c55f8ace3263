"""Client certificates as identity, and TLS as it is spoken."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.security.servers import make_auth, server_of
from tests.security.wire import ask
from tests.support.client import Answer, basic, bearer
from tests.support.process import PATIENCE, Mayfly

TAGS = "/v2/team/app/tags/list"
UPLOADS = "/v2/team/app/blobs/uploads/"


class Authority:
    """A CA for clients."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.file = directory / f"{name}.crt"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signed = self._sign(self._name, self._key.public_key(), ca=True)
        self.file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def client(self, *names: str, groups: tuple[str, ...] = (), days: int = 1) -> tuple[str, str]:
        """A client's certificate and key, in files."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        attributes += [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]
        signed = self._sign(x509.Name(attributes), key.public_key(), ca=False, days=days)
        stem = self.directory / x509.random_serial_number().to_bytes(20).hex()
        certificate, private = stem.with_suffix(".crt"), stem.with_suffix(".key")
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return str(certificate), str(private)

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, ca: bool, days: int = 1
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=10))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(usage, critical=False)
        return builder.sign(self._key, hashes.SHA256())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's files lie."""
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(directory: Path) -> Authority:
    """The CA whose clients are believed."""
    return Authority(directory, "clients")


@pytest.fixture(scope="module")
def server(directory: Path, authority: Authority) -> Iterator[Mayfly]:
    """Mayfly that takes client certificates beside passwords."""
    auth = make_auth(
        directory / "auth",
        {"alice": "the password of alice"},
        [("node-7", "guest", "team/**"), ("builder", "developer", "team/**")],
    )
    grants = auth / "grants.toml"
    group = '[[grant]]\ngroup = "releasers"\nrole = "maintainer"\nrepositories = "team/**"\n'
    grants.write_text("[groups]\nreleasers = []\n\n" + grants.read_text() + "\n" + group)
    options = ("--tls", "auto", "--auth", str(auth), "--client-ca", str(authority.file))
    with Mayfly(directory / "root", directory / "state", *options) as made:
        yield made


def status(server: Mayfly, method: str, target: str, client: tuple[str, str]) -> int:
    """What a client with a certificate and nothing else gets."""
    return ask(server_of(server), method, target, client=client).status


def test_common_name_is_the_user(server: Mayfly, authority: Authority) -> None:
    """The name in the certificate has the grants of that user, and no others."""
    builder, stranger = authority.client("builder"), authority.client("stranger")
    assert status(server, "POST", UPLOADS, builder) == 202
    assert status(server, "POST", "/v2/other/app/blobs/uploads/", builder) == 403
    assert status(server, "GET", TAGS, stranger) == 403
    assert status(server, "GET", "/v2/", stranger) == 200


def test_node_certificate_is_the_node(server: Mayfly, authority: Authority) -> None:
    """A kubelet's certificate, system:node:NAME of system:nodes, is the user NAME."""
    node = authority.client("system:node:node-7", groups=("system:nodes",))
    assert status(server, "GET", TAGS, node) == 404
    assert status(server, "POST", UPLOADS, node) == 403


def test_organizations_are_groups(server: Mayfly, authority: Authority) -> None:
    """A certificate's organization is a group of grants.toml; Kubernetes' own names are none."""
    releaser = authority.client("someone", groups=("releasers",))
    digest = "sha256:" + "0" * 64
    assert status(server, "DELETE", f"/v2/team/app/blobs/{digest}", releaser) == 404
    master = authority.client("someone", groups=("system:masters", "admin"))
    assert status(server, "GET", TAGS, master) == 403


@pytest.mark.parametrize(
    "names", [("builder", "node-7"), (), ("robot+builder",), ("a:b",), ("builder\n",)]
)
def test_ambiguous_certificate_is_nobody(
    names: tuple[str, ...], server: Mayfly, authority: Authority
) -> None:
    """A certificate without exactly one name that a user could have is refused, not guessed at."""
    answer = ask(server_of(server), "GET", "/v2/", client=authority.client(*names))
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")


def test_header_outweighs_the_certificate(server: Mayfly, authority: Authority) -> None:
    """A request with an Authorization header is judged by that alone, right or wrong."""
    builder = authority.client("builder")

    def asked(*header: tuple[str, str]) -> Answer:
        return ask(server_of(server), "POST", UPLOADS, header, client=builder)

    assert asked().status == 202
    assert asked(basic("alice", "the password of alice")).status == 403
    assert asked(basic("builder", "x")).status == 401
    assert asked(bearer("x")).status == 401


def test_certificate_buys_a_token_and_no_refresh_token(
    server: Mayfly, authority: Authority
) -> None:
    """The token endpoint takes the certificate; it is there anew each time, so nothing is kept."""
    target = "/auth/token?offline_token=true&scope=repository:team/app:pull,push,delete"
    answer = ask(server_of(server), "GET", target, client=authority.client("builder"))
    assert answer.json["scope"] == "repository:team/app:pull,push"
    assert "refresh_token" not in answer.json


def test_untrusted_certificates_fail_in_the_handshake(
    server: Mayfly, authority: Authority, directory: Path
) -> None:
    """Another CA's certificate, of the same name, or an expired one gets no answer at all."""
    other = Authority(directory, "clients-of-another")
    for client in (other.client("builder"), authority.client("builder", days=-1)):
        with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
            ask(server_of(server), "GET", "/v2/", client=client)


def test_without_a_certificate_passwords_work(server: Mayfly) -> None:
    """Client certificates are asked for, not required."""
    answer = ask(server_of(server), "GET", "/v2/", [basic("alice", "the password of alice")])
    assert answer.status == 200
    assert ask(server_of(server), "GET", "/v2/").status == 401


def test_no_plain_http_on_the_port(server: Mayfly) -> None:
    """A client that sends HTTP to a TLS port gets no registry's answer; the next one is served."""

    async def plain() -> bytes:
        host, _, port = server.host.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            return await asyncio.wait_for(reader.read(), PATIENCE)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    assert b"HTTP/1." not in asyncio.run(plain())
    assert ask(server_of(server), "GET", "/livez").status == 200
