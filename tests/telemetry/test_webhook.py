"""Webhooks: receivers that are slow, down, or answer with errors lose nothing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mayfly.registry.settings.loading import load
from mayfly.registry.telemetry import events, webhook
from mayfly.registry.telemetry.events import Event
from mayfly.registry.telemetry.recording import Recording
from mayfly.registry.telemetry.webhook import SIGNATURE, Webhook
from tests.support.process import PATIENCE

SECRET = b"a key of some length"


class Receiver:
    """A receiver of notifications, with the faults of a test."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.statuses: list[int] = []
        """Statuses of the next answers; 200 when there are no more."""
        self.pause = 0.0
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        await asyncio.sleep(self.pause)
        self.requests.append(request)
        self.bodies.append(body)
        status = self.statuses.pop(0) if self.statuses else 200
        if status < 300:
            self.events += json.loads(body)["events"]
        return web.Response(status=status, headers={"Location": "/elsewhere"})


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.take)
    async with TestServer(app) as server:
        found.url = str(server.make_url("/events"))
        yield found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short."""
    monkeypatch.setattr(webhook, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(webhook, "MAX_PAUSE_SECONDS", 0.05)


@contextlib.asynccontextmanager
async def delivering(hook: Webhook) -> AsyncIterator[None]:
    """Deliver while the block runs."""
    task = asyncio.ensure_future(hook.deliver())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def delivered(hook: Webhook) -> None:
    """Wait until nothing waits any more."""
    async with asyncio.timeout(PATIENCE):
        while hook.waiting:  # noqa: ASYNC110 - the file is emptied in a thread
            await asyncio.sleep(0.01)


def some(count: int) -> list[Event]:
    """Events with unique IDs."""
    return [events.new("push") for _ in range(count)]


def ids(found: list[Any]) -> list[str]:
    """Their IDs."""
    return [one["id"] for one in found]


async def test_envelope(receiver: Receiver, tmp_path: Path) -> None:
    """Events arrive in order, in distribution's envelope, signed; the file is empty then."""
    hook = Webhook(receiver.url, tmp_path / "notify", SECRET)
    sent = some(3)
    async with delivering(hook):
        await hook.append(sent)
        await delivered(hook)
    assert ids(receiver.events) == ids(sent)
    assert hook.delivered == 3
    (request,), (body,) = receiver.requests, receiver.bodies
    assert request.method == "POST"
    assert request.headers["Content-Type"] == events.MEDIA_TYPE
    expected = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    assert request.headers[SIGNATURE] == f"sha256={expected}"
    left = {path.name: path.stat() for path in (tmp_path / "notify").iterdir()}
    assert [found.st_size for found in left.values()] == [0]
    assert all(found.st_mode & 0o777 == 0o600 for found in left.values())


async def test_errors_are_retried(receiver: Receiver, tmp_path: Path) -> None:
    """A receiver that answers 500 gets the events again, and so does one that redirects them."""
    receiver.statuses = [500, 307, 401, 202]
    hook = Webhook(receiver.url, tmp_path)
    sent = some(2)
    async with delivering(hook):
        await hook.append(sent)
        await delivered(hook)
    assert ids(receiver.events) == ids(sent)
    assert [request.path for request in receiver.requests] == ["/events"] * 4
    assert SIGNATURE not in receiver.requests[0].headers


