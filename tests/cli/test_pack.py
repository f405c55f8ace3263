"""`mayfly pack`: a bundle behind the one file, read in place, with settings and a script.

The one file is a stand-in; tests/onefile starts a real one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.registry.cli import pack as command_module
from mayfly.registry.cli.pack import command
from mayfly.registry.settings.loading import load
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.packed import PAGE, TABLE, Place, Table, read, read_table, write
from tests.bundle.builders import REF_NAME, Layout, layers, tar
from tests.bundle.makers import seekable
from tests.support.commands import assert_refused, environment, mayfly, mayfly_here, printed_here
from tests.support.images import digest_of
from tests.support.packing import PARTS, command_line_of, pack, stand_in
from tests.support.process import Process, text_of

LAYER = layers("one")[0]
NOISE = Table(PAGE, PAGE, Place(0, 9), Place(9, 9)).encode()


def layout_of(*names: str) -> Layout:
    """Images of these names, all of the same layer."""
    layout = Layout()
    for name in names:
        layout.name(layout.image(LAYER, annotations={"name": name}), name)
    return layout


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """An archive with one image."""
    return layout_of("quay.example/team/app:1").write_tar(tmp_path / "up.tar")


def started(file: Path, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Mayfly as the file would."""
    argv = command_line_of(file, *words)
    return subprocess.run(
        argv, env=environment(), cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_each_kind_of_bundle(tmp_path: Path) -> None:
    """A tar, one whose images have no names, and a seekable zstd file are read where they lie."""
    nameless = Layout()
    nameless.name(nameless.image(LAYER), None, **{REF_NAME: "1"})
    bundles = {
        "up.tar": tar(layout_of("quay.example/team/app:1").all_files()),
        "nameless.oci.tar": tar(nameless.all_files()),
        "up.tar.zst": seekable(tar(layout_of("quay.example/team/app:2").all_files())),
    }
    for name, data in bundles.items():
        (tmp_path / name).write_bytes(data)
        packed = pack(tmp_path / name, tmp_path / "out.run")
        assert packed.read_bytes().endswith(data)
        assert packed.stat().st_mode & 0o111
        plain = json.loads(printed_here("ls", tmp_path / name, "--json"))
        assert json.loads(printed_here("ls", packed, "--json"))["images"] == plain["images"] != []
        assert "0 faults" in printed_here("verify", packed)


def test_noise(tmp_path: Path) -> None:
    """A bundle full of what tables begin with, at every place where one might be looked for."""
    layout = layout_of("quay.example/team/app:1")
    layout.name(layout.image(NOISE * 1000), "quay.example/team/noise:1")
    (tmp_path / "up.tar").write_bytes(tar(layout.all_files()) + NOISE.ljust(512, b"\0"))
    packed = pack(tmp_path / "up.tar", tmp_path / "out.run")
    assert "0 faults" in printed_here("verify", packed)
    with packed.open("rb") as file:
        table = read_table(file.fileno())
    assert table is not None
    assert table.end == PAGE * 2 + len(PARTS)
    assert table.bundle.size == (tmp_path / "up.tar").stat().st_size


def test_packed_again(tmp_path: Path, bundle: Path) -> None:
    """With another program and other settings; what was packed before is not carried along."""
    first = pack(bundle, tmp_path / "first.run", "--nodes", "1")
    other = stand_in(tmp_path / "other", machine=183)
    words = ("--runtime", other, "-o", tmp_path / "again.run")
    assert "aarch64" in printed_here("pack", first, *words)
    again = (tmp_path / "again.run").read_bytes()
    assert again.endswith(bundle.read_bytes())
    assert b'"nodes"' not in again
    assert printed_here("ls", tmp_path / "again.run") == printed_here("ls", bundle)
    assert len(again) == first.stat().st_size


def test_holes_stay_holes(tmp_path: Path) -> None:
    """A bundle of 1 GiB with nothing in it takes no space, and its bytes are at their places."""
    with (tmp_path / "holes").open("xb") as file:
        for place in (0, 300 * 2**20, 2**30):
            os.pwrite(file.fileno(), b"data", place)
    with (
        (tmp_path / "holes").open("rb") as bundle,
        stand_in(tmp_path / "one-file").open("rb") as program,
        (tmp_path / "out").open("xb") as output,
    ):
        size = (tmp_path / "holes").stat().st_size
        counted: list[int] = []
        write(
            output, program.fileno(), bundle.fileno(), Place(0, size), {"bundle": "b"},
            counted.append,
        )  # fmt: skip
        table = read_table(os.open(tmp_path / "out", os.O_RDONLY))
    assert table is not None
    assert sum(counted) == size + table.end
    status = (tmp_path / "out").stat()
    assert status.st_size == table.bundle.end
    assert status.st_blocks * 512 < 2**20
    with (tmp_path / "out").open("rb") as file:
        for place in (0, 300 * 2**20, 2**30):
            assert os.pread(file.fileno(), 4, table.bundle.offset + place) == b"data"


@pytest.mark.parametrize("change", [-1, -4096, 1])
def test_another_length(tmp_path: Path, bundle: Path, change: int) -> None:
    """A file that was cut short, or appended to, is refused by every command that reads it."""
    packed = pack(bundle, tmp_path / "out.run")
    os.truncate(packed, packed.stat().st_size + change)
    for done in (mayfly("ls", packed), started(packed, cwd=tmp_path)):
        assert done.returncode == 5, done.stderr
        assert "copy it again" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_what_was_packed_is_damaged(tmp_path: Path, bundle: Path) -> None:
    """A document that cannot be read, or has no name of the bundle."""
    packed = pack(bundle, tmp_path / "out.run")
    good = packed.read_bytes()
    for before, after in (
        (b'{"bundle"', b'["bundle"'),
        (b'"up.tar"', b'"../tar"'),
        (b'"up.tar"', b'"\\n.tar"'),
        (b'"up.tar"', b'""      '),
        (b'"bundle"', b'"bungle"'),
    ):
        assert good.count(before) == 1
        packed.write_bytes(good.replace(before, after))
        done = mayfly_here("ls", packed)
        assert done.returncode == 5, done.stderr
        assert "the packed document" in done.stderr


WHOLE = 1 << 20
"""Bytes of a file that `test_tables` reads; most of them are a hole."""


@given(
    st.lists(
        st.one_of(
            st.integers(0, 2 * WHOLE),
            st.integers(0, WHOLE // PAGE).map(lambda number: number * PAGE),
            st.integers(2**63 - PAGE, 2**64 - 1),
        ),
        min_size=5,
        max_size=5,
    )
)
def test_tables(tmp_path_factory: pytest.TempPathFactory, numbers: list[int]) -> None:
    """Whatever numbers are in it, a file is a whole one file, or refused in words."""
    path = tmp_path_factory.getbasetemp() / "table"
    data = bytearray(stand_in(path).read_bytes())
    end, *places = numbers
    data[PAGE : PAGE + TABLE.size] = Table(
        PAGE, end, Place(*places[:2]), Place(*places[2:])
    ).encode()
    path.write_bytes(data)
    os.truncate(path, WHOLE)
    with path.open("rb") as file:
        try:
            table = read_table(file.fileno())
            assert table is not None
            read(file.fileno())
        except BundleInvalid as error:
            assert "again" in error.message
        else:
            assert PAGE < table.end <= WHOLE


@pytest.mark.parametrize(
    ("document", "bundle"),
    [
        (Place(2**63, 9), Place(PAGE * 3, PAGE)),
        (Place(PAGE * 3, 2**20 + 1), Place(PAGE * 300, PAGE)),
        (Place(PAGE * 3, 9), Place(PAGE * 2, PAGE * 2)),
        (Place(PAGE * 3, PAGE + 1), Place(PAGE * 4, PAGE)),
        (Place(PAGE, 9), Place(PAGE * 4, PAGE)),
    ],
)
def test_table_is_damaged(tmp_path: Path, document: Place, bundle: Place) -> None:
    """Parts outside the file, too large, or one over the other."""
    path = stand_in(tmp_path / "out.run")
    data = bytearray(path.read_bytes().ljust(PAGE * 301, b" "))
    data[PAGE : PAGE + TABLE.size] = Table(PAGE, PAGE * 3, document, bundle).encode()
    path.write_bytes(data[: bundle.end])
    done = mayfly_here("ls", path)
    assert (done.returncode, len(done.stderr.splitlines())) == (5, 1), done.stderr
    assert "the table of the one file is damaged: copy it again" in done.stderr


def test_a_runtime_that_was_cut_short(tmp_path: Path, bundle: Path) -> None:
    """As by an interrupted download: it is refused before anything is written."""
    runtime = stand_in(tmp_path / "one-file")
    os.truncate(runtime, runtime.stat().st_size - 1)
    done = mayfly_here("pack", bundle, "-o", tmp_path / "out.run", "--runtime", runtime)
    assert done.returncode == 5, done.stderr
    assert f"--runtime {runtime}: " in done.stderr
    assert "it was cut short, copy it again" in done.stderr
    assert not (tmp_path / "out.run").exists()


@pytest.mark.parametrize("size", [PAGE * 256, PAGE, 0])
def test_cut_short_while_it_is_copied(tmp_path: Path, size: int) -> None:
    """The end of a file is no hole."""
    content = tmp_path / "content"
    content.touch()
    os.truncate(content, size)
    with (
        content.open("rb") as source,
        stand_in(tmp_path / "one-file").open("rb") as program,
        (tmp_path / "out").open("xb") as output,
        pytest.raises(BundleInvalid, match="cut short"),
    ):
        place = Place(0, size + 1)
        write(output, program.fileno(), source.fileno(), place, {"bundle": "b"})


@pytest.mark.parametrize("name", ["line\nbreak.tar", "\x1b[2J.tar", "x/y", "", "ä" * 128])
def test_names_that_cannot_be_packed(tmp_path: Path, name: str) -> None:
    """The writer refuses each that the reader refuses."""
    with (
        stand_in(tmp_path / "one-file").open("rb") as program,
        (tmp_path / "out").open("xb") as output,
        pytest.raises(BundleInvalid, match="cannot be the name"),
    ):
        write(output, program.fileno(), program.fileno(), Place(0, 1), {"bundle": name})


def test_another_file_takes_its_place(tmp_path: Path, bundle: Path) -> None:
    """What is copied is what was checked."""
    runtime = stand_in(tmp_path / "one-file")
    other = layout_of("quay.example/team/other:1").write_tar(tmp_path / "other.tar")

    def replaced(path: Path, json: bool) -> str:
        other.replace(path)
        return "1 image"

    words = [str(bundle), "-o", str(tmp_path / "out.run"), "--runtime", str(runtime)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_module, "_check_bundle", replaced)
        with pytest.raises(BundleInvalid, match="has changed while it was read"):
            command.main(words, standalone_mode=False)
    assert not (tmp_path / "out.run").exists()


def test_a_tar_that_is_a_one_file(tmp_path: Path, bundle: Path) -> None:
    """One that other programs read as a tar with other images is refused."""
    packed = bytearray(pack(bundle, tmp_path / "out.run").read_bytes())
    checksum = slice(148, 156)
    packed[64:512] = bytes(448)
    packed[checksum] = b" " * 8
    packed[checksum] = b"%06o\0 " % sum(packed[:512])
    (tmp_path / "out.run").write_bytes(packed)
    done = mayfly_here("ls", tmp_path / "out.run")
    assert done.returncode == 5, done.stderr
    assert "a tar and a one file" in done.stderr


def _damaged(path: Path) -> None:
    data = path.read_bytes()
    assert data.count(LAYER) == 1
    path.write_bytes(data.replace(LAYER, LAYER[:-1] + b"x"))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _compressed(path: Path) -> None:
    path.write_bytes(b"\x1f\x8b" + path.read_bytes())


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (Path.unlink, 2, "BUNDLE up.tar: No such file"),
        (_directory, 2, "it is a directory, and one file is packed: make a tar"),
        (_cut, 5, "up.tar: "),
        (_damaged, 5, "is corrupt; fetch the bundle again"),
        (_compressed, 5, "decompress it"),
    ],
)
def test_bundles_that_are_refused(
    tmp_path: Path, bundle: Path, spoil: Callable[[Path], None], code: int, says: str
) -> None:
    """Each in one line, and nothing is written."""
    stand_in(tmp_path / "one-file")
    spoil(bundle)
    before = sorted(tmp_path.iterdir())
    done = mayfly("pack", "up.tar", "-o", "out.run", "--runtime", "one-file", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert says in done.stderr.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "name it with --runtime FILE"),
        (("--runtime", "up.tar"), "--runtime up.tar: it is not the one file that make dist builds"),
        (("--runtime", "none"), "--runtime none: No such file"),
        (("--runtime", "one-file", "-o", "up.tar"), "one of the files that are read"),
        (("--runtime", "one-file", "-o", "link"), "one of the files that are read"),
        (("--runtime", "one-file", "-o", "one-file"), "one of the files that are read"),
        (("-o", "/dev/null"), "not a regular file"),
        (("-o", "."), "not a regular file"),
        (("--runtime", "one-file", "-o", "none/out.run"), "cannot be written: No such file"),
        (("--runtime", "one-file", "--idle-timeout", "soon"), "--idle-timeout"),
        (("--script", "none"), "--script none: No such file"),
        (("--script", "python"), "it is for python3"),
        (("--script", "one-file"), "it is not text"),
        (("--script", "long"), "longer than 131071 bytes"),
    ],
)
def test_what_is_refused(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    """Each in one line with the option, and no file has changed."""
    stand_in(tmp_path / "one-file")
    (tmp_path / "one-file").write_bytes((tmp_path / "one-file").read_bytes() + b"\xff")
    (tmp_path / "link").symlink_to("up.tar")
    (tmp_path / "python").write_text("#!/usr/bin/env python3\n")
    (tmp_path / "long").write_text("#" * 131072)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = mayfly("pack", "up.tar", "-o", "out.run", *options, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr.splitlines()[-1]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_system_that_takes_no_such_file(tmp_path: Path, bundle: Path) -> None:
    """As FAT32 refuses 4 GiB: the reason is named, and nothing is left."""
    runtime = stand_in(tmp_path / "one-file")
    argv = command_line_of(runtime, "pack", bundle, "-o", tmp_path / "out.run")
    limited = ["sh", "-c", 'ulimit -f 16; exec "$@"', "sh", *argv]
    done = subprocess.run(limited, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "FAT32 has files below 4 GiB: bundle create --volume-size 3GiB" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"one-file", "up.tar"}


def test_its_own_bundle(tmp_path: Path, bundle: Path) -> None:
    """Commands without a BUNDLE mean the packed one, with --root a store, with a BUNDLE that."""
    packed = pack(bundle, tmp_path / "out.run", "--state-dir", tmp_path / "packed-state")
    other = layout_of("quay.example/team/other:1").write_tar(tmp_path / "other.tar")
    for words in (("ls",), ("verify",), ("du",), ("inventory",), ("inspect", "team/app:1")):
        done = started(packed, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        # In words, where there is no other word for a source of content.
        assert done.stdout == printed_here(*words, bundle)
    assert "team/other" in started(packed, "ls", other, cwd=tmp_path).stdout
    root = ("--root", tmp_path / "root")
    assert started(packed, "import", *root, cwd=tmp_path).returncode == 0
    assert started(packed, "import", *root, other, cwd=tmp_path).returncode == 0
    assert "team/other" in started(packed, "ls", *root, cwd=tmp_path).stdout
    assert "team/app" in started(packed, "ls", *root, cwd=tmp_path).stdout
    assert_refused(mayfly_here("import", *root), "Missing argument 'BUNDLE...'")
    done = started(packed, "status", cwd=tmp_path)
    assert (done.returncode, "packed-state" in done.stderr) == (6, True)


def test_it_serves_itself(tmp_path: Path, bundle: Path) -> None:
    """Without a command; and bundles that are named, beside its own."""
    places = ("--state-dir", tmp_path / "state", "--root", tmp_path / "root")
    packed = pack(bundle, tmp_path / "out.run", *places, "--listen", "127.0.0.1:0")
    other = layout_of("quay.example/team/other:1").write_tar(tmp_path / "other.tar")
    ready = tmp_path / "state/ready.json"
    for words, found in (((), ["team/app"]), (("serve", other), ["team/app", "team/other"])):
        server = Process(command_line_of(packed, *words), tmp_path / "log", env=environment())
        try:
            url = json.loads(server.wait_for(lambda: text_of(ready)))["url"]
            with urllib.request.urlopen(f"{url}/v2/_catalog", timeout=30) as answer:
                assert json.load(answer)["repositories"] == found
            blob = f"{url}/v2/team/app/blobs/{digest_of(LAYER)}"
            with urllib.request.urlopen(blob, timeout=30) as answer:
                assert answer.read() == LAYER
        finally:
            server.stop()
        assert not ready.exists()


@pytest.mark.parametrize("line", ["", "#!/bin/sh -e\n", "#!/usr/bin/env bash\n"])
def test_script(tmp_path: Path, bundle: Path, line: str) -> None:
    """It runs beside the server, and its exit code is that of the file; `run -- …` replaces it."""
    script = tmp_path / "script.sh"
    script.write_text(f'{line}test -n "$MAYFLY_URL" && echo "$0 ran"\nexit 7\n')
    places = ("--state-dir", tmp_path / "state", "--root", tmp_path / "root")
    options = ("--script", script, "--listen", "127.0.0.1:0")
    packed = pack(bundle, tmp_path / "out.run", *places, *options)
    done = started(packed, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, "script ran\n"), done.stderr
    done = started(packed, "--log-level", "error", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, "script ran\n"), done.stderr
    done = started(packed, "run", "--", "echo", "other", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "other\n"), done.stderr


def test_settings_that_were_packed(tmp_path: Path) -> None:
    """They are the weakest source but the defaults; the own bundle comes before any other."""
    own, more = tmp_path / "own.run", tmp_path / "more.tar"
    packed = {"idle_timeout": ("1m",), "nodes": ("3",), "bundles": (str(own),)}
    (tmp_path / "mayfly.toml").write_text(f'nodes = "4"\nbundles = ["{more}"]\n')
    found = load({}, {}, None, (), packed)
    assert (found.idle_timeout, found.bundles) == (60, (own,))
    found = load({"idle_timeout": ("2m",)}, {}, tmp_path / "mayfly.toml", (), packed)
    assert (found.idle_timeout, str(found.nodes)) == (120, "4")
    assert found.bundles == (own, more)
    found = load({}, {"MAYFLY_NODES": "5"}, None, (more,), packed)
    assert str(found.nodes) == "5"
    assert found.bundles == (own, more)


def test_a_bundle_is_not_a_one_file(tmp_path: Path) -> None:
    """Programs and short files are none."""
    for name, data in {
        "short": b"\x7fELF",
        "program": Path(shutil.which("sh") or "").read_bytes(),
        "no-table": stand_in(tmp_path / "one-file").read_bytes()[: PAGE + TABLE.size - 1],
    }.items():
        (tmp_path / name).write_bytes(data)
        with (tmp_path / name).open("rb") as file:
            assert read_table(file.fileno()) is None
        assert mayfly_here("ls", tmp_path / name).returncode == 5
