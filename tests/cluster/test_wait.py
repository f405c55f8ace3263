"""`mayfly wait --safe-to-stop` against a real server; a script is kubectl, another one ssh."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mayfly.registry.cluster.holders import holders
from mayfly.registry.control.client import ask
from mayfly.registry.errors import LifetimeError
from mayfly.registry.nodes.pod_objects import PodNode
from tests.bundle.builders import Layout
from tests.cluster.conftest import HOST, RECORDED
from tests.support.commands import environment, mayfly_here, printed_here
from tests.support.process import PATIENCE, REPO, Mayfly, free_port

KUBECTL = r"""#!/bin/sh
# kubectl that answers with recorded documents, as they are after a change; DENIED forbids a word.
# What is about pods that run a script goes to the stub of prefetch.
case "$* " in
    *"$DENIED"*) echo "Error from server (Forbidden): $DENIED is forbidden" >&2; exit 1 ;;
esac
case "$* " in
    create\ * | apply\ * | logs\ * | delete\ * | *-n\ mayfly-* | get\ node\ *)
        exec "${0%/*}/pods" "$@" ;;
esac
case "$*" in
    *configz*) file=configz ;;
    *=mayfly-hold*) file=holders ;;
    *pods,*) file=workloads ;;
    *serviceaccounts*) file=serviceaccounts ;;
    *secrets*) file=secrets ;;
    *) file=nodes ;;
esac
sed "$CHANGE" "$RECORDED/$file.json"
"""

SSH = """#!/bin/sh
# ssh to a node that shows what was recorded, as it is after a change.
while [ "$1" != -- ]; do shift; done
[ "$2" = node-1 ] || { echo "ssh: connect to host $2 port 22: Connection refused" >&2; exit 255; }
case $3 in
    # A shell reads the script from an input that stays open, and ends only if the script does.
    *--attended*) sh -c "$3" >/dev/null 2>&1 || exit ;;
    *) cat >/dev/null ;;
esac
sed 's/"pinned": false/"pinned": true/g; '"$SHOWN" "$RECORDED/node-1.txt"
"""

ONLY_PODS = 's/"kind": "\\(Deployment\\|DaemonSet\\|StatefulSet\\|CronJob\\)"/"kind": "Other"/'
NO_ALWAYS = f'{ONLY_PODS}; s/"imagePullPolicy": "Always"/"imagePullPolicy": "IfNotPresent"/'
NEVER_VERIFIED = "s/NeverVerifyPreloadedImages/NeverVerify/"
ONE_IMAGE = 's#team/app@sha256:[0-9a-f]*#team/app:1#; s#team/app\\(:[a-z2-9]*\\)*"#team/app:1"#'


class Upgrade:
    """A server with one image and two nodes, and what the cluster shows."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        layout = Layout()
        image = layout.image(b"layer")
        self.digest = image["digest"]
        layout.name(image, "team/app:1")
        bundle = layout.write_tar(directory / "bundle.tar")
        (directory / "nodes").write_text("node-1\nnode-2\n")
        (directory / "images").write_text(f"{HOST}/team/app:1\n")
        options = ["--auth", "auto", "--accept", "proven", "--until", "stop", str(bundle)]
        options += ["--nodes", str(directory / "nodes")]
        options += ["--until-pulled", str(directory / "images"), "--external-url", f"http://{HOST}"]
        where = f"127.0.0.1:{free_port()}"
        self.url = f"http://{where}"
        places = (directory / "root", directory / "state")
        self.server = Mayfly(*places, *options, listen=where, env=environment())
        self.programs = directory / "bin"
        self.programs.mkdir()
        pods = (REPO / "tests/nodes/stub_kubectl.sh").read_text()
        for name, text in (("kubectl", KUBECTL), ("ssh", SSH), ("pods", pods)):
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)

    def prove(self, *nodes: str, pinned: bool = True) -> None:
        """Have nodes prove the image."""
        image = {"image": "team/app:1", "digest": str(self.digest), "runtime": "containerd"}
        entry = image | {"time": int(time.time()), "pinned": pinned, "free": 1}
        report = {"version": 1, "nonce": "", "images": [entry]}
        for node in nodes:
            printed = json.dumps({"node": node, "report": report})
            words = ("node", "proof", "--node", node, "-", "--registry", self.url)
            printed_here(*words, "--state-dir", self.server.state_dir, stdin=printed + "\n")

    def wait(self, *words: str, path: str = "", **shown: str) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        env = {"RECORDED": str(RECORDED), "DENIED": "nothing", "CHANGE": "", "SHOWN": ""}
        env["STUB_STATE"] = str(self.programs)
        env["PATH"] = path or f"{self.programs}:{os.environ['PATH']}"
        state = ("--state-dir", self.server.state_dir)
        done = mayfly_here("wait", "--safe-to-stop", *state, *words, env=env | shown)
        return done.returncode, done.stdout, done.stderr

    def judged(self, *words: str, path: str = "", **shown: str) -> tuple[int, Any]:
        """Exit code and judgement."""
        code, out, err = self.wait(*words, "--json", path=path, **shown)
        assert out, err
        return code, json.loads(out)["safety"]


