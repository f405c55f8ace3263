"""`mayfly status --watch`: a live view on a real pty, lines elsewhere."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.cli.live_screen import Screen
from mayfly.registry.control.live_text import ASCII_BAR, cells, fit, frame, progress_line
from mayfly.registry.control.report import TransferRecord
from tests.control.terminal import Terminal
from tests.hostile import texts
from tests.support.commands import started
from tests.support.process import PATIENCE, need
from tests.support.stubs import Stub, get_manifest, pulling

Start = Callable[..., Stub]

IMAGES = ("docker.io/library/one:1", "quay.io/team/two:2")


def status(nodes: int = 3, images: tuple[str, ...] = IMAGES, **more: Any) -> dict[str, Any]:
    """An answer of a server: the first node has all, the others nothing."""
    names = [f"node-{number}" for number in range(nodes)]
    found: dict[str, Any] = {
        "state": "serving", "url": "http://127.0.0.1:5000", "pid": 1, "version": "1.2",
        "started": "2026-01-01T00:00:00Z", "seconds": 65.0, "idle_seconds": 1.0,
        "ends": [{"conditions": ["covered"], "seconds": None},
                 {"conditions": ["deadline"], "seconds": 3600.0}],
        "requests": 5, "bytes_in": 0, "bytes_out": 50_000_000, "transfers": [],
        "coverage": {
            "complete": False, "nodes_wanted": nodes, "nodes_covered": 1, "nodes": names,
            "accept": "proven", "declared": names, "claimed": {}, "proofs": {}, "absent": [],
            "missing": [], "missing_left_out": 0,
            "matrix": {
                image: {name: "missing" if i else "proven" for i, name in enumerate(names)}
                for image in images
            },
        },
        "warnings": [], "denied": [], "corrupt": [], "ambiguous": {}, "upstreams": [],
        "state_dir": "/x", "report": "/nowhere/report.json",
    }  # fmt: skip
    return found | more


def transfer(node: str, repository: str = "library/one") -> TransferRecord:
    """A pull under way."""
    return TransferRecord(
        direction="pull",
        repository=repository,
        digest="sha256:" + "ab" * 32,
        node=node,
        address="10.0.0.9",
        bytes=3_000_000,
        seconds=2.0,
    )


class FakeServer:
    """Answers the control socket of a state directory with a document that a test changes."""

    def __init__(self, directory: Path) -> None:
        self.document = status()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "control.sock"))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as stream:
                if not stream.readline():
                    return
                stream.write(json.dumps({"ok": True, **self.document}).encode() + b"\n")

    def end(self) -> None:
        """Answer nothing any more; a second call does nothing."""
        if self._thread.is_alive():
            with closing(socket.socket(socket.AF_UNIX)) as last:
                last.connect(self._listener.getsockname())
            self._thread.join(30)
        self._listener.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    found = FakeServer(tmp_path)
    yield found
    found.end()


Open = Callable[..., Terminal]


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Open]:
    """Start `status --watch` on a terminal."""
    opened: list[Terminal] = []

    def start(columns: int = 100, rows: int = 20, **variables: str) -> Terminal:
        words = ("status", "--watch", "--state-dir", tmp_path)
        opened.append(Terminal(*words, columns=columns, rows=rows, **variables))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_view(server: FakeServer, watching: Open) -> None:
    """Conditions, a bar for all and one for each node, transfers with their rates; it is kept."""
    server.document["transfers"] = [transfer("node-1")]
    terminal = watching()
    terminal.wait_for(lambda screen: "node-2" in screen.text)
    shown = terminal.screen.text
    assert "Mayfly serving for 1m 5s" in shown
    assert (
        "ends when every node has every image, or at the end of its lifetime (in 1h 0m 0s)" in shown
    )
    assert "33%  1 of 3 nodes with every image" in shown
    row = next(line for line in terminal.screen.lines if line.startswith("node-1"))
    assert "0/2  1.4 MiB/s" in row
    assert "pull by node-1 (10.0.0.9)" in shown
    refused = [{"user": "eve", "address": "10.0.0.9", "requests": 24},
               {"user": "", "address": "10.0.0.8", "requests": 1}]  # fmt: skip
    server.document["denied"] = refused
    terminal.wait_for(
        lambda screen: "25 requests refused, most of eve at 10.0.0.9: mayfly status" in screen.text
    )
    server.document = status(seconds=66.0, bytes_out=70_000_000, warnings=[])
    cells_of_node = server.document["coverage"]["matrix"][IMAGES[0]]
    cells_of_node["node-1"] = "served"  # less than --accept
    cells_of_node["node-2"] = "failed"
    terminal.wait_for(lambda screen: f"{IMAGES[0]} (failed)" in screen.text)
    assert "out 66.8 MiB, 19.1 MiB/s" in terminal.screen.text
    assert "pull by" not in terminal.screen.text
    assert terminal.screen.printed == ""
    assert "25" not in terminal.screen.modes, "the cursor is hidden"


def test_resize_ends_a_wait() -> None:
    """A new size is drawn at once, not with the next answer."""
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as stream, Screen(stream) as screen:
        os.kill(os.getpid(), signal.SIGWINCH)
        assert screen.wait(PATIENCE)
        assert not screen.wait(0)
    os.close(master)


def test_resize(server: FakeServer, watching: Open) -> None:
    """A frame fits the new size."""
    server.document = status(nodes=30)
    terminal = watching(columns=120, rows=40)
    terminal.wait_for(lambda screen: "node-29" in screen.text)
    terminal.resize(60, 12)
    terminal.wait_for(lambda screen: "more nodes, " in screen.text)
    assert len([line for line in terminal.screen.lines if line]) <= 12
    assert all(cells(line) <= 60 for line in terminal.screen.lines)
    terminal.resize(120, 40)
    terminal.wait_for(lambda screen: "node-29" in screen.text)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt(watching: Open, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM leave the terminal as it was."""
    terminal = watching()
    terminal.wait_for(lambda screen: screen.frames > 0)
    if number is signal.SIGINT:
        terminal.type(b"\x03")
    else:
        terminal.process.send_signal(number)
    assert terminal.end() == 128 + number
    assert terminal.screen.modes == {"25", "7"}
    assert terminal.screen.printed.replace("^C", "").strip() == ""


