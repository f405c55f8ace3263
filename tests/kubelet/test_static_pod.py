"""The static pod of deploy/kubernetes, with the image that `make packages` builds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.version import VERSION
from tests.kubelet.cluster import Cluster
from tests.support.packing import builder
from tests.support.process import REPO, need, poll

BUNDLES = "/var/lib/mayfly-upgrade"


def test_static_pod(kubelets: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kubelet starts it from its file alone; it serves, and ends without the file."""
    need("cc", "strip", "nsenter")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", builder().EPOCH)
    subprocess.run(
        # The cluster's network, which these tests are in, leads to no package index.
        [
            *("nsenter", f"--target={os.getppid()}", "--net", "--"),
            *(sys.executable, REPO / "deploy/onefile/build.py", tmp_path),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=600,
    )
    one_file = tmp_path / f"mayfly-{VERSION}-linux-x86_64"
    node = kubelets.nodes[1]
    node.import_images(builder().make_image({"x86_64": one_file}, tmp_path))
    node.shell('mkdir -p "$1" && cp "$2" "$1/upgrade.tar"', BUNDLES, kubelets.bundle)
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "mayfly.yaml").write_bytes(
        (REPO / "deploy/kubernetes/static-pod.yaml").read_bytes()
    )
    node.restart_kubelet(staticPodPath=str(manifests))

    def container() -> str:
        return node.crictl("ps", "--quiet", "--name=mayfly").strip()

    def status() -> Any:
        found = container()
        done = found and node.crictl.run("exec", "--sync", found, "mayfly", "status", "--json")
        return json.loads(done.stdout) if done and done.returncode == 0 else None

    def pods() -> str:
        found = container()
        logs = node.crictl.run("logs", found).stderr.decode() if found else ""
        return f"{node.crictl('ps', '--all')}\n{logs}"

    found = poll(status, pods)
    assert found["url"] == f"https://{node.address}:5000"
    node.shell('curl --silent --show-error --fail --insecure "$1/readyz"', found["url"])
    (manifests / "mayfly.yaml").unlink()
    poll(lambda: not container(), pods, seconds=150)