@contextmanager
def _upgrading(directory: Path) -> Iterator[Upgrade]:
    made = Upgrade(directory)
    try:
        yield made
    finally:
        if made.server.running:
            made.server.kill()


@pytest.fixture(scope="module")
def upgrade(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgrade]:
    """One for all tests; every node has proved and pinned the image."""
    with _upgrading(tmp_path_factory.mktemp("upgrade")) as made:
        made.prove("node-1", "node-2")
        yield made


def _codes(found: Any) -> set[tuple[str, str]]:
    of_pods = {(one["code"], one["workload"]["name"]) for one in found["findings"]}
    return of_pods | {(one["code"], one["node"] or "cluster") for one in found["unseen"]}


def test_safe(upgrade: Upgrade) -> None:
    """No pod asks the registry, and everything was seen."""
    code, out, err = upgrade.wait(CHANGE=f"{ONE_IMAGE}; {NO_ALWAYS}; {NEVER_VERIFIED}")
    assert (code, err) == (0, "")
    assert out.startswith("safe to stop: 1 image on 2 nodes, ")


def test_pods_that_would_fail(upgrade: Upgrade) -> None:
    """Which, where and when; and what to do."""
    code, found = upgrade.judged(CHANGE=NEVER_VERIFIED)
    assert code == 3
    always = {
        (one["workload"]["name"], one["when"])
        for one in found["findings"]
        if one["code"] == "always_pulls"
    }
    assert {("pod-4", "now"), ("night", "schedule"), ("agent", "new_pod")} <= always
    _, out, _ = upgrade.wait(CHANGE=NEVER_VERIFIED)
    assert (
        "CronJob team/night, container c, on node-1, node-2: fails at its next time: "
        f"{HOST}/team/app:4: imagePullPolicy Always"
    ) in out
    assert "always_pulls: to do: set imagePullPolicy: IfNotPresent" in out
    assert "not safe to stop: " in out.splitlines()[-1]


def test_records_are_needed(upgrade: Upgrade) -> None:
    """By default kubelet verifies what it pulled; without a look at the node that is a gap."""
    code, found = upgrade.judged(CHANGE=f"{ONE_IMAGE}; {NO_ALWAYS}")
    assert code == 3
    assert ("records", "node-1") in _codes(found)


