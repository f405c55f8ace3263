"""``mayfly wait --safe-to-stop``: whether every pod would still start without the registry."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mayfly.registry.cli.options import print_json
from mayfly.registry.errors import LifetimeError
from mayfly.registry.exit_codes import Exit
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.text import echo

if TYPE_CHECKING:
    from mayfly.registry.cluster.record import SafetyRecord
    from mayfly.registry.cluster.safety import Proofs
    from mayfly.registry.nodes.carrier import Carrier
    from mayfly.registry.nodes.kubectl import Kubectl

_STATUS_SECONDS = 60.0
_LEAST_PAUSE_SECONDS = 2.0
_PAUSE_SHARE = 10
"""Times that asking for the status took: to wait before the next time, for large upgrades."""

_ASK_BYTES = 32 * 1024
"""Names of images in one request to the server, which takes 64 KiB."""


def safe_to_stop(
    state_dir: Path,
    timeout: float | None,
    *,
    kubectl: Kubectl | None,
    carrier: Carrier | None,
    concurrency: int,
    hold: bool,
    json: bool,
) -> int:
    """Wait until every node has proved every image, then judge once, and print it.

    Args:
        timeout: seconds to wait for proofs; None for no limit. Images that were not proved then
            are part of the judgement.
        kubectl: None where there is no cluster.
        carrier: to nodes; None to look at none.
        concurrency: nodes at a time.
        hold: whether images that are not pinned are held by pods.
    """
    from mayfly.registry.cli.interrupts import run_cancellable
    from mayfly.registry.cli.node_config import node_errors
    from mayfly.registry.cluster import record
    from mayfly.registry.cluster.look import Sources, look
    from mayfly.registry.control.client import ask
    from mayfly.registry.control.readiness import read_ready
    from mayfly.registry.nodes.kubectl import Kubectl
    from mayfly.registry.nodes.script import images_of, reading_script
    from mayfly.registry.nodes.ssh import SSH
    from mayfly.registry.nodes.target import parse

    if isinstance(carrier, SSH):
        carrier.check(())
    ready = read_ready(state_dir)
    registry = urlsplit(ready.url).netloc
    coverage = _proven(state_dir, timeout)
    with node_errors():
        names = {
            text: image.reference
            for text in coverage["matrix"]
            for image in images_of([text], registry)
        }
        script = reading_script(parse(ready.url, None), (), "kubelet.sh")
    proofs = _proofs(coverage, names)
    sources = Sources(
        kubectl,
        carrier,
        script,
        concurrency,
        functools.partial(_served, state_dir),
        lambda text: echo(text, err=True),
        hold,
    )
    images = frozenset(names.values())
    safety, uses = run_cancellable(look(sources, proofs, images, registry))
    found = record.record_of(safety, len(images), coverage["nodes_wanted"], uses)
    if json:
        print_json(
            {"reached": found["safe"], "ended": False, "coverage": coverage, "safety": found}
        )
    else:
        _print(found, kubectl or Kubectl())
    try:
        ask(state_dir, "judged", timeout=_STATUS_SECONDS, **record.reported(found))
    except (LifetimeError, ConfigError) as error:
        echo(f"mayfly: the report will not have this answer: {error}", err=True)
    return Exit.DONE if found["safe"] else Exit.INCOMPLETE


def _served(state_dir: Path, images: Collection[str]) -> list[str]:
    """Return those of some images that the server has."""
    from mayfly.registry.control.client import ask

    pieces: list[list[str]] = []
    left = 0
    for image in images:
        if len(image) > left:
            pieces.append([])
            left = _ASK_BYTES
        pieces[-1].append(image)
        left -= len(image) + len('"", ')
    answers = (ask(state_dir, "serves", timeout=_STATUS_SECONDS, images=one) for one in pieces)
    return [image for answer in answers for image in answer["images"]]


def _print(found: SafetyRecord, kubectl: Kubectl) -> None:
    from mayfly.registry.cluster import record

    for text in record.lines_of(found, kubectl):
        echo(text)
    for text in record.patch_lines(found):
        echo(text)


def _proven(state_dir: Path, timeout: float | None) -> Mapping[str, Any]:
    """Wait until every node has proved every image, or until the timeout; the coverage then.

    Raises:
        ConfigError: the server has no list of images and nodes to cover.
        NotRunning: it ended meanwhile.
    """
    from mayfly.registry.control.client import ask

    end = None if timeout is None else time.monotonic() + timeout
    while True:
        begun = time.monotonic()
        coverage: Mapping[str, Any] | None = ask(state_dir, "status", timeout=_STATUS_SECONDS)[
            "coverage"
        ]
        if coverage is None:
            raise ConfigError(
                "--safe-to-stop: the Mayfly that runs here has nothing to cover: start it "
                "with --until-pulled and --nodes"
            )
        if not any(_lacking(coverage)) and len(coverage["nodes"]) >= coverage["nodes_wanted"]:
            return coverage
        now = time.monotonic()
        pause = max(_LEAST_PAUSE_SECONDS, _PAUSE_SHARE * (now - begun))
        if end is not None and now + pause > end:
            if now >= end:
                return coverage
            pause = end - now
        time.sleep(pause)


def _lacking(coverage: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each node and image that it has not proved, by the list's name of it."""
    from mayfly.registry.coverage.states import State, accepted

    enough = accepted(State.PROVEN)
    for image, row in coverage["matrix"].items():
        for node in coverage["nodes"]:
            if row.get(node) not in enough:
                yield node, image


def _proofs(coverage: Mapping[str, Any], names: Mapping[str, str]) -> Proofs:
    from mayfly.registry.cluster.safety import Proofs

    lacking: dict[str, list[str]] = {node: [] for node in coverage["nodes"]}
    for node, image in _lacking(coverage):
        lacking[node].append(names[image])
    unpinned = {
        node for node, proof in coverage["proofs"].items() if proof["pinned"] < proof["images"]
    }
    return Proofs(
        {node: tuple(images) for node, images in lacking.items()},
        frozenset(unpinned),
        max(coverage["nodes_wanted"] - len(lacking), 0),
    )
