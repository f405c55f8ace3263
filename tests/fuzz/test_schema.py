"""Requests made from docs/openapi.yaml: no server error, and no answer but those it describes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.fuzz import servers
from tests.fuzz.budget import EXAMPLES, SEED
from tests.fuzz.servers import Fuzzed
from tests.fuzz.test_wire import unexpected
from tests.support.client import basic
from tests.support.process import REPO, Mayfly, find_program, need

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
METHODS = {"get", "head", "post", "put", "patch", "delete"}
LONG = EXAMPLES >= 1000
PHASES = "examples,coverage,fuzzing,stateful" if LONG else "examples,fuzzing"
ENDLESS = "/mayfly/v1/events"
"""A stream, which no client reads to its end."""

OPERATIONS = sum(
    len(METHODS & item.keys())
    for path, item in yaml.safe_load((REPO / "docs/openapi.yaml").read_text())["paths"].items()
    if path != ENDLESS
)
CASES = max(2, EXAMPLES // 30)
"""For each operation and phase."""


def _conforms(server: Fuzzed, directory: Path, *options: str) -> int:
    """Run schemathesis on a server; how many requests it sent."""
    program = find_program("schemathesis")
    assert program is not None
    log = server.process.output()
    document = REPO / "docs" / "openapi.yaml"
    # Of one configuration only, and with no database of examples: what it finds, it finds anew.
    argv = [program, "run", document, "--url", server.process.url, "--checks", ",".join(CHECKS)]
    argv += ["--phases", PHASES, "--max-examples", str(CASES), "--seed", str(SEED), "--no-color"]
    argv += ["--suppress-health-check", "all", "--generation-database", "none"]
    argv += ["--exclude-path", ENDLESS, *options]
    done = subprocess.run(
        [str(word) for word in argv], cwd=directory, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Tested: {OPERATIONS}" in done.stdout, done.stdout
    assert unexpected(server.process.output().removeprefix(log)) == []
    assert server.process.stop() == 0
    generated = re.search(r"(\d+) generated, \1 passed", done.stdout)
    assert generated, done.stdout
    print(f"{generated[1]} requests")
    return int(generated[1])


@pytest.fixture(autouse=True)
def schemathesis() -> None:
    """See `need`."""
    need("schemathesis")


def test_everyone_may_do_everything(start_mayfly: Callable[..., Mayfly], tmp_path: Path) -> None:
    """Requests that reach the store, about a repository and digests that are there."""
    with servers.opened(start_mayfly, tmp_path) as server:
        servers.push(server, "app", extra=b"{}")
        assert _conforms(server, tmp_path) > OPERATIONS


def test_callers_have_to_prove_who_they_are(
    start_mayfly: Callable[..., Mayfly], tmp_path: Path
) -> None:
    """With a token for pulls only: refusals are described, too."""
    with servers.guarded(start_mayfly, tmp_path) as server:
        _, pull = basic("pull", servers.PASSWORD)
        assert _conforms(server, tmp_path, "--header", f"Authorization: {pull}") > OPERATIONS