def test_node_that_shows_its_records(upgrade: Upgrade) -> None:
    """Over ssh; one that is down is named with the cause, and a patch is printed."""
    code, found = upgrade.judged("--via", "ssh")
    assert code == 3
    assert ("other_credentials", "web") in _codes(found)
    assert not {one for one in _codes(found) if one[1] in ("pod-1", "pod-3")}
    (gap,) = (one for one in found["unseen"] if one["code"] == "node")
    assert gap["node"] == "node-2" and "it does not answer ssh" in gap["detail"]
    (allowed,) = found["allowlists"]
    assert f"{HOST}/team/*" in allowed["patterns"]
    _, out, _ = upgrade.wait("--via", "ssh")
    assert "preloadedImagesVerificationAllowlist:" in out


@pytest.mark.parametrize("denied", ["nodes ", "pods,", "serviceaccounts"])
def test_what_the_cluster_does_not_allow(upgrade: Upgrade, denied: str) -> None:
    """It is a gap."""
    code, found = upgrade.judged(DENIED=denied)
    assert code == 3
    assert ("forbidden", "cluster") in _codes(found)


def test_secrets_and_configuration_that_are_not_allowed(upgrade: Upgrade) -> None:
    """Gaps only where a pod depends on them."""
    code, found = upgrade.judged("--via", "ssh", DENIED="secrets")
    assert (code, {("secrets", "cluster")} <= _codes(found)) == (3, True)
    code, found = upgrade.judged(DENIED="configz", CHANGE=f"{ONE_IMAGE}; {NO_ALWAYS}")
    assert (code, {("policy", "node-1")} <= _codes(found)) == (3, True)


