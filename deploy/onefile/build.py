#!/usr/bin/env python3
"""Build the one file: mayfly-VERSION-linux-ARCH, which runs without Python, packages or network.

    python deploy/onefile/build.py [DIRECTORY]      default: dist

It contains the interpreter that runs this, its standard library, the glibc and the libraries that
it uses here, Mayfly, and the wheels of its dependencies (pip's own variables hold, such as
PIP_FIND_LINKS for a directory of wheels). It takes a C compiler with a static libc, ldd and strip.
The same inputs give the same bytes. Beside it are written its SBOM (CycloneDX) and checksums.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import marshal
import os
import platform
import re
import struct
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cyclonedx

from mayfly.storage.bundle.packed import PAGE, PART, TABLE, Table, end_of_elf

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent

MOST_PARTS = 32
"""As launcher.c has it."""

STDLIB = Path(sysconfig.get_path("stdlib"))
STDLIB_LEFT_OUT = re.compile(
    r"(config-.*|dist-packages|distutils|ensurepip|idlelib|lib2to3|lib-dynload|pydoc_data"
    r"|site-packages|test|tkinter|turtledemo|venv)/.*|.*/(tests?|__pycache__)/.*"
    r"|(__phello__|_sysconfigdata.*|antigravity|this|turtle).*\.py"
)
DYNLOAD_LEFT_OUT = re.compile(
    r"(_test|_xx|xx|_ctypes_test|_curses|_dbm|_gdbm|_sqlite3|_tkinter|nis|ossaudiodev|readline).*"
)
"""Modules that nothing in Mayfly and its dependencies imports, or whose libraries are large."""

BOOT = ("encodings/__init__.py", "encodings/aliases.py", "encodings/utf_8.py", "linecache.py")
"""Modules of the standard library that the interpreter imports before boot.py."""

DLOPENED = ("libgcc_s.so.1",)
"""Libraries that glibc loads by name: this one when a thread is ended."""

Place = tuple[int, int]


class Body:
    """The content behind the launcher.

    Args:
        start: its first byte in the file.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self.data = bytearray()

    def add(self, data: bytes, align: int = 1) -> Place:
        """Add a part; return its offset in the file and its size."""
        self.data += bytes(-(self.start + len(self.data)) % align)
        place = self.start + len(self.data), len(data)
        self.data += data
        return place


class Inputs:
    """Everything that is packed, found on this host.

    Args:
        site: the directory where the dependencies are installed.

    Attributes:
        program: the interpreter.
        loader: glibc's ld.so.
        preloaded: libraries that are loaded with the interpreter, by soname.
        extensions: extension modules by name.
        needed: sonames that each of them needs, in the order to load them, without `preloaded`.
        libraries: those by soname.
    """

    def __init__(self, site: Path) -> None:
        self.site = site
        self.program = Path(os.path.realpath(sys.executable))
        self.preloaded = needed_by(self.program)
        self.loader = self.preloaded.pop("")
        self.extensions = dict(_extensions(site))
        found = {name: needed_by(path) for name, path in self.extensions.items()}
        every: dict[str, Path] = {}
        for libraries in found.values():
            libraries.pop("", None)
            every |= libraries

        def depth(soname: str) -> int:
            """How many libraries one needs: fewer than any library that needs it."""
            return len(needed_by(every[soname]))

        # Whatever is loaded later is loaded with the help of this module.
        self.preloaded |= found["_ctypes"]
        for soname in DLOPENED:
            self.preloaded[soname] = self.preloaded["libc.so.6"].with_name(soname)
        self.needed = {
            name: tuple(sorted((one for one in libraries if one not in self.preloaded), key=depth))
            for name, libraries in found.items()
        }
        self.libraries = {
            soname: found[name][soname]
            for name, sonames in self.needed.items()
            for soname in sonames
        }

    def sources(self) -> Iterator[tuple[str, Path]]:
        """Yield each Python module: its path as it is named in the file, and its source."""
        for path in sorted(STDLIB.rglob("*.py")):
            name = str(path.relative_to(STDLIB))
            if not STDLIB_LEFT_OUT.fullmatch(name):
                yield name, path
        for path in sorted(self.site.rglob("*.py")):
            yield str(path.relative_to(self.site)), path
        yield from _own("*.py")

    def data(self) -> Iterator[tuple[str, Path]]:
        """Yield the files that modules read."""
        yield from _own("*.sh")
        yield from _own("static/*")


