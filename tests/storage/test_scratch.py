"""Scratch directories: one for each living process, those of dead ones cleaned away."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mayfly.storage.directory.publish import Publisher
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.errors import Interrupted
from tests.support.images import all_succeed, put_image
from tests.support.process import REPO as SOURCE
from tests.support.process import descriptors

HOLDER = """
import sys
from pathlib import Path
from mayfly.storage.directory.publish import Publisher
tree = Path(sys.argv[1])
publisher = Publisher(tree, tree / "_scratch")
publisher.open()
print("open", flush=True)
sys.stdin.readline()
publisher.write(tree / "from/the/holder", b"still works")
print("written", flush=True)
sys.stdin.readline()
publisher.close()
"""


@contextmanager
def _holder(tree: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the tree open until told to continue."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tree)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=SOURCE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def _open(tree: Path) -> Publisher:
    publisher = Publisher(tree, tree / "_scratch")
    publisher.open()
    return publisher


def test_living_process_keeps_its_scratch(tmp_path: Path) -> None:
    """Opening the tree leaves the scratch of a living process, which continues publishing."""
    with _holder(tmp_path) as process:
        (own,) = (tmp_path / "_scratch").iterdir()
        (own / "half-written").write_bytes(b"precious")
        opened = _open(tmp_path)
        assert (own / "half-written").read_bytes() == b"precious"
        (own / "half-written").unlink()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "written\n"
        assert (tmp_path / "from/the/holder").read_bytes() == b"still works"
        process.communicate("\n")
        assert process.returncode == 0
        assert not own.exists()
        opened.close()
    assert list((tmp_path / "_scratch").iterdir()) == []


def test_killed_process_leaves_nothing_for_long(tmp_path: Path) -> None:
    """What a killed process left half written is gone once the tree is opened again."""
    with _holder(tmp_path) as process:
        (own,) = (tmp_path / "_scratch").iterdir()
        (own / "half-written").write_bytes(b"rubbish")
        (own / "doomed/deep").mkdir(parents=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        opened = _open(tmp_path)
        assert not own.exists()
        opened.close()


def test_close_removes_the_scratch(tmp_path: Path) -> None:
    """A clean end leaves no scratch, and a closed publisher can be closed again."""
    opened = _open(tmp_path)
    assert len(list((tmp_path / "_scratch").iterdir())) == 1
    opened.close()
    opened.close()
    assert list((tmp_path / "_scratch").iterdir()) == []


def test_nothing_is_published_after_the_end(tmp_path: Path) -> None:
    """A thread that is late makes no scratch directory that nothing would remove."""
    opened = _open(tmp_path)
    opened.write(tmp_path / "before", b"content")
    opened.close()
    before = descriptors()
    for late in (
        lambda: opened.write(tmp_path / "late", b"content"),
        lambda: opened.put_directory(tmp_path / "late", {"data": b""}),
        opened.private_directory,
    ):
        with pytest.raises(Interrupted):
            late()
    assert {path.name for path in tmp_path.iterdir()} == {"_scratch", "before"}
    assert list((tmp_path / "_scratch").iterdir()) == []
    assert descriptors() == before


def test_open_between_the_other_s_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that opens the tree just before another has locked its scratch spares it.

    ``mayfly import`` may start at the moment ``mayfly serve`` does.
    """
    real = fcntl.flock
    others: list[Publisher] = []

    def flock(descriptor: int, operation: int) -> None:
        if not others and operation == fcntl.LOCK_EX:
            others.append(Publisher(tmp_path, tmp_path / "_scratch"))
            others[0].open()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    first = Publisher(tmp_path, tmp_path / "_scratch")
    first.open()
    assert others
    for publisher, name in ((first, "first"), (others[0], "second")):
        publisher.write(tmp_path / name, b"content")
        assert (tmp_path / name).read_bytes() == b"content"
        publisher.close()


def test_many_open_at_once(tmp_path: Path) -> None:
    """Many that open one root at once can all publish afterwards."""
    for turn in range(5):
        root = tmp_path / str(turn)

        def work(number: int, root: Path = root) -> None:
            store = DistributionStore(root)
            put_image(store, f"team/app{number}", "v1")
            assert store.tags(f"team/app{number}") == ["v1"]
            store.close()

        all_succeed([lambda n=n, work=work: work(n) for n in range(6)])


def test_pipes_among_the_scratch_directories(tmp_path: Path) -> None:
    """Nobody waits for a pipe's writer, whatever it stands for; pushes continue."""
    store = DistributionStore(tmp_path)
    upload = store.begin_upload("app", "sha256")
    data = next(tmp_path.rglob("_uploads/*/data"))
    store.close()
    data.unlink()
    os.mkfifo(data)
    scratch = next(tmp_path.rglob("_mayfly/scratch"))
    os.mkfifo(scratch / "pipe")
    store = DistributionStore(tmp_path)
    with pytest.raises(OSError, match="No such device"):
        store.upload("app", upload.id).write([b"x"], 0)
    _, digest = put_image(store, "app", "1")
    # What is recorded of a blob when it is pushed again, and in whose place.
    record = next(tmp_path.rglob(f"{digest.hex}/_mayfly_size_*"))
    record.unlink()
    os.mkfifo(record)
    put_image(store, "app", "1")
    store.close()
    shutil.rmtree(scratch)
    os.mkfifo(scratch)
    with pytest.raises(NotADirectoryError, match="scratch"):
        DistributionStore(tmp_path)
