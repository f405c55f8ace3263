"""Ctrl-C, and worse, in the middle of an import, an export, a collection, a deletion."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.transfer.importing import WORKERS
from tests.bundle.builders import Layout, tar
from tests.storage.disk import skip_sync
from tests.support.commands import command_line, environment, started
from tests.support.images import push, put_image
from tests.support.process import PATIENCE

MORE = int(os.environ.get("MAYFLY_SOAK_SECONDS", "0")) // 4
"""Further interruptions of each command; `make soak` gives some."""

IMAGES = 16
LAYER_BYTES = 4 * 2**20
LATE = 5
"""Interruptions that may come too late, beside those that count."""

TRIES = 10
"""For each interruption that is wanted: a short command may be done before the signal."""

Event = dict[str, Any]


@pytest.fixture(scope="module")
def quick_disk() -> Iterator[Path]:
    """A directory in memory where there is room: what a sync costs is of no interest here."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**30
    with tempfile.TemporaryDirectory(prefix="mayfly-", dir=memory if roomy else None) as directory:
        yield Path(directory)


@pytest.fixture
def scratch(quick_disk: Path) -> Iterator[Path]:
    """A directory of one test's own there."""
    with tempfile.TemporaryDirectory(dir=quick_disk) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def bundle(quick_disk: Path) -> Path:
    """Images that share a layer and have one of their own: some 70 MB."""
    chance = random.Random(0)
    layout = Layout()
    shared = tar({"shared": chance.randbytes(LAYER_BYTES)})
    for number in range(IMAGES):
        own = tar({"own": chance.randbytes(LAYER_BYTES)})
        layout.name(layout.image(shared, own), f"quay.example/kolla/service{number}:1")
    return layout.write_tar(quick_disk / "bundle.tar")


