"""A registry that can do no more than be pulled from, behind the TLS under test."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import socket
import ssl
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mayfly.auth.identity import from_certificate
from tests.support.images import digest_of
from tests.support.process import PATIENCE

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

Answer = tuple[str, bytes]


def _layer() -> tuple[bytes, bytes]:
    """A layer with one file, as tar and as tar+gzip."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    return tar.getvalue(), gzip.compress(tar.getvalue(), mtime=0)


def image() -> dict[str, Answer]:
    """One small image: path below its repository → media type and content."""
    plain, packed = _layer()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(plain)]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [{"mediaType": LAYER, "digest": digest_of(packed), "size": len(packed)}],
        }
    ).encode()
    return {
        "manifests/1": (MANIFEST, manifest),
        f"manifests/{digest_of(manifest)}": (MANIFEST, manifest),
        f"blobs/{digest_of(config)}": ("application/octet-stream", config),
        f"blobs/{digest_of(packed)}": ("application/octet-stream", packed),
    }


@dataclass
class Served:
    """What a server was asked, and by whom.

    ``asked`` are request targets; ``callers`` the clients' identities, None for those without.
    """

    host: str
    asked: list[str] = field(default_factory=list)
    callers: list[str | None] = field(default_factory=list)


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None, *repositories: str) -> Iterator[Served]:
    """Serve one image in each of the repositories on a free loopback port."""
    answers = {"/v2/": ("application/json", b"{}")}
    for repository in repositories:
        answers |= {f"/v2/{repository}/{path}": answer for path, answer in image().items()}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = Served(f"127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=_accept, args=(listener, context, answers, served))
        thread.start()
        try:
            yield served
        finally:
            # Closing does not wake a thread that is in accept().
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(
    listener: socket.socket,
    context: ssl.SSLContext | None,
    answers: dict[str, Answer],
    served: Served,
) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        # A client that does not trust us ends the handshake.
        with connection, contextlib.suppress(OSError):
            connection.settimeout(PATIENCE)
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
                shown = connection.getpeercert()
                served.callers.append(from_certificate(shown).name if shown else None)
            with connection:
                _answer(connection, answers, served)


def _answer(connection: socket.socket, answers: dict[str, Answer], served: Served) -> None:
    """Answer one request and close: every request makes a handshake of its own."""
    request = b""
    while b"\r\n\r\n" not in request:
        received = connection.recv(1 << 16)
        request += received
        # Clients that may do without TLS try it first, and wait for an end.
        if not received or request.startswith(b"\x16"):
            return
    method, target, _ = request.decode("latin-1").split(" ", 2)
    served.asked.append(target)
    kind, body = answers.get(target.partition("?")[0], ("application/json", b""))
    status = "200 OK" if body else "404 Not Found"
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Docker-Content-Digest: {digest_of(body)}\r\nConnection: close\r\n\r\n"
    )
    connection.sendall(head.encode() + (b"" if method == "HEAD" else body))


def ask(
    host: str,
    ca: Path,
    client: tuple[Path, Path] | None = None,
    *,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    server_name: str | None = None,
) -> str:
    """Ask for ``/v2/`` as a strict client does; the serial number of the certificate shown.

    Raises:
        OSError: the handshake failed or there was no answer.
    """
    context = ssl.create_default_context(cafile=ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.minimum_version = context.maximum_version = version
    if client is not None:
        context.load_cert_chain(*client)
    address, _, port = host.rpartition(":")
    with (
        socket.create_connection((address, int(port)), timeout=PATIENCE) as connection,
        context.wrap_socket(connection, server_hostname=server_name or address) as secured,
    ):
        secured.sendall(f"GET /v2/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        if not secured.recv(1 << 16).startswith(b"HTTP/1.1 200"):
            raise ConnectionError("no good answer")
        certificate = secured.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])
