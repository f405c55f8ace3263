"""Check a read-only source, bundles or another registry: hash every byte, follow every name.

The store has `storage.upkeep.verify`, which knows its links and records and can mend it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import ContentCorrupt, ManifestUnknown, StorageError
from mayfly.storage.interface import Content, RevisionReader
from mayfly.storage.manifest import Descriptor
from mayfly.storage.reading import load, manifests_below, repositories
from mayfly.storage.upkeep.verify import Fault, Finding, Verified

_READ_SIZE = 1024 * 1024

Progress = Callable[[int], None]
"""Called with the number of bytes read since the last call."""


def check(reader: RevisionReader, progress: Progress = lambda size: None) -> Verified:
    """Read everything that the manifests of all repositories name, each blob once."""
    checked: dict[Digest, tuple[Fault, str] | int] = {}
    found: dict[tuple[Fault, Digest], tuple[dict[str, None], str]] = {}
    left_out: set[Digest] = set()

    def note(fault: Fault, digest: Digest, name: str, reason: str) -> None:
        found.setdefault((fault, digest), ({}, reason))[0][name] = None

    for repository in repositories(reader):
        for name, top in _names(reader, repository):
            for digest, manifest in manifests_below(reader, repository, top):
                if isinstance(manifest, ManifestUnknown):
                    if digest == top:
                        note(Fault.MISSING, digest, name, "the manifest is not there")
                    else:
                        left_out.add(digest)
                elif isinstance(manifest, StorageError):
                    note(Fault.CORRUPT, digest, name, manifest.message)
                else:
                    for blob in manifest.blobs:
                        outcome = _check_blob(reader, repository, blob, checked, progress)
                        if outcome is not None:
                            note(outcome[0], blob.digest, name, outcome[1])
    findings = [
        Finding(fault, digest, next(iter(names)), tuple(names)[1:], reason)
        for (fault, digest), (names, reason) in found.items()
    ]
    sizes = [size for size in checked.values() if isinstance(size, int)]
    return Verified(len(checked), sum(sizes), tuple(findings), len(left_out))


def _names(reader: RevisionReader, repository: str) -> Iterator[tuple[str, Digest]]:
    """Every tag of a repository, then every manifest that no tag leads to."""
    reached: set[Digest] = set()
    for tag in reader.tags(repository):
        try:
            top = reader.tag(repository, tag)
        except ManifestUnknown:
            continue  # a tag that leads nowhere
        reached.update(digest for digest, _ in manifests_below(reader, repository, top))
        yield f"{repository}:{tag}", top
    for digest in sorted(reader.revisions(repository)):
        if digest not in reached:
            yield f"{repository}@{digest}", digest


def _check_blob(
    reader: RevisionReader,
    repository: str,
    blob: Descriptor,
    checked: dict[Digest, tuple[Fault, str] | int],
    progress: Progress,
) -> tuple[Fault, str] | None:
    """Check a blob: the fault and its reason, or None."""
    try:
        content = reader.blob(repository, blob.digest)
    except ContentCorrupt as error:
        return Fault.CORRUPT, error.message
    except StorageError:
        return (Fault.MISSING, "it is not there") if blob.distributable else None
    if blob.digest not in checked:
        checked[blob.digest] = _hash(content, blob.digest, progress)
    outcome = checked[blob.digest]
    if isinstance(outcome, tuple):
        return outcome
    if blob.size not in (None, outcome):
        return Fault.SIZE, f"a manifest gives {blob.size} bytes, the blob has {outcome}"
    return None


def _hash(content: Content, digest: Digest, progress: Progress) -> tuple[Fault, str] | int:
    """Return the size of good content, otherwise the fault and its reason."""
    hasher = digests.hasher(digest.algorithm)
    position = 0
    try:
        with content.open() as opened:
            while piece := opened.read(position, _READ_SIZE):
                hasher.update(piece)
                position += len(piece)
                progress(len(piece))
    except ContentCorrupt as error:
        return Fault.CORRUPT, error.message
    except OSError as error:
        return Fault.UNREADABLE, error.strerror or str(error)
    if position != content.size or hasher.hexdigest() != digest.hex:
        return Fault.CORRUPT, "its bytes have another digest"
    return content.size


def size_of(reader: RevisionReader) -> int:
    """Bytes that `check` will read, where every blob is there."""
    sizes: dict[Digest, int] = {}
    for repository in repositories(reader):
        for revision in reader.revisions(repository):
            try:
                manifest = load(reader, repository, revision)
            except StorageError:
                continue
            sizes.update((blob.digest, blob.size or 0) for blob in manifest.blobs)
    return sum(sizes.values())
