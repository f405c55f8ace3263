"""Bundles of other makers, made by their documented forms: one function for each maker.

docs/bundles.md says which forms were compared with the output of the maker's own tool.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import zstandard

from tests.bundle.builders import (
    FULL_NAME,
    REF_NAME,
    Layout,
    Object,
    blob_name,
    document,
    layers,
    tar,
)

Files = dict[str, bytes]

APP = "quay.example/team/app"
BASE = "docker.io/library/base"
LOCAL = "registry.example:5000/tool"


@dataclass
class Content:
    """The images that every maker's bundle in these tests has.

    Attributes:
        layout: keeps their bytes.
        images: full name with a tag → descriptor.
    """

    layout: Layout = field(default_factory=Layout)
    images: dict[str, Object] = field(default_factory=dict)

    def data(self, digest: str) -> bytes:
        """The bytes of a digest."""
        return self.layout.files[blob_name(digest)]

    def manifests(self, descriptor: Object) -> Iterator[Object]:
        """A manifest's descriptor and those below it."""
        yield descriptor
        for child in json.loads(self.data(descriptor["digest"])).get("manifests", ()):
            yield from self.manifests(child)

    def blobs(self, descriptor: Object) -> Iterator[Object]:
        """Configs and layers below a manifest."""
        for one in self.manifests(descriptor):
            body = json.loads(self.data(one["digest"]))
            if "layers" in body:
                yield from (body["config"], *body["layers"])

    def all_blobs(self) -> dict[str, bytes]:
        """Digest → bytes of every config and layer."""
        found = [blob["digest"] for image in self.images.values() for blob in self.blobs(image)]
        return {digest: self.data(digest) for digest in found}


def content() -> Content:
    """An image of two layers, an index of two platforms, and an image from a host with a port."""
    made = Content()
    one, two, three = layers("one", "two", "three")
    layout = made.layout
    made.images[f"{APP}:1"] = layout.image(one, two, compress=True)
    amd64, arm64 = (
        layout.image(one, three, compress=True, architecture=name) for name in ("amd64", "arm64")
    )
    platforms = [
        one | {"platform": {"os": "linux", "architecture": name}}
        for one, name in ((amd64, "amd64"), (arm64, "arm64"))
    ]
    made.images[f"{BASE}:2"] = layout.index(*platforms)
    made.images[f"{LOCAL}:3"] = layout.image(three, compress=True)
    return made


def _split(name: str) -> tuple[str, str, str]:
    """Host, repository and tag."""
    host, _, rest = name.partition("/")
    repository, _, tag = rest.rpartition(":")
    return host, repository, tag


def _layout_files(made: Content, entries: list[Object]) -> Files:
    made.layout.entries = entries
    return made.layout.all_files()


def hauler(made: Content) -> Files:
    """``hauler store add image`` and ``store save``; with a signature, a chart and a referrer."""
    entries, exports = [], []
    for name, image in made.images.items():
        kind = "imageIndex" if "index" in image["mediaType"] else "image"
        entries.append(image | {"annotations": _haul(name, kind)})
        config = next(made.blobs(image))
        below = [blob_name(blob["digest"]) for blob in made.blobs(image) if blob != config]
        exports.append({"Config": blob_name(config["digest"]), "RepoTags": [name], "Layers": below})
    name, image = next(iter(made.images.items()))
    layout = made.layout
    signature = layout.image(b"signature")
    entries.append(signature | {"annotations": _haul(name, "sigs")})
    referrer = layout.image(b"attestation", subject=image)
    number = referrer["digest"].removeprefix("sha256:")
    entries.append(referrer | {"annotations": _haul(name, f"referrers/{number}")})
    chart = layout.image(b"chart")
    notes = {"kind": "dev.hauler/image", REF_NAME: "hauler/chart:1.2.3"}
    entries.append(chart | {"annotations": notes})
    return _layout_files(made, entries) | {"manifest.json": document(exports)}


def _haul(name: str, kind: str) -> dict[str, str]:
    host, repository, tag = _split(name)
    return {
        "kind": f"dev.hauler/{kind}",
        REF_NAME: f"{repository}:{tag}",
        FULL_NAME: f"{'index.docker.io' if host == 'docker.io' else host}/{repository}:{tag}",
        "hauler.dev/original-ref": name,
    }


def zarf(made: Content) -> Files:
    """``zarf package create`` with ``metadata.uncompressed``."""
    base = "org.opencontainers.image.base.name"
    entries = [
        image | {"annotations": {REF_NAME: name, base: name}} for name, image in made.images.items()
    ]
    layout = {f"images/{k}": v for k, v in _layout_files(made, entries).items()}
    files = {**layout, "sboms.tar": tar({}), "components/one.tar": tar({"x": b"y"})}
    return {**files, **zarf_documents(files)}


