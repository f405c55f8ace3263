"""Content: digests, descriptors, manifests, and blobs pushed to a store as handlers push them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.digest import Digest
from mayfly.storage.interface import Content, Extent, Store
from mayfly.storage.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Manifest

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
FOREIGN_TYPE = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of data as text, as clients write it."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def read(content: Content) -> bytes:
    """All bytes of content."""
    with content.open() as opened:
        return opened.read(0, content.size)


def file_of(content: Content) -> Path:
    """The file that content lies in."""
    assert isinstance(content, Extent)
    return content.path


def push(store: Store, repository: str, data: bytes, algorithm: str = "sha256") -> Digest:
    """Upload a blob in one piece."""
    upload = store.begin_upload(repository, algorithm)
    upload.write([data], 0)
    digest = digests.of(data, algorithm)
    upload.commit(digest)
    return digest


def descriptor(
    data: bytes, media_type: str = LAYER_TYPE, algorithm: str = "sha256", **fields: Any
) -> dict[str, object]:
    """A descriptor of ``data``."""
    described = {
        "mediaType": media_type,
        "digest": str(digests.of(data, algorithm)),
        "size": len(data),
    }
    return described | fields


def image_body(
    config: bytes = b"{}", blobs: Sequence[bytes] = (), /, *, docker: bool = False, **fields: Any
) -> bytes:
    """An image manifest as bytes, whose layers are ``blobs``.

    ``fields`` are added or take the place of others, so ``layers`` are descriptors.
    """
    content: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "config": descriptor(config, CONFIG_TYPE),
        "layers": [descriptor(blob) for blob in blobs],
    }
    return json.dumps(content | fields).encode()


def index_body(
    children: Iterable[Manifest] = (), /, *, docker: bool = False, **fields: Any
) -> bytes:
    """An index as bytes; ``fields`` are added or take the place of others."""
    content: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": DOCKER_LIST if docker else OCI_INDEX,
        "manifests": [descriptor(child.body, child.media_type) for child in children],
    }
    return json.dumps(content | fields).encode()


def put(
    store: Store, repository: str, body: bytes, *tags: str, algorithm: str = "sha256"
) -> tuple[Manifest, Digest]:
    """Store a manifest whose references the repository holds already."""
    manifest = manifests.parse(body)
    digest = digests.of(body, algorithm)
    store.put_manifest(repository, manifest, digest, tags)
    return manifest, digest


def put_image(
    store: Store, repository: str, *tags: str, config: bytes = b"{}", **fields: Any
) -> tuple[Manifest, Digest]:
    """Push an image without layers, its config first; ``config`` makes it a different one."""
    push(store, repository, config)
    return put(store, repository, image_body(config, **fields), *tags)


def subject_of(manifest: Manifest) -> dict[str, object]:
    """The ``subject`` field that names a manifest."""
    return descriptor(manifest.body, manifest.media_type)


def files(directory: Path) -> dict[str, bytes]:
    """Every file below a directory and its content, to compare before and after."""
    found = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): p.read_bytes() for p in found}


def together(calls: Sequence[Callable[[], object]]) -> list[BaseException | None]:
    """Run calls in threads that start at once; what each raised, None for those that returned."""
    outcomes: list[BaseException | None] = [None] * len(calls)
    ready = threading.Barrier(len(calls))

    def run(number: int, call: Callable[[], object]) -> None:
        ready.wait()
        try:
            call()
        except BaseException as error:
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def all_succeed(calls: Sequence[Callable[[], object]]) -> None:
    """Run calls at once; the first error, if any, is raised here."""
    for error in together(calls):
        if error is not None:
            raise error
