"""Docker archives become one bundle, without a registry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bundle.builders import docker_archive, layers, write
from tests.support.commands import mayfly, run_mayfly

BASE, ONE, TWO = layers("base", "one", "two")
MADE = "a docker archive keeps no manifests: they are made anew"


@pytest.fixture
def archives(tmp_path: Path) -> list[object]:
    """Options that name two archives of one image each."""
    web = write(tmp_path / "web.tar", docker_archive((["shop/web:2"], [BASE, ONE])))
    worker = write(tmp_path / "worker.tar", docker_archive((["shop/worker:2"], [BASE, TWO])))
    return ["--from", web, "--from", worker]


def test_archives_become_one_bundle(tmp_path: Path, archives: list[object]) -> None:
    """All images under their names and with the digests they have; each archive is told of."""
    (tmp_path / "images.txt").write_text("shop/web:2\nshop/worker:2\n")
    output = tmp_path / "upgrade.tar"
    done = mayfly("bundle", "create", tmp_path / "images.txt", *archives, "-o", output)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(MADE) == 2
    assert f"{archives[1]}: {MADE}" in done.stderr

    def listed(bundle: object) -> list[tuple[str, str]]:
        found = json.loads(run_mayfly("ls", bundle, "--json"))["images"]
        return [(one["name"], one["digest"]) for one in found]

    assert listed(output) == [*listed(archives[1]), *listed(archives[3])]


@pytest.mark.parametrize("command", ["bundle create", "copy"])
def test_notices_as_json(tmp_path: Path, archives: list[object], command: str) -> None:
    """With the bundle and a code, as `import` has them."""
    target = ("-o", tmp_path / "up.tar") if command != "copy" else (tmp_path / "store",)
    done = mayfly(*command.split(), "shop/web:2", *archives, "--json", *target)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    notices = [one for one in events if one["event"] == "notice"]
    assert [(one["code"], one["bundle"]) for one in notices] == [
        ("digests_made", str(archives[1])),
        ("digests_made", str(archives[3])),
    ]
