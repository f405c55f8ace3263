"""Images for pods: a static busybox with a mark or random bytes, and Mayfly itself."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from tests.clients.images import ARCHITECTURE, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, REF_NAME
from tests.process import REPO, find_program

FULL_NAME = "io.containerd.image.name"
SLEEP = ("/bin/busybox", "sleep", "1000000")
_SKIPPED = {"test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "pip", "__pycache__"}


class Layout:
    """An OCI layout that images are added to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blobs = directory / "blobs/sha256"
        self._blobs.mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._entries: list[dict[str, Any]] = []

    def add(self, name: str, *layers: bytes, **config: object) -> str:
        """An image of these layers (tar files); its digest."""
        described = [self._blob(OCI_LAYER, gzip.compress(layer, 1, mtime=0)) for layer in layers]
        diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
        document = {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/bin:/bin"], **config},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self._blob(OCI_CONFIG, json.dumps(document).encode()),
            "layers": described,
        }
        entry = self._blob(OCI_MANIFEST, json.dumps(manifest).encode())
        self._entries.append({**entry, "annotations": {REF_NAME: name, FULL_NAME: name}})
        index = {"schemaVersion": 2, "manifests": self._entries}
        (self.directory / "index.json").write_text(json.dumps(index))
        return str(entry["digest"])

    def archive(self) -> Path:
        """The layout as one tar file."""
        made = self.directory.with_suffix(".tar")
        with tarfile.open(made, "w") as archive:
            archive.add(self.directory, ".")
        return made

    def _blob(self, media_type: str, data: bytes) -> dict[str, Any]:
        encoded = hashlib.sha256(data).hexdigest()
        (self._blobs / encoded).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{encoded}", "size": len(data)}


def layer(files: dict[str, bytes | Path], owned: tuple[str, ...] = ()) -> bytes:
    """A layer: path → content, or the file to copy; ``owned`` are directories of user 65532."""
    raw = BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        made: set[str] = set()
        for path, content in sorted(files.items()):
            _parents(archive, path, made)
            data = content if isinstance(content, bytes) else content.read_bytes()
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, BytesIO(data))
        for path in owned:
            _parents(archive, path, made)
            member = tarfile.TarInfo(path)
            member.type, member.mode, member.uid, member.gid = tarfile.DIRTYPE, 0o755, 65532, 65532
            archive.addfile(member)
    return raw.getvalue()


def busybox(mark: str) -> bytes:
    """The layer of a small image; the mark makes it another one."""
    program = find_program("busybox")
    assert program is not None
    return layer({"bin/busybox": Path(program), "etc/mark": mark.encode(), "tmp/.keep": b""})


def noise(mebibytes: int) -> bytes:
    """A layer that does not compress, and is no other's."""
    return layer({"data": os.urandom(mebibytes << 20)})


def _parents(archive: tarfile.TarFile, path: str, made: set[str]) -> None:
    parent = os.path.dirname(path)  # noqa: PTH120 - a name in an archive
    if parent and parent not in made:
        _parents(archive, parent, made)
        made.add(parent)
        member = tarfile.TarInfo(parent)
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(member)


def mayfly_layer() -> bytes:
    """This checkout, this Python and the packages of this environment, at the same places."""
    python = Path(sys.executable).resolve()
    files: dict[str, bytes | Path] = {str(python).lstrip("/"): python}
    files |= _tree(Path(sysconfig.get_paths()["stdlib"]), {"site-packages", "dist-packages"})
    files |= _tree(Path(sysconfig.get_paths()["purelib"]), set(), "opt/site-packages")
    for package in ("registry", "storage", "auth"):
        files |= _tree(REPO / package, set(), f"opt/mayfly/{package}")
    for needed in _libraries([path for path in files.values() if isinstance(path, Path)]):
        files[str(needed).lstrip("/")] = needed
    start = f"#!{python}\nimport sys\nfrom registry.__main__ import main\nsys.exit(main())\n"
    files["usr/local/bin/mayfly"] = start.encode()
    program = find_program("busybox")
    assert program is not None
    files["bin/busybox"] = Path(program)
    files["etc/passwd"] = b"root:x:0:0::/:/\n"
    return layer(files, ("var/lib/mayfly", "run/mayfly"))


def add_mayfly(layout: Layout, name: str) -> str:
    """The image of the Dockerfile, from what is installed here."""
    environment = [
        "PATH=/usr/local/bin:/bin",
        "PYTHONPATH=/opt/mayfly:/opt/site-packages",
        "PYTHONDONTWRITEBYTECODE=1",
        "MAYFLY_ROOT=/var/lib/mayfly",
        "MAYFLY_STATE_DIR=/run/mayfly",
        "MAYFLY_LISTEN=0.0.0.0:5000",
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
    for directory, names, found in os.walk(source):
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
