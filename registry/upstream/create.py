"""Make a bundle: look everything up, lay out the archive, fetch missing content, publish it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mayfly.registry.upstream.errors import (
    ContentWrong,
    ImagesMissing,
    NotThere,
    Problem,
    UpstreamError,
    VolumeTooSmall,
)
from mayfly.registry.upstream.gather import Gathered, Origin
from mayfly.storage import digest as digests
from mayfly.storage.bundle import volumes
from mayfly.storage.bundle.writer import (
    RECORD,
    ArchiveLayout,
    Draft,
    check_space,
    is_written,
    lay_out,
    room_for,
)
from mayfly.storage.digest import Digest
from mayfly.storage.errors import DISK_FULL, StorageFull

if TYPE_CHECKING:
    from hashlib import _Hash

_SYNC_EVERY = 32 * 1024 * 1024

Progress = Callable[[int], None]
"""Told how many bytes more are in the archive, from the event loop's thread."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A bundle that can be written.

    Attributes:
        gathered: its content.
        archives: the files; one, or the volumes.
        left_out: bytes that the target has already.
    """

    gathered: Gathered
    archives: tuple[tuple[Path, ArchiveLayout], ...]
    left_out: int

    @property
    def blobs(self) -> int:
        """How many configs and layers the archives have."""
        return sum(len(layout.blobs) for _, layout in self.archives)

    @property
    def size(self) -> int:
        """Bytes of config and layers in the archives."""
        return sum(p.size for _, layout in self.archives for p in layout.blobs.values())


def plan(
    gathered: Gathered,
    output: Path,
    have: Callable[[str, Digest], bool],
    volume_size: int | None = None,
) -> Plan:
    """Lay out the archive without the blobs that the target has.

    Args:
        gathered: the content.
        output: the archive's path; those of volumes are made from it.
        have: whether the target has a blob of a repository.
        volume_size: most bytes of a volume; None for one archive.

    Raises:
        VolumeTooSmall: a blob alone is larger.
    """
    wanted = []
    left_out = 0
    for digest, (size, _) in gathered.blobs.items():
        if all(have(repository, digest) for repository in gathered.targets[digest]):
            left_out += size
        else:
            wanted.append((digest, size))
    if volume_size is None:
        layout = lay_out(gathered.index, gathered.manifests, wanted)
        return Plan(gathered, ((output, layout),), left_out)
    return Plan(gathered, tuple(_volumes(gathered, output, wanted, volume_size)), left_out)


def _volumes(
    gathered: Gathered, output: Path, wanted: Sequence[tuple[Digest, int]], limit: int
) -> Iterator[tuple[Path, ArchiveLayout]]:
    limit -= limit % RECORD
    sizes = dict(wanted)
    taken = [(digest, room_for(digest, size)) for digest, size in sizes.items()]
    count = 1
    while True:
        # The list of all volumes is in each: how large it is depends on how many there are.
        paths = [_volume_path(output, number) for number in range(1, count + 1)]
        names = [path.name for path in paths]
        padding: list[list[Digest]] = [[] for _ in names[1:]]
        draft = volumes.make(names, [list(sizes), *padding])[-1]
        room = limit - lay_out(gathered.index, gathered.manifests, (), draft).size
        largest, most = max(taken, key=lambda one: one[1], default=(None, 0))
        if most > room or count > volumes.MAX_VOLUMES:
            raise VolumeTooSmall(
                f"--volume-size {limit}: {'blob ' + str(largest) if largest else 'the list'} does "
                f"not fit; volumes need at least {limit - room + most} bytes, and there may be "
                f"{volumes.MAX_VOLUMES}"
            )
        parts = volumes.split(taken, room)
        if len(parts) <= count:
            break
        count = len(parts)
    parts += [[] for _ in range(count - len(parts))]
    named = [[digest for digest, _ in part] for part in parts]
    made = volumes.make(names, named)
    for path, part, more in zip(paths, named, made, strict=True):
        blobs = [(digest, sizes[digest]) for digest in part]
        yield path, lay_out(gathered.index, gathered.manifests, blobs, more)


def _volume_path(output: Path, number: int) -> Path:
    return output.with_name(f"{output.stem}.{number:03}{output.suffix}")


async def write(planned: Plan, jobs: int, progress: Progress) -> None:
    """Fetch every blob into the archives and publish them, one after the other.

    An interrupted or failed run leaves the unfinished archive, and the next one continues it.
    An archive that is there and has these very bytes is kept.

    Args:
        planned: see `plan`.
        jobs: blobs fetched at once.
        progress: see `Progress`.

    Raises:
        ImagesMissing: blobs could not be fetched; each is named. All others are kept.
        BundleInvalid: another process writes the same archive.
        StorageFull: there is not enough space for the rest, or it ran out.
        OSError: the archive cannot be written.
    """
    waiting = []
    for output, layout in planned.archives:
        if await asyncio.to_thread(is_written, output, layout):
            progress(sum(place.size for place in layout.blobs.values()))
        else:
            waiting.append((output, layout))
    check_space(waiting)
    for output, layout in waiting:
        try:
            await _write(planned.gathered, output, layout, jobs, progress)
        except OSError as error:
            raise _unwritten(output, error) from None


def _unwritten(output: Path, error: OSError) -> Exception:
    """Return the error for an archive that cannot be written, with its path and the remedy."""
    text = f"{output} cannot be written: {error.strerror or error}"
    if error.errno in DISK_FULL:
        return StorageFull(f"{text}; make room, and the same command resumes where it stopped")
    if error.errno == errno.EFBIG:
        return StorageFull(f"{text}; on FAT32, which has files of 4 GiB, use --volume-size 3GiB")
    return OSError(error.errno, error.strerror or str(error), str(output))


async def _write(
    gathered: Gathered, output: Path, layout: ArchiveLayout, jobs: int, progress: Progress
) -> None:
    problems: list[Problem] = []
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(jobs, "blob") as threads, Draft(output, layout) as draft:
        waiting = []
        for digest, place in layout.blobs.items():
            progress(draft.have(digest))
            if not draft.is_complete(digest):
                waiting.append((digest, place.size))
        queue = iter(waiting)
        syncing = _Syncing(draft)

        def advance(size: int) -> None:
            progress(size)
            syncing.written(size)

        async def work() -> None:
            for digest, size in queue:
                blob = _Blob(draft, digest, size, loop, threads, advance)
                try:
                    await blob.fetch(gathered.blobs[digest][1])
                except UpstreamError as error:
                    problems.append(Problem(str(error), error.code))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(jobs):
                    group.create_task(work())
        except ExceptionGroup as failed:
            # The first is the reason; the other tasks were cancelled or met the same.
            raise failed.exceptions[0] from None
        finally:
            await syncing.end()
        if problems:
            raise ImagesMissing(sorted(problems))
        await loop.run_in_executor(threads, draft.publish)


class _Syncing:
    """Syncs an archive while it grows, at most once at a time.

    The final sync, which waits for the disk alone, is short then: a slow stick has taken most.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._unsynced = 0
        self._running: asyncio.Future[None] | None = None

    def written(self, size: int) -> None:
        """Begin a sync if the archive has grown by some MiB.

        Raises:
            OSError: an earlier one lost bytes.
        """
        self._unsynced += size
        if self._running is not None and self._running.done():
            self._running.result()
            self._running = None
        if self._unsynced >= _SYNC_EVERY and self._running is None:
            self._unsynced = 0
            self._running = asyncio.ensure_future(asyncio.to_thread(self._draft.sync))

    async def end(self) -> None:
        """Wait for the running sync.

        Raises:
            OSError: it lost bytes.
        """
        if self._running is not None:
            await self._running


