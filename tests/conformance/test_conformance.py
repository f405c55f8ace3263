"""The official conformance suite of the OCI distribution specification, whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance import suite
from tests.support.process import Mayfly


@pytest.mark.parametrize("sparse", [False, True], ids=["whole", "sparse"])
@pytest.mark.parametrize("version", ["1.1", "dev"])
def test_suite_passes(
    version: str,
    sparse: bool,
    mayfly: Mayfly,
    start_mayfly: Callable[..., Mayfly],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing fails, nothing is skipped, and all that was asked for passes."""
    server = start_mayfly("--allow-sparse") if sparse else mayfly
    told = "sparse manifests too" if sparse else "no sparse manifests"
    suite.run(server.host, version, tmp_path, capsys, told=told, sparse=sparse)
