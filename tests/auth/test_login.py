"""The front door: merging, pacing and fairness."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import bcrypt
import pytest

from auth.errors import CredentialsInvalid
from auth.login import MAX_WAITING_PER_ADDRESS, MAX_WAITING_PER_PAIR, Logins
from auth.throttle import FIRST_DELAY, MAX_DELAY, Throttle
from auth.users import Users, hash_password
from auth.verify import CredentialVerifier
from tests.auth.clock import Clock

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
        self.logins = Logins(verifier, self.throttle, threads, sleep=self._sleep)

        def checkpw(password: bytes, hashed: bytes) -> bool:
            self.gate.wait(10)
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

    def start(self, name: str, password: str, address: str) -> asyncio.Task[None]:
        return asyncio.create_task(self.refused(name, password, address))


@pytest.fixture
async def desk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    desk = Desk(monkeypatch)
    yield desk
    desk.gate.set()
    desk.logins.close()


async def _settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


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
    await _settle()
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
    await _settle()
    desk.gate.set()
    await asyncio.gather(*storm)
    desk.logins.close()
    assert desk.checked == [b"secret"]


async def test_storm_of_one_wrong_password_runs_one_bcrypt(desk: Desk) -> None:
    """Two hundred pods with one stale Secret are refused after one bcrypt."""
    desk.gate.clear()
    storm = [desk.start("bob", "stale", str(number % 20)) for number in range(200)]
    await _settle()
    desk.gate.set()
    await asyncio.gather(*storm)
    assert desk.checked == [b"stale"]


async def test_failures_make_the_next_attempt_wait(desk: Desk) -> None:
    """Each failure counts, also one whose verdict is remembered."""
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
    await _settle()
    login = asyncio.create_task(desk.logins.authenticate("bob", "secret", "home"))
    await _settle()
    desk.gate.set()
    await login
    assert desk.checked.index(b"secret") == 1
    desk.logins.close()
    for attempt in flood:
        attempt.cancel()
    await asyncio.gather(*flood, return_exceptions=True)


async def test_what_may_wait_is_bounded(desk: Desk) -> None:
    """Past the bounds attempts are refused at once, for the pair and the address concerned."""
    desk.gate.clear()
    guesses = [desk.start("bob", f"guess{number}", "a") for number in range(40)]
    names = [desk.start(f"user{number}", "x", "b") for number in range(600)]
    await _settle()
    assert sum(not task.done() for task in guesses) == MAX_WAITING_PER_PAIR
    assert sum(not task.done() for task in names) == MAX_WAITING_PER_ADDRESS
    desk.gate.set()
    await asyncio.gather(*guesses, *names)
    await desk.logins.authenticate("bob", "secret", "a")


async def test_cancelled_caller_leaves_others_alone(desk: Desk) -> None:
    """A client that goes away takes nobody's login with it."""
    desk.gate.clear()
    first = asyncio.create_task(desk.logins.authenticate("bob", "secret", "a"))
    second = asyncio.create_task(desk.logins.authenticate("bob", "secret", "a"))
    other = asyncio.create_task(desk.logins.authenticate("bob", "secret", "b"))
    await _settle()
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
    await _settle()
    task.cancel()
    desk.gate.set()
    await asyncio.gather(task, return_exceptions=True)
    await desk.refused("bob", "wrong", "a")
    assert caplog.records == []
