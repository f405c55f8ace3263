"""How the look at a cluster asks kubectl and the nodes, without a server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from mayfly.registry.cluster.facts import NodeFacts, parse_images
from mayfly.registry.cluster.look import Sources, _Seen
from mayfly.registry.cluster.placement import cluster_node
from mayfly.registry.nodes.kubectl import Kubectl, is_name
from mayfly.registry.nodes.script import reading_script
from mayfly.registry.nodes.target import Target
from tests.nodes.test_script import SHELLS
from tests.support.process import PATIENCE, killed_at_end, need

ASKED: list[tuple[str, ...]] = []


class Recording(Kubectl):
    """Notes the arguments of kubectl, and answers as if nothing was found."""

    async def ask(self, *arguments: str, **options: Any) -> bytes:
        """Note them."""
        ASKED.append(arguments)
        return b""


def _seen() -> _Seen:
    sources = Sources(Recording(), None, "", 1, lambda names: (), lambda text: None)
    return _Seen(sources, frozenset(), "registry.example")


@pytest.mark.parametrize(
    "name",
    [
        *("--server=http://attacker.example", "-o", "--", "", "a b", "a/b", "A", "a\n", "é"),
        *("../configz", "-a", "a-", ".a", "a" * 254, "--all-namespaces", "a\0b"),
    ],
)
async def test_names_that_no_object_can_have(name: str) -> None:
    """Kubernetes takes any text in imagePullSecrets: kubectl gets none that no Secret can have."""
    assert not is_name(name)
    ASKED.clear()
    found = await _seen().secrets({("team", name)})
    assert (found, ASKED) == ({("team", name): {}}, [])
    found = await _seen().secrets({("team", name), ("team", "pull"), ("team", "pull.2")})
    (words,) = ASKED
    assert [one for one in words if "pull" in one] == ["pull", "pull.2"]
    assert found == {("team", one): {} for one in (name, "pull", "pull.2")}


async def test_many_secrets_are_asked_for_in_parts() -> None:
    """A command's arguments have a bound."""
    ASKED.clear()
    wanted = {("team", f"pull-{n}") for n in range(1000)}
    assert (await _seen().secrets(wanted)).keys() == wanted
    assert max(len(words) for words in ASKED) < 300
    assert len(ASKED) > 1


