"""What is secret stays where it belongs: not in a log, an audit line, an argument or a mode."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.security.servers import (
    SECURE,
    credential,
    login,
    one_run_users,
    refused,
    run_then_serve,
    server_of,
)
from tests.security.wire import ask
from tests.support.client import Header, basic, bearer
from tests.support.process import REPO, Mayfly, Process

WRONG = "this-is-a-wrong-password"


@dataclass(frozen=True)
class Used:
    """A server after logins and refusals of every kind, and every secret that they held."""

    process: Mayfly
    audit: Path
    secrets: dict[str, str]
    output: str
    audited: list[dict[str, Any]]


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Used]:
    """A server that was used and abused, then stopped."""
    home = tmp_path_factory.mktemp("secrets")
    home.chmod(0o755)
    audit = home / "audit.jsonl"
    process = Mayfly(home / "root", home / "state", *SECURE, "--audit", str(audit))
    try:
        secrets = _use(process)
        _look_at_modes_and_arguments(process, secrets)
        process.stop()
    except BaseException:
        process.kill()
        raise
    audited = [json.loads(line) for line in audit.read_text().splitlines()]
    yield Used(process, audit, secrets, process.output(), audited)


def _use(process: Mayfly) -> dict[str, str]:
    server = server_of(process)
    users = one_run_users(process)
    robot = credential(process)
    token = ask(server, "GET", "/auth/token?offline_token=true", [login(process)]).json
    good = {"grant_type": "password", "username": "admin", "password": users["admin"]}
    assert ask(server, "POST", "/auth/token", [], urlencode(good).encode()).status == 200
    right: list[Header] = [
        login(process),
        login(process, "pull"),
        basic(robot["username"], robot["password"]),
        bearer(token["token"]),
        bearer(token["refresh_token"]),
        bearer(token["token"] + "x"),
        basic("robot+node", robot["password"][:-2]),
        ("Authorization", f"Other {WRONG}"),
        ("Authorization", f"Basic {WRONG}"),
        ("Cookie", f"session={WRONG}"),
    ]
    requests = (
        ("GET", "/v2/"),
        ("GET", "/v2/team/app/manifests/1"),
        ("DELETE", "/v2/team/app/manifests/1"),
        ("GET", "/auth/token?scope=repository:team/app:pull"),
        ("GET", f"/v2/team/app/tags/list?access_token={WRONG}"),
    )
    for header in right:
        for method, target in requests:
            ask(server, method, target, [header])
    # Each of these makes the next wait.
    for header in (basic("admin", WRONG), basic("nobody", users["admin"])):
        ask(server, "DELETE", "/v2/team/app/manifests/1", [header])
    wrong = {"grant_type": "password", "username": "admin", "password": WRONG}
    stale = {"grant_type": "refresh_token", "refresh_token": token["refresh_token"] + WRONG}
    for form in (wrong, stale):
        ask(server, "POST", "/auth/token", [], urlencode(form).encode())
    key = (process.state_dir / "signing.key").read_text()
    return {
        "admin's password": users["admin"],
        "pull's password": users["pull"],
        "the robot's password": robot["password"],
        "the robot's signature": robot["password"].rpartition(".")[2],
        "an access token": token["token"].rpartition(".")[2],
        "a refresh token": token["refresh_token"].rpartition(".")[2],
        "a wrong password": WRONG,
        "the signing key": key.strip(),
        "a Basic value": basic("admin", users["admin"])[1].removeprefix("Basic "),
    }


MODES = {
    "ready.json": 0o644,
    "credentials.json": 0o600,
    "signing.key": 0o600,
    "ca.key": 0o600,
    "tls.key": 0o600,
    "ca.crt": 0o644,
    "tls.crt": 0o644,
}


def _look_at_modes_and_arguments(process: Mayfly, secrets: dict[str, str]) -> None:
    found = {name: stat.S_IMODE((process.state_dir / name).stat().st_mode) for name in MODES}
    assert found == MODES
    proc = Path(f"/proc/{process.pid}")
    shown = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
    shown += (process.state_dir / "ready.json").read_bytes()
    for name, secret in secrets.items():
        assert secret.encode() not in shown, f"{name} is shown to every user of the host"


def test_log_holds_no_secret(used: Used) -> None:
    """Nothing that proves anything was printed, and no refusal made a traceback."""
    for name, secret in used.secrets.items():
        assert secret not in used.output, name
    assert "Traceback" not in used.output


def test_audit_holds_no_secret(used: Used) -> None:
    """The audit file is private, names refused users and actions, and holds no proof."""
    text = used.audit.read_text()
    for name, secret in used.secrets.items():
        assert secret not in text, name
    assert stat.S_IMODE(used.audit.stat().st_mode) == 0o600
    denied = [line for line in used.audited if line["outcome"] == "denied"]
    assert {"admin", "pull", "nobody"} <= {line["actor"]["name"] for line in denied}
    assert {line["request"]["addr"] for line in denied} == {"127.0.0.1"}
    denied = [line for line in denied if line["detail"].startswith("may not delete")]
    assert {line["target"]["repository"] for line in denied} == {"team/app"}
    assert {line["action"] for line in denied} == {"delete"}
    assert [used.audited[0]["action"], used.audited[-1]["action"]] == ["start", "end"]


def test_secrets_of_the_run_end_with_it(used: Used) -> None:
    """After a stop neither key nor passwords nor ready.json are left; the CA is kept."""
    left = {path.name for path in used.process.state_dir.iterdir()}
    assert left.isdisjoint({"ready.json", "credentials.json", "signing.key"})
    assert {"ca.crt", "ca.key", "tls.crt", "tls.key"} <= left


def test_state_directory_is_private(tmp_path: Path) -> None:
    """A state directory that Mayfly makes is nobody else's to look into, whatever the umask."""
    state = tmp_path / "state"
    argv = [sys.executable, "-m", "mayfly", "serve", *SECURE, "--listen", "127.0.0.1:0"]
    before = os.umask(0)
    try:
        process = Process(
            [*argv, "--root", tmp_path / "root", "--state-dir", state],
            tmp_path / "output.log",
            cwd=REPO,
        )
    finally:
        os.umask(before)
    try:
        process.wait_for(lambda: (state / "ready.json").exists())
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
    finally:
        process.stop()


