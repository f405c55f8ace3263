"""The TLS channel by itself, fed from memory: crumbs, floods, half-closes and garbage."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mayfly.registry.http.tls_channel import SMALL_WRITE, TLSChannel
from mayfly.registry.pki.context import ServerTLS
from tests.support.certificates import self_signed
from tests.support.key_updates import key_updates
from tests.support.secured import NAME

DATA = bytes(range(256)) * 1024
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Pair:
    """A channel and its client, with everything between them in memory."""

    def __init__(self, context: ssl.SSLContext, trust: ssl.SSLContext) -> None:
        self.channel = TLSChannel(context)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = trust.wrap_bio(self.incoming, self.outgoing, server_hostname=NAME)

    def feed(self, crumb: int | None = None) -> bytes:
        """Give the channel what the client has written, in crumbs; what it decrypts to."""
        got, buffer = bytearray(), memoryview(bytearray(1000))
        data = memoryview(self.outgoing.read())
        for at in range(0, len(data), crumb or max(len(data), 1)):
            self.channel.feed(data[at : at + crumb] if crumb else data)
            if self.channel.advance():
                while count := self.channel.read_into(buffer):
                    got += buffer[:count]
        self.incoming.write(self.channel.take())
        return bytes(got)

    def shake_hands(self, crumb: int | None = None) -> None:
        """Open the channel."""
        while not self.channel.is_open:
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                assert self.outgoing.pending
            self.feed(crumb)
        self.client.do_handshake()

    def receive(self) -> bytes:
        """What the client decrypts of all that it was given."""
        got = bytearray()
        try:
            while piece := self.client.read(65536):
                got += piece
        except ssl.SSLWantReadError:
            pass
        return bytes(got)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    """Makes pairs; the client's keys are in ``keys``."""
    files = self_signed(tmp_path)
    context = ServerTLS(files.certificate, files.key).context

    def make(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Pair:
        trust = ssl.create_default_context(cafile=files.certificate)
        trust.minimum_version = trust.maximum_version = version
        trust.keylog_filename = str(tmp_path / "keys")
        return Pair(context, trust)

    yield make


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("crumb", [1, 7, None])
def test_crumbs(make: Callable[..., Pair], version: ssl.TLSVersion, crumb: int | None) -> None:
    """However the bytes are cut, the handshake is done and the content is whole, both ways."""
    pair = make(version)
    pair.shake_hands(crumb)
    assert pair.client.version() == version.name.replace("_", ".")
    pair.client.write(DATA[:50_000])
    assert pair.feed(crumb) == DATA[:50_000]
    for records in pair.channel.encrypt(memoryview(DATA)):
        pair.incoming.write(records)
    assert pair.receive() == DATA


def test_buffer_that_is_smaller_than_a_record(make: Callable[..., Pair]) -> None:
    """The rest of a record stays for the next buffer; a full buffer says that there may be more."""
    pair = make()
    pair.shake_hands()
    pair.client.write(DATA[:10_000])
    pair.channel.feed(memoryview(pair.outgoing.read()))
    buffer = memoryview(bytearray(6_000))
    assert pair.channel.read_into(buffer) == 6_000
    assert buffer == DATA[:6_000]
    assert pair.channel.read_into(buffer) == 4_000
    assert pair.channel.read_into(buffer) == 0
    assert not pair.channel.has_ended


def test_pieces(make: Callable[..., Pair]) -> None:
    """OpenSSL is given at most as many bytes at once as the channel may take memory for."""
    pair = make()
    pair.shake_hands()
    before = pair.channel.encrypted
    records = pair.channel.encrypt(memoryview(DATA))
    assert len(records) == len(DATA) // SMALL_WRITE
    assert sum(map(len, records)) == pair.channel.encrypted - before > len(DATA)


def test_key_updates(make: Callable[..., Pair], tmp_path: Path) -> None:
    """Each is answered, in order with the content; a flood of them costs only its answers."""
    pair = make()
    pair.shake_hands()
    pair.channel.take()
    pair.channel.feed(memoryview(key_updates(20_000, pair.client, tmp_path / "keys")))
    assert pair.channel.read_into(memoryview(bytearray(1000))) == 0
    answers = pair.channel.take()
    assert 20_000 * 20 < len(answers) < 20_000 * 60
    pair.incoming.write(answers)
    for records in pair.channel.encrypt(memoryview(b"after")):
        pair.incoming.write(records)
    assert pair.receive() == b"after"


@pytest.mark.parametrize("version", VERSIONS)
def test_half_close_by_the_client(make: Callable[..., Pair], version: ssl.TLSVersion) -> None:
    """What came before close_notify is decrypted; the channel can still answer after it."""
    pair = make(version)
    pair.shake_hands()
    pair.client.write(b"last")
    with pytest.raises(ssl.SSLError):
        pair.client.unwrap()
    assert pair.feed() == b"last"
    assert pair.channel.has_ended
    if version is ssl.TLSVersion.TLSv1_3:  # TLS 1.2 ends both directions
        for records in pair.channel.encrypt(memoryview(b"answer")):
            pair.incoming.write(records)
        assert pair.receive() == b"answer"
    pair.channel.close()
    pair.incoming.write(pair.channel.take())
    pair.client.unwrap()


@pytest.mark.parametrize("version", VERSIONS)
def test_half_close_by_the_server(make: Callable[..., Pair], version: ssl.TLSVersion) -> None:
    """close_notify goes out once, also if the channel is closed twice, and ends what it sends."""
    pair = make(version)
    pair.shake_hands()
    pair.channel.close()
    notify = pair.channel.take()
    assert notify
    pair.channel.close()
    assert pair.channel.take() == b""
    pair.incoming.write(notify)
    assert pair.receive() == b""
    with pytest.raises(ssl.SSLError):
        pair.channel.encrypt(memoryview(b"more"))


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"]
)
def test_garbage(make: Callable[..., Pair], data: bytes) -> None:
    """It breaks the channel, and an alert says so."""
    channel = make().channel
    with pytest.raises(ssl.SSLError):
        channel.feed(memoryview(data))
        channel.advance()
    assert not channel.is_open


@pytest.mark.parametrize("crumb", [1, 9, 1000])
def test_large_first_message(make: Callable[..., Pair], crumb: int) -> None:
    """It is refused as soon as its head has arrived, before OpenSSL takes memory for it."""
    hello = b"\x16\x03\x01\x40\x00\x01\x01\x00\x00" + bytes(1000)
    channel = make().channel
    fed = 0
    with pytest.raises(ssl.SSLError, match="first message"):
        for at in range(0, len(hello), crumb):
            channel.feed(memoryview(hello[at : at + crumb]))
            channel.advance()
            fed = at + crumb
    assert fed < 9


def test_forged_record(make: Callable[..., Pair]) -> None:
    """A record that the client did not encrypt ends everything, with an alert for the client."""
    pair = make()
    pair.shake_hands()
    pair.channel.take()
    pair.channel.feed(memoryview(b"\x17\x03\x03\x00\x40" + bytes(64)))
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        pair.channel.read_into(memoryview(bytearray(1000)))
    pair.incoming.write(pair.channel.take())
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        pair.client.read(1)
