"""What is issued for a run continues after a crash, and ends with the run: each kind of proof.

A crash is `kill -9` of the server, then a start with the same state directory.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from urllib.parse import urlencode

import pytest

from tests.security.servers import (
    SECURE,
    credential,
    login,
    one_run_users,
    run_then_serve,
    server_of,
)
from tests.security.wire import Server, ask
from tests.support.client import Header, basic, bearer
from tests.support.process import PATIENCE, Mayfly

FORM: Header = ("Content-Type", "application/x-www-form-urlencoded")
SCOPE = "repository:team/app:pull,push"
Start = Callable[..., Mayfly]


@dataclass(frozen=True)
class Issued:
    """Everything that a run issues."""

    users: dict[str, str]
    headers: dict[str, Header]
    refresh: dict[str, str]


def _buy(server: Server, header: Header) -> tuple[Header, str]:
    """An access token, ready to send, and a refresh token."""
    target = f"/auth/token?scope={SCOPE}&offline_token=true"
    answer = ask(server, "GET", target, [header])
    assert answer.status == 200, answer.body
    return bearer(answer.json["token"]), answer.json["refresh_token"]


def issue(process: Mayfly) -> Issued:
    """Take one of each."""
    server = server_of(process)
    made = credential(process, "--push", "--node", "node-1")
    robot = basic(made["username"], made["password"])
    headers = {"admin": login(process), "pull": login(process, "pull"), "robot": robot}
    refresh = {}
    for name in ("admin", "robot"):
        headers[f"{name}'s token"], refresh[name] = _buy(server, headers[name])
    return Issued(one_run_users(process), headers, refresh)


def accepted(server: Server, issued: Issued) -> set[str]:
    """Which of them a server takes."""
    found = {
        name
        for name, header in issued.headers.items()
        if ask(server, "GET", "/v2/", [header]).status == 200
    }
    for name, token in issued.refresh.items():
        form = {"grant_type": "refresh_token", "refresh_token": token, "scope": SCOPE}
        body = urlencode(form).encode()
        answer = ask(server, "POST", "/auth/token", [FORM], body)
        assert answer.status in (200, 401), answer.body
        if answer.status == 200:
            found.add(f"{name}'s refresh token")
    return found


EVERYTHING = {
    *("admin", "pull", "robot", "admin's token", "robot's token"),
    *("admin's refresh token", "robot's refresh token"),
}


@pytest.fixture(params=["own key", "operator's key"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Options of a server, with the run's own signing key or the operator's."""
    if request.param == "own key":
        yield SECURE
        return
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text(token_urlsafe(48))
    yield (*SECURE, "--signing-key", str(key))


def test_crash_goes_on_and_an_end_ends_everything(
    options: tuple[str, ...], start_mayfly: Start, tmp_path: Path
) -> None:
    """After kill -9 all that was issued is good, after a clean stop nothing is.

    Also where both runs sign with a key that the operator gave.
    """
    state = tmp_path / "state"
    first = start_mayfly(*options, state_dir=state)
    issued = issue(first)
    assert accepted(server_of(first), issued) == EVERYTHING
    first.kill()
    again = start_mayfly(*options, state_dir=state)
    assert again.output().count("resuming the run") == 1
    assert accepted(server_of(again), issued) == EVERYTHING
    assert one_run_users(again) == issued.users
    again.stop()
    left = {path.name for path in state.iterdir()}
    assert left.isdisjoint({"run.json", "signing.key", "credentials.json", "coverage.jsonl"})
    later = start_mayfly(*options, state_dir=state)
    assert later.output().count("resuming the run") == 1
    assert accepted(server_of(later), issued) == set()


def test_another_signing_key_at_a_restart_is_named(start_mayfly: Start, tmp_path: Path) -> None:
    """Each way to another key is told, and what the earlier one signed is refused; users stay.

    The same key in another file is no other key.
    """
    state, files = tmp_path / "state", [tmp_path / f"key-{number}" for number in range(3)]
    first, second = token_urlsafe(48), token_urlsafe(48)
    for file, text in zip(files, (first, first, second), strict=True):
        file.touch(mode=0o600)
        file.write_text(text)
    # The options of a start, and whether its key is another than that of the start before.
    starts: list[tuple[tuple[str, ...], bool]] = [
        ((), False),
        ((), False),
        (("--signing-key", str(files[0])), True),
        (("--signing-key", str(files[1])), False),
        (("--signing-key", str(files[2])), True),
        ((), True),
        ((), False),
    ]
    issued = None
    said = 0
    for options, differs in starts:
        process = start_mayfly(*SECURE, *options, state_dir=state)
        said += differs  # all starts write to one file
        told = process.output().count("changed since the previous start: the signing key")
        assert told == said, (options, process.output())
        if issued is not None:
            good = {"admin", "pull"} if differs else EVERYTHING
            assert accepted(server_of(process), issued) == good
        issued = issue(process)
        process.kill()


def test_deadline_counts_from_the_first_start(start_mayfly: Start, tmp_path: Path) -> None:
    """A crash gives no more time; a start after the deadline is another run."""
    state = tmp_path / "state"
    options = (*SECURE, "--max-lifetime", "1h")
    first = start_mayfly(*options, state_dir=state)
    issued = issue(first)
    first.kill()
    file = state / "run.json"
    run = json.loads(file.read_text())
    assert run["deadline"] == pytest.approx(time.time() + 3600, abs=600)

    def elapsed(seconds: float) -> None:
        began = {"started": time.time() - seconds, "deadline": time.time() - seconds + 3600}
        file.write_text(json.dumps(run | began))

    elapsed(3600 - 5)
    again = start_mayfly(*options, state_dir=state)
    again.wait_for(lambda: "maximum lifetime" in again.output())
    assert again.popen.wait(PATIENCE) == 0, again.describe()
    assert not file.exists()
    elapsed(3600 + 5)
    (state / "credentials.json").touch(mode=0o600)
    (state / "credentials.json").write_text(json.dumps(issued.users))
    later = start_mayfly(*options, state_dir=state)
    assert accepted(server_of(later), issued) == set()


BUY = """
import base64, json, os, urllib.request
pair = f"{os.environ['MAYFLY_USERNAME']}:{os.environ['MAYFLY_PASSWORD']}".encode()
url = os.environ["MAYFLY_URL"] + "/auth/token?offline_token=true"
request = urllib.request.Request(url)
request.add_header("Authorization", "Basic " + base64.b64encode(pair).decode())
with urllib.request.urlopen(request) as answer:
    print(json.load(answer)["refresh_token"])
"""


def test_refresh_token_of_a_command_ends_with_the_run(start_mayfly: Start, tmp_path: Path) -> None:
    """What the command of `mayfly run` bought buys nothing in the next run with the same key."""
    token, later = run_then_serve(start_mayfly, tmp_path, sys.executable, "-c", BUY)
    form = {"grant_type": "refresh_token", "refresh_token": token, "scope": SCOPE}
    answer = ask(server_of(later), "POST", "/auth/token", [FORM], urlencode(form).encode())
    assert answer.status == 401
