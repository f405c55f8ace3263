"""Attacks by what is refused: logins and the audit."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from mayfly.registry.access.audit import ADDRESS_BURST, ADDRESS_RATE
from tests.hostile.harness import Hostile, Under
from tests.security.servers import make_auth
from tests.security.wire import Server, ask
from tests.support.client import basic
from tests.support.process import poll

PASSWORD = "correct horse battery staple"
NAMES = 400
ADDRESSES = 200


def _users(tmp_path: Path) -> tuple[str, ...]:
    users = {"node": PASSWORD, "late": PASSWORD}
    grants = [(name, "guest", "**") for name in users]
    return ("--auth", str(make_auth(tmp_path / "auth", users, grants)))


async def _storm(host: str, sources: list[str | None], answered: list[str]) -> None:
    """Log in with a made-up name from each address, at once; note each name once it is answered."""

    async def attempt(source: str | None) -> None:
        name = token_hex(8)
        with suppress(OSError, asyncio.TimeoutError):
            await Server(host).ask("GET", "/auth/token", [basic(name, "guess")], source=source)
        answered.append(name)

    await asyncio.gather(*map(attempt, sources))


def _login_amid(under: Under, sources: list[str | None], *users: str) -> None:
    """Log in from 127.0.0.1 while a storm continues; most of the storm is still waiting then."""
    answered: list[str] = []
    storm = threading.Thread(
        target=lambda: asyncio.run(_storm(under.host, sources, answered)), daemon=True
    )
    storm.start()
    poll(lambda: answered, "no guess was answered")
    for user in users:
        answer = ask(Server(under.host), "GET", "/auth/token", [basic(user, PASSWORD)])
        assert answer.status == 200, answer.body
        waiting = len(sources) - len(answered)
        under.note(f"{user}: {waiting} of {len(sources)} guesses still waited")
        assert waiting > len(sources) // 4
    poll(lambda: not under.going(), "the probes are not answered")
    storm.join(60)


def test_made_up_names_from_one_address(hostile: Hostile, tmp_path: Path) -> None:
    """A right password from the same address is answered before most of the guesses."""
    server = hostile.serve(*_users(tmp_path))
    assert ask(Server(server.host), "GET", "/v2/", [basic("node", PASSWORD)]).status == 200
    with hostile.attack(f"{NAMES} made-up names from one address", before="45 s") as under:
        _login_amid(under, [None] * NAMES, "node", "late")


def test_an_attempt_each_from_many_addresses(hostile: Hostile, tmp_path: Path) -> None:
    """So is one beside an attempt each from 200 addresses, known here or not."""
    server = hostile.serve(*_users(tmp_path))
    assert ask(Server(server.host), "GET", "/v2/", [basic("node", PASSWORD)]).status == 200
    sources: list[str | None] = [f"127.0.{1 + n // 200}.{1 + n % 200}" for n in range(ADDRESSES)]
    with hostile.attack(f"{ADDRESSES} addresses, a guess each", before="26 s") as under:
        _login_amid(under, sources, "node", "late")


def test_refusals_fill_no_disk(hostile: Hostile, tmp_path: Path) -> None:
    """The audit grows by lines a second, whatever is refused; the report knows the number."""
    audit = tmp_path / "audit.jsonl"
    server = hostile.serve(*_users(tmp_path), "--audit", str(audit))
    host = Server(server.host)
    sent = 0
    with hostile.attack("refusals as fast as they go, audited", before="0.6 MB/s") as under:
        while under.going():
            token = ("Authorization", f"Bearer {token_hex(8)}")
            answer = ask(host, "GET", f"/v2/{token_hex(100)}/tags/list", [token])
            assert answer.status == 401
            sent += 1
        seconds = max(one.ended for one in under.answered()) - under.begun
    server.stop()
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert 2 < len(lines) <= 3 + ADDRESS_BURST + (seconds + 60) * ADDRESS_RATE
    assert audit.stat().st_size <= len(lines) * 1024
    dropped = sum(int(line.get("dropped_before", 0)) for line in lines)
    assert sent - len(lines) - 1 <= dropped + ADDRESS_BURST <= sent + ADDRESS_BURST
