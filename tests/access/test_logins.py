"""The front door: merging, pacing and fairness."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable

import bcrypt
import pytest

from mayfly.auth.errors import CredentialsInvalid, LoginsBusy
from mayfly.auth.identity import Identity
from mayfly.auth.login_history import MAX_MISSES, MISSES_EVERY, RECENT
from mayfly.auth.networks import network_of
from mayfly.auth.throttle import FIRST_DELAY, MAX_DELAY, Throttle
from mayfly.auth.users import Users, hash_password
from mayfly.auth.verify import CredentialVerifier
from mayfly.registry.access import logins as logins_module
from mayfly.registry.access.logins import (
    MAX_WAITING,
    MAX_WAITING_PER_NETWORK,
    MAX_WAITING_PER_PAIR,
    Logins,
)
from tests.auth.clock import Clock
from tests.support.beside import run_what_is_ready
from tests.support.process import PATIENCE

SECRET = hash_password("secret", 4)


class Desk:
    """Logins whose waits pass at once and whose bcrypts can be held up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, threads: int = 1) -> None:
        self.users = Users({"bob": SECRET, "alice": SECRET})
        self.throttle = Throttle(Clock())
        self.slept: list[float] = []
        self.checked: list[bytes] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        verifier = CredentialVerifier(lambda: self.users)
        self.clock = Clock()
        self.logins = Logins(verifier, self.throttle, threads, self._sleep, self.clock)

        def checkpw(password: bytes, hashed: bytes) -> bool:
            self.gate.wait(PATIENCE)
            self.checked.append(password)
            self.threads.add(threading.current_thread().name)
            return password == b"secret" and hashed == SECRET

        monkeypatch.setattr(bcrypt, "checkpw", checkpw)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    async def refused(self, name: str, password: str, address: str) -> None:
        with pytest.raises(CredentialsInvalid):
            await self.logins.authenticate(name, password, address)

    def login(self, name: str, address: str) -> asyncio.Task[Identity]:
        return asyncio.create_task(self.logins.authenticate(name, "secret", address))

    def start(self, name: str, password: str, address: str) -> asyncio.Task[None]:
        return asyncio.create_task(self.refused(name, password, address))


@pytest.fixture
async def desk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    desk = Desk(monkeypatch)
    yield desk
    desk.gate.set()
    desk.logins.close()


async def test_bcrypt_runs_off_the_loop(desk: Desk) -> None:
    """The right password is checked in a worker thread, once."""
    for _ in range(3):
        assert (await desk.logins.authenticate("bob", "secret", "a")).name == "bob"
    assert desk.checked == [b"secret"]
    assert desk.threads == {"login_0"}


@pytest.mark.parametrize("addresses", [1, 200])
async def test_login_storm_runs_one_bcrypt(desk: Desk, addresses: int) -> None:
    """Two hundred logins at once with one credential, from one address or as many."""
    desk.gate.clear()
    storm = [
        asyncio.create_task(desk.logins.authenticate("bob", "secret", str(number % addresses)))
        for number in range(200)
    ]
    await run_what_is_ready(50)
    desk.gate.set()
    assert {identity.name for identity in await asyncio.gather(*storm)} == {"bob"}
    assert desk.checked == [b"secret"]


