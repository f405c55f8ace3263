"""Reading content through any `storage.interface.Reader`: manifests, their trees, pages."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from functools import partial

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import (
    BlobUnknown,
    ContentCorrupt,
    ManifestTooLarge,
    ManifestUnknown,
    StorageError,
    blob_unknown,
)
from mayfly.storage.interface import Content, OpenContent, Reader
from mayfly.storage.manifest import MAX_SIZE, Manifest, parse_stored

_PAGE = 1000
"""Repository names asked for at once."""


def repositories(reader: Reader) -> Iterator[str]:
    """Yield every repository in lexical order."""
    after = ""
    while page := reader.repositories(after, _PAGE):
        yield from page
        after = page[-1]


def tags_at(reader: Reader, repository: str, digest: Digest) -> Iterator[str]:
    """Yield the tags that point at a manifest; damaged tags are skipped."""
    for name in reader.tags(repository):
        with contextlib.suppress(StorageError):
            if reader.tag(repository, name) == digest:
                yield name


def load(reader: Reader, repository: str, digest: Digest) -> Manifest:
    """Read and parse a stored manifest.

    Raises:
        ManifestInvalid: it cannot be parsed.
        ManifestUnknown, ManifestTooLarge, ContentCorrupt: see `read_manifest`.
    """
    return parse_stored(read_manifest(reader, repository, digest))


def try_load(reader: Reader, repository: str, digest: Digest) -> Manifest | StorageError:
    """Return a stored manifest, or the error of `load`."""
    try:
        return load(reader, repository, digest)
    except StorageError as error:
        return error


def read_manifest(reader: Reader, repository: str, digest: Digest) -> bytes:
    """Return the bytes of a manifest after checking their digest.

    Raises:
        ManifestUnknown: it is not in the repository.
        ManifestTooLarge: it is larger than `storage.manifest.MAX_SIZE`; it was not read.
        ContentCorrupt: its bytes have another digest.
    """
    content = reader.manifest(repository, digest)
    if content.size > MAX_SIZE:
        raise ManifestTooLarge(f"manifest is larger than {MAX_SIZE} bytes")
    body = read_stored(content)
    if digests.of(body, digest.algorithm) != digest:
        # It may be a manifest, but it is another one.
        raise ContentCorrupt(f"manifest {digest} is damaged", {"digest": str(digest)})
    return body


def read_stored(content: Content, limit: int | None = None) -> bytes:
    """Return the bytes of a manifest that was located.

    Args:
        content: to be read.
        limit: return no more bytes than this.

    Raises:
        ManifestUnknown: it was deleted meanwhile.
    """
    try:
        return _read(content, limit)
    except FileNotFoundError:
        raise ManifestUnknown("manifest unknown") from None


def read_unverified(reader: Reader, repository: str, digest: Digest) -> bytes:
    """Return a manifest's bytes as they are stored, at most `storage.manifest.MAX_SIZE`.

    Raises:
        ManifestUnknown: it is not in the repository, or was deleted meanwhile.
    """
    return read_stored(reader.manifest(repository, digest), MAX_SIZE)


def read_blob(reader: Reader, repository: str, digest: Digest, limit: int) -> bytes:
    """Return a blob's bytes as they are stored, at most ``limit``.

    Raises:
        BlobUnknown: it is not in the repository, or was deleted meanwhile.
        ContentCorrupt: it is damaged.
    """
    try:
        return _read(reader.blob(repository, digest), limit)
    except FileNotFoundError:
        raise blob_unknown(digest) from None


def _read(content: Content, limit: int | None) -> bytes:
    with content.open() as opened:
        return opened.read(0, content.size if limit is None else min(content.size, limit))


class ContentStream(io.RawIOBase):
    """Open content as a stream, from its start."""

    def __init__(self, opened: OpenContent) -> None:
        self._opened = opened
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._opened.read(self._position, len(buffer))
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def find_blob(reader: Reader, repository: str, digest: Digest) -> Content | None:
    """Locate a blob; None if the repository has no usable one."""
    try:
        return reader.blob(repository, digest)
    except (BlobUnknown, ContentCorrupt):
        return None


def walk(
    load: Callable[[Digest], Manifest | StorageError], root: Digest
) -> Iterator[tuple[Digest, Manifest | StorageError]]:
    """Yield every manifest below one, itself first, each once; or the error of reading it.

    Depth first and children in their order. Neither depth nor the number of paths to a manifest
    matters: an attacker may build chains of a thousand indexes, and diamonds.

    Args:
        load: returns a manifest, or the error of reading it.
        root: where to begin.
    """
    seen = {root}
    waiting = [root]
    while waiting:
        digest = waiting.pop()
        manifest = load(digest)
        yield digest, manifest
        if isinstance(manifest, StorageError):
            continue
        for child in reversed(manifest.manifests):
            if child.digest not in seen:
                seen.add(child.digest)
                waiting.append(child.digest)


def manifests_below(
    reader: Reader, repository: str, root: Digest
) -> Iterator[tuple[Digest, Manifest | StorageError]]:
    """Yield the manifests of a repository as `walk` does."""
    return walk(partial(try_load, reader, repository), root)
