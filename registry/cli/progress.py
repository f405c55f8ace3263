"""Progress of a long job: a bar on a terminal, lines elsewhere, JSON lines for automation."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from mayfly.registry.text import echo, exact_json, raw
from mayfly.storage.text import format_size

_LINE_EVERY = 5.0
_EVENT_EVERY = 0.1


@contextmanager
def reporting(label: str, total: int, as_json: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function to be told, from any thread, how many bytes more are done."""
    lock = threading.Lock()
    if not as_json and sys.stderr.isatty():
        with click.progressbar(
            length=total, label=label, file=raw(sys.stderr), show_pos=False
        ) as bar:

            def advance(size: int) -> None:
                with lock:
                    bar.update(size)

            yield advance
        return
    done = 0
    every = _EVENT_EVERY if as_json else _LINE_EVERY
    last = time.monotonic()
    if as_json:
        _say(label, done, total, as_json)

    def count(size: int) -> None:
        nonlocal done, last
        with lock:
            done += size
            if time.monotonic() - last >= every:
                last = time.monotonic()
                _say(label, done, total, as_json)

    yield count
    _say(label, done, total, as_json)


def print_event(event: str, **fields: object) -> None:
    """One line of JSON on standard output, at once."""
    click.echo(exact_json({"event": event, **fields}))


def _say(label: str, done: int, total: int, as_json: bool) -> None:
    if as_json:
        print_event("progress", what=label, done=done, total=total)
        return
    percent = 100 * done // total if total else 100
    echo(f"{label}: {percent}% of {format_size(total)}", err=True)
