"""Find out everything that a new bundle will contain, before its first blob is fetched.

For each image: its manifest, the children of an index for the wanted platforms, configs and layers,
and its artifacts (`storage.transfer.attached`). A registry without a referrers API
keeps their list as an index under the tag sha256-HEX (OCI 1.1, fallback).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mayfly.registry.upstream.client import Fetched
from mayfly.registry.upstream.errors import (
    ImagesMissing,
    Problem,
    TooMuch,
    UpstreamError,
    located,
)
from mayfly.registry.upstream.lists import Wanted, choose_tags
from mayfly.registry.upstream.sources import Source
from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import StorageError
from mayfly.storage.images import attested
from mayfly.storage.manifest import INDEX_TYPES, OCI_INDEX, Descriptor, Manifest, parse
from mayfly.storage.reference import Reference
from mayfly.storage.text import counted, format_size
from mayfly.storage.transfer.attached import Attached, find_attached, flat_tag
from mayfly.storage.transfer.exporting import FULL_NAME, TAG

MAX_MANIFESTS = 100_000
"""Manifests of one bundle; an upgrade of a large cluster has some thousands."""

_MAX_MEMORY = 512 * 1024 * 1024
"""Bytes of memory for the manifests of one command: some 50,000 usual ones, and 60 of 4 MiB."""

_PER_DESCRIPTOR = 500
"""Bytes that a descriptor takes besides the manifest's own bytes."""

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Origin:
    """A repository of a source that has a blob."""

    source: Source
    host: str
    repository: str


@dataclass(slots=True)
class Gathered:
    """The content of a bundle.

    Attributes:
        entries: the descriptors of ``index.json``.
        manifests: every manifest's bytes, parents before children.
        blobs: config and layers: their size and where they can be fetched, in order of use.
        targets: of each blob, the repositories that need it where the bundle is used.
        images: the number of images, without their artifacts.
        referrers: how many manifests refer to an image.
        foreign: layers with URLs of their own, which a source may rightly lack.
        absent: those of them that no source has.
    """

    entries: list[dict[str, object]] = field(default_factory=list)
    manifests: dict[Digest, bytes] = field(default_factory=dict)
    blobs: dict[Digest, tuple[int, list[Origin]]] = field(default_factory=dict)
    targets: dict[Digest, set[str]] = field(default_factory=dict)
    images: int = 0
    referrers: int = 0
    foreign: set[Digest] = field(default_factory=set)
    absent: list[Digest] = field(default_factory=list)

    @property
    def index(self) -> bytes:
        """The bytes of ``index.json``."""
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self.entries}
        return json.dumps(document, separators=(",", ":")).encode()


Find = Callable[[str], Sequence[Source]]
"""The sources to ask for an image whose name has this host, in order."""


async def gather(
    wanted: Iterable[Wanted], find: Find, platforms: Sequence[str], referrers: bool
) -> Gathered:
    """Look up every image of a list.

    Args:
        wanted: the list.
        find: where to look.
        platforms: ``os/arch[/variant]`` to take from indexes; all without any. An image's own
            platforms win.
        referrers: whether to take an image's artifacts.

    Raises:
        ImagesMissing: at least one image cannot be had; every one that cannot is named.
    """
    gate = asyncio.Semaphore(_AT_ONCE)
    memory = ManifestMemory()
    problems: list[Problem] = []

    async def one(image: Wanted) -> list[ImageLookup]:
        try:
            async with gate:
                found = [ImageLookup(single, memory) for single in await expanded(image, find)]
                for each in found:
                    await each.gather(find, platforms, referrers)
                return found
        except (UpstreamError, StorageError) as error:
            code = error.code if isinstance(error, UpstreamError) else "invalid"
            problems.append(Problem(located(image.origin, error), code))
            return []

    images = await asyncio.gather(*(one(image) for image in wanted))
    if problems:
        raise ImagesMissing(sorted(problems))
    gathered = Gathered()
    for found in images:
        for image in found:
            image.add_to(gathered)
    if len(gathered.manifests) > MAX_MANIFESTS:
        text = f"more than {MAX_MANIFESTS} manifests in one bundle"
        raise ImagesMissing([Problem(text, "too_many")])
    await _drop_absent_foreign(gathered)
    return gathered


async def _drop_absent_foreign(gathered: Gathered) -> None:
    """Leave out foreign layers that no source has: clients fetch those by their own URLs."""
    for digest in gathered.foreign:
        _, origins = gathered.blobs[digest]
        for origin in origins:
            if await origin.source.has_blob(origin.host, origin.repository, digest):
                break
        else:
            del gathered.blobs[digest]
            gathered.absent.append(digest)