def test_audit_that_cannot_be_written_is_no_surprise(tmp_path: Path) -> None:
    """--audit that names no writable file is refused at the start, not found out afterwards."""
    directories = ("--root", tmp_path / "root", "--state-dir", tmp_path / "state")
    audit = tmp_path / "missing" / "audit.jsonl"
    line = refused("serve", *directories, "--listen", "127.0.0.1:0", "--audit", audit)
    assert str(audit) in line


def test_second_server_leaves_the_first_alone(
    start_mayfly: Callable[..., Mayfly], tmp_path: Path
) -> None:
    """A second start with the same state directory is refused, and takes no key or user away."""
    state = tmp_path / "state"
    first = start_mayfly(*SECURE, state_dir=state)
    names = ("ready.json", "credentials.json", "signing.key")
    before = {name: (state / name).read_bytes() for name in names}
    line = refused(
        "serve", *SECURE, "--root", tmp_path / "b", "--state-dir", state, "--listen", first.host
    )
    assert line.startswith("mayfly: ")
    after = {name: (state / name).read_bytes() for name in names if (state / name).exists()}
    assert after == before
    made = credential(first)
    header = basic(made["username"], made["password"])
    assert ask(server_of(first), "GET", "/v2/", [header]).status == 200


def test_secrets_of_a_killed_run_do_not_outlive_the_next_start(
    start_mayfly: Callable[..., Mayfly], tmp_path: Path
) -> None:
    """A start without users removes the key and users that a killed server left."""
    state = tmp_path / "state"
    start_mayfly(*SECURE, state_dir=state).kill()
    assert (state / "signing.key").exists()
    start_mayfly("--auth", "none", state_dir=state)
    left = {path.name for path in state.iterdir()}
    assert left.isdisjoint({"credentials.json", "signing.key"})


def test_names_of_strangers_do_not_write_on_the_terminal(
    start_mayfly: Callable[..., Mayfly],
) -> None:
    """A refused name may hold anything; log and report show the operator printable text only."""
    process = start_mayfly(*SECURE)
    name = "\x1b]0;title\x07\x1b[2J\r\nmayfly: all is well\u202e"
    answer = ask(server_of(process), "GET", "/v2/", [basic(name, "x")])
    assert answer.status == 401
    process.stop()
    shown = process.output()
    assert not [line for line in shown.split("\n") if line and not line.isprintable()]
    assert "\nmayfly: all is well" not in shown


def test_credential_of_a_run_ends_with_it(
    start_mayfly: Callable[..., Mayfly], tmp_path: Path
) -> None:
    """What the command of `mayfly run` was given opens no later server, same signing key or not."""
    command = ("sh", "-c", 'echo "$MAYFLY_USERNAME $MAYFLY_PASSWORD"')
    told, later = run_then_serve(start_mayfly, tmp_path, *command)
    name, password = told.split()
    answer = ask(server_of(later), "GET", "/v2/", [basic(name, password)])
    assert answer.status == 401
