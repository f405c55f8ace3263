"""Scrubbing: every stored byte is read and hashed again, and each name is followed to its end.

`verify` reports; `repair` mends a damaged or missing blob from any reader that holds it, by the
ordinary way in: bytes are hashed as they are copied and published only if they match.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path

from storage.digest import Digest, hasher
from storage.distribution import DistributionStore
from storage.errors import StorageError
from storage.images import images, load, resolve
from storage.uploads import DirectoryUpload

_READ = 1024 * 1024
_WINDOW = 64


class Fault(StrEnum):
    """What can be wrong with a blob."""

    CORRUPT = "corrupt"
    """Its bytes have another digest."""

    MISSING = "missing"
    """A tagged image names it and the repository does not hold it."""

    UNREADABLE = "unreadable"
    """The disk gives an error."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. ``image`` is one that needs the blob, "" where none is known."""

    fault: Fault
    digest: Digest
    image: str = ""


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome: how much was read, in blobs and bytes, and what is wrong."""

    blobs: int
    size: int
    findings: tuple[Finding, ...]


Fetch = Callable[[str, Digest, DirectoryUpload, int | None], bool]
"""Puts a blob of a repository into an upload, no more bytes than it is to have where that is known;
False where the source does not have it."""


def verify(
    store: DistributionStore,
    workers: int = 2,
    progress: Callable[[int], None] = lambda size: None,
) -> Verified:
    """Hash every blob, and look that every tagged image is whole.

    Args:
        store: the store.
        workers: blobs hashed at once.
        progress: told the size in bytes of each blob that was read.
    """
    findings: list[Finding] = []
    blobs = size = 0
    for digest, found, fault in _hash_all(store.stored_blobs(), workers):
        blobs += 1
        size += found
        progress(found)
        if fault is not None:
            findings.append(Finding(fault, digest))
    broken = {finding.digest for finding in findings}
    users: dict[Digest, str] = {}
    for image in images(store):
        users.update({digest: image.name for digest in image.blobs if digest in broken})
        findings += [Finding(Fault.MISSING, digest, image.name) for digest in image.missing]
    named = (Finding(f.fault, f.digest, f.image or users.get(f.digest, "")) for f in findings)
    return Verified(blobs, size, tuple(dict.fromkeys(named)))


def repair(store: DistributionStore, finding: Finding, fetch: Fetch) -> bool:
    """Replace a blob that is corrupt, unreadable or missing; whether the source had it.

    Raises:
        DigestInvalid: what the source gave does not have the digest either; nothing was changed.
        StorageFull: nothing was changed.
    """
    repository = finding.image.rpartition(":")[0] or next(store.holders(finding.digest), "")
    if not repository:
        return False
    with store.copying(repository, finding.digest.algorithm) as upload:
        size = _expected_size(store, repository, finding)
        if not fetch(repository, finding.digest, upload, size):
            return False
        upload.commit(finding.digest)
    return True


def _expected_size(store: DistributionStore, repository: str, finding: Finding) -> int | None:
    """The size in bytes that the image gives a blob it needs; None where nothing says."""
    waiting: list[Digest] = []
    with contextlib.suppress(StorageError):
        waiting.append(resolve(store, finding.image)[1])
    seen: set[Digest] = set()
    while waiting:
        digest = waiting.pop()
        if digest in seen:
            continue
        seen.add(digest)
        try:
            manifest = load(store, repository, digest)
        except StorageError:
            continue
        for descriptor in (*manifest.blobs, *manifest.manifests):
            if descriptor.digest == finding.digest:
                return descriptor.size
        waiting += [child.digest for child in manifest.manifests]
    return None


def _hash_all(
    stored: Iterator[tuple[Digest, Path]], workers: int
) -> Iterator[tuple[Digest, int, Fault | None]]:
    with ThreadPoolExecutor(workers, "verify") as pool:
        # A window at a time: a store may have a million blobs.
        while window := list(islice(stored, _WINDOW)):
            yield from pool.map(_hash, window)


def _hash(stored: tuple[Digest, Path]) -> tuple[Digest, int, Fault | None]:
    digest, path = stored
    actual = hasher(digest.algorithm)
    try:
        size = _read(path, actual)
    except FileNotFoundError:
        return digest, 0, None  # collected meanwhile
    except OSError:
        return digest, 0, Fault.UNREADABLE
    return digest, size, None if actual.hexdigest() == digest.hex else Fault.CORRUPT


def _read(path: Path, actual: hashlib._Hash) -> int:
    size = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_READ):
            actual.update(piece)
            size += len(piece)
    return size
