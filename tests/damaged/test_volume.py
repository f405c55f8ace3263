"""A volume of odd and damaged images through every command and over HTTP.

The outcome of each is a line of a table, ``outcomes-*.txt``. Where it is changed on purpose,
``pytest tests/damaged --record`` writes the tables anew: read their difference.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.storage.directory.store import DistributionStore
from tests.bundle.builders import Layout
from tests.conftest import Record
from tests.damaged.volume import CASES, Repository, build
from tests.support import client
from tests.support.commands import mayfly_here
from tests.support.images import put_image
from tests.support.process import Mayfly, need

HERE = Path(__file__).parent
COLUMNS = (
    "case", "ls", "inspect", "export", "verify", "GET", "HEAD", "GET later", "gc", "rm",
)  # fmt: skip


def mayfly(*arguments: str | Path) -> tuple[int, str, str]:
    """A command in this process: exit code, standard output and error."""
    done = mayfly_here(*arguments)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


class Http:
    """Requests to a registry, each answered with its status and body."""

    def __init__(self, host: str) -> None:
        self._host = host

    def ask(self, method: str, path: str) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        accept = "application/vnd.oci.image.manifest.v1+json, */*"
        answer = client.ask(self._host, method, path, headers={"Accept": accept})
        return answer.status, answer.body

    def manifest(self, repository: Repository) -> str:
        """The status of its tag, and whether the bytes are the ones that were stored."""
        path = f"/v2/{repository.name}/manifests/v1"
        status, body = self.ask("GET", path)
        if status != 200:
            return str(status)
        data = repository.data(repository.manifest)
        return "200" if body == data.read_bytes() else "200, other bytes"

    def blobs(self, repository: Repository) -> str:
        """The statuses of HEAD for config and layer."""
        paths = (f"/v2/{repository.name}/blobs/{digest}" for digest in repository.blobs)
        return " ".join(str(self.ask("HEAD", path)[0]) for path in paths)


@pytest.fixture(scope="module", params=["mayfly", "registry-2"])
def writer(request: pytest.FixtureRequest) -> str:
    """The registry that wrote the volume: Mayfly, which recorded the sizes, or registry:2."""
    return str(request.param)


def test_outcomes(writer: str, tmp_path: Path, record: Record) -> None:
    """Each entry is listed, served, exported, found and deleted as the table says."""
    root = tmp_path / "root"
    made = build(root, recorded=writer == "mayfly")
    rows = {case: dict.fromkeys(COLUMNS, "") | {"case": case} for case in CASES}
    listed = mayfly("ls", "--root", root)
    for case, repository in made.items():
        names = f"{repository.name}:"
        rows[case]["ls"] = _told(names, listed)
        code, _, error = mayfly("inspect", f"{repository.name}:v1", "--root", root)
        rows[case]["inspect"] = _code(code, error)
        target = tmp_path / "out.tar"
        code, _, error = mayfly("export", f"{repository.name}:v1", "-o", target, "--root", root)
        rows[case]["export"] = _code(code, error)
    with Mayfly(root, tmp_path / "state") as server:
        client = Http(server.host)
        for case, repository in made.items():
            # In this order: a manifest that is read and contradicts has its blobs hashed.
            rows[case]["HEAD"] = client.blobs(repository)
            rows[case]["GET"] = client.manifest(repository)
        assert client.ask("GET", "/v2/_catalog")[0] == 200
    code, found, _ = mayfly("verify", "--root", root, "--json")
    assert code == 4
    faults: dict[str, set[str]] = {}
    for finding in json.loads(found)["findings"]:
        for image in (finding["image"], *finding["others"]):
            faults.setdefault(image.partition(":")[0].partition("@")[0], set()).add(
                finding["code"].replace("_", " ")
            )
    with Mayfly(root, tmp_path / "state") as server:
        client = Http(server.host)
        for case, repository in made.items():
            rows[case]["verify"] = ", ".join(sorted(faults.pop(repository.name, ()))) or "-"
            rows[case]["GET later"] = f"{client.manifest(repository)}; {client.blobs(repository)}"
    assert faults == {}
    collected = json.loads(mayfly("gc", "--grace", "0s", "--root", root, "--json")[1])
    kept = {image.partition("@")[0].partition(":")[0] for image in _images(collected["unread"])}
    freed = set(collected["blobs"])
    for case, repository in made.items():
        gone = [digest for digest in repository.blobs if digest in freed]
        rows[case]["gc"] = (
            f"frees {len(gone)}" if gone else "kept all" if repository.name in kept else "kept"
        )
        code, _, error = mayfly("rm", f"{repository.name}:v1", "--root", root)
        rows[case]["rm"] = _code(code, error)
    file, table = HERE / f"outcomes-{writer}.txt", _table(rows)
    if not record(file, table):
        assert table.splitlines() == file.read_text().splitlines()


def _images(unread: list[dict[str, str]]) -> Iterator[str]:
    return (one["image"] for one in unread)


def _told(name: str, listed: tuple[int, str, str]) -> str:
    code, output, errors = listed
    assert code == 4
    if any(line.startswith(name) for line in output.splitlines()):
        return "listed"
    return "named" if any(line.startswith(name) for line in errors.splitlines()) else "-"


def _code(code: int, error: str) -> str:
    assert error.count("\n") <= 3, error
    return str(code)


def _table(rows: dict[str, dict[str, str]]) -> str:
    widths = {c: max(len(c), *(len(row[c]) for row in rows.values())) for c in COLUMNS}
    lines = [{c: c for c in COLUMNS}, *rows.values()]
    return "".join(
        "  ".join(line[c].ljust(widths[c]) for c in COLUMNS).rstrip() + "\n" for line in lines
    )


def test_commands_over_the_whole(writer: str, tmp_path: Path) -> None:
    """No entry stops a command: each names what is damaged, does the rest, and exits with 4."""
    root = tmp_path / "root"
    build(root, recorded=writer == "mayfly")
    for arguments in (
        ("ls", "--all"),
        ("du",),
        ("inventory",),
        ("export", "--all", "-o", tmp_path / "all.tar"),
        ("gc", "--dry-run"),
        ("gc", "--untagged", "--dry-run"),
    ):
        code, output, errors = mayfly(*arguments, "--root", root)
        assert code == 4, (arguments, output, errors)
        assert "odd/manifest-cut:v1" in errors or "odd/manifest-cut@sha256" in errors, arguments
        assert "odd/whole" not in errors
    assert (tmp_path / "all.tar").is_file()
    # What was exported is a good bundle: every image of it can be had from it.
    code, output, errors = mayfly("import", tmp_path / "all.tar", "--root", tmp_path / "copy")
    assert code in (0, 5), errors


def test_commands_over_a_bundle(writer: str, tmp_path: Path) -> None:
    """The same of commands that look at it as a bundle, or compare it with a good one."""
    root, good = tmp_path / "root", tmp_path / "good"
    build(root, recorded=writer == "mayfly")
    build(good, recorded=False, damaged=False)
    for arguments in (("ls", root), ("du", root), ("inventory", root), ("diff", good, root)):
        code, output, errors = mayfly(*arguments)
        assert code == 4, (arguments, output, errors)
        named = [line for line in errors.splitlines() if "odd/manifest-zeros" in line]
        assert len(named) == 1, (arguments, errors)
        assert "odd/whole" not in errors
        assert "--repair" not in errors.splitlines()[-1]
        assert "odd/manifest-zeros" not in output or arguments[0] == "inventory"
    layout = Layout()
    layout.name(layout.add(b"[]", "application/vnd.oci.image.manifest.v1+json"), "quay.io/bad:1")
    code, _, errors = mayfly("ls", layout.write_tar(tmp_path / "bad.tar"), root)
    assert (code, errors.count("quay.io/bad:1"), errors.count("odd/manifest-zeros")) == (5, 1, 1)
    name = "odd/manifest-zeros:v1"
    code, output, errors = mayfly("diff", good, root, "--image", name)
    assert (code, output) == (4, "0 images differ, 0 B to fetch for B\n")
    assert f"{name}: in B, manifest sha256:" in errors
    code, _, errors = mayfly("diff", good, root, "--image", name, "--image", "no/such:v1")
    assert "no image no/such:v1 in A or B" in errors


@pytest.mark.parametrize(
    "lost",
    [
        "{repository}/_manifests/tags/v1/current/link",
        "{repository}/_manifests/revisions/sha256/{hex}/link",
        "blobs/sha256/{hex:.2}/{hex}/data",
    ],
    ids=["link of the tag", "link of the manifest", "manifest"],
)
def test_names_that_lead_to_no_image(tmp_path: Path, lost: str) -> None:
    """Commands that look at a directory name an image whose way in it is lost; to `diff` it is not
    one that the other side has gained or lost."""
    good, root = tmp_path / "good", tmp_path / "root"
    with contextlib.closing(DistributionStore(good)) as store:
        put_image(store, "app", "v2", annotations={"is": "whole"})
        _, digest = put_image(store, "app", "v1")
    shutil.copytree(good, root)
    path = lost.format(repository="repositories/app", hex=digest.hex)
    (root / "docker/registry/v2" / path).unlink()
    for arguments in (("ls", root), ("du", root), ("diff", good, root), ("diff", root, good)):
        code, output, errors = mayfly(*arguments)
        assert code == 4, (arguments, output, errors)
        assert errors.count("app:v1: ") == 1
        assert "app:v1" not in output and "app:v2" not in errors
    _, output, _ = mayfly("du", root, "--json")
    assert [one["name"] for one in json.loads(output)["damaged"]] == ["app:v1"]


def test_repair(writer: str, tmp_path: Path) -> None:
    """Everything that was damaged is mended from the volume as it was before."""
    root, good = tmp_path / "root", tmp_path / "good"
    made = build(root, recorded=writer == "mayfly")
    build(good, recorded=False, damaged=False)
    code, output, errors = mayfly("verify", "--repair", good, "--root", root)
    left = [line for line in output.splitlines() if "needed by" in line]
    stay = ("odd/size-wrong", "odd/tag-a-file")  # made so; and a tag nobody knows the image of
    assert all(any(name in line for name in stay) for line in left), (output, errors)
    assert code == 4
    assert errors.splitlines()[-1].startswith("some faults could not be mended from the sources")
    with Mayfly(root, tmp_path / "state") as server:
        client = Http(server.host)
        for case, repository in made.items():
            if case == "tag-a-file":
                continue
            expected = "404" if case == "by-digest-layer-gone" else "200"
            assert client.manifest(repository) == expected, case
            assert client.blobs(repository) == "200 200", case


WHOLE = (
    "whole", "layer-foreign", "platform-left-out", "index-of-blobs", "type-missing",
    "manifest-link-empty", "layer-link-empty", "uploads-strange", "strangers",
)  # fmt: skip
"""Cases that a push would be allowed to bring, and whose content is there."""


def test_import_of_the_volume(writer: str, tmp_path: Path) -> None:
    """What is whole is imported, and what is not is named, each with its reason."""
    root, copy = tmp_path / "root", tmp_path / "copy"
    build(root, recorded=writer == "mayfly")
    code, _, errors = mayfly("import", root, "--root", copy)
    assert code == 4, errors
    for case in CASES:
        prefix = rf"^not imported: (?:{re.escape(str(root))}: )?"
        line = re.compile(rf"{prefix}odd/{case}[:@]", re.MULTILINE)
        named = len(line.findall(errors))
        assert (named == 0) is (case in WHOLE), (case, errors)
    code, listed, errors = mayfly("ls", "--root", copy)
    names = {line.split(":")[0] for line in listed.splitlines()}
    assert (code, names) == (0, {f"odd/{case}" for case in WHOLE}), errors
    code, output, _ = mayfly("verify", "--root", copy)
    assert code == 0, output


def test_import_mends(writer: str, tmp_path: Path) -> None:
    """A good directory, imported over the damaged volume, mends all that shows by its length."""
    root, good = tmp_path / "root", tmp_path / "good"
    build(root, recorded=writer == "mayfly")
    build(good, recorded=False, damaged=False)
    in_the_way = root / "docker/registry/v2/blobs/sha256"
    (next(d for d in in_the_way.glob("*/*/data") if d.is_dir()) / "somebody's").write_text("kept")
    code, _, errors = mayfly("import", good, "--root", root)
    assert code == 4, errors
    assert "not imported: odd/size-wrong:v1@sha256:" in errors
    code, found, _ = mayfly("verify", "--root", root, "--json")
    left = {finding["image"] for finding in json.loads(found)["findings"]}
    assert left == {"odd/layer-zeros:v1", "odd/size-wrong:v1"}
    displaced = root / "docker/registry/v2/_mayfly/displaced"
    assert [f.read_text() for f in displaced.glob("*/somebody's")] == ["kept"]
    with Mayfly(root, tmp_path / "state") as server:
        assert Http(server.host).ask("GET", "/v2/odd/tag-a-file/manifests/v1")[0] == 200


@pytest.fixture
def distribution() -> type:
    """The real registry:2."""
    need("docker-registry")
    from tests.clients.programs import Distribution

    return Distribution


def test_registry_2_before_and_after(writer: str, tmp_path: Path, distribution: type) -> None:
    """registry:2 answers the same for each entry before Mayfly worked on the volume and after.

    Its collector runs over what Mayfly wrote, too; nothing but `_mayfly` entries was added.
    """
    from tests.clients.programs import collect_garbage

    root = tmp_path / "root"
    made = build(root, recorded=writer == "mayfly")
    before = _answers(distribution, root, tmp_path / "before", made)
    files = _files(root)
    with Mayfly(root, tmp_path / "state") as server:
        client = Http(server.host)
        for repository in made.values():
            client.manifest(repository)
            client.blobs(repository)
    mayfly("verify", "--root", root)
    for arguments in (("ls", "--all"), ("du",), ("gc", "--grace", "1d", "--untagged")):
        mayfly(*arguments, "--root", root)
    assert _files(root) == files
    assert _answers(distribution, root, tmp_path / "after", made) == before
    whole = tmp_path / "whole"
    build(whole, recorded=True, damaged=False)
    shutil.rmtree(whole / "docker/registry/v2/repositories/odd/schema-1")
    output = collect_garbage(whole, tmp_path / "collector")
    assert "eligible for deletion" in output
    assert any(whole.rglob("_mayfly_size_*"))


def _answers(
    distribution: type, root: Path, directory: Path, made: dict[str, Repository]
) -> dict[str, str]:
    with distribution(root, directory) as server:
        client = Http(server.host)
        return {c: f"{client.manifest(r)}; {client.blobs(r)}" for c, r in made.items()}


def _files(root: Path) -> dict[str, bytes]:
    """All that is not Mayfly's own: every file, and what it holds."""
    found = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory) / name
            if "_mayfly" not in str(path):
                found[str(path.relative_to(root))] = (
                    path.read_bytes() if path.is_file() else b"no file"
                )
    return found
