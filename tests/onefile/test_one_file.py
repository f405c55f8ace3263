"""The one file of `make dist`: runs on a host with nothing but a kernel, and leaves nothing."""

from __future__ import annotations

import ast
import http.client
import json
import marshal
import os
import re
import shutil
import ssl
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mayfly.storage.bundle.packed import TABLE, end_of_elf
from tests.bundle.builders import Layout, layers, tar
from tests.bundle.makers import seekable
from tests.onefile.conftest import build
from tests.support.images import digest_of
from tests.support.process import REPO, Process, need, need_root, text_of

LAYER = layers("one")[0]

EMPTY_HOST = """
mount -t proc proc "$0/proc"
mount --bind "$0/tmp" "$0/tmp"
mount -o remount,bind,noexec "$0/tmp"
exec chroot "$0" /mayfly "$@"
"""


@pytest.fixture(scope="module")
def parts(one_file: Path) -> list[bytes]:
    """The parts that the launcher's table names: ld.so, python, boot.zip, index, libraries."""
    data = one_file.read_bytes()
    at = end_of_elf(data)
    assert at is not None
    at += TABLE.size
    (count,) = struct.unpack_from("<Q", data, at)
    table = struct.iter_unpack("<QQ", data[at + 8 : at + 8 + 16 * count])
    return [data[offset : offset + size] for offset, size in table]


@pytest.fixture(scope="module")
def index(parts: list[bytes]) -> dict[str, Any]:
    """Where modules are; see `make_index` in build.py."""
    found: dict[str, Any] = marshal.loads(parts[3])
    return found