@pytest.mark.usefixtures("server")
def test_suspend(watching: Open) -> None:
    """Ctrl-Z gives the terminal back to the shell, and fg draws the view again."""
    terminal = watching()
    terminal.wait_for(lambda screen: screen.frames > 0)
    terminal.type(b"\x1a")
    terminal.wait_for(lambda screen: screen.modes == {"25", "7"})
    _, state = os.waitpid(terminal.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(state)
    frames = terminal.screen.frames
    terminal.process.send_signal(signal.SIGCONT)
    terminal.wait_for(lambda screen: screen.frames > frames)
    assert "1049" in terminal.screen.modes


def test_hostile_answer(server: FakeServer, watching: Open) -> None:
    """No text of nodes, clients or images moves the cursor or leaves its line."""
    text = texts.TEXT
    found = status(nodes=2, images=(text, *IMAGES), warnings=[{"code": text, "message": text}])
    found["url"] = found["version"] = text
    found["transfers"] = [transfer(text, text), transfer("node-1", text)]
    for row in found["coverage"]["matrix"].values():
        row[text] = "missing"
    found["coverage"]["nodes"].append(text)
    found["coverage"]["absent"] = [text]
    found["ambiguous"] = {text: [text]}
    server.document = found
    for columns in (200, 40):
        terminal = watching(columns=columns, rows=24)
        terminal.wait_for(lambda screen: screen.frames > 1)
        # The screen of the test fails over any sequence but the view's own.
        assert r"x\x1b[31mred" in terminal.screen.text
        assert not any(line.startswith(texts.FORGED) for line in terminal.screen.lines)
    assert texts.TEXT not in progress_line(found, None)


@pytest.mark.parametrize("width", [1, 20, 40, 79, 80, 300])
@pytest.mark.parametrize("height", [1, 4, 5, 7, 10, 24, 200])
def test_any_size(width: int, height: int) -> None:
    """A frame is never larger than the terminal, however many nodes and transfers there are."""
    for nodes in (0, 1, 2, 7, 50):
        for transfers in (0, 1, 3, 40):
            found = status(nodes=nodes, transfers=[transfer("node-1")] * transfers)
            found["coverage"]["nodes_wanted"] += nodes % 2
            for document in (found, found | {"coverage": None}):
                lines = frame(document, None, width, height)
                assert 0 < len(lines) <= max(height, 4)
                for line in lines:
                    assert sum(cells(text) for text, _ in line) <= max(width, 20)


def test_narrow_terminals_show_the_numbers() -> None:
    """Of each node that has a short name, and of all of them: the bars give way."""
    rows = ["".join(text for text, _ in one) for one in frame(status(), None, 30, 12)]
    assert any("node-0" in row and " 2/2" in row for row in rows)
    assert any("1 of 3" in row for row in rows)


def test_wide_characters() -> None:
    """They take two cells, marks none."""
    assert cells("日本") == 4
    assert cells("e\u0301") == 1
    (shown, end) = fit([frame(status(nodes=1), None, 80, 24)[0][0]._replace(text="日本語" * 9)], 8)
    assert shown.text + end.text == "日本語…"


@pytest.mark.usefixtures("server")
def test_encoding_without_blocks(watching: Open) -> None:
    """Bars are drawn by what the terminal's encoding has."""
    terminal = watching(PYTHONIOENCODING="ascii")
    terminal.wait_for(lambda screen: "node-2" in screen.text)
    assert f" {ASCII_BAR.done * 16} 2/2" in terminal.screen.text
    assert terminal.screen.text.isascii()


def test_rows_keep_their_places_while_all_fit() -> None:
    """A node that becomes complete stays; where rows do not fit, incomplete ones come first."""
    found = status(nodes=9)
    names = [f"node-{number}" for number in range(9)]

    def shown(height: int) -> list[str]:
        rows = ["".join(text for text, _ in line) for line in frame(found, None, 80, height)]
        return [row.split()[0] for row in rows if row.startswith("node-")]

    assert shown(24) == names
    assert shown(10) == names[1:5]
    changed = copy.deepcopy(found)
    for row in changed["coverage"]["matrix"].values():
        row["node-4"] = "proven"
    found = changed
    assert shown(24) == names
    assert shown(10) == ["node-1", "node-2", "node-3", "node-5"]


@pytest.mark.parametrize("term", ["dumb", ""])
def test_lines_without_a_terminal(server: FakeServer, tmp_path: Path, term: str) -> None:
    """The status once, then a line for each change; no sequences."""
    with started("status", "--watch", "--state-dir", tmp_path, env={"TERM": term}) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith("node-0"):
            lines.append(running.stdout.readline())
        server.document = status(state="draining", transfers=[transfer(texts.TEXT)])
        change = running.stdout.readline()
        assert "draining; 1 of 3 nodes covered, 2 of 6 images on nodes; out 47.7 MiB" in change
        server.end()
        rest, errors = running.stdout.read(), running.stderr.read()
        assert (running.wait(PATIENCE), rest) == (6, "")
    texts.check("".join(lines) + change + errors)
    assert "no report" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("end", "code", "last"),
    [("stop", 0, "ended because it received SIGTERM"), ("kill", 6, "no report")],
)
def test_real_server(start: Start, tmp_path: Path, end: str, code: int, last: str) -> None:
    """A pull shows while it runs; the report stays on the terminal when the view is gone."""
    need("sh")
    (tmp_path / "images").write_text("team/app:1\n")
    stub = start(until_pulled=tmp_path / "images", nodes="2", rate=20_000.0).ready()
    words = ("status", "--watch", "--state-dir", stub.state_dir)
    terminal = Terminal(*words, columns=120, rows=20)
    try:
        terminal.wait_for(lambda screen: "0 of 2 nodes" in screen.text)
        get_manifest(stub.port, "node-a")
        with pulling(stub.port) as response:
            terminal.wait_for(lambda screen: "team/app:1 (pulling)" in screen.text)
            response.read()
        if end == "kill":
            stub.kill()
        else:
            assert stub.stop() == 3
        assert terminal.end() == code
        assert last in terminal.screen.printed
        assert terminal.screen.modes == {"25", "7"}
    finally:
        terminal.close()
