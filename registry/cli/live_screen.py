"""A terminal that shows one frame after another in place, and is as it was before at the end.

The frames are on the terminal's alternate screen, so earlier output stays. It is left at any end of
the process but SIGKILL, and while the process is suspended by Ctrl-Z.

Control sequences are those of ECMA-48, and of xterm for the alternate screen, which every terminal
of today knows. A library for this would bring four packages for some hundred lines.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Self, TextIO

from mayfly.registry.control.live_text import ASCII_BAR, Bar, Line, Style
from mayfly.registry.text import raw

# Alternate screen, no cursor, and no wrapping: a character that is wider than it was taken for
# must not move the lines below.
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN, _PLAIN = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[m"
_SIZE = os.terminal_size((80, 24))
"""Columns and rows of a terminal that does not tell them."""


def is_able(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that knows control sequences."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


class Screen:
    """A context in which frames are shown on a terminal.

    Args:
        stream: of the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        terminal = raw(stream)
        self._descriptor = terminal.fileno()
        self._encoding = terminal.encoding
        self._has_color = not os.environ.get("NO_COLOR")
        self._woken: tuple[int, int] = os.pipe()
        self._before: dict[int, object] = {}

    @property
    def bar(self) -> Bar:
        """The characters of bars that the terminal's encoding has."""
        try:
            "".join(Bar()).encode(self._encoding)
        except UnicodeEncodeError:
            return ASCII_BAR
        return Bar()

    @property
    def size(self) -> os.terminal_size:
        """Columns and lines, as they are now."""
        with contextlib.suppress(OSError):
            found = os.get_terminal_size(self._descriptor)
            if all(found):
                return found
        return _SIZE

    def __enter__(self) -> Self:
        for end in self._woken:
            os.set_blocking(end, False)
        for number, handler in ((signal.SIGWINCH, self._wake), (signal.SIGTSTP, self._suspend)):
            self._before[number] = signal.signal(number, handler)
        self._write(_ENTER)
        return self

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._write(_LEAVE)
        for end in self._woken:
            os.close(end)

    def draw(self, lines: Sequence[Line]) -> None:
        """Show a frame, at once: it takes the place of the one before without flicker."""
        shown = []
        for one in lines:
            styled = "".join(self._styled(text, style) for text, style in one)
            shown.append(f"{styled}{_REST_OF_LINE}")
        self._write(_HOME + "\r\n".join(shown) + _REST_OF_SCREEN)

    def wait(self, seconds: float) -> bool:
        """Wait; return whether the frame has to be drawn anew before that, for another size."""
        readable, _, _ = select.select([self._woken[0]], [], [], seconds)
        if readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken[0], 4096)
        return bool(readable)

    def _styled(self, text: str, style: Style) -> str:
        if not style or not self._has_color:
            return text
        return f"\x1b[{style}m{text}{_PLAIN}"

    def _wake(self, _number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._woken[1], b"\0")

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Give the terminal back to the shell until the process continues."""
        self._write(_LEAVE)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._write(_ENTER)
        self._wake(number, frame)

    def _write(self, text: str) -> None:
        left = memoryview(text.encode(self._encoding, "replace"))
        while left:
            left = left[os.write(self._descriptor, left) :]
