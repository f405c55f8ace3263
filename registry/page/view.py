"""The views of the page: its content at one moment, in sections that change independently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

LETTERS: Mapping[str, str] = {
    "missing": "m",
    "pulling": "u",
    "incomplete": "i",
    "failed": "f",
    "claimed": "c",
    "served": "s",
    "proven": "p",
    "present before": "b",
    "absent": "a",
}
"""State of a node with an image → its letter in `NodeView.states`."""

MAX_IMAGES = 2_000
"""Images in a view; the others are counted."""

MAX_CELLS = 200_000
"""States in a view; nodes that have everything are left out first."""

MAX_LISTED = 200
"""Entries of each other list, such as corrupt content or refused clients."""


class End(TypedDict):
    """Conditions that end the server together.

    Attributes:
        text: for people, such as ``when idle``.
        at: Unix second at which they are met if nothing happens meanwhile; None if unknown.
    """

    text: str
    at: int | None


class Refused(TypedDict):
    """The number of refused requests of one user from one address."""

    user: str
    address: str
    requests: int


class Run(TypedDict):
    """The state of the server.

    Attributes:
        state: ``starting``, ``serving`` or ``draining``.
        ending: why it drains; None before that.
        started: Unix second.
        ends: conditions that end it besides signals, a stop and failures; any of them does.
        accept: the weakest state in which a node counts as having an image.
        wanted: number of nodes that must have every image; None if that was not asked for.
        covered: number of nodes that have every image.
        bytes_in, bytes_out: of content.
        transfers: under way.
        nodes_left_out, images_left_out: not in this view.
        corrupt, warnings: texts.
    """

    state: str
    ending: str | None
    url: str | None
    version: str
    started: int
    ends: list[End]
    accept: str
    wanted: int | None
    covered: int
    bytes_in: int
    bytes_out: int
    transfers: int
    nodes_left_out: int
    images_left_out: int
    corrupt: list[str]
    warnings: list[str]
    denied: list[Refused]


class ImageView(TypedDict):
    """One image.

    Attributes:
        name: as listed, or by its tag.
        digest: None if the registry lacks it.
        size: bytes of all its blobs; None if that is not known yet.
        layers: places in `Served.layers`, in their order.
    """

    name: str
    digest: str | None
    size: int | None
    layers: list[int]


class Served(TypedDict):
    """The images that are served.

    Attributes:
        sources: the bundles, as the operator named them; empty without.
        images: in the order of `NodeView.states`.
        layers: digest and size of each blob of the images, each once.
    """

    sources: list[str]
    images: list[ImageView]
    layers: list[tuple[str, int]]


class Pulling(NamedTuple):
    """A pull that is under way.

    Attributes:
        image: its place in `Served.images`.
        bytes: of the image that the node has, as far as this registry sent them.
        total: of the image; 0 if that is not known.
    """

    image: int
    bytes: int
    total: int


class Failed(NamedTuple):
    """A pull that failed, with the reason as text."""

    image: int
    why: str


class Proof(NamedTuple):
    """A node's own answer: self-reported. ``time`` is a Unix second, ``free`` bytes."""

    time: int
    images: int
    pinned: int
    free: int


class NodeView(NamedTuple):
    """One node.

    Attributes:
        states: a letter of `LETTERS` for each image.
        pulling: pulls under way.
        failed: pulls that failed.
        proof: its own answer; None without one.
    """

    states: str
    pulling: tuple[Pulling, ...] = ()
    failed: tuple[Failed, ...] = ()
    proof: Proof | None = None


@dataclass(frozen=True)
class View:
    """The content of the page at one moment. Every text in it is one printable line."""

    run: Run
    served: Served
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
