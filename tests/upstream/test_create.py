"""`mayfly bundle create` from a registry, a store and a bundle, disturbed and killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from mayfly.registry.upstream.lists import TagFilter, choose_tags
from mayfly.storage.digest import of
from tests.clients.proxy import FaultyProxy, SlowProxy
from tests.support.commands import command_line, mayfly, run_mayfly, started
from tests.support.process import PATIENCE, Mayfly, poll
from tests.upstream.content import APP, LAYERS, TOOL, Content
from tests.upstream.disturbed import kill_until_done, repeat_until_done


def _create(output: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return mayfly("bundle", "create", "-o", output, *words, timeout=300)


def blobs_of(path: Path) -> set[str]:
    """The digests of an archive, in hexadecimal."""
    with tarfile.open(path) as archive:
        return {n.rpartition("/")[2] for n in archive.getnames() if n.startswith("blobs/")}


def _check_bytes(path: Path) -> None:
    """Every blob of an archive has its digest."""
    with tarfile.open(path) as archive:
        for member in archive:
            if member.name.startswith("blobs/"):
                file = archive.extractfile(member)
                assert file is not None
                assert of(file.read()).hex == member.name.rpartition("/")[2]


def test_everything_that_belongs_to_an_image_is_carried(
    content: Content, upstream: Mayfly, tmp_path: Path
) -> None:
    """Index, platforms, attestation, signature, its signature, and cosign's tag; served again."""
    output = tmp_path / "up.tar"
    done = _create(output, f"{upstream.host}/{APP}:1", f"{upstream.host}/{TOOL}:1")
    assert done.returncode == 0, done.stderr
    _check_bytes(output)
    expected = {digest.hex for digest in content.digests.values()}
    expected |= {of(data).hex for data in (b"{}", *LAYERS.values())}
    assert blobs_of(output) == expected
    state, root = tmp_path / "state", tmp_path / "root"
    with Mayfly(root, state, str(output)) as served:
        listed = run_mayfly(
            "bundle",
            "create",
            "--dry-run",
            "--json",
            "-o",
            tmp_path / "x.tar",
            f"{served.host}/{APP}:1",
            f"{served.host}/{TOOL}:1",
        )
        figures = json.loads(listed.splitlines()[-1])
        assert (figures["images"], figures["referrers"]) == (2, 3)
        assert figures["blobs"] == 4


def test_sources_give_the_same_file(content: Content, upstream: Mayfly, tmp_path: Path) -> None:
    """From the registry, from its store and from a bundle, with any number of jobs."""
    names = content.names(upstream.host)
    first = tmp_path / "first.tar"
    assert _create(first, *names).returncode == 0
    for number, words in enumerate(
        (["--jobs", "1"], ["--from", str(content.root)], ["--from", str(first), "--jobs", "16"])
    ):
        output = tmp_path / f"{number}.tar"
        done = _create(output, *words, *names)
        assert done.returncode == 0, done.stderr
        assert output.read_bytes() == first.read_bytes()


def test_platforms_and_referrers_can_be_left_out(
    content: Content, upstream: Mayfly, tmp_path: Path
) -> None:
    """One platform with its attestation; the index keeps its digest."""
    output = tmp_path / "up.tar"
    words = ("--platform", "linux/amd64", "--no-referrers", f"{upstream.host}/{APP}:1")
    done = _create(output, *words)
    assert done.returncode == 0, done.stderr
    found = content.digests
    kept = {found[name].hex for name in ("index", "amd64", "attestation")}
    kept |= {of(data).hex for data in (b"{}", LAYERS["base"], LAYERS["amd64"])}
    assert blobs_of(output) == kept


def test_the_target_s_blobs_are_left_out(
    content: Content, upstream: Mayfly, tmp_path: Path
) -> None:
    """A bundle of differences has what the base lacks, and every manifest."""
    base = tmp_path / "base.tar"
    name = f"{upstream.host}/{APP}:1"
    assert _create(base, "--platform", "linux/amd64", "--no-referrers", name).returncode == 0
    delta = tmp_path / "delta.tar"
    done = _create(delta, "--have", base, name)
    assert done.returncode == 0, done.stderr
    assert blobs_of(delta) - blobs_of(base) >= {of(LAYERS["arm64"]).hex}
    assert of(LAYERS["base"]).hex not in blobs_of(delta)
    manifests = {one.hex for key, one in content.digests.items() if key != "tool"}
    assert manifests <= blobs_of(delta)


