"""The node script on many nodes: what is tried again, what is concluded, what is kept and shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.registry.cli import prefetch as command
from mayfly.registry.durations import parse as parse_duration
from mayfly.registry.nodes import node_output, prefetch
from mayfly.registry.nodes.carrier import ScriptEnd
from mayfly.registry.nodes.causes import (
    RETRIED,
    TEXTS,
    Cause,
    cause_of_end,
    cause_of_pull,
)
from mayfly.registry.nodes.node_output import NodeOutput
from mayfly.registry.nodes.prefetch import Failure, NodeResult, Prefetch, node_lines, remedies
from mayfly.registry.nodes.ssh import SSH, check_destination
from mayfly.registry.settings.errors import ConfigError
from tests.hostile import texts
from tests.support.commands import mayfly, started
from tests.support.node_stubs import IMAGES
from tests.support.process import PATIENCE, REPO, Mayfly, has_line, poll

SCRIPT = "images='{}'\n{{ main; }}\n".format("\n".join(f"{name} x" for name in IMAGES))


class Recorder:
    """Keeps what a prefetch tells."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.pauses: list[float] = []

    def started(self, node: str, attempt: int) -> None:
        self.events.append((node, f"started {attempt}"))

    def image(self, node: str, image: str, state: str) -> None:
        self.events.append((node, f"{state} {image}"))

    def paused(self, node: str, failure: Failure, seconds: float) -> None:
        self.events.append((node, f"paused {failure.cause}"))
        self.pauses.append(seconds)

    def note(self, text: str) -> None:
        self.events.append(("", text))

    def ended(self, result: NodeResult) -> None:
        self.events.append((result.node, "ended"))


def _run(*nodes: str, recorder: Recorder | None = None, **more: float) -> list[NodeResult]:
    plan = Prefetch(nodes, IMAGES, lambda node: SCRIPT, pause=0.01, **more)  # type: ignore[arg-type]
    return asyncio.run(plan.run(recorder or Recorder()))


@pytest.mark.usefixtures("state")
def test_each_cause() -> None:
    """Each node is judged by itself, and its neighbours end as they would alone."""
    expected = {
        "good": [],
        "noise": [],
        "down": [Cause.DOWN],
        "killed": [Cause.KILLED],
        "lost": [Cause.LOST],
        "full": [Cause.DISK_FULL],
        "clock": [Cause.CLOCK],
        "noproof": [Cause.NO_PROOF],
        "flood": [Cause.UNREADABLE],
        "hostile": [Cause.SCRIPT],
        "ahead": [],
        "nopath": [],
        "unpinned": [],
    }
    results = {result.node: result for result in _run(*expected, attempts=2)}
    assert {n: [f.cause for f in r.failures] for n, r in results.items()} == expected
    assert all(f.images == IMAGES for r in results.values() for f in r.failures)
    assert [w.cause for w in results["nopath"].warnings] == [Cause.NO_CONFIG_PATH]
    assert [w.cause for w in results["ahead"].warnings] == [Cause.CLOCK]
    (warning,) = results["unpinned"].warnings
    assert warning == Failure(Cause.NOT_PINNED, IMAGES, "why")
    assert results["good"].pinned == 2
    assert results["good"].free == 5
    todo = {cause: nodes for cause, nodes, _ in remedies(list(results.values()))}
    assert todo[Cause.CLOCK] == ["clock", "ahead"]
    assert "no space left" in node_lines(results["full"], 2)[0]


@pytest.mark.usefixtures("state")
def test_a_failure_that_passes() -> None:
    """Such a node is tried again after growing pauses, and counts when it has all."""
    recorder = Recorder()
    (result,) = _run("passing", recorder=recorder, attempts=4)
    assert result.proven
    assert result.attempts == 3
    assert recorder.pauses == [0.01, 0.03]
    (result,) = _run("full", attempts=4)
    assert result.attempts == 1  # a full disk does not empty itself
    assert recorder.events[-3:] == [
        *(("passing", f"pulled {image}") for image in IMAGES),
        ("passing", "ended"),
    ]


def test_at_most_so_many_at_a_time(state: Path) -> None:
    """No more than --concurrency run, and a node that pauses holds no place."""
    nodes = [*(f"down{number}" for number in range(2)), *(f"slow{number}" for number in range(8))]
    _run(*nodes, concurrency=3, attempts=3)
    running = most = 0
    for line in (state / "log").read_text().splitlines():
        running += 1 if line.startswith("begin") else -1
        most = max(most, running)
    assert most == 3


