"""The interface of stores. Every store passes one contract suite (`tests/storage/contract.py`).

Calls are synchronous; the caller chooses the thread. *Quick* methods make a small, fixed number of
local metadata calls and may run on the event loop; all others read content, write, sync or walk,
and belong in a worker thread.

Besides the errors named, any method may raise `NameInvalid` or `TagInvalid` for text outside the
grammar, and `StorageFull` or `OSError` when the disk refuses.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, Self

from mayfly.storage.digest import Digest
from mayfly.storage.directory_tree import HOST, Opener
from mayfly.storage.errors import ContentCorrupt, blob_unknown
from mayfly.storage.files import copy_range
from mayfly.storage.manifest import Manifest


class Proof(Protocol):
    """Whether content has its digest, for content that is proven when it is first sent.

    The last byte may be sent only once the proof `holds`. Equal proofs are of the same content.
    """

    @property
    def bundle(self) -> str:
        """The bundle with the content, as the operator named it."""

    @property
    def holds(self) -> bool:
        """Quick. Whether the content is proven."""

    def establish(self, progress: Callable[[int], None] | None = None) -> None:
        """Hash the content; afterwards the proof holds.

        Args:
            progress: called with the number of bytes that were read since the last call; an error
                that it raises ends the hashing.

        Raises:
            ContentCorrupt: the content has another digest, or changed; it is refused from now on.
            Interrupted: the server is stopping.
        """

    def corrupt(self) -> ContentCorrupt:
        """Report the content as corrupt and return the error for it."""


class Sink(Protocol):
    """Where content is sent: the connection to a client."""

    async def send_file(self, file: BinaryIO, offset: int, count: int) -> None:
        """Send ``count`` bytes of a local file from ``offset``.

        Raises:
            ConnectionError: the client is gone, or the file ended early and the connection was cut.
        """


class OpenContent(Protocol):
    """Content that is open for reading; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def proof(self) -> Proof | None:
        """Quick. The proof for the content as it is now; None for content that needs none.

        Raises:
            ContentCorrupt: the content has changed since it was found.
        """

    def read(self, offset: int, count: int) -> bytes:
        """Read up to ``count`` bytes from ``offset``; fewer only at the end."""

    async def send(self, sink: Sink, offset: int, count: int) -> None:
        """Send ``count`` bytes from ``offset``, in the way that suits where the content lies.

        Raises:
            ConnectionError: see `Sink`.
        """


class Content(Protocol):
    """Content of a known size, wherever it lies.

    A value, not an open file: a HEAD costs no descriptor and nothing can be left open. A caller
    that opens it later and finds it gone treats the content as unknown.
    """

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def proof(self) -> Proof | None:
        """The proof that it needs; None for content whose digest was checked when it was stored."""

    def open(self) -> OpenContent:
        """Open the content.

        Raises:
            FileNotFoundError: it is gone.
            PathRefused: something that is not a file took its place.
        """


class FileProof(Proof, Protocol):
    """The proof of content in a local file."""

    def of(self, descriptor: int) -> Proof:
        """Quick. The proof for the file as it is now, open as ``descriptor``.

        Raises:
            ContentCorrupt: that file has changed since the content was found.
        """


@dataclass(frozen=True, slots=True)
class Extent:
    """Content in a local file: ``size`` bytes from ``offset`` of ``path``. See `Content`."""

    path: Path
    offset: int
    size: int
    opener: Opener = field(default=HOST, kw_only=True, repr=False)
    proof: FileProof | None = field(default=None, kw_only=True)

    def open(self) -> OpenExtent:
        return OpenExtent(self, open_file(self.opener, self.path))


