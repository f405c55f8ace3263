"""Numbers and their nouns in what people read."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from mayfly.registry.control import status_text
from mayfly.storage.text import counted, counted_of
from tests.bundle.builders import Layout
from tests.support.commands import environment, mayfly_here
from tests.support.images import digest_of
from tests.support.process import PATIENCE, Mayfly

IMAGE = "quay.io/team/app:1"
NOWHERE = "127.0.0.1:1/team/none:1"

_ONE_OF_SEVERAL = re.compile(r"\b1 (?:more |further |other )?(?!is\b|was\b|has\b)[a-z]+s\b")
"""A plural noun, or a verb in the singular, after the number one."""


def check(*texts: str) -> None:
    """See that nothing is said of one thing as of several."""
    for text in texts:
        assert not _ONE_OF_SEVERAL.findall(text), text


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (21, "21 images")]
)
def test_counted(count: int, expected: str) -> None:
    """One is singular, and no other number."""
    assert counted(count, "image") == expected


def test_words_of_its_own() -> None:
    """A verb goes with its noun; of a part, the whole is what counts."""
    assert counted(1, "blob is", "blobs are") == "1 blob is"
    assert counted(3, "blob is", "blobs are") == "3 blobs are"
    assert counted_of(0, 1, "node") == "0 of 1 node"
    assert counted_of(1, 2, "node") == "1 of 2 nodes"


def test_the_pattern_finds_what_it_is_for() -> None:
    """Or the tests below show nothing."""
    for text in ("imported 1 images", "1 more nodes pulled", "0 of 1 nodes", "freed 0 B: 1 blobs"):
        with pytest.raises(AssertionError):
            check(text)
    check("1 image", "11 images", "1s", "1 is left", "for 1h 1m 1s")


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


@pytest.fixture
def layout() -> Layout:
    """One image of one layer."""
    made = Layout()
    made.name(made.image(b"layer"), IMAGE)
    return made


def test_commands_over_one_image(layout: Layout, tmp_path: Path) -> None:
    """import, ls, inspect, du, export, bundle create, verify, rm, gc."""
    bundle, root = layout.write_tar(tmp_path / "one.tar"), ("--root", tmp_path / "store")
    out = ("-o", tmp_path / "out.tar")
    check(
        _said(mayfly_here("import", bundle, *root)),
        _said(mayfly_here("ls", *root)),
        _said(mayfly_here("inspect", "team/app:1", *root)),
        _said(mayfly_here("du", *root)),
        _said(mayfly_here("export", "--all", *root, *out)),
        _said(mayfly_here("bundle", "create", IMAGE, "--from", bundle, "--dry-run", *out)),
        _said(mayfly_here("verify", *root)),
        _said(mayfly_here("rm", "team/app:1", *root)),
        _said(mayfly_here("du", *root)),
        _said(mayfly_here("gc", "--untagged", "--dry-run", "--grace", "1h", *root)),
        _said(mayfly_here("gc", "--untagged", "--grace", "0s", *root)),
    )


def test_one_of_each_fault(layout: Layout, tmp_path: Path) -> None:
    """A store with one damaged blob, a bundle without one, and one that lacks an image."""
    whole, root = layout.write_tar(tmp_path / "whole.tar"), ("--root", tmp_path / "store")
    mayfly_here("import", whole, *root)
    digest = digest_of(b"layer").removeprefix("sha256:")
    blob = tmp_path / f"store/docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
    blob.write_bytes(b"LAYER")
    del layout.files[f"blobs/sha256/{digest}"]
    delta = layout.write_tar(tmp_path / "delta.tar")
    check(
        _said(mayfly_here("verify", *root)),
        _said(mayfly_here("du", *root)),
        _said(mayfly_here("export", "--all", *root, "-o", tmp_path / "out.tar")),
        _said(mayfly_here("import", delta, "--root", tmp_path / "other")),
        _said(mayfly_here("bundle", "create", NOWHERE, "--from", whole, "-o", tmp_path / "n.tar")),
    )


def test_one_node_and_one_image(layout: Layout, tmp_path: Path) -> None:
    """status, wait, stop, the log and the report of an upgrade of one node."""
    images = tmp_path / "images"
    images.write_text(f"{IMAGE}\n")
    bundle = layout.write_tar(tmp_path / "one.tar")
    options = (str(bundle), "--until-pulled", str(images), "--nodes", "1")
    state = ("--state-dir", tmp_path / "state")
    server = Mayfly(tmp_path / "root", tmp_path / "state", *options, env=environment())
    try:
        check(
            _said(mayfly_here("status", *state)),
            _said(mayfly_here("wait", "--covered", "--timeout", "0s", *state)),
            _said(mayfly_here("stop", *state)),
        )
        assert server.popen.wait(PATIENCE) == 3
        check(server.output())
        assert "0 of 1 node" in server.output()
    finally:
        if server.running:
            server.kill()


def test_one_request_that_was_cut() -> None:
    """Without transfers only their number is known."""
    check(*status_text.aborted_lines([], 1))
    assert status_text.aborted_lines([], 2) == ["cut: 2 requests"]