def test_a_node_that_hangs(state: Path) -> None:
    """A try has a bound, and leaves no process."""
    (result,) = _run("hang", timeout=5.0)
    assert [f.cause for f in result.failures] == [Cause.TIMED_OUT]
    pid = int((state / "log").read_text().split()[2])
    assert not Path(f"/proc/{pid}").exists()


def test_an_observer_that_fails(state: Path) -> None:
    """An error of its own, such as of a closed pipe, ends every ssh and is raised."""

    class Closed(Recorder):
        def image(self, node: str, image: str, state: str) -> None:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        _run("good", "hang", recorder=Closed(), concurrency=2)
    for line in (state / "log").read_text().splitlines():
        assert not Path(f"/proc/{line.split()[2]}").exists()


def test_output_without_end(state: Path) -> None:
    """Such a node is ended and did not prove anything, whatever it said; it tells nothing twice."""
    recorder = Recorder()
    (result,) = _run("endless", recorder=recorder, attempts=1, timeout=300)
    assert [f.cause for f in result.failures] == [Cause.UNREADABLE]
    assert "it sent more than" in result.failures[0].detail
    assert sorted(recorder.events) == [
        ("endless", "ended"),
        *(("endless", f"pulled {image}") for image in IMAGES),
        ("endless", "started 1"),
    ]
    pid = int((state / "log").read_text().split()[2])
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.usefixtures("state")
def test_memory_does_not_grow_with_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nodes print is read and forgotten, also where all of it is read."""
    monkeypatch.setattr(node_output, "_NOISE", 64 * 1024 * 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _run(*(f"flood{number}" for number in range(20)), attempts=1, concurrency=4)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 24 * 1024  # of 80 MB that they print


@pytest.mark.parametrize(
    ("code", "script", "others", "cause"),
    [
        (255, "", "ssh: Could not resolve hostname n: Name or service not known", "unresolved"),
        (255, "", "ssh: connect to host n port 22: Connection timed out", "down"),
        (255, "", "kex_exchange_identification: read: Connection reset by peer", "down"),
        (255, "", "Connection closed by 10.0.0.1 port 22", "down"),
        (255, "", "Host key verification failed.", "host_unknown"),
        (
            255,
            "",
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key for n has "
            "changed and you have requested strict checking.\nHost key verification failed.",
            "host_key",
        ),
        (
            255,
            "",
            "No ED25519 host key is known for n and you have requested strict checking.\n"
            "Host key verification failed.",
            "host_unknown",
        ),
        (255, "", "root@n: Permission denied (publickey,password).", "login"),
        (255, "", "Connection to n closed by remote host.", "lost"),
        (255, "", "client_loop: send disconnect: Broken pipe", "lost"),
        (255, "", "Timeout, server n not responding.", "lost"),
        (255, "", "/root/.ssh/config: line 1: Bad configuration option: x", "ssh"),
        (255, "", "", "lost"),
        (137, "", "", "killed"),
        (127, "", "bash: line 1: sh: command not found", "no_shell"),
        (1, "", "sudo: a password is required", "not_root"),
        (127, "", "sh: 1: sudo: not found", "not_root"),
        (2, "run this as root", "", "not_root"),
        (2, "neither docker, containerd nor podman answers on this node", "", "no_runtime"),
        (2, "docker does not answer on this node", "", "no_runtime"),
        (1, "another run of this script is at work here; try again when it is done", "", "busy"),
        (2, "/etc/a: changed by somebody since Mayfly wrote it; save the", "", "edited"),
        (2, "this node has no awk", "", "script"),
        (2, "", "mkdir: cannot create directory: No space left on device", "disk_full"),
        (0, "", "", "unreadable"),
        (1, "", "what is this?", "unreadable"),
    ],
)
def test_cause_of_end(code: int, script: str, others: str, cause: str) -> None:
    """The messages of OpenSSH, of sudo, of shells and of the script."""
    found = cause_of_end(code, [script] if script else [], [others] if others else [])
    assert found is Cause(cause)


@pytest.mark.parametrize(
    ("text", "skew", "cause"),
    [
        ("failed to write: write /a: no space left on device: unknown", 0, "disk_full"),
        ("x509: certificate has expired or is not yet valid: current time", -9999, "clock"),
        ("x509: certificate has expired or is not yet valid: current time", None, "clock"),
        ("x509: certificate has expired or is not yet valid: current time", 2, "trust"),
        ("curl: (60) SSL certificate problem: certificate is not yet valid", 9999, "clock"),
        ("x509: certificate signed by unknown authority", 0, "trust"),
        ("http: server gave HTTP response to HTTPS client", 0, "trust"),
        ("dial tcp 10.0.0.1:5000: connect: connection refused", 0, "no_registry"),
        ("dial tcp: lookup registry.example: no such host", 0, "no_registry"),
        ("curl: (28) Connection timed out after 60000 milliseconds", 0, "no_registry"),
        ("docker.io/library/one:1: not found", 0, "not_there"),
        ("manifest unknown: manifest unknown", 0, "not_there"),
        ("unexpected status from HEAD request: 401 Unauthorized", 0, "denied"),
        ("something else", 0, "pull"),
        ("", 0, "pull"),
    ],
)
def test_cause_of_pull(text: str, skew: float | None, cause: str) -> None:
    """The messages of containerd, docker, podman and curl."""
    assert cause_of_pull(text, skew) is Cause(cause)


@pytest.mark.usefixtures("state")
def test_a_busy_node_is_told_of_once() -> None:
    """The script's message says what the cause does."""
    (result,) = _run("busy", attempts=1)
    assert node_lines(result, 2) == [
        "busy: another run of the script is at work there (every image) (0 s)"
    ]