class OpenExtent:
    """An open `Extent`; see `OpenContent`.

    Attributes:
        extent: that is open.
        file: the whole file, unbuffered.
    """

    def __init__(self, extent: Extent, file: io.FileIO) -> None:
        self.extent = extent
        self.file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def proof(self) -> Proof | None:
        proof = self.extent.proof
        return None if proof is None else proof.of(self.file.fileno())

    def read(self, offset: int, count: int) -> bytes:
        count = min(count, self.extent.size - offset)
        pieces = []
        while count > 0:
            piece = os.pread(self.file.fileno(), count, self.extent.offset + offset)
            if not piece:
                break
            pieces.append(piece)
            offset, count = offset + len(piece), count - len(piece)
        return b"".join(pieces)

    def copy_to(self, target: int, at: int, progress: Callable[[int], None]) -> None:
        """Copy the content; see `storage.files.copy_range`.

        Args:
            target: a descriptor to write to, at byte ``at``.
            at: where the content begins in the target.
            progress: called with the number of bytes copied since the last call.

        Raises:
            ContentCorrupt: the content is shorter than it should be.
            OSError: it cannot be read or written.
        """
        extent, source = self.extent, self.file.fileno()
        if copy_range(source, extent.offset, extent.size, target, at, progress) < extent.size:
            raise ContentCorrupt("the source ended early")

    async def send(self, sink: Sink, offset: int, count: int) -> None:
        await sink.send_file(self.file, self.extent.offset + offset, count)


def open_file(opener: Opener, path: Path) -> io.FileIO:
    """Open a file through its opener, unbuffered; ``path`` alone may lead to another file."""
    return io.FileIO(opener.open(path), "rb")


class Reader(Protocol):
    """The read side of any store, bundle or overlay."""

    def blob(self, repository: str, digest: Digest) -> Content:
        """Quick. Locate a blob linked in this repository.

        Raises:
            BlobUnknown: it is not linked here, or its bytes are gone.
        """

    def manifest(self, repository: str, digest: Digest) -> Content:
        """Quick. Locate a manifest of this repository.

        Raises:
            ManifestUnknown: it is not in this repository, or its bytes are gone.
        """

    def tag(self, repository: str, tag: str) -> Digest:
        """Quick. Return the digest a tag points at, of the algorithm it was pushed with.

        Raises:
            ManifestUnknown: no such tag.
        """

    def tags(self, repository: str) -> list[str]:
        """Return every tag of a repository in lexical order.

        Raises:
            NameUnknown: no such repository.
        """

    def has_repository(self, repository: str) -> bool:
        """Quick. Whether it has a repository of exactly this name; no other is looked at."""

    def repositories(self, after: str, limit: int, prefix: str = "") -> list[str]:
        """Return up to ``limit`` repository names that follow ``after`` in lexical order.

        Args:
            after: a name, or "".
            limit: most names.
            prefix: the start of the names; only directories that may hold such names are read.
        """

    def repositories_with(self, digest: Digest) -> Iterator[str]:
        """Yield the repositories that link a blob, found one by one."""

    def referrers(
        self, repository: str, subject: Digest, after: str = ""
    ) -> Iterator[dict[str, object]]:
        """Yield descriptors of the manifests whose subject is ``subject``, in order of digest.

        They are made one by one: their annotations may be large. There are none for an unknown
        repository or subject (spec: never 404).

        Args:
            repository: of the manifests.
            subject: a digest.
            after: only digests that follow this one.
        """


class RevisionReader(Reader, Protocol):
    """A reader that lists all manifests of a repository."""

    def revisions(self, repository: str) -> Iterable[Digest]:
        """All manifests of a repository, tagged or not; none for an unknown one."""


class LowerStore(RevisionReader, Protocol):
    """A reader of local files that an overlay can have beneath it.

    It answers apart which repository has a blob and where the blob's bytes are: a repository may
    name a blob whose bytes lie in another store, as in a bundle of differences. It gets them where
    that store links the blob in a repository of the same name.
    """

    def blob(self, repository: str, digest: Digest) -> Extent:
        """See `Reader.blob`."""

    def manifest(self, repository: str, digest: Digest) -> Extent:
        """See `Reader.manifest`."""

    def links(self, repository: str, digest: Digest) -> bool:
        """Quick. Whether a blob belongs to a repository, wherever its bytes are."""

    def content(self, digest: Digest) -> Extent | None:
        """Quick. The bytes of a blob, whichever repository links it; None if they are not here.

        Raises:
            ContentCorrupt: they are here but do not have the digest.
        """

    def revisions(self, repository: str) -> Iterator[Digest]:
        """All manifests of a repository, tagged or not; none for an unknown one."""


