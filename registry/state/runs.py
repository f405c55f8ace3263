"""A run: the lifetime of users, tokens, credentials and coverage, over crashes of the server.

It begins with the first start in a state directory and ends when the server ends in an orderly way,
or with the deadline. If the server is killed or its host reboots meanwhile, the next start
continues the same run. Its ID is in every token.

    run.json          the run; absent once it has ended
    signing.key       the key of its tokens and of `mayfly credentials`
    credentials.json  the users of ``--auth auto``
    coverage.jsonl    `coverage.ledger`
    coverage.reach    `coverage.sent_offsets`

A start that finds a run whose deadline has passed, or whose last heartbeat is older than
`MAX_ABSENCE_SECONDS`, deletes these files and begins another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from mayfly.registry.state.directory import (
    CREDENTIALS,
    LEDGER,
    SENT_OFFSETS,
    SIGNING_KEY,
    read_small,
)
from mayfly.registry.text import to_the_minute
from mayfly.storage.files import Attributes, replace_file

logger = logging.getLogger("mayfly")

RUN = "run.json"

RUN_FILES = (SIGNING_KEY, CREDENTIALS, LEDGER, SENT_OFFSETS, RUN)
"""Files that end with a run, in the order of their removal: ``run.json`` last."""

MAX_ABSENCE_SECONDS = 7 * 24 * 3600.0
"""After the last heartbeat, within which a start continues a run."""

HEARTBEAT_SECONDS = 3600.0
"""Between two heartbeats of a run."""

_FORMAT = 1
_SYSTEMD = Path("/run/systemd/system")
"""Exists if systemd is the host's init: sd_booted(3)."""
_SHUTTING_DOWN = "stopping"
_ANSWER_SECONDS = 2.0


@dataclass
class Run:
    """The run of a server. Make it with `begin`, in a state directory that is claimed.

    Attributes:
        directory: the state directory.
        id: hard to guess.
        started: Unix seconds of its first start.
        deadline: Unix seconds of its end by ``--max-lifetime``; None if it has none.
        inputs: see `inputs_of`.
        continued: whether an earlier start was killed.
        key_file: the operator's signing key; "" for one of the run's own.
        earlier_key_file: the same of the earlier start.
    """

    directory: Path
    id: str
    started: float
    deadline: float | None
    inputs: Mapping[str, str]
    key_file: str = ""
    continued: bool = False
    earlier_key_file: str = ""
    _serving: bool = field(default=False, repr=False)
    _ended: bool = field(default=False, repr=False)

    @classmethod
    def begin(
        cls,
        directory: Path,
        max_lifetime: float | None,
        inputs: Mapping[str, str],
        key_file: Path | None = None,
    ) -> Run:
        """Continue the run that a killed server left, or delete old files and begin a new one.

        Args:
            directory: the state directory.
            max_lifetime: seconds; None for no deadline.
            inputs: see `inputs_of`.
            key_file: the operator's signing key.

        Raises:
            OSError: the directory cannot be written.
        """
        now = time.time()
        before = load(directory)
        key = str(key_file or "")
        if before is not None and before._can_continue(now, max_lifetime):
            deadline = None if max_lifetime is None else before.started + max_lifetime
            run = cls(directory, before.id, before.started, deadline, inputs, key)
            run.continued = run._serving = True
            run.earlier_key_file = before.key_file
            _tell(before, run)
        else:
            _wipe(directory)
            deadline = None if max_lifetime is None else now + max_lifetime
            run = cls(directory, secrets.token_urlsafe(12), now, deadline, inputs, key)
        run._save()
        return run

    def _can_continue(self, now: float, max_lifetime: float | None) -> bool:
        """Whether a start may continue the run."""
        last_heartbeat = (self.directory / RUN).stat().st_mtime
        ends = [self.deadline, None if max_lifetime is None else self.started + max_lifetime]
        is_recent = now - last_heartbeat < MAX_ABSENCE_SECONDS
        return is_recent and all(end is None or now < end for end in ends)

    @property
    def elapsed(self) -> float:
        """Seconds since its first start, by the wall clock."""
        return max(0.0, time.time() - self.started)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: object, _traceback: TracebackType | None
    ) -> None:
        # A start that failed has issued no credentials, unless it continued a run. SystemExit means
        # a signal while starting, which asks for the end of the run.
        if self._ended or not self._serving or kind is SystemExit:
            _wipe(self.directory)

    def keep(self) -> None:
        """Note that the server has started: from now on only `end` ends the run."""
        self._serving = True

    def end(self) -> None:
        """End the run after an orderly end of the server: all its credentials become invalid.

        While the host shuts down the run does not end: upgrades reboot hosts, and the next start
        continues it.
        """
        if _host_is_shutting_down():
            logger.warning("the host is shutting down: the next start resumes this run")
            return
        self._ended = True

    def heartbeat(self) -> None:
        """Record that the run is alive; call it every `HEARTBEAT_SECONDS`."""
        with contextlib.suppress(OSError):
            os.utime(self.directory / RUN)

    def _save(self) -> None:
        document = {
            "mayfly-run": _FORMAT,
            "id": self.id,
            "started": self.started,
            "deadline": self.deadline,
            "serves": dict(self.inputs),
            "signing_key": self.key_file,
        }
        replace_file(self.directory / RUN, json.dumps(document).encode() + b"\n", Attributes(0o600))