async def expanded(wanted: Wanted, find: Find) -> list[Wanted]:
    """One image for each tag that a filter lets through.

    Raises:
        UpstreamError: there is none, or no source can be asked.
    """
    if wanted.tags is None:
        return [wanted]
    host, repository = wanted.source.host, wanted.source.repository
    for source in find(host):
        tags = await source.tags(host, repository)
        if tags:
            break
    else:
        raise UpstreamError(f"{wanted.source}: no such repository, or it has no tags")
    chosen = choose_tags(tags, wanted.tags)
    if not chosen:
        raise UpstreamError(f"{wanted.source}: {counted(len(tags), 'tag')}, none is wanted")
    found = []
    for tag in chosen:
        target = wanted.target._replace(tag=tag) if wanted.target else None
        found.append(
            Wanted(
                wanted.source._replace(tag=tag),
                target,
                None,
                wanted.platforms,
                wanted.referrers,
                wanted.origin,
            )
        )
    return found


class ManifestMemory:
    """The memory for the manifests of one command, which holds all of them until it has a plan."""

    def __init__(self) -> None:
        self._left = _MAX_MEMORY

    def take(self, manifest: Manifest) -> int:
        """Take the memory of a manifest; return its bytes, as estimated.

        Raises:
            TooMuch: it does not fit.
        """
        count = len(manifest.blobs) + len(manifest.manifests)
        size = len(manifest.body) + _PER_DESCRIPTOR * count
        if size > self._left:
            limit = format_size(_MAX_MEMORY)
            raise TooMuch(f"the manifests take more than {limit} of memory: divide the list")
        self._left -= size
        return size

    def release(self, size: int) -> None:
        """Give back the memory of manifests."""
        self._left += size


