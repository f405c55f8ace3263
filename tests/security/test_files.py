"""Files of users, grants and keys: the modes they may have, and what a broken one does.

Which files are refused and which are mended: a world-readable signing key, CA key or given TLS key
is *refused*, for only its owner knows whether it was read; the TLS key that Mayfly made itself is
*mended*, by a new key and certificate of the same CA; htpasswd and grants.toml may be read by
others, not written.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.registry.access.security import secure
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.settings.loading import load
from mayfly.registry.state.runs import Run
from tests.security.servers import make_auth, refused, server_of
from tests.security.wire import ask
from tests.support.certificates import self_signed
from tests.support.client import basic
from tests.support.commands import mayfly, run_mayfly
from tests.support.process import Mayfly, find_program, need

USERS = {"alice": "the password of alice", "bob": "the password of bob"}
TAGS = "/v2/team/app/tags/list"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for --auth: alice may pull team/**, bob nothing."""
    directory = tmp_path_factory.mktemp("template") / "auth"
    return make_auth(directory, USERS, [("alice", "guest", "team/**")])


@pytest.fixture
def auth(template: Path, tmp_path: Path) -> Path:
    """A copy of it for the test to spoil."""
    return Path(shutil.copytree(template, tmp_path / "auth"))


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., str]:
    """Take the settings of a server that must not start; the line it would say."""

    def start(**flags: str | Path) -> str:
        flags = {"root": tmp_path / "root", "state_dir": tmp_path / "state", **flags}
        texts = {name: (str(value),) for name, value in flags.items()}
        (tmp_path / "state").mkdir(exist_ok=True)
        settings = load(texts, {}, None)
        run = Run.begin(settings.state_dir, None, {}, settings.signing_key)
        with pytest.raises(ConfigError) as caught, secure(settings, run):
            pass
        line = str(caught.value)
        assert "\n" not in line
        return line

    return start


def status(server: Mayfly, name: str) -> int:
    """What a user gets for the tags of a repository that is empty: 404 is a yes."""
    return ask(server_of(server), "GET", TAGS, [basic(name, USERS[name])]).status


def test_files_made_by_command_are_private(auth: Path) -> None:
    """htpasswd and grants.toml are 0600 in a directory of 0700, and hold no password."""
    assert stat.S_IMODE(auth.stat().st_mode) == 0o700
    for name in ("htpasswd", "grants.toml"):
        assert stat.S_IMODE((auth / name).stat().st_mode) == 0o600
        text = (auth / name).read_text()
        assert not any(password in text for password in USERS.values())


@pytest.mark.parametrize("name", ["htpasswd", "grants.toml"])
def test_symlink_is_read_and_never_written(
    name: str, auth: Path, tmp_path: Path, start_mayfly: Callable[..., Mayfly]
) -> None:
    """A symlinked file works, as Kubernetes mounts Secrets; no command writes through it."""
    real = tmp_path / "elsewhere"
    (auth / name).rename(real)
    (auth / name).symlink_to(real)
    before = real.read_bytes()
    server = start_mayfly("--auth", str(auth))
    assert status(server, "alice") == 404
    if name == "htpasswd":
        done = mayfly(
            "user", "add", "eve", "--password-stdin", "--auth", auth, stdin="a password\n"
        )
    else:
        grant = ("--user", "bob", "--role", "admin", "--repositories", "**")
        done = mayfly("grant", "add", *grant, "--auth", auth)
    assert done.returncode == 2 and "is a symlink" in done.stderr, done.stderr
    assert (auth / name).is_symlink() and real.read_bytes() == before


@pytest.mark.parametrize("name", ["htpasswd", "grants.toml"])
@pytest.mark.parametrize("mode", [0o602, 0o620, 0o666, 0o777])
def test_file_that_others_can_write_is_refused(
    name: str, mode: int, auth: Path, serve: Callable[..., str]
) -> None:
    """Mayfly does not start with it: every user with write access could become admin."""
    (auth / name).chmod(mode)
    line = serve(auth=auth)
    assert str(auth / name) in line and "chmod go-w" in line


@pytest.mark.parametrize(
    "what", ["missing", "directory", "fifo", "dangling", "endless", "unreadable path"]
)
def test_odd_file_is_refused(
    what: str, auth: Path, tmp_path: Path, serve: Callable[..., str]
) -> None:
    """What is no regular file of a sane size is refused in one line, and never waited for."""
    file = auth / "htpasswd"
    file.unlink()
    match what:
        case "directory":
            file.mkdir()
        case "fifo":
            os.mkfifo(file)
        case "dangling":
            file.symlink_to(tmp_path / "nowhere")
        case "endless":
            file.symlink_to("/dev/zero")
        case "unreadable path":
            file.symlink_to(file)
    assert str(file) in serve(auth=auth)


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o666])
def test_signing_key_open_to_others_is_refused(
    mode: int, tmp_path: Path, serve: Callable[..., str]
) -> None:
    """A signing key that others can read makes anyone admin: refused, with the remedy."""
    key = tmp_path / "key"
    key.write_text(secrets.token_urlsafe(48))
    key.chmod(mode)
    line = serve(auth="auto", signing_key=key)
    assert f"chmod 600 {key}" in line