def test_every_missing_image_is_named_before_anything_is_fetched(
    upstream: Mayfly, tmp_path: Path
) -> None:
    """Exit code 3, a line for each, and no file, not even an unfinished one."""
    output = tmp_path / "up.tar"
    names = (f"{upstream.host}/{APP}:1", f"{upstream.host}/{APP}:2", f"{upstream.host}/none:1")
    done = _create(output, *names)
    assert done.returncode == 3
    assert f"{names[1]} is not in" in done.stderr
    assert f"{names[2]} is not in" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", range(2))
def test_a_network_that_breaks_changes_nothing(
    content: Content, upstream: Mayfly, tmp_path: Path, seed: int
) -> None:
    """Twenty broken connections, and the file is the same as without them."""
    with FaultyProxy(upstream.host, seed, 20, 300_000) as proxy:
        output = tmp_path / "up.tar"
        names = content.names(proxy.host)
        repeat_until_done(lambda: _create(output, *names))
        assert proxy.left == 0 or proxy.happened
        _check_bytes(output)
        again = tmp_path / "again.tar"
        proxy.left = 0
        assert _create(again, *names).returncode == 0
        assert again.read_bytes() == output.read_bytes()


def test_kills_at_any_moment_lose_nothing(
    content: Content, upstream: Mayfly, tmp_path: Path
) -> None:
    """The same command continues after each kill -9; nothing unfinished is left at the end."""
    output = tmp_path / "up.tar"

    def check() -> None:
        if output.exists():  # killed between its last step and its exit
            _check_bytes(output)

    with SlowProxy(upstream.host, 2_000_000) as proxy:
        argv = command_line("bundle", "create", "-o", output, *content.names(proxy.host))
        kill_until_done(argv, 1.0, check)
        _check_bytes(output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["up.tar"]


def _is_writing(pid: int) -> bool:
    """Whether a process has the unfinished archive open."""
    with contextlib.suppress(OSError):
        for one in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if one.readlink().name.endswith(".partial"):
                    return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_one_line(
    content: Content, upstream: Mayfly, tmp_path: Path, number: signal.Signals
) -> None:
    """At whatever moment: its exit code, how to continue, and no traceback; then it continues."""
    output = tmp_path / "up.tar"
    with SlowProxy(upstream.host, 1_000_000) as proxy:
        words = ("bundle", "create", "-o", output, *content.names(proxy.host))
        for _ in range(8):
            with started(*words) as process:
                poll(lambda running=process: _is_writing(running.pid) or running.poll() is not None)
                process.send_signal(number)
                _, said = process.communicate(timeout=PATIENCE)
            if process.returncode == 0:
                break  # it was done before
            assert process.returncode == 128 + number, said
            assert "the same command resumes" in said
            assert "Traceback" not in said
            assert "never retrieved" not in said
    assert _create(output, *content.names(upstream.host)).returncode == 0
    _check_bytes(output)


def test_a_device_is_not_replaced(upstream: Mayfly, tmp_path: Path) -> None:
    """A pipe in the place of the bundle stays, and the command says what to do."""
    output = tmp_path / "pipe"
    os.mkfifo(output)
    done = _create(output, f"{upstream.host}/{APP}:1")
    assert done.returncode == 2
    assert "not a regular file" in done.stderr
    assert output.is_fifo()


def test_tags_are_chosen_by_patterns() -> None:
    """Patterns match whole tags; a denied tag is out; of ranges, one must have the version."""
    tags = ["1.0", "1.1", "1.1-rc1", "latest"]
    chosen = choose_tags(tags, TagFilter(allow=(r"1\..*",), deny=(".*-rc.*",)))
    assert chosen == ["1.0", "1.1"]
    assert choose_tags(tags, TagFilter()) == sorted(tags)
    assert choose_tags(tags, TagFilter(semver=(">=1.1",))) == ["1.1"]
    assert choose_tags(tags, TagFilter(semver=("1.0", ">=1.1-0"))) == ["1.0", "1.1", "1.1-rc1"]
