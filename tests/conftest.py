"""Shared fixtures; the rule for skips: never silent, and none at all in CI; and which tests share a
process when they run side by side (`tests.__main__`).
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Tests start mayfly a thousand times. Without files of bytecode, each start compiles it again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Before the first import of it: an assertion there is to show its values, too.
pytest.register_assert_rewrite("tests.support")

from tests.support.process import Mayfly, remove_tree  # noqa: E402
from tests.support.programs import TOP, manifest  # noqa: E402
from tests.support.sources import parsed  # noqa: E402

REQUIRE_ALL = "MAYFLY_REQUIRE_ALL"

# xdist's processes have one, and what Mayfly prints for a file must not depend on that.
os.environ.pop("COLUMNS", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """--record: write anew what tests compare with the code."""
    parser.addoption(
        "--record",
        action="store_true",
        help="Write the expected output of examples and the tables of settings anew.",
    )


Record = Callable[[Path, str], bool]
"""See `record`."""

RECORDED = pytest.StashKey[list[Path]]()
"""Files that ``--record`` has written."""


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """With ``--record``: write a file, name it at the end of the run, and return True."""

    def write(path: Path, text: str) -> bool:
        if not request.config.getoption("record"):
            return False
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        request.config.stash.setdefault(RECORDED, []).append(path)
        return True

    return write


def pytest_configure() -> None:
    """Give the tests a runtime directory of their own, and SIGINT; collect them without pauses.

    Servers that tests kill leave their sockets there. A shell that runs the tests in the background
    has SIGINT ignored; servers would inherit that, and a test that interrupts one would fail.
    """
    os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="mayfly-run-")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Thousands of tests, which all stay: looking through them for garbage takes a fourth of it.
    gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage again, but none of what was made so far."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["XDG_RUNTIME_DIR"], ignore_errors=True)


HUNG_SECONDS = 1200
"""After which a test has hung. The longest takes three minutes on two cores; with other suites
beside it, or daemons to start, a multiple of that."""

IS_SOAK = any(name.startswith("MAYFLY_SOAK") for name in os.environ)
"""The long forms of tests take as long as they are told to."""

LONG = ("clients", "hostile", "security", "faults", "bundle", "nodes", "fuzz", "upstream")
"""Folders of long tests, which start first: no process is left with one of them at the end."""

INDEPENDENT = (
    "tests/clients/test_node_script.py",
    "tests/hostile/test_layers.py",
    "tests/nodes/test_script.py",
    "tests/nodes/test_script_failures.py",
)
"""Long modules whose tests share nothing: each of the tests may run in any process."""


class ModuleScheduling(LoadScopeScheduling):
    """Give whole modules to processes, in the order in which their first tests were collected.

    ``--dist=loadgroup`` cannot be used: it appends the group to the test's ``_nodeid``, which
    ``nodeid`` does not show from pytest 9 on.
    """

    def _split_scope(self, nodeid: str) -> str:
        module, _, _ = nodeid.partition("::")
        return nodeid if module in INDEPENDENT else module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ModuleScheduling | None:
    """Schedule by modules where `tests.__main__` asks for it."""
    return ModuleScheduling(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its limit, and order tests that run side by side."""
    for item in items:
        if not IS_SOAK and not any(item.iter_markers("timeout")):
            item.add_marker(pytest.mark.timeout(HUNG_SECONDS))
    if os.environ.get("PYTEST_XDIST_WORKER"):
        places = _places(dict.fromkeys(item.path for item in items))
        items.sort(key=lambda item: places[item.path])


def _places(modules: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Where each module stands: one of each long folder, the second of each, ..., then the others.

    In turns, since modules of one folder tend to wait for the same: images that are made once.
    """
    found: dict[Path, tuple[int, int]] = {}
    count = Counter[str]()
    for module in modules:
        folder = module.parent.name
        if folder in LONG:
            found[module] = (count[folder], LONG.index(folder))
            count[folder] += 1
        else:
            found[module] = (sys.maxsize, 0)
    return found


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    # An expected failure is reported as skipped too, and says so by its own attribute.
    skipped = report.outcome == "skipped" and not hasattr(report, "wasxfail")
    if skipped and os.environ.get(REQUIRE_ALL) == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped, but {REQUIRE_ALL}=1 allows no skip: {_reason(report)}"


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report


def _left_out(config: pytest.Config) -> dict[Path, str]:
    """Directories of tests that run only when named → the make target that runs them."""
    named = [config.invocation_params.dir / str(word).partition("::")[0] for word in config.args]
    found = {}
    for tier in manifest().tiers():
        directory = TOP / "tests" / tier.removeprefix("test-")
        if not any(path == directory or directory in path.parents for path in named):
            found[directory] = tier
    return found


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what takes programs of another tier, unless it is named.

    Also modules of which no test would be left: to import them takes longer than some tests.
    """
    if collection_path in _left_out(config):
        return True
    if collection_path.suffix == ".py" and (marks := config.getoption("markexpr")):
        text = collection_path.read_text()
        has, has_only = "pytest.mark.alone" in text, "\npytestmark = pytest.mark.alone\n" in text
        return {"alone": not has, "not alone": has_only}.get(marks) or None
    return None


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for path in config.stash.get(RECORDED, []):
        terminalreporter.write_line(f"wrote {path.relative_to(TOP)}")
    if any(Path(word) == TOP / "tests" or word == "tests" for word in config.args):
        for directory, tier in _left_out(config).items():
            name = directory.relative_to(TOP)
            terminalreporter.write_line(f"left out: {name}, which make {tier} runs")
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section("not tested on this machine")
        for report in skipped:
            terminalreporter.write_line(f"{report.nodeid}: {_reason(report)}")


@pytest.fixture(scope="module", autouse=True)
def parsed_for_a_module() -> Iterator[None]:
    """Keep no trees of sources: all that looks for garbage later would look through them."""
    yield
    parsed.cache_clear()


@pytest.fixture(scope="session")
def workspace() -> Iterator[Path]:
    """A directory for servers' data; images are too large to be kept as pytest keeps tmp_path."""
    path = Path(tempfile.mkdtemp(prefix="mayfly-"))
    yield path
    remove_tree(path)


@pytest.fixture(scope="session")
def mayfly(workspace: Path) -> Iterator[Mayfly]:
    """One server for every test that needs no options of its own: use unique repositories."""
    with Mayfly(workspace / "mayfly/root", workspace / "mayfly/state") as server:
        yield server
    assert "Traceback" not in server.output(), server.describe()


@pytest.fixture
def start_mayfly(workspace: Path) -> Iterator[Callable[..., Mayfly]]:
    """Start servers of a test's own: start_mayfly(*options, root=, state_dir=, listen=)."""
    servers: list[Mayfly] = []
    home = Path(tempfile.mkdtemp(prefix="own-", dir=workspace))

    def start(
        *options: str,
        root: Path = home / "root",
        state_dir: Path = home / "state",
        listen: str = "127.0.0.1:0",
    ) -> Mayfly:
        server = Mayfly(root, state_dir, *options, listen=listen)
        servers.append(server)
        return server

    yield start
    for server in servers:
        if server.running:
            server.stop()
    remove_tree(home)
