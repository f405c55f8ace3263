"""The upgrade of ``examples/upgrade``, rehearsed: three runtimes on a machine of their own.

docker, containerd and podman pull by `upgrade.sh` from a Mayfly on an address outside 127/8, so
with TLS and users, as the defaults have it. What an operator sees of each rehearsal (the command,
what Mayfly printed, the exit code, the report) is compared with a file, with all that differs from
run to run put in capitals.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.clients.layout import Layout, layer
from tests.clients.programs import Client, wait_for_answer
from tests.security.node import ADDRESS, Node, NodeContainerd, NodeDockerd
from tests.support.process import REPO, Process, find_program, text_of

EXAMPLE = REPO / "examples" / "upgrade"
IMAGES = ("shop/database:2", "shop/web:2", "shop/worker:2")
NODES = ("node-docker", "node-containerd", "node-podman")

_TIMEOUT = 120


class Rehearsal:
    """The machine, with its runtimes, and one directory for each scenario."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node = node
        self.directory = directory
        self.bundle = _bundle(directory / "bundle")
        home = directory / "home"
        home.mkdir()
        (home / "auth.json").write_text("{}")
        self._home = home
        self._programs = directory / "programs"
        self._make_programs()
        (node.root / "etc/docker").mkdir()
        self.dockerd = NodeDockerd(node, home)
        self.containerd = NodeContainerd(node)
        self.docker = self.dockerd.docker
        options = ("--address", self.containerd.socket, "--namespace", "k8s.io")
        self.ctr = Client("ctr", home, *options)
        self.podman = node.client(
            *("podman", home, f"--root={directory}/podman/root"),
            *(f"--runroot={directory}/podman/run", f"--runtime={find_program('runc')}"),
            *("--cgroup-manager=cgroupfs", "--events-backend=file"),
        )
        wait_for_answer(self.dockerd, self.docker, "version")
        wait_for_answer(self.containerd, self.ctr, "version")

    def stop(self) -> None:
        """End the runtimes."""
        self.dockerd.stop()
        self.containerd.stop()

    def forget(self) -> None:
        """No runtime has an image, and none trusts a registry."""
        for image in self.docker("image", "ls", "--quiet", "--no-trunc").split():
            self.docker.run("image", "rm", "--force", image)
        for name in self.ctr("images", "ls", "--quiet").split():
            self.ctr("images", "rm", "--sync", name)
        self.podman.run("image", "rm", "--all", "--force")
        for runtime in ("docker", "containerd", "podman"):
            self.node.configure("revert", runtime)

    def scenario(self, name: str) -> Scenario:
        """A fresh directory with what an operator has there."""
        return Scenario(self, self.directory / name)

    @property
    def environment(self) -> dict[str, str]:
        """For `mayfly run`, and so for the script."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("MAYFLY_")}
        path = os.pathsep.join([str(self._programs), own.get("PATH", ""), "/usr/sbin", "/sbin"])
        return {
            **own,
            "PATH": path,
            "HOME": str(self._home),
            "PYTHONPATH": str(REPO),
            # What node-config saves is to lie with the machine, not with this one's /var.
            "MAYFLY_ROOT_DIR": str(self.node.root),
        }

    def _make_programs(self) -> None:
        """`mayfly` and the runtimes' clients, as the script calls them: each knows its daemon."""
        self._programs.mkdir()
        directory = self.node.directory
        podman = (
            f"podman --root={self.directory}/podman/root --runroot={self.directory}/podman/run "
            f"--runtime={find_program('runc')} --cgroup-manager=cgroupfs --events-backend=file"
        )
        for name, command in {
            "mayfly": f"{sys.executable} -m mayfly",
            "docker": f"{find_program('docker')} --host unix://{directory}/dockerd/docker.sock",
            "ctr": f"{find_program('ctr')} --address {directory}/containerd/containerd.sock",
            "podman": podman.replace("podman", find_program("podman") or "", 1),
        }.items():
            program = self._programs / name
            program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            program.chmod(0o755)


class Scenario:
    """One rehearsal: commands and their output, in their order.

    Attributes:
        directory: where the operator stands; the script's own output goes to ``upgrade.log``.
        text: what an operator saw.
    """

    def __init__(self, rehearsal: Rehearsal, directory: Path) -> None:
        self._rehearsal = rehearsal
        self.directory = directory
        shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("expected", "*.md"))
        shutil.copy(rehearsal.bundle, directory / "bundle.tar")
        self.text = ""
        self._count = 0

    def start(self, *words: str) -> Process:
        """Start ``mayfly``; the directory's files are named as the operator does."""
        self._count += 1
        self.text += f"$ mayfly {_shown(words)}\n"
        log = self.directory / f"output-{self._count}"
        command, rest = words[0], words[1:]
        fixed = ("--state-dir", "state", "--listen", f"{ADDRESS}:5000")
        argv = self._rehearsal.node.inside(sys.executable, "-m", "mayfly", command, *fixed, *rest)
        inside = [f"--wd={self.directory}" if str(w).startswith("--wd=") else w for w in argv]
        return Process(inside, log, env=self._rehearsal.environment)

    def finish(self, process: Process) -> int:
        """Wait for the end, and write down what was printed and the exit code; that code."""
        try:
            code = process.popen.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"does not end: {process.describe()}") from None
        # As a shell shows the death by a signal.
        shown = code if code >= 0 else 128 - code
        self.text += f"{_without_order(process.output())}exit code {shown}\n\n"
        return code

    def run(self, *words: str) -> int:
        """Start ``mayfly`` and wait for its end; the exit code."""
        return self.finish(self.start(*words))

    def wait_for_line(self, process: Process, line: str) -> None:
        """Wait until the script has written a line."""
        log = self.directory / "upgrade.log"
        process.wait_for(lambda: line in text_of(log).splitlines(), deadline=_TIMEOUT)

    def script_output(self) -> str:
        """What the script printed."""
        return (self.directory / "upgrade.log").read_text()

    def told(self) -> str:
        """All that explains a failure: what was shown, what the script printed, and the ledger."""
        found = [self.text]
        for name in ("upgrade.log", "state/coverage.jsonl"):
            path = self.directory / name
            found.append(f"{name}:\n{path.read_text()}" if path.exists() else f"no {name}\n")
        return "\n".join(found)

    def report(self) -> dict[str, Any]:
        """The report of the last run."""
        return dict(json.loads((self.directory / "state/report.json").read_text()))

    def golden(self) -> str:
        """All of it as it is kept: what differs from run to run is in capitals."""
        report = json.dumps(_steady(self.report()), indent=2, ensure_ascii=False)
        shown = self.text.replace(str(self.directory), "DIR") + f"state/report.json:\n{report}\n"
        return steady_text(shown)