def main(directory: Path) -> None:
    """Write the one file, its SBOM, and the checksums."""
    version = re.search(r'^VERSION = "(.+)"$', (TOP / "registry/version.py").read_text(), re.M)[1]
    name = f"mayfly-{version}-linux-{platform.machine()}"
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"]
        _say("fetching the dependencies")
        _run(
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-compile", "--only-binary", ":all:", "--target", f"{scratch}/site"),
            *project["dependencies"],
            *(one for name, extra in extras.items() if name != "dev" for one in extra),
        )
        inputs = Inputs(Path(scratch, "site"))
        _say("building the one file")
        one_file = make(inputs, Path(scratch))
        _say("listing its contents")
        listed = json.dumps(contents(inputs, version), indent=1).encode() + b"\n"
        written = {name: one_file, f"{name}.cdx.json": listed}
    for file, data in written.items():
        (directory / file).write_bytes(data)
    (directory / name).chmod(0o755)
    _say("starting it")
    if version not in _run(str(directory / name), "--version"):
        raise SystemExit(f"{directory / name} does not run")
    sums = (f"{hashlib.sha256(data).hexdigest()}  {file}\n" for file, data in written.items())
    (directory / f"{name}.sha256").write_text("".join(sums))
    print(directory / name)


def _say(step: str) -> None:
    print(f"{step} …", file=sys.stderr, flush=True)


def make(inputs: Inputs, scratch: Path) -> bytes:
    """Return the one file."""
    launcher = _launcher(scratch)
    at = end_of_elf(launcher[:PAGE])
    if at is None or not len(launcher) <= at:
        raise SystemExit("the launcher does not end where its ELF header says")
    body = Body(at + TABLE.size + MOST_PARTS * PART.size)
    index = make_index(inputs, body, scratch)
    parts = [
        body.add(inputs.loader.read_bytes(), PAGE),
        body.add(_stripped(inputs.program, scratch), PAGE),
        body.add(_boot(), PAGE),
        body.add(marshal.dumps(index, 2)),
        *(body.add(_stripped(path, scratch), PAGE) for path in inputs.preloaded.values()),
    ]
    if len(parts) > MOST_PARTS:
        raise SystemExit("launcher.c has no room for the table of parts")
    table = Table(at, body.start + len(body.data)).encode() + struct.pack("<Q", len(parts))
    table += b"".join(PART.pack(*place) for place in parts)
    return launcher.ljust(at, b"\0") + table.ljust(body.start - at, b"\0") + body.data


def make_index(inputs: Inputs, body: Body, scratch: Path) -> dict[str, object]:
    """Add all modules; return where they are, for boot.py.

    ``code`` has by each module's name offset, size, path and whether it is a package;
    ``extensions`` and ``libraries`` have places by name, ``needed`` the libraries of each extension
    module, ``data`` places by path.
    """
    code: dict[str, tuple[int, int, str, bool]] = {}
    for file, path in inputs.sources():
        name = file.removesuffix(".py").replace("/", ".")
        compiled = compile(path.read_bytes(), file, "exec", dont_inherit=True)
        is_package = name.endswith(".__init__")
        place = body.add(marshal.dumps(compiled))
        code[name.removesuffix(".__init__")] = *place, file, is_package
    return {
        "code": code,
        "extensions": {
            name: body.add(_stripped(path, scratch), PAGE)
            for name, path in inputs.extensions.items()
        },
        "needed": {name: sonames for name, sonames in inputs.needed.items() if sonames},
        "libraries": {
            soname: body.add(_stripped(path, scratch), PAGE)
            for soname, path in inputs.libraries.items()
        },
        "data": {name: body.add(path.read_bytes()) for name, path in inputs.data()},
    }


