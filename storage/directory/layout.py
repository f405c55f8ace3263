"""The paths of the directory format of CNCF distribution (``registry:2``).

Source: distribution's ``registry/storage/paths.go``, the comment at its top. Entries whose name
begins with ``_mayfly`` are Mayfly's; registry:2 and its garbage collector ignore them.
Names are validated here again, so that no path is ever built from unchecked text.

The paths that requests read are cached after their validation: a fleet asks for the same few, and
building one took more time than the system call that it is for.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from uuid import UUID

from mayfly.storage.digest import HEX_LENGTHS, Digest
from mayfly.storage.errors import DigestInvalid, upload_unknown
from mayfly.storage.reference import check_repository, check_tag

BASE = "docker/registry/v2"
"""Where registry:2 keeps everything, below the directory that it is given."""

_CACHED = 1024
"""Paths of each kind."""


class Layout:
    """The paths below one root directory.

    Args:
        root: the directory.
        base: the path below it where the format begins; other makers nest it elsewhere.
    """

    def __init__(self, root: Path, base: str = BASE) -> None:
        self.base = root / base
        self.blobs = self.base / "blobs"
        self.repositories = self.base / "repositories"
        self.scratch = self.base / "_mayfly" / "scratch"

    def data(self, digest: Digest) -> Path:
        """The bytes of a blob; manifests are also blobs."""
        return _beside_blob(self.blobs, digest, "data")

    def record(self, digest: Digest, name: str) -> Path:
        """A file beside a blob's bytes with a record about them (`storage.directory.records`)."""
        return _beside_blob(self.blobs, digest, name)

    def repository(self, name: str) -> Path:
        """The directory of one repository."""
        return self.repositories / check_repository(name)

    def layers(self, name: str) -> Path:
        """The directory of a repository's blob links."""
        return self._within(name, "_layers")

    def layer_link(self, name: str, digest: Digest) -> Path:
        """The file that links a blob into a repository; it holds the digest as text."""
        return _link(self.repositories, name, "_layers", digest)

    def revisions(self, name: str) -> Path:
        """The directory of a repository's manifest links."""
        return self._within(name, "_manifests/revisions")

    def revision_link(self, name: str, digest: Digest) -> Path:
        """The file that links a manifest into a repository."""
        return _link(self.repositories, name, "_manifests/revisions", digest)

    def tags(self, name: str) -> Path:
        """The directory of a repository's tags, one directory each."""
        return self._within(name, "_manifests/tags")

    def tag(self, name: str, tag: str) -> Path:
        """The directory of one tag."""
        return self._within(name, f"_manifests/tags/{check_tag(tag)}")

    def tag_link(self, name: str, tag: str) -> Path:
        """The file with the digest of the manifest that a tag points at."""
        return _tag_link(self.repositories, name, tag)

    def tag_history_link(self, name: str, tag: str, digest: Digest) -> Path:
        """The file that records that a tag once pointed at this manifest."""
        entry = f"index/{digest.algorithm}/{_hex(digest)}/link"
        return self._within(name, f"_manifests/tags/{check_tag(tag)}/{entry}")

    def whiteouts(self, name: str) -> Path:
        """The directory of a repository's whiteouts (`storage.whiteouts`)."""
        return self._within(name, "_mayfly/whiteouts")

    def whiteout(self, name: str, kind: str, digest: Digest) -> Path:
        """The whiteout of a blob, a manifest or a tag at a digest; ``kind`` is its directory."""
        path = f"_mayfly/whiteouts/{kind}/{digest.algorithm}/{_hex(digest)}"
        return self._within(name, path)

    def cached_tag(self, name: str, tag: str) -> Path:
        """The mark of a tag that came from an upstream (`storage.directory.cached`)."""
        return self._within(name, f"_mayfly/cached/tags/{check_tag(tag)}")

    def cached_manifests(self, name: str) -> Path:
        """The directory of the marks of a repository's manifests that came from an upstream."""
        return self._within(name, "_mayfly/cached/manifests")

    def cached_manifest(self, name: str, digest: Digest) -> Path:
        """The mark of a manifest that came from an upstream."""
        return self._within(name, f"_mayfly/cached/manifests/{digest.algorithm}/{_hex(digest)}")

    def uploads(self, name: str) -> Path:
        """The directory of a repository's upload sessions."""
        return self._within(name, "_uploads")

    def upload(self, name: str, upload_id: str) -> Path:
        """The directory of one upload session.

        Raises:
            UploadUnknown: the id is not a UUID in its usual form.
        """
        try:
            known = str(UUID(upload_id)) == upload_id
        except ValueError:
            known = False
        if not known:
            raise upload_unknown()
        return self._within(name, f"_uploads/{upload_id}")

    def _within(self, name: str, path: str) -> Path:
        return self.repositories / f"{check_repository(name)}/{path}"


@lru_cache(maxsize=_CACHED)
def _beside_blob(blobs: Path, digest: Digest, name: str) -> Path:
    return blobs / f"{digest.algorithm}/{_hex(digest)[:2]}/{digest.hex}/{name}"


@lru_cache(maxsize=_CACHED)
def _link(repositories: Path, name: str, directory: str, digest: Digest) -> Path:
    path = f"{check_repository(name)}/{directory}/{digest.algorithm}/{_hex(digest)}/link"
    return repositories / path


@lru_cache(maxsize=_CACHED)
def _tag_link(repositories: Path, name: str, tag: str) -> Path:
    path = f"{check_repository(name)}/_manifests/tags/{check_tag(tag)}/current/link"
    return repositories / path


def _hex(digest: Digest) -> str:
    encoded = digest.hex
    if len(encoded) != HEX_LENGTHS.get(digest.algorithm) or not encoded.isalnum():
        raise DigestInvalid("not a digest")
    return encoded
