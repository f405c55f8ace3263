"""CRI-O with what `mayfly node-config show --for crio` prints: mirrors, trust and pins."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.layout import Layout, layer
from tests.clients.node_machines import CRIO_SOCKET, GATEWAY, Machine, events, network_of_machines
from tests.kubelet.namespace import own_network
from tests.support.commands import run_mayfly
from tests.support.process import Mayfly, find_program, need_root

PORT = 5781
PINNED = "docker.io/library/one:1"
CRICTL = f"{find_program('crictl')} -r unix://{CRIO_SOCKET}"
OTHERS = "quay.io/team/two:2"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine with CRI-O, in a network of its own."""
    need_root()
    with own_network():
        network_of_machines()
        made = Machine(1, tmp_path / "machine", crio=True)
        yield made
        made.stop()


def images(machine: Machine) -> dict[str, dict[str, Any]]:
    """Name → what CRI-O tells kubelet of an image."""
    listed = machine.shell(f"{CRICTL} images -o json 2>/dev/null")
    return {tag: image for image in json.loads(listed)["images"] for tag in image["repoTags"]}


def test_crio(machine: Machine, tmp_path: Path) -> None:
    """Images of two upstreams come through the mirror over TLS; those of the list are pinned."""
    layout = Layout(tmp_path / "layout")
    for name in (PINNED, OTHERS):
        layout.add(name, layer({"file": name.encode()}))
    (tmp_path / "images").write_text(f"{PINNED}\n")
    options = (str(layout.directory), "--tls", "auto", "--auth", "none")
    before = machine.tree()
    with Mayfly(
        tmp_path / "root", tmp_path / "state", *options, listen=f"{GATEWAY}:{PORT}"
    ) as server:
        pull = f"{CRICTL} pull"
        assert not machine._succeeds(*pull.split(), PINNED)
        words = ("--images", tmp_path / "images", "--mirror", "quay.io")
        state = ("--state-dir", server.state_dir)
        script = run_mayfly("node-config", "show", "--for", "crio", *words, *state)
        machine.shell(script)
        # What `systemctl reload crio` does.
        assert machine.crio is not None
        os.kill(machine.crio.pid, signal.SIGHUP)
        for name in (PINNED, OTHERS):
            machine.shell(f"for try in 1 2 3 4 5; do {pull} {name} && exit; sleep 1; done; exit 1")
        found = images(machine)
        assert found[PINNED]["pinned"] is True, events(machine)
        assert found[OTHERS]["pinned"] is False
        served = server.output()
        assert "error" not in served.lower(), served
    shown = run_mayfly(
        *("node-config", "show", "--for", "crio", *words, "--json"),
        *("--registry", f"https://{GATEWAY}:{PORT}", "--ca", server.state_dir / "ca.crt"),
    )
    (undo,) = (note for note in json.loads(shown)["notes"] if note["code"] == "take_back")
    command = undo["message"].partition(": ")[2].partition("; systemctl")[0]
    machine.shell(command)
    os.kill(machine.crio.pid, signal.SIGHUP)
    after = {path: entry for path, entry in machine.tree().items() if entry[0] != "directory"}
    assert after == {path: entry for path, entry in before.items() if entry[0] != "directory"}
    deadline = "for try in 1 2 3 4 5 6 7 8 9; do sleep 1; {} && exit; done; exit 1"
    unpinned = f"! {CRICTL} images -o json 2>/dev/null | grep -q '\"pinned\": true'"
    machine.shell(deadline.format(unpinned))
