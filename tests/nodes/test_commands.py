"""The text an operator pastes on a node."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mayfly.registry.nodes.commands import node_commands
from mayfly.registry.nodes.runtimes import RUNTIMES, EmptyNode, Runtime, make_plan
from mayfly.registry.nodes.target import NodeCredential, parse
from mayfly.registry.pki.certificate import fingerprint

HOST = "10.0.0.5:5000"


def test_it_says_where_and_whom_to_trust(ca_pem: bytes) -> None:
    """URL and fingerprint come first, then each runtime."""
    text = node_commands(parse(HOST, ca_pem))
    lines = text.splitlines()
    assert lines[:2] == [f"Registry: https://{HOST}", f"CA SHA-256: {fingerprint(ca_pem)}"]
    assert [line.split(":")[0] for line in lines if line.endswith("as root")] == [
        f"# {runtime}" for runtime in RUNTIMES
    ]
    assert text.endswith("\n")
    assert f"docker login {HOST}" in lines


@pytest.mark.parametrize(
    ("runtime", "credential"),
    [*((runtime, None) for runtime in RUNTIMES), ("containerd", NodeCredential("robot+n", "p"))],
)
@pytest.mark.parametrize("times", [1, 2])
def test_pasting_it_makes_the_files(
    tmp_path: Path,
    ca_pem: bytes,
    runtime: Runtime,
    credential: NodeCredential | None,
    times: int,
) -> None:
    """A POSIX shell makes the bytes and modes that apply would, also when run again."""
    target = parse(HOST, ca_pem, ["quay.io"], credential=credential)
    text = node_commands(target, [runtime]).replace("/etc/", f"{tmp_path}/etc/")
    script = "\n".join(line for line in text.splitlines()[2:] if " login " not in line)
    for _ in range(times):
        subprocess.run(
            ["sh", "-eu", "-c", "umask 022; . /dev/stdin"],
            input=script.encode(),
            check=True,
            timeout=30,
        )
    written = {
        str(path)[len(str(tmp_path)) :]: (
            path.stat().st_mode & 0o777,
            path.read_bytes().replace(f"{tmp_path}".encode(), b""),
        )
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    plan = make_plan(runtime, target, EmptyNode())
    assert written == {file.path: (file.mode, file.content) for file in plan.files}


@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_pasting_it_logs_a_node_in(tmp_path: Path, ca_pem: bytes, runtime: Runtime) -> None:
    """The credential of a node goes to the runtime's own login, its password by standard input."""
    client = tmp_path / "bin" / runtime
    client.parent.mkdir()
    client.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\ncat >> {tmp_path}/told\n')
    client.chmod(0o755)
    target = parse(HOST, ca_pem, credential=NodeCredential("robot+n", "pass"))
    text = node_commands(target, [runtime]).replace("/etc/", f"{tmp_path}/etc/")
    script = f"PATH={client.parent}:$PATH\n" + "\n".join(text.splitlines()[2:])
    subprocess.run(["sh", "-eu", "-c", ". /dev/stdin"], input=script.encode(), check=True)
    told = f"login {HOST} --username robot+n --password-stdin\npass\n"
    assert (tmp_path / "told").read_text() == told


def test_what_has_to_be_merged_is_only_described() -> None:
    """Writing daemon.json would lose what the node has in it."""
    text = node_commands(parse(f"http://{HOST}"), ["docker"])
    assert "cat >" not in text
    assert f'#       "{HOST}"' in text.splitlines()
    assert "systemctl reload docker" in text
    assert "CA SHA-256" not in text


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_notes_of_apply_are_there(ca_pem: bytes, runtime: Runtime) -> None:
    """What `apply` tells the operator besides its files stands in the text, as comments."""
    target = parse(HOST, ca_pem, ["quay.io"])
    notes = make_plan(runtime, target, EmptyNode()).notes
    assert notes
    lines = node_commands(target, [runtime]).splitlines()
    assert all(f"# note: {note}" in lines for note in notes)


def test_below_a_path_only_containerd_is_set_up() -> None:
    """containerd gets the whole path and is told not to add to it; others are said not to work."""
    target = parse("https://registry.example/hub", mirrors=["docker.io"])
    text = node_commands(target)
    assert 'server = "https://registry.example/hub/v2"\noverride_path = true\n' in text
    assert text.count('[host."https://registry.example/hub/v2"]') == 2
    assert text.count("  override_path = true\n") == 2
    assert "certs.d/registry.example/hosts.toml" in text
    for runtime in ("docker", "podman"):
        assert f"# {runtime} cannot use https://registry.example/hub" in text
        assert f"{runtime} login" not in text
