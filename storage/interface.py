"""What a store offers. Every store passes the same contract suite (`tests/storage/contract.py`).

Calls are synchronous; the caller chooses the thread. *Quick* methods make a small, fixed number of
local metadata calls and may run on the event loop; every other one reads content, writes, syncs or
walks, and belongs in a worker thread.

Beside the errors named, any method may raise `NameInvalid` or `TagInvalid` for text outside the
grammar, and `StorageFull` or `OSError` when the disk refuses.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mayfly.storage.digest import Digest
from mayfly.storage.errors import ContentCorrupt
from mayfly.storage.manifest import Manifest
from mayfly.storage.trees import HOST, Opener


class Proof(Protocol):
    """Proof that content has its digest; see `storage.bundle.verified`. Hashable."""

    @property
    def bundle(self) -> str:
        """The bundle that the content is in, as the operator named it."""

    @property
    def holds(self) -> bool:
        """Quick. Whether the content is proven."""

    def of(self, descriptor: int) -> Proof:
        """Quick. The proof for the content's file as it is now, open as a descriptor.

        Raises:
            BundleChanged: it is not the file in which the content was found.
        """

    def establish(self, progress: Callable[[int], None] | None = None) -> None:
        """Hash the content; afterwards the proof holds.

        Args:
            progress: called with the number of bytes of each step; may raise to stop.

        Raises:
            ContentCorrupt: the content has another digest.
            BundleChanged: the file was written to.
            Interrupted: the server is stopping.
        """

    def corrupt(self) -> ContentCorrupt:
        """The error for content that does not have its digest; it is reported as a fault."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where content lies: ``size`` bytes from ``offset`` of the file ``path``.

    A value, not an open file: a HEAD costs no descriptor and nothing can be left open. Whoever
    opens it later and finds it gone treats the content as unknown.

    Attributes:
        proof: of content in a bundle, whose last byte may be sent only once the proof holds; None
            for content that was verified when it was stored.
    """

    path: Path
    offset: int
    size: int
    proof: Proof | None = None
    opener: Opener = field(default=HOST, kw_only=True, repr=False)

    def open(self) -> io.FileIO:
        """Open the file, unbuffered and at its start; ``path`` alone may lead to another file.

        Raises:
            FileNotFoundError: it is gone.
            PathRefused: something that is no file took its place.
        """
        return open_file(self.opener, self.path)


def open_file(opener: Opener, path: Path) -> io.FileIO:
    """Open a file through its opener, unbuffered."""
    return io.FileIO(opener.open(path), "rb")


class Reader(Protocol):
    """The read side: what any store, bundle or overlay answers."""

    def blob(self, repository: str, digest: Digest) -> Extent:
        """Quick. Locate a blob linked in this repository.

        Raises:
            BlobUnknown: it is not linked here, or its bytes are gone.
        """

    def manifest(self, repository: str, digest: Digest) -> Extent:
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

    def holders(self, digest: Digest) -> Iterator[str]:
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

    def hold(self, repository: str, digest: Digest) -> Extent:
        """Locate a blob for someone who may refer to it next, and start its age anew.

        A push skips the blobs that it is told are there; the collector must not take them before
        the manifest comes.

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
