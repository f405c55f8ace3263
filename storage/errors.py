"""The errors of storage, one class for each reason.

A message describes the fault in the caller's terms and never shows a path of the host, since it is
sent to the client. ``detail`` is the machine-readable part (the OCI error's ``detail`` field).
"""

from __future__ import annotations

import errno
import os

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The numbers of errors that mean "no space left" and "quota exceeded"."""


class StorageError(Exception):
    """Base of every domain error that storage raises."""

    def __init__(self, message: str, detail: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.reported = False
        """Whether it was logged already."""


class NameInvalid(StorageError):
    """A repository name outside the grammar."""


class TagInvalid(StorageError):
    """A tag outside the grammar."""


class DigestInvalid(StorageError):
    """A digest outside the grammar, of an unknown algorithm, or of other content."""


class SizeInvalid(StorageError):
    """Content of another length than its descriptor or request announced."""


class NameUnknown(StorageError):
    """No such repository."""


class BlobUnknown(StorageError):
    """The blob is not linked in this repository."""


class ManifestUnknown(StorageError):
    """The tag or manifest digest is not in this repository."""


class ManifestInvalid(StorageError):
    """A manifest that cannot be understood or breaks the image-spec."""


class ManifestBlobUnknown(StorageError):
    """A manifest that names content the repository does not hold."""


class ManifestTooLarge(StorageError):
    """A manifest over `storage.manifest.MAX_SIZE` bytes."""


class UploadUnknown(StorageError):
    """No such upload session: never begun, finished, or cancelled."""


class Interrupted(StorageError):
    """Content was not hashed to its end, since the server is stopping."""


class UploadOffset(StorageError):
    """Bytes that do not begin where the upload ends.

    Attributes:
        offset: the number of bytes received so far.
    """

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message, {"offset": offset})
        self.offset = offset


class ReadOnly(StorageError):
    """A change of a read-only store."""


class StorageFull(StorageError):
    """No space, quota or inode left."""


class DoesNotFit(StorageFull):
    """More bytes than the free space holds; the disk itself is not full.

    Attributes:
        sizes: bytes that are wanted (``size``), ``free``, and kept free (``reserve``).
    """

    def __init__(self, message: str, sizes: dict[str, int]) -> None:
        super().__init__(message, sizes)
        self.sizes = sizes


class StorageFailed(StorageError):
    """The disk failed: an input or output error."""


class ContentCorrupt(StorageError):
    """Stored bytes that no longer have their digest; they are not served."""


class PathRefused(ContentCorrupt):
    """A link, a pipe or a device in the place of a file."""


def blob_unknown(digest: object) -> BlobUnknown:
    """Return the error for a blob that a repository does not hold."""
    return BlobUnknown("blob unknown to repository", {"digest": str(digest)})


def manifest_unknown(reference: object) -> ManifestUnknown:
    """Return the error for a tag or digest that is not in a repository."""
    return ManifestUnknown("manifest unknown", {"reference": str(reference)})


def repository_unknown(name: str) -> NameUnknown:
    """Return the error for a repository that does not exist."""
    return NameUnknown("repository name not known to registry", {"name": name})


def upload_unknown() -> UploadUnknown:
    """Return the error for an upload session that does not exist, or not any more."""
    return UploadUnknown("no such upload session")


def of_disk(error: OSError) -> StorageError | None:
    """Return the domain error for an error of the disk, without its path; None for another."""
    reason = os.strerror(error.errno or 0)
    match error.errno:
        case number if number in DISK_FULL:
            return StorageFull("no space left in the registry's storage")
        case errno.EROFS:
            return ReadOnly(f"the registry's storage takes no changes: {reason}")
        case errno.EIO | errno.EUCLEAN:
            return StorageFailed(f"the registry's storage failed: {reason}")
        case _:
            return None
