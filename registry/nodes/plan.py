"""The files to write on a node, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class NodeView(Protocol):
    """The state of a node before Mayfly changed it. Paths are absolute, as the node sees them."""

    def read(self, path: str) -> bytes | None:
        """A file's content; None when there is none."""

    def is_directory(self, path: str) -> bool:
        """Whether there is a directory, or a link to one."""


@dataclass(frozen=True)
class PlannedFile:
    """A file that a node is to have.

    ``mode`` is for a file that is new; one that exists keeps its own. ``private`` says that the
    content is a secret: then the file loses whatever its mode gives beyond ``mode``. ``merged``
    says that the content is the node's file with some keys added, so it cannot be written without
    looking.
    """

    path: str
    content: bytes
    mode: int = 0o644
    private: bool = False
    merged: bool = False


class NoteCode(StrEnum):
    """The kinds of notes; docs/security.md, "Nodes", has a row for each."""

    RELOAD = "reload"
    """A program reads the file at start and when it is told to."""

    RESTART = "restart"
    """A program keeps the settings of the file until it is restarted."""

    IMAGE_STORE = "image_store"
    """The runtime mirrors these upstreams only with another image store."""

    CONFIG_UNREADABLE = "config_unreadable"
    """The runtime's own configuration cannot be understood."""

    CONFIG_PATH = "config_path"
    """The runtime's own configuration may have to name the directory."""

    MERGE = "merge"
    """A file or setting that the node may have is replaced unless it is merged."""

    REWRITE = "rewrite"
    """The runtime asks for other names than those of these upstreams."""

    UNPINNED = "unpinned"
    """Some images cannot be pinned."""

    TAKE_BACK = "take_back"
    """How to undo changes that other tools apply."""


@dataclass(frozen=True)
class Note:
    """A fact that the operator of a node has to know.

    Attributes:
        code: its kind.
        text: a sentence for people.
        file: the file that it is about.
        directory: that a setting in the file has to name; "" without one.
        mirrors: the upstreams that it is about.
        program: it concerns only nodes that have this program; "" for all.
    """

    code: NoteCode
    text: str
    file: str = ""
    directory: str = ""
    mirrors: tuple[str, ...] = ()
    program: str = ""

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        """The facts about the files, without those that it lacks."""
        facts = {"file": self.file, "directory": self.directory, "mirrors": list(self.mirrors)}
        known = {name: fact for name, fact in facts.items() if fact}
        return {"code": self.code.value, "message": self.text, **known}


@dataclass(frozen=True)
class Plan:
    """All that one runtime needs, in the order to write it: a file comes after those it names.

    ``activate`` are the commands that make a running daemon take notice, none when it does so by
    itself; ``notes`` are facts that the operator has to know.
    """

    files: tuple[PlannedFile, ...]
    activate: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
