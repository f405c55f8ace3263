"""A server that collects every second, beside clients that push, mount, pull and delete."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.support import client
from tests.support.images import digest_of
from tests.support.process import Mayfly

SECONDS = float(os.environ.get("MAYFLY_SOAK_SECONDS", "8"))
"""How long clients work; `make soak` gives a minute."""

CLIENTS = 4
LAYER_BYTES = 64 * 1024


def _before(end: float) -> bool:
    return time.monotonic() < end


class Pusher:
    """One client with a repository of its own; what it was told is kept, it looks for later."""

    def __init__(self, host: str, number: int, seed: int) -> None:
        self._host = host
        self.repository = f"client{number}/app"
        self._chance = random.Random(f"{seed} {number}")
        self._number = number
        self._seed = seed
        self.kept: dict[str, tuple[str, list[str]]] = {}
        self.error: BaseException | None = None

    def ask(self, method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
        """One request."""
        answer = client.ask(self._host, method, target, body)
        return answer.status, answer.body

    def work(self, going: Callable[[], bool]) -> None:
        """Push images as long as that holds; an error is kept for `check`."""
        try:
            turn = 0
            while going():
                self._turn(turn)
                turn += 1
        except BaseException as error:
            self.error = error

    def check(self) -> None:
        """See that nothing went wrong, and that everything that was kept is there and right."""
        assert self.error is None, f"seed {self._seed}: {self.error!r}"
        for tag, (digest, blobs) in self.kept.items():
            for target in [f"manifests/{tag}", *(f"blobs/{blob}" for blob in blobs)]:
                status, body = self.ask("GET", f"/v2/{self.repository}/{target}")
                assert status == 200, f"seed {self._seed}: {target}: {body!r}"
                assert digest_of(body) in (digest, *blobs)

    def _turn(self, turn: int) -> None:
        shared = b"shared %d " % self._chance.randrange(3) * 4096
        own = self._chance.randbytes(LAYER_BYTES)
        config = json.dumps({"client": self._number, "turn": turn}).encode()
        blobs = [config, shared, own]
        for blob in blobs:
            self._push(blob)
        descriptors = [
            {"mediaType": "application/octet-stream", "digest": digest_of(b), "size": len(b)}
            for b in blobs
        ]
        manifest = json.dumps(
            {"schemaVersion": 2, "config": descriptors[0], "layers": descriptors[1:]}
        ).encode()
        target = f"/v2/{self.repository}/manifests"
        tag = f"t{turn % 5}"
        status, body = self.ask("PUT", f"{target}/{tag}", manifest)
        assert status == 201, body
        before = self.kept.get(tag)
        self.kept[tag] = (digest_of(manifest), [digest_of(b) for b in blobs])
        if before is not None:
            assert self.ask("DELETE", f"{target}/{before[0]}")[0] == 202

    def _push(self, blob: bytes) -> None:
        digest = digest_of(blob)
        uploads = f"/v2/{self.repository}/blobs/uploads/"
        if self._chance.random() < 0.5:
            # As docker does: is it there, may it be mounted, and only then is it sent.
            if self.ask("HEAD", f"/v2/{self.repository}/blobs/{digest}")[0] == 200:
                return
            status, _ = self.ask("POST", f"{uploads}?mount={digest}")
            if status == 201:
                return
        status, body = self.ask("POST", f"{uploads}?digest={digest}", blob)
        assert status == 201, body


def test_nothing_tagged_is_lost(start_mayfly: Callable[..., Mayfly]) -> None:
    """Everything a tag names is there and right, and what was deleted gave its space back."""
    server = start_mayfly("--gc-interval", "1s", "--gc-grace", "2s")
    seed = random.randrange(2**32)
    pushers = [Pusher(server.host, number, seed) for number in range(CLIENTS)]
    until = time.monotonic() + SECONDS
    going = partial(_before, until)
    threads = [threading.Thread(target=pusher.work, args=(going,)) for pusher in pushers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pusher in pushers:
        pusher.check()
    kept = {d for p in pushers for digest, blobs in p.kept.values() for d in (digest, *blobs)}

    def stored() -> set[str]:
        found: set[str] = set()
        for directory, _, files in os.walk(server.root / "docker/registry/v2/blobs"):
            if "data" in files:
                found.add(f"sha256:{Path(directory).name}")
        return found

    server.wait_for(lambda: stored() == kept)
