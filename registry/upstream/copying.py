"""Copy images to other registries and stores: look up, compare, send the missing parts, tag last.

    look up at the source ─► compare with the target ─► blobs, side by side
                                                          │ all of an image
                                                          ▼
        tag ◄── the image's artifacts, each after its subject ◄── manifests, children first

An image has its tag as soon as it is whole, and its failure stops no other. A blob that several
repositories of a target need is sent once and mounted in the others, if the source repository of
each has it: a manifest may name the digest of a blob that its repository does not have.

Artifacts are signatures, SBOMs and attestations (`storage.transfer.attached`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TypeVar

from mayfly.registry.upstream.errors import (
    ContentWrong,
    NotThere,
    Problem,
    UpstreamError,
    located,
)
from mayfly.registry.upstream.gather import (
    Find,
    ImageLookup,
    ManifestMemory,
    Origin,
    expanded,
)
from mayfly.registry.upstream.lists import Wanted
from mayfly.registry.upstream.streams import BlobStream
from mayfly.registry.upstream.targets import Target
from mayfly.storage.digest import Digest
from mayfly.storage.errors import DoesNotFit, StorageError, StorageFailed, StorageFull
from mayfly.storage.manifest import Descriptor, Manifest
from mayfly.storage.reference import Reference

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_JOBS = 4

_CONFLICT = "conflict"
"""Code of a problem: a tag that points, or is to point, at another manifest."""

_AT_ONCE = 16
"""Images looked up, compared or tagged at once."""


class State(StrEnum):
    """The end that an image came to."""

    COPIED = "copied"
    PRESENT = "present"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Item:
    """An image, or the tags of a repository, to copy.

    Attributes:
        wanted: of a list.
        find: where to look for it.
    """

    wanted: Wanted
    find: Find


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of copying one image.

    Attributes:
        source: its name, or the place in the list where it stands.
        target: its name at the target; "" if it is not known.
        digest: of its manifest; None if it is not known.
        state: see `State`.
        problems: the reasons why it, or some of its artifacts, are not there.
    """

    source: str
    target: str
    digest: Digest | None
    state: State
    problems: tuple[Problem, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether the image is there with all its artifacts."""
        return self.state in (State.COPIED, State.PRESENT) and not self.problems


Place = Callable[[Wanted], tuple[Target, Reference]]
"""Returns the target of a single image, and its name there."""

Progress = Callable[[int], None]
OnDone = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules for all images of a job.

    Attributes:
        platforms: to take from indexes; all without any. An image's own platforms win.
        referrers: whether an image's artifacts are copied with it.
        override: whether a tag at the target is moved that points at another digest.
    """

    platforms: Sequence[str] = ()
    referrers: bool = True
    override: bool = False


@dataclass(frozen=True, slots=True)
class _Put:
    manifest: Manifest
    digest: Digest
    tag: str | None = None


@dataclass(slots=True, eq=False)
class _Image:
    """An image that was looked up and compared with its target.

    Attributes:
        own: its manifests that the target lacks, children first.
        attached: the same of its artifacts.
        tags: by which it and its artifacts are found at the target in the end; its own first.
    """

    lookup: ImageLookup
    target: Target
    name: Reference
    own: list[_Put] = field(default_factory=list)
    attached: list[_Put] = field(default_factory=list)
    blobs: list[_Blob] = field(default_factory=list)
    tags: dict[str, Digest] = field(default_factory=dict)
    state: State = State.PRESENT
    problems: list[Problem] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        source = str(self.lookup.wanted.source)
        return Outcome(source, str(self.name), self.lookup.top, self.state, tuple(self.problems))

    def note(self, error: UpstreamError | StorageError) -> None:
        """Note why one of its artifacts is not there."""
        self.problems.append(_problem(error))

    def fail(self, error: UpstreamError | StorageError, hint: str = "") -> None:
        """Note why it is not there itself."""
        problem = _problem(error)
        self.state = State.FAILED
        if problem.code == _CONFLICT:
            self.state, hint = State.SKIPPED, ""
        self.problems.append(problem._replace(text=problem.text + hint))


@dataclass(slots=True, eq=False)
class _Blob:
    """A blob that repositories of a target lack.

    Attributes:
        wanted: by repository, where its bytes can be had.
        there: repositories of the target that have it.
        problems: by repository, why it did not arrive.
        complete: set once all of that is decided.
    """

    target: Target
    digest: Digest
    size: int
    wanted: dict[str, list[Origin]] = field(default_factory=dict)
    there: dict[str, Origin | None] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, repository: str, error: UpstreamError | StorageError) -> None:
        """Note why it did not arrive."""
        self.problems[repository] = _problem(error)


