"""Make a bundle: look everything up, lay out the archive, fetch what is missing, publish it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mayfly.registry.upstream.errors import ContentWrong, ImagesMissing, NotThere, UpstreamError
from mayfly.registry.upstream.gather import Gathered, Origin
from mayfly.storage import digest as digests
from mayfly.storage.bundle.writer import Draft, Layout, lay_out
from mayfly.storage.digest import Digest

if TYPE_CHECKING:
    from hashlib import _Hash

DEFAULT_JOBS = 4

Progress = Callable[[int], None]
"""Told how many bytes more are in the archive, from the event loop's thread."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A bundle that can be written.

    Attributes:
        gathered: its content.
        layout: the archive.
        left_out: bytes that the target has already.
    """

    gathered: Gathered
    layout: Layout
    left_out: int

    @property
    def size(self) -> int:
        """Bytes of config and layers in the archive."""
        return sum(place.size for place in self.layout.blobs.values())


def plan(gathered: Gathered, have: Callable[[str, Digest], bool]) -> Plan:
    """Lay out the archive without the blobs that the target has.

    Args:
        gathered: the content.
        have: whether the target has a blob of a repository.
    """
    wanted = []
    left_out = 0
    for digest, (size, origins) in gathered.blobs.items():
        if any(have(origin.repository, digest) for origin in origins):
            left_out += size
        else:
            wanted.append((digest, size))
    return Plan(gathered, lay_out(gathered.index, gathered.manifests, wanted), left_out)


async def write(planned: Plan, output: Path, jobs: int, progress: Progress) -> None:
    """Fetch every blob into the archive and publish it.

    An interrupted or failed run leaves the unfinished archive, and the next one goes on with it.

    Args:
        planned: see `plan`.
        output: the archive's path.
        jobs: blobs fetched at once.
        progress: see `Progress`.

    Raises:
        ImagesMissing: blobs could not be fetched; each is named. All others are kept.
        BundleInvalid: another process writes the same archive.
        OSError: the archive cannot be written.
    """
    problems: list[str] = []
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(jobs, "blob") as threads, Draft(output, planned.layout) as draft:
        waiting = []
        for digest, place in planned.layout.blobs.items():
            progress(draft.have(digest))
            if not draft.is_complete(digest):
                waiting.append((digest, place.size))
        queue = iter(waiting)

        async def work() -> None:
            for digest, size in queue:
                blob = _Blob(draft, digest, size, loop, threads, progress)
                try:
                    await blob.fetch(planned.gathered.blobs[digest][1])
                except UpstreamError as error:
                    problems.append(str(error))

        async with asyncio.TaskGroup() as group:
            for _ in range(jobs):
                group.create_task(work())
        if problems:
            raise ImagesMissing(sorted(problems))
        await loop.run_in_executor(threads, draft.publish)


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
        problem: UpstreamError | None = None
        for origin in origins:
            try:
                await self._from(origin)
                return
            except ContentWrong as error:
                problem = error
                self._start_over()
            except UpstreamError as error:
                # NotThere by a later source says less than what the first one said.
                problem = problem if isinstance(error, NotThere) and problem else error
        assert problem is not None
        raise problem

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
        "blobs": len(planned.layout.blobs),
        "size": planned.layout.size,
        "left_out": planned.left_out,
    }
