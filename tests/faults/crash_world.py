"""A store whose server is killed again and again under its clients, and looked at each time."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.crash_client import (
    CONTENDED,
    KEPT_DELETIONS,
    Client,
    may_be_collected,
)
from tests.faults.crash_model import Key, Model, Race
from tests.faults.crash_wire import Wire, offset_of
from tests.support.images import digest_of
from tests.support.process import REPO, Mayfly, Process

CLIENTS = 4
GRACE = 2
LONGEST = 1.4
"""Seconds until a server is killed, at the latest."""


@dataclass
class Figures:
    """What a run did."""

    rounds: int = 0
    operations: int = 0
    checked: int = 0
    resumed: int = 0
    kills_in_transfer: int = 0
    kills_at_start: int = 0

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds, {self.operations} acknowledged changes, "
            f"{self.checked} looks at what was acknowledged, {self.resumed} uploads continued, "
            f"{self.kills_in_transfer} kills in the middle of a transfer, "
            f"{self.kills_at_start} in the middle of a start"
        )


class World:
    """A store, its clients' models, and what happens to them.

    Args:
        home: a directory of its own.
        seed: of everything that is left to chance.
        options: further arguments of the server.
    """

    def __init__(self, home: Path, seed: object, *options: str) -> None:
        self.figures = Figures()
        self._below: set[str] = set()
        self._home = home
        self._seed = seed
        self._options = ("--gc-interval", "1s", "--gc-grace", f"{GRACE}s", *options)
        self._race = Race()
        chance = random.Random(f"{seed} shared")
        shared = [chance.randbytes(60_000) for _ in range(5)]
        self.clients = [
            Client(number, Model(), self._race, shared, GRACE) for number in range(CLIENTS)
        ]
        for client in self.clients:
            client.others = [other for other in self.clients if other is not client]

    def lies_below(self, repository: str, tag: str, blobs: list[bytes], body: bytes) -> None:
        """The server was given a bundle with this image; the first client works with it."""
        model = self.clients[0].model
        digest = digest_of(body)
        model.bodies[digest] = body
        model.known[Key("tag", repository, tag)] = digest
        model.known[Key("manifest", repository, digest)] = digest
        for blob in blobs:
            model.known[Key("blob", repository, digest_of(blob))] = digest_of(blob)
        self._below |= {digest, *map(digest_of, blobs)}

    def run(self, rounds: int) -> None:
        """Kill and look, a number of times; then stop the server as it should be, and look."""
        server = self._start()
        try:
            for client in self.clients:
                chance = random.Random(f"{self._seed} {client.number}")
                client.begin_life(self._calm_wire(server), chance)
                client.prepare()
                client.wire.close()
            for number in range(rounds):
                chance = random.Random(f"{self._seed} round {number}")
                self._round(server, number, chance)
                server.kill()
                if chance.random() < 0.2:
                    self._kill_at_start(chance.random() * 0.7)
                server = self._start()
                self._look(server, chance)
                self.figures.rounds += 1
            self._look_at_the_end(server)
            server.stop()
        finally:
            server.kill()
            self.figures.operations = sum(client.model.acknowledged for client in self.clients)

    def _start(self) -> Mayfly:
        return Mayfly(self._home / "root", self._home / "state", *self._options)

    def _kill_at_start(self, after: float) -> None:
        # As Mayfly starts it, without the wait until it is ready.
        argv = [sys.executable, "-m", "mayfly", "serve", "--root", self._home / "root"]
        argv += ["--state-dir", self._home / "state", "--listen", "127.0.0.1:0", *self._options]
        env = {name: os.environ[name] for name in os.environ if not name.startswith("MAYFLY_")}
        starting = Process(argv, self._home / "starting.log", env=env, cwd=REPO)
        time.sleep(after)
        starting.kill()
        self.figures.kills_at_start += 1

    def _round(self, server: Mayfly, number: int, chance: random.Random) -> None:
        """All clients work until one of three limits is reached: bytes, operations or time."""
        killed = threading.Event()
        limit_bytes, limit_operations, seconds = chance.choice(
            [
                (chance.randint(1, 4_000_000), None, LONGEST),
                (None, chance.randint(1, 250), LONGEST),
                (None, None, chance.random() * LONGEST),
            ]
        )
        sent = operations = 0
        lock = threading.Lock()
        wires: list[Wire] = []

        def kill() -> None:
            with lock:
                if not killed.is_set():
                    self.figures.kills_in_transfer += any(wire.sending for wire in wires)
                    killed.set()
                    server.popen.kill()

        def tick(size: int, answers: int) -> None:
            nonlocal sent, operations
            with lock:
                sent += size
                operations += answers
                over = (limit_bytes is not None and sent >= limit_bytes) or (
                    limit_operations is not None and operations >= limit_operations
                )
            if over:
                kill()

        errors: list[BaseException] = []

        def work(client: Client) -> None:
            try:
                client.work()
            except BaseException as error:
                errors.append(error)
                kill()

        for client in self.clients:
            wires.append(Wire(server.host, tick, killed.is_set))
            client.begin_life(wires[-1], random.Random(f"{self._seed} {number} {client.number}"))
        threads = [threading.Thread(target=work, args=(client,)) for client in self.clients]
        timer = threading.Timer(seconds, kill)
        for thread in [*threads, timer]:
            thread.start()
        for thread in threads:
            thread.join()
        timer.cancel()
        timer.join()
        for wire in wires:
            wire.close()
        if errors:
            raise AssertionError(server.describe()) from errors[0]

    # Looking

    def _calm_wire(self, server: Mayfly) -> Wire:
        return Wire(server.host, lambda size, answers: None, lambda: False)

    def _look(self, server: Mayfly, chance: random.Random) -> None:
        """Everything acknowledged is there and right, and nothing else is."""
        wire = self._calm_wire(server)
        for client in self.clients:
            client.begin_life(wire, chance)
            self._settle(wire, client.model)
        answer = wire.ask("GET", CONTENDED.path)
        assert answer.status == 200
        assert digest_of(answer.body) in self._race.candidates()
        self._race.confirm(digest_of(answer.body))
        for client in self.clients:
            self._look_at_sessions(wire, client, chance)
            self._look_at_things(wire, client.model)
            self._look_at_referrers(wire, client.model)
            client.model.forget_deleted(KEPT_DELETIONS)
        wire.close()
        self._look_at_the_disk()
        assert "Traceback" not in server.output(), server.describe()

    def _settle(self, wire: Wire, model: Model) -> None:
        """What was in doubt is seen, and is one of two things."""
        for key, possible in model.doubt.items():
            began = time.time()
            answer = wire.ask("HEAD", key.path)
            found = answer.headers["Docker-Content-Digest"] if answer.status == 200 else None
            assert found in possible or (key.kind == "blob" and found is None), (
                key,
                found,
                possible,
            )
            # A blob's time is that of the request in doubt at the latest; HEAD renews it.
            model.confirm(key, found, began)
        model.doubt = {}

    def _look_at_sessions(self, wire: Wire, client: Client, chance: random.Random) -> None:
        """Each upload stands where it was acknowledged or beyond; some are completed now."""
        model = client.model
        for location, session in list(model.sessions.items()):
            answer = wire.ask("GET", location)
            if answer.status == 404:
                assert session.ending, f"upload {location} is gone"
                model.lost_sessions += 1
                del model.sessions[location]
                continue
            assert answer.status == 204
            offset = offset_of(answer)
            sent = max(session.sent, session.acknowledged)
            assert session.acknowledged <= offset <= sent, (session.acknowledged, offset, sent)
            session.acknowledged = offset
            session.ending = False
            if session.content and chance.random() < 0.5:
                client.complete(location)
                self.figures.resumed += 1
            elif not session.content:
                assert wire.ask("DELETE", location).status == 204
                del model.sessions[location]

    def _look_at_things(self, wire: Wire, model: Model) -> None:
        referenced = set().union(*(client.model.references() for client in self.clients))
        for key, value in list(model.known.items()):
            answer = wire.ask("GET", key.path)
            if value is None:
                assert answer.status == 404, f"{key} was deleted, and is there"
                continue
            if answer.status == 404 and key.kind == "blob" and key not in referenced:
                assert may_be_collected(model.touched.get(key, 0), GRACE), f"{key} is lost"
                del model.known[key]
                continue
            assert answer.status == 200, f"{key} is lost: {answer.status} {answer.body!r}"
            assert digest_of(answer.body) == value, f"{key} is wrong"
            assert answer.headers["Docker-Content-Digest"] == value
            self.figures.checked += 1
            if key.kind != "blob" or key in referenced:
                # Of others it would renew the age, and nothing were ever collected.
                head = wire.ask("HEAD", key.path)
                assert (head.status, head.headers["Content-Length"]) == (200, str(len(answer.body)))

    def _look_at_referrers(self, wire: Wire, model: Model) -> None:
        wanted: dict[tuple[str, str], set[str]] = {}
        for key, value in model.known.items():
            subject = (
                json.loads(model.bodies[key.name]).get("subject")
                if key.kind == "manifest"
                else None
            )
            if subject:
                found = wanted.setdefault((key.repository, subject["digest"]), set())
                found |= {key.name} if value else set()
        for (repository, subject), digests in wanted.items():
            answer = wire.ask("GET", f"/v2/{repository}/referrers/{subject}")
            assert {d["digest"] for d in json.loads(answer.body)["manifests"]} == digests

    def _look_at_the_disk(self) -> None:
        """Every file of the store is one that the models explain."""
        base = self._home / "root/docker/registry/v2"
        for path in _files(base / "blobs"):
            try:
                content = path.with_name("data").read_bytes()
                assert digest_of(content) == f"sha256:{path.parent.name}", path
                assert path.name in ("data", f"_mayfly_size_{len(content)}"), path
            except FileNotFoundError:
                continue  # collected meanwhile
        scratch = list((base / "_mayfly/scratch").iterdir())
        assert len(scratch) == 1, scratch
        assert list(scratch[0].iterdir()) == []
        known = {loc.rpartition("/")[2] for c in self.clients for loc in c.model.sessions}
        uploads = [p for p in _sessions(base / "repositories") if p.name not in known]
        lost = sum(client.model.lost_sessions for client in self.clients)
        assert len(uploads) <= lost, (uploads, lost)

    def _look_at_the_end(self, server: Mayfly) -> None:
        """Once the collector came by, there is what manifests name, and no link leads nowhere.

        What a bundle has may be in the store too, or not.
        """
        base = self._home / "root/docker/registry/v2"
        wire = self._calm_wire(server)
        for client in self.clients:
            client.begin_life(wire, random.Random(0))
            for location in list(client.model.sessions):
                client.complete(location)
        wire.close()
        referenced = {blob.name for c in self.clients for blob in c.model.references()}
        referenced |= {key.name for c in self.clients for key in c.model.held("manifest")}

        def stored() -> set[str]:
            return {f"sha256:{path.parent.name}" for path in _files(base / "blobs")}

        wanted = referenced - self._below
        server.wait_for(lambda: stored() - self._below == wanted)
        for link in (base / "repositories").glob("**/_layers/*/*/link"):
            assert link.read_text() in referenced | self._below, link


def _sessions(repositories: Path) -> Iterator[Path]:
    for parent, names, _ in os.walk(repositories):  # which bears what is removed meanwhile
        if Path(parent).name == "_uploads":
            yield from (Path(parent) / name for name in names)


def _files(directory: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(directory):
        for name in names:
            yield Path(parent) / name
