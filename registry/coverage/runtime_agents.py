"""The requests that container runtimes make for an image they already have.

A node that has an image asks for no blob of it, so the registry concludes it from the other
requests. They were measured with each runtime by pulling an image a second time (docs/lifetime.md
has the table). Requests of other programs claim nothing: they may ask for manifests to inspect
them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class RuntimeAgent(NamedTuple):
    """A container runtime, and the requests that claim an image if no others follow.

    Attributes:
        name: for people.
        agent: matches the beginning of its ``User-Agent``.
        head: HEAD of the manifest or index of the image's name.
        get: GET of an image manifest.
        config: GET of an image's config, all of which arrived.
    """

    name: str
    agent: re.Pattern[str]
    head: bool = False
    get: bool = False
    config: bool = False

    def claims_image(self, *, head: bool, index: bool) -> bool:
        """Whether a request for a manifest is one that the runtime makes when it has the image.

        Args:
            head: whether it is a HEAD.
            index: whether the manifest is an index.
        """
        return self.head if head else self.get and not index


NONE = RuntimeAgent("", re.compile(""))
"""For all other programs."""

RUNTIMES = (
    RuntimeAgent("containerd", re.compile(r"containerd/v?\d"), head=True, config=True),
    # A version, or the text of a build without one: docker/library-import go/go1.26.8 …
    RuntimeAgent("docker", re.compile(r"docker/(?:\d|\S+ go/)"), head=True, get=True, config=True),
    # podman's; skopeo, buildah and CRI-O use the same library with names of their own.
    RuntimeAgent("podman", re.compile(r"containers/\d"), config=True),
)

_MAX_AGENT = 200


def runtime_of(agent: str) -> RuntimeAgent:
    """Return the runtime that a ``User-Agent`` names; `NONE` for other programs."""
    return _runtime_of(agent[:_MAX_AGENT])


@lru_cache(maxsize=256)
def _runtime_of(agent: str) -> RuntimeAgent:
    return next((one for one in RUNTIMES if one.agent.match(agent)), NONE)
