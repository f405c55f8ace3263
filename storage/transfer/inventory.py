"""Inventories: the blobs that a target has, by repository, in a file small enough to carry.

    mayfly inventory 1
    check 1a2b-3c4d-5e6f-7081
    library/app
    sha256:0123…
    sha256:4567…

Each repository is followed by its blobs, in order: the same content gives the same text. The check
is a hash of everything below it, to be compared by voice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mayfly.storage import digest as digests
from mayfly.storage.bundle.diagnostics import Code
from mayfly.storage.digest import Digest
from mayfly.storage.errors import ContentCorrupt, ManifestUnknown, StorageError
from mayfly.storage.interface import RevisionReader
from mayfly.storage.reading import find_blob, load, repositories
from mayfly.storage.reference import check_repository
from mayfly.storage.survey import Damaged

HEADER = "mayfly inventory 1"
_CHECK = "check "
_CHECK_DIGITS = 16

MAX_BYTES = 256 * 1024 * 1024
"""Largest inventory: some three million blobs."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The content of a target.

    Attributes:
        blobs: by repository, the blobs that are whole there.
        damaged: manifests that cannot be read, so that their blobs are not counted.
    """

    blobs: Mapping[str, frozenset[Digest]]
    damaged: tuple[Damaged, ...] = ()

    def has(self, repository: str, digest: Digest) -> bool:
        """Whether the target has a blob in a repository."""
        return digest in self.blobs.get(repository, frozenset())

    @property
    def check(self) -> str:
        """Sixteen hexadecimal digits in groups of four, to be compared by voice."""
        return _check_of(self._lines())

    @property
    def text(self) -> str:
        """The inventory as a file."""
        lines = self._lines()
        return "\n".join([HEADER, _CHECK + _check_of(lines), *lines]) + "\n"

    @property
    def count(self) -> int:
        """The number of blobs, each counted in every repository that has it."""
        return sum(map(len, self.blobs.values()))

    def _lines(self) -> list[str]:
        lines = []
        for repository in sorted(self.blobs):
            lines += [repository, *sorted(map(str, self.blobs[repository]))]
        return lines


def of(reader: RevisionReader) -> Inventory:
    """Return the inventory of a store, of bundles or of a registry: the blobs of all manifests."""
    blobs: dict[str, frozenset[Digest]] = {}
    damaged: list[Damaged] = []
    for repository in repositories(reader):
        held: set[Digest] = set()
        gone: list[Digest] = []
        for revision in reader.revisions(repository):
            try:
                manifest = load(reader, repository, revision)
            except ContentCorrupt as error:
                name = f"{repository}@{revision}"
                damaged.append(Damaged(name, Code.CONTENT_DAMAGED, error.message))
                continue
            except ManifestUnknown:
                gone.append(revision)
                continue
            except StorageError:  # odd, as it was pushed: its references are unknown
                continue
            for blob in manifest.blobs:
                if blob.digest not in held and find_blob(reader, repository, blob.digest):
                    held.add(blob.digest)
        # The others were deleted meanwhile. One look for all, since it lists the repository.
        listed = set(reader.revisions(repository)) if gone else set()
        reason = "the manifest is gone or damaged"
        damaged += (
            Damaged(f"{repository}@{revision}", Code.MANIFEST_MISSING, reason)
            for revision in gone
            if revision in listed
        )
        if held:
            blobs[repository] = frozenset(held)
    return Inventory(blobs, tuple(damaged))


def read(data: bytes) -> Inventory:
    """Read an inventory.

    Raises:
        ValueError: it is none, was cut or changed; the text says so.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise ValueError("not plain text") from None
    if len(lines) < 2 or lines[0] != HEADER or not lines[1].startswith(_CHECK):
        raise ValueError(f"not an inventory: it does not begin with {HEADER!r} and its check")
    said, body = lines[1].removeprefix(_CHECK), lines[2:]
    if said != _check_of(body):
        raise ValueError(
            f"it was cut or changed: its check is {said[:40]!r}, not {_check_of(body)}"
        )
    blobs: dict[str, set[Digest]] = {}
    held: set[Digest] = set()
    for line in body:
        try:
            if ":" in line:
                held.add(digests.parse(line))
            else:
                held = blobs.setdefault(check_repository(line), set())
        except StorageError as error:
            raise ValueError(error.message) from None
    return Inventory({name: frozenset(found) for name, found in blobs.items()})


def _check_of(lines: Iterable[str]) -> str:
    digits = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_CHECK_DIGITS]
    return "-".join(digits[at : at + 4] for at in range(0, _CHECK_DIGITS, 4))