@dataclass(slots=True)
class Plan:
    """A plan: images to copy, and those that cannot be.

    Attributes:
        override: see `Rules`.
        images: that can be copied, in the order of the list.
        outcomes: of the others.
    """

    override: bool
    images: list[_Image] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    blobs: dict[tuple[int, Digest], _Blob] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of blobs to send or mount."""
        return sum(blob.size for blob in self.blobs.values() if blob.wanted)

    @property
    def missing(self) -> int:
        """The number of these blobs."""
        return sum(1 for blob in self.blobs.values() if blob.wanted)

    @property
    def preview(self) -> list[Outcome]:
        """The outcomes, if nothing fails from now on."""
        return [*self.outcomes, *(image.outcome for image in self.images)]

    @property
    def referrers(self) -> int:
        """How many signatures and attestations are missing."""
        return sum(len(image.attached) for image in self.images)


@dataclass(slots=True)
class Copied:
    """The result of a job.

    Attributes:
        outcomes: of every image.
        sent: bytes of blobs.
        blobs: how many were sent.
        mounted: how many were linked without a transfer.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    sent: int = 0
    blobs: int = 0
    mounted: int = 0


async def plan(items: Iterable[Item], place: Place, rules: Rules) -> Plan:
    """Look up every image, and compare it with the content of its target.

    Images that cannot be had, or whose target cannot be asked, are among the outcomes.
    """
    return await _Planning(place, rules).run(items)


async def carry_out(planned: Plan, jobs: int, progress: Progress, on_done: OnDone) -> Copied:
    """Send the missing parts of a plan.

    Args:
        planned: see `plan`.
        jobs: blobs sent at once.
        progress: called with the number of bytes that were sent; negative if some are lost.
        on_done: called for each image once it is done.

    Raises:
        StorageFull, StorageFailed: the store that is copied to takes no more.
    """
    return await _Carrying(planned, progress, on_done).run(jobs)


