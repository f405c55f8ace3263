"""The power fails at any moment: what was acknowledged is there, and nothing wrong is.

Real processes are recorded by strace(1). Their steps are replayed on a disk that loses what was
not synced (`power_disk`), and each state it may be left in, after each step, is opened as a store.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.bundle.builders import Layout
from tests.faults import power_disk, power_trace
from tests.faults.crash_model import Key, blobs_in, manifest_of
from tests.faults.power_actor import deleted, pushed
from tests.faults.power_disk import Disk
from tests.faults.power_story import Changes, Story, Told, begun_again, check, check_acknowledged
from tests.faults.power_trace import Step, need_strace, recorded
from tests.storage.disk import skip_sync
from tests.support.images import digest_of
from tests.support.process import PATIENCE, Mayfly, Process, remove_tree

SOAK = os.environ.get("MAYFLY_SOAK") == "1"
"""The long form: every point to kill a process at, and more ways in which the disk loses."""

WINDOW = 12 if SOAK else 2
"""How many of the last changes are lost or kept one by one."""

APP, COPY, BUNDLED = "team/app", "team/copy", "bundled/app"


class Client:
    """One client of a recorded server; it waits for each answer."""

    def __init__(self, host: str, story: Story) -> None:
        self._host = host
        self._story = story

    def ask(
        self, status: int, method: str, target: str, body: bytes = b"", **changes: Changes
    ) -> http.client.HTTPResponse:
        """One request, and what it changes."""
        with (
            self._story.request(changes.get("changes")),
            closing(http.client.HTTPConnection(self._host, timeout=60)) as connection,
        ):
            connection.request(method, target, body)
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == status, (answer.status, text)
        return answer

    def push(self, repository: str, content: bytes) -> None:
        """A blob in one request."""
        target = f"/v2/{repository}/blobs/uploads/?digest={digest_of(content)}"
        self.ask(201, "POST", target, content, changes=self._story.blob(repository, content))

    def begin(self, repository: str, *chunks: bytes) -> str:
        """An upload with some chunks; its location."""
        answer = self.ask(202, "POST", f"/v2/{repository}/blobs/uploads/")
        location = answer.headers["Location"]
        for chunk in chunks:
            self.ask(202, "PATCH", location, chunk)
        return location

    def finish(self, repository: str, location: str, content: bytes, rest: bytes) -> None:
        """The end of an upload."""
        changes = self._story.blob(repository, content)
        self.ask(201, "PUT", f"{location}?digest={digest_of(content)}", rest, changes=changes)

    def put(self, repository: str, reference: str, body: bytes, *tags: str) -> None:
        """A manifest and what points at it."""
        changes = self._story.manifest(repository, body, *tags)
        self.ask(201, "PUT", f"/v2/{repository}/manifests/{reference}", body, changes=changes)

    def mount(self, repository: str, content: bytes, source: str) -> None:
        """A blob of another repository."""
        target = f"/v2/{repository}/blobs/uploads/?mount={digest_of(content)}&from={source}"
        self.ask(201, "POST", target, changes=self._story.blob(repository, content))


CONTENT = random.Random(1)
CONFIGS = [CONTENT.randbytes(300) for _ in range(3)]
LAYERS = [CONTENT.randbytes(5000 + number) for number in range(3)]
IMAGES = [manifest_of([config, layer]) for config, layer in zip(CONFIGS, LAYERS, strict=True)]
SIGNATURE = manifest_of([CONFIGS[0]], subject=IMAGES[1])


def _first_life(client: Client, story: Story) -> str:
    """Pushes in every way, tags, a mount, a referrer, deletions; an upload is left open."""
    client.push(APP, CONFIGS[0])
    client.finish(
        APP, client.begin(APP, LAYERS[0][:2000], LAYERS[0][2000:4000]), LAYERS[0], LAYERS[0][4000:]
    )
    client.put(APP, "v1", IMAGES[0], "v1")
    client.push(APP, CONFIGS[1])
    client.finish(APP, client.begin(APP), LAYERS[1], LAYERS[1])
    client.put(APP, "v1", IMAGES[1], "v1")
    client.mount(COPY, LAYERS[1], APP)
    client.mount(COPY, CONFIGS[1], APP)
    client.put(COPY, f"{digest_of(IMAGES[1])}?tag=a&tag=b", IMAGES[1], "a", "b")
    client.put(APP, digest_of(SIGNATURE), SIGNATURE)
    tag = Key("tag", COPY, "a")
    client.ask(202, "DELETE", tag.path, changes={tag: None})
    blob = Key("blob", COPY, digest_of(CONFIGS[0]))
    client.mount(COPY, CONFIGS[0], APP)
    client.ask(202, "DELETE", blob.path, changes={blob: None})
    first = Key("manifest", APP, digest_of(IMAGES[0]))
    client.ask(202, "DELETE", first.path, changes=story.deletion(APP, first.name))
    return client.begin(APP, LAYERS[2][:3000])


def _second_life(client: Client, story: Story, location: str) -> None:
    """The upload is continued, what was deleted and collected is pushed again, more goes."""
    client.finish(APP, location, LAYERS[2], LAYERS[2][3000:])
    client.push(APP, CONFIGS[2])
    client.put(APP, "v2", IMAGES[2], "v2")
    client.push(APP, LAYERS[0])
    client.put(APP, "v1", IMAGES[0], "v1")
    second = Key("manifest", COPY, digest_of(IMAGES[1]))
    client.ask(202, "DELETE", second.path, changes=story.deletion(COPY, second.name))
    for key in [key for key, value in story.known.items() if value and key.repository == COPY]:
        client.ask(202, "DELETE", key.path, changes={key: None})


def _bundle(home: Path, story: Story) -> tuple[Path, Changes]:
    """A bundle to import, and what that changes."""
    layout = Layout()
    image = layout.image(CONTENT.randbytes(4000), LAYERS[0])
    layout.name(image, f"example.org/{BUNDLED}:v1")
    contents = {digest_of(data): data for data in layout.files.values()}
    body = contents[image["digest"]]
    changes = story.manifest(BUNDLED, body, "v1")
    for digest in blobs_in(body):
        changes |= story.blob(BUNDLED, contents[digest])
    return layout.write_tar(home.parent / "bundle.tar"), changes


def _command(*words: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "mayfly", *words]


def _ready(process: Process, state: Path) -> str:
    """Where a recorded server listens."""

    def read() -> str | None:
        try:
            ready = json.loads((state / "ready.json").read_text())
        except FileNotFoundError:
            return None
        return ready["url"].partition("://")[2] if ready["pid"] == process.pid else None

    return process.wait_for(read)


def _record(home: Path) -> tuple[list[Step], list[Told]]:
    """Two lives of a server and two commands between them, on one store."""
    home.mkdir()
    state = home.parent / "state"
    story, steps = Story(), list[Step]()
    serve = _command("serve", "--root", home / "root", "--state-dir", state)
    serve += ["--listen", "127.0.0.1:0", "--gc-interval", "never"]
    with recorded(home, serve, steps) as server:
        location = _first_life(Client(_ready(server, state), story), story)
        server.stop(60)
    with story.request(story.collection()):
        _run(home, steps, "gc", "--grace", "0s", "--root", home / "root")
    bundle, changes = _bundle(home, story)
    with story.request(changes):
        _run(home, steps, "import", bundle, "--root", home / "root")
    with recorded(home, serve, steps) as server:
        _second_life(Client(_ready(server, state), story), story, location)
        server.kill()
    return steps, story.end()


def _run(home: Path, steps: list[Step], *words: str | Path) -> None:
    """Record a command; its end is its answer."""
    with recorded(home, _command(*words), steps) as process:
        assert process.popen.wait(PATIENCE) == 0, process.describe()
    steps.append(Step("answer"))


@pytest.fixture
def home(workspace: Path) -> Iterator[Path]:
    """Where stores are recorded."""
    need_strace()
    place = workspace / "power"
    place.mkdir()
    yield place
    remove_tree(place)


@pytest.fixture
def states(workspace: Path) -> Iterator[Path]:
    """Where what a power cut left is looked at: in memory, as there are many."""
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="mayfly-", dir=memory if memory.is_dir() else workspace))
    yield place
    remove_tree(place)


@pytest.fixture
def quick_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stores that are looked at are in this process, and need not outlive it."""
    skip_sync(monkeypatch)


