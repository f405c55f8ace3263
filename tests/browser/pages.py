"""Pages of made-up states: the real endpoints in this process, on a thread with a loop of its own.

A view takes the place of what the registry would find out about its nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mayfly.registry.page.view import Failed, ImageView, NodeView, Proof, Pulling, Served, View
from tests.browser.conftest import Tab
from tests.security.registries import Registry, password_of, registry
from tests.support.process import PATIENCE
from tests.support.views import run

MIB = 1 << 20
HOUR = 3600


class Pages:
    """A registry whose page shows a view.

    Attributes:
        view: what the next look finds.
        origin: of the page.
        registry: that has the page; belongs to the other thread.
    """

    def __init__(self, root: Path, view: View) -> None:
        self.view = view
        self.origin = ""
        self.registry: Registry
        self._root = root
        self._loop: asyncio.AbstractEventLoop
        self._begun, self._over = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with registry(self._root) as made:
            made.hooks.feed()._look = self._look
            self.registry, self.origin = made, made.server.url
            self._begun.set()
            await self._over.wait()

    async def _look(self) -> View:
        return self.view

    def begin(self) -> None:
        """Serve."""
        self._thread.start()
        assert self._begun.wait(PATIENCE)

    def drain(self) -> None:
        """End the streams, as a server does that drains."""
        self._loop.call_soon_threadsafe(self.registry.hooks.feed().drain)

    def end(self) -> None:
        """End the server."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE)


@contextlib.contextmanager
def pages(root: Path, view: View) -> Iterator[Pages]:
    """Serve pages that show a view, while the block runs."""
    made = Pages(root, view)
    made.begin()
    try:
        yield made
    finally:
        made.end()


def log_in(tab: Tab) -> None:
    """As the admin of the made-up registry."""
    tab.log_in("admin", password_of("admin"))


def images(count: int) -> Served:
    """Images as a platform has them: of a few bases, and of layers of their own."""
    chance = random.Random(count)
    layers = [(f"sha256:{place:064x}", chance.randint(20, 90) * MIB) for place in range(8)]
    made = []
    for place in range(count):
        own = chance.randint(1, 3)
        layers += [
            (f"sha256:{len(layers) + more:064x}", chance.randint(1, 40) * MIB)
            for more in range(own)
        ]
        used = [place % 8, *range(len(layers) - own, len(layers))]
        name = f"registry.example/platform/{_TEAMS[place % len(_TEAMS)]}-{_PARTS[place % 7]}"
        made.append(
            ImageView(
                name=f"{name}:{2 + place % 3}.{place % 10}.0",
                digest=f"sha256:{place:064x}",
                size=sum(layers[one][1] for one in used),
                layers=used,
            )
        )
    return Served(sources=["upgrade-2026.11.tar"], images=made, layers=layers)


_TEAMS = ("billing", "checkout", "identity", "inventory", "ledger", "mail", "search", "shipping")
_PARTS = ("api", "cache", "gateway", "jobs", "proxy", "store", "web")


def fleet(nodes: int, served: Served, *, second: int = 0) -> View:
    """An upgrade under way: the first nodes have everything, the last ones nothing.

    Args:
        nodes: number of them.
        served: the images.
        second: of the upgrade; more nodes have more images with each.
    """
    count = len(served["images"])
    chance = random.Random(1)
    found: dict[str, NodeView] = {}
    covered = sent = 0
    for place in range(nodes):
        reached = chance.random() * 0.3 + 1.1 - place / nodes + second / 100
        has = min(int(max(reached - 0.4, 0) * 1.6 * count), count)
        proven = chance.random() < 0.5
        states = [("p" if proven else "s") if image < has else "m" for image in range(count)]
        pulling, failed = [], []
        for image in range(has, min(has + 2, count) if has else 0):
            states[image] = "u"
            total = served["images"][image]["size"] or 0
            share = ((place + second) % 20) / 20
            pulling.append(Pulling(image, int(total * share), total))
        if place % 97 == 13 and has:
            states[has - 1] = "f"
            digest = served["images"][has - 1]["digest"]
            failed.append(Failed(has - 1, f"{digest} stopped at 12.0 MiB of 40.0 MiB"))
        covered += has == count and not failed
        sent += has * 60 * MIB + sum(one.bytes for one in pulling)
        proof = Proof(1_700_000_000, has, has, 40 << 30) if proven and has else None
        name = f"worker-{place:03d}.rack{place // 40:02d}"
        found[name] = NodeView("".join(states), tuple(pulling), tuple(failed), proof)
    moving = sum(len(node.pulling) for node in found.values())
    ends = [
        {"text": "when every node has every image", "at": None},
        {"text": "after 8 h", "at": int(time.time()) + 5 * HOUR},
    ]
    state = run(
        url="https://upgrade.example:5000",
        version="1.0",
        wanted=nodes,
        covered=covered,
        bytes_out=sent,
        transfers=moving,
        ends=ends,
        denied=[{"user": "deploy", "address": "10.4.0.17", "requests": 3}],
        warnings=["the disk of the registry has 2.1 GiB left"],
    )
    return View(state, served, found)
