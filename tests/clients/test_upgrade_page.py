"""docs/upgrade.md: every command of it is run, with the real runtimes, and what it printed is so.

``pytest tests/clients/test_upgrade_page.py --record`` writes the output into the page anew.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.layout import Layout
from tests.clients.node_machines import GATEWAY, Machine, network_of_machines
from tests.clients.told_page import Shell, run_section
from tests.conftest import Record
from tests.kubelet.images import SLEEP, busybox
from tests.kubelet.namespace import own_network
from tests.support.process import REPO, Mayfly, need_root

PAGE = REPO / "docs/upgrade.md"
SOURCE = "registry.example"
EXAMPLES = REPO / "examples"


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """A network of the module's own."""
    need_root()
    with own_network():
        network_of_machines()
        yield


def source(directory: Path, *images: str) -> Mayfly:
    """A registry called registry.example, on this end of the network, that has images."""
    layout = Layout(directory / "source-images")
    for image in images:
        layout.add(image, busybox(image), Cmd=list(SLEEP))
    return Mayfly(
        directory / "source",
        directory / "source-state",
        *(str(layout.directory), "--hostname", SOURCE, "--anonymous", "pull"),
        listen=f"{GATEWAY}:443",
    )


def operator(directory: Path, machine: Machine, nodes: dict[str, Machine]) -> Shell:
    """The operator's shell on a machine, in a checkout as far as it has examples.

    Args:
        nodes: the machines that ssh reaches, by the names that the page has for them.
    """
    programs = directory / "programs"
    programs.mkdir()
    (programs / "mayfly").write_text(f'#!/bin/sh\nexec {sys.executable} -m mayfly "$@"\n')
    (programs / "mayfly").chmod(0o755)
    config = "".join(
        node.ssh_config().replace(f"Host {node.name}\n", f"Host {name}\n")
        for name, node in nodes.items()
    )
    if nodes:
        # A new host, whose key is not known.
        config += f"Host docker-3\n  HostName {list(nodes.values())[-1].address}\n  User root\n"
    (directory / "ssh_config").write_text(f"{config}Host *\n  IdentitiesOnly yes\n")
    machine.shell(
        'echo "$1" registry.example >>/etc/hosts; cp "$2" /root/.ssh/config; '
        'mkdir /root/mayfly; cp -r "$3" /root/mayfly/',
        *(GATEWAY, str(directory / "ssh_config"), str(EXAMPLES)),
    )
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MAYFLY_")},
        "HOME": "/root",
        "PATH": f"{programs}:{os.environ['PATH']}:/usr/sbin:/sbin",
        "PYTHONPATH": str(REPO),
        "SSL_CERT_FILE": str(directory / "source-state/ca.crt"),
        "LC_ALL": "C.UTF-8",
    }
    env.pop("XDG_RUNTIME_DIR", None)
    return Shell(machine.inside("bash"), Path("/root/mayfly"), env)


@pytest.mark.parametrize("title", ["Try it", "Docker hosts"])
def test_commands_print_what_the_page_says(
    title: str, network: None, tmp_path: Path, record: Record
) -> None:
    """With docker hosts, and ssh to them."""
    images = ("registry.example/shop/web:2", "registry.example/shop/worker:2")
    hosts = [Machine(1, tmp_path / "host-1", docker="")]
    registry = shell = None
    try:
        if title != "Try it":
            hosts += [Machine(n, tmp_path / f"host-{n}", docker="") for n in (2, 3)]
            registry = source(tmp_path, *images)
        nodes = {f"docker-{number}": host for number, host in enumerate(hosts[1:], 1)}
        shell = operator(tmp_path, hosts[0], nodes)
        text, difference = run_section(PAGE.read_text(), title, shell)
        if not record(PAGE, text):
            assert not difference, f"{difference}\nIf that is as it should be: --record"
    finally:
        if shell is not None:
            shell.stop()
        if registry is not None:
            registry.stop()
        for host in hosts:
            host.stop()
