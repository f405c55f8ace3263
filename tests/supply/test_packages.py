"""What is in the packages: files, manual pages, completion, the image; with a stand-in to pack."""

from __future__ import annotations

import fnmatch
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
from tests.support.process import REPO, need


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


PURGED = (
    # The files before, those that stay, and whether the user that owns them stays.
    (("lib/state/ready.json", "lib/store/docker/registry/v2/x"), (), False),
    (("lib/store/docker/registry/v2/blobs/sha256/aa/data",), None, True),
    (("lib/store/x", "lib/up.tar", "lib/.docker/config.json"), ("lib/up.tar", "lib/.d"), True),
    (("lib/.docker/config.json",), None, True),
    (("lib/up.tar/blobs/sha256/aa/data", "lib/store/x"), ("lib/up.tar",), True),
    (("lib/state/ready.json", "etc/htpasswd"), ("etc/htpasswd",), True),
)


def purge(tmp_path: Path, files: tuple[str, ...], find: str = 'exec /usr/bin/find "$@"') -> bool:
    """Run removed.sh on a copy of the directories; return whether the user stays."""
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "find": find,
        "userdel": f"touch {tmp_path}/user-removed",
        "systemctl": "exit 1",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "systemd").mkdir()
    script = (REPO / "deploy/packages/removed.sh").read_text()
    for directory, stands_for in {
        "/var/lib/mayfly": "lib",
        "/run/mayfly": "run",
        "/etc/mayfly": "etc",
        "/run/systemd/system": "systemd",
    }.items():
        script = script.replace(directory, str(tmp_path / stands_for))
    env = {"PATH": f"{programs}:/usr/bin:/bin"}
    subprocess.run(["sh", "-e", "-c", script], check=True, env=env, timeout=60)
    return not (tmp_path / "user-removed").exists()


@pytest.mark.parametrize(("before", "after", "keeps_user"), PURGED)
def test_purge(
    before: tuple[str, ...], after: tuple[str, ...] | None, keeps_user: bool, tmp_path: Path
) -> None:
    """What Mayfly made goes; images and the operator's own files stay."""
    assert purge(tmp_path, before) == keeps_user
    for name in before:
        stays = after is None or name.startswith(after)
        assert (tmp_path / name).exists() == stays, name


def test_purge_without_a_look(tmp_path: Path) -> None:
    """A store that cannot be read is not empty."""
    assert purge(tmp_path, ("lib/store/x", "lib/state/x"), "exit 1")
    assert (tmp_path / "lib/store/x").exists()
    assert not (tmp_path / "lib/state").exists()


def test_context_of_the_image() -> None:
    """.dockerignore lets through each path that the Dockerfile copies."""
    let_through = [
        line[1:]
        for line in (REPO / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [
        source
        for line in (REPO / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from=" not in line
        for source in line.split()[1:-1]
    ]
    assert "wheel[s]" in copied
    for source in copied:
        assert fnmatch.filter(let_through, source), source


def test_wheels_are_listed(tmp_path: Path) -> None:
    """Each file of the wheelhouse by name, version and digest."""
    wheel = tmp_path / "typing_extensions-4.15.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    (one,) = builder().list_wheels(tmp_path)["components"]
    assert one["purl"] == f"pkg:pypi/typing-extensions@4.15.0?file_name={wheel.name}"
    assert one["hashes"][0]["content"] == builder()._sha256(b"wheel")


def test_sums(tmp_path: Path) -> None:
    """They are those of this version's files alone."""
    names = ("mayfly-{}-linux-x86_64", "mayfly-{}-oci.tar", "mayfly_{}_amd64.deb")
    ours = [name.format(VERSION) for name in names]
    others = ("mayfly-0.0.9-oci.tar", f"mayfly-{VERSION}.1-oci.tar", f"{ours[0]}.sha256")
    for name in (*ours, *others):
        (tmp_path / name).write_text(name)
    lines = builder().write_sums(tmp_path).read_text().splitlines()
    assert lines == [f"{builder()._sha256(name.encode())}  {name}" for name in ours]


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
