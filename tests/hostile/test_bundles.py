"""Attacks by what a bundle lists: the same thing very often, or very much of it."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest
import zstandard

from tests.bundle.builders import Layout, docker_archive, document, layers, tar_info, tar_of, write
from tests.bundle.makers import seek_table
from tests.hostile.harness import Hostile
from tests.support.images import digest_of

MIB = 1024 * 1024
ONE = layers("one")[0]


def _one_config_often(path: Path) -> int:
    """One config of 9 MiB, named 500 times."""
    files = docker_archive((["a:1"], [ONE]))
    entry = json.loads(files["manifest.json"])[0]
    config = json.loads(files[entry["Config"]]) | {"comment": "x" * 9 * MIB}
    files[entry["Config"]] = document(config)
    files["manifest.json"] = document([entry | {"RepoTags": [f"a:{n}"]} for n in range(500)])
    write(path, files)
    return 0


def _many_images(path: Path) -> int:
    """A manifest.json of 50,000 images."""
    files = docker_archive((["a:1"], [ONE]))
    entry = json.loads(files["manifest.json"])[0]
    entries = [entry | {"RepoTags": [f"a:{n}"]} for n in range(50_000)]
    files["manifest.json"] = document(entries)
    write(path, files)
    return 0


def _one_layer_often(path: Path) -> int:
    """One layer of a docker archive, named 480,000 times by its image."""
    files = docker_archive((["a:1"], [ONE]))
    entry = json.loads(files["manifest.json"])[0]
    files["l"] = files.pop(entry["Layers"][0])
    files[entry["Config"]] = b"{}"
    files["manifest.json"] = document([entry | {"Layers": ["l"] * 480_000}])
    write(path, files)
    return 5


def _many_layers(path: Path) -> int:
    """A docker archive of 45 images with 6,600 layers each, all in the same file."""
    files = docker_archive((["a:1"], [ONE]))
    entry = json.loads(files["manifest.json"])[0]
    files["l"] = files.pop(entry["Layers"][0])
    digest = json.loads(files.pop(entry["Config"]))["rootfs"]["diff_ids"][0]
    entries = []
    for number in range(45):
        count = 6_600 + number
        files[f"c{number}"] = document({"rootfs": {"diff_ids": [digest] * count}})
        tags = [f"a:{number}"]
        entries.append({"Config": f"c{number}", "RepoTags": tags, "Layers": ["l"] * count})
    files["manifest.json"] = document(entries)
    write(path, files)
    return 0


def _names_that_are_none(path: Path) -> int:
    """A docker archive of 50,000 images, each with a long name that is none."""
    files = docker_archive((["a:1"], [ONE]))
    entry = {"Config": "c", "Layers": []}
    files["c"] = b"{}"
    entries = [entry | {"RepoTags": [f"{number}" + "\x7f" * 250]} for number in range(50_000)]
    # As it is and not escaped, so that more of it goes into a document.
    files["manifest.json"] = json.dumps(entries, ensure_ascii=False).encode()
    write(path, files)
    return 0


def _one_manifest_often(path: Path) -> int:
    """An index.json that names one manifest 100,000 times."""
    layout = Layout()
    entry = layout.image(ONE)
    small = {"digest": entry["digest"]}
    layout.entries = [small] * 100_000
    layout.write_tar(path)
    return 0


def _one_manifest_under_many_names(path: Path) -> int:
    """An image of 5,000 layers in 10,000 repositories: 50 million links."""
    layout = Layout()
    config = layout.add(b"{}", "application/vnd.oci.image.config.v1+json")
    names = [digest_of(str(n).encode()) for n in range(5000)]
    absent = [config | {"digest": name} for name in names]
    body = {"schemaVersion": 2, "config": config, "layers": absent}
    manifest = layout.add(document(body), "application/vnd.oci.image.manifest.v1+json")
    for number in range(10_000):
        layout.name(manifest, f"quay.io/app{number}:1")
    layout.write_tar(path)
    return 5


def _names_by_config(path: Path) -> int:
    """One config with 50,000 names, and 50,000 entries that look for theirs there."""
    layout = Layout()
    entry = layout.image(ONE)
    config = json.loads(layout.files[f"blobs/{entry['digest'].replace(':', '/')}"])["config"]
    layout.entries = [
        {"digest": entry["digest"], "annotations": {"org.opencontainers.image.ref.name": str(n)}}
        for n in range(30_000)
    ]
    name = f"blobs/{config['digest'].replace(':', '/')}"
    tags = [f"a:{n}" for n in range(50_000)]
    layout.files["manifest.json"] = document([{"Config": name, "RepoTags": tags, "Layers": []}])
    layout.write_tar(path)
    return 5


def _objects(path: Path) -> int:
    """An index.json of 15 MiB of small objects."""
    layout = Layout()
    files = layout.all_files() | {"index.json": b"[" + b'{"":0},' * 2_100_000 + b"0]"}
    write(path, files)
    return 5


def _long_names(path: Path) -> int:
    """A tar with 400 MiB of names."""
    with path.open("wb") as file:
        info = tar_info("x")
        for number in range(1000):
            info.name = f"{number:04}" + "n" * 400_000
            file.write(info.tobuf(tarfile.PAX_FORMAT))
        file.write(bytes(1024))
    return 5


def _many_members(path: Path) -> int:
    """A tar of 300,000 empty members."""
    header = bytearray(tar_info("0" * 20).tobuf(tarfile.USTAR_FORMAT))
    out = io.BytesIO()
    checksum = sum(header) - sum(header[148:156]) + 8 * 32
    for number in range(300_000):
        name = b"%020d" % number
        header[:20] = name
        total = checksum - 20 * 48 + sum(name)
        header[148:156] = b"%06o\0 " % total
        out.write(header)
    path.write_bytes(out.getvalue() + bytes(1024))
    return 5


def _pax_records(path: Path) -> int:
    """A pax header of 200,000 records, ten times."""
    record = b"6 a=b\n"
    body = record * (MIB // len(record))
    info = tar_info("pax", body, type=tarfile.XHDTYPE)
    member = (info, body)
    members: list[tuple[tarfile.TarInfo, bytes] | tarfile.TarInfo] = [member, tar_info("x")]
    path.write_bytes(tar_of(*members * 10, format=tarfile.USTAR_FORMAT))
    return 5


def _referrers_in_reverse(path: Path) -> int:
    """A chain of 10,000 artifacts, each referring to the one that is listed after it."""
    layout = Layout()
    subject = layout.image(ONE)
    layout.name(subject, "quay.io/a:1")
    chain = []
    for _ in range(10_000):
        subject = layout.image(subject=subject)
        chain.append({"digest": subject["digest"]})
    layout.entries += reversed(chain)
    layout.write_tar(path)
    return 0


def _fast_tar(path: Path, names: Iterator[bytes], data: bytes = b"") -> None:
    """A tar of files with the same bytes."""
    header = bytearray(tar_info("x", data).tobuf(tarfile.USTAR_FORMAT))
    padded = data + bytes(-len(data) % 512)
    with path.open("wb") as file:
        for name in names:
            header[:100] = name.ljust(100, b"\0")
            total = sum(header) - sum(header[148:156]) + 8 * 32
            header[148:156] = b"%06o\0 " % total
            file.write(header + padded)
        file.write(bytes(1024))


def _talos_repositories(path: Path) -> int:
    """A Talos cache of 120,000 repositories, each with a tag that is none of its manifests."""
    names = (b"manifests/a.io/r%06d/reference/1" % number for number in range(120_000))
    _fast_tar(path, chain([b"blob/x"], names), b"{}")
    return 5


def _talos_depth(path: Path) -> int:
    """A Talos cache of 20,000 directories that are 40 deep, without an image."""
    names = (b"manifests/a.io/" + b"a/" * 38 + b"%05d" % number for number in range(20_000))
    _fast_tar(path, chain([b"blob/x"], names))
    return 0


def _kubekey_tags(path: Path) -> int:
    """A KubeKey directory with 240,000 tags for one manifest that is not there."""
    digest = digest_of(b"absent")
    files = {
        f"blobs/{digest}": b"absent",
        "a.io/a/manifests/layout": document({f"t{n}": digest for n in range(240_000)}),
    }
    write(path, files)
    return 5


def _imgpkg_images(path: Path) -> int:
    """An imgpkg tar of 9,000 images with a config of 1 KiB each, the same manifest in all."""
    config, manifest = "{}" + " " * 1000, '{"schemaVersion":2,"layers":[]}'
    entry = {
        "Refs": ["a.io/a@" + digest_of(b"")],
        "Config": {"Digest": digest_of(config.encode()), "Raw": config},
        "Manifest": {"Digest": digest_of(manifest.encode()), "Raw": manifest},
    }
    write(path, {"manifest.json": document([{"Image": entry}] * 9_000)})
    return 0


def _imgpkg_nesting(path: Path) -> int:
    """An imgpkg tar whose index nests 60 deep, 8 wide on its first two levels."""
    nested: dict[str, object] = {"Refs": [], "Raw": "{}", "Digest": digest_of(b"{}")}
    for level in range(28):
        nested = {"Refs": [], "Indexes": [nested] * (8 if level > 25 else 1)}
    write(path, {"manifest.json": document([{"ImageIndex": nested}])})
    return 5


def _links_of_a_registry(path: Path) -> int:
    """A registry's directory in a tar: 80,000 repositories with a tag each, all to nothing."""
    base = b"docker/registry/v2/repositories/r%06d/_manifests/tags/1/current/link"
    link = digest_of(b"absent").encode()
    _fast_tar(path, (base % number for number in range(80_000)), link)
    return 0


