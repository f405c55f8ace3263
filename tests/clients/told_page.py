"""A page of the documentation whose commands are run, and whose output is compared.

A block of kind ``console`` has commands, each after ``$ `` (and ``> `` for further lines), and what
they printed. The commands of one section run in one shell, in the order of the page.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.clients.rehearsal import steady_text
from tests.support.process import PATIENCE

_BLOCK = re.compile(r"(?ms)^```console\n(.*?)^```$")
_MARK = "--- the command ended:"
_KILLED = re.compile(r"(?m)^\S*bash: line \d+: .* Killed .*\n")
"""What bash says of a command that SIGKILL ended."""

_SECONDS = 300


class Shell:
    """A bash that runs one command after the other.

    Args:
        argv: of bash, perhaps in other namespaces.
        directory: where it stands at first.
    """

    def __init__(self, argv: Sequence[str], directory: Path, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [*argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env),
        )
        assert self._process.stdout is not None
        self._printed = self._process.stdout
        self._rest = b""
        self.run(f"cd {directory}")

    def run(self, command: str) -> str:
        """Run a command without standard input; what it printed.

        Raises:
            AssertionError: it does not end.
        """
        assert self._process.stdin is not None
        line = f"{{ {command}\n}} </dev/null; code=$?; echo '{_MARK}'; (exit $code)\n"
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        end, found = time.monotonic() + _SECONDS, self._rest
        mark = f"{_MARK}\n".encode()
        while mark not in found:
            assert time.monotonic() < end, f"{command} does not end: {found.decode()}"
            if select.select([self._printed], [], [], 1)[0]:
                piece = os.read(self._printed.fileno(), 65536)
                assert piece, f"the shell ended with {command}: {found.decode()}"
                found += piece
        printed, _, self._rest = found.partition(mark)
        return _KILLED.sub("", printed.decode())

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._printed.close()


def run_section(text: str, title: str, shell: Shell) -> tuple[str, str]:
    """Run the commands of a section of a page.

    Returns:
        The page with what they printed, and for a comparison the section's lines that differ, in
        what does not vary from run to run; "" if there are none.
    """
    start = text.index(f"\n## {title}\n")
    end = text.find("\n## ", start + 1)
    section = text[start : end if end >= 0 else len(text)]
    assert _BLOCK.search(section), f"{title} has no commands"
    differences: list[str] = []

    def answer(block: re.Match[str]) -> str:
        made = []
        for command, printed in commands_of(block[1]):
            found = shell.run(command)
            if _comparable(found) != _comparable(printed):
                differences.append(f"$ {command}\n--- page:\n{printed}--- found:\n{found}")
            made.append(f"$ {command.replace(chr(10), chr(10) + '> ')}\n{found}")
        return f"```console\n{''.join(made)}```"

    return text.replace(section, _BLOCK.sub(answer, section)), "\n".join(differences)


def commands_of(block: str) -> list[tuple[str, str]]:
    """The commands of a block, and what each printed."""
    found: list[tuple[str, str]] = []
    for line in block.splitlines(keepends=True):
        command, printed = found[-1] if found else ("", "")
        if line.startswith("$ "):
            found.append((line[2:-1], ""))
        elif line.startswith("> ") and not printed:
            found[-1] = (f"{command}\n{line[2:-1]}", "")
        else:
            found[-1] = (command, printed + line)
    return found


_CHANCE = (
    # Which node is the first, and whether what it pulled has settled before the command ends.
    (r"(?m)^TIME INFO +\S+: \d+ of \d+ images; \d+ of \d+ nodes?\n", ""),
    # Whether a node's proof reached the disk before a crash, so that the next run skips it.
    (r"(?m)^TIME INFO +\S+: proven: .*\n", ""),
    (r"; skipped, since every image is proven: \d+", ""),
    (
        r"(stopping:|ended because) (?:every node has every image|"
        r"coverage is complete at \d+ nodes?|\S+ ended with exit code 0)",
        r"\1 REASON",
    ),
    (r"(?m)^(LAST DEPLOYED:).*", r"\1"),
    (r"\b(pod/\w+)-[a-z0-9]{5}\b", r"\1"),
    (r"(least free space SIZE) at \S+", r"\1"),
)


def _comparable(printed: str) -> list[list[str]]:
    """Its lines as words, without what varies, in an order that does not: nodes work at once."""
    text = steady_text(printed)
    for pattern, instead in _CHANCE:
        text = re.sub(pattern, instead, text)
    return sorted(sorted(re.split(r"[\s,]+", line.strip())) for line in text.splitlines())
