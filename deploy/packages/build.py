#!/usr/bin/env python3
"""Build the packages around the one file, from the files that `make dist` left in a directory.

    python deploy/packages/build.py [DIRECTORY]      default: dist

    mayfly_VERSION_ARCH.deb               by dpkg-deb
    mayfly-VERSION-1.ARCH.rpm             by rpmbuild
    mayfly-VERSION-oci.tar                the container image, of each architecture whose one file
                                          is in the directory
    mayfly-VERSION-wheels-linux-ARCH.tar  for pip without an index (pip's own variables hold)
    SHA256SUMS                            of all files of this version

The contents of the one file are listed in ….cdx.json beside it, and in the packages; the wheelhouse
has one of its own. The same inputs give the same bytes; SOURCE_DATE_EPOCH sets the time of files.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cyclonedx
import texts

from mayfly.registry.version import VERSION

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent

EPOCH = "315532800"
"""The time of files: 1980, the first that a zip file can have."""

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
"""The architecture of uname(1) → that of Debian and OCI."""

PYTHONS = ("3.11", "3.12", "3.13")
"""The wheelhouse is for these: of Debian 12 and 13, Ubuntu 24.04."""

OLDEST_GLIBC = "2_17"
"""As the names of wheels have it."""

USER = 65532
"""The container's user, as in the Dockerfile."""

IMAGE = f"localhost/mayfly:{VERSION}"
"""The image's name, as deploy/kubernetes has it."""

SUMMARY = "Container registry that lives as long as an upgrade"

CONTROL = """\
Package: mayfly
Version: {version}
Architecture: {architecture}
Maintainer: Mayfly <mayfly@localhost>
Section: admin
Priority: optional
Installed-Size: {size}
Suggests: systemd, dbus
Description: {summary}
 Serves image bundles to the nodes of a cluster where they lie, proves that
 every node has every image, and ends. Python and all libraries are in it.
"""

SPEC = """\
Name: mayfly
Version: {version}
Release: 1
Summary: {summary}
License: Apache-2.0
AutoReqProv: no

%description
Serves image bundles to the nodes of a cluster where they lie, proves that
every node has every image, and ends. Python and all libraries are in it.

%install
cp -a "{tree}/." "%{{buildroot}}/"

%post
{installed}
%preun
[ "$1" = 0 ] || exit 0
{removing}
%postun
[ "$1" = 0 ] || exit 0
{removed}
%files
%defattr(-,root,root)
%config(noreplace) "/etc/mayfly/mayfly.env"
{files}
"""

RPM_OWNS = re.compile("usr/share/(doc/mayfly|(bash-completion|fish|zsh)(/.*)?)")
"""Directories that the rpm owns; others belong to the system."""

RPM_MACROS = {
    "__os_install_post": "%{nil}",  # it would strip the one file of the parts behind its launcher
    "debug_package": "%{nil}",
    "_build_id_links": "none",
    "_buildhost": "localhost",
    "_binary_payload": "w6.xzdio",  # which every rpm reads
    "use_source_date_epoch_as_buildtime": "1",
    "clamp_mtime_to_source_date_epoch": "1",
}


def main(directory: Path) -> None:
    """Build everything."""
    os.environ.setdefault("SOURCE_DATE_EPOCH", EPOCH)
    os.umask(0o022)
    one_files = {
        machine: path
        for machine in MACHINES
        if (path := directory / f"mayfly-{VERSION}-linux-{machine}").exists()
    }
    if not one_files:
        raise SystemExit(f"{directory} has no mayfly-{VERSION}-linux-ARCH: make dist builds it")
    with tempfile.TemporaryDirectory() as scratch:
        for machine, one_file in one_files.items():
            tree = Path(scratch, machine)
            lay_out(tree, one_file)
            _show(make_deb(tree, directory, machine))
            _show(make_rpm(tree, directory, machine))
        _show(make_image(one_files, directory))
        print("fetching the wheels …", file=sys.stderr, flush=True)
        _show(make_wheelhouse(Path(scratch, "wheels"), directory))
    _show(write_sums(directory))


def _show(path: Path) -> None:
    """Print a file as soon as it is written, also into a pipe."""
    print(path, flush=True)


def write_sums(directory: Path) -> Path:
    """Write the checksums of this version's files; files of other versions may be beside them."""
    sums = directory / "SHA256SUMS"
    found = directory.glob(f"mayfly[-_]{VERSION}[-_]*")
    files = sorted(path for path in found if path.suffix != ".sha256")
    sums.write_text("".join(f"{_sha256(path.read_bytes())}  {path.name}\n" for path in files))
    return sums


