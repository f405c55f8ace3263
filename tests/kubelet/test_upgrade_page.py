"""docs/upgrade.md, Kubernetes: every command of it is run, and what it printed is so.

``pytest tests/kubelet/test_upgrade_page.py --record`` writes the output into the page anew.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from mayfly.registry.version import VERSION
from tests.clients.layout import Layout
from tests.clients.told_page import Shell, run_section
from tests.conftest import Record
from tests.kubelet.cluster import Cluster
from tests.kubelet.images import SLEEP, add_mayfly, busybox
from tests.kubelet.node import GATEWAY
from tests.support.process import REPO, Mayfly, need
from tests.support.programs import BIN

PAGE = REPO / "docs/upgrade.md"
IMAGES = ("registry.example/shop/web:2", "registry.example/shop/worker:2")

SSH = """#!/bin/sh
# ssh root@NODE COMMAND..., into the namespaces of a node of this machine
case $1 in {cases}
esac
shift
exec nsenter --target=$target --net --mount -- env CONTAINERD_ADDRESS=$socket sh -c "$*"
"""
SCP = """#!/bin/sh
# scp FILE root@NODE:DIRECTORY
ssh "${2%%:*}" "cat >${2#*:}$1" <"$1"
"""


def _operator(directory: Path, cluster: Cluster) -> Shell:
    """A shell with ssh to the nodes and the right to do anything in the cluster."""
    need("helm", "kubectl")
    programs = directory / "programs"
    programs.mkdir()
    cases = "".join(
        f"\nroot@{node.name}) target={node.pid} socket={node.socket} ;;"
        for node in cluster.nodes.values()
    )
    for name, text in {
        "mayfly": f'#!/bin/sh\nexec {sys.executable} -m mayfly "$@"\n',
        "ssh": SSH.format(cases=cases),
        "scp": SCP,
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    checkout = directory / "checkout"
    for part in ("examples/kubernetes", "deploy/helm"):
        shutil.copytree(REPO / part, checkout / part)
    layout = Layout(directory / "mayfly-image")
    add_mayfly(layout, f"localhost/mayfly:{VERSION}")
    shutil.copy(layout.archive(), checkout / f"examples/kubernetes/mayfly-{VERSION}-oci.tar")
    hosts = directory / "hosts"
    hosts.write_text(f"{Path('/etc/hosts').read_text()}\n{GATEWAY} registry.example\n")
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    argv = [*inside, 'mount --bind "$1" /etc/hosts; exec bash', "sh", str(hosts)]
    env = {
        "HOME": str(directory),
        "KUBECONFIG": str(cluster.admin_kubeconfig),
        "PATH": f"{programs}:{BIN}:{os.environ['PATH']}:/usr/sbin:/sbin",
        "PYTHONPATH": str(REPO),
        "SSL_CERT_FILE": str(directory / "source-state/ca.crt"),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
    return Shell(argv, checkout, env)


def test_commands_print_what_the_page_says(
    cluster: Cluster, tmp_path: Path, record: Record, trusting: None
) -> None:
    """From the bundle to the nodes as they were before."""
    for node in cluster.nodes.values():
        node.mayfly("node-config", "revert", "--runtime", "containerd")
    layout = Layout(tmp_path / "source-images")
    for image in IMAGES:
        layout.add(image, busybox(image), Cmd=list(SLEEP))
    registry = Mayfly(
        tmp_path / "source",
        tmp_path / "source-state",
        *(str(layout.directory), "--hostname", "registry.example", "--anonymous", "pull"),
        listen=f"{GATEWAY}:443",
    )
    shell = _operator(tmp_path, cluster)
    try:
        text, difference = run_section(PAGE.read_text(), "Kubernetes", shell)
        if not record(PAGE, text):
            assert not difference, f"{difference}\nIf that is as it should be: --record"
    finally:
        shell.run("kubectl delete --wait=false namespace mayfly; kubectl delete -f shop.yaml")
        shell.stop()
        registry.stop()
