"""A network of the tests' own: this process moves into it, and what it starts follows.

On it are machines: processes with a network of their own, connected to it by a bridge, and with
parts of the file system of their own.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.clients.programs import with_sbin
from tests.support.process import Process

_CLONE_NEWNET = 0x40000000
_HERE = "/proc/thread-self/ns/net"
_HOLDER = """
set -e
directory=$1 seconds=$2 more=$3
shift 3
for name; do
    upper=$directory/$name.u work=$directory/$name.w
    mkdir -p "$upper" "$work"
    mount -t overlay overlay -o "lowerdir=/$name,upperdir=$upper,workdir=$work" "/$name"
done
mount -t tmpfs tmpfs /run
eval "$more"
mount --make-rshared /
: > "$directory/made"
exec sleep "$seconds"
"""


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


def bridge(name: str, address: str) -> None:
    """Make the network of machines, in the namespace of this thread; this end has an address."""
    run("ip", "link", "add", name, "type", "bridge")
    run("ip", "addr", "add", f"{address}/24", "dev", name)
    run("ip", "link", "set", name, "up")


def hold_machine(directory: Path, *own: str, seconds: int, more: str) -> Process:
    """Start the process that holds the namespaces of a machine, and a /run of its own.

    Args:
        directory: what the machine changes of directory NAME is in ``NAME.u``.
        own: directories at the top that only it changes.
        seconds: until it ends by itself, should nobody end it.
        more: commands of the shell that prepare it; ``$directory`` is there.
    """
    namespaces = ("--net", "--mount", "--propagation", "private")
    script = ("sh", "-c", _HOLDER, "sh", directory, str(seconds), more, *own)
    holder = Process(["unshare", *namespaces, *script], directory / "holder.log", env=with_sbin())
    holder.wait_for(lambda: (directory / "made").exists())
    return holder


def connect_machine(holder: Process, port: str, bridge: str, address: str, gateway: str) -> None:
    """Connect a machine to a bridge; the bridge's end of its cable is called ``port``."""
    peer = ("peer", "name", "eth0", "netns", str(holder.pid))
    run("ip", "link", "add", port, "type", "veth", *peer)
    run("ip", "link", "set", port, "master", bridge, "up")
    script = (
        'ip link set lo up; ip addr add "$1/24" dev eth0; ip link set eth0 up; '
        'ip route add default via "$2"'
    )
    inside = ("nsenter", f"--target={holder.pid}", "--net", "--")
    run(*inside, "sh", "-euc", script, "sh", address, gateway)
