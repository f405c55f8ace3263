"""Ask a server for `/livez` every 50 ms, on a new connection each time, as a kubelet does.

A process of its own, so that neither the attack's client nor the test holds it up. Each probe is
one line on standard output: when it began and ended (seconds, monotonic) and its status, 0 where
there was no answer.

    python -m tests.hostile.prober HOST:PORT [tls]
"""

from __future__ import annotations

import socket
import ssl
import sys
import time

INTERVAL = 0.05
TIMEOUT = 120.0

_REQUEST = b"GET /livez HTTP/1.1\r\nHost: prober\r\nConnection: close\r\n\r\n"


def probe(host: str, port: int, tls: ssl.SSLContext | None) -> int:
    """One probe; its status, 0 where there was no answer."""
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT) as plain:
            wrapped = plain if tls is None else tls.wrap_socket(plain)
            wrapped.sendall(_REQUEST)
            found = b""
            while len(found) < 12 and (data := wrapped.recv(4096)):
                found += data
            return int(found[9:12]) if found.startswith(b"HTTP/1.1 ") else 0
    except (OSError, ValueError):
        return 0


def main() -> None:
    """Probe until standard output is closed, or somebody ends this process."""
    host, _, port = sys.argv[1].rpartition(":")
    tls = None
    if sys.argv[2:] == ["tls"]:
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    while True:
        begun = time.monotonic()
        status = probe(host.strip("[]"), int(port), tls)
        ended = time.monotonic()
        print(begun, ended, status, flush=True)
        time.sleep(max(0.0, begun + INTERVAL - ended))


if __name__ == "__main__":
    main()
