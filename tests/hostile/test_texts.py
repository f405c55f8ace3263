"""Every command over content full of hostile text: what it prints moves no cursor, forges no line.

The commands are found by walking the command line itself, so that a new one has to be added here.
"""

from __future__ import annotations

import ast
import base64
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mayfly.registry.cli import cli
from mayfly.registry.text import Terminal, echo, escaped, exact_json, line
from tests.control.test_report import REPORT
from tests.hostile import texts
from tests.hostile.texts import FORGED, NAME, TEXT
from tests.support.commands import mayfly
from tests.support.process import REPO, Mayfly, remove_tree
from tests.support.sources import parsed, python_files


def _commands(group: click.Group, before: str = "") -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            yield from _commands(found, f"{before}{name} ")
        else:
            yield before + name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of hostile names: a store, a bundle, a compressed and a broken one, users."""
    top = tmp_path_factory.mktemp("texts") / NAME
    top.mkdir()
    digest = texts.store(top / "root")
    (top / "digest").write_text(str(digest))
    texts.bundle(top / "bundle")
    (top / "broken.tar").write_bytes(b"no tar")
    (top / "packed.tar").write_bytes(b"\x1f\x8b")
    hostile = json.dumps(TEXT)[1:-1]
    report = json.dumps(REPORT).replace("node-b", hostile).replace("team/app", hostile)
    (top / "hostile.json").write_text(report)
    (top / "auth").mkdir()
    (top / "auth/htpasswd").write_text(f"{NAME}:x\n", "utf-8", "surrogateescape")
    (top / "auth/grants.toml").write_text(f"[[grant]]\nuser = {json.dumps(NAME)}\n")
    return top


ROOT = ("--root", "root")
STATE = ("--state-dir", "state")
AUTH = ("--auth", "auth")
SERVE = (*STATE, "--listen", "127.0.0.1:0", "--root", "fresh")

CASES: dict[str, list[tuple[str, ...]]] = {
    "serve": [
        (*SERVE, "broken.tar"),
        (*SERVE, "packed.tar"),
        (*SERVE, "absent.tar"),
        ("--auth", NAME, *SERVE),
        ("--nodes", NAME, *SERVE),
        ("--config", NAME),
        (f"--{NAME}",),
    ],
    "run": [(*SERVE, "broken.tar", "--", "true"), (*SERVE, "--", NAME), (NAME,)],
    "status": [STATE, (*STATE, "--json"), ("--state-dir", NAME)],
    "wait": [
        ("--ready", "--timeout", "0.1s", *STATE),
        ("--ready", "--timeout", NAME),
        ("--safe-to-stop", "--kubeconfig", NAME, *STATE),
        ("--safe-to-stop", "--context", NAME, *STATE),
    ],
    "stop": [STATE, ("--state-dir", NAME, "--json")],
    "report": [
        ("hostile.json",),
        ("hostile.json", "--json"),
        ("hostile.json", "--html", "-"),
        ("broken.tar",),
        (NAME, "--html", NAME),
        ("--state-dir", NAME),
    ],
    "user add": [(NAME, "--password-stdin", *AUTH), ("x", "--password-stdin", "--auth", NAME)],
    "user rm": [(NAME, *AUTH)],
    "user ls": [AUTH, (*AUTH, "--json"), ("--auth", NAME)],
    "grant add": [("--user", NAME, "--role", NAME, "--repositories", NAME, *AUTH)],
    "grant rm": [("--user", NAME, "--repositories", NAME, *AUTH)],
    "grant ls": [AUTH, (*AUTH, "--json")],
    "credentials": [STATE, ("--format", NAME, *STATE), ("--name", NAME, *STATE)],
    "node script": [
        ("--node", NAME, "--registry", "127.0.0.1:1", *STATE),
        ("--images", NAME, "--node", "n"),
        ("--images", "list", "--node", NAME, "--registry", NAME),
        ("--revert", "--node", NAME),
    ],
    "prefetch": [
        STATE,
        ("--nodes", NAME, *STATE),
        ("--ssh-config", NAME),
        ("--registry", NAME, "--nodes", "list", *STATE),
        ("--via", NAME),
        ("--nodes", NAME, "--via", "kubernetes", "--image", NAME, *STATE),
        ("--nodes", "list", "--context", NAME, *STATE),
    ],
    "node proof": [
        (NAME, "--node", "n", *STATE),
        ("broken.tar", "--node", NAME, *STATE),
        ("broken.tar", "--node", "n", "--registry", NAME),
    ],
    "check": [
        STATE,
        ("bundle", "--nodes", NAME, *STATE),
        (NAME, *STATE),
        ("--ssh-config", NAME),
        ("--images", NAME, "--via", "ssh", *STATE),
    ],
    "node-config show": [
        ("--runtime", "docker", "--registry", NAME),
        ("--runtime", "docker", "--registry", "http://127.0.0.1:5000", "--mirror", NAME),
        ("--runtime", "docker", "--registry", "https://127.0.0.1:5000", "--ca", NAME),
        ("--for", "k3s", "--registry", "https://127.0.0.1:5000", "--merge", NAME),
        ("--for", "crio", "--registry", "https://127.0.0.1:5000", "--images", NAME),
        ("--for", NAME),
    ],
    "node-config apply": [("--runtime", NAME, "--registry", NAME)],
    "node-config revert": [("--runtime", NAME), ("--runtime", "docker", "--root-dir", NAME)],
    "bundle create": [
        (NAME, "-o", "out.tar"),
        ("-", "-o", f"{NAME}.tar"),
        ("team/app:v0", "-o", "out.tar", "--from", "root", "--upstream", NAME),
        ("localhost/team/app:v0", "-o", "out.tar", "--from", "root"),
        ("localhost/team/app:v0", "-o", f"{NAME}.tar", "--from", "bundle", "--json"),
        ("localhost/team/app:v0", "-o", "out.tar", "--from", "broken.tar"),
        ("127.0.0.1:1/x", "-o", "out.tar", "--platform", NAME),
    ],
    "copy": [
        (NAME, "copied"),
        ("root", "copied"),
        ("bundle", "copied", "--json"),
        ("broken.tar", "copied"),
        ("root", NAME),
        ("root", f"http://{NAME}"),
        ("localhost/team/app:v0", "copied", "--from", "root", "--platform", NAME),
        ("root", "127.0.0.1:1", "--upstream", NAME),
    ],
    "sync": [(NAME,), ("broken.tar", "copied"), ("broken.tar", NAME), ("-", "copied")],
    "import": [
        ("--root", "imported", "bundle"),
        ("--root", "imported", "--json", "bundle"),
        ("--root", "imported", "broken.tar"),
        ("--root", "imported", "packed.tar"),
        ("--root", "imported", NAME),
        ("--root", "imported", "root"),
    ],
    "export": [
        (*ROOT, "--all", "-o", f"{NAME}.tar"),
        (*ROOT, "--all", "--json", "-o", f"{NAME}.tar"),
        (*ROOT, NAME, "-o", "out.tar"),
        (*ROOT, "--all", "-o", f"{NAME}/{NAME}.tar"),
        (*ROOT, "--all", "-o", "out.tar", "--have", "broken.tar"),
    ],
    "credential-provider": [
        ("--file", NAME),
        ("--file", "broken.tar"),
        ("--config", "--host", NAME),
        ("--config", "--json", "--file", f"{NAME}/none"),
    ],
    "audit verify": [
        ("broken.tar",),
        ("broken.tar", "--json"),
        (NAME,),
        (f"{NAME}/none",),
        ("broken.tar", "--head", NAME),
    ],
    "pack": [
        (NAME, "-o", "new.run"),
        ("broken.tar", "-o", "new.run", "--runtime", NAME),
        ("broken.tar", "-o", NAME, "--runtime", "broken.tar", "--json"),
        ("broken.tar", "-o", "new.run", "--script", NAME),
        ("broken.tar", "-o", "new.run", "--listen", NAME),
    ],
    "inventory": [
        ROOT,
        (*ROOT, "--json"),
        ("bundle",),
        ("broken.tar",),
        (NAME,),
        (f"http://127.0.0.1:1/{NAME}",),
    ],
    "ls": [
        ROOT,
        (*ROOT, "--all"),
        (*ROOT, "--json"),
        ("--root", NAME),
        ("bundle",),
        ("broken.tar",),
        (NAME,),
    ],
    "inspect": [
        *((*ROOT, f"team/app:v{number}") for number in range(4)),
        (*ROOT, "team/app:v0", "--json"),
        (*ROOT, "team/odd:v1"),
        (*ROOT, "team/index"),
        (*ROOT, "team/app:v0", "--files"),
        ("team/app:v0", "bundle", "--json"),
        (*ROOT, NAME),
    ],
    "diff": [
        ("root", "bundle"),
        ("bundle", "root", "--files", "--json"),
        ("root", NAME),
        ("root", "broken.tar"),
        ("root", "bundle", "--image", NAME),
    ],
    "du": [ROOT, (*ROOT, "--json")],
    "gc": [(*ROOT, "--dry-run", "--untagged"), (*ROOT, "--grace", NAME), (*ROOT, "--json")],
    "verify": [
        ROOT,
        (*ROOT, "--json"),
        (*ROOT, "--repair", "bundle"),
        (*ROOT, "--repair", NAME),
        (*ROOT, "--repair", f"http://127.0.0.1:1/{NAME}"),
    ],
    "rm": [(*ROOT, NAME), (*ROOT, "team/app:v1")],
}


def test_every_command_is_tried() -> None:
    """A new command is run over hostile text, too."""
    assert set(CASES) == set(_commands(cli))


@pytest.mark.parametrize("command", CASES)
def test_command(place: Path, command: str) -> None:
    """Whatever it is given and finds, it prints lines of its own."""
    for words in CASES[command]:
        # From within, so that names are hostile by their directory only where they are resolved.
        done = mayfly(*command.split(), *words, cwd=place, env={"PYTHONPATH": str(REPO)})
        texts.check(done.stderr, is_json=done.stderr.startswith("{"))
        texts.check(done.stdout, is_json="--json" in words)
        assert done.returncode in (0, 2, 3, 4, 5, 6, 127), (words, done.stderr)


def test_import_of_hostile_names(place: Path, tmp_path: Path) -> None:
    """Good images are imported, names that are none are told, others are named as left out."""
    done = mayfly("import", "--root", tmp_path / "root", place / "bundle")
    texts.check(done.stderr)
    assert done.returncode == 5
    assert "is passed over" in done.stderr
    assert "not imported: " in done.stderr
    assert "quay.io/app" not in done.stdout
    names = json.loads(mayfly("ls", "--json", "--root", tmp_path / "root").stdout)["images"]
    assert len([one for one in names if one["name"].startswith("app:")]) == len(texts.configs())


def test_pasted_commands(tmp_path: Path) -> None:
    """A command that a message gives names its path quoted, as a shell takes it."""
    odd = tmp_path / "it's $(id).tar"
    odd.write_bytes(b"\x1f\x8b")
    done = mayfly("serve", "--root", tmp_path / "r", "--state-dir", tmp_path / "s", odd)
    assert done.returncode == 5
    assert f"mayfly import '{tmp_path}/it'\"'\"'s $(id).tar')" in done.stderr


@pytest.mark.parametrize("form", ["text", "json"])
def test_server(place: Path, workspace: Path, form: str) -> None:
    """What clients send reaches its log, its status and its report as text."""
    home = workspace / f"texts-{form}"
    home.mkdir()
    audit = home / "audit"
    options = ("--auth", "auto", "--audit", str(audit), "--log-format", form, "--log-level", "info")
    server = Mayfly(home / "root", home / "state", *options, str(place / "bundle"))
    try:
        name, _, port = server.host.rpartition(":")
        value = NAME.replace("\n", " ").replace("\r", " ").encode("utf-8", "surrogateescape")
        basic = base64.b64encode(TEXT.encode("utf-8", "surrogatepass") + b":x")
        for path in (b"/v2/", b"/v2/app/manifests/1", b"/v2/%1b%5b31m%0aFORGED/tags/list"):
            for header in (b"User-Agent: " + value, b"Authorization: Basic " + basic):
                with socket.create_connection((name, int(port)), timeout=30) as raw:
                    raw.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (path, header))
                    assert raw.recv(65536)
        connection = http.client.HTTPConnection(name, int(port), timeout=30)
        connection.request("GET", "/livez", headers={"User-Agent": "x\x1b[31m"})
        assert connection.getresponse().status in (200, 400)
        connection.close()
        for words in ((), ("--json",)):
            done = mayfly("status", *words, "--state-dir", server.state_dir)
            assert done.returncode == 0, done.stderr
            texts.check(done.stdout, is_json=bool(words))
    finally:
        server.stop()
        output, report = server.output(), (home / "state/report.json").read_text()
        recorded = audit.read_text()
        remove_tree(home)
    texts.check(output)
    texts.check(recorded)
    assert not any(c for c in report + recorded if not c.isprintable() and c != "\n")


def test_line() -> None:
    """One line, printable, and plain text as it was."""
    assert line("plain text, größer: ✓") == "plain text, größer: ✓"
    assert line("a\nb\tc\x1b[0m\u202e\x9b\x7f\ud800") == r"a\nb\tc\x1b[0m\u202e\x9b\x7f\ud800"
    assert line(Path("a\nb")) == r"a\nb"
    assert escaped({"a": ["\n", {"b": "\x1b"}], "\r": 1}) == {
        "a": [r"\n", {"b": r"\x1b"}],
        r"\r": 1,
    }


def test_json_is_exact() -> None:
    """Nothing a terminal obeys, and every character after decoding."""
    text = exact_json({"text": TEXT})
    assert text.isprintable()
    assert json.loads(text) == {"text": TEXT}


def test_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines and columns stay, the rest is escaped, for every writer."""
    import sys

    terminal = Terminal(sys.stdout)
    print("a\tb\nc\x1b[31m", file=terminal)
    click.echo("d\u202e", file=terminal)  # type: ignore[arg-type]
    echo(f"e\n{FORGED}")
    with pytest.raises(TypeError):
        terminal.write(b"bytes")  # type: ignore[arg-type]
    assert capsys.readouterr().out == f"a\tb\nc\\x1b[31m\nd\\u202e\ne\\n{FORGED}\n"


def test_nothing_prints_past_it() -> None:
    """Commands print what holds foreign text by `echo`, which makes one line of it."""
    found = []
    for path in python_files("registry/cli"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("click.echo", "print"):
                formatted = [n for n in ast.walk(node) if isinstance(n, ast.JoinedStr)]
                found += [f"{path.name}:{node.lineno}" for _ in formatted]
    assert found == []