@contextlib.contextmanager
def job(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A command whose output is read line by line; killed where it hangs or is left running."""
    with started(*words, env={"PYTHONUNBUFFERED": "1"}) as process:
        guard = threading.Timer(PATIENCE, process.kill)
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()


def events(process: subprocess.Popen[str]) -> Iterator[Event]:
    """What it says, as it says it."""
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def interrupted(number: signal.Signals, moment: float, *words: str | Path) -> int:
    """Run a command and send it a signal once it has done that part of its work; how it ended."""
    with job(*words, "--json") as process:
        for event in events(process):
            if event["event"] == "progress" and event["done"] >= moment * event["total"]:
                process.send_signal(number)
                break
        _, said = process.communicate()
    assert "Traceback" not in said, said
    if process.returncode == -number and number is not signal.SIGKILL:
        # The interpreter was just leaving; to a shell it is the same.
        return 128 + number
    return process.returncode


def interrupted_at(number: signal.Signals, moment: Callable[[], bool], *words: str | Path) -> int:
    """Run a command and send it a signal at a moment, or after its end; how it ended."""
    with job(*words) as process:
        while process.poll() is None and not moment():
            time.sleep(0.001)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in said, said
    return process.returncode


def _written_beside(output: Path) -> int:
    """The bytes of unfinished files beside an output."""
    total = 0
    for path in output.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += 0 if path == output else path.stat().st_size
    return total


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command that nothing interrupts."""
    return subprocess.run(
        command_line(*words),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def whole(root: Path) -> None:
    """Nothing in the store is wrong, and `verify`, the next to open it, has left no scratch."""
    done = run("verify", "--root", root)
    assert done.returncode == 0, done.stdout + done.stderr
    base = root / "docker/registry/v2"
    assert list((base / "_mayfly/scratch").iterdir()) == []
    assert list(base.rglob("_uploads")) == []
    assert {path.name for path in root.iterdir()} == {"docker"}


def exit_code(number: signal.Signals) -> int:
    """The exit code of a command that a signal ended."""
    return -number if number is signal.SIGKILL else 128 + number


def stored(root: Path) -> int:
    """Bytes of the blobs that are in place, without the manifests."""
    files = (root / "docker/registry/v2/blobs").rglob("data")
    found = ((path.stat().st_size, path.read_bytes()[:16]) for path in files)
    return sum(size for size, start in found if not start.startswith(b'{"schemaVersion"'))


def finish_import(root: Path, bundle: Path) -> int:
    """Import to the end; how many bytes were copied."""
    with job("import", bundle, "--root", root, "--json") as process:
        last = [*events(process)][-1]
        assert process.wait() == 0
    assert len(last["images"]) == IMAGES
    return int(last["copied"])


@pytest.fixture(scope="module")
def imported(bundle: Path, quick_disk: Path) -> Path:
    """A store with all of it, not to be changed."""
    finish_import(quick_disk / "imported", bundle)
    return quick_disk / "imported"


@pytest.mark.parametrize(
    ("number", "rounds"), [(signal.SIGINT, 4), (signal.SIGTERM, 1), (signal.SIGKILL, 2)]
)
def test_import(
    number: signal.Signals, rounds: int, bundle: Path, imported: Path, scratch: Path
) -> None:
    """At any moment the store is whole; what was published is not copied again; it completes."""
    chance = random.Random(f"import {number}")
    size, root = stored(imported), scratch / "root"
    ends = set()
    for turn in range(rounds + MORE + LATE):
        # The second comes at the very end of the copying, when manifests and tags follow.
        moment = 1.0 if turn == 1 else chance.random() * 0.9
        if turn >= rounds + MORE:
            if exit_code(number) in ends:
                break
            moment = 0.0  # on a busy machine the signal came when all was done
        ends.add(interrupted(number, moment, "import", bundle, "--root", root))
        whole(root)
        missing = size - stored(root)
        again = finish_import(root, bundle) - missing
        # One that was killed may have published without a link to it what it was at last.
        assert again <= (WORKERS * LAYER_BYTES * 1.1 if number is signal.SIGKILL else 0)
        assert again >= 0
        assert stored(root) == size
        whole(root)
        shutil.rmtree(root)
    # 0: all was done when the signal came.
    assert exit_code(number) in ends
    assert ends <= {exit_code(number), 0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_compressed_import(
    number: signal.Signals, bundle: Path, imported: Path, scratch: Path
) -> None:
    """What a compressed bundle was expanded to does not stay either."""
    packed, root = scratch / "bundle.tar.gz", scratch / "root"
    with packed.open("wb") as output:
        subprocess.run(["gzip", "-1", "--stdout", bundle], check=True, stdout=output)
    # In the midst of the expanding, which comes first.
    code = interrupted(number, 0.5, "import", packed, "--root", root)
    assert code == exit_code(number)
    whole(root)
    assert stored(root) == 0
    assert finish_import(root, packed) == stored(imported)
    whole(root)


@pytest.mark.parametrize(("number", "rounds"), [(signal.SIGINT, 3), (signal.SIGKILL, 1)])
def test_export(number: signal.Signals, rounds: int, imported: Path, scratch: Path) -> None:
    """No half file ever has the final name, and the same export afterwards is complete."""
    directory = scratch / "out"
    directory.mkdir()
    output = directory / "all.tar"
    output.write_bytes(b"the one before")
    chance = random.Random(f"export {number}")
    words = ("export", "--all", "-o", output, "--root", imported)
    reference = scratch / "reference.tar"
    assert run("export", "--all", "-o", reference, "--root", imported).returncode == 0
    left, size = rounds + MORE, reference.stat().st_size
    for _ in range(TRIES * left):
        wanted = chance.random() * 0.5 * size
        code = interrupted_at(number, lambda least=wanted: _written_beside(output) > least, *words)
        assert code in (0, exit_code(number))
        if output.read_bytes() == reference.read_bytes():  # done before the signal reached it
            output.write_bytes(b"the one before")
            continue
        left -= 1
        assert code
        assert output.read_bytes() == b"the one before"
        if number is not signal.SIGKILL:
            assert [path.name for path in directory.iterdir()] == ["all.tar"]
        if not left:
            break
    assert not left, "no signal came in time"
    assert run(*words).returncode == 0
    assert [path.name for path in directory.iterdir()] == ["all.tar"]
    assert finish_import(scratch / "again", output) == stored(imported)
    whole(scratch / "again")


def test_collection(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection that was interrupted has freed some; the next one frees the rest, no more."""
    root = scratch / "root"
    garbage = [b"garbage %d" % number for number in range(800)]
    with monkeypatch.context() as quick, contextlib.closing(DistributionStore(root)) as store:
        skip_sync(quick)
        put_image(store, "team/app", "kept")
        paths = [store.blob("team/app", push(store, "team/app", data)).path for data in garbage]
    with job("gc", "--grace", "0s", "--root", root) as process:
        while all(path.exists() for path in paths[::40]):
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130, said
    left = sum(path.exists() for path in paths)
    assert 0 < left < len(paths)
    whole(root)
    done = run("gc", "--grace", "0s", "--root", root, "--json")
    assert len(json.loads(done.stdout)["blobs"]) == left
    assert not any(path.exists() for path in paths)
    whole(root)
    assert run("ls", "--root", root).stdout.startswith("team/app:kept ")


def test_deletion(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several images, those that were said to be deleted are, and all others are whole."""
    root = scratch / "root"
    # More names than the pipe holds: the command cannot be through before the signal.
    names = [f"kolla/service{number:04}:1" for number in range(700)]
    with monkeypatch.context() as quick, contextlib.closing(DistributionStore(root)) as store:
        skip_sync(quick)
        for name in names:
            put_image(store, name.removesuffix(":1"), "1", config=name.encode())
    with job("rm", *names, "--root", root) as process:
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        said = [process.stdout.readline() for _ in range(20)]
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()  # communicate() would pass over what was read ahead
        process.wait()
    assert process.returncode == 130
    whole(root)
    listed = run("ls", "--root", root, "--json").stdout
    left = {image["name"] for image in json.loads(listed)["images"]}
    deleted = {line.split()[1].rstrip(";") for line in [*said, *rest.splitlines()]}
    assert left.isdisjoint(deleted)
    # One may be gone before it could be said.
    assert len(names) - len(left) - len(deleted) in (0, 1)