def load(directory: Path) -> Run | None:
    """Load the run of a state directory; None if there is no readable one."""
    try:
        found = json.loads(read_small(directory / RUN))
        if found["mayfly-run"] != _FORMAT:
            return None
        deadline = found["deadline"]
        serves = {str(name): str(mark) for name, mark in found["serves"].items()}
        return Run(
            directory,
            str(found["id"]),
            float(found["started"]),
            None if deadline is None else float(deadline),
            serves,
            str(found["signing_key"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def inputs_of(bundles: tuple[Path, ...], images: Path | None, nodes: str | None) -> dict[str, str]:
    """Return the inputs of a run: name → a fingerprint that changes with the content.

    Args:
        bundles: of the server.
        images: file of ``--until-pulled``.
        nodes: of ``--nodes``: a number, or a file.
    """
    found = {f"bundle {bundle}": _stamp(bundle) for bundle in bundles}
    if images is not None:
        found[f"image list {images}"] = _content(images)
    if nodes is not None:
        name = f"nodes {nodes}" if nodes.isdigit() else f"node list {nodes}"
        found[name] = "" if nodes.isdigit() else _content(Path(nodes))
    return found


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the inputs that changed since the previous start, a phrase each."""
    return [
        *(f"{name} is gone" for name in before if name not in now),
        *(f"{name} is new" for name in now if name not in before),
        *(f"{name} has changed" for name in now if before.get(name, now[name]) != now[name]),
    ]


def _tell(before: Run, run: Run) -> None:
    logger.warning(
        "resuming the run of %s: its users and credentials stay valid",
        to_the_minute(datetime.fromtimestamp(run.started, UTC)),
    )
    for difference in differences(before.inputs, run.inputs):
        logger.warning("changed since the previous start: %s", difference)


def _stamp(path: Path) -> str:
    """Size and modification time of a file, or of a directory and its index."""
    stamps = []
    for one in (path, path / "index.json"):
        with contextlib.suppress(OSError):
            found = one.stat()
            stamps.append(f"{found.st_size} {found.st_mtime_ns}")
    return " ".join(stamps)


def _content(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _wipe(directory: Path) -> None:
    for name in RUN_FILES:
        (directory / name).unlink(missing_ok=True)


def _host_is_shutting_down() -> bool:
    if not _SYSTEMD.is_dir():
        return False
    try:
        asked = subprocess.run(
            ["systemctl", "is-system-running"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ANSWER_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.stdout.strip().decode("ascii", "replace") == _SHUTTING_DOWN