class _Blob:
    """One blob on its way into the archive."""

    def __init__(
        self,
        draft: Draft,
        digest: Digest,
        size: int,
        loop: asyncio.AbstractEventLoop,
        threads: ThreadPoolExecutor,
        progress: Progress,
    ) -> None:
        self._draft = draft
        self._digest = digest
        self._size = size
        self._loop = loop
        self._threads = threads
        self._progress = progress

    async def fetch(self, origins: list[Origin]) -> None:
        """Try each source in turn; the first that has all of it wins."""
        if self._draft.have(self._digest) == self._size and await self._is_there():
            return
        problem: UpstreamError | None = None
        for origin in origins:
            try:
                await self._fetch_rest(origin)
                return
            except ContentWrong as error:
                problem = error
            except UpstreamError as error:
                # NotThere by a later source says less than the first source's error.
                problem = problem if isinstance(error, NotThere) and problem else error
        assert problem is not None
        raise problem

    async def _is_there(self) -> bool:
        """Whether an earlier run wrote all of it."""
        is_right = await self._loop.run_in_executor(self._threads, self._draft.check, self._digest)
        if not is_right:
            self._progress(-self._size)
        return is_right

    async def _fetch_rest(self, origin: Origin) -> None:
        """Fetch the rest from a source; all of it if the begin turns out to be of another blob."""
        while True:
            begun = self._draft.have(self._digest)
            try:
                await self._from(origin)
                return
            except ContentWrong:
                self._start_over()
                if not begun:
                    raise

    async def _from(self, origin: Origin) -> None:
        hasher = digests.hasher(self._digest.algorithm)
        at = self._draft.have(self._digest)
        await self._run(self._hash_again, hasher, at)
        pieces = origin.source.blob(origin.host, origin.repository, self._digest, self._size, at)
        async with contextlib.aclosing(pieces) as stream:
            async for piece in stream:
                await self._run(self._keep, hasher, at, piece)
                at += len(piece)
                self._progress(len(piece))
        if at != self._size or hasher.hexdigest() != self._digest.hex:
            raise ContentWrong(
                f"{origin.source.label}: {origin.repository}@{self._digest} arrived with other "
                "content than its digest says; nothing of it was kept"
            )
        self._draft.complete(self._digest)

    def _start_over(self) -> None:
        self._progress(-self._draft.have(self._digest))
        self._draft.restart(self._digest)

    def _hash_again(self, hasher: _Hash, count: int) -> None:
        for piece in self._draft.read(self._digest, count):
            hasher.update(piece)

    def _keep(self, hasher: _Hash, at: int, piece: bytes) -> None:
        hasher.update(piece)
        self._draft.write(self._digest, at, piece)

    async def _run(self, function: Callable[..., None], *args: object) -> None:
        await self._loop.run_in_executor(self._threads, function, *args)


def sizes(planned: Plan) -> Mapping[str, int]:
    """Figures for ``--dry-run`` and the last line."""
    return {
        "images": planned.gathered.images,
        "referrers": planned.gathered.referrers,
        "blobs": planned.blobs,
        "size": sum(layout.size for _, layout in planned.archives),
        "left_out": planned.left_out,
    }
