"""Images for pods: a static busybox with a mark or random bytes, and Mayfly itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.clients.layout import Layout, layer
from tests.support.process import REPO, find_program

SLEEP = ("/bin/busybox", "sleep", "1000000")
_SKIPPED = {"test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "pip", "__pycache__"}


def busybox(mark: str) -> bytes:
    """The layer of a small image; the mark makes it another one."""
    program = find_program("busybox")
    assert program is not None
    return layer({"bin/busybox": Path(program), "etc/mark": mark.encode(), "tmp/.keep": b""})


def noise(mebibytes: int) -> bytes:
    """A layer that does not compress, and is no other's."""
    return layer({"data": os.urandom(mebibytes << 20)})


def mayfly_layer() -> bytes:
    """This checkout, this Python and the packages of this environment, at the same places."""
    python = Path(sys.executable).resolve()
    files: dict[str, bytes | Path] = {str(python).lstrip("/"): python}
    files |= _tree(Path(sysconfig.get_paths()["stdlib"]), {"site-packages", "dist-packages"})
    files |= _tree(Path(sysconfig.get_paths()["purelib"]), set(), "opt/site-packages")
    # Of the checkout `mayfly` has links to its parts; the image has files, as an installed one.
    files |= _tree(REPO / "mayfly", set(), "opt/site-packages/mayfly")
    for needed in _libraries([path for path in files.values() if isinstance(path, Path)]):
        files[str(needed).lstrip("/")] = needed
    start = f"#!{python}\nimport sys\nfrom mayfly.__main__ import main\nsys.exit(main())\n"
    files["usr/local/bin/mayfly"] = start.encode()
    program = find_program("busybox")
    assert program is not None
    files["bin/busybox"] = Path(program)
    files["etc/passwd"] = b"root:x:0:0::/:/\n"
    return layer(files, ("var/lib/mayfly", "run/mayfly"))


def add_mayfly(layout: Layout, name: str) -> str:
    """The image of the Dockerfile, from what is installed here."""
    settings = re.findall(r"MAYFLY_[A-Z_]+=\S+", (REPO / "Dockerfile").read_text())
    environment = [
        "PATH=/usr/local/bin:/bin",
        "PYTHONPATH=/opt/site-packages",
        "PYTHONDONTWRITEBYTECODE=1",
        *settings,
    ]
    return layout.add(
        name,
        mayfly_layer(),
        Env=environment,
        User="65532:65532",
        Entrypoint=["mayfly"],
        Cmd=["serve"],
    )


def _tree(source: Path, skipped: set[str], target: str = "") -> dict[str, bytes | Path]:
    files: dict[str, bytes | Path] = {}
    for directory, names, found in os.walk(source, followlinks=True):
        names[:] = [n for n in names if n not in _SKIPPED | skipped and not n.startswith("config-")]
        for name in found:
            path = Path(directory, name)
            inside = Path(target or str(source).lstrip("/"), path.relative_to(source))
            if path.exists():
                files[str(inside)] = path
    return files


def _libraries(paths: list[Path]) -> Iterator[Path]:
    """The shared libraries that programs and extension modules are linked with."""
    linked = [path for path in paths if ".so" in path.name or path.parent.name == "bin"]
    done = subprocess.run(["ldd", *map(str, linked)], capture_output=True, text=True, timeout=120)
    for word in sorted(set(done.stdout.split())):
        if word.startswith("/") and not word.endswith(":") and Path(word).is_file():
            yield Path(word)
