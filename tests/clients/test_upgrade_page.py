"""docs/upgrade.md: every command of it is run, with the real runtimes, and what it printed is so.

``pytest tests/clients/test_upgrade_page.py --record`` writes the output into the page anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.layout import Layout
from tests.clients.node_machines import GATEWAY, Machine
from tests.clients.told_page import Shell, run_section
from tests.conftest import Record
from tests.kubelet.images import SLEEP, busybox
from tests.support.process import REPO, Mayfly, need

PAGE = REPO / "docs/upgrade.md"
SOURCE = "registry.example"
EXAMPLES = REPO / "examples"
IMAGES = ("registry.example/shop/web:2", "registry.example/shop/worker:2")

REBOOT = """#!/bin/sh
# As a power failure: Mayfly and the script end at once, and /run is empty afterwards.
kill -KILL "$(sed -n 's/.*"pid": *\\([0-9]*\\).*/\\1/p' /var/lib/mayfly/state/ready.json)" "$PPID"
rm -rf /run/mayfly
"""


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
    for name, text in {
        "mayfly": f'#!/bin/sh\nexec {sys.executable} -m mayfly "$@"\n',
        "reboot": REBOOT,
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    config = "".join(
        node.ssh_config().replace(f"Host {node.name}\n", f"Host {name}\n")
        for name, node in nodes.items()
    )
    if "docker-2" in nodes:
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


@dataclass(frozen=True)
class Story:
    """A section of the page.

    Attributes:
        title: of it.
        nodes: names by which ssh reaches machines with docker; the operator's own machine has the
            first of them if it is node-1.
    """

    title: str
    nodes: tuple[str, ...] = ()


STORIES = (
    Story("Try it"),
    Story("Docker hosts", ("docker-1", "docker-2")),
    Story("A node that reboots itself", ("node-1", "node-2")),
)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.title)
def test_commands_print_what_the_page_says(
    story: Story, network: None, tmp_path: Path, record: Record
) -> None:
    """With docker hosts, and ssh to them."""
    hosts = [Machine(1, tmp_path / "host-1", docker="")]
    registry = shell = None
    try:
        others = [name for name in story.nodes if name != "node-1"]
        hosts += [Machine(n, tmp_path / f"host-{n}", docker="") for n, _ in enumerate(others, 2)]
        if others:
            registry = source(tmp_path, *IMAGES)
        nodes = dict(zip(story.nodes, hosts[-len(story.nodes) :], strict=False))
        shell = operator(tmp_path, hosts[0], nodes)
        text, difference = run_section(PAGE.read_text(), story.title, shell)
        if not record(PAGE, text):
            assert not difference, f"{difference}\nIf that is as it should be: --record"
    finally:
        if shell is not None:
            shell.stop()
        if registry is not None:
            registry.stop()
        for host in hosts:
            host.stop()


def test_the_unit_runs_the_command_of_the_page(tmp_path: Path) -> None:
    """It is on the page, starts the same command, and systemd accepts it."""
    need("systemd-analyze")
    unit = EXAMPLES / "self-reboot/mayfly-upgrade.service"
    text = unit.read_text()
    page = PAGE.read_text().replace(" \\\n>    ", "")
    shown = "".join(line for line in text.splitlines(True) if not line.startswith("#"))
    assert f"```ini\n{shown}```" in page
    (command,) = re.findall(r"(?m)^ExecStart=/usr/local/bin/(.*)$", text)
    assert f"$ {command}\n" in page
    copy = tmp_path / unit.name
    copy.write_text(text.replace("/usr/local/bin/mayfly", "/bin/sh"))
    done = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
