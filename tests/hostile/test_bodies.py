"""Attacks by the bodies of requests."""

from __future__ import annotations

import contextlib
import json
import time

import pytest

from mayfly.registry.coverage.proofs import MAX_BODY
from tests.hostile.harness import Hostile
from tests.support.client import basic
from tests.support.commands import run_mayfly
from tests.support.wire import message

CRUMBS = b"1\r\nx\r\n" * 40_000


@pytest.mark.parametrize("doing", ["refused", "admitted"])
def test_one_byte_chunks(hostile: Hostile, doing: str) -> None:
    """Chunks of one byte: not decoded after a refusal, in turns where they are wanted."""
    before = {"refused": "1.5 MB/s fill a core", "admitted": "170 ms of the loop at once"}[doing]
    auth = {"refused": ("--auth", "auto"), "admitted": ()}[doing]
    hostile.serve("--drain-timeout", "1s", *auth)
    with hostile.attack_by_lines(
        f"one-byte chunks on 8 connections, {doing}", 8, before=before
    ) as (under, made):
        used = under.costs.processor
        sent = 0
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


@pytest.mark.parametrize("sent", [0, MAX_BODY // 2])
def test_proofs_that_do_not_come(hostile: Hostile, sent: int) -> None:
    """Only a few bodies for which memory is needed are received at a time."""
    count = 500 if hostile.long else 100
    server = hostile.serve("--drain-timeout", "1s", "--auth", "auto")
    where = ("--state-dir", server.state_dir)
    login = json.loads(run_mayfly("credentials", *where, "--node", "node-1", "--json"))
    headers = dict([basic(login["username"], login["password"])])
    headers["Content-Length"] = str(MAX_BODY)
    asked = message("POST", "/mayfly/v1/nodes/node-1/proof", b"", headers, close=False)
    with hostile.attack_by_lines(
        f"{count} connections of a node that begin a proof of 2 MiB and send {sent} bytes",
        count,
        before="200 MiB for 100",
        growth=32,
    ) as (under, made):
        for line in made:
            line.sendall(asked)
            line.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                line.send(bytes(sent))
        while under.going():
            time.sleep(0.01)
