"""`mayfly run --prefetch`: nodes first, then the command, and nothing that outlives the server."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.bundle.builders import Layout, layers
from tests.cli.test_json_output import check
from tests.hostile import texts
from tests.support.commands import mayfly, started
from tests.support.node_stubs import IMAGES, put_stubs
from tests.support.process import PATIENCE, has_line, need, poll, text_of


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a list of images."""
    (tmp_path / "images").write_text("".join(f"{name}\n" for name in IMAGES))
    return tmp_path


@pytest.fixture
def env(place: Path) -> dict[str, str]:
    """The environment of commands that find the stub of ssh."""
    return put_stubs(place)


def _words(place: Path, *nodes: str, command: str, more: tuple[str, ...] = ()) -> list[object]:
    (place / "nodes").write_text("".join(f"{node}\n" for node in nodes))
    return [
        *("run", "--root", place / "root", "--state-dir", place / "state"),
        *("--listen", "127.0.0.1:0", "--auth", "auto", "--until-pulled", place / "images"),
        *("--nodes", place / "nodes", "--prefetch", "ssh", *more),
        *("--", "sh", "-c", command),
    ]


def _report(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "state/report.json").read_text())
    return found


def _serve_images(place: Path) -> Path:
    """Write a bundle of the images, and their digests for nodes that prove them."""
    layout = Layout()
    images = [layout.image(*layers(name)) for name in IMAGES]
    digests = [layout.name(*pair) for pair in zip(images, IMAGES, strict=True)]
    (place / "digests").write_text("".join(f"{digest}\n" for digest in digests))
    return layout.write_tar(place / "bundle.tar")


def test_command_begins_when_nodes_have_everything(place: Path, env: dict[str, str]) -> None:
    """The command finds every node served before it, and the report says how it went."""
    need("curl")
    words = _words(place, "proves1", "proves2", command=f"cat {place}/log; exit 7")
    words[1:1] = [_serve_images(place)]
    done = mayfly(*words, env=env)
    assert done.returncode == 7, done.stderr
    assert sum(line.startswith("end ") for line in done.stdout.splitlines()) == 2
    report = _report(place)
    assert report["prefetch"].pop("seconds") > 0
    assert report["prefetch"] == {"nodes": 2, "proven": 2, "unprepared": []}
    assert "prefetch: 2 of 2 nodes proved every image" in done.stderr


def test_proofs_that_nodes_cannot_send(place: Path, env: dict[str, str]) -> None:
    """They are sent from here: of a node without curl, and of one that the registry is far from."""
    words = _words(place, "prints1", "cannot2", command=f"touch {place}/begun")
    words[1:1] = [_serve_images(place)]
    done = mayfly(*words, env=env)
    assert done.returncode == 0, done.stderr
    assert (place / "begun").exists()
    assert _report(place)["prefetch"]["proven"] == 2


