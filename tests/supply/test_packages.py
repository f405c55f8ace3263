"""What is in the packages: files, manual pages, completion, the image; with a stand-in to pack."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mayfly.registry.cli import cli
from mayfly.registry.version import VERSION
from mayfly.storage.bundle.open import open_bundles
from tests.support.commands import run_mayfly
from tests.support.packing import builder, stand_in
from tests.support.process import need


@pytest.fixture
def one_files(tmp_path: Path) -> dict[str, Path]:
    """A stand-in for the one file of each architecture, with its list of contents."""
    found = {}
    for machine, number in (("x86_64", 62), ("aarch64", 183)):
        found[machine] = stand_in(tmp_path / f"mayfly-{VERSION}-linux-{machine}", number)
        Path(f"{found[machine]}.cdx.json").write_text("{}")
    return found


@pytest.fixture(autouse=True)
def epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the builder's main function sets it."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "315532800")


def test_deb(one_files: dict[str, Path], tmp_path: Path) -> None:
    """All files, owned by root; and the same bytes when it is built again."""
    need("dpkg-deb")
    debs = []
    for number in ("1", "2"):
        tree = tmp_path / number / "tree"
        builder().lay_out(tree, one_files["x86_64"])
        debs.append(builder().make_deb(tree, tree.parent, "x86_64"))
    assert debs[0].name == f"mayfly_{VERSION}_amd64.deb"
    assert debs[0].read_bytes() == debs[1].read_bytes()
    listed = subprocess.run(
        ["dpkg-deb", "--contents", debs[0]], check=True, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()
    assert all(" root/root " in line for line in listed)
    modes = {line.split()[5]: line.split()[0] for line in listed}
    for path in (
        "etc/mayfly/mayfly.env",
        "usr/lib/systemd/system/mayfly.service",
        "usr/lib/systemd/system/mayfly.socket",
        "usr/lib/sysusers.d/mayfly.conf",
        "usr/lib/tmpfiles.d/mayfly.conf",
        "usr/share/bash-completion/completions/mayfly",
        "usr/share/fish/vendor_completions.d/mayfly.fish",
        "usr/share/zsh/vendor-completions/_mayfly",
        "usr/share/man/man1/mayfly-bundle-create.1.gz",
        "usr/share/doc/mayfly/mayfly.cdx.json",
    ):
        assert modes[f"./{path}"] == "-rw-r--r--"
    assert modes["./usr/bin/mayfly"] == "-rwxr-xr-x"


def test_image(one_files: dict[str, Path], tmp_path: Path) -> None:
    """One index of both architectures under the name in deploy/kubernetes; the same bytes twice."""
    archive = builder().make_image(one_files, tmp_path)
    data = archive.read_bytes()
    builder().make_image(one_files, tmp_path)
    assert archive.read_bytes() == data
    (image,) = json.loads(run_mayfly("ls", archive, "--json"))["images"]
    assert image["name"] == f"mayfly:{VERSION}"
    assert "0 faults" in run_mayfly("verify", archive)
    name = f"localhost/mayfly:{VERSION}"
    found = json.loads(run_mayfly("inspect", name, archive, "--json"))
    assert [one["platform"] for one in found["platforms"]] == ["linux/amd64", "linux/arm64"]
    opened = open_bundles([archive])
    try:
        assert opened.tagged_names() == [name]
    finally:
        opened.close()
    layers = found["platforms"][0]["layers"]
    blob = f"blobs/{layers[0]['digest'].replace(':', '/')}"
    with tarfile.open(archive) as tar:
        file = tar.extractfile(blob)
        assert file is not None
        layer = gzip.decompress(file.read())
    (tmp_path / "layer.tar").write_bytes(layer)
    with tarfile.open(tmp_path / "layer.tar") as tar:
        modes = {one.name: (one.mode, one.uid) for one in tar}
    assert modes == {
        "tmp": (0o1777, 0),
        "run/mayfly": (0o755, 65532),
        "var/lib/mayfly": (0o755, 65532),
        "usr/bin/mayfly": (0o755, 0),
    }


def test_wheels_are_listed(tmp_path: Path) -> None:
    """Each file of the wheelhouse by name, version and digest."""
    wheel = tmp_path / "typing_extensions-4.15.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    (one,) = builder().list_wheels(tmp_path)["components"]
    assert one["purl"] == f"pkg:pypi/typing-extensions@4.15.0?file_name={wheel.name}"
    assert one["hashes"][0]["content"] == builder()._sha256(b"wheel")


def _commands(group: click.Group, before: str) -> Iterator[str]:
    yield before
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            yield from _commands(found, f"{before}-{name}")
        else:
            yield f"{before}-{name}"


def test_manual() -> None:
    """A page for each command, in which man finds no fault."""
    pages = dict(builder().texts.manual())
    assert set(pages) == set(_commands(cli, "mayfly"))
    assert '.SH "EXIT STATUS"' in pages["mayfly"]
    assert "\\-\\-until\\-pulled" in pages["mayfly-serve"]
    if shutil.which("groff"):
        for page in pages.values():
            argv = ["groff", "-man", "-Tutf8", "-ww", "-z"]
            done = subprocess.run(argv, input=page.encode(), capture_output=True, timeout=60)
            assert (done.returncode, done.stderr) == (0, b"")


def test_completion() -> None:
    """Each shell's file calls mayfly back."""
    found = builder().texts.completions()
    assert len(found) == 4
    for path, text in found.items():
        assert "_MAYFLY_COMPLETE" in text, path
