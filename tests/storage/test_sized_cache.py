"""`storage.sized_cache`: what is kept is bounded in bytes, whatever the values are."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from mayfly.registry.coverage.manifest_graph import ManifestGraph, ManifestRefs
from mayfly.registry.coverage.manifest_graph import size_of as size_of_contents
from mayfly.storage.referrers import size_of as size_of_descriptor
from mayfly.storage.sized_cache import ENTRY, SizedCache


def test_least_recently_used_goes_first() -> None:
    """A value that was asked for outlives one that was not."""
    cache: SizedCache[str, bytes] = SizedCache(3 * (100 + ENTRY), len)
    for key in "abc":
        cache.put(key, key.encode() * 100)
    assert cache.get("a") == b"a" * 100
    cache.put("d", b"d" * 100)
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]


def test_replaced_and_dropped_values_are_not_counted() -> None:
    """The size is that of what is there."""
    cache: SizedCache[str, bytes] = SizedCache(10_000, len)
    for size in (100, 5000, 10):
        cache.put("a", bytes(size))
        assert cache.size == size + ENTRY
    cache.pop("a")
    cache.pop("b")
    assert (cache.size, cache.get("a")) == (0, None)


def test_a_value_over_the_budget_is_not_kept() -> None:
    """And drops no other; one that grew beyond it is dropped."""
    cache: SizedCache[str, bytearray] = SizedCache(1000, len)
    value = bytearray(10)
    cache.put("a", value)
    cache.put("b", bytearray(1000))
    assert (cache.get("a"), cache.get("b")) == (value, None)
    value += bytes(1000)
    cache.put("a", value)
    assert (cache.get("a"), cache.size) == (None, 0)


@pytest.mark.parametrize("count", [1, 100, 10_000])
def test_sizes_are_not_underestimated(count: int) -> None:
    """What an entry is counted as is at least nearly what it takes."""
    for kind in ("contents", "descriptor"):
        tracemalloc.start()
        try:
            texts = [f"sha256:{number:064x}" for number in range(count)]
            if kind == "contents":
                counted = size_of_contents(ManifestRefs((), tuple(texts)))
            else:
                annotations = {text: "x" * 100 + text for text in texts}
                counted = size_of_descriptor({"annotations": annotations})
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert taken <= 1.2 * counted + 2000, kind


def test_contents_of_any_size_take_bounded_memory() -> None:
    """A thousand manifests of 5,000 layers each would take 650 MiB."""

    def read(repository: str, digest: str) -> ManifestRefs:
        return ManifestRefs((), tuple(f"{digest}{number:064x}" for number in range(5000)))

    graph = ManifestGraph(read)
    tracemalloc.start()
    try:
        for number in range(200):
            assert len(graph.of("team/app", f"{number:08}").blobs) == 5000
            assert len(graph.closure("team/app", f"{number:08}")) == 5001
        assert tracemalloc.get_traced_memory()[0] < 48 * 2**20
    finally:
        tracemalloc.stop()


def test_below_reads_for_so_long_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index with very many children is followed in steps, each of bounded time, to its end."""
    reads: list[str] = []
    monkeypatch.setattr(time, "monotonic", lambda: len(reads) / 100)

    def read(repository: str, digest: str) -> ManifestRefs:
        reads.append(digest)
        return (
            ManifestRefs(tuple(map(str, range(1, 1001))))
            if digest == "0"
            else ManifestRefs((), ("b",))
        )

    graph = ManifestGraph(read)
    for _ in range(10):
        before = len(reads)
        found = graph.closure("team/app", "0")
        assert len(reads) - before <= 201
        assert len(found) in (1001, 1002)
    assert found == {*map(str, range(1001)), "b"}
    assert len(reads) == len(set(reads)) == 1001
    assert graph.has_closure("team/app", "0")
    assert graph.cached_closure("team/app", "0") == found
