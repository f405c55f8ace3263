"""HTTP for tests: one request on a connection of its own, and the answer to it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from multidict import CIMultiDict

Header = tuple[str, str]

TIMEOUT = 120.0
"""Seconds that a request may take; longer than the longest wait after a failed login."""


@dataclass(frozen=True)
class Answer:
    """A response, with its whole body."""

    status: int
    headers: CIMultiDict[str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The OCI code of the first error; empty for success."""
        return "" if self.status < 300 else str(self.json["errors"][0]["code"])

    @property
    def codes(self) -> list[str]:
        """The OCI codes of a body that must be an error document."""
        assert self.headers["Content-Type"] == "application/json"
        errors = self.json["errors"]
        assert errors and all(error["message"] for error in errors)
        assert b"Traceback" not in self.body
        return [error["code"] for error in errors]

    @property
    def challenge(self) -> str | None:
        """How to authenticate, where the server asks for it."""
        return self.headers.get("WWW-Authenticate")


def read(response: http.client.HTTPResponse) -> Answer:
    """A response, read to its end."""
    return Answer(response.status, CIMultiDict(response.getheaders()), response.read())


def ask(
    host: str,
    method: str,
    target: str,
    body: bytes | Iterator[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Send one request on a connection of its own; a body that is an iterator goes in chunks.

    Args:
        host: with port.
        tls: for a server that speaks TLS.
    """
    made = http.client.HTTPConnection(host, timeout=TIMEOUT)
    if tls is not None:
        made = http.client.HTTPSConnection(host, timeout=TIMEOUT, context=tls)
    with contextlib.closing(made) as connection:
        # A server may refuse before it has read the body; its answer is there all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, target, body, dict(headers or {}))
        return read(connection.getresponse())


def get_cut(host: str, target: str) -> tuple[int, bytes]:
    """The status and body of a GET; of a body that was cut, the part that came."""
    with contextlib.closing(http.client.HTTPConnection(host, timeout=TIMEOUT)) as connection:
        connection.request("GET", target)
        response = connection.getresponse()
        try:
            return response.status, response.read()
        except http.client.IncompleteRead as error:
            return response.status, error.partial


def basic(name: str, password: str) -> Header:
    """An Authorization header with a name and password."""
    return "Authorization", "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def bearer(token: str) -> Header:
    """An Authorization header with a token."""
    return "Authorization", f"Bearer {token}"