class ImageLookup:
    """One image while it is looked up.

    Args:
        wanted: the image.
        memory: of all images of the command.
    """

    def __init__(self, wanted: Wanted, memory: ManifestMemory) -> None:
        self._wanted = wanted
        self._memory = memory
        self._held = 0
        self._host = wanted.source.host
        self._repository = wanted.source.repository
        self._sources: Sequence[Source] = ()
        self._owners: Sequence[Source] = ()
        """The source that has the image: only that one is asked for its artifacts."""
        self._manifests: dict[Digest, tuple[Fetched, Manifest, Source]] = {}
        self._top: Digest | None = None
        self._attached: list[Attached] = []

    @property
    def wanted(self) -> Wanted:
        """The image that is looked up."""
        return self._wanted

    @property
    def top(self) -> Digest:
        """The digest of its manifest or index, once `gather` has found it."""
        assert self._top is not None
        return self._top

    @property
    def attached(self) -> Sequence[Attached]:
        """Manifests that refer to it, each after its subject."""
        return self._attached

    @property
    def manifests(self) -> Mapping[Digest, tuple[Fetched, Manifest, Source]]:
        """Every manifest of it and of its artifacts, with the source that has it."""
        return self._manifests

    async def gather(self, find: Find, platforms: Sequence[str], referrers: bool) -> None:
        """Look up all of it.

        Raises:
            UpstreamError: no source has it, or a source's answer cannot be used.
        """
        self._sources = find(self._host)
        name = self._wanted.source
        reference = str(name.digest) if name.digest else (name.tag or "latest")
        self._top = await self._walk(reference, self._wanted.platforms or platforms)
        self._owners = [self._manifests[self._top][2]]
        if referrers and self._wanted.referrers:
            self._attached = await find_attached(list(self._manifests), self)

    def drop_manifests(self) -> None:
        """Forget the manifests of an image that nothing is to be done for any more."""
        self._manifests.clear()
        self._attached = []
        self._memory.release(self._held)
        self._held = 0

    def add_to(self, gathered: Gathered) -> None:
        """Join it with the images before it."""
        name = self._wanted.target or self._wanted.source
        gathered.images += 1
        self._list(gathered, self.top, name)
        for one in self._attached:
            gathered.referrers += 1
            tagged = name._replace(tag=one.tag, digest=None) if one.tag else None
            self._list(gathered, one.digest, tagged)
        for digest, (fetched, manifest, source) in self._manifests.items():
            gathered.manifests.setdefault(digest, fetched.body)
            origin = Origin(source, self._host, self._repository)
            for blob in manifest.blobs:
                assert blob.size is not None  # a manifest that is taken in says it
                _, origins = gathered.blobs.setdefault(blob.digest, (blob.size, []))
                if origin not in origins:
                    origins.append(origin)
                gathered.targets.setdefault(blob.digest, set()).add(name.repository)
                if not blob.distributable:
                    gathered.foreign.add(blob.digest)

    def _list(self, gathered: Gathered, digest: Digest, name: Reference | None) -> None:
        fetched, manifest, _ = self._manifests[digest]
        entry: dict[str, object] = {
            "mediaType": manifest.media_type,
            "digest": str(digest),
            "size": len(fetched.body),
        }
        if name is not None:
            annotations = {FULL_NAME: str(name)}
            if name.tag:
                annotations[TAG] = name.tag
            entry["annotations"] = annotations
        if entry not in gathered.entries:
            gathered.entries.append(entry)

    async def _walk(self, reference: str, platforms: Sequence[str]) -> Digest:
        """Fetch a manifest, and of an index its children, each once; return its digest."""
        top = await self._fetch(reference)
        waiting = [top]
        while waiting:
            _, manifest, _ = self._manifests[waiting.pop()]
            children = [
                child
                for child in _wanted_children(manifest, platforms)
                if child.digest not in self._manifests
            ]
            if len(self._manifests) + len(children) > MAX_MANIFESTS:
                raise UpstreamError(f"{self._wanted.source}: more than {MAX_MANIFESTS} manifests")
            unique = dict.fromkeys(child.digest for child in children)
            waiting += [await self._fetch(str(child)) for child in unique]
        return top

    async def _fetch(self, reference: str) -> Digest:
        found = await self._find(reference, self._sources)
        if found is None:
            mark = "@" if ":" in reference else ":"
            asked = " or ".join(source.label for source in self._sources)
            raise UpstreamError(
                f"{self._host}/{self._repository}{mark}{reference} is not in {asked}"
            )
        return found

    async def _find(self, reference: str, sources: Sequence[Source]) -> Digest | None:
        if ":" in reference and (known := digests.parse(reference)) in self._manifests:
            return known
        for source in sources:
            fetched = await source.manifest(self._host, self._repository, reference)
            if fetched is None:
                continue
            if fetched.digest not in self._manifests:
                manifest = parse(fetched.body)
                self._held += self._take(manifest)
                self._manifests[fetched.digest] = (fetched, manifest, source)
            return fetched.digest
        return None

    def _take(self, manifest: Manifest) -> int:
        try:
            return self._memory.take(manifest)
        except TooMuch as error:
            raise TooMuch(f"{self._wanted.source}: {error}") from None

    async def referrers(self, subject: Digest) -> Iterable[Digest]:
        """See `storage.transfer.attached.Asked`: by the referrers API or the fallback tag."""
        for source in self._owners:
            listed = await source.referrers(self._host, self._repository, subject)
            if listed is not None:
                return listed
        fallback = await self._find(flat_tag(subject), self._owners)
        if fallback is None:
            return []
        # The index itself is not carried: clients rebuild it from the entries.
        _, index, _ = self._manifests.pop(fallback)
        return [child.digest for child in index.manifests]

    async def take(self, reference: str) -> tuple[Digest, Sequence[Digest]] | None:
        """See `storage.transfer.attached.Asked`: a digest must be there, a tag need not."""
        before = set(self._manifests)
        if ":" not in reference:
            found = await self._find(reference, self._owners)
            if found is None:
                return None
            before.discard(found)
            reference = str(found)
        top = await self._walk(reference, ())
        return top, [top, *(one for one in self._manifests if one not in before and one != top)]


def _wanted_children(manifest: Manifest, platforms: Sequence[str]) -> list[Descriptor]:
    """The children of an index for some platforms, and the attestations of those.

    A child without a platform belongs to no platform in particular and is taken.
    """
    if not platforms or manifest.media_type not in INDEX_TYPES:
        return list(manifest.manifests)
    entries = json.loads(manifest.body).get("manifests", [])
    chosen: set[str] = set()
    for entry in entries:
        if _fits(entry.get("platform"), platforms) and not attested(entry):
            chosen.add(entry["digest"])
    chosen |= {entry["digest"] for entry in entries if attested(entry) in chosen}
    if not chosen:
        raise UpstreamError(f"no image for {' or '.join(platforms)}")
    return [child for child in manifest.manifests if str(child.digest) in chosen]


def _fits(platform: object, wanted: Sequence[str]) -> bool:
    if not isinstance(platform, dict):
        return True
    whole = (platform.get("os"), platform.get("architecture"), platform.get("variant"))
    for text in wanted:
        parts = text.split("/")
        if list(whole[: len(parts)]) == parts:
            return True
        # The usual variants are often left out: arm64 means arm64/v8.
        if len(parts) == 3 and list(whole[:2]) == parts[:2] and whole[2] is None:
            return parts[1:] == ["arm64", "v8"]
    return False
