"""Guessing, enumerating and storming logins: what it costs, and whom it holds up.

Costs are counted in bcrypts, never timed: each call is recorded with the cost of its hash.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import bcrypt
import pytest

from mayfly.auth.identity import Permission
from mayfly.auth.policy import EVERYTHING
from mayfly.auth.roles import Role
from mayfly.auth.users import cost_of, hash_password
from mayfly.registry.access.logins import MAX_WAITING_PER_NETWORK
from tests.security.registries import (
    NOBODY,
    Registry,
    by_password,
    password_of,
    push_blob,
    registry,
)
from tests.support.client import Answer, basic
from tests.support.process import until

TOKEN = "/auth/token"


class Bcrypt:
    """Every bcrypt that was run: the cost of each, and a gate that can hold them up."""

    def __init__(self, check: object) -> None:
        self._check = check
        self.costs: list[int] = []
        self.passwords: list[bytes] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, password: bytes, hashed: bytes) -> bool:
        self.costs.append(cost_of(hashed))
        self.passwords.append(password)
        assert self.gate.wait(60), "a held-up bcrypt was forgotten"
        return bool(self._check(password, hashed))  # type: ignore[operator]


@pytest.fixture
def bcrypts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bcrypt]:
    """Counts bcrypts."""
    counted = Bcrypt(bcrypt.checkpw)
    monkeypatch.setattr(bcrypt, "checkpw", counted)
    yield counted
    counted.gate.set()


async def test_unknown_user_costs_as_much_as_a_known_one(memory: Path, bcrypts: Bcrypt) -> None:
    """One bcrypt for any name, at the file's costs, and the same answer byte for byte."""
    costs = {"cheap": 4, "dear": 6}
    users = {name: hash_password(password_of(name), cost) for name, cost in costs.items()}
    async with registry(memory / "root", users=users, grants=()) as made:
        answers = [
            await made.server.ask("GET", TOKEN, [basic(name, "guess")])
            for name in ("cheap", "dear", *(f"unknown-{n}" for n in range(40)))
        ]
    assert len(bcrypts.costs) == 42
    assert bcrypts.costs[:2] == [4, 6]
    # By a keyed hash of the name: each cost for some, none for all (chance of less: 2 in 2**40).
    assert set(bcrypts.costs[2:]) == {4, 6}
    assert len({(a.status, a.body, _without_date(a)) for a in answers}) == 1


def _without_date(answer: Answer) -> str:
    return str([item for item in answer.headers.items() if item[0] != "Date"])


async def test_a_name_is_as_dear_every_time(memory: Path, bcrypts: Bcrypt) -> None:
    """Asking again with another password tells nothing: an unknown name keeps its cost."""
    users = {n: hash_password(password_of(n), cost) for n, cost in (("a", 4), ("b", 6))}
    async with registry(memory / "root", users=users, grants=()) as made:
        for guess in range(6):
            await made.server.ask("GET", TOKEN, [basic("unknown", f"guess {guess}")])
    assert len(bcrypts.costs) == 6 and len(set(bcrypts.costs)) == 1


@pytest.mark.parametrize("password", ["", "x" * 73, "a\0b", "\u20ac" * 25])
async def test_impossible_password_costs_nobody(
    password: str, closed: Registry, bcrypts: Bcrypt
) -> None:
    """What cannot be anyone's password is refused without bcrypt, for known and unknown alike."""
    answers = [
        await closed.server.ask("GET", TOKEN, [basic(name, password)])
        for name in ("developer", "unknown")
    ]
    assert [answer.status for answer in answers] == [401, 401]
    assert answers[0].body == answers[1].body
    assert bcrypts.costs == []


async def test_72_bytes_are_not_a_prefix(memory: Path) -> None:
    """bcrypt reads 72 bytes: a password longer than the right one is not right."""
    users = {"long": hash_password("p" * 72, 4)}
    async with registry(memory / "root", users=users, grants=()) as made:
        for password, status in (("p" * 72, 200), ("p" * 73, 401), ("p" * 71, 401)):
            answer = await made.server.ask("GET", TOKEN, [basic("long", password)])
            assert answer.status == status