def lay_out(tree: Path, one_file: Path) -> None:
    """Write the files of a package below a directory."""
    units = TOP / "deploy/systemd"
    contents = {
        "etc/mayfly/mayfly.env": (units / "mayfly.env").read_bytes(),
        "usr/lib/systemd/system/mayfly.service": (units / "mayfly.service").read_bytes(),
        "usr/lib/systemd/system/mayfly.socket": (units / "mayfly.socket").read_bytes(),
        "usr/lib/sysusers.d/mayfly.conf": (units / "sysusers.conf").read_bytes(),
        "usr/lib/tmpfiles.d/mayfly.conf": (units / "tmpfiles.conf").read_bytes(),
        "usr/share/doc/mayfly/copyright": (TOP / "LICENSE").read_bytes(),
        "usr/share/doc/mayfly/mayfly.cdx.json": Path(f"{one_file}.cdx.json").read_bytes(),
        "usr/bin/mayfly": one_file.read_bytes(),
    }
    contents |= {path: text.encode() for path, text in texts.completions().items()}
    for name, page in texts.manual():
        contents[f"usr/share/man/man1/{name}.1.gz"] = gzip.compress(page.encode(), mtime=0)
    for name, data in contents.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tree / "usr/bin/mayfly").chmod(0o755)
    _set_times(tree)


def make_deb(tree: Path, directory: Path, machine: str) -> Path:
    """Return the package for Debian and Ubuntu."""
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) // 1024
    architecture = MACHINES[machine]
    package = tree.with_name(f"{machine}-deb")
    shutil.copytree(tree, package)
    control = package / "DEBIAN"
    control.mkdir()
    fields = {"version": VERSION, "architecture": architecture, "size": size, "summary": SUMMARY}
    (control / "control").write_text(CONTROL.format(**fields))
    (control / "conffiles").write_text("/etc/mayfly/mayfly.env\n")
    only = '#!/bin/sh\nset -e\n[ "$1" = {} ] || exit 0\n'
    scripts = {
        "postinst": only.format("configure") + _script("installed"),
        "prerm": only.format("remove") + _script("removing"),
        "postrm": only.format("purge") + _script("removed"),
    }
    for name, text in scripts.items():
        (control / name).write_text(text)
        (control / name).chmod(0o755)
    _set_times(package)
    output = directory / f"mayfly_{VERSION}_{architecture}.deb"
    _run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", package, output)
    return output


def make_rpm(tree: Path, directory: Path, machine: str) -> Path:
    """Return the package for Fedora, RHEL, SUSE and the like."""
    top = tree.with_name(f"{machine}-rpm")
    top.mkdir()
    paths = [f"/{path.relative_to(tree)}" for path in sorted(tree.rglob("*")) if path.is_file()]
    entries = [f'"{path}"' for path in paths if path != "/etc/mayfly/mayfly.env"]
    # Without an owner they would stay when the last file in them is removed.
    found = (path.relative_to(tree) for path in sorted(tree.rglob("*")) if path.is_dir())
    entries += [f'%dir "/{path}"' for path in found if RPM_OWNS.fullmatch(str(path))]
    files = "\n".join(entries)
    scripts = {name: _script(name) for name in ("installed", "removing", "removed")}
    spec = SPEC.format(version=VERSION, summary=SUMMARY, tree=tree, files=files, **scripts)
    (top / "mayfly.spec").write_text(spec)
    macros = {"_topdir": str(top), **RPM_MACROS}
    defines = [word for name, value in macros.items() for word in ("--define", f"{name} {value}")]
    _run("rpmbuild", "-bb", "--quiet", "--target", machine, *defines, top / "mayfly.spec")
    (made,) = top.glob("RPMS/*/*.rpm")
    return Path(shutil.copy(made, directory))


