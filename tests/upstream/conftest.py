"""A registry with images to fetch, and the certificate of one with TLS."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.certificates import Pair, self_signed
from tests.support.process import Mayfly
from tests.upstream.content import Content, make


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """See `tests.upstream.content.make`."""
    return make(tmp_path_factory.mktemp("upstream"))


@pytest.fixture
def upstream(content: Content, start_mayfly: Callable[..., Mayfly]) -> Iterator[Mayfly]:
    """A registry with that content."""
    yield start_mayfly("--read-only", root=content.root)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The certificate of the registry with TLS, and its key."""
    return self_signed(tmp_path_factory.mktemp("tls"), ca=True)