async def test_refusals_do_not_tell_repositories_apart(closed: Registry) -> None:
    """To whom may not pull, what exists looks like what does not, by any method."""
    digest = push_blob(closed.store, "secret/app", b"secret")
    for headers, status in (([], 401), ([by_password(NOBODY)], 403), ([by_password("guest")], 403)):
        for path in (f"blobs/{digest}", f"manifests/{digest}", "tags/list", f"referrers/{digest}"):
            for method in ("GET", "HEAD"):
                found, missing = [
                    await closed.server.ask(method, f"/v2/{name}/{path}", headers)
                    for name in ("secret/app", "secret/not")
                ]
                if found.status == 405:
                    continue
                assert found.status == missing.status == status
                assert found.body.replace(b"secret/app", b"secret/not") == missing.body


async def test_storm_of_one_credential_is_one_bcrypt(closed: Registry, bcrypts: Bcrypt) -> None:
    """200 nodes with the same right password at once, from 20 addresses: one bcrypt."""
    answers = await asyncio.gather(
        *(
            closed.server.ask(
                "GET", TOKEN, [by_password("developer")], source=f"127.0.1.{n % 20 + 1}"
            )
            for n in range(200)
        )
    )
    assert [answer.status for answer in answers] == [200] * 200
    assert len(bcrypts.costs) == 1


async def test_storm_of_wrong_credentials_is_one_bcrypt(closed: Registry, bcrypts: Bcrypt) -> None:
    """200 nodes with the same stale password at once: one bcrypt, all refused, none asked twice."""
    answers = await asyncio.gather(
        *(
            closed.server.ask(
                "GET", TOKEN, [basic("developer", "stale")], source=f"127.0.1.{n + 1}"
            )
            for n in range(200)
        )
    )
    assert [answer.status for answer in answers] == [401] * 200
    assert len(bcrypts.costs) == 1


async def test_transfer_goes_on_through_200_logins(memory: Path, bcrypts: Bcrypt) -> None:
    """200 users log in at once, each a bcrypt: a pull under way continues between them."""
    names = [f"user-{n}" for n in range(200)]
    hashed = hash_password("the same for all", 7)
    grants = [("user-0", Role.GUEST, "**")]
    async with registry(memory / "root", users=dict.fromkeys(names, hashed), grants=grants) as made:
        content = bytes(32 * 1024 * 1024)
        digest = push_blob(made.store, "team/app", content)
        user = basic(names[0], "the same for all")
        assert (await made.server.ask("GET", "/v2/", [user])).status == 200
        begun = len(bcrypts.costs)
        async with _pulling(made, f"/v2/team/app/blobs/{digest}", user) as reader:
            storm = [
                asyncio.create_task(
                    made.server.ask(
                        "GET",
                        TOKEN,
                        [basic(name, "the same for all")],
                        source=f"127.0.2.{n % 9 + 1}",
                    )
                )
                for n, name in enumerate(names[1:])
            ]
            await until(lambda: len(bcrypts.costs) > begun)
            steps = []
            for _ in range(32):
                await reader.readexactly(1024 * 1024)
                steps.append(len(bcrypts.costs) - begun)
            answers = await asyncio.gather(*storm)
    assert [answer.status for answer in answers] == [200] * 199
    assert len(bcrypts.costs) - begun == 199
    # The pull was over long before the logins were: it did not wait for them.
    assert steps[-1] < 199, f"bcrypts begun at each MiB of the pull: {steps}"


@asynccontextmanager
async def _pulling(
    made: Registry, target: str, *headers: tuple[str, str]
) -> AsyncIterator[asyncio.StreamReader]:
    """A pull whose head has arrived and whose body is for the block to read."""
    reader, writer = await made.server.connect()
    try:
        writer.write(made.server.render("GET", target, headers, b""))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        yield reader
    finally:
        writer.close()


async def test_storm_from_one_address_delays_another_by_one(
    closed: Registry, bcrypts: Bcrypt
) -> None:
    """300 guesses wait at one address; a login from elsewhere waits for the one under way."""
    bcrypts.gate.clear()
    storm = [
        asyncio.create_task(
            closed.server.ask("GET", TOKEN, [basic(f"guess-{n}", "x")], source="127.0.3.1")
        )
        for n in range(300)
    ]
    await until(lambda: _attempts(closed) == 300)
    under_way = len(bcrypts.costs)
    own = asyncio.create_task(
        closed.server.ask("GET", TOKEN, [by_password("developer")], source="127.0.3.2")
    )
    await until(lambda: _attempts(closed) == 301)
    bcrypts.gate.set()
    assert (await own).status == 200
    right = bcrypts.passwords.index(password_of("developer").encode())
    # Each thread may begin one more before the first of them to be free begins this one.
    assert right < 2 * under_way, f"{right} guesses came first"
    assert [answer.status for answer in await asyncio.gather(*storm)] == [401] * 300