def linked_blob(store: LowerStore, repository: str, digest: Digest) -> Extent:
    """Locate a blob of a store that has both the link and the bytes; see `Reader.blob`."""
    found = store.content(digest) if store.links(repository, digest) else None
    if found is None:
        raise blob_unknown(digest)
    return found


class Upload(Protocol):
    """One upload session. Its state is the partial file, whose size is its offset."""

    @property
    def id(self) -> str:
        """The session's name, a UUID."""

    @property
    def offset(self) -> int:
        """Quick. Bytes received so far."""

    def write(self, data: Sequence[bytes | memoryview], at: int) -> None:
        """Append ``data``, which begins at byte ``at`` of the blob.

        The session's lock is held for this write only, never while a body is awaited: of two
        writers, the one with the right offset continues; the other gets the offset in the error.

        Raises:
            UploadOffset: the upload has another offset.
            UploadUnknown: it was finished or cancelled meanwhile.
        """

    def commit(self, digest: Digest) -> None:
        """Verify, publish durably, link in the repository, and end the session.

        Raises:
            DigestInvalid: the bytes received have another digest; the session is ended.
            UploadUnknown: it was finished or cancelled meanwhile.
        """

    def cancel(self) -> None:
        """End the session and drop its bytes.

        Raises:
            UploadUnknown: it was finished or cancelled before.
        """


class Store(Reader, Protocol):
    """A store that also takes changes. A read-only one raises `ReadOnly` from each of these."""

    def check_room(self, size: int) -> None:
        """Quick. Check that ``size`` more bytes of blobs fit, before the first is received.

        Raises:
            StorageFull: they do not.
        """

    def begin_upload(self, repository: str, algorithm: str, *, resumable: bool = True) -> Upload:
        """Start an upload session whose bytes are hashed with ``algorithm`` as they arrive.

        Args:
            repository: of the blob.
            algorithm: of its digest.
            resumable: whether `upload` finds the session, also after a restart. False for a session
                whose id no client is given; a restart removes it.

        Raises:
            DigestInvalid: the algorithm is not supported.
        """

    def upload(self, repository: str, upload_id: str) -> Upload:
        """Quick. Find a session, also after a restart.

        Raises:
            UploadUnknown: there is none of that id in this repository.
        """

    def touch(self, repository: str, digest: Digest) -> Content:
        """Locate a blob for a client that may refer to it next, and start its age anew.

        A push skips the blobs that are in the repository; the collector must not remove them before
        the manifest is pushed.

        Raises:
            BlobUnknown: see `Reader.blob`.
        """

    def mount(self, repository: str, digest: Digest, source: str) -> None:
        """Link a blob of ``source`` in ``repository`` without copying it.

        Raises:
            BlobUnknown: the source does not have it.
        """

    def put_manifest(
        self, repository: str, manifest: Manifest, digest: Digest, tags: tuple[str, ...]
    ) -> None:
        """Store a manifest durably, then point each tag at it.

        Raises:
            DigestInvalid: ``digest`` is not that of the manifest's bytes.
            ManifestBlobUnknown: it names content this repository does not hold, and the store does
                not accept sparse manifests.
            SizeInvalid: it gives another size for content the repository holds.
        """

    def compare(self, repository: str, digest: Digest, body: bytes) -> None:
        """Compare the sizes in a stored manifest with those of the repository's blobs.

        If two differ, the blob may have been cut short. A manifest proves nothing, so the blob is
        hashed in the background unless its size was verified before.

        Args:
            body: the manifest's bytes, which were hashed and have this digest.
        """

    def examine(self, digest: Digest) -> bool:
        """Hash stored content again and return whether it has its digest.

        Damaged content is unknown from then on, until it is pushed or imported again.
        """

    def delete_manifest(self, repository: str, digest: Digest) -> None:
        """Remove a manifest and every tag that points at it; the next read finds neither.

        Raises:
            ManifestUnknown: it is not in this repository.
        """

    def delete_tag(self, repository: str, tag: str) -> None:
        """Remove a tag; the manifest stays.

        Raises:
            ManifestUnknown: no such tag.
        """

    def delete_blob(self, repository: str, digest: Digest) -> None:
        """Unlink a blob from this repository; others that hold it keep it.

        Raises:
            BlobUnknown: it is not linked here.
        """
