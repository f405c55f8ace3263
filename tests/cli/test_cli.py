"""The command line as a user meets it: every mistake is one line, exit code 2, no traceback."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

import pytest

from mayfly.registry.settings.settings import SETTINGS
from mayfly.registry.version import VERSION
from tests.support.commands import assert_refused, command_line, environment, mayfly
from tests.support.images import files


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], ["frobnicate", "mayfly --help"]),
        (["--frobnicate"], ["--frobnicate", "mayfly --help"]),
        (["serve", "--frobnicate"], ["--frobnicate", "mayfly serve --help"]),
        (["serve", "--root"], ["--root", "argument"]),
        (["serve", "--read-only=yes"], ["--read-only"]),
        (["serve", "--listen", "5000"], ["--listen", "'5000'", "HOST:PORT"]),
        (["serve", "--listen", "127.0.0.1:70000"], ["--listen", "65535"]),
        (["serve", "--root", ""], ["--root", "path"]),
        (["serve", "--root", "~nosuchuser-of-this-host/x"], ["--root"]),
        (["serve", "--config", "/nonexistent.toml"], ["--config", "/nonexistent.toml"]),
        (["serve", "--config", "/"], ["--config", "directory"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_use(arguments: list[str], words: list[str]) -> None:
    """The line names the option, the value, and what helps."""
    assert_refused(mayfly(*arguments), *words)


def test_no_command() -> None:
    """Without a command: what there is, and exit code 2."""
    done = mayfly()
    assert done.returncode == 2
    assert "serve" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_help() -> None:
    """--version and --help answer on stdout with exit code 0; help names every option."""
    done = mayfly("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert VERSION in done.stdout
    done = mayfly("serve", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"--{setting.name}" in done.stdout for setting in SETTINGS)


def test_closed_standard_streams(tmp_path: Path) -> None:
    """As of `nohup` gone wrong: no file or socket of Mayfly's gets their numbers."""
    show = command_line("--version")
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        script = f'exec "$@" {closed}'
        done = subprocess.run(["sh", "-c", script, "sh", *show], capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")
    where = ("--root", tmp_path / "root", "--state-dir", tmp_path / "state")
    words = command_line("run", *where, "--listen", "127.0.0.1:0", "--", "sh", "-c", "echo x")
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words], env=environment(), timeout=60
    )
    assert done.returncode == 0
    assert re.fullmatch(r"\d+\n", (tmp_path / "state/lock").read_text())


def test_environment_and_file(tmp_path: Path) -> None:
    """A bad variable and a bad key, each named; --config may come from the environment."""
    done = mayfly("serve", env={"MAYFLY_LISTEN": "nowhere"})
    assert_refused(done, "environment variable MAYFLY_LISTEN", "'nowhere'", "HOST:PORT")
    done = mayfly("serve", env={"MAYFLY_READ_ONLY": "perhaps"})
    assert_refused(done, "environment variable MAYFLY_READ_ONLY", "true or false")
    file = tmp_path / "mayfly.toml"
    file.write_text("frobnicate = 1\n")
    assert_refused(mayfly("serve", "--config", file), "frobnicate", str(file))
    assert_refused(mayfly("serve", env={"MAYFLY_CONFIG": str(file)}), "frobnicate", str(file))
    file.write_text('listen = "nowhere"\n')
    assert_refused(mayfly("serve", "--config", file), f"key listen in {file}", "'nowhere'")
    file.write_text("listen = [\n")
    assert_refused(mayfly("serve", "--config", file), str(file), "not TOML")


def _serve(tmp_path: Path, *arguments: str | Path) -> list[str | Path]:
    """`serve` with directories of its own; later options win."""
    directories: list[str | Path] = ["--root", tmp_path / "root", "--state-dir", tmp_path / "state"]
    return ["serve", *directories, "--listen", "127.0.0.1:0", *arguments]


def test_port_in_use(tmp_path: Path) -> None:
    """The line names the address and the option to choose another; nothing was announced."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = mayfly(*_serve(tmp_path, "--listen", address))
    assert_refused(done, address, "in use", "--listen")
    assert not [name for name in files(tmp_path / "state") if "ready.json" in name]


def test_address_that_cannot_be_bound(tmp_path: Path) -> None:
    """What is no address at all is as much an error of use as one that is another host's."""
    done = mayfly(*_serve(tmp_path, "--tls", "off", "--auth", "none", "--listen", "a..b:5000"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--listen" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("kind", ["file", "below a file", "kernel's"])
@pytest.mark.parametrize("option", ["--root", "--state-dir"])
def test_directory_that_cannot_be_used(tmp_path: Path, option: str, kind: str) -> None:
    """A directory that is a file, lies below one, or that nobody may make."""
    file = tmp_path / "file"
    file.write_text("kept")
    path = {"file": file, "below a file": file / "deep", "kernel's": Path("/proc/mayfly")}[kind]
    done = mayfly(*_serve(tmp_path, option, path))
    assert_refused(done, option.strip("-"), str(path))
    assert file.read_text() == "kept"


def test_ready_file_that_cannot_be_written(tmp_path: Path) -> None:
    """Something in the place of ready.json: refused, and no draft of it is left."""
    (tmp_path / "state/ready.json/in-the-way").mkdir(parents=True)
    done = mayfly(*_serve(tmp_path))
    assert_refused(done, "--state-dir", str(tmp_path / "state"))
    assert not files(tmp_path / "state")


def test_failed_start_leaves_no_scratch(tmp_path: Path) -> None:
    """A start that fails after the root was opened removes what it made for itself."""
    (tmp_path / "tmp").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for option in ("--ephemeral", "--no-ephemeral"):
            done = mayfly(
                *_serve(tmp_path, option, "--listen", address),
                env={"TMPDIR": str(tmp_path / "tmp")},
            )
            assert_refused(done, address)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert files(tmp_path / "root") == {}
    assert list((tmp_path / "root").rglob("scratch/*")) == []