def make_image(one_files: dict[str, Path], directory: Path) -> Path:
    """Return the container image as an OCI archive: one index, and no base."""
    blobs: dict[str, bytes] = {}

    def add(data: bytes, media_type: str) -> dict[str, object]:
        digest = _sha256(data)
        blobs[f"blobs/sha256/{digest}"] = data
        return {
            "mediaType": f"application/vnd.oci.image.{media_type}",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    def add_json(document: object, media_type: str) -> dict[str, object]:
        return add(json.dumps(document, sort_keys=True).encode(), media_type)

    manifests = []
    for machine, one_file in one_files.items():
        layer = _layer(one_file)
        config = {
            "architecture": MACHINES[machine],
            "os": "linux",
            "config": {
                "User": f"{USER}:{USER}",
                "Entrypoint": ["/usr/bin/mayfly"],
                "Cmd": ["serve"],
                "Env": [
                    "PATH=/usr/bin",
                    "MAYFLY_ROOT=/var/lib/mayfly",
                    "MAYFLY_STATE_DIR=/var/lib/mayfly/state",
                    "MAYFLY_LISTEN=0.0.0.0:5000",
                ],
                "Volumes": {"/var/lib/mayfly": {}, "/run/mayfly": {}},
                "ExposedPorts": {"5000/tcp": {}},
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer)}"]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": add_json(config, "config.v1+json"),
            "layers": [add(gzip.compress(layer, 6, mtime=0), "layer.v1.tar+gzip")],
        }
        entry = add_json(manifest, "manifest.v1+json")
        manifests.append(entry | {"platform": {"os": "linux", "architecture": MACHINES[machine]}})
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    }
    names = {
        "io.containerd.image.name": IMAGE,
        "org.opencontainers.image.ref.name": IMAGE,
    }
    top = {"schemaVersion": 2, "manifests": [add_json(index, "index.v1+json")]}
    top["manifests"][0]["annotations"] = names
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', **blobs}
    files["index.json"] = json.dumps(top).encode()
    output = directory / f"mayfly-{VERSION}-oci.tar"
    with tarfile.open(output, "w") as archive:
        for name, data in files.items():
            archive.addfile(_member(name, len(data)), io.BytesIO(data))
    return output


def _layer(one_file: Path) -> bytes:
    """Return the only layer, as a tar: the one file, and the directories that it writes to."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, mode, owner in (
            ("tmp", 0o1777, 0),
            ("run/mayfly", 0o755, USER),
            ("var/lib/mayfly", 0o755, USER),
        ):
            info = _member(name, 0, mode)
            info.type, info.uid, info.gid = tarfile.DIRTYPE, owner, owner
            archive.addfile(info)
        data = one_file.read_bytes()
        archive.addfile(_member("usr/bin/mayfly", len(data), 0o755), io.BytesIO(data))
    return made.getvalue()


def make_wheelhouse(wheels: Path, directory: Path) -> Path:
    """Return Mayfly and its dependencies as wheels, for several versions of Python."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = project["project"]["dependencies"] + project["build-system"]["requires"]
    wanted += [one for name, extra in extras.items() if name != "dev" for one in extra]
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    machine = platform.machine()
    for version in PYTHONS:
        _run(
            *(*pip, "download", "--dest", wheels, "--only-binary", ":all:"),
            *("--implementation", "cp", "--python-version", version),
            *("--platform", f"manylinux_{OLDEST_GLIBC}_{machine}"),
            *("--platform", f"manylinux2014_{machine}"),
            *wanted,
        )
    _run(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, TOP)
    output = directory / f"mayfly-{VERSION}-wheels-linux-{machine}.tar"
    bill = json.dumps(list_wheels(wheels), indent=1).encode() + b"\n"
    output.with_suffix(".cdx.json").write_bytes(bill)
    with tarfile.open(output, "w") as archive:
        for path in sorted(wheels.iterdir()):
            data = path.read_bytes()
            archive.addfile(_member(f"wheels/{path.name}", len(data)), io.BytesIO(data))
    return output


def list_wheels(wheels: Path) -> dict[str, object]:
    """Return the list of the wheelhouse's contents in CycloneDX 1.6."""
    found = []
    for path in sorted(wheels.iterdir()):
        name, version = path.name.split("-")[:2]
        one = cyclonedx.distribution(name, version)
        one["purl"] = f"{one['purl']}?file_name={path.name}"
        one["hashes"] = cyclonedx.hashes(path)
        found.append(one)
    return cyclonedx.bill(found, VERSION)


def _member(name: str, size: int, mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, mode, int(os.environ["SOURCE_DATE_EPOCH"])
    return info


def _script(name: str) -> str:
    return (HERE / f"{name}.sh").read_text()


def _set_times(tree: Path) -> None:
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    for path in (*tree.rglob("*"), tree):
        os.utime(path, (epoch, epoch))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _run(*words: str | Path) -> None:
    try:
        subprocess.run([*map(str, words)], check=True, stdout=subprocess.DEVNULL, timeout=900)
    except FileNotFoundError:
        raise SystemExit(f"{words[0]} is not installed (Debian: dpkg, rpm)") from None


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else TOP / "dist")
