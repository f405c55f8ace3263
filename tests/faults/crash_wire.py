"""Requests to a server that may be killed while it answers them."""

from __future__ import annotations

import http.client
from collections.abc import Callable

from tests.support.client import Answer, read

PIECE = 32 * 1024
TIMEOUT = 120


class Cut(Exception):
    """The server was killed while it was asked."""


class Wire:
    """One client's connection to one life of the server.

    Args:
        host: of the server.
        tick: told the bytes of a body that were sent, and each answer as one operation; here the
            server may be killed.
        killed: whether it was.
    """

    def __init__(
        self, host: str, tick: Callable[[int, int], None], killed: Callable[[], bool]
    ) -> None:
        self._connection = http.client.HTTPConnection(host, timeout=TIMEOUT)
        self._tick = tick
        self._killed = killed
        self.sending = False

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()

    def ask(
        self,
        method: str,
        target: str,
        pieces: list[bytes] | None = None,
        *,
        chunked: bool = False,
        on_sent: Callable[[int], None] = lambda size: None,
        **headers: str,
    ) -> Answer:
        """One request; its body goes out in pieces.

        Raises:
            Cut: the server was killed before the answer was whole.
        """
        try:
            return self._ask(method, target, pieces or [], chunked, on_sent, headers)
        except (OSError, http.client.HTTPException) as error:
            if not self._killed():
                raise AssertionError(f"{method} {target} was cut: {error!r}") from error
            raise Cut from error
        finally:
            self.sending = False

    def _ask(
        self,
        method: str,
        target: str,
        pieces: list[bytes],
        chunked: bool,
        on_sent: Callable[[int], None],
        headers: dict[str, str],
    ) -> Answer:
        connection = self._connection
        connection.putrequest(method, target)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        elif pieces or method in ("POST", "PUT", "PATCH"):
            connection.putheader("Content-Length", str(sum(map(len, pieces))))
        connection.endheaders()
        for piece in pieces:
            self.sending = True
            on_sent(len(piece))
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            self._tick(len(piece), 0)
        if chunked:
            connection.send(b"0\r\n\r\n")
        answer = read(connection.getresponse())
        self._tick(0, 1)
        return answer


def offset_of(answer: Answer) -> int:
    """Where an upload stands by its ``Range``; ``0-0`` is nothing: nobody here sends one byte."""
    last = int(answer.headers["Range"].partition("-")[2])
    return last + 1 if last else 0


def pieces_of(content: bytes) -> list[bytes]:
    return [content[at : at + PIECE] for at in range(0, len(content), PIECE)]
