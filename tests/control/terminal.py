"""A terminal for tests: a pty with a process on it, and a screen that knows a few sequences."""

from __future__ import annotations

import codecs
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable

from mayfly.registry.control.live_text import cells
from tests.support.commands import command_line, environment
from tests.support.process import PATIENCE

_ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
_SEQUENCE = re.compile(r"\x1b\[(\??)([0-9;]*)([a-zA-Z])")
_ALTERNATE = "1049"


class Screen:
    """The cells of a terminal; a sequence that it does not know fails the test.

    Attributes:
        lines: of the screen that is shown.
        printed: all of the usual screen, which scrolls.
        modes: that are set.
        frames: number of times that the screen was drawn from its top.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.printed = ""
        self.modes = {"25", "7"}
        self.frames = 0
        self.lines: list[str] = [""] * rows
        self._row = 0
        self._begin = True
        """Whether the row is written from its first cell."""
        self._returned = False
        """Whether the cursor was moved back, as before each line feed."""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._rest = ""

    @property
    def text(self) -> str:
        """What the screen shows."""
        return "\n".join(self.lines)

    def feed(self, data: bytes) -> None:
        """Take output of the process."""
        text = self._rest + self._decoder.decode(data)
        self._rest = ""
        while text:
            if text[0] != "\x1b":
                end = text.find("\x1b")
                run, text = (text, "") if end < 0 else (text[:end], text[end:])
                self._print(run)
                continue
            found = _SEQUENCE.match(text)
            if found is None:
                assert len(text) < 12, f"unknown sequence: {text[:20]!r}"
                self._rest = text
                return
            text = text[found.end() :]
            self._control(*found.groups())

    def _control(self, private: str, number: str, final: str) -> None:
        if private:
            assert (number in (_ALTERNATE, "25", "7"), final in "hl") == (True, True)
            (self.modes.add if final == "h" else self.modes.discard)(number)
            self.lines, self._row = [""] * self.rows, 0
            return
        assert _ALTERNATE in self.modes, "a sequence outside of the alternate screen"
        match final:
            case "m":
                assert number in ("", "1", "2", "31", "32", "33")
            case "H":
                self._row, self.frames = 0, self.frames + 1
                self._begin = True
            case "K":
                assert cells(self.lines[self._row]) <= self.columns
            case "J":
                self.lines[self._row + 1 :] = [""] * (self.rows - self._row - 1)
            case _:
                raise AssertionError(f"unknown sequence {number}{final}")

    def _print(self, text: str) -> None:
        if _ALTERNATE not in self.modes:
            self.printed += text.replace("\r", "")
            return
        for piece in re.split("([\r\n])", text):
            if piece == "\n":
                self._row, self._begin = self._row + 1, True
                assert self._row < self.rows, "the screen scrolled"
            elif piece == "\r":
                self._returned = True
                continue
            elif piece:
                assert piece.isprintable(), repr(piece)
                assert not self._returned, "a line was begun anew"
                if self._begin:
                    self.lines[self._row], self._begin = "", False
                self.lines[self._row] += piece
            else:
                continue
            self._returned = False


class Terminal:
    """`mayfly` with arguments on a pty."""

    def __init__(self, *arguments: object, columns: int, rows: int, **variables: str) -> None:
        self.screen = Screen(columns, rows)
        self._master, slave = os.openpty()
        self._set_size()
        words = [sys.executable, "-c", _ON_TERMINAL, *command_line(*arguments)]
        self.process = subprocess.Popen(
            words,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment(**{"TERM": "xterm", **variables}),
        )
        os.close(slave)

    def _set_size(self) -> None:
        size = struct.pack("HHHH", self.screen.rows, self.screen.columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def resize(self, columns: int, rows: int) -> None:
        """Change the size, as a window's; the kernel tells the process.

        What was on its way for the old size is not checked: the screen is as large as both.
        """
        old = self.screen
        old.columns, old.rows = max(columns, old.columns), max(rows, old.rows)
        old.lines += [""] * (old.rows - len(old.lines))
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def wait_for(self, condition: Callable[[Screen], bool], seconds: float = 60) -> None:
        """Read output until a condition holds."""
        end = time.monotonic() + seconds
        while not condition(self.screen):
            assert time.monotonic() < end, f"{self.screen.text}\n---\n{self.screen.printed}"
            if not self._read(0.2):
                assert condition(self.screen), f"{self.screen.text}\n---\n{self.screen.printed}"
                return

    def end(self, seconds: float = 60) -> int:
        """Read the rest of the output; the exit code."""
        end = time.monotonic() + seconds
        while self._read(0.2) and time.monotonic() < end:
            pass
        return self.process.wait(seconds)

    def close(self) -> None:
        """End the process if it still runs."""
        self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self._master)

    def _read(self, seconds: float) -> bool:
        """Take output; False at its end."""
        if not select.select([self._master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the last process on it ended
            return False
        self.screen.feed(data)
        return bool(data)
