"""Which room may import which, and which module may build what."""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from collections.abc import Iterator

from mayfly.storage import interface
from tests.support.process import REPO
from tests.support.sources import parsed, python_files

ROOMS = ("registry", "storage", "auth")
ARROWS = {"registry": {"storage", "auth"}, "storage": set[str](), "auth": set[str]()}

FLOORS = (
    ("cli",),
    ("startup",),
    ("server",),
    ("housekeeping", "serving"),
    ("evictions", "prefetching"),
    ("control",),
    ("cluster",),
    ("lifecycle", "api", "nodes", "upstream"),
    ("page",),
    ("access", "coverage", "process"),
    ("http", "state", "pki", "telemetry"),
    ("settings",),
    ("notices", "one_file"),
    ("activity", "errors", "log"),
    (
        "address",
        "clock",
        "durations",
        "ending",
        "exit_codes",
        "notification",
        "text",
        "threads",
        "version",
    ),
)
"""The rooms of the registry, top down: each imports rooms of lower floors only."""

IMPURE = {
    "aiofiles", "asyncio", "concurrent", "fcntl", "io", "os", "pathlib", "shutil", "socket", "ssl",
    "subprocess", "tempfile",
}  # fmt: skip
"""Modules by which code reaches files, the network or the event loop."""

FRAMEWORK = {"aiohttp", "yarl", "multidict", "http"}
UNSHIPPED = {"tests", "benchmarks", "pytest", "hypothesis", "mypy"}


def _modules() -> dict[str, ast.Module]:
    """Every module of the three rooms by its path from the top."""
    return {path.relative_to(REPO).as_posix(): parsed(path) for path in python_files(*ROOMS)}


def _room(name: str) -> str:
    return name.partition("/")[0]


