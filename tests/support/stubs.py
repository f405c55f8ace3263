"""Start the stub server and pull from it as nodes do: fixtures for a `conftest.py`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import PATIENCE, Process
from tests.support.stub import BLOB, BLOB_SIZE, MANIFEST


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """What a server does to its process's signals must not reach the next test, or its servers."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Stub(Process):
    """`tests.support.stub` as a process."""

    def __init__(
        self,
        state_dir: Path,
        *command: str,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.state_dir = state_dir
        given = json.dumps({"state_dir": str(state_dir), **options}, default=str)
        argv = [sys.executable, "-m", "tests.support.stub", given, *command]
        super().__init__(argv, state_dir.with_suffix(".log"), env=env)

    def ready(self) -> Stub:
        """Wait until it answers."""
        self.wait_for(self._url)
        return self

    def _url(self) -> str | None:
        try:
            found = json.loads((self.state_dir / "ready.json").read_text())
        except FileNotFoundError:
            return None
        return str(found["url"]) if found["pid"] == self.pid else None

    @property
    def port(self) -> int:
        url = self._url()
        assert url is not None
        return int(url.rpartition(":")[2])

    def code(self, deadline: float = PATIENCE) -> int:
        """Its exit code, once it ended."""
        return self.popen.wait(deadline)

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state_dir / "report.json").read_text())
        return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Stub]]:
    """Start stubs: start(*command, **options); all share a state directory unless told."""
    stubs: list[Stub] = []

    def start_stub(*command: str, state_dir: Path = tmp_path / "state", **options: Any) -> Stub:
        stubs.append(Stub(state_dir, *command, **options))
        return stubs[-1]

    yield start_stub
    for stub in stubs:
        if stub.running:
            stub.kill()


@contextlib.contextmanager
def asked(port: int, node: str, method: str, path: str) -> Iterator[http.client.HTTPResponse]:
    """One request on a connection of its own; the body is not read yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path, headers={"X-Node": node})
        with connection.getresponse() as response:
            yield response


def status_of(port: int, node: str, method: str, path: str) -> int:
    with asked(port, node, method, path) as response:
        response.read()
        return response.status


def get_manifest(port: int, node: str, repository: str = "team/app") -> None:
    """The beginning of a cold pull."""
    assert status_of(port, node, "HEAD", f"/v2/{repository}/manifests/1") == 200
    assert status_of(port, node, "GET", f"/v2/{repository}/manifests/{MANIFEST}") == 200


def pull(port: int, node: str, repository: str = "team/app") -> None:
    """A whole cold pull."""
    get_manifest(port, node, repository)
    with asked(port, node, "GET", f"/v2/{repository}/blobs/{BLOB}") as response:
        assert len(response.read()) == BLOB_SIZE


@contextlib.contextmanager
def pulling(port: int, node: str = "node-a") -> Iterator[http.client.HTTPResponse]:
    """A pull that is in the middle of its blob; one byte of it is read."""
    get_manifest(port, node)
    with asked(port, node, "GET", f"/v2/team/app/blobs/{BLOB}") as response:
        assert response.read(1) == b"x"
        yield response


def without_private(state_dir: Path) -> bool:
    """Whether nothing of a command's private files is left."""
    return not [name for name in os.listdir(state_dir) if name.startswith("run-")]