async def test_login_storm_runs_one_bcrypt_with_threads_to_spare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Idle workers do not repeat what one of them is at."""
    desk = Desk(monkeypatch, threads=4)
    desk.gate.clear()
    storm = [
        asyncio.create_task(desk.logins.authenticate("bob", "secret", str(number)))
        for number in range(8)
    ]
    await run_what_is_ready(50)
    desk.gate.set()
    await asyncio.gather(*storm)
    desk.logins.close()
    assert desk.checked == [b"secret"]


async def test_storm_of_one_wrong_password_runs_one_bcrypt(desk: Desk) -> None:
    """Two hundred pods with one stale Secret are refused after one bcrypt."""
    desk.gate.clear()
    storm = [desk.start("bob", "stale", str(number % 20)) for number in range(200)]
    await run_what_is_ready(50)
    desk.gate.set()
    await asyncio.gather(*storm)
    assert desk.checked == [b"stale"]


async def test_failures_make_the_next_attempt_wait(desk: Desk) -> None:
    """Each failure counts, also one whose result is remembered."""
    for password in ("one", "two", "two", "three"):
        await desk.refused("bob", password, "a")
    assert desk.slept == [0, FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY]
    await desk.logins.authenticate("bob", "secret", "a")
    assert desk.throttle.delay("bob", "a") == 0


async def test_attacker_delays_neither_user_nor_address(desk: Desk) -> None:
    """The user elsewhere and other users there log in without a wait."""
    for number in range(10):
        await desk.refused("bob", f"wrong{number}", "attacker")
    desk.slept.clear()
    await desk.logins.authenticate("bob", "secret", "home")
    await desk.logins.authenticate("alice", "secret", "attacker")
    assert desk.slept == [0, 0]


async def test_known_user_is_let_in_whatever_failed(desk: Desk) -> None:
    """A remembered right password does not wait, even where others fail as the same user."""
    await desk.logins.authenticate("bob", "secret", "a")
    for number in range(10):
        await desk.refused("bob", f"wrong{number}", "a")
    desk.slept.clear()
    await desk.logins.authenticate("bob", "secret", "a")
    assert desk.slept == []


async def test_many_connections_guess_no_faster(desk: Desk) -> None:
    """Guesses sent at once wait one after another, as if sent one by one."""
    guesses = [desk.start("bob", f"guess{number}", "a") for number in range(8)]
    await asyncio.gather(*guesses)
    assert desk.slept == [0, 0.25, 0.5, 1, 2, 4, MAX_DELAY, MAX_DELAY]


async def test_flood_from_one_address_holds_nobody_else_up(desk: Desk) -> None:
    """A login elsewhere waits for one bcrypt of the flood, not for all that came before."""
    desk.gate.clear()
    flood = [desk.start(f"user{number}", "x", "attacker") for number in range(300)]
    await run_what_is_ready(50)
    login = asyncio.create_task(desk.logins.authenticate("bob", "secret", "home"))
    await run_what_is_ready(50)
    desk.gate.set()
    await login
    assert desk.checked.index(b"secret") == 1
    desk.logins.close()
    for attempt in flood:
        attempt.cancel()
    await asyncio.gather(*flood, return_exceptions=True)


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("attempts", "user", "address"),
    [
        ([(f"user{number}", "nat") for number in range(700)], "bob", "nat"),
        ([("bob", f"192.0.2.{number}") for number in range(300)], "alice", "198.51.100.1"),
    ],
    ids=["700 made-up names of its own address", "300 addresses with an attempt each"],
)
async def test_floods_hold_nobody_up(
    desk: Desk, attempts: list[tuple[str, str]], user: str, address: str
) -> None:
    """A first login beside others that fail is the next to be checked."""
    desk.gate.clear()
    flood = [
        desk.start(name, f"x{number}", source) for number, (name, source) in enumerate(attempts)
    ]
    await run_what_is_ready(50)
    login = desk.login(user, address)
    await run_what_is_ready(50)
    desk.gate.set()
    await login
    assert desk.checked.index(b"secret") == 1
    desk.logins.close()
    await _end(flood)


@pytest.mark.parametrize("again", ["2001:db8::2", "2001:db8::ffff:ffff:ffff:1", "2001:db8::1"])
async def test_network_that_failed_waits_for_others(desk: Desk, again: str) -> None:
    """A network with recent failures waits for later attempts without; a /64 is one network."""
    await desk.refused("bob", "x", "2001:db8::1")
    desk.checked.clear()
    desk.gate.clear()
    first = [desk.start("bob", "first", "busy")]
    await run_what_is_ready(50)
    late = [desk.start("alice", "clean", "2001:db8:0:1::1"), desk.start("eve", "failed", again)]
    await run_what_is_ready(50)
    desk.gate.set()
    await asyncio.gather(*first, *late)
    assert desk.checked == [b"first", b"clean", b"failed"]


async def test_recent_users_have_a_lane(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users that logged in lately come before all others, in any order of arrival, for a day."""
    monkeypatch.setattr(desk.logins._verifier, "recall", lambda *_: None)
    await desk.logins.authenticate("bob", "secret", "nat")
    for since, place in ((0.0, 1), (RECENT, 2)):
        desk.users = Users({"bob": SECRET, "alice": SECRET})  # nothing is remembered
        desk.clock.now += since
        desk.checked.clear()
        desk.gate.clear()
        flood = [desk.start("eve", f"first{since}", "elsewhere")]
        await run_what_is_ready(50)
        login = desk.login("bob", "nat")
        await run_what_is_ready(50)
        flood.append(desk.start("mallory", f"last{since}", "anywhere"))
        await run_what_is_ready(50)
        desk.gate.set()
        await asyncio.gather(login, *flood)
        assert desk.checked.index(b"secret") == place


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::"),
        ("2001:db8:0:0:ffff::1", "2001:db8::"),
        ("2001:db8:0:1::1", "2001:db8:0:1::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("no address", "no address"),
    ],
)
def test_networks(address: str, network: str) -> None:
    """An address belongs to itself, an IPv6 address to its /64."""
    assert network_of(address) == network


