"""The project's Dockerfile: it builds, also without a network, and its container serves a push."""

from __future__ import annotations

import ast
import json
import os
import shutil
import ssl
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.version import VERSION
from tests.clients.images import Images
from tests.clients.programs import Client, push_by_skopeo
from tests.support.packing import builder
from tests.support.process import REPO, poll

CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
PYTHON_IMAGE = "mayfly-test/python:1"
IMAGE = "mayfly-test/mayfly:1"
OFFLINE_IMAGE = "mayfly-test/mayfly:offline"
# Settings by which pip finds its index; the others are this machine's own affair.
PIP_SETTINGS = {"index-url", "extra-index-url", "proxy", "trusted-host"}
PROXIES = [f"{name}_PROXY" for name in ("HTTP", "HTTPS", "NO")]


@pytest.fixture(scope="module")
def python_image(docker: Client, docker_base: str, images: Images, workspace: Path) -> str:
    """A Debian with Python whose pip finds the index that this machine's pip uses.

    It has no compiled modules, like the official images of Python.
    """
    context = workspace / "python-image"
    certificates = context / "files" / CERTIFICATES
    certificates.parent.mkdir(parents=True)
    verify_paths = ssl.get_default_verify_paths()
    shutil.copy(verify_paths.cafile or verify_paths.openssl_cafile, certificates)
    (context / "files/etc/pip.conf").write_text(pip_configuration())
    layers = ["share", "python"]
    for layer in layers:
        shutil.copy(images.tar(layer), context)
    (context / "Dockerfile").write_text(
        f"FROM {docker_base}\n"
        + "".join(f"ADD {layer}.tar /\n" for layer in layers)
        + "COPY files /\n"
        "RUN find /usr/lib/python3* -name '*.pyc' -delete\n"
    )
    docker("build", "--network=none", f"--tag={PYTHON_IMAGE}", context)
    return PYTHON_IMAGE


def pip_configuration() -> str:
    """This machine's configuration of pip, from files and environment, as one file."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        check=True,
        timeout=60,
        text=True,
        stdout=subprocess.PIPE,
    )
    lines = ["[global]", f"cert = /{CERTIFICATES}"]
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        setting = name.rpartition(".")[2]
        if setting in PIP_SETTINGS:
            lines.append(f"{setting} = {ast.literal_eval(value)}")
    return "\n".join([*lines, ""])


@pytest.fixture(scope="module")
def image(docker: Client, python_image: str) -> str:
    """The image that the Dockerfile makes."""
    proxies = [f"--build-arg={name}" for name in PROXIES if name in os.environ]
    options = ["--network=host", f"--build-arg=BASE={python_image}", *proxies]
    docker("build", *options, f"--tag={IMAGE}", REPO, timeout=900)
    return IMAGE


@pytest.fixture
def container(docker: Client, image: str) -> Iterator[str]:
    """A container with a read-only root filesystem; its volumes are all it may write to."""
    options = ["--detach", "--read-only", "--network=host"]
    container = docker("run", *options, image, "serve", "--listen=127.0.0.1:0").strip()
    yield container
    docker("rm", "--force", "--volumes", container)


def wait_until_ready(docker: Client, container: str) -> str:
    """Wait until the container says where it serves; its host and port."""

    def ready() -> bytes:
        found = docker.run("exec", container, "cat", "/var/lib/mayfly/state/ready.json")
        if found.returncode == 0:
            return found.stdout
        assert inspect(docker, container)["State"]["Running"], logs(docker, container)
        return b""

    found = poll(ready, lambda: logs(docker, container))
    return str(json.loads(found)["url"]).partition("://")[2]


def logs(docker: Client, container: str) -> str:
    """What the container wrote."""
    done = docker.run("logs", container)
    return (done.stdout + done.stderr).decode()


def inspect(docker: Client, container: str) -> dict[str, Any]:
    """What docker knows of the container."""
    return dict(json.loads(docker("inspect", container))[0])


def test_container_serves_a_push(
    docker: Client, skopeo: Client, images: Images, container: str, scratch: Path
) -> None:
    """An image is pushed to the container, which runs as nobody, and pulled from it again."""
    host = wait_until_ready(docker, container)
    reference = f"docker://{host}/debian:1"
    push_by_skopeo(skopeo, images.layout, "debian", f"{host}/debian:1")
    skopeo("copy", "--src-tls-verify=false", reference, f"dir:{scratch}/pulled")
    told = json.loads(skopeo("inspect", "--tls-verify=false", reference))
    assert told["Digest"] == images.digest("debian")
    user_ids = docker("exec", container, "cat", "/proc/1/status").split("Uid:")[1].split()[:4]
    assert "0" not in user_ids


def test_root_filesystem_stays_read_only(docker: Client, container: str) -> None:
    """Nothing but the volumes can be written to, and the server runs all the same."""
    wait_until_ready(docker, container)
    assert "Read-only file system" in docker.fails("exec", "--user=0", container, "touch", "/new")


def test_a_start_compiles_nothing(docker: Client, image: str) -> None:
    """Nothing can be written to the image later, so each module of a server is compiled in it."""
    program = (
        "import sys; from pathlib import Path; from mayfly.registry import startup; "
        "startup.import_server(); "
        "made = [one.__cached__ for one in sys.modules.values() if getattr(one, '__cached__', '')];"
        "print(len(made), [path for path in made if not Path(path).exists()])"
    )
    count, lacking = docker(
        "run", "--rm", "--entrypoint=/opt/mayfly/bin/python", image, "-c", program
    ).split(maxsplit=1)
    assert int(count) > 300
    assert lacking.strip() == "[]"


def test_stopped_container_keeps_its_images(
    docker: Client, skopeo: Client, images: Images, container: str
) -> None:
    """docker stop ends it cleanly, and started again it has what was pushed."""
    host = wait_until_ready(docker, container)
    push_by_skopeo(skopeo, images.layout, "small", f"{host}/small:1")
    docker("stop", "--time=30", container)
    assert inspect(docker, container)["State"]["ExitCode"] == 0, logs(docker, container)
    docker("start", container)
    host = wait_until_ready(docker, container)
    told = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{host}/small:1"))
    assert told["Digest"] == images.digest("small")
    assert "Traceback" not in logs(docker, container)


def test_builds_without_a_network(
    docker: Client, python_image: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the wheelhouse, unpacked beside it, as docs/install.md has it."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", builder().EPOCH)
    monkeypatch.setattr(builder(), "PYTHONS", ("3.11",))  # of Debian 12
    wheelhouse = builder().make_wheelhouse(scratch / "wheels", scratch)
    context = scratch / "context"
    context.mkdir()
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, context)
    for name in ("auth", "mayfly", "registry", "storage"):
        shutil.copytree(REPO / name, context / name, symlinks=True)
    with tarfile.open(wheelhouse) as archive:
        archive.extractall(context, filter="data")
    options = ["--network=none", "--build-arg=PIP_NO_INDEX=1", f"--build-arg=BASE={python_image}"]
    docker("build", *options, f"--tag={OFFLINE_IMAGE}", context, timeout=900)
    said = docker("run", "--rm", "--read-only", "--network=none", OFFLINE_IMAGE, "--version")
    assert VERSION in said
