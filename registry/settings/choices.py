"""Settings that are one of a few words, as enumerations."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar


class OnCorrupt(StrEnum):
    """The reaction to corrupt content of a bundle."""

    REPORT = "report"
    STOP = "stop"


class Anonymous(StrEnum):
    """The rights of callers without credentials."""

    PULL = "pull"
    NONE = "none"


class Accept(StrEnum):
    """The weakest evidence that a node has an image."""

    CLAIMED = "claimed"
    SERVED = "served"
    PROVEN = "proven"


class NodeIdentity(StrEnum):
    """How nodes are told apart."""

    AUTO = "auto"
    CREDENTIAL = "credential"
    ADDRESS = "address"


class Via(StrEnum):
    """How `run` reaches nodes to prefetch."""

    NONE = "none"
    SSH = "ssh"
    KUBERNETES = "kubernetes"


class PrefetchIncomplete(StrEnum):
    """Whether the command of `run` is started although a node lacks an image."""

    STOP = "stop"
    CONTINUE = "continue"


class AuditLevel(StrEnum):
    """The events that the audit file has."""

    DENIED = "denied"
    WRITES = "writes"
    ALL = "all"


class Until(StrEnum):
    """Whether the first condition that is met ends the server, all together, or none."""

    FIRST = "first"
    ALL = "all"
    STOP = "stop"


class LogFormat(StrEnum):
    """The form of the log."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The lowest level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


E = TypeVar("E", bound=StrEnum)


def choice(among: type[E]) -> Callable[[str], E]:
    """Return a reader of one of an enumeration's words."""

    def read(text: str) -> E:
        try:
            return among(text)
        except ValueError:
            *others, last = among
            expected = f"{', '.join(others)} or {last}" if others else str(last)
            raise ValueError(f"expected {expected}") from None

    return read