class _Planning:
    def __init__(self, place: Place, rules: Rules) -> None:
        self._place = place
        self._rules = rules
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._memory = ManifestMemory()
        self._plan = Plan(rules.override)
        self._present: dict[tuple[int, str, Digest], asyncio.Task[bool]] = {}

    async def run(self, items: Iterable[Item]) -> Plan:
        singles = [one for found in await _each(self._expand, items) for one in found]
        images = await _each(self._compared, singles)
        claims: _Claims = {}
        for image in images:
            if image is None:
                continue
            self._plan.images.append(image)
            _claim_tags(image, claims)
        await _each(self._add_blobs, self._plan.images)
        return self._plan

    async def _expand(self, item: Item) -> list[Item]:
        with _Noting(partial(self._note, item.wanted)):
            async with self._gate:
                return [Item(one, item.find) for one in await expanded(item.wanted, item.find)]
        return []

    async def _compared(self, item: Item) -> _Image | None:
        placed = ""

        def note(error: UpstreamError | StorageError) -> None:
            self._note(item.wanted, error, placed)

        with _Noting(note):
            async with self._gate:
                target, name = self._place(item.wanted)
                placed = str(name)
                lookup = ImageLookup(item.wanted, self._memory)
                try:
                    await lookup.gather(item.find, self._rules.platforms, self._rules.referrers)
                    image = _Image(lookup, target, name)
                    await self._compare(image)
                except BaseException:
                    lookup.drop_manifests()
                    raise
                if image.state is not State.COPIED:
                    lookup.drop_manifests()
                return image
        return None

    def _note(self, wanted: Wanted, error: UpstreamError | StorageError, placed: str = "") -> None:
        source, problem = str(wanted.source), _problem(error, wanted.origin)
        self._plan.outcomes.append(Outcome(source, placed, None, State.FAILED, (problem,)))

    async def _compare(self, image: _Image) -> None:
        top, repository, tag = image.lookup.top, image.name.repository, image.name.tag
        at_tag = await image.target.tag(repository, tag) if tag else None
        if at_tag not in (None, top) and not self._rules.override:
            _refuse(image, _moved_text(image.name, at_tag, top))
            return
        if tag:
            image.tags[tag] = top
        own = _bottom_up(image.lookup, top)
        for digest in await self._lacking(image, own):
            image.own.append(_Put(image.lookup.manifests[digest][1], digest))
        if tag and at_tag != top:
            image.own = [put for put in image.own if put.digest != top]
            image.own.append(_Put(image.lookup.manifests[top][1], top, tag))
        await self._compare_attached(image, {*own})
        if image.own or image.attached:
            image.state = State.COPIED

    async def _compare_attached(self, image: _Image, seen: set[Digest]) -> None:
        repository = image.name.repository
        listed: dict[Digest, frozenset[Digest]] = {}
        for one in image.lookup.attached:
            if one.tag is not None:
                at_tag = await image.target.tag(repository, one.tag)
                is_there = at_tag == one.digest
                if at_tag is not None and not is_there and not self._rules.override:
                    name = image.name._replace(tag=one.tag)
                    text = _moved_text(name, at_tag, one.digest)
                    image.problems.append(Problem(text, _CONFLICT))
                    continue
                image.tags[one.tag] = one.digest
            else:
                if one.subject not in listed:
                    listed[one.subject] = await image.target.referrers(repository, one.subject)
                is_there = one.digest in listed[one.subject]
            below = [d for d in _bottom_up(image.lookup, one.digest) if d not in seen]
            seen.update(below)
            for digest in await self._lacking(image, below):
                if digest != one.digest:
                    image.attached.append(_Put(image.lookup.manifests[digest][1], digest))
            if not is_there:
                manifest = image.lookup.manifests[one.digest][1]
                image.attached.append(_Put(manifest, one.digest, one.tag))

    async def _lacking(self, image: _Image, found: Sequence[Digest]) -> list[Digest]:
        """The manifests that the target lacks, in their order."""
        repository = image.name.repository
        present = await asyncio.gather(
            *(image.target.has_manifest(repository, digest) for digest in found)
        )
        return [digest for digest, is_there in zip(found, present, strict=True) if not is_there]

    async def _add_blobs(self, image: _Image) -> None:
        if image.state is not State.COPIED:
            return
        with _Noting(image.fail):
            async with self._gate:
                for put in (*image.own, *image.attached):
                    await self._add_blobs_of(image, put)

    async def _add_blobs_of(self, image: _Image, put: _Put) -> None:
        source = image.lookup.manifests[put.digest][2]
        wanted = image.lookup.wanted.source
        origin = Origin(source, wanted.host, wanted.repository)
        unique = {blob.digest: blob for blob in put.manifest.blobs}.values()
        present = await asyncio.gather(*(self._is_present(image, blob.digest) for blob in unique))
        for descriptor, is_there in zip(unique, present, strict=True):
            if not is_there and not await self._is_left_out(origin, descriptor):
                self._add_blob(image, origin, descriptor)
            elif is_there:
                blob = self._blob(image.target, descriptor)
                blob.there.setdefault(image.name.repository, None)

    def _add_blob(self, image: _Image, origin: Origin, descriptor: Descriptor) -> None:
        blob = self._blob(image.target, descriptor)
        origins = blob.wanted.setdefault(image.name.repository, [])
        if origin not in origins:
            origins.append(origin)
        if blob not in image.blobs:
            image.blobs.append(blob)

    def _blob(self, target: Target, descriptor: Descriptor) -> _Blob:
        assert descriptor.size is not None  # a manifest that is taken in says it
        key = id(target), descriptor.digest
        if key not in self._plan.blobs:
            self._plan.blobs[key] = _Blob(target, descriptor.digest, descriptor.size)
        return self._plan.blobs[key]

    async def _is_present(self, image: _Image, digest: Digest) -> bool:
        """Whether the target has a blob; asked once."""
        key = id(image.target), image.name.repository, digest
        if key not in self._present:
            asked = image.target.has_blob(image.name.repository, digest)
            self._present[key] = asyncio.ensure_future(asked)
        return await self._present[key]

    async def _is_left_out(self, origin: Origin, blob: Descriptor) -> bool:
        """Whether it is a foreign layer that the source lacks: clients fetch it by its URLs."""
        if blob.distributable:
            return False
        return not await origin.source.has_blob(origin.host, origin.repository, blob.digest)