def _zarf_sums(path: Path) -> int:
    """A zarf package whose list of sums has 200,000 lines, and whose definition is 8 MiB long."""
    sums = b"".join(b"%064x f%06d\n" % (number, number) for number in range(200_000))
    layout = Layout()
    layout.name(layout.image(ONE), "quay.io/a:1")
    files = {f"images/{name}": data for name, data in layout.all_files().items()}
    definition = b"  aggregateChecksum: " * (8 * MIB // 22)
    write(path, files | {"zarf.yaml": definition, "checksums.txt": sums})
    return 5


def _frames(path: Path) -> int:
    """A zstd file of 900,000 frames of one byte each: a tar whose only file is long."""
    header = tar_info("x", bytes(899_999 - 512)).tobuf(tarfile.USTAR_FORMAT)
    frames = {bytes([byte]): zstandard.compress(bytes([byte])) for byte in range(256)}
    made = [frames[header[at : at + 1]] for at in range(512)]
    made += [frames[b"x"]] * (900_000 - 512)
    table = b"".join(struct.pack("<II", len(frame), 1) for frame in made)
    path.write_bytes(b"".join(made) + seek_table(table, len(made)))
    return 5


ATTACKS: list[Callable[[Path], int]] = [
    _one_config_often,
    _many_images,
    _one_layer_often,
    _many_layers,
    _names_that_are_none,
    _one_manifest_often,
    _one_manifest_under_many_names,
    _names_by_config,
    _objects,
    _long_names,
    _many_members,
    _pax_records,
    _referrers_in_reverse,
    _talos_repositories,
    _talos_depth,
    _kubekey_tags,
    _imgpkg_images,
    _imgpkg_nesting,
    _links_of_a_registry,
    _zarf_sums,
    _frames,
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_bundle_of_too_much(
    hostile: Hostile, tmp_path: Path, attack: Callable[[Path], int]
) -> None:
    """It is opened in time that grows with its size alone, or refused in one line."""
    code = attack(tmp_path / "b.tar")
    assert attack.__doc__ is not None
    (tmp_path / "r").mkdir()
    # Of all commands the one that opens a bundle and does little else.
    done = hostile.command(
        attack.__doc__, "export", "--all", "-o", tmp_path / "out.tar", "--root", tmp_path / "r",
        "--have", tmp_path / "b.tar",
        before="13 s for ten names of one config" if attack is _one_config_often else "",
    )  # fmt: skip
    assert done.returncode == code, done.stderr[-2000:]
    if code:
        assert len(done.stderr.splitlines()) == 1
