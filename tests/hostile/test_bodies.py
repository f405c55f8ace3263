"""Attacks by the bodies of requests."""

from __future__ import annotations

import contextlib

import pytest

from tests.hostile.harness import Hostile
from tests.hostile.test_heads import lines

CRUMBS = b"1\r\nx\r\n" * 40_000


@pytest.mark.parametrize("doing", ["refused", "admitted"])
def test_one_byte_chunks(hostile: Hostile, doing: str) -> None:
    """Chunks of one byte: not decoded after a refusal, in turns where they are wanted."""
    before = {"refused": "1.5 MB/s fill a core", "admitted": "170 ms of the loop at once"}[doing]
    auth = {"refused": ("--auth", "auto"), "admitted": ()}[doing]
    hostile.serve("--drain-timeout", "1s", *auth)
    with hostile.attack(f"one-byte chunks on 8 connections, {doing}", before=before) as under:
        used = under.costs.processor
        sent = 0
        with lines(under.host, 8) as made:
            for line in made:
                line.sendall(b"POST /v2/a/blobs/uploads/?digest=sha256:" + b"0" * 64)
                line.sendall(b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
                line.settimeout(0.1)
            while under.going():
                for line in made:
                    with contextlib.suppress(TimeoutError, ConnectionError):
                        sent += line.send(CRUMBS)
        used = under.costs.processor - used
        under.note(f"{sent / max(used, 0.01) / 1e6:.0f} MB for a second of processor time")
