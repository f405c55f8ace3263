"""What a store offers. Every store passes the same contract suite (`tests/storage/contract.py`).

Calls are synchronous; the caller chooses the thread. *Quick* methods make a small, fixed number of
local metadata calls and may run on the event loop; every other one reads content, writes, syncs or
walks, and belongs in a worker thread.

Beside the errors named, any method may raise `NameInvalid` or `TagInvalid` for text outside the
grammar, and `StorageFull` or `OSError` when the disk refuses.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from mayfly.storage.digest import Digest
from mayfly.storage.errors import ContentCorrupt, blob_unknown
from mayfly.storage.manifest import Manifest
from mayfly.storage.trees import HOST, Opener


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def proof(self) -> Proof | None:
        """Quick. The proof for the content as it is now; None for content that needs none.

        Raises:
            ContentCorrupt: the content is not what it was when it was found.
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
            ContentCorrupt: that file is not what it was when the content was found.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

    async def send(self, sink: Sink, offset: int, count: int) -> None:
        await sink.send_file(self.file, self.extent.offset + offset, count)


def open_file(opener: Opener, path: Path) -> io.FileIO:
    """Open a file through its opener, unbuffered; ``path`` alone may lead to another file."""
    return io.FileIO(opener.open(path), "rb")


class Reader(Protocol):
    """The read side: what any store, bundle or overlay answers."""

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
        """Quick. The digest a tag points at, of the algorithm it was pushed with.

        Raises:
            ManifestUnknown: no such tag.
        """

    def tags(self, repository: str) -> list[str]:
        """Every tag of a repository in lexical order.

        Raises:
            NameUnknown: no such repository.
        """

    def repositories(self, after: str, limit: int, prefix: str = "") -> list[str]:
        """Up to ``limit`` repository names that follow ``after`` in lexical order.

        Args:
            prefix: what they begin with; no directory of others is looked at, but for those on
                the way.
        """

    def repositories_with(self, digest: Digest) -> Iterator[str]:
        """The repositories a blob is linked in, found one by one as they are asked for."""

    def referrers(
        self, repository: str, subject: Digest, after: str = ""
    ) -> Iterator[dict[str, object]]:
        """Descriptors of the manifests whose subject is ``subject``, in order of digest.

        Made one by one as they are asked for: their annotations may be large.

        Args:
            after: the digest that those wanted follow.

        Empty when there are none and also for an unknown repository or subject (spec: never 404).
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
    """One upload session. Its state is the partial file: offset = size on disk."""

    @property
    def id(self) -> str:
        """The session's name, a UUID."""

    @property
    def offset(self) -> int:
        """Quick. Bytes received so far."""

    def write(self, data: Sequence[bytes | memoryview], at: int) -> None:
        """Append ``data``, which begins at byte ``at`` of the blob.

        The session's lock is held for this write only, never while a body is awaited: of two
        writers the one whose offset fits goes on, the other is told where the upload stands.

        Raises:
            UploadOffset: the upload stands elsewhere.
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
    """A store that also takes content. A read-only one raises `ReadOnly` from each of these."""

    def check_room(self, size: int) -> None:
        """Quick. Make sure that so many bytes more of blobs fit, before the first is taken.

        Raises:
            StorageFull: they do not.
        """

    def begin_upload(self, repository: str, algorithm: str, *, resumable: bool = True) -> Upload:
        """Start an upload session whose bytes are hashed with ``algorithm`` as they come.

        Args:
            resumable: whether `upload` is to find it, also after a restart. One whose id nobody
                is told is better dropped by a restart than kept.

        Raises:
            DigestInvalid: the algorithm is not supported.
        """

    def upload(self, repository: str, upload_id: str) -> Upload:
        """Quick. Find a session again, also after a restart.

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
            BlobUnknown: the source does not hold it.
        """

    def put_manifest(
        self, repository: str, manifest: Manifest, digest: Digest, tags: tuple[str, ...]
    ) -> None:
        """Store a manifest durably, then point each tag at it.

        Raises:
            DigestInvalid: ``digest`` is not that of the manifest's bytes.
            ManifestBlobUnknown: it names content this repository does not hold (unless the store
                was told to take sparse manifests).
            SizeInvalid: it gives another size for content the repository holds.
        """

    def compare(self, repository: str, digest: Digest, body: bytes) -> None:
        """Compare the sizes that a stored manifest gives with those of the repository's blobs.

        A manifest proves nothing, but where the two differ a blob may be cut, and its size may
        never have been recorded: then its bytes are hashed in the background.

        Args:
            body: the manifest's bytes, which were hashed and have this digest.
        """

    def examine(self, digest: Digest) -> bool:
        """Hash content again that did not have its digest; return whether it has.

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