def zarf_documents(files: Mapping[str, bytes]) -> Files:
    """The documents of a package with these other files."""
    lines = sorted(f"{hashlib.sha256(data).hexdigest()} {name}" for name, data in files.items())
    sums = "".join(f"{line}\n" for line in lines).encode()
    aggregate = hashlib.sha256(sums).hexdigest()
    definition = (
        "kind: ZarfPackageConfig\n"
        "metadata:\n"
        "  name: upgrade\n"
        "  uncompressed: true\n"
        f"  aggregateChecksum: {aggregate}\n"
    )
    return {"checksums.txt": sums, "zarf.yaml": definition.encode()}


def distribution(made: Content, base: str) -> Files:
    """A registry's directory below ``base``; as there, without hosts in names."""
    files: Files = {}
    for name, image in made.images.items():
        _, repository, tag = _split(name)
        top = f"{base}/repositories/{repository}"
        for blob in made.blobs(image):
            encoded = blob["digest"].removeprefix("sha256:")
            files[f"{top}/_layers/sha256/{encoded}/link"] = blob["digest"].encode()
        for one in made.manifests(image):
            encoded = one["digest"].removeprefix("sha256:")
            link = one["digest"].encode()
            files[f"{top}/_manifests/revisions/sha256/{encoded}/link"] = link
        link, encoded = image["digest"].encode(), image["digest"].removeprefix("sha256:")
        files[f"{top}/_manifests/tags/{tag}/current/link"] = link
        files[f"{top}/_manifests/tags/{tag}/index/sha256/{encoded}/link"] = link
    for file, data in made.layout.files.items():
        if file.startswith("blobs/sha256/"):
            encoded = file.removeprefix("blobs/sha256/")
            files[f"{base}/blobs/sha256/{encoded[:2]}/{encoded}/data"] = data
    return files


def oc_mirror(made: Content, base: str = "docker/registry/v2") -> tuple[Files, ...]:
    """``oc mirror --v2`` to disk: three archives, the links in the first."""
    files = distribution(made, base)
    links = {name: data for name, data in files.items() if "/repositories/" in name}
    blobs = sorted((name, data) for name, data in files.items() if "/blobs/" in name)
    half = len(blobs) // 2
    last = {"working-dir/info/x.json": b"{}", "isc_2026-01-01T00:00:00Z": b"kind: x\n"}
    return links | dict(blobs[:half]), dict(blobs[half:]), last


def sealos(made: Content) -> Files:
    """The root of a sealos cluster image, unpacked."""
    top = {"Kubefile": b"FROM scratch\n", "manifests/app.yaml": b"kind: Pod\n"}
    return top | distribution(made, "registry/docker/registry/v2")


def talos(made: Content) -> Files:
    """``talosctl images cache-create --layout=flat``."""
    files: Files = {}
    for name, image in made.images.items():
        host, repository, tag = _split(name)
        host, colon, port = host.partition(":")
        top = f"manifests/{host}_{port}_" if colon else f"manifests/{host}"
        files[f"{top}/{repository}/reference/{tag}"] = made.data(image["digest"])
        for one in made.manifests(image):
            file = one["digest"].replace(":", "-")
            files[f"{top}/{repository}/digest/{file}"] = made.data(one["digest"])
    blobs = made.all_blobs()
    return files | {f"blob/{digest.replace(':', '-')}": data for digest, data in blobs.items()}


def kubekey(made: Content) -> Files:
    """The images of a KubeKey 4 artifact."""
    files: Files = {}
    for name, image in made.images.items():
        host, repository, tag = _split(name)
        host = "registry-1.docker.io" if host == "docker.io" else host
        top = f"{host}/{repository}/manifests"
        files[f"{top}/layout"] = document({tag: image["digest"]})
        for one in made.manifests(image):
            files[f"{top}/{one['digest']}"] = made.data(one["digest"])
    return files | {f"blobs/{digest}": data for digest, data in made.all_blobs().items()}


def imgpkg(made: Content) -> Files:
    """``imgpkg copy --to-tar``."""
    entries: list[Object] = []
    files: Files = {}
    for name, image in made.images.items():
        repository, _, tag = name.rpartition(":")
        repository = repository.replace("docker.io", "index.docker.io")
        entries.append(_described(made, image, repository, tag))
        for blob in made.blobs(image):
            if "config" not in blob["mediaType"]:
                file = f"{blob['digest'].replace(':', '-')}.tar.gz"
                files[file] = made.data(blob["digest"])
    return {"manifest.json": document(entries)} | files