def test_started_again_it_skips_what_is_proven(place: Path, env: dict[str, str]) -> None:
    """A server that was killed under way asks such nodes no more."""
    need("curl")
    words = _words(place, "proves1", "later2", command=f"cat {place}/log")
    words[1:1] = [_serve_images(place)]
    log = place / "log"
    with started(*words, env=env) as running:
        poll(lambda: "end proves1" in text_of(log))
        running.kill()
    (place / "go").touch()
    done = mayfly(*words, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("begin proves1 ") == 1
    assert done.stdout.count("begin later2 ") == 2
    assert "on 2 nodes; skipped, since every image is proven: 1" in done.stderr
    assert _report(place)["prefetch"]["proven"] == 2


def test_a_node_s_word_is_no_proof(place: Path, env: dict[str, str]) -> None:
    """A node that prints that it sent its proof, and sent none, does not begin the command."""
    need("curl")
    words = _words(place, "proves1", "good2", command=f"touch {place}/begun")
    words[1:1] = [_serve_images(place)]
    done = mayfly(*words, env=env)
    assert done.returncode == 3, done.stderr
    assert not (place / "begun").exists()
    assert "1 of 2 nodes did not prove every image, so sh was not started" in done.stderr
    prefetch = _report(place)["prefetch"]
    assert prefetch["proven"] == 1
    assert [(one["node"], one["code"]) for one in prefetch["unprepared"]] == [
        ("good2", "different")
    ]


def test_command_does_not_begin_when_a_node_lacks_an_image(
    place: Path, env: dict[str, str]
) -> None:
    """Exit code 3, the node's trouble and remedy in the log, and the reason in the report."""
    words = _words(place, "good1", "full2", "hostile3", command=f"touch {place}/begun")
    done = mayfly(*words, env=env)
    assert done.returncode == 3, done.stderr
    assert not (place / "begun").exists()
    texts.check(done.stderr)
    assert "full2: its disk is full" in done.stderr
    assert "To do: free space" in done.stderr
    assert "3 of 3 nodes did not prove every image, so sh was not started" in done.stderr
    report = _report(place)
    check("report", report)
    assert report["reason"] == "prefetch"
    assert report["exit_code"] == 3
    found = [(one["node"], one["code"], one["images"]) for one in report["prefetch"]["unprepared"]]
    assert sorted(found) == [
        ("full2", "disk_full", 2), ("good1", "different", 2), ("hostile3", "script", 2)
    ]  # fmt: skip


def test_continue(place: Path, env: dict[str, str]) -> None:
    """With --prefetch-incomplete continue the command begins all the same."""
    more = ("--prefetch-incomplete", "continue", "--log-format", "json")
    words = _words(place, "full", command=f"touch {place}/begun; exit 5", more=more)
    done = mayfly(*words, env=env)
    assert done.returncode == 5, done.stderr
    assert (place / "begun").exists()
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    for line in lines:
        check("log", line)
    (node,) = [line for line in lines if line["event"] == "prefetch_node"]
    assert node["codes"] == ["disk_full"]
    assert node["node"] == "full"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_before_the_command(place: Path, env: dict[str, str], number: int) -> None:
    """It ends the prefetch and every ssh, and the command does not begin."""
    words = _words(place, "hang", command=f"touch {place}/begun")
    log = place / "log"
    with started(*words, env=env) as running:
        poll(lambda: has_line(log))
        running.send_signal(number)
        _, errors = running.communicate(timeout=PATIENCE)
    assert running.returncode == 3, errors
    assert not (place / "begun").exists()
    pid = int(log.read_text().split()[2])
    assert not Path(f"/proc/{pid}").exists()
    assert _report(place)["prefetch"]["proven"] == 0


def test_settings_that_do_not_fit(place: Path, env: dict[str, str]) -> None:
    """It needs a command, names that ssh takes, a configuration that is there, and users."""
    serve = ("serve", "--listen", "127.0.0.1:0", "--prefetch", "ssh", "--root", place / "root")
    done = mayfly(*serve, "--state-dir", place / "state")
    assert done.returncode == 2
    assert "--prefetch is for run" in done.stderr
    words = _words(place, "-oProxyCommand=x", command="true")
    done = mayfly(*words, env=env)
    assert done.returncode == 2
    assert "is not a host name" in done.stderr
    none = place / "no-ssh-config"
    words = _words(place, "n", command="true", more=("--ssh-config", str(none)))
    done = mayfly(*words, env=env)
    assert done.returncode == 2
    assert done.stderr == f"mayfly: --ssh-config {none}: No such file or directory\n"
    words = [word if word != "auto" else "none" for word in _words(place, "n", command="true")]
    done = mayfly(*words, env=env)
    assert done.returncode == 2
    assert "--prefetch needs users" in done.stderr
    words[words.index("--nodes") + 1] = "3"
    done = mayfly(*words, env=env)
    assert done.returncode == 2
    assert "--prefetch needs --until-pulled" in done.stderr
