"""TLS as clients meet it, good and bad ones: handshakes, bodies in, and how connections end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mayfly.registry.http.connection import Connection
from mayfly.registry.pki.context import ServerTLS
from mayfly.storage.directory.store import DistributionStore
from tests.support.certificates import CLIENT, self_signed
from tests.support.half_closed import HalfClosing, Kind
from tests.support.process import descriptors, need, until
from tests.support.secured import NAME, Secured, drain, read_answer, secured
from tests.support.wire import TIMEOUT, message

REPO = "team/app"
DATA = bytes(range(256)) * (5 * 4096)  # 5 MiB

_RESET = struct.pack("ii", 1, 0)
_SSLV3_HELLO = b"\x16\x03\x00\x00\x2d\x01\x00\x00\x29\x03\x00" + bytes(39)


def _hello(trust: ssl.SSLContext) -> bytes:
    """The first message of a client."""
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        trust.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
        _SSLV3_HELLO,
        bytes(1000),
        b"\x16\x03\x01\xff\xff" + bytes(70_000),
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"SSH-2.0-x\r\n",
    ],
    ids=["http", "sslv3", "zeros", "long", "alert", "ssh"],
)
async def test_what_is_no_tls(server: Secured, sent: bytes) -> None:
    """Refused at once, without HTTP and without a word in the log; others are served."""
    before = descriptors()
    with server.dial() as client:
        client.sendall(sent)
        assert b"HTTP" not in await asyncio.to_thread(drain, client)
    await server.idle(before)
    assert await server.ask("GET", "/v2/") == (200, b"{}")


def _records(size: int, record: int) -> bytes:
    """The beginning of a client's first message of a size, in records of a size."""
    message = (b"\x01" + size.to_bytes(3) + b"\x03\x03" + bytes(300))[: 20 * record]
    pieces = [message[at : at + record] for at in range(0, len(message), record)]
    return b"".join(b"\x16\x03\x01" + len(one).to_bytes(2) + one for one in pieces)


@pytest.mark.parametrize("handshake_seconds", [10 * TIMEOUT])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "byte by byte"])
@pytest.mark.parametrize(
    ("size", "record"), [(131_396, 306), (16_385, 306), (200, 1), (131_396, 3)]
)
async def test_first_message_that_is_too_large(
    server: Secured, size: int, record: int, at_once: bool
) -> None:
    """Refused as soon as it is announced, before OpenSSL takes memory for it; so is one in crumbs.

    Not by the header's time: that is longer here than the client's.
    """
    before = descriptors()
    with server.dial() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sent = _records(size, record)
        with contextlib.suppress(ConnectionError):
            for byte in [sent] if at_once else [bytes([one]) for one in sent]:
                client.sendall(byte)
        assert await asyncio.to_thread(drain, client) == b""
    await server.idle(before)


async def test_large_first_message(server: Secured) -> None:
    """One of 12 KiB is nothing special."""
    server.trust.set_alpn_protocols([f"{number:0>250}" for number in range(48)])
    assert len(_hello(server.trust)) > 12 * 1024
    assert await server.ask("GET", "/v2/") == (200, b"{}")


async def test_version_that_is_refused(store: DistributionStore, tmp_path: Path) -> None:
    """The client is told why by an alert."""
    pair = self_signed(tmp_path)
    context = ServerTLS(pair.certificate, pair.key, pair.certificate).context  # 1.3 only
    trust = ssl.create_default_context(cafile=pair.certificate)
    trust.maximum_version = ssl.TLSVersion.TLSv1_2
    async with secured(store, context, trust) as server:
        with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
            await server.connect()