@pytest.mark.parametrize(
    "content", ["", "secret", "secret" * 20, "a" * 64, "-----BEGIN PRIVATE KEY-----\n" + "x" * 64]
)
def test_weak_signing_key_is_refused(
    content: str, tmp_path: Path, serve: Callable[..., str]
) -> None:
    """So is one that is short, guessable or of another kind; it is not shown."""
    key = tmp_path / "key"
    key.write_text(content)
    key.chmod(0o600)
    line = serve(auth="auto", signing_key=key)
    assert str(key) in line
    assert not content or content not in line.replace(str(key), "")


def test_tls_keys_open_to_others(tmp_path: Path, serve: Callable[..., str]) -> None:
    """A given key and the CA's are refused; the server's own is made anew by the same CA."""
    pair = self_signed(tmp_path)
    pair.key.chmod(0o644)
    assert f"chmod 600 {pair.key}" in serve(tls=f"{pair.certificate},{pair.key}")
    state = tmp_path / "state"
    settings = load({"tls": ("auto",), "state_dir": (str(state),)}, {}, None)
    run = Run.begin(state, None, {})
    with secure(settings, run):
        pass
    kept = {name: (state / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt")}
    (state / "tls.key").chmod(0o644)
    with secure(settings, run):
        pass
    assert stat.S_IMODE((state / "tls.key").stat().st_mode) == 0o600
    now = {name: (state / name).read_bytes() for name in kept}
    assert {name for name in kept if now[name] != kept[name]} == {"tls.key", "tls.crt"}
    (state / "ca.key").chmod(0o644)
    assert f"chmod 600 {state / 'ca.key'}" in serve(tls="auto")


def wait_for(server: Mayfly, name: str, wanted: int) -> None:
    """Wait until a user gets a status: files are looked at once a second."""
    server.wait_for(lambda: status(server, name) == wanted)


def test_grants_are_reloaded(auth: Path, start_mayfly: Callable[..., Mayfly]) -> None:
    """A grant made or taken back by command counts without a restart; so does a user removed."""
    server = start_mayfly("--auth", str(auth))
    assert (status(server, "alice"), status(server, "bob")) == (404, 403)
    grant = ("--user", "bob", "--repositories", "team/**", "--auth", auth)
    run_mayfly("grant", "add", *grant, "--role", "guest")
    wait_for(server, "bob", 404)
    run_mayfly("grant", "rm", *grant)
    wait_for(server, "bob", 403)
    run_mayfly("user", "rm", "alice", "--auth", auth)
    wait_for(server, "alice", 401)


def test_kubernetes_swap_is_followed(
    auth: Path, tmp_path: Path, start_mayfly: Callable[..., Mayfly]
) -> None:
    """A mounted Secret changes by a swing of ..data: both files follow it at once."""
    volume = tmp_path / "volume"
    volume.mkdir()
    _publish(volume, auth, "..2026_01_01")
    for name in ("htpasswd", "grants.toml"):
        (volume / name).symlink_to(f"..data/{name}")
    server = start_mayfly("--auth", str(volume))
    assert status(server, "alice") == 404
    grant = ("--user", "alice", "--repositories", "team/**", "--auth", auth)
    run_mayfly("grant", "rm", *grant)
    run_mayfly("grant", "add", "--user", "bob", *grant[2:], "--role", "guest")
    _publish(volume, auth, "..2026_01_02")
    shutil.rmtree(volume / "..2026_01_01")
    wait_for(server, "alice", 403)
    wait_for(server, "bob", 404)


def _publish(volume: Path, content: Path, name: str) -> None:
    """As kubelet's atomic writer does: a new directory, and a symlink renamed over the old."""
    shutil.copytree(content, volume / name)
    (volume / "..data_tmp").symlink_to(name)
    (volume / "..data_tmp").rename(volume / "..data")


BROKEN = {
    "not TOML": "[[grant]\n",
    "unknown key": '[[grant]]\nuser = "bob"\nrole = "admin"\nrepositories = "**"\nx = 1\n',
    "unknown role": '[[grant]]\nuser = "bob"\nrole = "root"\nrepositories = "**"\n',
    "no subject": '[[grant]]\nrole = "guest"\nrepositories = "**"\n',
    "empty subject": '[[grant]]\nuser = ""\nrole = "guest"\nrepositories = "**"\n',
    "undefined group": '[[grant]]\ngroup = "g"\nrole = "guest"\nrepositories = "**"\n',
    "anonymous admin": '[[grant]]\nanonymous = true\nrole = "admin"\nrepositories = "**"\n',
    "not UTF-8": "\udcff\udcfe",
    "endless nesting": "a = " + "[" * 20_000,
    "endless number": "a = " + "1" * 20_000,
    "2 MiB": "# " + "x" * (2 << 20),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_grants_are_refused_at_the_start(
    what: str, auth: Path, serve: Callable[..., str]
) -> None:
    """One line names the file; nothing starts."""
    (auth / "grants.toml").write_bytes(BROKEN[what].encode("utf-8", "surrogateescape"))
    assert str(auth / "grants.toml") in serve(auth=auth)


def test_refusal_is_one_line_of_the_command(auth: Path, tmp_path: Path) -> None:
    """What is said of a file is all that is said: one line, exit code 2, no traceback."""
    (auth / "grants.toml").chmod(0o666)
    directories = ("--root", tmp_path / "root", "--state-dir", tmp_path / "state")
    line = refused("serve", *directories, "--listen", "127.0.0.1:0", "--auth", auth)
    assert line.startswith("mayfly: ") and "chmod go-w" in line


@pytest.mark.parametrize("what", ["unknown role", "endless number"])
def test_broken_grants_keep_the_old_ones(
    what: str, auth: Path, start_mayfly: Callable[..., Mayfly]
) -> None:
    """While it runs, a broken file is said loudly, once, and the old policy stays in force."""
    server = start_mayfly("--auth", str(auth))
    good = (auth / "grants.toml").read_bytes()
    (auth / "grants.toml").write_bytes(BROKEN[what].encode("utf-8", "surrogateescape"))
    _wait_until_said(server, f"{auth / 'grants.toml'} not reloaded")
    (auth / "grants.toml").write_bytes(good + b"# mended\n")
    _wait_until_said(server, f"{auth / 'grants.toml'} reloaded")
    assert server.output().count("not reloaded") == 1
    assert "Traceback" not in server.output()


@pytest.mark.parametrize("bad", [b"eve:plain\n", b""], ids=["not bcrypt", "missing"])
def test_broken_htpasswd_keeps_the_old_users(
    bad: bytes, auth: Path, start_mayfly: Callable[..., Mayfly]
) -> None:
    """A hash that is not bcrypt, or no file at all, locks nobody out and lets nobody in."""
    server = start_mayfly("--auth", str(auth))
    htpasswd = auth / "htpasswd"
    good = htpasswd.read_bytes()
    if bad:
        htpasswd.write_bytes(good + bad)
    else:
        htpasswd.unlink()
    _wait_until_said(server, f"{htpasswd} not reloaded")
    assert ask(server_of(server), "GET", "/v2/", [basic("eve", "plain")]).status == 401
    for line in good.decode().splitlines():
        assert line.partition(":")[2] not in server.output()


def _wait_until_said(server: Mayfly, text: str) -> None:
    """Ask until the server has said something; alice and bob get what they got before."""

    def said() -> bool:
        assert (status(server, "alice"), status(server, "bob")) == (404, 403)
        return text in server.output()

    server.wait_for(said)


def test_apache_htpasswd_works_both_ways(auth: Path, start_mayfly: Callable[..., Mayfly]) -> None:
    """A user of ``htpasswd -B`` logs in, and Apache verifies a password that Mayfly wrote."""
    need("htpasswd")
    program = find_program("htpasswd") or ""
    file = auth / "htpasswd"
    add = [program, "-b", "-B", "-C", "6", str(file), "apache", "made by Apache"]
    subprocess.run(add, check=True, capture_output=True, timeout=30)
    verify = [program, "-b", "-v", str(file), "alice", USERS["alice"]]
    subprocess.run(verify, check=True, capture_output=True, timeout=30)
    file.chmod(0o600)
    server = start_mayfly("--auth", str(auth))
    answer = ask(server_of(server), "GET", "/v2/", [basic("apache", "made by Apache")])
    assert answer.status == 200
    assert status(server, "alice") == 404


def test_node_without_var_is_left_without(tmp_path: Path) -> None:
    """Apply to a bare root and revert leave nothing at all, not even empty directories."""
    root = tmp_path / "node"
    root.mkdir()
    common = ("--runtime", "containerd", "--root-dir", root)
    run_mayfly("node-config", "apply", *common, "--registry", "http://127.0.0.1:5000")
    run_mayfly("node-config", "revert", *common)
    assert sorted(root.rglob("*")) == []
