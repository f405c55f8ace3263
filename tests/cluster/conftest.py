"""Documents of a real API server and kubelet (1.35.4), recorded by the tests of `tests/kubelet`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mayfly.registry.cluster.facts import NodeFacts

RECORDED = Path(__file__).parent / "recorded"
HOST = "10.77.0.1:5777"


def recorded(name: str) -> Any:
    """A JSON document."""
    return json.loads((RECORDED / f"{name}.json").read_text())


def items(name: str) -> list[dict[str, Any]]:
    """The objects of a list."""
    found: list[dict[str, Any]] = recorded(name)["items"]
    return found


def node_facts() -> NodeFacts:
    """The facts that the first node showed."""
    facts = NodeFacts()
    for line in (RECORDED / "node-1.txt").read_bytes().splitlines():
        facts.take(line)
    return facts