def _look_at_every_state(
    disk: Disk,
    steps: list[Step],
    told: list[Told],
    states: Path,
    look: Callable[[Path, Told], None] = check,
) -> int:
    """After each step, each state that a power cut may leave; how many there were."""
    answers = looked = 0
    seen: set[object] = set()
    for number, step in enumerate(steps):
        answers += step.kind == "answer"
        disk.do(step)
        for tree in disk.after_power_loss():
            # What lies among the temporary files is dropped by any start.
            shown = frozenset(i for i in tree.items() if "/_mayfly/scratch/" not in i[0])
            if (answers, shown) in seen:
                continue
            seen.add((answers, shown))
            place = states / "state"
            power_disk.build(tree, place)
            try:
                look(place / "root", told[answers])
            except Exception as error:
                raise AssertionError(
                    f"cut after step {number}, {step.kind} {step.path} {step.target}, and "
                    f"{answers} answers: {error!r}"
                ) from error
            remove_tree(place)
            looked += 1
    return looked


@pytest.mark.parametrize(
    "end",
    [
        "1 0.2 +++ killed by SIGKILL +++",
        "1 0.2 <... sendto resumed>) = ?\n1 0.3 +++ killed by SIGKILL +++",
    ],
)
def test_answer_of_a_server_that_is_killed_at_once(tmp_path: Path, end: str) -> None:
    """The client may have it before the server's call returns."""
    text = "".join(f"\\x{byte:02x}" for byte in b"HTTP/1.1 201 Created")
    trace = tmp_path / "trace"
    trace.write_text(f'1 0.1 sendto(3<socket>, "{text}", 20 <unfinished ...>\n{end}\n')
    assert [step.kind for step in power_trace.read(trace, tmp_path)] == ["answer"]


