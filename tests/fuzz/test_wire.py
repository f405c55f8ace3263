"""Mutated requests against real servers: each exchange ends, nothing breaks, nothing is left.

`MAYFLY_FUZZ_REQUESTS` says how many, `MAYFLY_FUZZ_SEED` from which seed; a failure names it.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mayfly.storage.digest import HEX_LENGTHS
from tests.fuzz import servers
from tests.fuzz.budget import REQUESTS, SEED
from tests.fuzz.connections import Played, play
from tests.fuzz.messages import Message
from tests.fuzz.mutations import Exchange, Mutator
from tests.fuzz.seeds import manifest
from tests.fuzz.servers import OPEN, Fuzzed
from tests.support.commands import mayfly
from tests.support.images import files
from tests.support.process import Mayfly

ROUND = 250
"""Exchanges until upload sessions are opened anew."""

MEMORY = 200 * 1024 * 1024
"""Bytes that a server has at most, however many requests it had."""

_HEX = r"(?:sha256/[0-9a-f]{64}|sha512/[0-9a-f]{128})"
_NAME = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
_TAG = r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"
_RECORD = re.compile(r"blobs/.*/_mayfly_size_([0-9]+)")
KEPT = {"report.json", "verified"}
"""What a server leaves in its state directory."""

_BLOB = re.compile(r"blobs/(sha256|sha512)/[0-9a-f]{2}/([0-9a-f]+)/data")
_LINK = re.compile(
    rf"repositories/{_NAME}/(?:_layers/{_HEX}|_manifests/revisions/{_HEX}|"
    rf"_manifests/tags/{_TAG}/(?:current|index/{_HEX}))/link"
)
_UPLOAD = re.compile(rf"repositories/{_NAME}/_uploads/([0-9a-f-]{{36}})/[a-z_]+")
_OURS = re.compile(rf"(?:repositories/{_NAME}/)?_mayfly/.*")

Start = Callable[..., AbstractContextManager[Fuzzed]]
SERVERS: dict[str, tuple[Start, float, set[int]]] = {
    "open": (servers.opened, 0.4, {200, 201, 202, 400, 404}),
    "guarded": (servers.guarded, 0.35, {200, 400, 401, 404}),
    "overlay": (servers.overlaid, 0.25, {200, 201, 202, 400, 404}),
}
"""How each is started, its share of the requests, and what it answers to some of them: mutations
that nothing but a parser ever saw would show little."""


def _exchanges(server: Fuzzed, name: str, number: int) -> list[Exchange]:
    chance = random.Random(f"{SEED} {name} {number}")
    seeds, mutator = server.seeds(chance), Mutator(f"{SEED} {name} {number}")
    return [mutator.exchange(seeds) for _ in range(ROUND)]


def _hurt(played: Iterable[Played]) -> Iterator[str]:
    """What no answer may be."""
    for one in played:
        # 505 refuses a version of HTTP: the client's fault by a number of ours.
        if any(status >= 500 and status != 505 for status in one.statuses):
            yield f"a server error: {one}"
        if b"\r\nx-evil" in one.received.lower():
            yield f"a header of the client's: {one}"
        if one.received and not one.received.startswith(b"HTTP/"):
            yield f"no HTTP: {one}"


@pytest.mark.parametrize("name", SERVERS)
def test_mutated_requests(
    name: str,
    start_mayfly: Callable[..., Mayfly],
    tmp_path: Path,
) -> None:
    """No server error, no hang, no error in the log, and a store that every file belongs in."""
    opened, share, expected = SERVERS[name]
    print(f"MAYFLY_FUZZ_SEED={SEED}")
    with opened(start_mayfly, tmp_path) as server:
        log, before = server.process.output(), files(server.process.root)
        state = {path.name for path in server.process.state_dir.iterdir()}
        sessions, unseen, statuses = set[str](), 0, Counter[int]()
        for number in range(max(1, round(REQUESTS * share / ROUND))):
            played = asyncio.run(play(server.process.host, _exchanges(server, name, number)))
            assert list(_hurt(played)) == []
            assert server.writable or not any(servers.private(one.received) for one in played)
            for one in played:
                sessions |= one.sessions
                unseen += one.unseen
                statuses.update(one.statuses)
        _show(name, statuses, server)
        assert statuses.keys() >= expected
        assert unexpected(server.process.output().removeprefix(log)) == []
        assert server.memory() < MEMORY
        if server.writable:
            _pull(server)
        if name == "open":
            for repository in OPEN:  # a mutation may have deleted what an image needs
                servers.push(server, repository)
        assert server.process.stop() == 0
        assert {path.name for path in server.process.state_dir.iterdir()} <= state | KEPT
        after = files(server.process.root)
    if not server.writable:
        assert after == before
        return
    strange = _strangers(server.process.root, after, sessions | server.sessions)
    assert len(strange) <= unseen, strange
    if name == "open":  # what was pushed over a bundle may need content of that
        checked = mayfly("verify", "--root", server.process.root)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def unexpected(log: str) -> list[str]:
    """Lines of a log that no client may cause: errors, and what is no line of the log.

    A mutated Content-Length may be larger than the disk, which is refused as a full disk is.
    """
    expected = re.compile(r"\S+Z (INFO |WARNING |ERROR   the disk is full: )")
    return [line for line in log.splitlines() if not expected.match(line)]


def _show(name: str, statuses: Counter[int], server: Fuzzed) -> None:
    counts = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
    print(f"{name}: {statuses.total()} answers ({counts}), {server.memory() / 2**20:.0f} MiB")


def _pull(server: Fuzzed) -> None:
    """The server still takes an image, and gives it back whole."""
    servers.push(server, "after/all")
    assert server.ask("GET", "/v2/after/all/manifests/latest").body == manifest()
    assert OPEN[0] in server.ask("GET", "/v2/_catalog").json["repositories"]


def _strangers(root: Path, found: dict[str, bytes], sessions: set[str]) -> set[str]:
    """Upload sessions that no answer told of; any other file that has no place is a failure."""
    untold = set()
    for path, data in found.items():
        inside = path.removeprefix("docker/registry/v2/")
        if size := _RECORD.fullmatch(inside):
            assert data == b""
            assert len(found[path.rpartition("/")[0] + "/data"]) == int(size[1]), path
        elif blob := _BLOB.fullmatch(inside):
            assert hashlib.new(blob[1], data).hexdigest() == blob[2], path
        elif _LINK.fullmatch(inside):
            algorithm, _, encoded = data.decode().partition(":")
            assert len(encoded) == HEX_LENGTHS[algorithm], path
        elif session := _UPLOAD.fullmatch(inside):
            untold |= {session[1]} - sessions
        else:
            assert _OURS.fullmatch(inside), path
    return untold


def test_the_same_seed_sends_the_same_bytes() -> None:
    """A failure can be played again."""
    made = servers.Fuzzed(None, OPEN, writable=False)  # type: ignore[arg-type]
    first, second, other = (
        [Mutator(seed).exchange(made.seeds(random.Random(1))) for _ in range(20)]
        for seed in (1, 1, 2)
    )
    assert first == second != other


def test_valid_requests_are_understood(start_mayfly: Callable[..., Mayfly], tmp_path: Path) -> None:
    """What is mutated is right to begin with, but for one upload that is finished too early."""
    statuses = dict[bytes, set[int]]()
    refused = list[Message]()
    with servers.opened(start_mayfly, tmp_path) as server:
        for one in server.seeds(random.Random(SEED)):
            one.headers.append((b"Connection", b"close"))
            exchange = Exchange((one.render(),), vanish=False, posts=0)
            (played,) = asyncio.run(play(server.process.host, [exchange], answered=True))
            status = played.statuses[-1]
            statuses.setdefault(one.method, set()).add(status)
            if status >= 400 and status not in (404, 416):
                refused.append(one)
    assert statuses.keys() == {b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE"}
    assert all(min(found) < 300 for found in statuses.values())
    assert {one.method for one in refused} == {b"PUT"}
    assert all((b"Expect", b"100-continue") in one.headers for one in refused), refused
