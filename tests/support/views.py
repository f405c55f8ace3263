"""Views of the rollout page, made up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mayfly.registry.page.view import ImageView, NodeView, Run, Served, View


def run(**changed: Any) -> Run:
    """The state of a server that waits for two nodes, but for ``changed``."""
    made: Any = {
        "state": "serving",
        "ending": None,
        "url": "http://127.0.0.1:5000",
        "version": "1",
        "started": 1_700_000_000,
        "ends": [{"text": "when every node has every image", "at": None}],
        "accept": "claimed",
        "wanted": 2,
        "covered": 1,
        "bytes_in": 0,
        "bytes_out": 1_000_000,
        "transfers": 0,
        "nodes_left_out": 0,
        "images_left_out": 0,
        "corrupt": [],
        "warnings": [],
        "denied": [],
    }
    return made | changed


def view(*names: str, nodes: Mapping[str, NodeView] | None = None, **changed: Any) -> View:
    """A view of two nodes with these images, or with two; ``changed`` of its run."""
    names = names or ("team/app:1", "team/web:1")
    layers = [("sha256:" + f"{n:064x}", 1000 * (n + 1)) for n in range(len(names) + 1)]
    images = [
        ImageView(name=name, digest=f"sha256:{n:064x}", size=1000, layers=[0, n + 1])
        for n, name in enumerate(names)
    ]
    made = {"worker-1": NodeView("s" * len(names)), "worker-2": NodeView("m" * len(names))}
    served = Served(sources=["upgrade.tar"], images=images, layers=layers)
    return View(run(**changed), served, made if nodes is None else nodes)
