"""Bundles that were tampered with: opened whole, or refused in words, in bounded time."""

from __future__ import annotations

import os
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mayfly.storage.bundle import tar_index
from mayfly.storage.bundle.open import Bundles, open_bundles
from mayfly.storage.errors import StorageError
from mayfly.storage.interface import Extent
from tests.bundle import makers
from tests.bundle.builders import Layout, docker_archive, document, layers, tar
from tests.bundle.test_tar_index import header, sealed
from tests.fuzz.budget import EXAMPLES
from tests.fuzz.documents import ANY_JSON

FILES: tuple[dict[str, bytes], ...] = (
    docker_archive((["docker.io/team/app:1", "app"], layers("one", "two")), ([], layers("three"))),
    docker_archive((["app:1"], layers("one"))) | {"repositories": b"{}"},
)


def _layout() -> dict[str, bytes]:
    layout = Layout()
    image = layout.image(*layers("one"), compress=True)
    layout.name(layout.index(image, layout.image(*layers("two"))), "docker.io/team/app:1")
    layout.name(layout.image(*layers("three"), subject=image))
    old = docker_archive((["docker.io/team/other:2"], layers("one")))
    return layout.all_files() | {"manifest.json": old["manifest.json"]}


OTHERS = tuple(
    {
        name: data
        for part in makers.MAKERS[maker].make(makers.content())
        for name, data in part.items()
    }
    for maker in ("hauler-tar", "zarf", "oc-mirror", "sealos-tar", "talos-tar", "imgpkg")
)
EVERY = (*FILES, _layout(), *OTHERS, makers.kubekey(makers.content()))


def _opened(path: Path, state: Path) -> None:
    """Open a bundle and look at everything in it."""
    size = path.stat().st_size
    try:
        bundles = open_bundles([path], state)
    except StorageError as error:
        assert str(path) in error.message and "\n" not in error.message
        return
    try:
        bundles.hash(lambda done: None)
        _walk(bundles, path, size)
    except StorageError as error:
        assert error.message
    finally:
        bundles.close()


def _walk(bundles: Bundles, path: Path, size: int) -> None:
    layer = bundles.layer
    for name in layer.repositories("", 1000):
        for tag in layer.tags(name):
            _inside(layer.manifest(name, layer.tag(name, tag)), path, size)
        for digest in layer.revisions(name):
            _inside(layer.manifest(name, digest), path, size)
            list(layer.referrers(name, digest))


def _inside(extent: Extent, path: Path, size: int) -> None:
    """What is served lies in the bundle, or was made of it, and nowhere else."""
    if extent.path.resolve() == path.resolve():
        assert 0 <= extent.offset <= extent.offset + extent.size <= size


SLOW = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_tampered_documents(tmp_path: Path, data: Any) -> None:
    """Whatever its documents say, a bundle is served or refused; every name in them is data."""
    files = dict(data.draw(st.sampled_from(EVERY)))
    names = sorted(name for name, body in files.items() if body[:1] in (b"{", b"["))
    for name in data.draw(st.lists(st.sampled_from(names), max_size=2)):
        files[name] = data.draw(_changed(files[name]))
    if data.draw(st.integers(0, 5)) == 5:
        del files[data.draw(st.sampled_from(sorted(files)))]
    path = tmp_path / "bundle.tar"
    path.write_bytes(tar(files))
    _opened(path, tmp_path / "state")


TEXTS = [b"../../etc/passwd", b"/etc/passwd", b"\\ud800", b"\\u0000", b"a" * 5000, b"docker.io/x"]


def _changed(body: bytes) -> st.SearchStrategy[bytes]:
    """A document whose texts, numbers or all of it are others."""

    def replaced(pair: tuple[int, bytes]) -> bytes:
        at, text = pair
        parts = body.split(b'"')
        parts[at % len(parts)] = text
        return b'"'.join(parts)

    texts = st.tuples(st.integers(0, 200), st.sampled_from(TEXTS) | st.binary(max_size=20))
    names = st.tuples(st.integers(0, 200), st.sampled_from([b"docker.io/x:1", b"a:1", b"x/y@z"]))
    return st.one_of(texts.map(replaced), names.map(replaced), ANY_JSON.map(document))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_tampered_bytes(tmp_path: Path, data: Any) -> None:
    """Bytes changed, cut or put in anywhere, with checksums that hold again or not."""
    made = bytearray(
        tar(
            data.draw(st.sampled_from(EVERY)),
            data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])),
        )
    )
    heads = [at for at in range(0, len(made), 512) if made[at + 257 : at + 262] == b"ustar"]
    for _ in range(data.draw(st.integers(1, 4))):
        head = data.draw(st.sampled_from(heads))
        # In the header, or in what follows it.
        at = head + data.draw(st.integers(0, 511) | st.integers(512, 1023))
        made[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        if data.draw(st.integers(0, 3)):
            made[head : head + 512] = sealed(made[head : head + 512])
    if data.draw(st.integers(0, 5)) == 5:
        del made[data.draw(st.integers(0, len(made))) :]
    path = tmp_path / "bundle.tar"
    path.write_bytes(made)
    _opened(path, tmp_path / "state")


def _cost(size: int) -> float:
    """Processor seconds that a pax header of a number of bytes, full of records, takes."""
    extension = header("pax", b"%011o\0" % size, b"x") + b"5 a=\n" * (size // 5)
    extension = extension.ljust(512 + size, b"\0")
    descriptor = os.memfd_create("tar")
    try:
        os.write(descriptor, extension + header() + bytes(1024))
        began = time.process_time()
        tar_index.scan(descriptor)
        return time.process_time() - began
    finally:
        os.close(descriptor)


@pytest.mark.alone
def test_pax_records_cost_what_they_are_long() -> None:
    """A header of eight times the records takes some eight times as long, not sixty-four."""
    small, large = 5 * 512 * 48, 5 * 512 * 48 * 8
    least = min(_cost(small) for _ in range(3))
    assert min(_cost(large) for _ in range(3)) < 30 * least