def _described(made: Content, one: Object, repository: str, tag: str) -> Object:
    body = json.loads(made.data(one["digest"]))
    common = {
        "Refs": [f"{repository}@{one['digest']}"],
        "Tag": tag,
        "OrigRef": "",
        "Labels": None,
    }
    if "manifests" in body:
        below = [_described(made, child, repository, tag)["Image"] for child in body["manifests"]]
        index = {
            "Images": below,
            "Indexes": None,
            "MediaType": one["mediaType"],
            "Digest": one["digest"],
            "Raw": made.data(one["digest"]).decode(),
        }
        return {"ImageIndex": common | index, "Image": None}
    described = {
        "Layers": [
            {
                "MediaType": layer["mediaType"],
                "Digest": layer["digest"],
                "DiffID": "",
                "Size": layer["size"],
            }
            for layer in body["layers"]
        ],
        "Config": {
            "Digest": body["config"]["digest"],
            "Raw": made.data(body["config"]["digest"]).decode(),
        },
        "Manifest": {
            "MediaType": one["mediaType"],
            "Digest": one["digest"],
            "Raw": made.data(one["digest"]).decode(),
        },
    }
    return {"ImageIndex": None, "Image": common | described}


class Maker(NamedTuple):
    """A maker's bundle in these tests.

    Attributes:
        name: as `mayfly ls` gives it; None for formats of no single maker.
        make: the files of each archive or directory.
        form: "tar", "directory", or "zst" for a seekable zstd file.
        hosts: whether it records the hosts of names.
    """

    name: str
    make: Callable[[Content], tuple[Files, ...]]
    form: str
    hosts: bool = True


def _one(make: Callable[[Content], Files]) -> Callable[[Content], tuple[Files, ...]]:
    return lambda made: (make(made),)


def _below(directory: str, make: Callable[[Content], Files]) -> Callable[[Content], Files]:
    return lambda made: {f"{directory}/{name}": data for name, data in make(made).items()}


MAKERS = {
    "hauler-store": Maker("hauler", _one(hauler), "directory"),
    "hauler-tar": Maker("hauler", _one(hauler), "tar"),
    "zarf": Maker("zarf", _one(zarf), "tar"),
    "zarf-directory": Maker("zarf", _one(zarf), "directory"),
    "oc-mirror": Maker("oc-mirror", oc_mirror, "tar", hosts=False),
    "oc-mirror-prefix": Maker(
        "oc-mirror", lambda made: oc_mirror(made, "docker/v2"), "tar", hosts=False
    ),
    "sealos": Maker("sealos", _one(sealos), "directory", hosts=False),
    "sealos-tar": Maker("sealos", _one(sealos), "tar", hosts=False),
    "talos": Maker("Talos", _one(talos), "directory"),
    "talos-tar": Maker("Talos", _one(talos), "tar"),
    "kubekey": Maker("KubeKey", _one(kubekey), "directory"),
    "kubekey-artifact": Maker("KubeKey", _one(_below("kubekey/images", kubekey)), "tar"),
    "imgpkg": Maker("imgpkg", _one(imgpkg), "tar"),
    "hauler-zst": Maker("hauler", _one(hauler), "zst"),
    "sealos-zst": Maker("sealos", _one(sealos), "zst", hosts=False),
}


def seekable(data: bytes, frame: int = 3000, checksums: bool = False) -> bytes:
    """A seekable zstd file with frames of this many bytes."""
    compressor = zstandard.ZstdCompressor()
    out, entries = b"", b""
    for at in range(0, len(data), frame):
        piece = data[at : at + frame]
        packed = compressor.compress(piece)
        out += packed
        entries += struct.pack("<II", len(packed), len(piece)) + b"sums" * checksums
    return out + seek_table(entries, -(-len(data) // frame), checksums)


def seek_table(entries: bytes, count: int, checksums: bool = False) -> bytes:
    """The list of frames at the end of a seekable file."""
    footer = struct.pack("<IBI", count, 0x80 * checksums, 0x8F92EAB1)
    return struct.pack("<II", 0x184D2A5E, len(entries) + len(footer)) + entries + footer


def pack(maker: Maker, archive: bytes) -> bytes:
    """A tar as the maker's form has it."""
    return seekable(archive) if maker.form == "zst" else archive


def write(maker: Maker, files: tuple[Files, ...], place: Path) -> list[Path]:
    """Write a bundle; its paths."""
    paths = []
    for number, part in enumerate(files, 1):
        name = f"mirror_{number:06}.tar" if maker.name == "oc-mirror" else f"bundle.{maker.form}"
        path = place / name
        if maker.form != "directory":
            path.write_bytes(pack(maker, tar(part)))
        else:
            for file, data in part.items():
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                (path / file).write_bytes(data)
        paths.append(path)
    return paths
