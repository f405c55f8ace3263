"""Time that passes when a test says so, and content that is a table."""

from __future__ import annotations

import asyncio

from mayfly.registry.coverage.manifest_graph import ManifestRefs
from mayfly.registry.coverage.observer import Observer
from tests.support.beside import run_what_is_ready


class FakeClock:
    """A clock that stands still until `tick`."""

    def __init__(self, wall: float = 1_700_000_000.0) -> None:
        self._now = 1000.0
        self._offset = wall - self._now
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._now + self._offset

    def set(self, by: float) -> None:
        """Set the wall clock, forward or back; no time passes."""
        self._offset += by

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + max(seconds, 0.0), woken))
        await woken

    async def tick(self, seconds: float) -> None:
        """Let time pass, waking each sleeper at its moment."""
        end = self._now + seconds
        await run_what_is_ready()
        while due := [entry for entry in self._sleepers if entry[0] <= end]:
            moment, woken = min(due, key=lambda entry: entry[0])
            self._sleepers.remove((moment, woken))
            self._now = max(self._now, moment)
            if not woken.done():
                woken.set_result(None)
                await run_what_is_ready()
        self._now = end
        await run_what_is_ready()

    @property
    def sleeping(self) -> int:
        """How many wait for time to pass."""
        return sum(not woken.done() for _, woken in self._sleepers)


class FakeStore:
    """Manifests and tags as a test writes them down."""

    def __init__(self) -> None:
        self.manifests: dict[tuple[str, str], ManifestRefs] = {}
        self.tags: dict[tuple[str, str], str] = {}

    def refs(self, repository: str, digest: str) -> ManifestRefs | None:
        return self.manifests.get((repository, digest))

    def tag(self, repository: str, tag: str) -> str | None:
        return self.tags.get((repository, tag))

    def sizes(self, repository: str, digest: str) -> dict[str, int]:
        refs = self.manifests.get((repository, digest))
        return dict.fromkeys(refs.blobs if refs is not None else (), 100_000)

    def tagged(self, most: int) -> list[str]:
        return sorted(f"{repository}:{tag}" for repository, tag in self.tags)[:most]


def prepare(observer: Observer, node: str, repository: str) -> None:
    """`Observer.prepare` without a thread."""
    for one, refs in observer.owners.read(
        repository, observer.owners.unread(node, repository)
    ).items():
        observer.owners.learn(repository, one, refs)


def digest(name: str) -> str:
    """A digest that a test can tell by its name; only the form is real."""
    return "sha256:" + name.encode().hex().ljust(64, "0")
