"""Messages of real clients about a disk that is full; they continue once there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bundle.builders import Layout, tar
from tests.clients.programs import Client, Dockerd
from tests.faults.disk_mounts import MIB, tmpfs
from tests.faults.disk_pushes import noise
from tests.support.process import Mayfly, need_root, remove_tree

REASON = "space left in the registry's storage"


@pytest.fixture
def small(start_mayfly: Callable[..., Mayfly], workspace: Path) -> Iterator[Mayfly]:
    """A server on 16 MiB."""
    with (
        tmpfs(workspace / "small", 16 * MIB) as disk,
        start_mayfly("--drain-timeout", "1s", root=disk / "root") as server,
    ):
        yield server


@pytest.fixture
def home(workspace: Path) -> Iterator[Path]:
    """A home for clients."""
    path = workspace / "disk-home"
    path.mkdir()
    (path / "auth.json").write_text("{}")
    yield path
    remove_tree(path)


def layout(directory: Path, size: int) -> Path:
    """An OCI layout with an image of one layer of about this many bytes."""
    made = Layout()
    made.name(made.image(tar({"noise": noise(size, size)}), compress=True), "example.test/app:1")
    files = made.all_files()
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


@pytest.mark.parametrize("name", ["crane", "skopeo"])
def test_daemonless(small: Mayfly, home: Path, tmp_path: Path, name: str) -> None:
    """The reason is shown; a smaller image is pushed by the same server right after."""
    client = Client(name, home, *(["--insecure-policy"] if name == "skopeo" else []))
    big, fitting = layout(tmp_path / "big", 24 * MIB), layout(tmp_path / "small", 4 * MIB)

    def push(source: Path, tag: str) -> list[str]:
        target = f"{small.host}/app:{tag}"
        if name == "crane":
            return ["push", "--insecure", str(source), target]
        return [
            "copy",
            "--preserve-digests",
            "--dest-tls-verify=false",
            f"oci:{source}",
            f"docker://{target}",
        ]

    said = client.fails(*push(big, "big"))
    assert REASON in said and "denied" in said.lower()
    client(*push(fitting, "1"))
    crane = Client("crane", home)
    crane("validate", "--insecure", "--remote", f"{small.host}/app:1")


def test_docker(small: Mayfly, home: Path, workspace: Path, tmp_path: Path) -> None:
    """docker shows the reason and does not try again; a smaller image goes through."""
    need_root()
    daemon = Dockerd(workspace / "disk-dockerd", home)
    try:
        for tag, size in (("big", 24 * MIB), ("1", 4 * MIB)):
            archive = tmp_path / f"{tag}.tar"
            archive.write_bytes(tar({"noise": noise(size, size)}))
            daemon.docker("import", archive, f"{small.host}/app:{tag}")
        said = daemon.docker.fails("push", f"{small.host}/app:big")
        assert REASON in said and "denied" in said
        assert "Retrying" not in said
        daemon.docker("push", f"{small.host}/app:1")
        assert "Traceback" not in small.output()
    finally:
        daemon.stop()
        remove_tree(workspace / "disk-dockerd")
