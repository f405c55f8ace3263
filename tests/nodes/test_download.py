"""The one-time URL of a node's script: raced, stolen, late, changed on its way, cut."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mayfly.registry.nodes.download import download_line, pin_of
from mayfly.registry.nodes.target import Target, parse
from mayfly.registry.pki.authority import CertificateFiles
from mayfly.registry.state.scripts import LIFETIME_SECONDS, SCRIPTS, Scripts
from tests.support.beside import Request, answering
from tests.support.client import basic
from tests.support.commands import run_mayfly
from tests.support.process import Mayfly, need, poll

SCRIPT = b"echo ran; : secret-credential\n"
OTHER = b"echo owned\n"
SHELLS = (["dash"], ["bash", "--posix"], ["busybox", "sh"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mayfly]:
    """A registry with TLS and users."""
    top = tmp_path_factory.mktemp("server")
    options = ("--tls", "auto", "--auth", "auto")
    with Mayfly(top / "root", top / "state", *options) as running:
        yield running


@pytest.fixture
def scripts(server: Mayfly) -> Scripts:
    """Its scripts, as the command line adds to them."""
    return Scripts(server.state_dir)


@pytest.fixture
def target(server: Mayfly) -> Target:
    """The registry, as a node is told of it."""
    return parse(server.url, (server.state_dir / "ca.crt").read_bytes())


def _url(server: Mayfly, token: str) -> str:
    return f"{server.url}/mayfly/v1/scripts/{token}"


def _status(server: Mayfly, token: str) -> int:
    """The status of a download."""
    return _answered(server, urllib.request.Request(_url(server, token)))


def _answered(server: Mayfly, request: urllib.request.Request) -> int:
    """The status that answers a request; one with a body if it is a success."""
    context = ssl.create_default_context(cafile=server.state_dir / "ca.crt")
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            assert answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


class Place:
    """A directory for temporary files, and one of programs, that log their arguments."""

    def __init__(self, directory: Path, *programs: str) -> None:
        self.files = directory / "files"
        self.bin = directory / "bin"
        self.log = directory / "arguments"
        for made in (self.files, self.bin):
            made.mkdir()
        # busybox's wget has openssl do TLS: its own knows no signature better than SHA-1.
        tools = ("mktemp", "sha256sum", "cut", "rm", "grep", "sh", "cat", "stat", "openssl")
        for name in (*tools, *programs):
            program = {"old-curl": "curl", "busybox-wget": "wget"}.get(name, name)
            need(program if name != "busybox-wget" else "busybox")
            real = shutil.which(program)
            command = f"exec {real}"
            if name == "busybox-wget":
                command = f"exec {shutil.which('busybox')} wget"
            refusal = 'case "$*" in *pinned*) exit 2 ;; esac\n' if name == "old-curl" else ""
            text = f'#!/bin/dash\necho "{name} $*" >>{self.log}\n{refusal}{command} "$@"\n'
            (self.bin / program).write_text(text)
            (self.bin / program).chmod(0o755)

    def run(self, shell: list[str], line: str) -> subprocess.CompletedProcess[str]:
        """Have a shell read the line from its standard input."""
        program = shutil.which(shell[0])
        assert program is not None
        done = subprocess.run(
            [program, *shell[1:]],
            input=line,
            env={"PATH": str(self.bin), "TMPDIR": str(self.files)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert list(self.files.iterdir()) == []
        return done


@pytest.mark.parametrize(
    ("shell", "program"),
    [
        (shell, program)
        for shell in SHELLS
        for program in ("curl", "old-curl", "wget", "busybox-wget")
        # busybox's shell prefers its own wget.
        if (shell[0], program) != ("busybox", "wget")
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_line_runs_the_script_once(
    scripts: Scripts, target: Target, tmp_path: Path, shell: list[str], program: str
) -> None:
    """By each program and in each shell; the second time nothing is run; nothing stays."""
    need(shell[0])
    place = Place(tmp_path, program)
    token = scripts.add(SCRIPT)
    line = download_line(target, token, SCRIPT, pin_of(target))
    assert line.count("\n") == 1
    done = place.run(shell, line)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    done = place.run(shell, line)
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing was run" in done.stderr
    if program != "busybox-wget" and shell[0] != "busybox":
        assert token not in place.log.read_text()


def test_only_one_complete_download(server: Mayfly, scripts: Scripts) -> None:
    """Of many at once one gets the script."""
    for _ in range(5):
        token = scripts.add(SCRIPT * 1000)
        with ThreadPoolExecutor(12) as threads:
            found = sorted(threads.map(lambda _, t=token: _status(server, t), range(12)))
        assert found == [200, *[404] * 11]
    assert list((server.state_dir / SCRIPTS).iterdir()) == []


def test_old_and_invented_tokens(server: Mayfly, scripts: Scripts) -> None:
    """After ten minutes, and for a token that nobody issued, there is nothing; nor on the disk."""
    token = scripts.add(SCRIPT)
    (path,) = (server.state_dir / SCRIPTS).iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert token not in path.name
    for invented in ("A" * 43, path.name[:43], "..%2f..%2fsigning.key" + "x" * 22):
        assert _status(server, invented) == 404
    old = time.time() - LIFETIME_SECONDS - 1
    os.utime(path, (old, old))
    assert _status(server, token) == 404
    assert not path.exists()


def test_a_stolen_url_is_noticed(
    server: Mayfly, scripts: Scripts, target: Target, tmp_path: Path
) -> None:
    """Where somebody else was first, the line runs nothing, exits 1 and says so."""
    place = Place(tmp_path, "curl")
    token = scripts.add(SCRIPT)
    assert _status(server, token) == 200
    done = place.run(["dash"], download_line(target, token, SCRIPT, pin_of(target)))
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing was run" in done.stderr


def test_no_credential_opens_the_script_of_another_node(server: Mayfly, scripts: Scripts) -> None:
    """Neither a node's own nor an administrator's: nothing lists scripts, only a token reads."""
    token = scripts.add(SCRIPT)
    (path,) = (server.state_dir / SCRIPTS).iterdir()
    made = json.loads(
        run_mayfly(
            *("credentials", "--format", "json", "--node", "thief", "--name", "thief"),
            *("--state-dir", server.state_dir),
        )
    )
    admin = json.loads((server.state_dir / "credentials.json").read_text())["admin"]
    for name, password in ((made["username"], made["password"]), ("admin", admin)):
        header = dict([basic(name, password)])
        for place in ("", "/", f"/{path.name}", f"/{path.stem}", "/victim", f"/{token[:-1]}"):
            url = f"{server.url}/mayfly/v1/scripts{place}"
            request = urllib.request.Request(url, headers=header)
            assert _answered(server, request) in (403, 404), place
    assert _status(server, token) == 200


def test_a_download_that_breaks_spends_nothing(server: Mayfly, scripts: Scripts) -> None:
    """A node that lost the connection can use its line again."""
    token = scripts.add(b"#" * 6_000_000 + SCRIPT)
    host, _, port = server.host.rpartition(":")
    context = ssl.create_default_context(cafile=server.state_dir / "ca.crt")
    with (
        socket.create_connection((host, int(port)), 30) as plain,
        context.wrap_socket(plain, server_hostname=host) as client,
    ):
        head = f"GET /mayfly/v1/scripts/{token} HTTP/1.1\r\nHost: {server.host}\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(1000)
        assert _status(server, token) == 404  # one at a time
        # Reset, so that the server learns of it.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert poll(lambda: (status := _status(server, token)) != 404 and status) == 200
    assert _status(server, token) == 404


@pytest.fixture
def thief(constrained: CertificateFiles) -> Iterator[tuple[str, list[str]]]:
    """A server in the middle with another key, and a script of its own; its URL, and requests."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(constrained.certificate, constrained.key)
    asked = []

    def answer(request: Request) -> None:
        asked.append(request.path)
        request.reply(200, OTHER)

    with answering(answer, context) as host:
        yield f"https://{host}", asked


@pytest.mark.parametrize("program", ["curl", "old-curl", "wget", "busybox-wget"])
def test_a_changed_script_is_not_run(
    target: Target, tmp_path: Path, thief: tuple[str, list[str]], program: str
) -> None:
    """A man in the middle changes nothing; a curl that knows the key does not even ask him."""
    place = Place(tmp_path, program)
    line = download_line(target, "t" * 43, SCRIPT, pin_of(target))
    url, asked = thief
    line = line.replace(target.url, url)
    done = place.run(["dash"], line)
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing was run" in done.stderr
    assert bool(asked) == (program != "curl")