def _imports(tree: ast.Module) -> Iterator[str]:
    """The full name of every module that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (str(a.value) for a in node.args if isinstance(a, ast.Constant))


def _offenders(name: str, tree: ast.Module, forbidden: set[str]) -> list[str]:
    """``module: import`` for each import of what a module must not know."""
    found = sorted(
        i for i in _imports(tree) if i.removeprefix("mayfly.").partition(".")[0] in forbidden
    )
    return [f"{name}: {imported}" for imported in found]


def test_every_room_is_looked_at() -> None:
    """The other tests look at something, and imports are seen."""
    assert {_room(name) for name in _modules()} == set(ROOMS)
    assert "mayfly.storage.interface" in set(_imports(_modules()["registry/api/app.py"]))


def test_imports_are_absolute() -> None:
    """A module is named in one way, which the arrows are read from."""
    found = {n: [i for i in _imports(t) if i.startswith(".")] for n, t in _modules().items()}
    assert {name: imports for name, imports in found.items() if imports} == {}


def test_arrows() -> None:
    """registry knows storage and auth; those know neither it nor each other."""
    found = []
    for name, tree in _modules().items():
        found += _offenders(name, tree, set(ROOMS) - ARROWS[_room(name)] - {_room(name)})
    assert found == []


def test_one_name_for_each_module() -> None:
    """Nothing imports a folder by a second name, which would load each of its modules twice."""
    found = []
    for path in python_files(*ROOMS, "mayfly", "tests", "benchmarks"):
        found += _offenders_by_root(path.relative_to(REPO).as_posix(), parsed(path))
    assert found == []


def _offenders_by_root(name: str, tree: ast.Module) -> list[str]:
    return [f"{name}: {i}" for i in sorted(_imports(tree)) if i.partition(".")[0] in ROOMS]


def _floors() -> dict[str, int]:
    return {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def test_arrows_inside_the_registry() -> None:
    """Each room imports rooms below its own only; a new room needs its place in `FLOORS`."""
    floors, upward = _floors(), set()
    for name, tree in _modules().items():
        top, _, inner = name.partition("/")
        room = inner.partition("/")[0].removesuffix(".py")
        if top != "registry" or room == "__init__":
            continue
        for imported in _rooms_imported(tree):
            if imported != room and floors[imported] <= floors[room]:
                upward.add((room, imported))
    assert upward == set()


def _rooms_imported(tree: ast.Module, top: str = "registry") -> set[str]:
    """Rooms of the registry, or of another top folder, that a module imports from."""
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {n.split(".")[2] for n in names if n.startswith(f"mayfly.{top}.")}
    return found


def test_one_place_for_shields() -> None:
    """`asyncio.shield` alone leaves an exception to be logged when its waiter is cancelled."""
    found = {
        name
        for name, tree in _modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "asyncio.shield"
    }
    assert found == {"registry/threads.py"}


SYNCING = {"storage/files.py", "storage/directory/publish.py", "storage/bundle/writer.py"}
"""Modules that sync files which they hold open."""


def test_one_place_for_locks_and_durable_files() -> None:
    """flock(2), fsync(2) and the numbers of a full disk are in `storage.files` and nowhere else."""
    found = set()
    for name, tree in _modules().items():
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if "fcntl.flock" in used and name != "storage/files.py":
            found.add(name)
        if "os.fsync" in used and name not in SYNCING:
            found.add(name)
        if {"errno.ENOSPC", "errno.EDQUOT"} & used and name != "storage/errors.py":
            found.add(name)
    assert found == set()


STORAGE_FLOORS = (
    ("transfer", "upkeep"),
    ("filetree", "overlay", "survey"),
    ("whiteouts",),
    ("bundle",),
    ("directory",),
    ("images", "readonly", "referrers"),
    ("reading",),
    ("interface",),
    ("beneath", "manifest"),
    ("json_object", "reference", "directory_tree"),
    ("digest", "files", "sized_cache"),
    ("errors", "text"),
)
"""The rooms and modules of storage, top down: each imports those of lower floors only."""


def test_arrows_inside_storage() -> None:
    """Each room imports rooms below its own only; a new one needs its place on a floor."""
    floors = {room: floor for floor, rooms in enumerate(STORAGE_FLOORS) for room in rooms}
    upward = set()
    for name, tree in _modules().items():
        top, _, inner = name.partition("/")
        room = inner.partition("/")[0].removesuffix(".py")
        if top != "storage" or room == "__init__":
            continue
        for imported in _rooms_imported(tree, "storage"):
            if imported != room and floors[imported] <= floors[room]:
                upward.add((room, imported))
    assert upward == set()


def test_only_registry_imports_the_http_framework() -> None:
    """aiohttp and what comes with it stay in the room of HTTP."""
    found = []
    for name, tree in _modules().items():
        if _room(name) != "registry":
            found += _offenders(name, tree, FRAMEWORK)
    assert found == []


def test_one_module_knows_the_framework_of_the_server() -> None:
    """aiohttp's parser is used in one place; its client by what talks to other registries."""
    found = set()
    for name, tree in _modules().items():
        if _offenders(name, tree, {"aiohttp"}) and not name.startswith("registry/upstream/"):
            found.add(name)
    clients = {"registry/startup.py", "registry/telemetry/webhook.py"}
    assert found == {"registry/http/aiohttp_internals.py", *clients}


def test_auth_is_pure() -> None:
    """auth parses, decides and issues: others open files, keep connections and wait."""
    found = []
    for name, tree in _modules().items():
        if _room(name) == "auth":
            found += _offenders(name, tree, IMPURE)
            calls = (ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call))
            found += [f"{name}: {call}" for call in calls if call == "open"]
    assert found == []


def test_nothing_imports_what_is_not_shipped() -> None:
    """No module needs the tests, the benchmarks or a tool of development to run."""
    found = []
    for name, tree in _modules().items():
        found += _offenders(name, tree, UNSHIPPED)
    assert found == []