class _Carrying:
    def __init__(self, planned: Plan, progress: Progress, on_done: OnDone) -> None:
        self._plan = planned
        self._progress = progress
        self._on_done = on_done
        self._copied = Copied(list(planned.outcomes))
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def run(self, jobs: int) -> Copied:
        for outcome in self._plan.outcomes:
            self._on_done(outcome)
        queue = iter([blob for blob in self._plan.blobs.values() if blob.wanted])

        async def work() -> None:
            for blob in queue:
                await self._carry(blob)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(jobs):
                    group.create_task(work())
                for image in self._plan.images:
                    group.create_task(self._finish(image))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return self._copied

    async def _carry(self, blob: _Blob) -> None:
        """Send a blob to every repository that lacks it."""
        is_first = True
        for repository, origins in blob.wanted.items():
            progress = self._progress if is_first else _ignored
            is_first = False
            with _Noting(partial(blob.note, repository)):
                await self._carry_to(blob, repository, origins, progress)
        blob.complete.set()

    async def _carry_to(
        self, blob: _Blob, repository: str, origins: Sequence[Origin], progress: Progress
    ) -> None:
        session: str | None = ""
        source = await self._mountable(blob, repository, origins)
        if source is not None:
            session = await blob.target.mount(repository, blob.digest, source)
        if session is None:
            self._copied.mounted += 1
            progress(blob.size)
            blob.there[repository] = origins[0]
            return
        problem: UpstreamError | None = None
        for origin in origins:
            where = f"{origin.source.label}: {origin.repository}@{blob.digest}"
            stream = BlobStream(blob.digest, blob.size, where, _opener(blob, origin))
            try:
                await blob.target.put_blob(repository, stream, progress, session)
            except (ContentWrong, NotThere) as error:
                problem, session = problem or error, ""
                continue
            self._copied.blobs += 1
            self._copied.sent += blob.size
            blob.there[repository] = origin
            return
        assert problem is not None
        raise problem

    async def _mountable(
        self, blob: _Blob, repository: str, origins: Sequence[Origin]
    ) -> str | None:
        """A repository of the target to mount a blob from."""
        for origin in origins:
            if origin.source.url is not None and origin.source.url == blob.target.url:
                return origin.repository if origin.repository != repository else None
        for other, sent_from in blob.there.items():
            for origin in origins:
                if origin == sent_from or await origin.source.has_blob(
                    origin.host, origin.repository, blob.digest
                ):
                    return other
        return None

    async def _finish(self, image: _Image) -> None:
        """Wait for its blobs, then put its manifests, its artifacts, and its tag."""
        for blob in image.blobs:
            await blob.complete.wait()
        if image.state is State.COPIED:
            async with self._gate:
                await self._put(image)
        self._copied.outcomes.append(image.outcome)
        self._on_done(image.outcome)

    async def _put(self, image: _Image) -> None:
        repository = image.name.repository
        lost = {
            blob.digest: blob.problems[repository]
            for blob in image.blobs
            if repository in blob.problems
        }
        tagged = [put for put in image.own if put.tag]
        first = [put for put in image.own if not put.tag]
        if image.attached:
            # Artifacts need the image, which gets its tag after them.
            first += [_Put(put.manifest, put.digest) for put in tagged]
        with _Noting(partial(image.fail, hint=_sparse_hint(image))):
            await self._put_all(image, first, lost)
            gone: set[Digest] = set()
            for put in image.attached:
                subject = put.manifest.subject
                gone.add(put.digest)
                if subject is not None and subject.digest in gone:
                    continue
                with _Noting(image.note):
                    await self._put_all(image, [put], lost)
                    gone.discard(put.digest)
            await self._put_all(image, tagged, lost)

    async def _put_all(
        self, image: _Image, puts: Iterable[_Put], lost: Mapping[Digest, Problem]
    ) -> None:
        for put in puts:
            for blob in put.manifest.blobs:
                if blob.digest in lost:
                    raise _Problematic(lost[blob.digest])
            if put.tag is not None and not self._plan.override:
                await self._check_tag(image, put.tag, put.digest)
            await image.target.put_manifest(
                image.name.repository, put.manifest, put.digest, put.tag
            )

    async def _check_tag(self, image: _Image, tag: str, digest: Digest) -> None:
        """Check once more that a tag is not moved: it may have been pushed while blobs were sent.

        Raises:
            _Problematic: it points at another manifest.
        """
        at_tag = await image.target.tag(image.name.repository, tag)
        if at_tag not in (None, digest):
            text = _moved_text(image.name._replace(tag=tag), at_tag, digest)
            raise _Problematic(Problem(text, _CONFLICT))