@pytest.mark.parametrize(
    ("skews", "here"),
    [
        ([], False),
        ([9000.0], False),
        ([9000.0, 9020.0, None], True),
        ([-9000.0, -9020.0], True),
        ([9000.0, 0.0], False),
        ([9000.0, 90000.0], False),
        ([9.0, 10.0], False),
    ],
)
def test_whose_clock_is_wrong(skews: list[float | None], here: bool) -> None:
    """Where several nodes differ by the same, this host does from all of them."""
    failures = (Failure(Cause.CLOCK, IMAGES, "9000 s ahead"),)
    results = [NodeResult(f"n{n}", failures, skew=skew) for n, skew in enumerate(skews)]
    texts_of = {cause: remedy for cause, _, remedy in remedies(results)}
    assert ("most likely this host's" in texts_of.get(Cause.CLOCK, "")) is here


def test_progress_names_the_nodes_that_wait() -> None:
    """While a retry waits: which node, and for how long."""
    shown = command._Lines(3, 2)
    shown.ended(NodeResult("a"))
    shown.started("b", 1)
    assert shown._progress() == "0 of 3 nodes done; at work: b 0/2"
    shown.paused("b", Failure(Cause.DOWN, IMAGES), 15.0)
    assert shown._progress() == "0 of 3 nodes done; to be tried again: b (in 15 s)"
    shown.started("b", 2)
    assert shown._progress() == "0 of 3 nodes done; at work: b 0/2"


def test_a_long_message_keeps_its_end() -> None:
    """There programs name the cause, such as the times of a certificate; the cut is shown."""
    output = NodeOutput(IMAGES)
    text = f"mayfly: {IMAGES[0]}: not pulled: begin {'x' * 500} current time A is before B"
    output.stderr(text.encode())
    assert output.reasons[IMAGES[0]].startswith("begin xxx")
    assert output.reasons[IMAGES[0]].endswith("xxx current time A is before B")
    assert " … " in output.reasons[IMAGES[0]]
    assert len(output.reasons[IMAGES[0]]) == 300


def test_each_cause_has_a_remedy() -> None:
    """Each says what it means and what to do."""
    assert set(TEXTS) == set(Cause)
    assert all(what and remedy for what, remedy in TEXTS.values())
    assert set(RETRIED) < set(Cause)