async def test_all_that_waits_is_bounded(desk: Desk) -> None:
    """A bounded number waits, however many addresses; those that came first are told "busy"."""
    desk.gate.clear()
    checked = desk.start("bob", "first", "a")
    await run_what_is_ready(50)
    addresses = [f"198.51.{number // 200}.{number % 200}" for number in range(MAX_WAITING + 100)]
    flood = [
        asyncio.create_task(desk.logins.authenticate("bob", address, address))
        for address in addresses
    ]
    await run_what_is_ready(50)
    done = [number for number, task in enumerate(flood) if task.done()]
    assert done == list(range(101)), "the one that is being checked counts, and stays"
    assert not checked.done()
    assert {type(flood[number].exception()) for number in done} == {LoginsBusy}
    # No failure of theirs: nobody looked at their passwords.
    assert desk.throttle.delay("bob", addresses[0]) == 0
    desk.logins.close()
    desk.gate.set()
    await asyncio.gather(checked, *flood, return_exceptions=True)


async def test_nobody_waits_for_ever(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `MAX_WAIT` an attempt is told that it is busy; the next of the same is another."""
    monkeypatch.setattr(logins_module, "MAX_WAIT", 0.01)
    desk.gate.clear()
    with pytest.raises(LoginsBusy):
        await desk.logins.authenticate("bob", "first", "a")
    with pytest.raises(LoginsBusy):
        await desk.logins.authenticate("alice", "secret", "b")
    monkeypatch.setattr(logins_module, "MAX_WAIT", 60)
    login = desk.login("alice", "b")
    await run_what_is_ready(50)
    desk.gate.set()
    assert (await login).name == "alice"


async def test_guesses_are_not_told_apart_by_recall(desk: Desk) -> None:
    """After a number of guesses at a user from an address the right one waits its turn there, too.

    Elsewhere it does not, and after a minute without guesses nowhere.
    """
    await desk.logins.authenticate("bob", "secret", "home")
    desk.gate.clear()
    guesses = [desk.start("bob", f"guess{number}", "attacker") for number in range(MAX_MISSES)]
    await run_what_is_ready(50)
    right = desk.login("bob", "attacker")
    await run_what_is_ready(50)
    assert not right.done()
    assert (await desk.logins.authenticate("bob", "secret", "home")).name == "bob"
    desk.gate.set()
    await asyncio.gather(right, *guesses)
    # The last to come was the first to have its turn: further guesses delay it by one wait.
    assert len(desk.slept) - desk.slept.index(FIRST_DELAY) >= MAX_WAITING_PER_PAIR - 2
    guesses = [desk.start("bob", f"more{number}", "attacker") for number in range(MAX_MISSES)]
    await asyncio.gather(*guesses)
    desk.clock.now += MISSES_EVERY
    desk.gate.clear()
    assert (await desk.logins.authenticate("bob", "secret", "attacker")).name == "bob"


async def test_what_may_wait_is_bounded(desk: Desk) -> None:
    """Past the bounds the oldest attempts are refused, of the pair and the address concerned."""
    desk.gate.clear()
    guesses = [desk.start("bob", f"guess{number}", "a") for number in range(40)]
    names = [desk.start(f"user{number}", "x", "b") for number in range(600)]
    await run_what_is_ready(50)
    assert sum(not task.done() for task in guesses) == MAX_WAITING_PER_PAIR
    assert sum(not task.done() for task in names) == MAX_WAITING_PER_NETWORK
    desk.gate.set()
    await asyncio.gather(*guesses, *names)
    await desk.logins.authenticate("bob", "secret", "a")


async def test_cancelled_caller_leaves_others_alone(desk: Desk) -> None:
    """A client that goes away takes nobody's login with it."""
    desk.gate.clear()
    first = asyncio.create_task(desk.logins.authenticate("bob", "secret", "a"))
    second = asyncio.create_task(desk.logins.authenticate("bob", "secret", "a"))
    other = asyncio.create_task(desk.logins.authenticate("bob", "secret", "b"))
    await run_what_is_ready(50)
    first.cancel()
    desk.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert ((await second).name, (await other).name) == ("bob", "bob")
    assert desk.checked == [b"secret"]


async def test_nobody_left_to_tell(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal that nobody waits for any more is not logged as an error."""
    desk.gate.clear()
    task = desk.start("bob", "wrong", "a")
    await run_what_is_ready(50)
    task.cancel()
    desk.gate.set()
    await asyncio.gather(task, return_exceptions=True)
    await desk.refused("bob", "wrong", "a")
    assert caplog.records == []
