"""Blocking calls in worker threads, so that the event loop never waits for a disk or a hash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Run a blocking call in a worker thread, begun at once whether or not it is awaited yet."""
    return asyncio.get_running_loop().run_in_executor(None, partial(call, *args, **kwargs))
