"""What a process does to a directory, as strace(1) saw it: its system calls, and its answers.

Traced are the calls that change a file or a directory, and those that sync one. An answer is the
begin of an HTTP response on a socket, or a line on standard output that begins with ``ACK``.

A call counts at its return. Of a sync that ran beside writes to its file that would be too much:
the stories' uploads are too short for one behind them (`storage.directory.writeback.STEP`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.process import REPO, Process, need, poll

CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,"
    "copy_file_range,fsync,fdatasync,rename,renameat,renameat2,link,linkat,symlink,symlinkat,"
    "mkdir,mkdirat,rmdir,unlink,unlinkat,sendto,sendmsg"
)

_LINE = re.compile(r"(\d+) +[\d.]+ (.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"(-?\d+|AT_FDCWD)<([^>]*)>(\(deleted\))?")
_OFFSET = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True)
class Step:
    """One call below the directory: paths are relative to it.

    ``kind`` is create, mkdir, write, truncate, sync, rename, remove or answer; a test may also say
    sync everything. ``at`` is the offset of a write, None at the end of the file.
    """

    kind: str
    path: str = ""
    target: str = ""
    data: bytes = b""
    at: int | None = None


def traced(argv: Sequence[str | Path], trace: Path) -> list[str | Path]:
    """The command that runs another and records it; it keeps its process id."""
    return [
        "strace", "-D", "-f", "--seccomp-bpf", "-y", "-ttt", "-xx", "-s", "4194304",
        "-e", f"trace={CALLS}", "-o", trace, *argv,
    ]  # fmt: skip


def need_strace() -> None:
    """Skip the calling test where processes cannot be traced."""
    need("strace")


@contextmanager
def recorded(home: Path, argv: Sequence[str | Path], steps: list[Step]) -> Iterator[Process]:
    """Run a command; what it did below ``home`` is added to ``steps`` once it has ended."""
    trace = home.parent / f"{home.name}.trace"
    trace.unlink(missing_ok=True)
    env = {name: os.environ[name] for name in os.environ if not name.startswith("MAYFLY_")}
    process = Process(traced(argv, trace), home.parent / f"{home.name}.log", env=env, cwd=REPO)
    try:
        yield process
    finally:
        if process.running:
            process.kill()
    # strace is another process, and writes the last line a moment later.
    ended = re.compile(rf"{process.pid} +[\d.]+ \+\+\+ (exited|killed)")
    poll(lambda: ended.search(trace.read_text()), process.describe)
    steps += read(trace, home)
    trace.unlink()


def read(trace: Path, home: Path) -> Iterator[Step]:
    """The steps of a trace, each at the moment it returned."""
    begun: dict[str, str] = {}
    for line in trace.read_text().splitlines():
        found = _LINE.fullmatch(line)
        assert found, line
        thread, call = found.groups()
        if call.endswith(" <unfinished ...>"):
            begun[thread] = call.removesuffix(" <unfinished ...>")
            continue
        if call.startswith("<... "):
            call = begun.pop(thread) + call.partition(" resumed>")[2]
        if call.endswith(" = ?"):  # the process was killed before the call returned
            begun[thread] = call
            continue
        parsed = _CALL.match(call)
        if parsed and not parsed[3].startswith("-"):
            yield from _steps(parsed[1], parsed[2], int(parsed[3]), home)
    # A client that has its answer may have the server killed before the server's call returned.
    for call in begun.values():
        name, _, arguments = call.partition("(")
        if name in ("sendto", "sendmsg"):
            yield from _steps(name, arguments, 0, home)


def _steps(name: str, arguments: str, result: int, home: Path) -> Iterator[Step]:
    strings = [_bytes(text) for text in _STRING.findall(arguments)]
    match name:
        case "sendto" | "sendmsg":
            if any(text.startswith(b"HTTP/1.1 ") for text in strings):
                yield Step("answer")
        case "write" | "writev":
            if name == "write" and arguments.startswith("1<") and strings[0].startswith(b"ACK"):
                yield Step("answer")
            elif path := _descriptor(arguments, home):
                yield Step("write", path, data=b"".join(strings)[:result])
        case "pwrite64":
            if path := _descriptor(arguments, home):
                at = int(arguments.rpartition(", ")[2])
                yield Step("write", path, data=strings[0][:result], at=at)
        case "copy_file_range":
            yield from _copied(arguments, result, home)
        case "ftruncate":
            if path := _descriptor(arguments, home):
                yield Step("truncate", path, at=int(arguments.rpartition(", ")[2]))
        case "fsync" | "fdatasync":
            if path := _descriptor(arguments, home):
                yield Step("sync", path)
        case _:
            paths = _paths(arguments, strings, home)
            yield from _named(name, arguments, paths, home)


def _named(name: str, arguments: str, paths: list[str | None], home: Path) -> Iterator[Step]:
    """The steps of a call that names files."""
    path = paths[0]
    if name.startswith("rename"):
        assert (path is None) == (paths[1] is None), f"moved into or out of {home}: {paths}"
    if path is None:
        return
    if name.startswith("rename"):
        yield Step("rename", path, paths[1] or "")
    elif name.startswith("mkdir"):
        yield Step("mkdir", path)
    elif name in ("unlink", "unlinkat", "rmdir"):
        yield Step("remove", path)
    elif name in ("open", "openat"):
        if "O_CREAT" in arguments:
            yield Step("create", path)
        if "O_TRUNC" in arguments:
            yield Step("truncate", path, at=0)
    else:
        raise AssertionError(f"{name} is not expected: {arguments[:200]}")


def _copied(arguments: str, result: int, home: Path) -> Iterator[Step]:
    source, target = _DESCRIPTOR.findall(arguments)[:2]
    path = _below(_text(target[1]), home)
    if path and result:
        begin, at = (int(offset) for offset in _OFFSET.findall(arguments)[:2])
        with Path(_text(source[1])).open("rb") as file:
            file.seek(begin)
            yield Step("write", path, data=file.read(result), at=at)


def _paths(arguments: str, strings: list[bytes], home: Path) -> list[str | None]:
    """Each path of a call; one that is relative to a descriptor joined to it."""
    starts = [_text(text) for _, text, _ in _DESCRIPTOR.findall(arguments)]
    paths = []
    for number, string in enumerate(strings):
        start = starts[min(number, len(starts) - 1)] if starts else "/"
        paths.append(_below(str(Path(start) / string.decode()), home))
    return paths


def _descriptor(arguments: str, home: Path) -> str | None:
    found = _DESCRIPTOR.match(arguments)
    return _below(_text(found[2]), home) if found and not found[3] else None


def _below(path: str, home: Path) -> str | None:
    """The path below ``home``; "." is itself; None where it is not."""
    return str(Path(path).relative_to(home)) if Path(path).is_relative_to(home) else None


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _text(text: str) -> str:
    return _bytes(text).decode() if text.startswith("\\x") else text