def run(one_file: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it with this environment alone."""
    return subprocess.run(
        [one_file, *map(str, words)], env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_host_with_nothing(one_file: Path, tmp_path: Path) -> None:
    """No libc, no Python, no HOME, /tmp mounted noexec: it serves, and a kill leaves nothing.

    TLS by a certificate of its own and a zstd bundle take the large extension modules.
    """
    need_root()
    need("unshare", "chroot", "mount")
    for name in ("proc", "tmp", "root", "state"):
        (tmp_path / name).mkdir()
    shutil.copy(one_file, tmp_path / "mayfly")
    layout = Layout()
    layout.name(layout.image(LAYER), "quay.example/team/app:1")
    (tmp_path / "b.tar.zst").write_bytes(seekable(tar(layout.all_files())))
    namespaces = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    serve = ("serve", "/b.tar.zst", "--root", "/root", "--state-dir", "/state", "--tls", "auto")
    words = (*namespaces, "sh", "-ec", EMPTY_HOST, tmp_path, *serve, "--listen", "127.0.0.1:0")
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # and no HOME
    server = Process(words, tmp_path.with_suffix(".log"), env=path)
    try:
        ready = json.loads(server.wait_for(lambda: text_of(tmp_path / "state/ready.json")))
        context = ssl.create_default_context(cafile=str(tmp_path / "state/ca.crt"))
        host = ready["url"].partition("://")[2].rstrip("/")
        with closing(http.client.HTTPSConnection(host, context=context, timeout=30)) as client:
            client.request("GET", f"/v2/team/app/blobs/{digest_of(LAYER)}")
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (200, LAYER)
        kept = {path.name for path in tmp_path.iterdir()}
    finally:
        server.kill()
    assert kept == {"proc", "tmp", "root", "state", "mayfly", "b.tar.zst"}
    assert [*(tmp_path / "tmp").iterdir()] == []


def test_commands_that_read_more(one_file: Path, tmp_path: Path) -> None:
    """Each takes modules that others do not, among them bcrypt's and zstandard's in C."""
    layout = Layout()
    layout.name(layout.image(LAYER), "quay.example/team/app:1")
    bundle = tmp_path / "b.tar.zst"
    bundle.write_bytes(seekable(tar(layout.all_files())))
    done = run(one_file, "ls", bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert "team/app" in done.stdout
    state, root = ("--state-dir", tmp_path / "state"), ("--root", tmp_path / "root")
    done = run(one_file, "import", bundle, *root)
    assert done.returncode == 0, done.stderr
    add: list[str | Path] = [
        one_file,
        "user",
        "add",
        "ann",
        "--password-stdin",
        "--auth",
        tmp_path / "auth",
    ]
    subprocess.run(add, input=b"secret of ann", env={}, check=True, timeout=60)  # by bcrypt
    done = run(one_file, "verify", *root)
    assert done.returncode == 0, done.stderr
    script = "test -d /proc/self/fd && echo ran"
    done = run(one_file, "run", *state, *root, "--listen", "127.0.0.1:0", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "ran" in done.stdout


def test_a_command_gets_back_the_environment(one_file: Path, tmp_path: Path) -> None:
    """The launcher's variables are its own, and of its files in memory none stays open."""
    words = ("--root", tmp_path / "root", "--state-dir", tmp_path / "state", "--tls", "auto")
    script = "env; ls -l /proc/self/fd /proc/$PPID/fd; cat /proc/$PPID/comm"
    ours = {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere", "PATH": os.environ["PATH"]}
    ours["LD_LIBRARY_PATH"] = "/nowhere"
    done = run(one_file, "run", *words, "--listen", "127.0.0.1:0", "--", "sh", "-c", script, **ours)
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    path = ours.pop("PATH")
    assert {f"{name}={value}" for name, value in ours.items()} <= set(found)
    assert any(line.startswith("PATH=/") and line.endswith(f"/bin:{path}") for line in found)
    assert "_MAYFLY" not in done.stdout
    assert "memfd" not in done.stdout
    assert sum(line.endswith(f" -> {one_file}") for line in found) == 1, "the server reads it"
    assert found[-1] == "mayfly"


def test_libraries_and_modules_of_the_host_are_not_loaded(one_file: Path, tmp_path: Path) -> None:
    """Neither by a variable nor from the working directory; they would need the host's glibc."""
    for name in ("json.py", "click.py", "sitecustomize.py", "usercustomize.py"):
        (tmp_path / name).write_text("raise SystemExit('loaded')\n")
    (tmp_path / "evil.c").write_text(
        "#include <unistd.h>\n"
        "__attribute__((constructor)) static void loaded(void) { _exit(99); }\n"
    )
    evil = tmp_path / "evil.so"
    words = ("cc", "-shared", "-fPIC", "-o", evil, tmp_path / "evil.c")
    subprocess.run(words, check=True, timeout=60)
    for name in ("libssl.so.3", "libffi.so.8", "libz.so.1", "libnss_files.so.2"):
        (tmp_path / name).symlink_to(evil)
    here = {name: str(tmp_path) for name in ("LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")}
    here |= {"LD_PRELOAD": str(evil), "LD_AUDIT": str(evil), "PYTHONSTARTUP": "json.py"}
    done = subprocess.run(
        [one_file, "ls", "--json", "--root", "root"],
        cwd=tmp_path,
        env=here,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == run(one_file, "ls", "--json", "--root", "root").stderr


def test_closed_standard_streams(one_file: Path, tmp_path: Path) -> None:
    """What is printed goes into no file of Mayfly's, which would have their numbers."""
    where = ("--root", tmp_path / "root", "--state-dir", tmp_path / "state")
    script = 'exec "$@" <&- >&- 2>&-'
    words = ("run", *where, "--listen", "127.0.0.1:0", "--", "sh", "-c", "echo x; echo x >&2")
    done = subprocess.run(["sh", "-c", script, "sh", one_file, *map(str, words)], timeout=60)
    assert done.returncode == 0
    assert re.fullmatch(r"\d+\n", (tmp_path / "state/lock").read_text())


def test_what_is_behind_it_changes_nothing(one_file: Path, tmp_path: Path) -> None:
    """Also if it looks like a one file: what is appended is never searched."""
    longer = tmp_path / "longer"
    shutil.copy(one_file, longer)
    with longer.open("ab") as file:
        file.write(one_file.read_bytes()[:1_000_000])
    done = run(longer, "--version")
    assert done.stdout == run(one_file, "--version").stdout != ""


@pytest.mark.parametrize("part", ["launcher", "table", "runtime", "last byte"])
def test_a_file_that_was_cut_short(one_file: Path, tmp_path: Path, part: str) -> None:
    """One line that says so and exit code 5, wherever it was cut and whatever the command."""
    data = one_file.read_bytes()
    table = end_of_elf(data)
    assert table is not None
    size = {"launcher": table, "table": table + 100, "runtime": 20_000_000}.get(part, len(data) - 1)
    cut = tmp_path / "cut"
    cut.write_bytes(data[:size])
    cut.chmod(0o755)
    done = run(cut, "--version")
    assert done.returncode == 5
    whole = re.fullmatch(
        rf"mayfly: {cut} was cut short: it has {size} of (at least )?(\d+) bytes; copy it again\n",
        done.stderr,
    )
    assert whole is not None
    if size <= table + 100:  # the table, which says where the file ends, is cut itself
        assert whole[1] and size < int(whole[2]) < len(data)
    else:
        assert not whole[1] and int(whole[2]) == len(data)


def test_a_kernel_that_does_not_let_it_start(one_file: Path, tmp_path: Path) -> None:
    """It says what is missing: /proc, or the right to run programs in memory."""
    need_root()
    need("chroot", "unshare")
    shutil.copy(one_file, tmp_path / "mayfly")
    forbid = 'echo 2 >/proc/sys/vm/memfd_noexec && exec "$0" --version'
    namespaces = ("unshare", "--pid", "--fork", "--mount-proc")
    for words, reason in (
        (("chroot", tmp_path, "/mayfly", "--version"), "/proc is not mounted"),
        ((*namespaces, "sh", "-c", forbid, one_file), "sysctl vm.memfd_noexec=2 forbids"),
    ):
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stderr.startswith(f"mayfly: the one file cannot start: {reason}")


def test_the_same_inputs_give_the_same_bytes(one_file: Path, tmp_path: Path) -> None:
    """In another directory and with other hashes of strings; the lists beside it, too."""
    again = build(tmp_path, PYTHONHASHSEED="7")
    names = sorted(path.name for path in one_file.parent.iterdir())
    assert names == [one_file.name + end for end in ("", ".cdx.json", ".sha256")]
    for name in names:
        assert (again.parent / name).read_bytes() == (one_file.parent / name).read_bytes()
    sums = ["sha256sum", "--check", f"{one_file.name}.sha256"]
    need("sha256sum")
    subprocess.run(sums, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


def test_elf_files_need_only_each_other(
    one_file: Path, parts: list[bytes], index: dict[str, Any], tmp_path: Path
) -> None:
    """All libraries and versions of glibc's symbols are in the file; the launcher is static."""
    need("readelf")
    data = one_file.read_bytes()
    places = [*index["extensions"].values(), *index["libraries"].values()]
    files = [parts[0], parts[1], *parts[4:], *(data[at : at + size] for at, size in places)]
    needed: set[str] = set()
    sonames: set[str] = set()
    versions: set[str] = set()
    defined: set[str] = set()
    for number, elf in enumerate(files):
        (tmp_path / str(number)).write_bytes(elf)
        said = _readelf(tmp_path / str(number), "--dynamic", "--version-info")
        needed |= set(re.findall(r"\(NEEDED\).*\[(.+)\]", said))
        sonames |= set(re.findall(r"\(SONAME\).*\[(.+)\]", said))
        before, _, after = said.partition("Version needs section")
        defined |= set(re.findall(r"Name: (GLIBC_[\d.]+)", before))
        versions |= set(re.findall(r"Name: (GLIBC_[\d.]+)", after))
    assert "libc.so.6" in needed <= sonames
    assert "GLIBC_2.17" in versions <= defined
    assert "INTERP" not in _readelf(one_file, "--program-headers")


def _readelf(path: Path, *words: str) -> str:
    words = ("readelf", "--wide", *words, str(path))
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def test_every_module_is_in_it(index: dict[str, Any]) -> None:
    """All of Mayfly, and all that it imports, wherever it does."""
    known = {*index["code"], *index["extensions"], *sys.builtin_module_names, "__future__"}
    own = {name for name in known if name.partition(".")[0] == "mayfly"}
    wanted = dict(_own_modules())
    assert own == wanted.keys()
    missing = {
        f"{name} imports {imported}"
        for name, path in wanted.items()
        for imported in _imported(path)
        if imported not in known and imported.rpartition(".")[0] not in known
    }
    assert missing == set()
    files = (*REPO.glob("registry/**/*.sh"), *REPO.glob("registry/page/static/*"))
    assert index["data"].keys() == {f"mayfly/{path.relative_to(REPO)}" for path in files}


def test_no_module_reads_files_beside_itself() -> None:
    """In the one file there are none: `pkgutil.get_data` reads them. Scripts are run by a path.

    `own_command` starts an installed Mayfly by it, never the one file.
    """
    found = {name for name, path in _own_modules() if "__file__" in path.read_text()}
    assert found == {"mayfly.registry.process.child", "mayfly.registry.process.own_command"}


def _own_modules() -> Iterator[tuple[str, Path]]:
    for path in (REPO / "mayfly/__init__.py", REPO / "mayfly/__main__.py"):
        yield f"mayfly.{path.stem}".removesuffix(".__init__"), path
    for room in ("auth", "registry", "storage"):
        for path in (REPO / room).rglob("*.py"):
            name = ".".join(("mayfly", *path.relative_to(REPO).with_suffix("").parts))
            yield name.removesuffix(".__init__"), path


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            yield node.module
