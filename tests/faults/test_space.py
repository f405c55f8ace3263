"""A mirror on a small disk: usage stays between the thresholds, and nothing protected goes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.upkeep.evict import usage_of
from tests.faults.disk_mounts import MIB, ext4, tmpfs
from tests.support.beside import repeating
from tests.support.client import ask
from tests.support.commands import mayfly
from tests.support.images import digest_of, image_body, push, put
from tests.support.process import Mayfly, poll

DISK = 32 * MIB
IMAGES = 40
UPSTREAM = "up.example"
HIGH, LOW = 85, 80


def _layer(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest() * (MIB // 32)


def _body(number: int) -> bytes:
    return image_body(b"{}", [_layer(number)])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mayfly]:
    """An upstream with more images than the disk can have."""
    place = tmp_path_factory.mktemp("source")
    with closing(DistributionStore(place / "root")) as store:
        for number in range(IMAGES):
            push(store, f"team/app-{number}", b"{}")
            push(store, f"team/app-{number}", _layer(number))
            put(store, f"team/app-{number}", _body(number), "1")
    with Mayfly(place / "root", place / "state", "--read-only") as running:
        yield running


def _mirror(root: Path, source: Mayfly, place: Path) -> Mayfly:
    protected = place / "protected.txt"
    protected.write_text(f"{UPSTREAM}/team/app-0:1\n")
    options = ["--upstream", f"{UPSTREAM}={source.url}", "--gc-grace", "1s"]
    options += ["--gc-high", str(HIGH), "--gc-low", str(LOW), "--protect", str(protected)]
    return Mayfly(root, place / "state", *options)


def _pull(host: str, number: int, prefix: str = f"{UPSTREAM}/team") -> bool:
    """Pull an image whole; what arrives is right, or an error."""
    repository = f"{prefix}/app-{number}"
    manifest = ask(host, "GET", f"/v2/{repository}/manifests/1")
    if manifest.status != 200:
        return False
    assert manifest.body == _body(number)
    for data in (b"{}", _layer(number)):
        blob = ask(host, "GET", f"/v2/{repository}/blobs/{digest_of(data)}")
        assert (blob.status, blob.body == data) == (200, True)
    return True


def _push(host: str, number: int) -> None:
    repository = f"mine/app-{number}"
    for data in (b"{}", _layer(1000 + number)):
        digest = digest_of(data)
        url = f"/v2/{repository}/blobs/uploads/?digest={digest}"
        assert ask(host, "POST", url, data).status == 201
    body = image_body(b"{}", [_layer(1000 + number)])
    answer = ask(host, "PUT", f"/v2/{repository}/manifests/1", body)
    assert answer.status == 201


def test_thresholds_hold_while_pulls_and_pushes_go_on(source: Mayfly, tmp_path: Path) -> None:
    """Eighty pulls of forty images on a disk for thirty; pushed and protected ones are there at
    the end, without the upstream.
    """
    samples: list[float] = []
    with tmpfs(tmp_path / "disk", DISK) as disk:
        root = disk / "root"
        with _mirror(root, source, tmp_path) as running:
            with repeating(lambda: samples.append(usage_of(root).percent), 0.05):
                for turn in range(2 * IMAGES):
                    assert _pull(running.host, turn % IMAGES), turn
                    if turn % 20 == 10:
                        _push(running.host, turn)
                    time.sleep(0.05)
            # One image is some 3% of the disk; a second's pulls arrive between two looks.
            assert max(samples) < 99
            poll(lambda: usage_of(root).percent <= HIGH, lambda: usage_of(root))
            assert usage_of(root).percent > LOW - 10
            source_is_gone = Mayfly(root, tmp_path / "alone")
            with source_is_gone as alone:
                assert _pull(alone.host, 0)
                for turn in range(10, 2 * IMAGES, 20):
                    name = f"/v2/mine/app-{turn}/blobs/{digest_of(_layer(1000 + turn))}"
                    assert ask(alone.host, "GET", name).body == _layer(1000 + turn)
            assert "evicted" in running.output()
            assert _pull(running.host, 7)
        verified = mayfly("verify", "--root", root)
        assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.parametrize("filesystem", [tmpfs, ext4])
def test_a_disk_without_a_free_byte(source: Mayfly, tmp_path: Path, filesystem: object) -> None:
    """By hand and by the server; the dry run says what goes and why."""
    with filesystem(tmp_path / "disk", DISK) as disk:  # type: ignore[operator]
        root = disk / "root"
        protected = tmp_path / "protected.txt"
        with _mirror(root, source, tmp_path) as running:
            for number in range(8):
                assert _pull(running.host, number)
            _push(running.host, 1)
        time.sleep(1.2)  # --gc-grace
        filler = disk / "filler"
        _fill(filler)
        words = ("gc", "--root", root, "--high", "85", "--low", "75", "--grace", "1s")
        protecting = (*words, "--protect", protected)
        planned = json.loads(mayfly(*protecting, "--dry-run", "--json").stdout)
        assert planned["space"]["used_before"] > 99
        names = [one["image"] for one in planned["space"]["evicted"]]
        assert names == [f"{UPSTREAM}/team/app-{number}:1" for number in range(1, len(names) + 1)]
        done = mayfly(*protecting)
        assert done.returncode in (0, 3), done.stderr
        assert f"evicted {names[0]}" in done.stdout
        assert "last pulled 20" in done.stdout
        with closing(DistributionStore(root)) as store:
            assert store.tags("mine/app-1") == ["1"]
            assert store.tags(f"{UPSTREAM}/team/app-0") == ["1"]
        with _mirror(root, source, tmp_path) as running:
            _fill(filler)
            assert _pull(running.host, 0)
            filler.unlink()
            poll(lambda: usage_of(root).percent <= HIGH, lambda: usage_of(root))
            for number in range(8):
                assert _pull(running.host, number)
        assert mayfly("verify", "--root", root).returncode == 0


def _fill(path: Path) -> None:
    """Write until the disk has no byte left."""
    piece = 256 * 1024
    with path.open("ab", buffering=0) as file:
        while piece:
            try:
                file.write(b"\0" * piece)
            except OSError:
                piece //= 2


def test_contradictions_are_refused(tmp_path: Path) -> None:
    """Thresholds the wrong way round, and one without the other."""
    root = tmp_path / "root"
    root.mkdir()
    for words, told in (
        (("serve", "--gc-high", "80", "--gc-low", "85"), "not below"),
        (("serve", "--gc-low", "85"), "need --gc-high"),
        (("serve", "--gc-high", "0"), "expected a percentage"),
        (("serve", "--gc-high", "85", "--protect", "/nowhere"), "--protect /nowhere"),
        (("gc", "--high", "80", "--low", "85"), "not below"),
        (("gc", "--low", "85"), "need --high"),
        (("gc", "--high", "85", "--untagged"), "two things"),
        (("gc", "--high", "85", "--protect", "/nowhere"), "--protect /nowhere"),
    ):
        place = ("--state-dir", tmp_path / "state", "--listen", "127.0.0.1:0")
        more = place if words[0] == "serve" else ()
        done = mayfly(*words, "--root", root, *more)
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr
