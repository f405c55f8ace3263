"""What a registry must answer, kept in plain dicts: the yardstick of `test_races_model`.

Content lies in two places: the writable store (upper) and, under an overlay, a bundle (lower). A
name is in a repository through either; a delete takes both away. Only the upper store is collected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.manifest import Manifest, parse
from tests.support.images import descriptor, image_body, index_body, subject_of

REPOSITORIES = ("team/a", "team/b", "other")
TAGS = ("one", "two")
BLOBS = {digests.of(data): data for data in (b"{}", b"first" * 99, b"second", b"", b"third" * 9)}

_CONFIG, _FIRST, _SECOND, _EMPTY, _ = BLOBS.values()
IMAGE = parse(image_body(_CONFIG, [_FIRST]))
OTHER = parse(image_body(_CONFIG, [_FIRST, _SECOND]))
MANIFESTS = {
    digests.of(manifest.body): manifest
    for manifest in (
        IMAGE,
        OTHER,
        parse(index_body([IMAGE])),
        parse(index_body([IMAGE, OTHER])),
        parse(image_body(_EMPTY, subject=subject_of(IMAGE))),
        parse(image_body(_CONFIG, [_SECOND], subject=descriptor(b"nowhere"))),
    )
}
SUBJECTS = (digests.of(IMAGE.body), digests.of(b"nowhere"))

OK = ""
BLOB_UNKNOWN = "BLOB_UNKNOWN"
MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
MANIFEST_BLOB_UNKNOWN = "MANIFEST_BLOB_UNKNOWN"
UPLOAD_UNKNOWN = "BLOB_UPLOAD_UNKNOWN"
DIGEST_INVALID = "DIGEST_INVALID"
RANGE_INVALID = "RANGE_INVALID"

UPPER, LOWER = "upper", "lower"
Named = dict[tuple[str, Digest], set[str]]


@dataclass
class Model:
    """Every change answers the OCI error code that the registry must give, `OK` for none.

    Attributes:
        links: repository and blob → where it is linked.
        revisions: repository and manifest → where it is linked.
        tags: repository and tag → manifest.
        stored: what lies in the upper store → whether it was touched since `time_passes`.
        beneath: what lies in the bundle.
        uploads: open sessions → repository, and bytes so far.
    """

    links: Named = field(default_factory=dict)
    revisions: Named = field(default_factory=dict)
    tags: dict[tuple[str, str], Digest] = field(default_factory=dict)
    stored: dict[Digest, bool] = field(default_factory=dict)
    beneath: set[Digest] = field(default_factory=set)
    uploads: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    # Changes

    def push(self, repository: str, digest: Digest) -> str:
        self.links.setdefault((repository, digest), set()).add(UPPER)
        self.stored[digest] = True
        return OK

    def mount(self, repository: str, digest: Digest, source: str) -> str:
        if self.touch(source, digest) != OK:
            return BLOB_UNKNOWN
        self.links.setdefault((repository, digest), set()).add(UPPER)
        return OK

    def touch(self, repository: str, digest: Digest) -> str:
        if (repository, digest) not in self.links:
            return BLOB_UNKNOWN
        self._touch(digest)
        return OK

    def put(self, repository: str, digest: Digest, tags: tuple[str, ...]) -> str:
        manifest = MANIFESTS[digest]
        missing = False
        for blob in manifest.blobs:
            missing |= self.touch(repository, blob.digest) != OK
        for child in manifest.manifests:
            where = self.revisions.get((repository, child.digest), set())
            missing |= not where
            if UPPER in where:
                self._touch(child.digest)
        if missing:
            return MANIFEST_BLOB_UNKNOWN
        self.revisions.setdefault((repository, digest), set()).add(UPPER)
        self.stored[digest] = True
        self.tags.update({(repository, tag): digest for tag in tags})
        return OK

    def delete_blob(self, repository: str, digest: Digest) -> str:
        return OK if self.links.pop((repository, digest), None) else BLOB_UNKNOWN

    def delete_manifest(self, repository: str, digest: Digest) -> str:
        if not self.revisions.pop((repository, digest), None):
            return MANIFEST_UNKNOWN
        for key in [k for k, d in self.tags.items() if k[0] == repository and d == digest]:
            del self.tags[key]
        return OK

    def delete_tag(self, repository: str, tag: str) -> str:
        return OK if self.tags.pop((repository, tag), None) else MANIFEST_UNKNOWN

    def write(self, session: str, at: int, data: bytes) -> str:
        repository, received = self.uploads[session]
        if at != len(received):
            return RANGE_INVALID
        self.uploads[session] = repository, received + data
        return OK

    def commit(self, session: str, digest: Digest) -> str:
        repository, received = self.uploads.pop(session)
        return self.push(repository, digest) if digests.of(received) == digest else DIGEST_INVALID

    def time_passes(self) -> None:
        self.stored = dict.fromkeys(self.stored, False)

    def collect(self, *, young_too: bool) -> set[Digest]:
        """What must go."""
        marked: set[Digest] = set()
        for _, digest in self.revisions:
            manifest = MANIFESTS[digest]
            marked |= {digest, *(d.digest for d in (*manifest.blobs, *manifest.manifests))}
        gone = {
            d for d, young in self.stored.items() if d not in marked and (young_too or not young)
        }
        for digest in gone:
            del self.stored[digest]
        for key in [key for key in self.links if key[1] in gone]:
            self.links[key].discard(UPPER)
            if not self.links[key]:
                del self.links[key]
        return gone

    def _touch(self, digest: Digest) -> None:
        if digest in self.stored:
            self.stored[digest] = True

    # Answers

    def repositories(self) -> list[str]:
        found = {repository for (repository, _), where in self.links.items() if UPPER in where}
        return sorted(found | {repository for repository, _ in self.revisions})

    def tags_of(self, repository: str) -> list[str] | None:
        if repository not in self.repositories():
            return None
        return sorted(tag for name, tag in self.tags if name == repository)

    def referrers(self, repository: str, subject: Digest) -> list[str]:
        held = [(d, MANIFESTS[d].subject) for name, d in self.revisions if name == repository]
        return sorted(str(d) for d, named in held if named and named.digest == subject)

    def missing(self) -> set[Digest]:
        """What images, tagged or not, name and their repository does not hold."""
        return {
            digest
            for repository, top in self.revisions
            for digest in self._missing_in(repository, MANIFESTS[top])
        }

    def _missing_in(self, repository: str, manifest: Manifest) -> Iterator[Digest]:
        for blob in manifest.blobs:
            if (repository, blob.digest) not in self.links:
                yield blob.digest
        children = [child.digest for child in manifest.manifests]
        # A deleted child leaves no trace: it is like one that was left out, unless all are absent.
        if not any((repository, digest) in self.revisions for digest in children):
            yield from children