def _stores() -> set[str]:
    """The classes of storage that have every method of a `Reader`, except Protocols."""
    wanted = {n for n, _ in inspect.getmembers(interface.Reader, inspect.isfunction) if n[0] != "_"}
    found: dict[str, tuple[set[str], set[str]]] = {}
    for name, tree in _modules().items():
        for node in ast.walk(tree):
            if _room(name) == "storage" and isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base) for base in node.bases}
                methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
                found[node.name] = (bases, methods)

    def methods_of(name: str) -> set[str]:
        bases, methods = found.get(name, (set(), set()))
        return methods.union(*(methods_of(base) for base in bases))

    concrete = {name for name, (bases, _) in found.items() if "Protocol" not in bases}
    return {name for name in concrete if wanted <= methods_of(name)}


def test_only_the_composition_root_builds_stores() -> None:
    """Handlers get a store by its Protocol; only the server and the command line choose one."""
    stores = _stores()
    assert {"DistributionStore", "ReadOnlyStore"} <= stores
    found = []
    for name, tree in _modules().items():
        at_home = name == "registry/server.py" or name.startswith("registry/cli/")
        if at_home or _room(name) == "storage":
            continue
        calls = (ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call))
        found += [f"{name}: {call}" for call in calls if call.rpartition(".")[2] in stores]
    assert found == []


def test_no_module_asks_for_the_class_of_a_store() -> None:
    """Differences between stores and between their contents are in the interface."""
    concrete = _stores() | {"Extent", "Bundles"}
    assert {"Bundle", "OverlayStore", "Union"} <= concrete
    found = []
    for name, tree in _modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "type"):
                asked = {
                    n.id for a in node.args[1:] for n in ast.walk(a) if isinstance(n, ast.Name)
                }
                found += [f"{name}: {one}" for one in sorted(asked & concrete)]
    assert found == []


def test_modules_say_what_they_are() -> None:
    """Each module begins with what it is for."""
    assert [name for name, tree in _modules().items() if not ast.get_docstring(tree)] == []


def test_each_room_has_a_folder_of_tests() -> None:
    """The tests of a module are found under the name of its room."""
    rooms = {path.parent.name for path in (REPO / "registry").glob("*/__init__.py")}
    assert len(rooms) > 10
    assert rooms - {path.parent.name for path in (REPO / "tests").glob("*/test_*.py")} == set()


def test_tests_say_what_they_show() -> None:
    """Each test has a docstring."""
    silent = []
    for path in python_files("tests"):
        silent += [
            f"{path.relative_to(REPO)}: {node.name}"
            for node in ast.walk(parsed(path))
            if path.name.startswith("test_")
            and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name.startswith("test_")
            and not ast.get_docstring(node)
        ]
    assert silent == []


def _helpers(tree: ast.Module) -> Iterator[str]:
    """The names that a module of tests makes for its own tests and for others."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            # pytest finds tests and hooks by their names, and fixtures of all tests by themselves.
            is_automatic = any("autouse=True" in ast.unparse(one) for one in node.decorator_list)
            if not is_automatic and not re.match("(?i:test)|pytest_", node.name):
                yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (one.id for one in targets if isinstance(one, ast.Name))


def test_helpers_of_tests_are_used() -> None:
    """Functions, classes and constants of tests are named at another place, too."""
    paths = python_files("tests")
    count = Counter(re.findall(r"\w+", "\n".join(path.read_text() for path in paths)))
    unused = [
        f"{path.relative_to(REPO)}: {name}"
        for path in paths
        for name in _helpers(parsed(path))
        if count[name] == 1 and name != "pytestmark"
    ]
    assert unused == []


def test_record_of_the_rooms_has_their_floors() -> None:
    """ADR 0001 shows the floors of the registry that imports are checked against."""
    text = (REPO / "docs/adr/0001-rooms.md").read_text()
    (drawn,) = re.findall(r"```\n(.*?)shared modules:", text, re.DOTALL)
    shown = [set(line.split()) for line in drawn.splitlines()]
    assert shown == [set(floor) for floor in FLOORS[: len(shown)]]
    rooms = {name for floor in FLOORS for name in floor if (REPO / "registry" / name).is_dir()}
    assert rooms <= set[str]().union(*shown)
