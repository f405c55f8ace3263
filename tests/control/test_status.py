"""The state of a server as programs read it: what ends it, over the socket and over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.api.status import FRESH_SECONDS, StatusDocument
from mayfly.registry.control.client import ask
from mayfly.registry.control.status_text import ends_rows
from mayfly.registry.ending import EndKind
from tests.support.stubs import Stub, pull

Start = Callable[..., Stub]


def _ends(stub: Stub) -> dict[str, float | None]:
    """What ends a server: the conditions, joined, and the seconds until then."""
    found = ask(stub.state_dir, "status")["ends"]
    return {"+".join(one["conditions"]): one["seconds"] for one in found}


def test_what_ends_a_server(start: Start, tmp_path: Path) -> None:
    """Each condition that was asked for, those of one word with the time that is left."""
    images = tmp_path / "images"
    images.write_text("team/app:1\n")
    stub = start(idle_timeout=400.0, unused_timeout=500.0, max_lifetime=600.0).ready()
    found = _ends(stub)
    assert list(found) == ["idle", "unused", "deadline"]
    assert found["idle"] is None, "nothing was pulled, so it is not armed"
    assert 400 < (found["unused"] or 0) <= 500
    assert 500 < (found["deadline"] or 0) <= 600
    pull(stub.port, "node-a")
    found = _ends(stub)
    assert list(found) == ["idle", "deadline"], "something was pulled: it is used"
    assert 300 < (found["idle"] or 0) <= 400
    stub.stop()
    options: dict[str, Any] = {"until_pulled": images, "nodes": "1", "idle_timeout": 400.0}
    stub = start(**options, state_dir=tmp_path / "first").ready()
    assert list(_ends(stub)) == ["covered", "idle"]
    stub.stop()
    stub = start(**options, until_all=True, state_dir=tmp_path / "all").ready()
    assert _ends(stub) == {"covered+idle": None}
    stub.stop()
    stub = start("sleep", "100", **options, state_dir=tmp_path / "command").ready()
    assert _ends(stub) == {"command+covered": None, "command+idle": None}
    stub.stop()


def test_what_ends_a_server_in_words() -> None:
    """Every condition has words; one of a newer server is shown as it is."""
    for kind in EndKind:
        if kind not in (EndKind.STOP, EndKind.SIGNAL, EndKind.PREFETCH, EndKind.FAILED):
            (row,) = ends_rows([{"conditions": [kind], "seconds": None}])
            assert row[1] != str(kind)
    (row,) = ends_rows(
        [
            {"conditions": ["covered", "idle"], "seconds": None},
            {"conditions": ["eclipse"], "seconds": 90.0},
        ]
    )
    assert row[1] == "when every node has every image and when idle, or eclipse (in 1m 30s)"
    assert ends_rows([]) == []


async def test_one_document_for_all_requests() -> None:
    """Fifty at once have it made once; it is made anew when it is old, and not kept."""
    made = 0

    async def status() -> dict[str, Any]:
        nonlocal made
        made += 1
        await asyncio.sleep(0)
        return {"made": made, "node": "knöten"}

    document = StatusDocument(status)
    found = await asyncio.gather(*(document.get() for _ in range(50)))
    assert made == 1
    assert {json.loads(one)["made"] for one in found} == {1}
    assert "knöten" in found[0].decode()
    await asyncio.sleep(1.5 * FRESH_SECONDS)
    assert json.loads(await document.get())["made"] == 2


async def test_a_failure_is_not_kept() -> None:
    """The next request has it made again."""
    fails = True

    async def status() -> dict[str, Any]:
        if fails:
            raise OSError("disk")
        return {}

    document = StatusDocument(status)
    with pytest.raises(OSError, match="disk"):
        await document.get()
    fails = False
    assert await document.get() == b"{}\n"
