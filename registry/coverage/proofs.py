"""Proofs of nodes: the images that a node says it has, answered to a nonce of this server.

A proof is the node's own word: nothing else knows whether the content is still on its disk and
unpacked. So it is called self-reported wherever it is shown. A nonce binds it to the node that
asked for it and to the last minutes, and is spent by the first proof that names it: a proof that
was recorded or replayed is refused.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from mayfly.auth.limits import BoundedDict
from mayfly.registry.clock import Clock
from mayfly.storage import digest as digests
from mayfly.storage.errors import DigestInvalid

NONCE_SECONDS = 600
"""Time between a nonce and its proof. A node asks for it after its pulls."""

MAX_IMAGES = 5_000
"""Images of one proof."""

MAX_BODY = 2 * 1024 * 1024
"""Bytes of a proof. An image takes some 200."""

MAX_NAME = 512
"""Characters of an image's name."""

RUNTIMES = ("docker", "containerd", "cri-o", "podman")
"""Container runtimes that a proof may name."""

_VERSION = 1
_NONCES_PER_NODE = 4
_MAX_NODES = 20_000
_MAX_NUMBER = 2**53
_FIELDS = frozenset({"version", "nonce", "images"})
_IMAGE_FIELDS = frozenset({"image", "digest", "runtime", "time", "pinned", "free"})


class ProofInvalid(ValueError):
    """A document that is not a proof; the text says why."""


class ProvenImage(NamedTuple):
    """One image that a node says it has.

    Attributes:
        digest: of its index, its manifest or its config, as the node's runtime knows it.
        runtime: that has it, one of `RUNTIMES`.
        checked: Unix seconds by the node's clock.
        pinned: whether kubelet's garbage collection spares it.
        free: bytes left on the file system of the runtime's images.
    """

    digest: str
    runtime: str
    checked: int
    pinned: bool
    free: int


class Proof(NamedTuple):
    """All that one node has, by its own word. It replaces the node's earlier proof."""

    nonce: str
    images: tuple[ProvenImage, ...]


def parse_proof(body: bytes) -> Proof:
    """Read a proof.

    Raises:
        ProofInvalid: it is not one; unknown and missing fields count.
    """
    if len(body) > MAX_BODY:
        raise ProofInvalid(f"a proof has at most {MAX_BODY} bytes")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise ProofInvalid("a proof is a JSON document") from None
    _check_fields(document, _FIELDS, "a proof")
    if document["version"] is True or document["version"] != _VERSION:
        raise ProofInvalid(f"the version of a proof is {_VERSION}")
    nonce, images = document["nonce"], document["images"]
    if not isinstance(nonce, str) or len(nonce) > MAX_NAME:
        raise ProofInvalid("the nonce of a proof is a string")
    if not isinstance(images, list) or len(images) > MAX_IMAGES:
        raise ProofInvalid(f"a proof lists at most {MAX_IMAGES} images")
    found: dict[str, ProvenImage] = {}
    for number, entry in enumerate(images, 1):
        try:
            image = _image(entry)
        except ProofInvalid as error:
            raise ProofInvalid(f"image {number} of the proof: {error}") from None
        known = found.get(image.digest)
        # Two runtimes may have it; a pinned one keeps it.
        if known is None or image.pinned > known.pinned:
            found[image.digest] = image
    return Proof(nonce, tuple(found.values()))


def _image(entry: object) -> ProvenImage:
    fields = _check_fields(entry, _IMAGE_FIELDS, "it")
    name, digest = fields["image"], fields["digest"]
    runtime, pinned = fields["runtime"], fields["pinned"]
    # The name is for people who read a proof; a digest says which image it is.
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise ProofInvalid(f"its name has at most {MAX_NAME} characters")
    if not isinstance(digest, str):
        raise ProofInvalid("its digest is a string")
    try:
        digest = str(digests.parse(digest))
    except DigestInvalid as error:
        raise ProofInvalid(error.message) from None
    if runtime not in RUNTIMES:
        raise ProofInvalid(f"its runtime is one of {', '.join(RUNTIMES)}")
    if not isinstance(pinned, bool):
        raise ProofInvalid("pinned is true or false")
    return ProvenImage(digest, runtime, _number(fields, "time"), pinned, _number(fields, "free"))


def _number(fields: Mapping[str, Any], key: str) -> int:
    value = fields[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_NUMBER:
        raise ProofInvalid(f"{key} is a whole number, 0 or more")
    return value


def _check_fields(value: object, expected: frozenset[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != expected:
        raise ProofInvalid(f"{what} has the fields {', '.join(sorted(expected))}")
    return value


class Nonces:
    """Nonces for the proofs of nodes. They end with the process: a node asks for another.

    Args:
        clock: for their ends.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._of_node: BoundedDict[str, dict[str, float]] = BoundedDict(_MAX_NODES)

    def issue(self, node: str) -> str:
        """Return a new nonce for a node; of several the oldest is dropped."""
        own = self._of_node.get(node)
        if own is None:
            own = self._of_node[node] = {}
        while len(own) >= _NONCES_PER_NODE:
            del own[next(iter(own))]
        nonce = secrets.token_hex(16)
        own[nonce] = self._clock.now() + NONCE_SECONDS
        return nonce

    def spend(self, node: str, nonce: str) -> bool:
        """Take a nonce back; whether it was this node's, unspent and not too old."""
        until = (self._of_node.get(node) or {}).pop(nonce, None)
        return until is not None and self._clock.now() < until
