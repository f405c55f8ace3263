"""The images of ``--until-pulled``: all of the bundles, or those of any list."""

from __future__ import annotations

from pathlib import Path

import pytest

from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.upstream.pulled import ALL, images_to_pull
from mayfly.storage.bundle.open import open_bundles
from tests.bundle.builders import Layout
from tests.support.commands import mayfly
from tests.support.process import Mayfly

DEPLOYMENT = """
apiVersion: v1
kind: Pod
metadata: {name: one}
spec: {containers: [{name: a, image: "quay.io/team/app:1"}]}
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Two images, a signature of one by cosign's tag, and a chart."""
    layout = Layout()
    first = layout.image(b"layer")
    layout.name(first, "quay.io/team/app:1")
    layout.name(layout.image(b"other"), "docker.io/library/tool:2")
    flat = first["digest"].replace(":", "-")
    layout.name(layout.image(b"signature"), f"quay.io/team/app:{flat}.sig")
    chart = layout.image(b"chart", artifactType="application/vnd.cncf.helm.chart")
    layout.name(chart, "quay.io/charts/app:1")
    return layout.write_tar(tmp_path / "bundle.tar")


def test_all_of_the_bundles(bundle: Path) -> None:
    """Images by their full names; neither signatures nor charts."""
    bundles = open_bundles([bundle])
    try:
        assert images_to_pull(ALL, bundles) == ["docker.io/library/tool:2", "quay.io/team/app:1"]
    finally:
        bundles.close()
    with pytest.raises(ConfigError, match="name a BUNDLE"):
        images_to_pull(ALL, None)


def test_lists(tmp_path: Path) -> None:
    """A plain list stays as it is; of another the images are read; patterns are refused."""
    path = tmp_path / "list"
    path.write_text("app:1 # one\n\nquay.io/x@sha256:" + "0" * 64)
    assert images_to_pull(path, None) is None
    path.write_text(DEPLOYMENT)
    assert images_to_pull(path, None) == ["quay.io/team/app:1"]
    path.write_text("quay.io/a:1=registry.example/b:2\n")
    assert images_to_pull(path, None) == ["registry.example/b:2"]
    path.write_text("quay.io:\n  images:\n    team/app: []\n")
    with pytest.raises(ConfigError, match="list the tags"):
        images_to_pull(path, None)
    for text in ("a: [1", "a: {b: 1}"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="until-pulled"):
            images_to_pull(path, None)
    with pytest.raises(ConfigError, match="No such file"):
        images_to_pull(tmp_path / "none", None)


def test_a_server_waits_for_all(bundle: Path, tmp_path: Path) -> None:
    """The coverage has the images of the bundle; the list is in the state directory."""
    options = ("--until-pulled", "all", "--nodes", "1", str(bundle))
    server = Mayfly(tmp_path / "root", tmp_path / "state", *options)
    try:
        listed = (server.state_dir / "images.txt").read_text().splitlines()
        assert listed == ["docker.io/library/tool:2", "quay.io/team/app:1"]
        done = mayfly("status", "--state-dir", server.state_dir, "--json")
        assert all(name in done.stdout for name in listed)
    finally:
        server.kill()
