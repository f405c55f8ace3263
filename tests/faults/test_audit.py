"""The audit file of a server that is killed while it writes: whole to the cut, which is named."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from mayfly.registry.telemetry.chain import check
from tests.faults import disk_mounts
from tests.faults.disk_mounts import fill, tmpfs
from tests.support.client import ask
from tests.support.commands import mayfly, run_mayfly
from tests.support.process import PATIENCE, Mayfly

Start = Callable[..., Mayfly]

KILLED_BEFORE_REPAIR = """
import os, pathlib, signal
audit, real = os.environ["KILLED_AT"], os.ftruncate

def ftruncate(descriptor, size):
    if os.readlink(f"/proc/self/fd/{descriptor}") == audit:
        if os.fstat(descriptor).st_size > size:
            os.kill(os.getpid(), signal.SIGKILL)
    return real(descriptor, size)

os.ftruncate = ftruncate
"""
"""Kills a server that is about to take the part of a line that found room off a full disk."""


@contextmanager
def load(host: str) -> Iterator[list[int]]:
    """Several clients that ask as fast as they can, each until the server is gone.

    Yields:
        The numbers of requests that each has had answered.
    """
    over, answered = threading.Event(), [0] * 4

    def run(number: int) -> None:
        connection = HTTPConnection(host, timeout=30)
        try:
            while not over.is_set():
                connection.request("HEAD", f"/v2/team/app/manifests/{answered[number]}")
                connection.getresponse().read()
                answered[number] += 1
        except (OSError, HTTPException):
            pass  # killed
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(answered))]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def verified(audit: Path, *options: str) -> dict[str, Any]:
    """The answer of `mayfly audit verify`, which finds the chain whole."""
    found: dict[str, Any] = json.loads(run_mayfly("audit", "verify", audit, "--json", *options))
    assert found["whole"]
    return found


def test_kill_under_load(start_mayfly: Start, workspace: Path) -> None:
    """Killed at any moment, again and again: no line but the last is cut, and all are explained.

    What was in the file before the kill is there after it; what waited for its turn is not, since
    no request waits for the disk of the audit.
    """
    audit, state, chosen = workspace / "audit.jsonl", workspace / "state", random.Random(11)
    options = ("--audit", str(audit), "--audit-level", "all")
    last, cuts = 0, 0
    for _ in range(5):
        server = start_mayfly(*options, state_dir=state, root=workspace / "root")
        with load(server.host):
            enough = last + 200
            server.wait_for(lambda enough=enough: _events(audit) > enough)
            time.sleep(chosen.uniform(0, 0.2))
            seen = _events(audit)
            server.kill()
        found = verified(audit)
        # A cut of an earlier turn is no event, but a line.
        assert found["last"] >= seen - cuts
        last, cuts = found["last"], len(found["cuts"])
    server = start_mayfly(*options, state_dir=state, root=workspace / "root")
    assert server.stop() == 0
    head = json.loads((state / "report.json").read_text())["audit"]["head"]
    found = verified(audit, "--head", head)
    assert (found["first"], found["head_found"], len(found["cuts"])) == (1, True, cuts)


def _events(audit: Path) -> int:
    """The number of whole lines."""
    return audit.read_bytes().count(b"\n") if audit.exists() else 0


def test_kill_on_a_full_disk(workspace: Path) -> None:
    """Killed with a part of a line on the disk: the cut is named, before and after room is made."""
    (workspace / "sitecustomize.py").write_text(KILLED_BEFORE_REPAIR)
    plain = {name: os.environ[name] for name in os.environ if not name.startswith("MAYFLY_")}
    root, state = workspace / "root", workspace / "state"
    with tmpfs(workspace / "audit", disk_mounts.MIB) as disk:
        audit = disk / "audit.jsonl"
        options = ("--audit", str(audit), "--audit-level", "all")
        killing = plain | {"PYTHONPATH": str(workspace), "KILLED_AT": str(audit)}
        server = Mayfly(root, state, *options, env=killing)
        _ask(server, audit, 5)
        ballast = fill(disk, leave=0)
        with load(server.host):
            server.popen.wait(PATIENCE)
        assert server.popen.returncode == -9
        whole, _, torn = audit.read_bytes().rpartition(b"\n")
        assert torn
        kept = whole.count(b"\n") + 1
        cut = {"after": kept, "bytes": len(torn)}
        assert verified(audit)["cuts"] == [cut]
        shown = run_mayfly("audit", "verify", audit)
        assert f"events 1 to {kept} are whole" in shown
        assert f"after event {kept}, a crash left {len(torn)} bytes of a line" in shown
        # The next start finds no room either, and leaves all as it is until there is some.
        server = Mayfly(root, state, *options, env=plain)
        try:
            assert ask(server.host, "GET", "/v2/").status == 200
            server.wait_for(lambda: "cannot be written" in server.output())
            assert verified(audit)["cuts"] == [cut]
            ballast.unlink()
            server.wait_for(lambda: "is written again" in server.output())
            assert server.stop() == 0
        finally:
            server.kill()
        found = check(audit)
        assert (found.broken, [asdict(one) for one in found.cuts]) == (None, [cut])
        head = json.loads((state / "report.json").read_text())["audit"]["head"]
        assert verified(audit, "--head", head)["last"] > kept + 1
        # Nobody can exchange what was cut, nor take it away.
        lines = audit.read_bytes()
        for changed in (lines.replace(torn + b"\n", b""), lines.replace(torn, torn[:-1] + b"?")):
            audit.write_bytes(changed)
            assert mayfly("audit", "verify", audit).returncode == 3


def _ask(server: Mayfly, audit: Path, count: int) -> None:
    for _ in range(count):
        assert ask(server.host, "GET", "/v2/_catalog").status == 200
    server.wait_for(lambda: _events(audit) > count)