async def test_client_certificates(store: DistributionStore, tmp_path: Path) -> None:
    """That of a stranger is refused with an alert; no certificate is no hindrance."""
    pair = self_signed(tmp_path)
    stranger = self_signed(tmp_path, "stranger", purpose=CLIENT)
    known = self_signed(tmp_path, "known", purpose=CLIENT, ca=True)
    context = ServerTLS(pair.certificate, pair.key, known.certificate).context
    trust = ssl.create_default_context(cafile=pair.certificate)
    async with secured(store, context, trust) as server:
        assert (await server.ask("GET", "/v2/"))[0] == 200
        trust.load_cert_chain(known.certificate, known.key)
        assert (await server.ask("GET", "/v2/"))[0] == 200
        trust.load_cert_chain(stranger.certificate, stranger.key)
        # In TLS 1.3 the client believes that it is through before it is refused.
        with await server.connect() as client, pytest.raises(ssl.SSLError, match="ALERT"):
            await asyncio.to_thread(client.recv, 1)


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "end"])
@pytest.mark.parametrize("sent", [0, 1, 100, None])
async def test_vanishing_in_the_handshake(server: Secured, sent: int | None, reset: bool) -> None:
    """Before a byte, within the first message, and after the server's answer."""
    before = descriptors()
    client = server.dial()
    client.sendall(_hello(server.trust)[:sent])
    if sent is None:
        assert await asyncio.to_thread(client.recv, 1)
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    client.close()
    await server.idle(before)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_byte_by_byte(server: Secured, version: ssl.TLSVersion) -> None:
    """A handshake and a request of which every byte comes by itself."""
    server.trust.minimum_version = server.trust.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = server.trust.wrap_bio(incoming, outgoing, server_hostname=NAME)

    def exchange() -> bytes:
        with server.dial() as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked = False
            while True:
                try:
                    client.do_handshake()
                    if not asked:
                        client.write(message("GET", "/v2/"))
                        asked = True
                    return client.read(65536)
                except ssl.SSLWantReadError:
                    while data := outgoing.read(1):
                        plain.sendall(data)
                    incoming.write(plain.recv(1))

    assert (await asyncio.to_thread(exchange)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("handshake_seconds", [0.1])
@pytest.mark.parametrize("sent", [0, 100])
async def test_slow_handshake(server: Secured, sent: int) -> None:
    """A client that sends nothing, or stops in the middle, is disconnected."""
    before = descriptors()
    with server.dial() as client:
        client.sendall(_hello(server.trust)[:sent])
        assert await asyncio.to_thread(drain, client) == b""
    await server.idle(before)


async def test_new_certificates(store: DistributionStore, tmp_path: Path) -> None:
    """Taken over for new connections; those that are open continue."""
    pair, new = self_signed(tmp_path), self_signed(tmp_path, "new")
    used = ServerTLS(pair.certificate, pair.key)
    trust = ssl.create_default_context(cafile=pair.certificate)
    async with secured(store, used.context, trust) as server:
        with await server.connect() as old:
            shutil.copy(new.certificate, pair.certificate)
            shutil.copy(new.key, pair.key)
            assert used.reload_if_changed()
            with pytest.raises(ssl.SSLCertVerificationError):
                await server.connect()
            assert await server.ask(
                "GET", "/v2/", trust=ssl.create_default_context(cafile=new.certificate)
            ) == (200, b"{}")
            old.sendall(message("GET", "/v2/"))
            assert await asyncio.to_thread(read_answer, old) == (200, b"{}")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_garbage_after_the_handshake(server: Secured, version: ssl.TLSVersion) -> None:
    """A record that was not sealed by the client is answered by an alert and the end."""
    server.trust.minimum_version = server.trust.maximum_version = version
    before = descriptors()
    with await server.connect() as client:
        raw = socket.socket(fileno=os.dup(client.fileno()))
        with raw:
            raw.settimeout(TIMEOUT)
            raw.sendall(b"\x17\x03\x03\x00\x40" + bytes(64))
            with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
                await asyncio.to_thread(client.recv, 1)
    await server.idle(before)


async def test_failure_above(
    server: Secured, monkeypatch: pytest.MonkeyPatch, may_log_errors: pytest.LogCaptureFixture
) -> None:
    """An error in the HTTP protocol ends its connection, is logged, and harms no other."""

    def buffer_updated(self: Connection, nbytes: int) -> None:
        raise ZeroDivisionError

    before = descriptors()
    with monkeypatch.context() as patch, await server.connect() as client:
        patch.setattr(Connection, "buffer_updated", buffer_updated)
        client.sendall(message("GET", "/v2/"))
        assert await asyncio.to_thread(drain, client) == b""
    await server.idle(before)
    assert [record.exc_info is not None for record in may_log_errors.records] == [True]
    assert await server.ask("GET", "/v2/") == (200, b"{}")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_goodbye(server: Secured, version: ssl.TLSVersion) -> None:
    """A client that says goodbye is answered with one, and the connection ends."""
    server.trust.minimum_version = server.trust.maximum_version = version
    before = descriptors()
    client = await server.connect()
    with await asyncio.to_thread(client.unwrap) as plain:
        assert await asyncio.to_thread(drain, plain) == b""
    await server.idle(before)


async def test_upload(server: Secured) -> None:
    """Several MiB arrive right to the byte."""
    target = await server.push(REPO, DATA)
    assert await server.ask("GET", target) == (200, DATA)


def _blobs(root: Path) -> int:
    return len(list((root / "docker/registry/v2/blobs").rglob("data")))


@pytest.mark.parametrize("kind", ["close_notify", "TCP alone"])
@pytest.mark.parametrize("streamed", [False, True], ids=["length", "chunked"])
async def test_truncated_upload(server: Secured, root: Path, kind: Kind, streamed: bool) -> None:
    """An end in the middle of a body is never its end; the client may read so, and continue."""
    before = descriptors()
    _, answer = await server.headers("POST", f"/v2/{REPO}/blobs/uploads/")
    location = answer["Location"]
    target = f"{location}?digest=sha256:{hashlib.sha256(DATA).hexdigest()}"
    head = {"Transfer-Encoding": "chunked"} if streamed else {"Content-Length": str(len(DATA))}
    body = b"%x\r\n%b" % (len(DATA), DATA[:-1]) if streamed else DATA[:-1]
    with await asyncio.to_thread(HalfClosing, server.port, kind, server.trust) as client:
        await asyncio.to_thread(client.send, message("PUT", target, b"", head))
        await asyncio.to_thread(client.send, body, last=True)
        refused = await asyncio.to_thread(client.read_to_end)
    assert refused.startswith(b"HTTP/1.1 400 ") and b"SIZE_INVALID" in refused
    await server.idle(before)
    assert _blobs(root) == 0
    status, answer = await server.headers("GET", location)
    assert (status, answer["Range"]) == (204, f"0-{len(DATA) - 2}")
    status, _ = await server.headers("PUT", target, DATA[-1:])
    assert status == 201
    assert _blobs(root) == 1


class SClient:
    """OpenSSL's own client; it takes a letter that comes by itself for a command."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process = process
        self._stdin = process.stdin
        self._stdout = process.stdout

    async def say(self, said: bytes, heard: bytes) -> None:
        """Type something; wait until it was taken and answered so."""
        self._stdin.write(said)
        pipe = self._stdin.get_extra_info("pipe").fileno()
        await until(lambda: _waiting(pipe) == 0, "it was read")
        async with asyncio.timeout(TIMEOUT):
            if heard:
                await self._stdout.readuntil(heard)


def _waiting(pipe: int) -> int:
    """Bytes in a pipe that nobody has read; none once it is closed."""
    try:
        return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:
        return 0


@asynccontextmanager
async def _s_client(server: Secured, version: str) -> AsyncIterator[SClient]:
    need("openssl")
    process = await asyncio.create_subprocess_exec(
        *("openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", version),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        client = SClient(process)
        await client.say(b"", b"Verify return code")
        yield client
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("letter", [b"k", b"K"], ids=["one way", "both ways"])
async def test_key_update(server: Secured, letter: bytes) -> None:
    """New keys before a request and in the middle of a body."""
    digest = hashlib.sha256(b"1234567890").hexdigest()
    target = f"/v2/{REPO}/blobs/uploads/?digest=sha256:{digest}"
    head = {"Content-Length": "10", "Expect": "100-continue"}
    async with _s_client(server, "-tls1_3") as client:
        await client.say(letter + b"\n", b"KEYUPDATE")
        await client.say(message("GET", "/v2/", close=False), b"{}")
        await client.say(message("POST", target, b"", head, close=False), b"100 Continue")
        await client.say(b"12345", b"")
        await client.say(letter + b"\n", b"KEYUPDATE")
        await client.say(b"67890", b"HTTP/1.1 201")
    assert await server.ask("GET", f"/v2/{REPO}/blobs/sha256:{digest}") == (200, b"1234567890")


async def test_renegotiation(server: Secured) -> None:
    """TLS 1.2's is refused, at once and by an alert; nobody waits for an answer."""
    async with _s_client(server, "-tls1_2") as client:
        await client.say(b"R\n", b"no renegotiation")
    assert await server.ask("GET", "/v2/") == (200, b"{}")
