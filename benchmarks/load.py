"""The load: raw sockets in processes of their own, so that the client is not what is measured.

A puller reads into one buffer and throws the bytes away (`MSG_TRUNC` lets the kernel skip even the
copy). ``python -m benchmarks.load`` shows how fast this load is by itself, against a bare sendfile
server: far above any registry, or a run says nothing.
"""

from __future__ import annotations

import hashlib
import http.client
import multiprocessing
import os
import socket
import tempfile
import time
from dataclasses import dataclass

_BUFFER = 1024 * 1024


@dataclass(frozen=True)
class Result:
    """What a fleet saw: its wall time in seconds, and bytes received in all."""

    seconds: float
    received: int

    @property
    def mib_per_second(self) -> float:
        return self.received / self.seconds / 2**20


def push_blobs(port: int, repository: str, count: int, size: int) -> list[str]:
    """Push random blobs of ``size`` bytes; their digests."""
    digests = []
    for _ in range(count):
        data = os.urandom(size)
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", f"/v2/{repository}/blobs/uploads/")
        begun = connection.getresponse()
        begun.read()
        location = begun.headers["Location"].removeprefix(f"http://127.0.0.1:{port}")
        location += ("&" if "?" in location else "?") + f"digest={digest}"
        headers = {"Content-Type": "application/octet-stream"}
        connection.request("PUT", location, body=data, headers=headers)
        done = connection.getresponse()
        done.read()
        if done.status != 201:
            raise RuntimeError(f"push answered {done.status}")
        digests.append(digest)
    return digests


def fleet(port: int, paths: list[str], clients: int, processes: int = 4) -> Result:
    """``clients`` at once, each with a connection of its own, GET every path once."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(processes + 1)
    results = context.SimpleQueue()
    shares = [clients // processes + (i < clients % processes) for i in range(processes)]
    workers = [
        context.Process(target=_pull_many, args=(port, paths, share, start, results))
        for share in shares
    ]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.monotonic()
    received = sum(results.get() for _ in workers)
    seconds = time.monotonic() - began
    for worker in workers:
        worker.join()
    return Result(seconds, received)


def _pull_many(port, paths, clients, start, results):  # type: ignore[no-untyped-def]
    import threading

    got = [0] * clients
    start.wait()

    def one(index: int) -> None:
        got[index] = _pull(port, paths)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(sum(got))


def _pull(port: int, paths: list[str]) -> int:
    """GET each path over one connection; body bytes received."""
    total = 0
    buffer = bytearray(_BUFFER)
    with socket.create_connection(("127.0.0.1", port), timeout=120) as sock:
        for path in paths:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += sock.recv(1)
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"pull answered {head[:40]!r}")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            left = length
            while left:
                got = sock.recv_into(buffer, min(left, _BUFFER), socket.MSG_TRUNC)
                if not got:
                    raise RuntimeError("connection was cut")
                left -= got
            total += length
    return total


def _bare_server(path: str, ready) -> None:  # type: ignore[no-untyped-def]
    import threading

    size = os.path.getsize(path)  # noqa: PTH202 - one call in a child process

    def answer(sock: socket.socket) -> None:
        with sock, open(path, "rb") as file:  # noqa: PTH123
            while sock.recv(4096):
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"
                sock.sendall(head.encode())
                sent = 0
                while sent < size:
                    sent += os.sendfile(sock.fileno(), file.fileno(), sent, size - sent)

    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        ready.put(listening.getsockname()[1])
        while True:
            threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()


def ceiling(clients: int, size: int) -> Result:
    """This load against a bare threaded sendfile server: what the machine can carry at most."""
    context = multiprocessing.get_context("fork")
    ready = context.SimpleQueue()
    with tempfile.NamedTemporaryFile() as file:
        file.write(os.urandom(size))
        file.flush()
        server = context.Process(target=_bare_server, args=(file.name, ready), daemon=True)
        server.start()
        try:
            return fleet(ready.get(), ["/"] * 4, clients)
        finally:
            server.terminate()
            server.join()


if __name__ == "__main__":
    found = ceiling(clients=50, size=16 * 2**20)
    print(f"load against a bare sendfile server: {found.mib_per_second:.0f} MiB/s")
