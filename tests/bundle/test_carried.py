"""What refers to an image goes with it: by export, import and differences; and ls shows it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.manifest import Manifest
from tests.support.commands import mayfly_here
from tests.support.images import (
    FOREIGN_TYPE,
    descriptor,
    image_body,
    index_body,
    push,
    put,
    read,
    subject_of,
)

LAYER, FOREIGN, SIGNATURE = b"layer" * 100, b"foreign" * 100, b"signature" * 100
APP = "team/app"


@dataclass
class Signed:
    """A store with one image and all that can refer to one.

    Attributes:
        root: of the store.
        found: every manifest by a name.
    """

    root: Path
    found: dict[str, Digest]

    def path(self, digest: Digest) -> Path:
        """The file of a blob."""
        blobs = self.root / "docker/registry/v2/blobs"
        return blobs / digest.algorithm / digest.hex[:2] / digest.hex / "data"


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    """An index with an attestation; signatures of it and of a platform, signed, with an SBOM."""
    root = tmp_path / "root"
    found: dict[str, Digest] = {}
    with closing(DistributionStore(root)) as store:
        for data in (b"{}", LAYER, FOREIGN, SIGNATURE):
            push(store, APP, data)

        def add(name: str, body: bytes, *tags: str) -> Manifest:
            manifest, found[name] = put(store, APP, body, *tags)
            return manifest

        def sign(name: str, subject: Manifest, *tags: str) -> Manifest:
            fields: dict[str, Any] = {"subject": subject_of(subject)}
            fields["artifactType"] = f"example/{name}"
            return add(name, image_body(b"{}", [SIGNATURE], **fields), *tags)

        layers = [descriptor(LAYER), descriptor(FOREIGN, FOREIGN_TYPE, urls=["https://x.test/"])]
        platform = add("platform", image_body(layers=layers))
        attestation = add("attestation", image_body(annotations={"in-toto": "yes"}))
        children = [
            descriptor(platform.body, platform.media_type),
            descriptor(
                attestation.body,
                attestation.media_type,
                annotations={"vnd.docker.reference.digest": str(found["platform"])},
            ),
        ]
        index = add("index", index_body(manifests=children), "1")
        signature = sign("signature", index)
        sign("countersignature", signature)
        sign("sbom", platform)
        cosign = image_body(annotations={"cosign": "2"})
        add("cosign", cosign, f"sha256-{found['index'].hex}.sig")
        add(
            "of the cosign", image_body(annotations={"b": "c"}), f"sha256-{found['cosign'].hex}.att"
        )
    return Signed(root, found)


def _revisions(root: Path) -> set[Digest]:
    with closing(DistributionStore(root)) as store:
        return set(store.revisions(APP))


def test_all_of_it_is_carried(signed: Signed, tmp_path: Path) -> None:
    """Exported by its name alone, imported elsewhere: every manifest, tag and blob is there."""
    output, target = tmp_path / "out.tar", tmp_path / "target"
    done = mayfly_here("export", f"{APP}:1", "--root", signed.root, "-o", output)
    assert done.returncode == 0, done.stderr
    assert "1 image, 5 signatures and attestations" in done.stdout
    done = mayfly_here("import", output, "--root", target)
    assert done.returncode == 0, done.stderr
    assert _revisions(target) == set(signed.found.values())
    with (
        closing(DistributionStore(target)) as store,
        closing(DistributionStore(signed.root)) as old,
    ):
        assert store.tags(APP) == old.tags(APP)
        for digest in signed.found.values():
            assert read(store.manifest(APP, digest)) == read(old.manifest(APP, digest))
        for data in (LAYER, FOREIGN, SIGNATURE):
            assert read(store.blob(APP, digests.of(data))) == data
    again = tmp_path / "again.tar"
    assert mayfly_here("export", "--all", "--root", target, "-o", again).returncode == 0
    done = mayfly_here("ls", again, "--json")
    assert {one["name"]: len(one["referrers"]) for one in json.loads(done.stdout)["images"]} == {
        f"{APP}:1": 5,
        f"{APP}:sha256-{signed.found['index'].hex}.sig": 1,
        f"{APP}:sha256-{signed.found['cosign'].hex}.att": 0,
    }


def test_differences_carry_it_too(signed: Signed, tmp_path: Path) -> None:
    """With --have the target gets the signatures of an image that it has already."""
    bare, delta, target = (tmp_path / name for name in ("bare.tar", "delta.tar", "target"))
    root = ("--root", signed.root)
    assert mayfly_here("export", "--all", "--no-referrers", *root, "-o", bare).returncode == 0
    assert mayfly_here("import", bare, "--root", target).returncode == 0
    assert _revisions(target) == {signed.found[n] for n in ("index", "platform", "attestation")}
    done = mayfly_here("export", "--all", *root, "-o", delta, "--have", bare)
    assert done.returncode == 0, done.stderr
    assert delta.stat().st_size < 40_000
    assert mayfly_here("import", delta, "--root", target).returncode == 0
    assert _revisions(target) == set(signed.found.values())


@pytest.mark.parametrize("is_gone", [True, False])
def test_what_cannot_be_carried_is_named(signed: Signed, tmp_path: Path, is_gone: bool) -> None:
    """A signature whose bytes are gone or corrupt is an error; the image is exported."""
    path = signed.path(digests.of(SIGNATURE))
    if is_gone:
        path.unlink()
    else:
        path.write_bytes(SIGNATURE[::-1])
    output = tmp_path / "out.tar"
    done = mayfly_here("export", f"{APP}:1", "--root", signed.root, "-o", output)
    assert done.returncode == 4
    for name in ("signature", "countersignature", "sbom"):
        assert f"{APP}@{signed.found[name]}: " in done.stderr
    assert mayfly_here("import", output, "--root", tmp_path / "target").returncode == 0
    lost = {signed.found[name] for name in ("signature", "countersignature", "sbom")}
    assert _revisions(tmp_path / "target") == set(signed.found.values()) - lost


def test_inspect_shows_it(signed: Signed) -> None:
    """Each with its subject and kind; the attestation with what it attests to."""
    done = mayfly_here("inspect", f"{APP}:1", "--root", signed.root, "--json")
    document = json.loads(done.stdout)
    found = {name: str(digest) for name, digest in signed.found.items()}
    assert {(one["digest"], one["subject"]) for one in document["referrers"]} == {
        (found["signature"], found["index"]),
        (found["countersignature"], found["signature"]),
        (found["sbom"], found["platform"]),
        (found["cosign"], found["index"]),
        (found["of the cosign"], found["cosign"]),
    }
    attests = {one["digest"]: one["attests"] for one in document["platforms"]}
    assert attests == {found["platform"]: None, found["attestation"]: found["platform"]}
    text = mayfly_here("inspect", f"{APP}:1", "--root", signed.root).stdout
    assert f"attestation of {found['platform']}" in text
    assert "example/countersignature" in text
    assert "5 referrers" in mayfly_here("ls", "--root", signed.root).stdout