def test_no_cluster(upgrade: Upgrade, tmp_path: Path) -> None:
    """Without kubectl nothing is safe, unless there is no cluster."""
    for name in ("sh", "cat", "sed"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    code, found = upgrade.judged(path=str(tmp_path))
    assert (code, _codes(found)) == (3, {("no_kubectl", "cluster")})
    code, out, _ = upgrade.wait(path=str(tmp_path))
    assert "pods were not seen: there is no kubectl" in out
    assert upgrade.judged("--no-kubernetes", path=str(tmp_path))[0] == 0


def test_node_that_the_cluster_does_not_have(upgrade: Upgrade) -> None:
    """Its name may be wrong, so it is a gap."""
    _, found = upgrade.judged(CHANGE="s/node-2/other/g")
    assert ("unknown_node", "node-2") in _codes(found)


def test_look_by_pods(upgrade: Upgrade, tmp_path: Path) -> None:
    """As over ssh, in a pod on each node, of which nothing is left."""
    _, by_ssh = upgrade.judged("--via", "ssh")
    code, found = upgrade.judged("--via", "kubernetes", STUB_STATE=str(tmp_path))
    assert (code, found["findings"]) == (3, by_ssh["findings"])
    assert {one["node"] for one in found["unseen"]} == {"node-2"}
    words = (tmp_path / "arguments").read_text()
    assert "delete namespace mayfly-prefetch-" in words
    code, _, err = upgrade.wait("--via", "kubernetes", "--no-kubernetes")
    assert (code, "leave it out" in err) == (2, True)


ID = "sha256:9803626882e2bf2bc7687cdc32445b7234b7e2aa31347076ddad10e92c73130c"
BY_DIGEST = "6e842a8bac505d3b0897e9d08265318a56895430a355da3c46b0ddc2e80076b6"
"""What the recorded node has by the name of the upgrade's image."""


def test_hold(upgrade: Upgrade, tmp_path: Path) -> None:
    """Images that are not pinned are held by pods, which stay; how to remove them is said."""
    image = f"{HOST}/team/app:1"
    facts = PodNode(True, "", "linux", "amd64", "Debian", ())
    (holder,) = holders("node-1", facts, {image: ID})
    by_digest = f"{HOST}/team/app@sha256:{BY_DIGEST}"
    state = {"name": "image-1", "imageID": by_digest, "state": {"running": {}}}
    shown = _cluster_of(upgrade, tmp_path, [])
    running = holder | {"status": {"containerStatuses": [state]}}
    (tmp_path / "holders.json").write_text(json.dumps({"kind": "List", "items": [running]}))
    shown |= {"STUB_STATE": str(tmp_path), "SHOWN": 's/"pinned": true/"pinned": false/g'}
    _, found = upgrade.judged("--via", "ssh", **shown)
    assert [one["code"] for one in found["findings"]] == ["not_pinned"]
    assert not (tmp_path / "objects").exists()
    _, found = upgrade.judged("--via", "ssh", "--hold", **shown)
    assert (found["findings"], found["held"]) == ([], [{"node": "node-1", "images": [image]}])
    assert f'"image": "{image}"' in (tmp_path / "objects").read_text()
    # What the cluster says of the node is known by then, and needs no image for the shell.
    assert "get node " not in (tmp_path / "arguments").read_text()
    # One that has ended is not made anew until it is removed.
    ended = holder | {"status": {"phase": "Failed"}}
    (tmp_path / "workloads.json").write_text(json.dumps({"kind": "List", "items": [ended]}))
    _, out, _ = upgrade.wait("--via", "ssh", "--hold", **shown)
    asked = (tmp_path / "arguments").read_text().splitlines()
    verbs = [words.split()[0] for words in asked if words.split()[0] in ("apply", "delete")]
    assert verbs == ["apply", "delete", "apply"]
    assert any(
        words.endswith(f"--ignore-not-found {holder['metadata']['name']}") for words in asked
    )
    assert "once their images are no longer needed: kubectl delete namespace mayfly-hold" in out
    # Pods that may not be made hold nothing.
    code, found = upgrade.judged("--via", "ssh", "--hold", DENIED="apply ", **shown)
    assert (code, [one["code"] for one in found["findings"]]) == (3, ["not_pinned"])
    assert ("forbidden", "cluster") in {
        (o["code"], o["node"] or "cluster") for o in found["unseen"]
    }
    code, _, err = upgrade.wait("--hold", "--no-kubernetes")
    assert (code, "--no-kubernetes is not for --hold" in err) == (2, True)
    code, _, err = upgrade.wait("--hold")
    assert (code, "add --via ssh or kubernetes" in err) == (2, True)


@pytest.mark.parametrize(
    ("then", "codes", "is_held"),
    [
        (
            'cp "$RECORDED/node-2-alone.json" "$RECORDED/nodes.json"',
            {("not_pinned", "node-1"), ("node", "node-1")},
            False,
        ),
        ('echo "Error from server (Timeout): busy" >&2; exit 1', {("no_cluster", "cluster")}, True),
    ],
    ids=["without-the-node", "without-answer"],
)
def test_nodes_that_are_read_again_before_hold(
    upgrade: Upgrade, tmp_path: Path, then: str, codes: set[tuple[str, str]], is_held: bool
) -> None:
    """The second list may lack a node that images are to be held on, or there is none."""
    shown = _cluster_of(upgrade, tmp_path, [])
    nodes = json.loads((tmp_path / "nodes.json").read_text())
    nodes["items"] = [one for one in nodes["items"] if one["metadata"]["name"] == "node-2"]
    (tmp_path / "node-2-alone.json").write_text(json.dumps(nodes))
    (tmp_path / "holders.json").write_text('{"kind": "List", "items": []}')
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "kubectl").write_text(
        f"""#!/bin/sh
case $* in
    get\\ nodes*) if [ -e "$RECORDED/once" ]; then {then}; fi; : >"$RECORDED/once" ;;
esac
exec "{upgrade.programs}/kubectl" "$@"
"""
    )
    (programs / "kubectl").chmod(0o755)
    shown |= {"STUB_STATE": str(tmp_path), "SHOWN": 's/"pinned": true/"pinned": false/g'}
    path = f"{programs}:{upgrade.programs}:{os.environ['PATH']}"
    code, found = upgrade.judged("--via", "ssh", "--hold", path=path, **shown)
    seen = {(one["code"], one["node"] or "cluster") for one in found["unseen"]}
    seen |= {(one["code"], name) for one in found["findings"] for name in one["nodes"]}
    assert (code, codes <= seen) == (3, True), seen
    assert (tmp_path / "objects").exists() is is_held


