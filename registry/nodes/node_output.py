"""Read the output of the node script with ``--json --progress``: input from another machine.

Standard output has a line for each image that was pulled, ``{"image": …, "state": …}``, and at the
end one document. Standard error has messages: ``mayfly: …`` of the script itself. A login shell may
print lines of its own before. Whatever else a node sends is ignored, and only so much of it is kept
as the images asked for and a few short texts take.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

_TEXT = 300
"""Characters of a message that are kept."""

_TEXT_BEGIN = 90
"""Characters kept of the begin of a longer message: programs name the cause at its end."""

_MESSAGES = 20
"""Messages that are kept, the last ones."""

_MAX_NUMBER = 2**53
_FIXED = 64 * 1024
_PER_IMAGE = 2 * 1024
"""Bytes of the document: for its names, states and digests."""

_NOISE = 1024 * 1024
_LINES_PER_IMAGE = 4
"""Lines that name an image: its progress, why it was not pulled or pinned, and the document."""

_SCRIPT = "mayfly: "
_NOTE = "note: "
_NOT_PULLED = ": not pulled: "
_NOT_PINNED = ": pulled, but not pinned: "
_PROOFS = frozenset({"none", "printed", "refused", "sent"})


class NodeAnswer(NamedTuple):
    """The document of a node, as far as it is about the images asked for.

    Attributes:
        present, pinned: images, by their full names.
        proof: the fate of its proof: ``sent``, ``refused``, ``printed`` (the node has no program
            that can send it) or ``none``.
        time: Unix seconds by the node's clock; None if unknown.
        free: bytes left for images; None if unknown.
        config_path: whether kubelet's own pulls use the files of `node-config`; None if they do not
            depend on it.
        can_pin: whether its runtime can pin images; None if unknown.
        document: all of it, as the node sent it.
    """

    present: frozenset[str]
    pinned: frozenset[str]
    proof: str
    time: int | None
    free: int | None
    config_path: bool | None
    can_pin: bool | None
    document: bytes


class NodeOutput:
    """The output of one run of the script.

    Args:
        images: asked for, by their full names.
        on_image: called with an image and its state, ``pulled`` or ``failed``; once for each.

    Attributes:
        answer: None as long as the node has not sent a valid one.
        reasons: image → why it was not pulled.
        unpinned: image → why it was not pinned.
        messages: of the script; the last ones.
        others: all other lines of standard error but for the script's notes; the last ones.
    """

    def __init__(
        self, images: Collection[str], on_image: Callable[[str, str], None] = lambda *_: None
    ) -> None:
        self._images = frozenset(images)
        self._on_image = on_image
        self._reported: set[tuple[str, str]] = set()
        self.answer: NodeAnswer | None = None
        self.reasons: dict[str, str] = {}
        self.unpinned: dict[str, str] = {}
        self.messages: deque[str] = deque(maxlen=_MESSAGES)
        self.others: deque[str] = deque(maxlen=_MESSAGES)

    @property
    def most(self) -> int:
        """Bytes that a line of a valid output takes at most."""
        return _FIXED + _PER_IMAGE * len(self._images)

    @property
    def total(self) -> int:
        """Bytes that a valid output takes at most, with a login shell's output before."""
        return _NOISE + _LINES_PER_IMAGE * _PER_IMAGE * len(self._images)

    def stdout(self, line: bytes) -> None:
        """Take a line of standard output."""
        found = _object(line)
        image, state = found.get("image"), found.get("state")
        if isinstance(image, str) and image in self._images and isinstance(state, str):
            reported = image, "pulled" if state == "pulled" else "failed"
            if reported not in self._reported:
                self._reported.add(reported)
                self._on_image(*reported)
        elif "report" in found:
            self.answer = self._read_answer(found, line) or self.answer

    def stderr(self, line: bytes) -> None:
        """Take a line of standard error."""
        text = line.decode(errors="replace").strip()
        if not text.startswith(_SCRIPT):
            if text and not text.startswith(_NOTE):
                self.others.append(shortened(text))
            return
        text = text.removeprefix(_SCRIPT)
        for mark, reasons in ((_NOT_PULLED, self.reasons), (_NOT_PINNED, self.unpinned)):
            image, found, reason = text.partition(mark)
            if found and image in self._images:
                reasons[image] = shortened(reason)
                return
        self.messages.append(shortened(text))

    def _read_answer(self, found: dict[str, Any], line: bytes) -> NodeAnswer | None:
        rows, proof = found.get("images"), found.get("proof")
        if not isinstance(rows, list) or not isinstance(proof, str) or proof not in _PROOFS:
            return None
        present, pinned = set(), set()
        for row in rows:
            if not isinstance(row, dict):
                return None
            image = row.get("image")
            if not isinstance(image, str) or image not in self._images:
                continue
            if row.get("present") is True:
                present.add(image)
                if row.get("pinned") is True:
                    pinned.add(image)
        return NodeAnswer(
            frozenset(present),
            frozenset(pinned),
            proof,
            _number(found.get("time")),
            _number(found.get("free")),
            {"yes": True, "no": False}.get(str(found.get("config_path"))),
            {"yes": True, "no": False}.get(str(found.get("can_pin"))),
            line,
        )


def shortened(text: str) -> str:
    """Return a message, or its begin and its end if it is too long, with "…" between them."""
    if len(text) <= _TEXT:
        return text
    return f"{text[:_TEXT_BEGIN]} … {text[_TEXT_BEGIN + 3 - _TEXT :]}"


def _object(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line, empty if it is none."""
    if not line.startswith(b"{"):
        return {}
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_NUMBER:
        return None
    return value
