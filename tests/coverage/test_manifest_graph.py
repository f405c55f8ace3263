"""The references between manifests, where some arrive after those that name them."""

from __future__ import annotations

import pytest

from mayfly.registry.coverage import manifest_graph
from mayfly.registry.coverage.manifest_graph import ManifestGraph, ManifestRefs

INDEX = ManifestRefs(("child", "other"), ())
CHILD = ManifestRefs((), ("config", "layer"))


def _graph(held: dict[str, ManifestRefs]) -> ManifestGraph:
    return ManifestGraph(lambda repository, digest: held.get(digest))


@pytest.mark.parametrize("added", [True, False])
def test_a_child_that_comes_later_is_in_the_closure(added: bool) -> None:
    """An index of a mirrored registry is served before its images are here."""
    held = {"index": INDEX}
    graph = _graph(held)
    assert graph.closure("r", "index") == {"index", "child", "other"}
    assert graph.has_closure("r", "index")
    held["child"] = CHILD
    if added:
        graph.add("r", "child", CHILD)
    else:
        assert graph.find("r", "child") == CHILD
    assert not graph.has_closure("r", "index")
    assert graph.closure("r", "index") == {"index", "child", "other", "config", "layer"}
    # The other one never comes: the closure stays in memory.
    assert graph.has_closure("r", "index")


def test_absent_children_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past it closures are not kept, and so never wrong."""
    monkeypatch.setattr(manifest_graph, "_MAX_ABSENT", 3)
    held = {f"index{number}": ManifestRefs((f"a{number}", f"b{number}")) for number in range(3)}
    graph = _graph(held)
    for name in held:
        graph.closure("r", name)
    held |= {f"a{number}": CHILD for number in range(3)}
    for number in range(3):
        graph.add("r", f"a{number}", CHILD)
        assert "layer" in graph.closure("r", f"index{number}")
