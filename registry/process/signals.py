"""Signals: the first asks for a stop, the second cuts what is still going on.

With a command (`mayfly run`), every signal is handed on to it, and the first one's stop waits for
the command's end: it is the command's to decide what SIGTERM means to an upgrade. SIGHUP is its
business alone then; without a command it is a stop like the others.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from mayfly.registry.lifecycle.conditions import Kind, Once, Reason

_STOPS = (signal.SIGTERM, signal.SIGINT)
_ALONE = (signal.SIGHUP,)
_HANDED_ON = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Signals:
    """The process's signal handlers while the server runs.

    Args:
        hand_on: told of each signal; None without a command.

    Attributes:
        first: the condition that a stop was asked for.
        second: the condition that it was asked for again; the reason has the exit code.
    """

    def __init__(self, hand_on: Callable[[signal.Signals], None] | None = None) -> None:
        self._hand_on = hand_on
        self._installed: list[signal.Signals] = []
        self.first = Once()
        self.second = Once()

    def install(self) -> None:
        """Take the signals over. One that is ignored stays so: `nohup` means it."""
        loop = asyncio.get_running_loop()
        for number in _STOPS + (_ALONE if self._hand_on is None else _HANDED_ON):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, number)
                self._installed.append(number)

    def remove(self) -> None:
        """Ignore them from now on: the process is about to end, and has things to remove first."""
        loop = asyncio.get_running_loop()
        # Held back meanwhile: the loop gives them back to their default, which is to kill us.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._installed)
        for number in self._installed:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._installed)
        self._installed.clear()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._hand_on is not None:
            self._hand_on(number)
            if number not in _STOPS:
                return
        if not self.first.holds():
            self.first.set(Reason(Kind.SIGNAL, number.name, detail={"signal": number.name}))
        else:
            text, detail = f"{number.name} again", {"signal": number.name}
            self.second.set(Reason(Kind.SIGNAL, text, 128 + number, detail))
