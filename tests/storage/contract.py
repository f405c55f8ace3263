"""The contract suite of `storage.interface.Store`: every store that takes content runs it.

To run it over another store, derive from `StoreContract` in a test module and override the fixture
`open_store` (by default `DistributionStore`, see `conftest.py`) there::

    class TestOverlay(StoreContract):
        @pytest.fixture
        def open_store(self, root: Path) -> Iterator[OpenStore]:
            ...

Its parts lie in modules of their own, one for each side of the interface.
"""

from __future__ import annotations

from typing import Protocol

import pytest

from mayfly.storage.interface import Store
from tests.storage.contract_blobs import BlobContract
from tests.storage.contract_listings import ListingContract
from tests.storage.contract_manifests import ManifestContract
from tests.storage.contract_uploads import UploadContract


class OpenStore(Protocol):
    """Opens the store under test; each call is another instance on the same data."""

    def __call__(self, *, allow_sparse: bool = False) -> Store: ...


class StoreContract(UploadContract, BlobContract, ManifestContract, ListingContract):
    """Everything a writable store promises."""

    @pytest.fixture
    def store(self, open_store: OpenStore) -> Store:
        """A first instance."""
        return open_store()
