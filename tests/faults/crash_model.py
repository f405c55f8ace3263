"""What clients were told, and so what a registry must still know after it was killed.

Plain dictionaries, one model per client. A request that was answered has happened. One that was
under way when the server was killed has happened or not: what it would change is in doubt until the
next look, and from then on holds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.support.images import digest_of

CLOCK_TICK = 0.05
"""Seconds by which the time of a file may lag behind the clock."""


class Key(NamedTuple):
    """One thing a registry knows; ``name`` is a digest or, of a tag, the tag."""

    kind: str
    repository: str
    name: str

    @property
    def path(self) -> str:
        """Where it is asked for."""
        kind = "blobs" if self.kind == "blob" else "manifests"
        return f"/v2/{self.repository}/{kind}/{self.name}"


@dataclass
class Session:
    """An upload under way: the blob it is to become, and the offset acknowledged and sent.

    ``ending`` while a request is under way that may end it.
    """

    key: Key
    content: bytes
    acknowledged: int = 0
    sent: int = 0
    ending: bool = False


@dataclass
class Model:
    """What one client was told.

    Attributes:
        known: each thing and its digest; None for what was deleted.
        doubt: what the request under way may change, and every value it may have afterwards.
        touched: blob → when the last request that refers to it there began, in Unix seconds.
        bodies: manifests by digest.
        sessions: uploads by location.
        lost_sessions: how many uploads the server may have begun or ended without saying so.
        acknowledged: how many changes were answered.
    """

    known: dict[Key, str | None] = field(default_factory=dict)
    doubt: dict[Key, set[str | None]] = field(default_factory=dict)
    touched: dict[Key, float] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    lost_sessions: int = 0
    acknowledged: int = 0

    @contextmanager
    def change(self, *changes: tuple[Key, str | None]) -> Iterator[list[tuple[Key, str | None]]]:
        """Around a request that changes things: they are known once it was answered.

        What is yielded is to be cleared when the answer was that nothing changed.
        """
        began = time.time()
        self.doubt = {key: {self.known.get(key), value} for key, value in changes}
        applied = list(changes)
        yield applied
        self.doubt = {}
        self.acknowledged += bool(applied)
        for key, value in applied:
            self.confirm(key, value, began)

    def confirm(self, key: Key, value: str | None, began: float) -> None:
        """Record what a request has shown of a thing."""
        self.known[key] = value
        if value is not None and key.kind == "blob":
            self.touch(key, began)

    def touch(self, blob: Key, began: float) -> None:
        """A request that began then refers to a blob."""
        self.touched[blob] = max(began, self.touched.get(blob, 0))

    def held(self, kind: str, repository: str | None = None) -> list[Key]:
        """What is there, of one kind, in the order it came."""
        return [
            key
            for key, value in self.known.items()
            if key.kind == kind and value and repository in (None, key.repository)
        ]

    def tags_of(self, repository: str, digest: str) -> list[Key]:
        """The tags of a repository that point at a manifest."""
        return [key for key in self.held("tag", repository) if self.known[key] == digest]

    def references(self) -> set[Key]:
        """Every blob that a manifest of its repository names."""
        return {
            Key("blob", key.repository, digest)
            for key in self.held("manifest")
            for digest in self.blobs_of(key.name)
        }

    def blobs_of(self, digest: str) -> list[str]:
        """The blobs that a manifest names."""
        return blobs_in(self.bodies[digest])

    def forget_deleted(self, keep: int) -> None:
        """Look no more for things deleted long ago."""
        gone = [key for key, value in self.known.items() if value is None]
        for key in gone[: max(len(gone) - keep, 0)]:
            del self.known[key]


def blobs_in(manifest: bytes) -> list[str]:
    """The blobs that a manifest names; an index names none."""
    body = json.loads(manifest)
    named = [*body.get("layers", ()), *([body["config"]] if "config" in body else ())]
    return [descriptor["digest"] for descriptor in named]


def manifest_of(blobs: Iterable[bytes], subject: bytes | None = None) -> bytes:
    """An image manifest: the first blob is the config."""
    config, *layers = [
        {"mediaType": "application/octet-stream", "digest": digest_of(blob), "size": len(blob)}
        for blob in blobs
    ]
    media_type = "application/vnd.oci.image.manifest.v1+json"
    body: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config,
        "layers": layers,
    }
    if subject is not None:
        body["artifactType"] = "application/vnd.example.signature"
        body["subject"] = {
            "mediaType": media_type,
            "digest": digest_of(subject),
            "size": len(subject),
        }
    return json.dumps(body).encode()


@dataclass
class Race:
    """A tag that several clients move at once: which manifests it may point at.

    A write that was answered before another answered one began is over; any other may be the last.
    """

    writes: list[tuple[float, float, str]] = field(default_factory=list)

    @contextmanager
    def write(self, digest: str) -> Iterator[None]:
        """Around the request that moves the tag."""
        began = time.monotonic()
        entry = (began, float("inf"), digest)
        self.writes.append(entry)
        yield
        self.writes[self.writes.index(entry)] = (began, time.monotonic(), digest)

    def candidates(self) -> set[str]:
        """What the tag may point at."""
        answered = [write for write in self.writes if write[1] != float("inf")]
        last_began = max((began for began, _, _ in answered), default=float("-inf"))
        return {digest for _, ended, digest in self.writes if ended >= last_began}

    def confirm(self, digest: str) -> None:
        """Record where the tag was seen to point while nobody moved it."""
        now = time.monotonic()
        self.writes = [(now, now, digest)]
