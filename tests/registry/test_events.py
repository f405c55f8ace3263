"""What a server logs of an upgrade, by real processes: nodes, trust, credentials, its command."""

from __future__ import annotations

import http.client
import json
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mayfly.registry.pki.authority import ensure
from mayfly.registry.pki.certificate import fingerprint
from mayfly.registry.state.runs import Run
from tests.bundle.builders import Layout
from tests.support.client import ask, basic
from tests.support.commands import command_line, environment, mayfly
from tests.support.process import PATIENCE, REPO, Mayfly, Process

IMAGE = "quay.io/team/app:1"
RUNTIME = {"User-Agent": "containerd/1.6.20"}
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|WARNING|ERROR) +(.*)")


def lines(output: str) -> list[tuple[str, str]]:
    """Level and text of each line of the log; the report's table has none."""
    return [(found[1], found[2]) for found in map(LINE.fullmatch, output.splitlines()) if found]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """An archive with one image."""
    layout = Layout()
    layout.name(layout.image(b"layer"), IMAGE)
    return layout.write_tar(tmp_path / "bundle.tar")


def test_upgrade(tmp_path: Path, bundle: Path) -> None:
    """The command's end and what is waited for, the node that is complete, the end, the report."""
    (tmp_path / "images").write_text(f"{IMAGE}\n")
    (tmp_path / "nodes").write_text("127.0.0.1\n")
    state = tmp_path / "state"
    words = ["run", bundle, "--root", tmp_path / "root", "--state-dir", state]
    words += ["--listen", "127.0.0.1:0", "--until-pulled", tmp_path / "images"]
    words += ["--nodes", tmp_path / "nodes", "--", "true"]
    argv = command_line(*words)
    with Process(argv, tmp_path / "log", env=environment(), cwd=REPO) as server:
        server.wait_for(lambda: "waiting for coverage" in server.output())
        url = json.loads((state / "ready.json").read_text())["url"]
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)
        connection.request("HEAD", "/v2/team/app/manifests/1?ns=quay.io", headers=RUNTIME)
        assert connection.getresponse().status == 200
        connection.close()
        assert server.popen.wait(PATIENCE) == 0, server.describe()
    told = lines(server.output())
    assert [level for level, _ in told] == ["INFO"] * (len(told) - 1) + ["WARNING"]
    texts = [text for _, text in told]
    assert texts[0].startswith("mayfly ")
    assert texts[0].endswith(f"ready at {url}")
    assert texts[1:4] == [
        "true ended with exit code 0",
        "waiting for coverage (0 of 1 node covered; missing: 127.0.0.1)",
        "127.0.0.1: 1 of 1 image; 1 of 1 node",
    ]
    assert texts[4].startswith("stopping: ")
    assert texts[-2] == f"report: {state}/report.json"
    assert texts[-1].startswith("exit code 0 rests on claims: ")
    assert server.output().splitlines()[-1].endswith("not served by this registry: 127.0.0.1 (1)")


HEAD = """
import os, urllib.request
url = os.environ["MAYFLY_URL"] + "/v2/team/app/manifests/1?ns=quay.io"
agent = {"User-Agent": "containerd/1.6.20"}
urllib.request.urlopen(urllib.request.Request(url, headers=agent, method="HEAD"), timeout=120)
"""


def test_node_that_has_everything_when_the_command_ends(tmp_path: Path, bundle: Path) -> None:
    """Nothing is said to be missing where a node only has to be quiet for a moment, and nothing
    but the claims is printed after the report."""
    (tmp_path / "images").write_text(f"{IMAGE}\n")
    (tmp_path / "nodes").write_text("127.0.0.1\n")
    words: list[str | Path] = ["run", bundle, "--root", tmp_path / "root"]
    words += ["--state-dir", tmp_path / "state"]
    words += ["--listen", "127.0.0.1:0", "--until-pulled", tmp_path / "images"]
    words += ["--nodes", tmp_path / "nodes", "--", sys.executable, "-c", HEAD]
    argv = command_line(*words)
    with Process(argv, tmp_path / "log", env=environment(), cwd=REPO) as server:
        assert server.popen.wait(PATIENCE) == 0, server.describe()
    texts = [text for _, text in lines(server.output())]
    assert texts[1].endswith("ended with exit code 0")
    assert texts[2] == "127.0.0.1: 1 of 1 image; 1 of 1 node"
    assert [text.partition(":")[0] for text in texts[3:]] == [
        "stopping",
        "report",
        "exit code 0 rests on claims",
    ]


def _ask(server: Mayfly, ca: Path | None, user: str = "") -> int:
    """One request over TLS, as a node that trusts this CA, or none."""
    context = ssl.create_default_context(cafile=ca)
    headers = dict([basic(user, "wrong password")] if user else [])
    return ask(server.host, "GET", "/v2/", headers=headers, tls=context).status


