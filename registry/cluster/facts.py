"""Facts that a node shows of its images and its kubelet's records: input from another machine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import NamedTuple

from mayfly.registry.cluster.kubelet import PullRecord, parse_intent, parse_record
from mayfly.registry.cluster.workloads import reference_of
from mayfly.registry.nodes.node_output import NodeOutput
from mayfly.registry.nodes.object_fields import objects, text, texts

MAX_LINE = 8 * 1024 * 1024
"""Bytes of a line: the list of a node's images, some 500 each."""

_MAX_OUTPUT = 128 * 1024 * 1024
"""Bytes that a node may send."""

_MARK = b"mayfly-kubelet "
_MAX_RECORDS = 100_000
_MAX_FILE = 64 * 1024
"""Bytes of a record; `kubelet.sh` cuts it there."""

_MAX_ENTRIES = 100_000
"""The most repositories, Secrets and ServiceAccounts in all records of a node together."""

_MAX_NAMES = 100_000
"""The most names of images that a node may show."""

_NAME = 100


class ImageOnNode(NamedTuple):
    """An image that a node's runtime lists.

    Attributes:
        id: in the runtime.
        pinned: whether kubelet's garbage collection spares it.
    """

    id: str
    pinned: bool


@dataclass(slots=True)
class NodeFacts:
    """The facts that a node showed; None where it showed nothing.

    Attributes:
        is_root: whether its files could be read.
        has_kubelet: whether it has a kubelet, which collects images.
        boot: ID of its kernel's start.
        is_of_kubelet: whether the images are those of the runtime that its kubelet names.
        runtime: that lists the images, such as ``containerd``.
        images: full name, by tag or digest → image.
        records: image's ID → kubelet's record.
        intents: full names of images that kubelet began to pull.
        has_records: whether all of the records could be read.
        complete: whether it showed all.
    """

    is_root: bool = False
    has_kubelet: bool | None = None
    boot: str = ""
    is_of_kubelet: bool = False
    runtime: str | None = None
    images: dict[str, ImageOnNode] | None = None
    records: dict[str, PullRecord] = field(default_factory=dict)
    intents: set[str] = field(default_factory=set)
    has_records: bool = False
    complete: bool = False
    _unread: bool = False
    _entries: int = 0
    _seen: set[int] = field(default_factory=set)
    """Hashes of the lines of files: the log of a pod may be read twice."""

    def take(self, line: bytes) -> None:
        """Take a line of the script's output; any other line is ignored."""
        if not line.startswith(_MARK):
            return
        key, _, value = line.removeprefix(_MARK).strip().partition(b" ")
        match key:
            case b"user":
                self.is_root = value == b"0"
            case b"kubelet":
                self.has_kubelet = {b"yes": True, b"no": False}.get(value)
            case b"pulled" | b"pulling":
                self._take_file(key, value)
            case b"records":
                self.has_records = value == b"%d" % len(self._seen) and not self._unread
            case b"boot":
                self.boot = value.decode(errors="replace")[:_NAME]
            case b"endpoint":
                self.is_of_kubelet = value == b"known"
            case b"runtime":
                self.runtime = value.decode(errors="replace")[:_NAME]
            case b"images":
                self.images = parse_images(value)
            case b"done":
                self.complete = True

    def _take_file(self, kind: bytes, content: bytes) -> None:
        """Take a file of kubelet's."""
        key = hash((kind, content))
        if key in self._seen:
            return
        if len(self._seen) >= _MAX_RECORDS or len(content) > _MAX_FILE:
            self._unread = True
            return
        self._seen.add(key)
        if kind == b"pulled" and (record := parse_record(content)) is not None:
            self._entries += record.entries
            if self._entries > _MAX_ENTRIES:
                self._unread = True
            else:
                self.records[record.image] = record
        elif kind == b"pulling" and (intent := parse_intent(content)) is not None:
            # Nobody can pull one without a full name.
            if (reference := reference_of(intent)) is not None:
                self.intents.add(str(reference))
        else:
            self._unread = True


class FactsOutput(NodeOutput):
    """The output of `kubelet.sh`. In the log of a pod both streams are one."""

    def __init__(self) -> None:
        super().__init__(())
        self.facts = NodeFacts()

    @property
    def most(self) -> int:
        return MAX_LINE

    @property
    def total(self) -> int:
        return _MAX_OUTPUT

    def stdout(self, line: bytes) -> None:
        self.facts.take(line)

    def stderr(self, line: bytes) -> None:
        if line.startswith(_MARK):
            self.facts.take(line)
        else:
            super().stderr(line)


def parse_images(document: bytes) -> dict[str, ImageOnNode] | None:
    """Read ``crictl images --output=json``.

    None if it is not that, is too long, or has two images by one name.
    """
    try:
        listed = json.loads(document)
    except (ValueError, RecursionError):
        return None
    if not isinstance(listed, dict):
        return None
    found: dict[str, ImageOnNode] = {}
    for one in objects(listed, "images"):
        image = ImageOnNode(text(one, "id"), one.get("pinned") is True)
        # cri-dockerd lists images by docker's short names.
        for name in (*texts(one, "repoTags"), *texts(one, "repoDigests")):
            if len(found) >= _MAX_NAMES:
                return None
            reference = reference_of(name)
            if reference is not None and found.setdefault(str(reference), image) != image:
                return None
    return found