def _without_order(output: str) -> str:
    """What Mayfly printed, without what depends on how fast the machine is.

    A node counts as complete once nothing of it has been under way for a moment. When that is, is
    chance: those lines come last, sorted. So is how often a client tries again what is refused:
    lines that count repeats are left out.
    """
    told, chance = "", set()
    for line in output.splitlines(keepends=True):
        found = _ANY_TIME.search(line)
        if found:
            chance.add(found[1])
        elif not _REPEATS.search(line):
            told += line
    return told + "".join(f"in between: {text}\n" for text in sorted(chance))


def _shown(words: Sequence[str]) -> str:
    return " ".join(f"'{word}'" if " " in word else word for word in words)


_ANY_TIME = re.compile(r" (node-\w+: \d+ of \d+ images); \d+ of \d+ nodes$", re.MULTILINE)
_REPEATS = re.compile(r"\(and \d+ more like it(?:, the last at \S+)?\)$", re.MULTILINE)
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_VARYING: tuple[tuple[str, str], ...] = (
    (r"\b(?:[0-9A-F]{2}:){19,31}[0-9A-F]{2}\b", "FINGERPRINT"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?", "TIME"),
    (r"\b\d\d:\d\d:\d\d(?:\.\d+)?\b", "TIME"),
    (r"sha256:[0-9a-f]{12,64}", "sha256:DIGEST"),
    (r"\b\d+(?:\.\d+)? ?(?:B|bytes|KiB|MiB|GiB|kB|MB|GB)(?:/s)?(?=\W|$)", "SIZE"),
    (r"\b(?:\d+m )?\d+(?:\.\d+)? ?(?:ms|s|min|seconds?|minutes?)(?=\W|$)", "DURATION"),
    (r"(?m)^(\s+(?:admin|pull)\s+)\S{32}$", r"\1PASSWORD"),
    (r"\b(process|pid) \d+", r"\1 PID"),
    # A long path is shown by its end.
    (r"…\S*/rehearsal-\S+", "…PATH"),
    (r"/tmp/\S*?mayfly-\S+?(?=[\s:'\",]|$)", "PATH"),
)


def steady_text(text: str) -> str:
    """A text with all that differs from run to run in capitals."""
    text = _CERTIFICATE.sub("CERTIFICATE", text)
    for pattern, name in _VARYING:
        text = re.sub(pattern, name, text)
    # Tables are as wide as their widest number was.
    return re.sub(r"(?m)[ \t]+$", "", re.sub(r"(?<=\S) {2,}", "  ", text))


def _steady(value: Any, key: str = "") -> Any:
    """A report without what differs from run to run."""
    if isinstance(value, dict):
        return {name: _steady(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_steady(inner, key) for inner in value]
    if isinstance(value, bool) or value is None or isinstance(value, str) or key == "exit_code":
        return value
    return value if isinstance(value, int) and value < 100 and not _measured(key) else "N"


def _measured(key: str) -> bool:
    return any(word in key for word in ("bytes", "size", "memory", "second", "time", "pid", "free"))


def _bundle(directory: Path) -> Path:
    """Three images that share a layer, named as `images.txt` has them."""
    numbers = random.Random(1)
    common = layer({"etc/base": numbers.randbytes(2 << 20)})
    layout = Layout(directory)
    for name in IMAGES:
        layout.add(name, common, layer({f"srv/{name.split('/')[1]}": numbers.randbytes(1 << 20)}))
    return layout.archive()


def damage(bundle: Path) -> None:
    """Change a byte in the last layer of a bundle's last image, as a bad disk does."""
    with tarfile.open(bundle) as archive:

        def document(name: str) -> Any:
            found = archive.extractfile(name)
            assert found is not None
            return json.loads(found.read())

        def blob(digest: str) -> str:
            return f"./blobs/sha256/{digest.removeprefix('sha256:')}"

        manifest = document(blob(document("./index.json")["manifests"][-1]["digest"]))
        at = archive.getmember(blob(manifest["layers"][-1]["digest"])).offset_data + 1000
    with bundle.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))
