"""Images for the clients to carry, made of a real package tree.

debootstrap makes a Debian with Python once; its directories become layers and the layers an
OCI layout, kept under .cache for the next run:

- `debian`: four layers, about 140 MB unpacked; it runs, and has pip. What takes place and is not
  needed for that, such as translations, is left out: tests push and pull it some fifty times.
- `small`: two layers of a few megabytes.
- `multi`: an index of `small` and of an image for another architecture.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.process import find_program

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
REF_NAME = "org.opencontainers.image.ref.name"

COMMAND = ("/bin/sh", "-c", "cat /etc/os-release")
PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv")
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
OTHER_ARCHITECTURE = "arm64" if ARCHITECTURE == "amd64" else "amd64"

# What tar is given to make each layer from the tree, lowest layer first.
DEBIAN_LAYERS = {
    "base": (
        "--exclude=./usr/share",
        "--exclude=./usr/lib/python3*",
        "--exclude=./usr/lib/*/gconv",
        "--exclude=./usr/lib/*/perl-base",
        "--exclude=./usr/bin/perl*",
        "--exclude=./var/cache/*",
        "--exclude=./var/lib/apt/lists/*",
        "--exclude=./dev/*",
        ".",
    ),
    "share": (
        "--exclude=./usr/share/doc",
        "--exclude=./usr/share/locale",
        "--exclude=./usr/share/man",
        "./usr/share",
    ),
    "python": ("./usr/lib/python3*",),
    "archives": ("./var/cache/apt/archives/python3*",),
}
SMALL_LAYERS = {
    "certificates": ("./usr/share/ca-certificates",),
    "zoneinfo": ("./usr/share/zoneinfo",),
    "perl": ("./usr/share/perl5",),
}


@dataclass(frozen=True)
class Images:
    directory: Path

    @property
    def layout(self) -> Path:
        return self.directory / "oci"

    def tar(self, layer: str) -> Path:
        return self.directory / f"{layer}.tar"

    def digest(self, name: str) -> str:
        """The digest of the image or index of that name."""
        index = json.loads((self.layout / "index.json").read_bytes())
        (found,) = (d for d in index["manifests"] if d["annotations"][REF_NAME] == name)
        return str(found["digest"])

    def blob(self, digest: str) -> Path:
        return blob_path(self.layout, digest)

    def manifest(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.blob(self.digest(name)).read_bytes()))


def blob_path(layout: Path, digest: str) -> Path:
    """Where an OCI layout keeps a blob."""
    algorithm, _, encoded = digest.partition(":")
    return layout / "blobs" / algorithm / encoded


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def make_images(cache: Path) -> Images:
    """The images, from the cache or made now; safe when several runs start at once."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    recipe = [suite, ARCHITECTURE, Path(__file__).read_text()]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
    cache.mkdir(exist_ok=True)
    with (cache / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tree = cache / f"debootstrap-{suite}-{ARCHITECTURE}"
        if not tree.exists():
            _publish(tree, lambda path: _debootstrap(suite, path))
        images = cache / f"images-{key}"
        if not images.exists():
            _publish(images, lambda path: _build(tree, path))
    return Images(images)


def _publish(target: Path, make: Callable[[Path], None]) -> None:
    # A run that is interrupted leaves no half-made entry under the final name.
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        make(made)
        made.rename(target)


def _debootstrap(suite: str, tree: Path) -> None:
    program = find_program("debootstrap")
    assert program
    argv = [program, "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, str(tree)]
    _run(*argv, *_apt_mirror(suite))


def _apt_mirror(suite: str) -> list[str]:
    """The mirror this machine's apt uses; none: debootstrap knows a default."""
    wanted = [f"Codename: {suite}", "Component: main", "Created-By: Packages"]
    listed = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted).split()
    return listed[:1]


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        argv, cwd=cwd, timeout=900, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{argv} exited {done.returncode}: {done.stdout[-4000:]}"
    return done.stdout


def _build(tree: Path, directory: Path) -> None:
    layout = directory / "oci"
    (layout / "blobs/sha256").mkdir(parents=True)
    layers = {
        name: _add_layer(directory, tree, name, what)
        for name, what in {**DEBIAN_LAYERS, **SMALL_LAYERS}.items()
    }
    debian = _add_image(layout, [layers[name] for name in DEBIAN_LAYERS], ARCHITECTURE)
    small = _add_image(layout, [layers["certificates"], layers["zoneinfo"]], ARCHITECTURE)
    other = _add_image(layout, [layers["certificates"], layers["perl"]], OTHER_ARCHITECTURE)
    platforms = [
        {**small, "platform": {"os": "linux", "architecture": ARCHITECTURE}},
        {**other, "platform": {"os": "linux", "architecture": OTHER_ARCHITECTURE}},
    ]
    multi = _add_json(
        layout, OCI_INDEX, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": platforms}
    )
    named = {"debian": debian, "small": small, "multi": multi}
    manifests = [{**entry, "annotations": {REF_NAME: name}} for name, entry in named.items()]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))


def _add_layer(
    directory: Path, tree: Path, name: str, what: tuple[str, ...]
) -> tuple[dict[str, Any], str]:
    """Make a layer's tar and its compressed blob: the blob's descriptor and the tar's digest."""
    tar = directory / f"{name}.tar"
    # Patterns to exclude are tar's; those that name what to take are expanded here.
    exclude = [word for word in what if word.startswith("--")]
    take = [path for word in what if word not in exclude for path in _expand(tree, word)]
    options = ["--sort=name", "--numeric-owner", f"--file={tar}", *exclude]
    _run("tar", "--create", *options, *take, cwd=tree)
    compressed = directory / "layer.gz"
    with compressed.open("wb") as output:
        gzip = ["gzip", "--fast", "--no-name", "--stdout", str(tar)]
        subprocess.run(gzip, stdout=output, check=True, timeout=300)
    return _add_blob(directory / "oci", OCI_LAYER, compressed), sha256(tar)


def _expand(tree: Path, pattern: str) -> list[str]:
    if "*" not in pattern:
        return [pattern]
    return sorted(f"./{path.relative_to(tree)}" for path in tree.glob(pattern))


def _add_image(
    layout: Path, layers: list[tuple[dict[str, Any], str]], architecture: str
) -> dict[str, Any]:
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Cmd": list(COMMAND),
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _add_json(layout, OCI_CONFIG, config),
        "layers": [descriptor for descriptor, _ in layers],
    }
    return _add_json(layout, OCI_MANIFEST, manifest)


def _add_json(layout: Path, media_type: str, value: dict[str, Any]) -> dict[str, Any]:
    file = layout / "document.json"
    file.write_text(json.dumps(value))
    return _add_blob(layout, media_type, file)


def _add_blob(layout: Path, media_type: str, file: Path) -> dict[str, Any]:
    digest = sha256(file)
    size = file.stat().st_size
    shutil.move(file, blob_path(layout, digest))
    return {"mediaType": media_type, "digest": digest, "size": size}