async def test_receiver_that_is_down(
    receiver: Receiver, tmp_path: Path, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Events wait for a receiver that is not there, also over a restart; the log says so once."""
    url = f"http://user:password@127.0.0.1:{unused_tcp_port}/events"
    hook = Webhook(url, tmp_path)
    sent = some(5)
    with caplog.at_level(logging.WARNING, "mayfly"):
        async with delivering(hook):
            await hook.append(sent)
            await asyncio.sleep(0.1)
        await hook.finish()
    assert hook.delivered == 0
    assert "password" not in caplog.text
    assert f"the webhook at 127.0.0.1:{unused_tcp_port} does not get events" in caplog.text
    os.rename(_file_of(url, tmp_path), _file_of(receiver.url, tmp_path))  # noqa: PTH104
    again = Webhook(receiver.url, tmp_path)
    async with delivering(again):
        await delivered(again)
    assert ids(receiver.events) == ids(sent)


def _file_of(url: str, directory: Path) -> Path:
    return directory / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.jsonl"


async def test_crash_at_any_byte(receiver: Receiver, tmp_path: Path) -> None:
    """Of a line that a crash cut off nothing is sent; whole ones arrive, each at least once."""
    hook = Webhook(receiver.url, tmp_path)
    sent = some(4)
    await hook.append(sent)
    file = _file_of(receiver.url, tmp_path)
    whole = file.read_bytes()
    for size in range(0, len(whole) + 1, 7):
        receiver.events.clear()
        file.write_bytes(whole[:size])
        again = Webhook(receiver.url, tmp_path)
        await again.finish()
        assert ids(receiver.events) == ids(sent[: whole[:size].count(b"\n")])


async def test_position_survives(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart continues behind the events that were taken."""
    monkeypatch.setattr(webhook, "_BATCH_BYTES", 300)
    hook = Webhook(receiver.url, tmp_path)
    sent = some(10)
    await hook.append(sent)
    receiver.statuses = [200, 200, 500]
    await hook.finish()
    taken = len(receiver.events)
    assert 0 < taken < 10
    again = Webhook(receiver.url, tmp_path)
    await again.finish()
    assert ids(receiver.events) == ids(sent)
    assert again.delivered == 10 - taken


@pytest.mark.parametrize("position", ["", "x", "-5", "3", "99999999"])
async def test_position_that_is_wrong(receiver: Receiver, tmp_path: Path, position: str) -> None:
    """A position that is damaged sends everything again."""
    hook = Webhook(receiver.url, tmp_path)
    sent = some(3)
    await hook.append(sent)
    _file_of(receiver.url, tmp_path).with_suffix(".sent").write_text(position)
    await Webhook(receiver.url, tmp_path).finish()
    assert ids(receiver.events) == ids(sent)


async def test_slow_receiver_delays_nobody(receiver: Receiver, tmp_path: Path) -> None:
    """Events are taken while a receiver lets the sender wait."""
    receiver.pause = 0.2
    hook = Webhook(receiver.url, tmp_path)
    sent = some(300)
    async with delivering(hook):
        for event in sent:
            await hook.append([event])
        assert len(receiver.events) < 300
        receiver.pause = 0
        await delivered(hook)
    assert ids(receiver.events) == ids(sent)


async def test_file_is_bounded(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """What a receiver that takes nothing leaves is bounded; the number that is dropped is known."""
    monkeypatch.setattr(webhook, "MAX_FILE_BYTES", 2000)
    receiver.statuses = [500] * 1000
    hook = Webhook(receiver.url, tmp_path)
    sent = some(100)
    with caplog.at_level(logging.WARNING, "mayfly"):
        for event in sent:
            await hook.append([event])
    kept = hook.waiting
    assert kept <= 2000
    assert f"{hook.dropped} events were dropped" in caplog.text
    receiver.statuses = []
    await hook.finish()
    assert ids(receiver.events) == ids(sent[: 100 - hook.dropped])


async def test_sent_events_leave_room(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that keeps up gets every event, also if some always wait for it."""
    monkeypatch.setattr(webhook, "MAX_FILE_BYTES", 2000)
    monkeypatch.setattr(webhook, "_BATCH_BYTES", 1)
    hook = Webhook(receiver.url, tmp_path)
    sent = some(60)
    await hook.append(sent[:2])
    for event in sent[2:]:
        receiver.statuses = [200, 500]  # takes one, while another waits
        await hook.finish()
        await hook.append([event])
    receiver.statuses = []
    await hook.finish()
    assert hook.dropped == 0
    assert ids(receiver.events) == ids(sent)


@pytest.mark.parametrize("failing", ["_oldest", "_advance"])
async def test_disk_that_fails(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """While the file cannot be read or the delivery noted, nothing ends, and nothing is lost."""
    hook = Webhook(receiver.url, tmp_path)
    sent = some(3)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with delivering(hook):
        with monkeypatch.context() as patch:
            patch.setattr(hook, failing, full)
            await hook.append(sent)
            await asyncio.sleep(0.1)
            assert hook.delivered == 0
        await delivered(hook)
    assert ids(receiver.events)[-3:] == ids(sent)


async def test_end_after_a_writer_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that ended by an error keeps neither the audit nor the report from their end."""
    audit = tmp_path / "audit.jsonl"
    flags = {"audit": (str(audit),), "notify": ("http://127.0.0.1:1/",)}
    settings = load({**flags, "state_dir": (str(tmp_path),)}, {}, None)

    async def broken(self: Webhook) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Webhook, "deliver", broken)
    recording = Recording(settings, "run", "127.0.0.1:5000")
    async with recording.running(lambda: None):
        await asyncio.sleep(0)
        kept, _ = await recording.end("stop", 0)
    assert kept is not None
    assert (kept["events"], kept["unwritten"]) == (2, 0)