def contents(inputs: Inputs, version: str) -> dict[str, object]:
    """Return the list of the one file's contents in CycloneDX 1.6."""
    found: list[dict[str, object]] = [
        {
            "type": "application",
            "name": "CPython",
            "version": platform.python_version(),
            "licenses": [{"expression": "PSF-2.0"}],
        }
    ]
    for path in sorted(inputs.site.glob("*.dist-info/METADATA")):
        fields = HeaderParser().parsestr(path.read_text("utf-8"))
        name, release = fields["Name"], fields["Version"]
        one = cyclonedx.distribution(name, release)
        if licence := fields["License-Expression"]:
            one["licenses"] = [{"expression": licence}]
        found.append(one)
    libraries = {"ld.so": inputs.loader, **inputs.preloaded, **inputs.libraries}
    for soname, path in sorted(libraries.items()):
        found.append({"type": "library", "name": soname, "hashes": cyclonedx.hashes(path)})
    return cyclonedx.bill(found, version)


def needed_by(path: Path) -> dict[str, Path]:
    """Return the libraries that an ELF file needs and these need, by soname; ld.so by ""."""
    found = {}
    for line in _run("ldd", str(path)).splitlines():
        words = line.split()
        if words[1:3] == ["=>", "not"]:
            raise SystemExit(f"{path} needs {words[0]}, which is not installed")
        if words[1:2] == ["=>"]:
            found[words[0]] = Path(words[2])
        elif words[0].startswith("/"):
            found[""] = Path(words[0])
    return found


def _own(pattern: str) -> Iterator[tuple[str, Path]]:
    """Yield Mayfly's files; the folders in ``mayfly`` are links, which `Path.rglob` passes over."""
    for path in sorted((TOP / "mayfly").glob(pattern)):
        yield f"mayfly/{path.name}", path
    for room in ("auth", "registry", "storage"):
        for path in sorted((TOP / room).rglob(pattern)):
            yield f"mayfly/{path.relative_to(TOP)}", path


def _extensions(site: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted((STDLIB / "lib-dynload").glob("*.so")):
        if not DYNLOAD_LEFT_OUT.fullmatch(path.name):
            yield path.name.partition(".")[0], path
    for path in sorted(site.rglob("*.so")):
        parents = path.relative_to(site).parts[:-1]
        yield ".".join((*parents, path.name.partition(".")[0])), path


def _launcher(scratch: Path) -> bytes:
    output = scratch / "launcher"
    flags = ("-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none")
    _run(os.environ.get("CC", "cc"), *flags, "-o", str(output), str(HERE / "launcher.c"))
    return output.read_bytes()


def _boot() -> bytes:
    """Return the zip from which the interpreter imports its first modules."""
    made = io.BytesIO()
    files = {name: STDLIB / name for name in BOOT} | {"_mayfly_boot.py": HERE / "boot.py"}
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, path in files.items():
            source = path.read_bytes()
            code = marshal.dumps(compile(source, name, "exec", dont_inherit=True))
            # PEP 552: valid without a look at the source, which is not there.
            header = importlib.util.MAGIC_NUMBER + struct.pack("<I", 1)
            header += importlib.util.source_hash(source)
            archive.writestr(zipfile.ZipInfo(f"{name}c", (1980, 1, 1, 0, 0, 0)), header + code)
    return made.getvalue()


def _stripped(path: Path, scratch: Path) -> bytes:
    output = scratch / "stripped"
    _run("strip", "--strip-unneeded", "-o", str(output), str(path))
    return output.read_bytes()


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, timeout=600).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else TOP / "dist")
