"""Run a coroutine so that Ctrl-C and SIGTERM cancel it, instead of raising anywhere in the loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from mayfly.registry.exit_codes import exit_by_lost_signal, exit_code_of_signal

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_cancellable(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end. The first signal cancels it; the second ends the process at once.

    Raises:
        SystemExit: it was cancelled by a signal, or one that came before was lost; with the exit
            code of that.
    """
    try:
        exit_by_lost_signal()
    except SystemExit:
        main.close()
        raise
    usual = {number: signal.getsignal(number) for number in _SIGNALS}
    received: list[int] = []

    async def guarded() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def cancel(number: int) -> None:
            received.append(number)
            task.cancel()
            for each in _SIGNALS:
                loop.remove_signal_handler(each)
                signal.signal(each, usual[each])

        for number in _SIGNALS:
            loop.add_signal_handler(number, cancel, number)
        return await main

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        if not received:
            raise
        raise SystemExit(exit_code_of_signal(received[0])) from None
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
