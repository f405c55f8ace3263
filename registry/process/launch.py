"""Runs in the new process before the command replaces it: see `child`.

A script of its own that starts quickly: standard library only, no site, no environment.
Arguments: the server's pid, the limit on open files, the command's path, then its words.
"""

import ctypes
import errno
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1

_EXEC_FORMAT = (
    "; a script has to name its interpreter in its first line, as in #!/bin/sh, and a program has "
    "to be one for this machine's architecture"
)


def main(server: int, open_files: int, path: str, words: list[str]) -> None:
    """Ask for SIGTERM when the server's thread that started this process ends; run the command."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback for a Ctrl-C
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != server:  # the server ended before the prctl
        sys.exit(128 + signal.SIGTERM)
    # The server has raised its limit; programs that use select(2) break above 1,024.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
    # Python ignores these signals, and exec would keep that.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(path, words)
    except OSError as error:
        # This runs without `registry.text`, which would escape the operator's text.
        name = words[0].encode("unicode_escape").decode("ascii")
        todo = _EXEC_FORMAT if error.errno == errno.ENOEXEC else ""
        print(f"mayfly: {name}: {error.strerror}{todo}", file=sys.stderr)
        sys.exit(126)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