def test_a_ca_from_the_future(tmp_path: Path) -> None:
    """A new run does not start: the clock may be behind, and nodes may trust the CA."""
    state = tmp_path / "ahead"
    made = ensure(state, ("127.0.0.1",), datetime.now(UTC) + timedelta(days=3))
    words = ("--root", tmp_path / "root", "--state-dir", state, "--listen", "127.0.0.1:0")
    done = mayfly("serve", *words, "--tls", "auto", "--auth", "auto")
    assert done.returncode == 2
    assert f"is not valid before {made.authority.not_before:%Y-%m-%d %H:%M} UTC" in done.stderr
    assert "set the clock; if it is right now" in done.stderr
    assert fingerprint((state / "ca.crt").read_bytes()) == made.fingerprint


def test_a_run_that_goes_on_keeps_a_ca_from_the_future(
    tmp_path: Path, start_mayfly: Callable[..., Mayfly]
) -> None:
    """A host that has just booted may not know the time yet; its log says what to do."""
    state = tmp_path / "ahead"
    made = ensure(state, ("127.0.0.1",), datetime.now(UTC) + timedelta(days=3))
    Run.begin(state, None, {})
    server = start_mayfly("--tls", "auto", "--auth", "auto", state_dir=state)
    warnings = [text for level, text in lines(server.output()) if level == "WARNING"]
    (text,) = (text for text in warnings if text.startswith("the CA is not valid before"))
    assert "set the clock; if it is right, stop Mayfly, remove ca.crt and ca.key" in text
    assert fingerprint((state / "ca.crt").read_bytes()) == made.fingerprint


def test_nodes_that_are_not_set_up(start_mayfly: Callable[..., Mayfly]) -> None:
    """No trust in the CA, plain HTTP, a wrong password: each is named once, by its address."""
    server = start_mayfly("--tls", "auto", "--auth", "auto")
    ca = Path(json.loads((server.state_dir / "ready.json").read_text())["ca"])
    for _ in range(5):
        with pytest.raises(ssl.SSLCertVerificationError):
            _ask(server, None)
        assert _ask(server, ca, "eve\x1b[2J") == 401
    plain = http.client.HTTPConnection(server.host, timeout=PATIENCE)
    with pytest.raises((http.client.HTTPException, OSError)):
        plain.request("GET", "/v2/")
        plain.getresponse()
    plain.close()
    expected = {
        "127.0.0.1 does not trust this registry's certificate; set the node up as "
        "mayfly node-config show says",  # OpenSSL says that it knows no such CA
        "127.0.0.1 speaks plain HTTP, but TLS is needed here; use https://",
    }

    def warnings() -> list[str]:
        return [text for level, text in lines(server.output()) if level == "WARNING"]

    server.wait_for(lambda: expected <= set(warnings()))
    refused = [text for text in warnings() if "was refused" in text]
    assert len(refused) == 1
    assert refused[0].startswith("eve\\x1b[2J at 127.0.0.1 was refused: ")
    assert len(warnings()) == 3
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(PATIENCE) == 0
    counted = [text for text in warnings() if "(and 4 more like it, the last at " in text]
    assert len(counted) == 2, server.describe()
    assert "\x1b" not in server.output()


def test_status_shows_refused_requests(start_mayfly: Callable[..., Mayfly]) -> None:
    """While the server runs, by user and address, as text and as JSON."""
    server = start_mayfly("--auth", "auto")
    for _ in range(2):
        assert (
            ask(server.host, "GET", "/v2/_catalog", headers=dict([basic("eve", "wrong")])).status
            == 401
        )

    def status(*options: str) -> str:
        words = command_line("status", "--state-dir", server.state_dir, *options)
        return subprocess.run(
            words, capture_output=True, text=True, check=True, env=environment(), timeout=PATIENCE
        ).stdout

    denied = [{"user": "eve", "address": "127.0.0.1", "requests": 2}]
    assert json.loads(status("--json"))["denied"] == denied
    assert ["2", "eve", "127.0.0.1"] in [line.split() for line in status().splitlines()]


def test_full_disk(start_mayfly: Callable[..., Mayfly]) -> None:
    """A push that finds no space is refused, and the log says so once."""
    server = start_mayfly("--reserve", "1000TiB", "--log-format", "json")
    for _ in range(3):
        target = f"/v2/a/blobs/uploads/?digest=sha256:{'0' * 64}"
        assert ask(server.host, "POST", target, b"content").status == 413
    told = [json.loads(line) for line in server.output().splitlines()]
    (full,) = [line for line in told if line["event"] == "disk_full"]
    assert full["level"] == "error"
    assert full["message"] == (
        f"the disk of {server.root} is full: pushes are refused; free some space"
    )
    assert full["root"] == str(server.root)


def test_start_up_text_is_short(start_mayfly: Callable[..., Mayfly]) -> None:
    """Three lines, no certificate and no password; where to find them is said."""
    server = start_mayfly(listen="0.0.0.0:0")
    server.wait_for(lambda: "users of this run" in server.output())
    told = lines(server.output())
    assert len(server.output().splitlines()) == len(told) == 3
    texts = "\n".join(text for _, text in told)
    assert f"mayfly node-config show --state-dir {server.state_dir}" in texts
    assert f"{server.state_dir}/credentials.json" in texts
    users = json.loads((server.state_dir / "credentials.json").read_text())
    assert not [
        value for value in re.findall(r'"([^"]{12,})"', json.dumps(users)) if value in texts
    ]