@pytest.mark.parametrize("end", ["kubelet.sh", "probe.sh"])
def test_script_ends_while_its_input_stays_open(end: str) -> None:
    """The shell of a node reads it from ssh, which continues after the script."""
    script = reading_script(Target("", tls=True), (), end)
    process = subprocess.Popen(
        ["sh", "-s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with killed_at_end(process) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write(script.encode())
        shell.stdin.flush()
        assert shell.wait(PATIENCE) == 0
        assert b" done yes\n" in shell.stdout.read()


def test_script_is_clean() -> None:
    """shellcheck has nothing to say about it but that functions for other work are not used."""
    need("shellcheck")
    done = subprocess.run(
        ["shellcheck", "-s", "sh", "-e", "SC2317,SC2034", "-"],
        input=reading_script(Target("", tls=True), (), "kubelet.sh"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == ""


class Tree:
    """A node's files; `kubelet.sh` looks for all of them below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.process(1, "init")

    def process(
        self,
        number: int | str,
        *words: str,
        users: str = "0 0 0 0",
        space: str = "1",
        mounts: str = "1",
    ) -> None:
        """Add a process of these users, in these namespaces of processes and mounts."""
        directory = self.root / f"proc/{number}"
        (directory / "ns").mkdir(parents=True)
        for kind, name in (("pid", space), ("mnt", mounts)):
            (directory / "ns" / kind).symlink_to(f"{kind}:[{name}]")
        (directory / "status").write_text(f"Name:\tx\nUid:\t{users}\nGid:\t0\n")
        (directory / "cmdline").write_text("".join(f"{word}\0" for word in words))
        (directory / "comm").write_text(f"{Path(words[0]).name}\n")

    def records(self, directory: str, *images: str) -> Path:
        """Add a kubelet's directory with records; the directory of these."""
        pulled = self.root / directory.strip("/") / "image_manager/pulled"
        pulled.mkdir(parents=True)
        for image in images:
            record = {"kind": "ImagePulledRecord", "imageRef": image}
            (pulled / image).write_text(json.dumps(record))
        return pulled

    def sockets(self, *directories: str) -> None:
        """Have kubelets listen in their directories, and nothing else."""
        (self.root / "proc/net").mkdir(exist_ok=True)
        begin = "0000000000000000: 00000002 00000000 00010000 0001 01 7"
        # The name of the file before kubelet renames it.
        lines = [f"{begin} {one}/pod-resources/3490153311\n" for one in directories]
        (self.root / "proc/net/unix").write_text("".join(lines))

    def facts(self, endpoint: str = "", **variables: str) -> NodeFacts:
        """What the script shows that knows an endpoint, in each shell that it is for."""
        script = reading_script(Target("", tls=True), (), "kubelet.sh")
        assert "\ntree=''\n" in script
        script = script.replace("\ntree=''\n", f"\ntree='{self.root}'\n")
        found: list[NodeFacts] = []
        for shell in SHELLS.values():
            need(shell[0])
            done = subprocess.run(
                [*shell, "-s"],
                input=f"kubelet_endpoint='{endpoint}'\n{script}".encode(),
                env=os.environ | variables,
                capture_output=True,
                check=True,
                timeout=120,
            )
            facts = NodeFacts()
            for line in done.stdout.splitlines():
                facts.take(line)
            assert facts.complete
            found.append(facts)
        assert all(one == found[0] for one in found), shell
        return found[0]


OTHER = "--root-dir=/data/kubelet"


@pytest.mark.parametrize(
    "forged",
    [
        *({"users": one} for one in ("1000 0 0 0", "0 0 0 1000", "0 0 0 0 1", "0 0 0", "")),
        {"space": "2", "mounts": "2"},
        {"space": "2"},
    ],
    ids=str,
)
def test_forged_kubelet(tmp_path: Path, forged: dict[str, str]) -> None:
    """A process of a pod that has the name of kubelet changes nothing."""
    node = Tree(tmp_path)
    node.process(60, "kubelet", OTHER, **forged)
    node.process(70, "kubelet")
    node.sockets("/var/lib/kubelet")
    node.records("data/kubelet", "forged")
    node.records("var/lib/kubelet", "real")
    facts = node.facts()
    assert facts.records.keys() == {"real"} and facts.has_records


@pytest.mark.parametrize("number", [60, 80])
def test_kubelet_with_mounts_of_its_own(tmp_path: Path, number: int) -> None:
    """It may be the node's, by its service's settings, or a pod's: there is one, records unseen."""
    node = Tree(tmp_path)
    node.process(number, "kubelet", OTHER, mounts="2")
    node.sockets("/var/lib/kubelet")
    node.records("data/kubelet", "other")
    facts = node.facts()
    assert (facts.has_kubelet, facts.has_records) == (True, False)
    node.records("var/lib/kubelet", "stale")
    assert not node.facts().has_records
    node.process(70, "kubelet")
    assert not node.facts().has_records
    # Both have the same directory.
    (tmp_path / f"proc/{number}/cmdline").write_text("kubelet\0--v=2\0")
    facts = node.facts()
    assert facts.records.keys() == {"stale"} and facts.has_records
    # There is none but this, in the usual directory.
    (tmp_path / "proc/70/comm").write_text("other\n")
    assert node.facts().has_records


@pytest.mark.parametrize("number", [60, 80])
def test_kubelet_beside_another_one(tmp_path: Path, number: int) -> None:
    """One that prints its version, or the node's: with other directories, records are unseen."""
    node = Tree(tmp_path)
    node.process(number, "kubelet", "--version")
    node.process(70, "kubelet", OTHER)
    node.sockets("/data/kubelet")
    node.records("data/kubelet", "real")
    node.records("var/lib/kubelet", "stale")
    facts = node.facts()
    assert (facts.has_kubelet, facts.has_records) == (True, False)
    (tmp_path / f"proc/{number}/cmdline").write_text(f"kubelet\0{OTHER}\0")
    facts = node.facts()
    assert facts.records.keys() == {"real"} and facts.has_records


@pytest.mark.parametrize(
    "words",
    [
        ("--v=2", OTHER),
        ("--root_dir=/data/kubelet",),
        ("--root-dir=/var/lib/kubelet", OTHER),
        ("--root-dir", "--root-dir=/x", "--v=2", "--root_dir", "/data/kubelet"),
        ("--root-dir=/data/kubelet/",),
    ],
    ids=str,
)
def test_flags_as_kubelet_reads_them(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Its directory counts; an underscore is a hyphen, and the last of several values is taken."""
    node = Tree(tmp_path)
    node.process(70, "/usr/bin/kubelet", *words)
    node.sockets("/data/kubelet")
    node.records("data/kubelet", "a", "b")
    node.records("var/lib/kubelet", "stale")
    facts = node.facts()
    assert facts.records.keys() == {"a", "b"} and facts.has_records


@pytest.mark.parametrize("mounts", ["1", "2"], ids=["own", "apart"])
def test_kubelet_that_ends_meanwhile(tmp_path: Path, mounts: str) -> None:
    """Its flags are not known any more, so its directory may be another."""
    node = Tree(tmp_path)
    node.process(70, "kubelet", mounts=mounts)
    (tmp_path / "proc/70/cmdline").write_text("")
    node.sockets("/var/lib/kubelet")
    node.records("var/lib/kubelet", "stale")
    facts = node.facts()
    assert (facts.has_kubelet, facts.has_records) == (True, False)


def test_kubelet_within_another_program(tmp_path: Path) -> None:
    """As in k3s: a kubelet is known by its files; without its socket the records may be stale."""
    node = Tree(tmp_path)
    assert not node.facts().has_kubelet
    (tmp_path / "var/lib/rancher").mkdir(parents=True)
    facts = node.facts()
    assert (facts.has_kubelet, facts.has_records) == (True, False)
    node.process(70, "/usr/local/bin/k3s", "server")
    node.records("var/lib/kubelet", "a")
    assert not node.facts().has_records


@pytest.mark.parametrize("is_alone", [True, False])
@pytest.mark.parametrize(
    ("directories", "counts"),
    [
        (("/var/lib/kubelet",), True),
        (("/var/lib/kubelet", "/var/lib/kubelet"), True),
        (("/data/kubelet",), False),
        (("/x/var/lib/kubelet",), False),
        # One of them may be of a pod, and records of the other stale.
        (("/var/lib/kubelet", "/snap/kubelet"), False),
        # A path with a space, and a name without a file.
        (("/x /var/lib/kubelet",), False),
        (("/var/lib/kubelet", "@/data/kubelet", "@x /data/kubelet"), True),
    ],
    ids=str,
)
def test_kubelet_that_only_its_socket_shows(
    tmp_path: Path, directories: tuple[str, ...], counts: bool, is_alone: bool
) -> None:
    """As that of MicroK8s, whose files are elsewhere: records count if it listens beside them.

    A process of a pod that has the name of kubelet changes nothing.
    """
    node = Tree(tmp_path)
    node.sockets(*directories)
    if not is_alone:
        node.process(70, "kubelet", mounts="2")
    facts = node.facts()
    assert (facts.has_kubelet, facts.has_records) == (True, False)
    node.records("var/lib/kubelet", "a")
    assert node.facts().has_records is counts


@pytest.mark.parametrize("mounts", ["1", "2"], ids=["own", "apart"])
@pytest.mark.parametrize(
    "directories", [(), ("/data/kubelet",), ("/var/lib/kubelet", "/data/kubelet")], ids=str
)
def test_kubelet_that_does_not_listen_in_its_directory(
    tmp_path: Path, directories: tuple[str, ...], mounts: str
) -> None:
    """It may only print its version, beside one that is part of another program, as in k3s."""
    node = Tree(tmp_path)
    node.process(70, "kubelet", "--version", mounts=mounts)
    node.sockets(*directories)
    node.records("var/lib/kubelet", "stale")
    node.records("data/kubelet", "real")
    facts = node.facts()
    assert (facts.has_kubelet, facts.has_records) == (True, False)


@pytest.mark.parametrize("own", ["1", "2"])
def test_node_whose_first_process_cannot_be_read(tmp_path: Path, own: str) -> None:
    """The script's own namespaces are the node's then; without them no process counts as such."""
    node = Tree(tmp_path)
    node.process(60, "kubelet", OTHER)
    node.sockets("/data/kubelet")
    node.records("data/kubelet", "a")
    for kind in ("pid", "mnt"):
        (tmp_path / f"proc/1/ns/{kind}").unlink()
    facts = node.facts()
    assert (facts.has_kubelet, facts.has_records) == (True, False)
    node.process("self", "sh", space=own, mounts=own)
    assert node.facts().has_records is (own == "1")


def test_kubelet_without_records_is_a_gap(tmp_path: Path) -> None:
    """A kubelet that keeps records makes their directory: without it this may be another one."""
    (tmp_path / "var/lib/kubelet").mkdir(parents=True)
    node = Tree(tmp_path)
    node.process(70, "kubelet")
    node.sockets("/var/lib/kubelet")
    facts = node.facts()
    assert (facts.has_kubelet, facts.has_records) == (True, False)
    pulled = node.records("var/lib/kubelet")
    assert node.facts().has_records
    (pulled / "link").symlink_to("/etc/hostname")
    assert not node.facts().has_records


CRICTL = """#!/bin/sh
# crictl of runtimes that have an image each, by the name of their socket.
case $* in
    *version*) echo "RuntimeName:  containerd" ;;
    *)
        name=${2##*/}
        printf '{"images": [{"id": "i", "repoTags": ["r.example/%s:1"]}]}' "${name%.*}" ;;
esac
"""


@pytest.mark.parametrize(
    ("given", "kubelets", "expected"),
    [
        ("kubelet", {}, ("kubelet", True)),
        ("kubelet", {70: ("1", "other")}, ("kubelet", True)),
        ("not-there", {}, (None, True)),
        ("", {70: ("1", "kubelet")}, ("kubelet", True)),
        ("", {70: ("1", "not-there")}, (None, True)),
        ("", {60: ("2", "other"), 70: ("1", "kubelet")}, ("kubelet", True)),
        ("", {60: ("2", "kubelet"), 70: ("2", "kubelet")}, ("kubelet", True)),
        # Nobody says which runtime it is.
        ("", {60: ("2", "kubelet"), 70: ("2", "other")}, ("docker", False)),
        ("", {60: ("2", ""), 70: ("2", "other")}, ("docker", False)),
        ("", {60: ("1", ""), 70: ("1", "other")}, ("docker", False)),
        ("", {60: ("1", "other"), 70: ("1", "kubelet")}, ("docker", False)),
        ("", {60: ("1", "kubelet"), 70: ("1", "")}, ("docker", False)),
        ("", {70: ("1", "")}, ("docker", False)),
        ("", {}, ("docker", False)),
    ],
    ids=str,
)
def test_runtime_of_the_kubelet(
    tmp_path: Path,
    given: str,
    kubelets: dict[int, tuple[str, str]],
    expected: tuple[str | None, bool],
) -> None:
    """Of several the one that its configuration or its flag names; another one is told apart."""
    node = Tree(tmp_path / "node")
    (tmp_path / "crictl").write_text(CRICTL)
    (tmp_path / "crictl").chmod(0o755)
    with ExitStack() as stack:
        # A socket's path has a bound.
        sockets = Path(stack.enter_context(TemporaryDirectory(prefix="mayfly-")))
        for name in ("docker", "kubelet", "other"):
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(sockets / f"{name}.sock"))
        for number, (mounts, name) in kubelets.items():
            flag = f"--container-runtime-endpoint=unix://{sockets}/{name}.sock" if name else "--v=2"
            node.process(number, "kubelet", flag, mounts=mounts)
        facts = node.facts(
            f"{sockets}/{given}.sock" if given else "",
            CONTAINERD_ADDRESS=f"{sockets}/docker.sock",
            PATH=f"{tmp_path}:{os.environ['PATH']}",
        )
    image, is_known = expected
    names = None if image is None else {f"r.example/{image}:1"}
    assert (facts.images and facts.images.keys(), facts.is_of_kubelet) == (names, is_known)


def _pulled(image: str, secrets: int) -> bytes:
    none: list[object] = [{}] * secrets
    mapping = {"r.example/x": {"kubernetesSecrets": none}}
    record = {"kind": "ImagePulledRecord", "imageRef": image, "credentialMapping": mapping}
    return b"mayfly-kubelet pulled " + json.dumps(record).encode()


def test_nodes_that_send_too_much() -> None:
    """A record is read to a bound, and so are all of a node; more is a gap."""
    facts = NodeFacts()
    facts.take(_pulled("a", 1000))
    facts.take(b"mayfly-kubelet records 1")
    before = facts.has_records
    facts.take(_pulled("b", 20_000))
    facts.take(b"mayfly-kubelet records 1")
    assert facts.records.keys() == {"a"}
    assert before
    assert not facts.has_records
    facts = NodeFacts()
    for number in range(20):
        facts.take(_pulled(str(number), 9000))
    facts.take(b"mayfly-kubelet records 20")
    assert not facts.has_records
    assert sum(record.entries for record in facts.records.values()) <= 100_000
    names = [f"r.example/x:{number}" for number in range(100_001)]
    assert parse_images(json.dumps({"images": [{"id": "i", "repoTags": names}]}).encode()) is None


async def test_answer_of_a_kubelet_has_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that answers without end for its configuration leaves a gap."""
    (tmp_path / "kubectl").write_text(
        """#!/bin/sh
printf '{"kubeletconfig": {"x": "'
case $* in *hostile*) head -c 2000000 /dev/zero | tr '\\0' x ;; esac
echo '"}}'
"""
    )
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    seen = _seen()
    seen.sources = replace(seen.sources, kubectl=Kubectl())
    nodes = [
        cluster_node(
            {"metadata": {"name": name}, "status": {"nodeInfo": {"kubeletVersion": "v1.35.4"}}}
        )
        for name in ("hostile", "honest", "../other")
    ]
    found = await seen._configurations(nodes)
    assert found == {"hostile": None, "honest": {"kubeletconfig": {"x": ""}}, "../other": None}