def test_pods_that_may_not_be_made(upgrade: Upgrade) -> None:
    """It is a gap."""
    code, found = upgrade.judged("--via", "kubernetes", DENIED="create ")
    assert (code, {("forbidden", "cluster"), ("records", "node-1")} <= _codes(found)) == (3, True)


def test_kubelet_without_a_cluster(upgrade: Upgrade) -> None:
    """Where a node shows a kubelet, --no-kubernetes would leave out pods."""
    _, found = upgrade.judged("--via", "ssh", "--no-kubernetes")
    assert ("kubelet", "node-1") in _codes(found)
    _, found = upgrade.judged("--via", "ssh", "--no-kubernetes", SHOWN="/kubelet yes/d")
    assert ("kubelet", "node-1") in _codes(found)
    no_kubelet = "s/kubelet yes/kubelet no/"
    _, found = upgrade.judged("--via", "ssh", "--no-kubernetes", SHOWN=no_kubelet)
    assert {one["node"] for one in found["unseen"]} == {"node-2"}


def test_images_of_another_runtime(upgrade: Upgrade, tmp_path: Path) -> None:
    """A runtime that this kubelet does not use counts for nothing, whatever was proved of it."""
    shown = _cluster_of(upgrade, tmp_path, [])
    shown["SHOWN"] = "s/runtime containerd/runtime cri-o/"
    for pods in ([], [_pod("pod", f"{HOST}/team/app:1")]):
        _cluster_of(upgrade, tmp_path, pods)
        code, found = upgrade.judged("--via", "ssh", **shown)
        assert (code, found["safe"], found["findings"]) == (3, False, [])
        assert ("images", "node-1") in _codes(found)


@pytest.mark.parametrize(
    ("shown", "gap"),
    [("s/endpoint known//", "images"), ("s/kubelet boot .*/kubelet boot 1/", "node")],
)
def test_images_that_may_be_of_another_runtime_or_machine(
    upgrade: Upgrade, tmp_path: Path, shown: str, gap: str
) -> None:
    """A node may have two of one kind, and ssh another name for it: they count for nothing."""
    env = _cluster_of(upgrade, tmp_path, [_pod("pod", f"{HOST}/team/app:1")])
    _, found = upgrade.judged("--via", "ssh", **env)
    assert {one["node"] for one in found["unseen"]} == {"node-2"}
    code, found = upgrade.judged("--via", "ssh", SHOWN=shown, **env)
    assert (code, (gap, "node-1") in _codes(found)) == (3, True)
    (detail,) = (one["detail"] for one in found["unseen"] if one["node"] == "node-1")
    assert ("the machine that was reached is not the cluster's node node-1" in detail) is (
        gap == "node"
    )


def _cluster_of(upgrade: Upgrade, directory: Path, pods: list[dict[str, Any]]) -> dict[str, str]:
    """The environment for a cluster of the recorded nodes and these pods."""
    for one in RECORDED.iterdir():
        shutil.copy(one, directory)
    document = {"kind": "List", "items": pods}
    (directory / "workloads.json").write_text(json.dumps(document, indent=4))
    return {"RECORDED": str(directory), "CHANGE": NEVER_VERIFIED}