def test_defaults_of_the_command() -> None:
    """They are written twice, so that the help needs no import."""
    assert command.CONCURRENCY == prefetch.CONCURRENCY
    assert command.ATTEMPTS == prefetch.ATTEMPTS
    assert parse_duration(command.TIMEOUT) == prefetch.TIMEOUT_SECONDS


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=300)), max_size=40))
def test_any_output(lines: list[tuple[bool, bytes]]) -> None:
    """Whatever bytes a node sends, there is at most an answer about the images asked for."""
    output = NodeOutput(IMAGES)
    for is_error, line in lines:
        (output.stderr if is_error else output.stdout)(line)
    assert len(output.messages) + len(output.others) <= 40
    assert output.answer is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(IMAGES),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.fixed_dictionaries({
    "report": _JSON,
    "proof": _JSON | st.just("sent"),
    "images": _JSON | st.lists(st.fixed_dictionaries({"image": _JSON, "present": _JSON})),
    "time": _JSON,
    "free": _JSON,
    "config_path": _JSON,
}))  # fmt: skip
def test_any_answer(document: object) -> None:
    """A document of other types and values is refused, or read as far as it is valid."""
    output = NodeOutput(IMAGES)
    output.stdout(json.dumps(document).encode())
    if (answer := output.answer) is not None:
        assert answer.present <= set(IMAGES)
        assert answer.time is None or isinstance(answer.time, int)


class Saying:
    """A carrier whose node prints some lines."""

    def __init__(self, *lines: bytes) -> None:
        self._lines = lines

    def check(self, nodes: Iterable[str]) -> None:
        """All can be reached."""

    @contextlib.asynccontextmanager
    async def session(self, note: Callable[[str], None]) -> AsyncIterator[Saying]:
        yield self

    async def run(self, node: str, script: str, output: NodeOutput, seconds: float) -> ScriptEnd:
        for line in self._lines:
            output.stdout(line)
        return ScriptEnd(0)


def _printed(node: object, report: str, proof: str = "printed") -> bytes:
    rows = [{"image": image, "present": True} for image in IMAGES]
    head = json.dumps({"node": node, "proof": proof, "images": rows})
    return f'{head[:-1]}, "report": {report}}}'.encode()


GOOD_REPORT = (
    (
        '{"version": 1, "nonce": "", "images": [{"image": "x", "digest": "sha256:DIGEST", '
        '"runtime": "docker", "time": TIME, "pinned": true, "free": 5}]}'
    )
    .replace("DIGEST", "a" * 64)
    .replace("TIME", str(int(time.time())))
)


@pytest.mark.parametrize(
    "line",
    [
        _printed("other", GOOD_REPORT),
        _printed(["n"], GOOD_REPORT),
        _printed(None, GOOD_REPORT),
        _printed("n", "null"),
        _printed("n", "[]"),
        _printed("n", '"\\u001b[2J"'),
        _printed("n", '{"version": 1, "nonce": "", "images": {}}'),
        _printed("n", '{"version": 1, "nonce": "", "images": [NaN]}'),
        _printed("n", GOOD_REPORT.replace("true", "NaN")),
        _printed("n", GOOD_REPORT.replace('"time": ', '"time": 1e400')),
        _printed("n", GOOD_REPORT.replace('"time": ', '"time": -')),
        _printed("n", GOOD_REPORT.replace("sha256:a", "sha256:../")),
        _printed("n", GOOD_REPORT.replace('"version": 1', '"version": 2')),
        _printed("n", f'{{"images": {"[" * 5000}{"]" * 5000}}}'),
        _printed("n", f'{{"version": {"1" * 5000}}}'),
    ],
)
def test_hostile_proofs_are_not_sent(line: bytes) -> None:
    """Of another node, of another form, and what Python's JSON reads as more."""
    sent: list[str] = []
    plan = Prefetch(
        ("n",), IMAGES, lambda node: "", Saying(line), lambda node, _: sent.append(node), attempts=1
    )
    (result,) = asyncio.run(plan.run(Recorder()))
    assert sent == []
    assert not result.proven
    good = Saying(_printed("n", GOOD_REPORT))
    (result,) = asyncio.run(replace(plan, carrier=good).run(Recorder()))
    assert sent == ["n"]
    assert result.proven


def test_deep_and_long_numbers() -> None:
    """What the JSON parser refuses in other ways is no answer either."""
    output = NodeOutput(IMAGES)
    for line in (b'{"report": ' + b"[" * 100_000, b'{"report": ' + b"9" * 10_000 + b"}"):
        output.stdout(line)
    assert output.answer is None