class _Problematic(UpstreamError):
    """A manifest cannot be put: a blob of it did not arrive, or its tag points elsewhere."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.code = problem.code


_Claims = dict[tuple[int, str, str], tuple[Digest, Reference]]
"""Target, repository and tag → the manifest that it is to point at, and the image for which."""


def _claim_tags(image: _Image, claims: _Claims) -> None:
    """Refuse the tags of an image that an image before it gives to another manifest.

    A target knows an image by repository and tag alone, without the host of its name.
    """
    for tag, digest in image.tags.items():
        key = id(image.target), image.name.repository, tag
        first, source = claims.setdefault(key, (digest, image.lookup.wanted.source))
        if first == digest:
            continue
        text = f"{image.name._replace(tag=tag)} is also the target of {source}"
        if tag == image.name.tag:
            _refuse(image, text)
            return
        image.problems.append(Problem(text, _CONFLICT))
        image.attached = [put for put in image.attached if put.tag != tag]


def _opener(blob: _Blob, origin: Origin) -> Callable[[int], AsyncGenerator[bytes, None]]:
    def opened(start: int) -> AsyncGenerator[bytes, None]:
        return origin.source.blob(origin.host, origin.repository, blob.digest, blob.size, start)

    return opened


def _bottom_up(lookup: ImageLookup, top: Digest) -> list[Digest]:
    """The manifests at and below one, each after those it names."""
    found: dict[Digest, None] = {}
    waiting = [(top, False)]
    while waiting:
        digest, is_below_done = waiting.pop()
        if digest in found:
            continue
        if is_below_done:
            found[digest] = None
            continue
        waiting.append((digest, True))
        children = lookup.manifests[digest][1].manifests
        waiting += [(one.digest, False) for one in children if one.digest in lookup.manifests]
    return list(found)


def _refuse(image: _Image, text: str) -> None:
    image.state = State.SKIPPED
    image.problems = [Problem(text, _CONFLICT)]
    image.own, image.attached = [], []


def _moved_text(name: Reference, at_tag: Digest | None, digest: Digest) -> str:
    return f"{name} is {at_tag} there, not {digest}: --override moves the tag"


def _sparse_hint(image: _Image) -> str:
    manifests = image.lookup.manifests
    is_sparse = any(
        child.digest not in manifests for _, one, _ in manifests.values() for child in one.manifests
    )
    return "; few registries take an index without some of its platforms" if is_sparse else ""


def _problem(error: UpstreamError | StorageError, origin: str = "") -> Problem:
    code = error.code if isinstance(error, UpstreamError) else "invalid"
    if isinstance(error, DoesNotFit):
        code = "does_not_fit"
    return Problem(located(origin, error), code)


class _Noting:
    """A context that ends where an error concerns one image, which is noted.

    Raises:
        StorageFull, StorageFailed: the store that is copied to takes nothing more: no other image
            would fare better.
    """

    def __init__(self, note: Callable[[UpstreamError | StorageError], None]) -> None:
        self._note = note

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        # An image that does not fit says nothing of smaller ones.
        ends_all = isinstance(error, StorageFull | StorageFailed) and not isinstance(
            error, DoesNotFit
        )
        if ends_all or not isinstance(error, UpstreamError | StorageError):
            return False
        self._note(error)
        return True


async def _each(function: Callable[[T], Awaitable[R]], items: Iterable[T]) -> list[R]:
    return list(await asyncio.gather(*(function(item) for item in items)))


def _ignored(size: int) -> None:
    """Progress of bytes that are sent once more."""