def _pod(name: str, image: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": image, "imagePullPolicy": "IfNotPresent"}
    made = {"nodeName": "node-1", "containers": [container | spec.pop("container", {})], **spec}
    metadata = {"name": name, "namespace": "team"}
    return {"kind": "Pod", "metadata": metadata, "spec": made, "status": {"phase": "Pending"}}


def test_images_by_other_names(upgrade: Upgrade, tmp_path: Path) -> None:
    """By digest, as a mirror has them, by a name that the registry has; those of others pass."""
    digest, always = upgrade.digest, {"container": {"imagePullPolicy": "Always"}}
    names = {
        "listed": f"{HOST}/team/app:1",
        "by-digest": f"{HOST}/team/app@{digest}",
        "tag-and-digest": f"{HOST}/team/app:1@{digest}",
        "not-listed": f"{HOST}/team/app:2",
        "bound-address": f"{urlsplit(upgrade.url).netloc}/team/app:1",
        "mirrored": "team/app:1",
        "mirrored-by-digest": f"docker.io/team/app@{digest}",
        "other-tag": "docker.io/team/app:7",
        "other-port": "10.77.0.1:5778/team/other:1",
        "invalid": "Team//app",
    }
    pods = [_pod(name, image, **always) for name, image in names.items()]
    _, found = upgrade.judged(**_cluster_of(upgrade, tmp_path, pods))
    always_pulled = {
        one["workload"]["name"] for one in found["findings"] if one["code"] == "always_pulls"
    }
    assert always_pulled == {*names} - {"other-tag", "other-port", "invalid"}


def test_server_knows_its_images(upgrade: Upgrade) -> None:
    """Of many names, and of none; another form of the question is refused."""
    state = upgrade.server.state_dir
    many = ["team/app:1", *(f"docker.io/x/y:{n}" for n in range(1500)), "Team//app", ""]
    assert ask(state, "serves", images=many)["images"] == ["team/app:1"]
    assert ask(state, "serves", images=[])["images"] == []
    for wrong in (7, None, ["team/app:1", 7], {"x": 1}):
        with pytest.raises(LifetimeError, match="expected a list of names"):
            ask(state, "serves", images=wrong)


@pytest.mark.alone
def test_thousands_of_pods(upgrade: Upgrade, tmp_path: Path) -> None:
    """They are judged in seconds, and one that would fail is found."""
    pods = [_pod(f"pod-{n}", f"{HOST}/team/app:1") for n in range(5000)]
    pods.append(_pod("last", f"{HOST}/team/app:1", container={"imagePullPolicy": "Always"}))
    begun = time.monotonic()
    code, found = upgrade.judged(**_cluster_of(upgrade, tmp_path, pods))
    assert time.monotonic() - begun < 60
    assert (code, found["uses"]) == (3, 5001)
    assert [one["workload"]["name"] for one in found["findings"]] == ["last"]


def test_lists_that_break_off(upgrade: Upgrade, tmp_path: Path) -> None:
    """kubectl fails for a part of the cluster, whatever it has printed: it is a gap."""
    shown = _cluster_of(upgrade, tmp_path, [_pod("pod", f"{HOST}/team/app:1")])
    (tmp_path / "kubectl").write_text(
        KUBECTL + '\ncase "$*" in *pods,*) echo "Error from server (Forbidden): pods is forbidden: '
        'cannot list in the namespace \\"secret\\"" >&2; exit 1 ;; esac\n'
    )
    (tmp_path / "kubectl").chmod(0o755)
    code, found = upgrade.judged(path=f"{tmp_path}:{os.environ['PATH']}", **shown)
    assert (code, _codes(found)) == (3, {("forbidden", "cluster")})
    assert "secret" in found["unseen"][0]["detail"]


@pytest.mark.parametrize("name", ["nodes", "workloads", "serviceaccounts"])
@pytest.mark.parametrize(
    "answer",
    [
        *("", "[]", "{}", '{"items": []}', '{"kind": "Status"}', '{"kind": "List"}', "Warning"),
        *('{"kind": "List", "items": null}', '{"kind": "List", "items": [7]}'),
        '{"kind": "List", "items": [{"metadata": {}}]}',
    ],
)
def test_answers_that_are_no_lists(
    upgrade: Upgrade, tmp_path: Path, name: str, answer: str
) -> None:
    """None counts as an empty list, though kubectl says that all went well."""
    shown = _cluster_of(upgrade, tmp_path, [])
    (tmp_path / f"{name}.json").write_text(answer)
    code, found = upgrade.judged(**shown)
    assert code == 3
    assert ("failed", "cluster") in _codes(found)


def test_cluster_without_these_nodes(upgrade: Upgrade, tmp_path: Path) -> None:
    """It may be another one."""
    shown = _cluster_of(upgrade, tmp_path, [])
    (tmp_path / "nodes.json").write_text('{"kind": "List", "items": []}')
    code, found = upgrade.judged(**shown)
    assert (code, _codes(found)) == (3, {("unknown_node", n) for n in ("node-1", "node-2")})


def test_address_of_several_nodes(upgrade: Upgrade, tmp_path: Path) -> None:
    """It is a gap, since it tells none of them from the others."""
    shown = _cluster_of(upgrade, tmp_path, [])
    nodes = json.loads((tmp_path / "nodes.json").read_text())
    for number, one in enumerate(nodes["items"], 3):
        one["metadata"]["name"] = f"node-{number}"
        one["status"]["addresses"] = [{"type": "ExternalIP", "address": "node-1"}]
    (tmp_path / "nodes.json").write_text(json.dumps(nodes))
    code, found = upgrade.judged(**shown)
    assert (code, _codes(found)) == (3, {("unknown_node", n) for n in ("node-1", "node-2")})
    assert found["unseen"][0]["detail"] == "node-3, node-4"


REPLACED = """#!/bin/sh
# kubectl of a cluster whose pods or nodes are others in each answer, up to the LAST one.
case "$*" in
    *pods,*) kind=workloads ;;
    get\\ nodes\\ *) kind=nodes ;;
    *) exec "${0%/*}/recorded" "$@" ;;
esac
echo >>"$STUB_STATE/asked-$kind"
count=$(wc -l <"$STUB_STATE/asked-$kind")
[ "$count" -le "$LAST" ] || count=$LAST
sed "s/NUMBER/$count/" "$RECORDED/$kind.json"
"""


@pytest.mark.parametrize(
    ("pod", "node"), [("app:NUMBER", "node-3"), ("app:1", "joined-NUMBER"), ("app:2", "node-3")]
)
@pytest.mark.parametrize("last", [2, 99])
def test_pods_and_nodes_that_change_meanwhile(
    upgrade: Upgrade, tmp_path: Path, pod: str, node: str, last: int
) -> None:
    """The last ones count; if they change all the time, it is a gap."""
    made = _pod("pod", f"{HOST}/team/{pod}", container={"imagePullPolicy": "Always"})
    shown = _cluster_of(upgrade, tmp_path, [made])
    nodes = json.loads((tmp_path / "nodes.json").read_text())
    nodes["items"].append({"kind": "Node", "metadata": {"name": node}})
    (tmp_path / "nodes.json").write_text(json.dumps(nodes))
    for name, text in (("kubectl", REPLACED), ("recorded", KUBECTL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    shown |= {"STUB_STATE": str(tmp_path), "LAST": str(last)}
    code, found = upgrade.judged(path=f"{tmp_path}:{os.environ['PATH']}", **shown)
    (finding,) = found["findings"]
    assert (code, finding["code"]) == (3, "always_pulls")
    assert finding["images"] == [f"{HOST}/team/{pod.replace('NUMBER', str(min(last, 6)))}"]
    is_changing = last == 99 and "NUMBER" in pod + node
    assert (("changing", "cluster") in _codes(found)) is is_changing


def test_server_goes_on_and_reports(tmp_path: Path) -> None:
    """Nodes lack a proof, or pins; with `--until stop` coverage ends nothing."""
    with _upgrading(tmp_path) as upgrade:
        upgrade.prove("node-1", pinned=False)
        code, found = upgrade.judged("--timeout", "0s", "--no-kubernetes")
        assert code == 3
        assert [(one["code"], one["nodes"]) for one in found["findings"]] == [
            ("not_proven", ["node-2"])
        ]
        _, found = upgrade.judged("--timeout", "0s", CHANGE=f"{NO_ALWAYS}; {NEVER_VERIFIED}")
        by_node = {(one["code"], *one["nodes"]) for one in found["findings"] if not one["workload"]}
        assert by_node == {("not_proven", "node-2"), ("not_pinned", "node-1")}
        upgrade.prove("node-1", "node-2")
        assert upgrade.judged("--no-kubernetes")[0] == 0
        status = json.loads(
            printed_here("status", "--json", "--state-dir", upgrade.server.state_dir)
        )
        assert status["coverage"]["complete"] and status["ends"] == []
        printed_here("stop", "--state-dir", upgrade.server.state_dir)
        assert upgrade.server.popen.wait(PATIENCE) == 0
        report = json.loads((upgrade.server.state_dir / "report.json").read_text())
        assert report["safe_to_stop"]["safe"] is True
        assert "safe to stop: yes, at " in upgrade.server.output()


def test_server_that_ends_meanwhile(tmp_path: Path) -> None:
    """What was judged is printed all the same, and that no report has it."""
    with _upgrading(tmp_path) as upgrade:
        (tmp_path / "ssh").write_text(f"#!/bin/sh\nkill -9 {upgrade.server.popen.pid}\n{SSH}")
        (tmp_path / "ssh").chmod(0o755)
        words = ("--timeout", "0s", "--no-kubernetes", "--via", "ssh", "--json")
        code, out, err = upgrade.wait(*words, path=f"{tmp_path}:{os.environ['PATH']}")
        assert (code, json.loads(out)["reached"]) == (3, False)
        assert "the report will not have this answer" in err
        assert upgrade.server.popen.wait(PATIENCE) == -9


@pytest.mark.parametrize(
    ("words", "option", "what"),
    [
        (["--sudo"], "--sudo", "for --via ssh alone"),
        (["--user", "x"], "--user", "for --via ssh alone"),
        (["--concurrency", "3"], "--concurrency", "for --via ssh or kubernetes alone"),
        (["--via", "kubernetes", "--sudo"], "--sudo", "for --via ssh alone"),
        (["--no-kubernetes", "--context", "x"], "--context", "not for --no-kubernetes"),
        *(
            (["--covered", *words], words[0], "for --safe-to-stop alone")
            for words in (
                ["--hold"],
                ["--via", "none"],
                ["--no-kubernetes"],
                ["--sudo"],
                ["--context", "x"],
                ["--concurrency", "3"],
            )
        ),
    ],
)
def test_options_that_would_do_nothing(
    tmp_path: Path, words: list[str], option: str, what: str
) -> None:
    """They are refused."""
    state = ("--state-dir", tmp_path)
    what_for = [] if "--covered" in words else ["--safe-to-stop"]
    done = mayfly_here("wait", *what_for, *words, *state)
    assert (done.returncode, f"{option} is {what}; leave it out" in done.stderr) == (2, True)


def test_options_of_the_environment(tmp_path: Path) -> None:
    """They may be for other commands, so they are not refused."""
    env, state = {"MAYFLY_USER": "x", "MAYFLY_CONTEXT": "x"}, ("--state-dir", tmp_path)
    assert mayfly_here("wait", "--covered", *state, env=env).returncode == 6


def test_server_without_coverage(tmp_path: Path) -> None:
    """It cannot say what nodes have."""
    with Mayfly(tmp_path / "root", tmp_path / "state", env=environment()) as server:
        done = mayfly_here("wait", "--safe-to-stop", "--state-dir", server.state_dir)
    assert done.returncode == 2
    assert "--until-pulled and --nodes" in done.stderr
