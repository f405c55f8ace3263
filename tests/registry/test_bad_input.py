"""Bad input against a real `mayfly serve`: the right code, a clean log, no file left behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket

import pytest

from tests.support.images import files, image_body
from tests.support.process import PATIENCE, Mayfly
from tests.support.wire import chunked, message

SHA = "sha256:" + hashlib.sha256(b"something else").hexdigest()
UPLOAD = "1b671a64-40d5-491e-99b0-da01ff1f3341"

STREAM = {"Transfer-Encoding": "chunked"}
LARGE = b" " * 5 * 1024 * 1024
REPO = "/v2/bad/a"

REQUESTS: dict[str, tuple[bytes, int, str]] = {
    "wrong digest": (
        message("POST", f"{REPO}/blobs/uploads/?digest={SHA}", b"x"),
        400,
        "DIGEST_INVALID",
    ),
    "wrong manifest digest": (
        message("PUT", f"{REPO}/manifests/{SHA}", image_body()),
        400,
        "DIGEST_INVALID",
    ),
    "other digest": (message("GET", f"{REPO}/blobs/md5:{'0' * 32}"), 400, "DIGEST_INVALID"),
    "bad name": (message("POST", "/v2/BAD/blobs/uploads/", b""), 400, "NAME_INVALID"),
    "dots": (message("GET", "/v2/../../etc/manifests/passwd"), 400, "NAME_INVALID"),
    "encoded dots": (message("GET", "/v2/%2e%2e/%2e%2e/manifests/v1"), 400, "NAME_INVALID"),
    "encoded slash": (message("GET", "/v2/bad%2fa/manifests/v1"), 400, "NAME_INVALID"),
    "NUL": (message("GET", "/v2/bad%00a/manifests/v1"), 400, "NAME_INVALID"),
    "long name": (message("GET", f"/v2/{'a' * 1000}/manifests/v1"), 400, "NAME_INVALID"),
    "long path": (message("GET", f"/v2/{'a/' * 3000}manifests/v1"), 400, "NAME_INVALID"),
    "longest line": (message("GET", f"/v2/{'a' * 100_000}/manifests/v1"), 431, "UNSUPPORTED"),
    "bad tag": (message("PUT", f"{REPO}/manifests/-v1", image_body()), 400, "TAG_INVALID"),
    "unknown upload": (
        message("PATCH", f"{REPO}/blobs/uploads/{UPLOAD}", b"x"),
        404,
        "BLOB_UPLOAD_UNKNOWN",
    ),
    "unknown blob": (message("GET", f"{REPO}/blobs/{SHA}"), 404, "BLOB_UNKNOWN"),
    "unknown manifest": (message("GET", f"{REPO}/manifests/v1"), 404, "MANIFEST_UNKNOWN"),
    "unknown repository": (message("GET", f"{REPO}/tags/list"), 404, "NAME_UNKNOWN"),
    "unknown path": (message("GET", "/etc/passwd"), 404, "UNSUPPORTED"),
    "wrong method": (message("POST", f"{REPO}/manifests/v1", b"x"), 405, "UNSUPPORTED"),
    "no manifest": (message("PUT", f"{REPO}/manifests/v1", b"\0\xff"), 400, "MANIFEST_INVALID"),
    "manifest of nothing": (
        message("PUT", f"{REPO}/manifests/v1", image_body()),
        400,
        "MANIFEST_BLOB_UNKNOWN",
    ),
    "5 MiB": (message("PUT", f"{REPO}/manifests/v1", LARGE), 413, "MANIFEST_INVALID"),
    "5 MiB in chunks": (
        message("PUT", f"{REPO}/manifests/v1", chunked(LARGE), STREAM),
        413,
        "MANIFEST_INVALID",
    ),
    "bad number": (message("GET", "/v2/_catalog?n=-1"), 400, "PAGINATION_NUMBER_INVALID"),
    "bad query": (message("GET", "/v2/_catalog?n=%ff"), 400, "UNSUPPORTED"),
    "TLS": (bytes.fromhex("1603010200010001fc0303") + bytes(200), 400, "UNSUPPORTED"),
}


def _send(server: Mayfly, data: bytes) -> tuple[bytes, bytes]:
    """Send bytes on a connection of their own; head and body of the answer."""
    host, _, port = server.host.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(data)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize("case", REQUESTS)
def test_bad_input(mayfly: Mayfly, case: str) -> None:
    """Each with its status and OCI code; the store is as before, and the log has no traceback."""
    data, status, code = REQUESTS[case]
    before = files(mayfly.root)
    head, body = _send(mayfly, data)
    assert head.split()[1] == str(status).encode(), head
    assert b"content-type: application/json" in head.lower()
    (error,) = json.loads(body)["errors"]
    assert error["code"] == code
    assert str(mayfly.root) not in body.decode()
    assert files(mayfly.root) == before
    assert "Traceback" not in mayfly.output()
    assert mayfly.running


def test_truncated_bodies(mayfly: Mayfly) -> None:
    """Bodies that end early, of every kind: no file stays, and the log has no traceback."""
    before = files(mayfly.root)
    for target in (f"/v2/bad/a/blobs/uploads/?digest={SHA}", "/v2/bad/a/manifests/v1"):
        for headers, body in (
            ({"Content-Length": "100000"}, b"x" * 5000),
            ({"Transfer-Encoding": "chunked"}, b"ffff\r\nx"),
        ):
            method = "PUT" if "manifests" in target else "POST"
            host, _, port = mayfly.host.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
                connection.sendall(message(method, target, body, headers))

    def as_before() -> bool:
        with contextlib.suppress(FileNotFoundError):  # removed while it is looked at
            return files(mayfly.root) == before
        return False

    mayfly.wait_for(as_before)
    assert "Traceback" not in mayfly.output()