def test_power_may_fail_at_any_moment(home: Path, states: Path, quick_sync: None) -> None:
    """Every state after every step of two servers, a collection and an import."""
    store = home / "recorded"
    steps, told = _record(store)
    assert sum(step.kind == "answer" for step in steps) == len(told) - 1
    disk = Disk(WINDOW)
    for step in steps:
        disk.do(step)
    assert disk.tree() == power_disk.look(store), "the recording missed something"
    looked = _look_at_every_state(Disk(WINDOW), steps, told, states)
    print(f"{len(steps)} steps, {len(told) - 1} answers, {looked} states")
    assert looked > len(told)
    _serve_some_states(steps, told, home)


def _serve_some_states(steps: list[Step], told: list[Told], home: Path) -> None:
    """After some steps, what lost everything that was not synced is served by a real server."""
    disk = Disk(WINDOW)
    answers = 0
    some = range(len(steps) // 2, len(steps), len(steps) // (20 if SOAK else 4))
    for number, step in enumerate(steps):
        answers += step.kind == "answer"
        disk.do(step)
        if number in some:
            place = home / f"served{number}"
            power_disk.build(next(disk.after_power_loss()), place)
            with Mayfly(place / "root", place / "state") as server:
                for key in told[answers].keys:
                    assert _served(server, key) in told[answers].allowed(key), (number, key)


def _served(server: Mayfly, key: Key) -> str | None:
    """The digest of what a server gives for a key."""
    with closing(http.client.HTTPConnection(server.host, timeout=60)) as connection:
        connection.request("GET", key.path)
        answer = connection.getresponse()
        body = answer.read()
        return digest_of(body) if answer.status == 200 else None


def _act(home: Path, what: str) -> list[Step]:
    """Record the actor on a store."""
    steps: list[Step] = []
    argv = [sys.executable, "-m", "tests.faults.power_actor", what, str(home / "root")]
    with recorded(home, argv, steps) as process:
        assert process.popen.wait(PATIENCE) == 0, process.describe()
    return steps


def _replayed(*steps: Step) -> Disk:
    disk = Disk(WINDOW)
    for step in steps:
        disk.do(step)
    return disk


HALF_DELETED = r"/_manifests/tags/\w+$", r"/_manifests/revisions/.*/link$"
"""What is gone when a tag, or a manifest, is deleted and the directory it was in is not synced."""


def _cuts(steps: list[Step], telling: str | None) -> list[int]:
    """Where to kill a process: after each change that shows; some of them in the short form.

    Those are the removals of what matches ``telling``, else a few that are spread over all.
    """
    shown = [
        number
        for number, step in enumerate(steps, 1)
        if step.kind in ("rename", "remove")
        and not all("/scratch/" in path for path in (step.path, step.target) if path)
    ]
    if SOAK:
        return shown
    told = [n for n in shown if telling is not None and re.search(telling, steps[n - 1].path)]
    return told or shown[:: len(shown) // 2]


@pytest.mark.parametrize("what", ["push", "delete"])
def test_power_fails_after_a_crash(what: str, home: Path, states: Path, quick_sync: None) -> None:
    """A process is killed before it synced what is seen already; the next one relies on that."""
    story = Story()
    before: list[Step] = []
    if what == "delete":
        (home / "first").mkdir()
        before = [*_act(home / "first", "push"), Step("sync everything")]
        pushed(story)
        story.told.clear()
    {"push": pushed, "delete": deleted}[what](story)
    told = begun_again(story.end())
    telling = HALF_DELETED[0] if what == "delete" else None
    _look_after_crashes(home, states, before, (what, what), told, telling)


def test_power_fails_while_collecting_after_a_crash(
    home: Path, states: Path, quick_sync: None
) -> None:
    """One that deletes is killed, and what it did is not synced; only a collection continues."""
    (home / "first").mkdir()
    before = [*_act(home / "first", "push"), Step("sync everything")]
    story = Story()
    pushed(story)
    story.told.clear()
    deleted(story)
    everything = begun_again(story.end())[0]
    # The collection is answered in the end, but of what was deleted before nobody was told.
    told = [everything, everything]
    _look_after_crashes(home, states, before, ("delete", "collect"), told, HALF_DELETED[1])


def _look_after_crashes(
    home: Path,
    states: Path,
    before: list[Step],
    acts: tuple[str, str],
    told: list[Told],
    telling: str | None,
) -> None:
    """Kill a process at several points (`_cuts`) and have another continue, with its own acts."""
    what, then = acts
    whole = home / "whole"
    power_disk.build(_replayed(*before).tree(), whole)
    steps = _act(whole, what)
    looked = 0
    cuts = _cuts(steps, telling)
    for cut in cuts:
        disk = _replayed(*before, *steps[:cut])
        again = home / str(cut)
        power_disk.build(disk.tree(), again)
        more = _act(again, then)
        assert sum(step.kind == "answer" for step in more) == len(told) - 1
        looked += _look_at_every_state(disk, more, told, states)
    print(f"{what}, then {then}: killed at {len(cuts)} points, {looked} states")


def test_what_another_registry_did_not_sync(home: Path, states: Path, quick_sync: None) -> None:
    """registry:2 syncs nothing. What is pushed over what it left is durable when it is answered."""
    (home / "other").mkdir()
    left = [step for step in _act(home / "other", "push") if not step.kind.startswith("sync")]
    disk = _replayed(*left)
    power_disk.build(disk.tree(), home / "taken over")
    story = Story()
    pushed(story)
    steps = _act(home / "taken over", "push")
    looked = _look_at_every_state(disk, steps, story.end(), states, check_acknowledged)
    print(f"{looked} states")
