"""The artifacts of an image: signatures, SBOMs and attestations.

Tools keep them in three ways:

    referrers list         manifests whose subject is the image (OCI 1.1)
    tags sha256-HEX.sig    cosign before version 3; .att and .sbom likewise
    entries of an index    BuildKit's attestations, by an annotation of the entry

The first two are looked up here, also for the artifacts found, since a signature may be signed. The
third kind is copied with its index like any other child.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import ManifestUnknown
from mayfly.storage.images import Image, image
from mayfly.storage.interface import Reader

T = TypeVar("T")

COSIGN_ENDINGS = (".sig", ".att", ".sbom")


@dataclass(frozen=True, slots=True)
class Attached:
    """A manifest that refers to another.

    Attributes:
        digest: its own.
        subject: the manifest that it refers to.
        tag: by which it was found; None if it was in the referrers list.
    """

    digest: Digest
    subject: Digest
    tag: str | None


class Asked(Protocol):
    """The source of an image, which is asked for its artifacts."""

    async def referrers(self, subject: Digest) -> Iterable[Digest]:
        """Return the manifests with this subject."""

    async def take(self, reference: str) -> tuple[Digest, Sequence[Digest]] | None:
        """Take a manifest with everything it names.

        Args:
            reference: a tag or a digest.

        Returns:
            Its digest, and every manifest at and below it; None if the source does not have it.
        """


async def find_attached(manifests: Iterable[Digest], asked: Asked) -> list[Attached]:
    """Find the artifacts of an image's manifests, and of those artifacts, each once.

    Args:
        manifests: every manifest of the image.
        asked: the source.
    """
    found: dict[Digest, Attached] = {}
    waiting = deque(manifests)
    seen = set(waiting)
    while waiting:
        subject = waiting.popleft()
        flat = flat_tag(subject)
        references: list[tuple[str, str | None]] = [
            (str(one), None) for one in sorted(await asked.referrers(subject))
        ]
        references += [(flat + ending, flat + ending) for ending in COSIGN_ENDINGS]
        for reference, tag in references:
            taken = await asked.take(reference)
            if taken is None:
                continue
            digest, below = taken
            if digest not in seen:
                found.setdefault(digest, Attached(digest, subject, tag))
            new = [one for one in below if one not in seen]
            seen.update(new)
            waiting += new
    return list(found.values())


def flat_tag(subject: Digest) -> str:
    """Return the tag for artifacts of a manifest, to which cosign adds endings.

    A tag has room for 64 digits of a longer digest (OCI distribution-spec, "Referrers Tag").
    """
    return f"{subject.algorithm}-{subject.hex[:64]}"


def attached_images(reader: Reader, repository: str, one: Image) -> list[tuple[Attached, Image]]:
    """Return the artifacts of an image of a store or a bundle.

    Raises:
        OSError: the repository cannot be read.
    """
    local = _Local(reader, repository)
    found = _completed(find_attached(one.manifests, local))
    return [(each, local.taken[each.digest]) for each in found]


class _Local:
    """See `Asked`; damaged artifacts are taken too, with their faults."""

    def __init__(self, reader: Reader, repository: str) -> None:
        self._reader = reader
        self._repository = repository
        self.taken: dict[Digest, Image] = {}

    async def referrers(self, subject: Digest) -> Iterable[Digest]:
        listed = self._reader.referrers(self._repository, subject)
        return [digests.parse(str(descriptor["digest"])) for descriptor in listed]

    async def take(self, reference: str) -> tuple[Digest, Sequence[Digest]] | None:
        is_tag = ":" not in reference
        name = f"{self._repository}{':' if is_tag else '@'}{reference}"
        try:
            if is_tag:
                digest = self._reader.tag(self._repository, reference)
            else:
                digest = digests.parse(reference)
            found = image(self._reader, self._repository, digest, name)
        except ManifestUnknown:
            return None
        self.taken.setdefault(digest, found)
        return digest, found.manifests


def _completed(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")
