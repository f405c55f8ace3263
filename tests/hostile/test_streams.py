"""Attacks by readers of the rollout page's events."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.hostile.harness import Hostile

ASK = b"GET /mayfly/v1/events HTTP/1.1\r\nHost: x\r\n\r\n"
NODES, IMAGES = 1000, 200


def test_streams_that_are_not_read(hostile: Hostile, tmp_path: Path) -> None:
    """A thousand of them, from many addresses; another one gets the state meanwhile."""
    count = 3000 if hostile.long else 1000
    (tmp_path / "nodes").write_text("\n".join(f"worker-{place}" for place in range(NODES)))
    (tmp_path / "images").write_text("\n".join(f"team/app-{place}:1" for place in range(IMAGES)))
    hostile.serve(
        *("--until-pulled", str(tmp_path / "images"), "--nodes", str(tmp_path / "nodes")),
        *("--auth", "none", "--drain-timeout", "1s"),
    )
    with hostile.attack_by_lines(
        f"{count} readers of events that read nothing",
        count,
        before="(new)",
        receive_buffer=8192,
        source=lambda number: f"127.0.{1 + number // 100}.{1 + number % 100}",
    ) as (under, made):
        for line in made:
            line.sendall(ASK)
        name, _, port = under.host.rpartition(":")
        while under.going():
            with socket.create_connection((name, int(port)), timeout=60) as honest:
                honest.sendall(ASK)
                found = b""
                while b"]}\n\n" not in found and b"}}\n\n" not in found:
                    data = honest.recv(1 << 20)
                    assert data, found[-200:]
                    found += data
                assert found.count(b'"worker-') == NODES