def _attempts(made: Registry) -> int:
    """Logins that wait or are checked."""
    assert made.guard.authentication is not None
    return len(made.guard.authentication.logins._attempts)


async def test_failures_slow_neither_another_user_nor_another_address(closed: Registry) -> None:
    """The wait is that of one user at one address, and a success ends it."""
    for n in range(8):
        await closed.server.ask("GET", TOKEN, [basic("guest", f"guess {n}")], source="127.0.3.1")
    delay = closed.throttle.delay
    assert delay("guest", "127.0.3.1") == 5.0
    assert delay("developer", "127.0.3.1") == 0.0
    assert delay("guest", "127.0.3.2") == 0.0
    answer = await closed.server.ask("GET", TOKEN, [by_password("guest")], source="127.0.3.1")
    assert answer.status == 200
    assert delay("guest", "127.0.3.1") == 0.0


async def test_unknown_users_are_slowed_as_known_ones(closed: Registry) -> None:
    """How long a refused login is made to wait tells nothing about the name."""
    for n in range(4):
        for name in ("guest", "unknown"):
            await closed.server.ask("GET", TOKEN, [basic(name, f"guess {n}")])
    delays = [closed.throttle.delay(name, "127.0.0.1") for name in ("guest", "unknown")]
    assert delays[0] == delays[1] > 0


async def test_bearer_and_robots_pass_a_storm(closed: Registry, bcrypts: Bcrypt) -> None:
    """Nodes with tokens or short-lived credentials never wait for a bcrypt, storm or not."""
    bcrypts.gate.clear()
    storm = [
        asyncio.create_task(closed.server.ask("GET", TOKEN, [basic(f"guess-{n}", "x")]))
        for n in range(50)
    ]
    await until(lambda: len(bcrypts.costs) == 1)
    robot = closed.robots.issue("node", [Permission(Role.GUEST, EVERYTHING)], 60, time.time())
    for headers in (
        [basic(robot.name, robot.password)],
        [closed.bearer("repository:team/app:pull", now=time.time())],
    ):
        assert (await closed.server.ask("GET", "/v2/", headers)).status == 200
    assert not any(task.done() for task in storm)
    bcrypts.gate.set()
    await asyncio.gather(*storm)


async def test_more_than_may_wait_are_refused_at_once(closed: Registry, bcrypts: Bcrypt) -> None:
    """What waits at one address is bounded: the rest is refused as a wrong password is."""
    bcrypts.gate.clear()
    most = MAX_WAITING_PER_NETWORK
    storm = [
        asyncio.create_task(closed.server.ask("GET", TOKEN, [basic(f"guess-{n}", "x")]))
        for n in range(most + 20)
    ]
    await until(lambda: sum(task.done() for task in storm) == 20)
    refused = [task.result().status for task in storm if task.done()]
    bcrypts.gate.set()
    assert refused == [401] * 20
    assert [answer.status for answer in await asyncio.gather(*storm)] == [401] * (most + 20)


@pytest.mark.parametrize("flow", ["GET", "POST"])
async def test_long_names_are_not_remembered(flow: str, closed: Registry) -> None:
    """A name no user can have costs no memory: 10000 remembered ones of 30 KiB would be 300 MB."""
    longest = 5000 if flow == "GET" else 30_000
    for n in range(3):
        name = f"{n}" + "x" * longest
        if flow == "GET":
            answer = await closed.server.ask("GET", TOKEN, [basic(name, "guess")])
        else:
            form = {"grant_type": "password", "username": name, "password": "guess"}
            answer = await closed.server.ask("POST", TOKEN, [], urlencode(form).encode())
        assert answer.status == 401
    assert closed.guard.authentication is not None
    kept = [name for name, _ in closed.throttle._failures]
    kept += [name for name, _ in closed.guard.audit.refusals]
    assert sum(len(name) for name in kept) < 3 * 1024
