"""Signals: the first asks for a stop, the second aborts the drain.

With a command (`mayfly run`), every signal is forwarded to it, and the stop waits for the command's
end: the command decides what SIGTERM means to an upgrade. SIGHUP is only forwarded then; without a
command it is a stop like the others.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from mayfly.registry.ending import EndKind, EndReason, Latch
from mayfly.registry.exit_codes import exit_by_lost_signal, exit_code_of_signal

_STOPS = (signal.SIGTERM, signal.SIGINT)
_STOPS_ALONE = (signal.SIGHUP,)
_FORWARDED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Signals:
    """The process's signal handlers while the server runs.

    Args:
        forward: called with each signal; None without a command.

    Attributes:
        first: the condition that a stop was asked for.
        second: the condition that a stop was asked for again; the reason has the exit code.
    """

    def __init__(self, forward: Callable[[signal.Signals], None] | None = None) -> None:
        self._forward = forward
        self._installed: list[signal.Signals] = []
        self.first = Latch()
        self.second = Latch()

    def install(self) -> None:
        """Install the handlers. A signal that is ignored stays ignored, as `nohup` intends.

        Raises:
            SystemExit: a signal that came before was lost.
        """
        exit_by_lost_signal()
        loop = asyncio.get_running_loop()
        for number in _STOPS + (_STOPS_ALONE if self._forward is None else _FORWARDED):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, number)
                self._installed.append(number)

    def remove(self) -> None:
        """Ignore the signals from now on: the process cleans up and ends."""
        loop = asyncio.get_running_loop()
        # Blocked meanwhile: the loop restores the default, which kills the process.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._installed)
        for number in self._installed:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._installed)
        self._installed.clear()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._forward is not None:
            self._forward(number)
            if number not in _STOPS:
                return
        if not self.first.holds():
            self.first.set(EndReason(EndKind.SIGNAL, number.name, detail={"signal": number.name}))
        else:
            text, detail = f"{number.name} again", {"signal": number.name}
            self.second.set(EndReason(EndKind.SIGNAL, text, exit_code_of_signal(number), detail))
