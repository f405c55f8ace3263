"""A registry under test, asked over HTTP: the server runs in a thread beside the test."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.manifest import parse
from tests.faults.model import BLOB_UNKNOWN, OK
from tests.faults.subjects import ByMethods, OpenStore
from tests.support.client import Answer, read
from tests.support.on_socket import Served
from tests.support.registry import open_to_everyone

WAYS = 3
"""How a blob may be pushed: at once, by POST and PUT, by a stream of PATCH."""


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


class Asking:
    """One client's connection."""

    def __init__(self, host: str) -> None:
        self._connection = http.client.HTTPConnection(host, timeout=60)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def __call__(
        self,
        method: str,
        target: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] = {},
    ) -> Answer:
        """One request; a body that is an iterator is streamed in chunks."""
        streamed = not isinstance(body, bytes | None)
        self._connection.request(method, target, body, dict(headers), encode_chunked=streamed)
        return read(self._connection.getresponse())

    def begin(self, repository: str) -> str:
        """Open a session; its location."""
        answer = self("POST", f"/v2/{repository}/blobs/uploads/")
        assert answer.status == 202, answer.body
        return answer.headers["Location"]

    def push(self, repository: str, data: bytes, way: int) -> Answer:
        """Push a blob in one of `WAYS`; the last answer."""
        digest = digests.of(data)
        if way == 0:
            return self("POST", f"/v2/{repository}/blobs/uploads/?digest={digest}", data)
        location = self.begin(repository)
        if way == 1:
            return self("PUT", f"{location}?digest={digest}", data)
        pieces = (data[at : at + 65536] for at in range(0, len(data), 65536))
        answer = self("PATCH", location, pieces, {"Transfer-Encoding": "chunked"})
        if answer.code != OK:
            return answer
        return self("PUT", f"{answer.headers['Location']}?digest={digest}")


class OverHTTP(ByMethods):
    """Every word but those about the disk is a request."""

    def __init__(self, root: Path, open_store: OpenStore, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(root, open_store)
        self._loop = loop
        self._start()

    def _start(self) -> None:
        self._server = Served(open_to_everyone(self.store))
        asyncio.run_coroutine_threadsafe(self._server.start_server(), self._loop).result()
        self.host = f"127.0.0.1:{self._server.port}"
        self._ask = Asking(self.host)

    def _stop(self) -> None:
        self._ask.close()
        asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result()

    def restart(self) -> None:
        self._stop()
        super().restart()
        self._start()

    def close(self) -> None:
        self._stop()
        super().close()

    def push(self, repository: str, data: bytes, way: int) -> str:
        return self._ask.push(repository, data, way).code

    def mount(self, repository: str, digest: Digest, source: str) -> str:
        uploads = f"/v2/{repository}/blobs/uploads/"
        answer = self._ask("POST", f"{uploads}?mount={digest}&from={source}")
        if answer.status == 202:
            # Not there: an upload was begun in its stead, which nobody wants.
            assert self._ask("DELETE", answer.headers["Location"]).status == 204
            return BLOB_UNKNOWN
        return answer.code

    def touch(self, repository: str, digest: Digest) -> str:
        status = self._ask("HEAD", f"/v2/{repository}/blobs/{digest}").status
        assert status in (200, 404)
        return OK if status == 200 else BLOB_UNKNOWN

    def put(self, repository: str, body: bytes, tags: tuple[str, ...]) -> str:
        query = "&".join(f"tag={tag}" for tag in tags)
        target = f"/v2/{repository}/manifests/{digests.of(body)}?{query}"
        return self._ask("PUT", target, body, {"Content-Type": parse(body).media_type}).code

    def delete_blob(self, repository: str, digest: Digest) -> str:
        return self._ask("DELETE", f"/v2/{repository}/blobs/{digest}").code

    def delete_manifest(self, repository: str, digest: Digest) -> str:
        return self._ask("DELETE", f"/v2/{repository}/manifests/{digest}").code

    def delete_tag(self, repository: str, tag: str) -> str:
        return self._ask("DELETE", f"/v2/{repository}/manifests/{tag}").code

    def begin(self, repository: str) -> str:
        return self._ask.begin(repository).rpartition("/")[2]

    def write(self, repository: str, session: str, at: int, data: bytes) -> str:
        place = {"Content-Range": f"{at}-{at + len(data) - 1}"}
        return self._ask("PATCH", _session(repository, session), data, place).code

    def commit(self, repository: str, session: str, digest: Digest) -> str:
        return self._ask("PUT", f"{_session(repository, session)}?digest={digest}").code

    def cancel(self, repository: str, session: str) -> str:
        return self._ask("DELETE", _session(repository, session)).code

    def blob(self, repository: str, digest: Digest) -> bytes | None:
        return self._body(f"/v2/{repository}/blobs/{digest}", digest)

    def manifest(self, repository: str, digest: Digest) -> bytes | None:
        return self._body(f"/v2/{repository}/manifests/{digest}", digest)

    def tag(self, repository: str, tag: str) -> Digest | None:
        answer = self._ask("HEAD", f"/v2/{repository}/manifests/{tag}")
        assert answer.status in (200, 404)
        known = answer.status == 200
        return digests.parse(answer.headers["Docker-Content-Digest"]) if known else None

    def offset(self, repository: str, session: str) -> int | None:
        answer = self._ask("GET", _session(repository, session))
        if answer.code != OK:
            return None
        # As distribution does, "0-0" stands for nothing yet, and for one byte.
        return int(answer.headers["Range"].partition("-")[2]) + 1

    def tags(self, repository: str) -> list[str] | None:
        answer = self._ask("GET", f"/v2/{repository}/tags/list")
        return list(json.loads(answer.body)["tags"]) if answer.code == OK else None

    def repositories(self) -> list[str]:
        return list(json.loads(self._ask("GET", "/v2/_catalog").body)["repositories"])

    def referrers(self, repository: str, subject: Digest) -> list[str]:
        answer = self._ask("GET", f"/v2/{repository}/referrers/{subject}")
        return [entry["digest"] for entry in json.loads(answer.body)["manifests"]]

    def _body(self, target: str, digest: Digest) -> bytes | None:
        answer = self._ask("GET", target)
        if answer.code != OK:
            return None
        assert answer.headers["Docker-Content-Digest"] == str(digest)
        return answer.body


def _session(repository: str, session: str) -> str:
    return f"/v2/{repository}/blobs/uploads/{session}"
