"""``MAYFLY_`` variables: which are known, and that every command works as `run`'s child."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from mayfly.registry.cli import cli
from mayfly.registry.process.child import environment
from mayfly.registry.settings.environment import GIVEN, check
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.settings.settings import SETTINGS
from mayfly.registry.state.private import Login
from tests.support.commands import assert_refused, mayfly

SERVICES = {
    "MAYFLY_PORT": "tcp://10.0.0.1:5000",
    "MAYFLY_SERVICE_HOST": "10.0.0.1",
    "MAYFLY_SERVICE_PORT": "5000",
    "MAYFLY_SERVICE_PORT_HTTP": "5000",
    "MAYFLY_PORT_5000_TCP": "tcp://10.0.0.1:5000",
    "MAYFLY_PORT_5000_TCP_PROTO": "tcp",
    "MAYFLY_PORT_5000_TCP_PORT": "5000",
    "MAYFLY_PORT_5000_TCP_ADDR": "10.0.0.1",
    "MAYFLY_PORT_53_UDP": "udp://10.0.0.1:53",
    "MAYFLY_REGISTRY_SERVICE_HOST": "10.0.0.1",
    "MAYFLY_REGISTRY_PORT": "tcp://10.0.0.1:5000",
    "MAYFLY_REGISTRY_PORT_5000_TCP_ADDR": "10.0.0.1",
    "MAYFLY_ROOT_DIR_SERVICE_PORT_METRICS": "9090",
}
TESTS = {"MAYFLY_REQUIRE_ALL": "1", "MAYFLY_SOAK": "1", "MAYFLY_SOAK_SECONDS": "60"}


def _none() -> list[str]:
    return []


def test_known() -> None:
    """Settings, what run gives, test variables and Kubernetes' are known; other programs' too."""
    settings = {setting.variable: "" for setting in SETTINGS}
    given = dict.fromkeys(GIVEN, "")
    check({**settings, **given, **SERVICES, **TESTS, "OTHER": "", "XMAYFLY_X": ""}, _none)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MAYFLY_LISTNE", "x", "did you mean MAYFLY_LISTEN?"),
        ("MAYFLY_MAX_LIFETIM", "4h", "did you mean MAYFLY_MAX_LIFETIME?"),
        ("MAYFLY_UNTIL-PULLED", "x", "did you mean MAYFLY_UNTIL_PULLED?"),
        ("MAYFLY_LISTEN_PORT", "5000", "MAYFLY_LISTEN_PORT is unknown"),
        ("MAYFLY_SERVICE_PORT", "http", "MAYFLY_SERVICE_PORT is unknown"),
        ("MAYFLY_", "", "docs/configuration.md"),
        ("MAYFLY_\x1b[2J", "", "MAYFLY_\\x1b[2J is unknown"),
    ],
)
def test_unknown(name: str, value: str, says: str) -> None:
    """Anything else is refused, with the nearest known name."""
    with pytest.raises(ConfigError) as refused:
        check({name: value}, _none)
    assert says in str(refused.value)
    assert str(refused.value).isprintable()


def test_options_of_other_commands() -> None:
    """A variable of a command's option is known to every command, and named where it is near."""
    assert mayfly("ls", "--root", "/", env={"MAYFLY_CERTS_DIR": "/x"}).returncode == 0
    assert_refused(mayfly("ls", env={"MAYFLY_CERTS_DIRS": "/x"}), "did you mean MAYFLY_CERTS_DIR?")


def test_every_command_refuses_a_misspelt_variable() -> None:
    """It is fatal whichever command meets it, in one line and with exit code 2."""
    for name in cli.list_commands(click.Context(cli)):
        done = mayfly(name, env={"MAYFLY_LISTNE": "127.0.0.1:1"})
        assert_refused(done, "MAYFLY_LISTNE is unknown", "MAYFLY_LISTEN?")


def test_given_are_what_run_gives(tmp_path: Path) -> None:
    """The list of variables that run exports is the one in the code that exports them."""
    login = Login("https://h:1", "h:1", "u", "p", tmp_path / "ca.crt")
    given = environment({}, login, tmp_path, tmp_path)
    assert {name for name in given if name.startswith("MAYFLY_")} == set(GIVEN)


EVERY_COMMAND = """
import subprocess, sys
commands = {
    "status": [], "wait": ["--ready"], "node-config": ["show"],
    "node": ["script"], "prefetch": [], "check": [], "ls": [], "du": [], "gc": [],
    "verify": [], "inventory": [], "export": ["--all", "-o", "out.tar"],
    "user": ["ls", "--auth", "."],
    "grant": ["ls", "--auth", "."], "credentials": [], "inspect": ["none:1"], "rm": ["none:1"],
    "diff": ["one.tar", "other.tar"], "audit": ["verify", "none.jsonl"],
    "import": ["none.tar"], "copy": ["none.tar", "store"], "sync": ["/dev/null"],
    "serve": ["--listen", "nowhere"],
    "credential-provider": ["--config", "--host", "h:1"],
    "bundle": ["create", "/dev/null", "-o", "new.tar"], "pack": ["none.tar", "-o", "new.run"],
    "run": ["--listen", "127.0.0.1:0", "--state-dir", "inner", "--", "true"], "stop": ["--help"],
    "report": ["--help"],
}
for name, options in commands.items():
    without = ("bundle", "user", "grant", "credentials", "node-config", "status", "wait", "stop")
    if name not in (*without, "report", "diff", "audit", "credential-provider", "node", "prefetch"):
        options = ["--root", sys.argv[1], *options]
    done = subprocess.run([sys.executable, "-m", "mayfly", name, *options],
                          capture_output=True, text=True)
    print(name, done.returncode, done.stderr.splitlines()[-1:])
"""


def test_every_command_as_child(tmp_path: Path) -> None:
    """No command takes what its parent gave it for a mistake."""
    root = tmp_path / "root"
    (root / "docker/registry/v2").mkdir(parents=True)
    script = tmp_path / "every.py"
    script.write_text(EVERY_COMMAND)
    options = ["--root", root, "--state-dir", tmp_path / "state", "--listen", "127.0.0.1:0"]
    command = [sys.executable, script, root]
    done = mayfly("run", *options, "--", *command, env={**SERVICES, **TESTS}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert lines.keys() == set(cli.list_commands(click.Context(cli)))
    assert "is unknown" not in done.stdout
    for name in ("status", "wait", "node-config", "ls", "du", "gc", "verify", "export", "run"):
        assert lines[name].startswith("0 "), lines
