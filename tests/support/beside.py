"""What runs beside a test: actions of threads, HTTP servers, turns of the event loop."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def repeating(
    action: Callable[[], object], pause: float = 0.0, *, at_once: int = 1
) -> Iterator[None]:
    """Repeat an action in threads while the block runs; what it raises is raised at the end.

    Args:
        pause: seconds before each time.
        at_once: number of threads.
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(pause):
            action()

    with ThreadPoolExecutor(at_once) as threads:
        running = [threads.submit(repeat) for _ in range(at_once)]
        try:
            yield
        finally:
            over.set()
    for one in running:
        one.result()


class _Server(ThreadingHTTPServer):
    def __init__(self, answer: Callable[[Any], object], kind: type[Request]) -> None:
        super().__init__(("127.0.0.1", 0), kind)
        self.answer = answer


class Request(BaseHTTPRequestHandler):
    """A request to `answering`."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def _answer(self) -> None:
        self.server.answer(self)

    do_GET = do_HEAD = do_POST = _answer  # noqa: N815 - what the base class calls

    def log_message(self, format: str, *args: object) -> None:
        """See `BaseHTTPRequestHandler.log_message`; nothing is logged."""

    def reply(self, status: int, body: bytes = b"", *headers: tuple[str, str]) -> None:
        """Send a response with its length."""
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def answering(
    answer: Callable[[Any], object],
    tls: ssl.SSLContext | None = None,
    kind: type[Request] = Request,
) -> Iterator[str]:
    """Serve HTTP on a port of loopback while the block runs; host and port.

    Args:
        answer: gets each request, which is a ``kind``.
        tls: None for none.
    """
    with _Server(answer, kind) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


async def run_what_is_ready(turns: int = 20) -> None:
    """Let everything that can run now run, for some turns of the event loop."""
    for _ in range(turns):
        await asyncio.sleep(0)


class TurnCounter:
    """Counts the turns of the event loop that others had, and steps of a kind in each.

    Attributes:
        taken: number of turns.
        steps: in the present turn; a test adds one where it takes one.
        most_steps: in one turn that has ended.
    """

    def __init__(self) -> None:
        self.taken = self.steps = self.most_steps = 0

    async def count(self) -> None:
        """Take one turn after the other."""
        while True:
            self.taken += 1
            self.most_steps, self.steps = max(self.most_steps, self.steps), 0
            await asyncio.sleep(0)


@asynccontextmanager
async def counting_turns() -> AsyncIterator[TurnCounter]:
    """Count turns of the event loop while the block runs."""
    turns = TurnCounter()
    counting = asyncio.create_task(turns.count())
    try:
        yield turns
    finally:
        counting.cancel()
