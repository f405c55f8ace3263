"""A network of the tests' own: this process moves into it, and what it starts follows."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.clients.programs import with_sbin

_CLONE_NEWNET = 0x40000000
_HERE = "/proc/thread-self/ns/net"


@contextmanager
def own_network() -> Iterator[None]:
    """Meanwhile this thread, and every process that it starts, has a network with loopback only.

    Nothing is left behind, however the tests end: the network ends with its last process.
    """
    before = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check("unshare", _CLONE_NEWNET)
        run("ip", "link", "set", "lo", "up")
        yield
    finally:
        _check("setns", before, _CLONE_NEWNET)
        os.close(before)


def _check(call: str, *arguments: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, call)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), call)


def output(*argv: str | os.PathLike[str]) -> str:
    """Run a program that succeeds; its standard output alone."""
    done = subprocess.run(
        [str(word) for word in argv],
        env=with_sbin(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def run(*argv: str | os.PathLike[str], check: bool = True) -> str:
    """Run a program of the system's; what it printed, errors included."""
    done = subprocess.run(
        [str(word) for word in argv],
        env=with_sbin(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 or not check, f"{argv}: {done.stdout}"
    return done.stdout