@pytest.mark.parametrize(
    "name", ["-oProxyCommand=x", "a b", "root@n", "n;x", "$(x)", "a/b", "n%x", "", "a\n", "a" * 256]
)
def test_names_that_ssh_reads_as_more(name: str) -> None:
    """An option, a user or a token of ssh's configuration is no node."""
    with pytest.raises(ConfigError):
        check_destination(name)
    with pytest.raises(ConfigError):
        SSH().words(name)


def test_words() -> None:
    """The operator's configuration, user and sudo are passed; the node's name comes after --."""
    words = SSH(Path("/c"), "admin", sudo=True).words("fd00::1", "--json")
    assert words[:6] == ["ssh", "-T", "-F", "/c", "-l", "admin"]
    assert words[-3:] == ["--", "fd00::1", "sudo -n sh -s -- --json; exit"]


def test_command_shows_nothing_unescaped(server: Mayfly, tmp_path: Path) -> None:
    """What nodes print moves no cursor; each failure has its remedy; exit code 3."""
    (tmp_path / "some").write_text("good\nhostile\nfull\n")
    words = ("prefetch", "--state-dir", server.state_dir, "--nodes", tmp_path / "some")
    done = mayfly(*words)
    assert done.returncode == 3, done.stderr
    texts.check(done.stdout + done.stderr)
    assert "full: its disk is full" in done.stdout
    assert "To do: free space" in done.stdout
    assert r"\x1b[2Jcleared" in done.stdout
    # The stub sends no proof, which the registry knows better.
    assert "good: it proved other images" in done.stdout
    done = mayfly(*words, "--json")
    texts.check(done.stdout, is_json=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "done"
    assert events[-1]["proven"] == 0
    password = (server.state_dir / "credentials.json").read_text()
    assert not any(
        line in (tmp_path / "log").read_text() for line in password.split('"') if len(line) > 20
    )


def test_commands_get_no_secret(server: Mayfly, tmp_path: Path) -> None:
    """The script goes by standard input."""
    (tmp_path / "some").write_text("good\n")
    mayfly("prefetch", "--state-dir", server.state_dir, "--nodes", tmp_path / "some")
    assert (tmp_path / "commands").read_text() == "sh -s -- --json --progress --attended; exit\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_every_ssh(server: Mayfly, tmp_path: Path, number: int) -> None:
    """Ctrl-C and SIGTERM leave no process."""
    (tmp_path / "some").write_text("hang\n")
    words = ("prefetch", "--state-dir", server.state_dir, "--nodes", tmp_path / "some")
    log = tmp_path / "log"
    with started(*words) as running:
        poll(lambda: has_line(log))
        running.send_signal(number)
        running.communicate(timeout=PATIENCE)
    assert running.returncode == 128 + number
    pid = int(log.read_text().split()[2])
    assert not Path(f"/proc/{pid}").exists()


def test_kill_ends_every_ssh(server: Mayfly, tmp_path: Path) -> None:
    """Also if it cannot end them itself."""
    (tmp_path / "some").write_text("hang\n")
    words = ("prefetch", "--state-dir", server.state_dir, "--nodes", tmp_path / "some")
    log = tmp_path / "log"
    with started(*words) as running:
        poll(lambda: has_line(log))
        running.kill()
    pid = int(log.read_text().split()[2])
    poll(lambda: not Path(f"/proc/{pid}").exists())


def test_lists_of_nodes(server: Mayfly, tmp_path: Path) -> None:
    """A node that the registry does not wait for, a number and a bad name are refused at once."""
    state = ("--state-dir", server.state_dir)
    for text, expected in (
        ("other\n", "does not wait for other"),
        ("-x\n", "does not wait for -x"),
    ):
        (tmp_path / "some").write_text(text)
        done = mayfly("prefetch", *state, "--nodes", tmp_path / "some")
        assert done.returncode == 2
        assert expected in done.stderr
    done = mayfly("prefetch", *state, "--nodes", "3")
    assert done.returncode == 2
    assert "a file of names" in done.stderr
    done = mayfly("prefetch", "--state-dir", tmp_path / "none")
    assert done.returncode == 6


def test_page_has_every_cause() -> None:
    """The table of docs/prefetch.md is the one of the code."""
    page = (REPO / "docs/prefetch.md").read_text()
    rows = [f"| `{cause}` | {what} | {remedy} |" for cause, (what, remedy) in TEXTS.items()]
    assert "\n".join(rows) in page, "\n".join(rows)
