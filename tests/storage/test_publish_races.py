"""Publishing while others remove: what was published last is there, and nobody gets an error.

Two kinds of test. *At every step*: between any two steps of a change another process tidies up
every empty directory; each such point is tried, so these find what they look for every time.
*In threads*: bounded loops with the interpreter switching between threads as often as it can.
"""

from __future__ import annotations

import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.directory.publish import Publisher
from mayfly.storage.directory.store import DistributionStore
from tests.storage.disk import Disk, prune_everything
from tests.support.images import all_succeed, image_body, push, put, put_image, read

REPO = "team/app"


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    """A publisher over an empty tree."""
    made = Publisher(tmp_path / "tree", tmp_path / "tree/_scratch")
    made.open()
    yield made
    made.close()


@pytest.fixture
def frantic() -> Iterator[None]:
    """Threads are switched as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def _prune(tree: Path) -> None:
    """Another process removes what is empty; a scratch directory is never taken from its owner."""
    for directory in tree.iterdir():
        if directory.name not in ("_scratch", "_mayfly"):
            prune_everything(directory)
            if not any(directory.iterdir()):
                directory.rmdir()


def _at_every_step(disk: Disk, tree: Path, change: Callable[[], object]) -> Iterator[int]:
    """Make a change once for each of its steps, with a `_prune` before that step."""
    number, pruned = 0, True
    while pruned:
        pruned = False

        def before(step: int, chosen: int = number) -> None:
            nonlocal pruned
            if step == chosen:
                pruned = True
                _prune(tree)

        with disk.watch(before=before):
            change()
        yield number
        number += 1


def test_write_at_every_step(publisher: Publisher, tmp_path: Path, disk: Disk) -> None:
    """A file is published although the directories made for it are pruned in between."""
    tree = tmp_path / "tree"
    fresh = iter(range(1000))
    paths: list[Path] = []

    def change() -> None:
        paths.append(tree / f"a{next(fresh)}/b/c/file")
        publisher.write(paths[-1], b"content")

    steps = [step for step in _at_every_step(disk, tree, change) if paths[step].is_file()]
    assert len(steps) == len(paths) > 9


def test_adopt_at_every_step(publisher: Publisher, tmp_path: Path, disk: Disk) -> None:
    """The same for a file that is adopted."""
    tree = tmp_path / "tree"
    fresh = iter(range(1000))
    targets: list[Path] = []

    def change() -> None:
        source = tmp_path / "source"
        source.write_bytes(b"content")
        targets.append(tree / f"a{next(fresh)}/b/c/file")
        publisher.adopt(source, targets[-1])

    steps = [step for step in _at_every_step(disk, tree, change) if targets[step].is_file()]
    assert len(steps) == len(targets) > 7


def test_push_at_every_step(tmp_path: Path, disk: Disk) -> None:
    """A whole push, from the first byte to the tag, while empty directories are pruned."""
    store = DistributionStore(tmp_path)
    names = [f"team{n}/app" for n in range(1000)]
    fresh = iter(names)
    done = 0
    for _ in _at_every_step(
        disk, tmp_path / "docker/registry/v2", lambda: put_image(store, next(fresh), "v1")
    ):
        name = names[done]
        assert read(store.manifest(name, store.tag(name, "v1"))) == image_body()
        assert read(store.blob(name, digests.of(b"{}"))) == b"{}"
        shutil.rmtree(tmp_path / "docker/registry/v2/repositories" / name)
        done += 1
    assert done > 20
    store.close()


def test_adopt_of_what_is_gone(publisher: Publisher, tmp_path: Path, disk: Disk) -> None:
    """A source that vanishes, at whatever step before its rename, is never taken for published."""
    tree = tmp_path / "tree"
    source, target = tmp_path / "source", tree / "a/file"
    number, renamed = 0, False
    while not renamed:
        source.write_bytes(b"content")

        def before(step: int, chosen: int = number) -> None:
            nonlocal renamed
            renamed = any(s.kind == "rename" for s in disk.steps[:-1])
            if step == chosen and not renamed:
                source.unlink()

        with disk.watch(before=before):
            try:
                publisher.adopt(source, target)
            except OSError:
                assert not target.exists()
            else:
                assert target.exists(), f"reported as published, step {number}"
        publisher.remove(target)
        number += 1
    assert number > 2


def test_writers_against_removers(publisher: Publisher, tmp_path: Path, frantic: None) -> None:
    """Each thread publishes and removes its own file in directories that all of them share."""

    def work(number: int) -> None:
        dice = random.Random(number)
        for turn in range(25):
            target = tmp_path / "tree/a/b" / dice.choice("xyz") / f"file{number}"
            content = b"%d %d" % (number, turn)
            publisher.write(target, content)
            assert target.read_bytes() == content
            assert publisher.remove(target)
            assert not target.exists()

    all_succeed([lambda n=n: work(n) for n in range(6)])
    assert not (tmp_path / "tree/a").exists()


def test_writers_against_prune(publisher: Publisher, tmp_path: Path, frantic: None) -> None:
    """A thread that prunes without end takes no file and disturbs no writer."""
    stop = threading.Event()
    deepest = tmp_path / "tree/a/b/c"

    def prune() -> None:
        while not stop.is_set():
            publisher.prune(deepest)

    def write(number: int) -> None:
        try:
            for turn in range(25):
                publisher.write(deepest / f"file{number}", b"%d" % turn)
                publisher.remove(deepest / f"file{number}")
            publisher.write(deepest / f"file{number}", b"last")
        finally:
            stop.set()

    all_succeed([prune, lambda: write(0)])
    assert (deepest / "file0").read_bytes() == b"last"


def test_writers_against_remove_tree(publisher: Publisher, tmp_path: Path, frantic: None) -> None:
    """A tree removed while others publish into it: no error, and a last publish stays."""
    tag = tmp_path / "tree/tags/v1"
    still_writing = threading.Semaphore(0)

    def write(name: str) -> None:
        for turn in range(25):
            publisher.write(tag / name / "link", b"%d" % turn)
        still_writing.release()

    def remove() -> None:
        done = 0
        while done < 2:
            publisher.remove_tree(tag)
            done += still_writing.acquire(blocking=False)

    all_succeed([lambda: write("current"), lambda: write("index"), remove])
    publisher.write(tag / "current/link", b"last")
    assert (tag / "current/link").read_bytes() == b"last"
    assert [p for p in (tmp_path / "tree/_scratch").rglob("*") if p.is_file()] == []


def test_two_publishers_on_one_tree(publisher: Publisher, tmp_path: Path, frantic: None) -> None:
    """Two processes' publishers, each publishing and removing, never hinder one another."""
    second = Publisher(tmp_path / "tree", tmp_path / "tree/_scratch")
    second.open()

    def work(own: Publisher, number: int) -> None:
        for _ in range(20):
            target = tmp_path / "tree/a/b" / f"file{number}"
            own.write(target, b"x")
            assert target.exists()
            own.remove(target)

    calls = [(one, n) for n, one in enumerate([publisher, second] * 2)]
    all_succeed([lambda one=one, n=n: work(one, n) for one, n in calls])
    second.close()


def test_tags_against_deletes(tmp_path: Path, frantic: None) -> None:
    """Tags pushed and deleted at once in one repository: the others and the manifest stay."""
    store = DistributionStore(tmp_path)
    push(store, REPO, b"{}")
    put(store, REPO, image_body(), "stays")

    def work(number: int) -> None:
        for _ in range(10):
            put(store, REPO, image_body(), f"v{number}")
            assert f"v{number}" in store.tags(REPO)
            store.delete_tag(REPO, f"v{number}")
            assert f"v{number}" not in store.tags(REPO)

    all_succeed([lambda n=n: work(n) for n in range(4)])
    assert store.tags(REPO) == ["stays"]
    store.close()
