"""Blobs that a client fetches in parts, as containerd 2 does."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.control.client import ask
from mayfly.registry.coverage.arrival import ACK_SLACK
from mayfly.registry.coverage.states import State
from mayfly.storage.directory.store import DistributionStore
from tests.support.images import image_body, push, put
from tests.support.process import PATIENCE, Mayfly, poll

MIB = 1024 * 1024
SIZE, PART = 24 * MIB, 4 * MIB

UNACKNOWLEDGED = 2 * 64 * 1024
"""Bytes that a host may have without having said so: it acknowledges every other segment, of at
most 64 KiB."""
NODE = "127.0.0.1"
CONFIG, LAYER = b'{"os": "linux"}', os.urandom(SIZE)


class Registry:
    """A registry with one image, and a containerd that pulls it."""

    def __init__(self, place: Path, tls: str) -> None:
        root = place / "root"
        store = DistributionStore(root)
        self.config, self.layer = (push(store, "app", one) for one in (CONFIG, LAYER))
        _, self.manifest = put(store, "app", image_body(CONFIG, [LAYER]), "1")
        store.close()
        images = place / "images"
        images.write_text("app:1\n")
        options = ["--until-pulled", str(images), "--nodes", "2", "--tls", tls, "--auth", "none"]
        self.server = Mayfly(root, place / "state", *options)
        self._secure = tls == "auto"

    @contextlib.contextmanager
    def asked(self, path: str, first: int | None = None) -> Iterator[http.client.HTTPResponse]:
        """A GET on a connection of its own, by an open-ended range if there is an offset."""
        host, _, port = self.server.host.rpartition(":")
        context = ssl._create_unverified_context() if self._secure else None
        connection = (
            http.client.HTTPSConnection(host, int(port), timeout=PATIENCE, context=context)
            if context
            else http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
        )
        headers = {"User-Agent": "containerd/v2.1.9"}
        if first is not None:
            headers["Range"] = f"bytes={first}-"
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            with connection.getresponse() as answer:
                yield answer

    def get(self, path: str, first: int | None = None, count: int | None = None) -> bytes:
        """Read some bytes of a response, then drop the connection."""
        with self.asked(path, first) as answer:
            return answer.read(count)

    def part(self, first: int, count: int = PART) -> bytes:
        """A part of the layer."""
        return self.get(f"/v2/app/blobs/{self.layer}", first, count)

    def begin(self) -> None:
        """A pull up to its layer."""
        self.get(f"/v2/app/manifests/{self.manifest}")
        assert self.get(f"/v2/app/blobs/{self.config}") == CONFIG

    def status(self) -> dict[str, Any]:
        return ask(self.server.state_dir, "status")

    def wait_for_bytes(self, count: int) -> None:
        """Wait until the status has some bytes sent: threads send, and are asked at times."""
        poll(lambda: self.status()["bytes_out"] >= count, self.status)

    def wait_for(self, state: State) -> None:
        """Wait until the node has a state with the image."""
        poll(lambda: self.status()["coverage"]["matrix"]["app:1"].get(NODE) == state, self.status)

    def report(self) -> dict[str, Any]:
        """Return the report's record of the node."""
        self.server.popen.terminate()
        self.server.popen.wait(PATIENCE)
        found = json.loads((self.server.state_dir / "report.json").read_text())
        pulls: dict[str, Any] = found["images"][0]["pulls"][0]
        return pulls


@pytest.fixture(params=["off", "auto"], ids=["plain", "tls"])
def registry(workspace: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Registry]:
    """One without TLS, and one with it."""
    place = workspace / tmp_path.name
    place.mkdir()
    made = Registry(place, request.param)
    yield made
    if made.server.running:
        made.server.kill()


def side_by_side(calls: list[Callable[[], bytes]]) -> list[bytes]:
    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(lambda call: call(), calls))


def test_parts_side_by_side(registry: Registry) -> None:
    """Open-ended ranges, of each of which the client reads its part and drops the rest, make the
    blob whole, and the report has its bytes."""
    registry.begin()
    firsts = range(0, SIZE, PART)
    parts = side_by_side([partial(registry.part, first) for first in firsts])
    assert b"".join(parts) == LAYER
    registry.wait_for(State.SERVED)
    # More was on its way than the client read; of each cut the last acknowledgements may be lost.
    least = SIZE - len(firsts) * ACK_SLACK
    assert least <= registry.report()["bytes"] <= len(firsts) * SIZE


def test_part_that_never_came(registry: Registry) -> None:
    """Without one of the parts the image is not served, even if the last part arrived."""
    registry.begin()
    missing = 2 * PART
    firsts = [first for first in range(0, SIZE, PART) if first != missing]
    with registry.asked(f"/v2/app/blobs/{registry.layer}", missing):
        side_by_side([partial(registry.part, first) for first in firsts])
    registry.wait_for(State.FAILED)
    assert registry.part(missing)
    registry.wait_for(State.SERVED)


def test_resumed_where_the_client_stood(registry: Registry) -> None:
    """A client that resumes at the byte at which it was interrupted has all of the blob; the status
    has the transfer under way, and the report the aborted one."""
    registry.begin()
    begun = registry.status()["bytes_out"]
    with registry.asked(f"/v2/app/blobs/{registry.layer}") as answer:
        head = answer.read(9 * MIB + 123)
        registry.wait_for_bytes(begun + len(head))
    registry.wait_for(State.FAILED)
    assert head + registry.get(f"/v2/app/blobs/{registry.layer}", len(head)) == LAYER
    registry.wait_for(State.SERVED)
    pull = registry.report()
    # The last acknowledgement is delayed, and lost with a connection that its peer cuts.
    assert SIZE - UNACKNOWLEDGED <= pull["bytes"] < SIZE + 12 * MIB
    assert pull["retries"] == 1
