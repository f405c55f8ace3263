"""Which pod on which node would fail, when, and what was not seen."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mayfly.registry.cluster.facts import ImageOnNode, NodeFacts
from mayfly.registry.cluster.kubelet import PullPolicy, Verification
from mayfly.registry.cluster.placement import cluster_node, placement_of
from mayfly.registry.cluster.record import (
    MAX_BYTES,
    finding_text,
    lines_of,
    patch_lines,
    read_reported,
    record_of,
    reported,
    unseen_text,
)
from mayfly.registry.cluster.safety import (
    GAPS,
    MAX_PATTERNS,
    TROUBLES,
    Finding,
    Gap,
    Judge,
    NodeView,
    Proofs,
    Safety,
    Trouble,
    Unseen,
)
from mayfly.registry.cluster.secrets import credentials_for
from mayfly.registry.cluster.workloads import ImageUse, Role, When, Workload, uses_of
from mayfly.registry.nodes.kubectl import Kubectl
from tests.cluster.conftest import HOST, items, node_facts
from tests.support.process import REPO

LISTED = frozenset(f"{HOST}/team/app:{n}" for n in (1, 3, 5, 6))
PULLED = PullPolicy(Verification.PULLED)
NODES = [cluster_node(one) for one in items("nodes")]
SECRETS = {(s["metadata"]["namespace"], s["metadata"]["name"]): s for s in items("secrets")}
KUBECTL = Kubectl(Path("/k b"), "x")
HOSTILE = "*/x: [&a\n- #\u2028"
ALL_PROVEN = Proofs({"node-1": (), "node-2": ()}, frozenset(), 0)


def pinned(facts: NodeFacts) -> NodeFacts:
    """The same, with every image pinned."""
    assert facts.images is not None
    facts.images = {k: ImageOnNode(v.id, True) for k, v in facts.images.items()}
    return facts


def view(**changes: Any) -> NodeView:
    """The recorded node, with everything pinned, or changed."""
    node = NodeView(
        name="node-1",
        cluster=NODES[0],
        is_listed=True,
        lacking=frozenset(),
        is_pinned=True,
        facts=pinned(node_facts()),
        policy=PULLED,
    )
    return dataclasses.replace(node, **changes)


def uses(*names: str) -> list[ImageUse]:
    """The uses of images in recorded objects."""
    found = [one for one in items("workloads") if one["metadata"]["name"] in names]
    return [*uses_of(found, {})]


def judge(node: NodeView, *names: str, secrets: Any = SECRETS, proofs: Any = ALL_PROVEN) -> Safety:
    """Judge recorded objects on one node."""
    made = Judge(LISTED, [node])
    return made.judge(uses(*names), proofs, lambda space, name: secrets.get((space, name), {}))


def codes(safety: Safety) -> list[tuple[str, str]]:
    """Findings and gaps, with the workload or the node."""
    found = [(f.code.value, f.workload.name if f.workload else f.nodes[0]) for f in safety.findings]
    return found + [(one.code.value, one.node or one.detail) for one in safety.unseen]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pod-1", []),  # the Secret that it was pulled with
        ("pod-3", []),  # pulled through the CRI
        ("pod-4", [("always_pulls", "pod-4")]),
        ("vol", []),
        ("web", [("other_credentials", "web")]),
        ("agent", [("always_pulls", "agent")]),
        ("db", [("always_pulls", "db")]),
        ("night", [("always_pulls", "night")]),
        ("pod-2", [("unknown_node", "node-2")]),
    ],
)
def test_recorded_pods(name: str, expected: list[tuple[str, str]]) -> None:
    """Each on the recorded node."""
    assert codes(judge(view(), name)) == expected


def test_where_and_when() -> None:
    """A finding names workload, part, node, image and time."""
    (found,) = judge(view(), "night").findings
    assert found == Finding(
        Trouble.ALWAYS,
        ("node-1",),
        (f"{HOST}/team/app:4",),
        Workload("CronJob", "team", "night"),
        Role.CONTAINER,
        "c",
        When.SCHEDULE,
    )
    (record,) = record_of(Safety((found,), ()), 1, 1, 1)["findings"]
    assert finding_text(record) == (
        "CronJob team/night, container c, on node-1: fails at its next time: "
        f"{HOST}/team/app:4: imagePullPolicy Always asks the registry at every start"
    )


def test_node_without_the_image() -> None:
    """By what the node lists, or by proofs where it was not read."""
    facts = pinned(node_facts())
    assert facts.images is not None
    del facts.images[f"{HOST}/team/app:1"]
    absent = judge(view(facts=facts), "pod-1")
    assert codes(absent) == [("absent", "node-1"), ("absent", "pod-1")]
    lacking = frozenset({f"{HOST}/team/app:1"})
    assert codes(judge(view(facts=None, lacking=lacking), "pod-1")) == [("absent", "pod-1")]


def test_name_in_other_letters() -> None:
    """A runtime does not find an image by it, and would ask a registry of that name."""
    facts = pinned(node_facts())
    assert facts.images is not None
    facts.images["r.example/x:1"] = facts.images[f"{HOST}/team/app:3"]
    for host, expected in (("r.example", []), ("R.example", [("absent", "p")])):
        container = {"name": "c", "image": f"{host}/x:1", "imagePullPolicy": "IfNotPresent"}
        pod = {
            "kind": "Pod",
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"nodeName": "node-1", "containers": [container]},
        }
        found = Judge(LISTED, [view(facts=facts)]).judge(
            [*uses_of([pod], {})], ALL_PROVEN, lambda space, name: {}
        )
        assert codes(found) == expected


@pytest.mark.parametrize(
    ("changes", "name", "expected"),
    [
        ({"facts": None}, "pod-1", [("records", "node-1")]),
        ({"facts": None, "policy": PullPolicy(Verification.NEVER)}, "pod-1", []),
        (
            {
                "facts": None,
                "policy": PullPolicy(Verification.NOT_LISTED, frozenset({f"{HOST}/*"})),
            },
            "web",
            [],
        ),
        ({"policy": None}, "pod-1", [("policy", "node-1")]),
        ({"facts": None, "is_listed": False}, "pod-1", [("images", "node-1")]),
        (
            {"facts": NodeFacts(has_kubelet=True), "is_pinned": True},
            "pod-1",
            [("images", "node-1")],
        ),
        # A proof may be of another runtime than kubelet's.
        (
            {"facts": NodeFacts(has_records=True), "policy": PullPolicy(Verification.NEVER)},
            "pod-1",
            [("images", "node-1")],
        ),
    ],
)
def test_what_was_not_seen(
    changes: dict[str, Any], name: str, expected: list[tuple[str, str]]
) -> None:
    """It is not safe, unless the kubelet's policy makes it irrelevant."""
    assert codes(judge(view(**changes), name)) == expected


def test_secrets_that_were_not_seen() -> None:
    """Only the pods that depend on one; a Secret that does not exist is seen."""
    made, none = Judge(LISTED, [view()]), lambda *_: None
    assert {*made.needed_secrets(uses("pod-1", "pod-3", "web"))} == {("team", "mayfly")}
    assert codes(made.judge(uses("pod-1", "pod-3"), ALL_PROVEN, none)) == [("secrets", "team")]
    assert codes(judge(view(), "pod-1", secrets={})) == [("other_credentials", "pod-1")]


def test_pins() -> None:
    """An unpinned image may go, where a kubelet collects; of other nodes the proofs tell."""
    unpinned = view(facts=node_facts())
    (found,) = judge(unpinned).findings
    assert (found.code, found.nodes) == (Trouble.NOT_PINNED, ("node-1",))
    assert set(found.images) == LISTED
    assert found.detail == "containerd://1.6.20"
    facts = node_facts()
    facts.has_kubelet = False
    # A node of the cluster has one, wherever its files are.
    assert not judge(view(facts=facts)).is_safe
    assert judge(view(facts=facts, cluster=None)).is_safe
    assert codes(judge(view(facts=None, is_pinned=False))) == [("not_pinned", "node-1")]
    assert judge(view(facts=None, is_pinned=False, cluster=None)).is_safe


def test_pins_on_each_node_that_uses_an_image() -> None:
    """Of an image that is not in the list, whatever other nodes use it, too."""
    (use,) = uses("pod-1")
    both = [dataclasses.replace(use, placement=placement_of({"nodeName": n})) for n in "ab"]
    nodes = [
        view(
            name=n,
            cluster=dataclasses.replace(NODES[0], name=n),
            is_listed=False,
            facts=node_facts(),
        )
        for n in "ab"
    ]
    for order in (both, both[::-1]):
        found = Judge(frozenset(), nodes).unpinned(order)
        assert [(node.name, images) for node, images in found] == [
            (n, (str(use.reference),)) for n in "ab"
        ]


def test_images_that_were_collected() -> None:
    """A node lost them after its proof, before any pod used them; where a kubelet collects."""
    facts = pinned(node_facts())
    assert facts.images is not None
    lost = sorted(LISTED)[:2]
    for name in lost:
        del facts.images[name]
    (found,) = judge(view(facts=facts)).findings
    assert found == Finding(Trouble.ABSENT, ("node-1",), tuple(lost))
    (line, *_) = lines_of(record_of(judge(view(facts=facts)), 1, 1, 1), KUBECTL)
    assert line.startswith("node-1: the node does not have the image by this name: ")
    assert judge(view(facts=facts, is_listed=False)).is_safe
    facts.has_kubelet = False
    assert judge(view(facts=facts, cluster=None)).is_safe


def test_node_whose_images_were_not_shown() -> None:
    """Its proof and its pins may be those of another runtime, whatever pods there are."""
    shown = NodeFacts(is_root=True, has_kubelet=True, has_records=True, complete=True)
    assert codes(judge(view(facts=shown))) == [("images", "node-1")]
    assert codes(judge(view(facts=shown, is_listed=False))) == []
    shown.has_kubelet = False
    assert codes(judge(view(facts=shown, cluster=None))) == []


def test_held_images() -> None:
    """They stay without a pin."""
    name, *others = sorted(LISTED)
    (found,) = judge(view(facts=node_facts(), held=frozenset({name}))).findings
    assert (found.code, found.images) == (Trouble.NOT_PINNED, tuple(others))
    assert judge(view(facts=node_facts(), held=LISTED)).is_safe
    safety = dataclasses.replace(judge(view()), held=(("node-1", (name,)),))
    lines = [*lines_of(record_of(safety, 1, 1, 1), KUBECTL)]
    assert lines[0] == "node-1: pods hold 1 image"
    words = "kubectl --kubeconfig '/k b' --context x delete namespace mayfly-hold"
    assert lines[1].endswith(f": {words}")


def test_proofs() -> None:
    """Images that a node has not proved, and nodes that are not known yet."""
    proofs = Proofs({"node-1": (f"{HOST}/team/app:5",)}, frozenset(), 2)
    safety = judge(view(), proofs=proofs)
    assert [f.code for f in safety.findings] == [Trouble.NOT_PROVEN, Trouble.NOT_PROVEN]
    assert safety.findings[0].nodes == ("node-1",) and safety.findings[1].nodes == ()
    assert not safety.is_safe


def test_allowlist() -> None:
    """It has what is asked for, what was allowed before, and what is there without a record."""
    policy = PullPolicy(Verification.NOT_LISTED, frozenset({"kept/x", HOSTILE}))
    safety = judge(view(policy=policy), "web")
    (allowed,) = safety.allowlists
    assert (allowed.node, allowed.policy) == ("node-1", Verification.NOT_LISTED)
    # Patterns, since kubelet 1.35 compares an entry with the name in the pod, tag included.
    assert set(allowed.patterns) == {f"{HOST}/team/*", "kept/x", "localhost/*", HOSTILE}
    lines = [*patch_lines(record_of(safety, 1, 1, 1))]
    assert yaml.safe_load("\n".join(lines)) == {
        "imagePullCredentialsVerificationPolicy": "NeverVerifyAllowlistedImages",
        "preloadedImagesVerificationAllowlist": [*allowed.patterns],
    }
    assert f'- "{HOST}/team/*"' in lines
    allowing = view(policy=PullPolicy(Verification.NOT_LISTED, frozenset(allowed.patterns)))
    assert judge(allowing, "web").is_safe
    assert not judge(view(), "agent").allowlists


@pytest.mark.parametrize("number", [MAX_PATTERNS - 2, MAX_PATTERNS - 1])
def test_allowlist_has_a_bound(number: int) -> None:
    """A node may list as many repositories as its pods have pulled."""
    facts = pinned(node_facts())
    assert facts.images is not None
    facts.images |= {f"r.example/{n}/x:1": ImageOnNode("preloaded", True) for n in range(number)}
    (allowed,) = judge(view(facts=facts), "web").allowlists
    is_listed = number < MAX_PATTERNS - 1
    assert allowed.policy is (Verification.NOT_LISTED if is_listed else Verification.NEVER)
    assert len(allowed.patterns) == (MAX_PATTERNS if is_listed else 0)


def test_image_that_is_not_proved_is_absent_once() -> None:
    """That the node does not list it either says nothing more."""
    facts, name = pinned(node_facts()), f"{HOST}/team/app:1"
    assert facts.images is not None
    del facts.images[name]
    proofs = Proofs({"node-1": (name,)}, frozenset(), 0)
    found = judge(view(facts=facts, lacking=frozenset({name})), proofs=proofs)
    assert codes(found) == [("not_proven", "node-1")]
    assert codes(judge(view(facts=facts), proofs=ALL_PROVEN)) == [("absent", "node-1")]


def test_secrets_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pods on however many nodes have them."""
    asked: list[str] = []

    def count(repository: str, secrets: Any) -> Any:
        asked.append(repository)
        return credentials_for(repository, secrets)

    monkeypatch.setattr("mayfly.registry.cluster.safety.credentials_for", count)
    (use,) = uses("pod-1")
    placement = dataclasses.replace(use.placement, node="")
    many = [dataclasses.replace(use, part=str(n), placement=placement) for n in range(50)]
    nodes = [view(), view(name="node-2", cluster=NODES[1])]
    found = Judge(LISTED, nodes).judge(
        many, ALL_PROVEN, lambda space, name: SECRETS.get((space, name), {})
    )
    assert (codes(found), asked) == ([], [use.repository])


def test_short_names_cannot_be_allowed() -> None:
    """No pattern matches them in 1.35, and preloaded images of other pods would be verified."""
    (use,) = uses("web")
    made = Judge(LISTED, [view()], [use.placement])
    safety = made.judge([use], ALL_PROVEN, lambda *_: {})
    (allowed,) = safety.allowlists
    assert (allowed.policy, allowed.patterns) == (Verification.NEVER, ())
    lines = [*patch_lines(record_of(safety, 1, 1, 1))]
    assert lines[1:] == ["imagePullCredentialsVerificationPolicy: NeverVerify"]
    elsewhere = dataclasses.replace(use.placement, node="node-2")
    made = Judge(LISTED, [view()], [elsewhere])
    (allowed,) = made.judge([use], ALL_PROVEN, lambda *_: {}).allowlists
    assert allowed.policy is Verification.NOT_LISTED


def test_pod_on_no_known_node() -> None:
    """On a node that joined meanwhile, or waiting for one: it was not seen; a template may wait."""
    (use,) = uses("pod-1")
    away = dataclasses.replace(use, placement=dataclasses.replace(use.placement, node="node-9"))
    waiting = dataclasses.replace(
        use, placement=dataclasses.replace(use.placement, node="", selector={"zone": "moon"})
    )
    (template,) = uses("web")
    template = dataclasses.replace(template, placement=waiting.placement)
    made = Judge(LISTED, [view()])
    safety = made.judge([away, waiting, template], ALL_PROVEN, lambda *_: {})
    assert codes(safety) == [("unknown_node", "node-9"), ("no_node", "team/pod-1")]


def test_every_trouble_and_gap_has_a_text() -> None:
    """Its meaning and a remedy."""
    assert {*TROUBLES} == {*Trouble}
    assert {*GAPS} == {*Gap}
    found = Safety(
        tuple(Finding(code, ("n",), ("i",)) for code in Trouble),
        tuple(Unseen(code, "n", "why") for code in Gap),
    )
    record = record_of(found, 1, 1, 1)
    assert len([*lines_of(record, KUBECTL)]) == 2 * (len(Trouble) + len(Gap)) + 1
    assert unseen_text(record["unseen"][0]).endswith(": why")


def test_page_has_every_trouble_and_gap() -> None:
    """With the same words as the command."""
    page = (REPO / "docs/safe-to-stop.md").read_text()
    for code, (what, remedy) in [*TROUBLES.items(), *GAPS.items()]:
        assert f"| `{code}` | {what} | {remedy} |" in page


def test_report_is_bounded_and_read_back() -> None:
    """A large judgement is cut, and says how much was left out."""
    (one,) = judge(view(), "night").findings
    many = dataclasses.replace(
        Safety((one,) * 5000, (Unseen(Gap.NODE, "n", "x" * 300),) * 5000), allowlists=()
    )
    document = json.loads(json.dumps(reported(record_of(many, 1, 2, 3))))
    assert len(json.dumps(document)) <= MAX_BYTES
    found = read_reported(document, "2026-01-01T00:00:00Z")
    assert found["left_out"] + len(found["findings"]) + len(found["unseen"]) == 10_000
    assert found["findings"] and found["unseen"] and not found["safe"]


@pytest.mark.parametrize(
    "change",
    [
        {"safe": None, "findings": [7]},
        {"findings": [{"code": "other"}]},
        {"unseen": [{"code": "node"}]},
        {"images": "many"},
    ],
)
def test_report_of_another_form_is_refused(change: dict[str, Any]) -> None:
    """As of another version of the command."""
    document = reported(record_of(judge(view()), 1, 1, 1))
    with pytest.raises(ValueError, match="not a judgement"):
        read_reported(document | change, "")


@pytest.mark.alone
def test_large_cluster_is_judged_in_seconds() -> None:
    """Pods and templates that fit all of a thousand nodes."""
    (template,) = uses("web")
    (pod,) = uses("pod-1")
    policy = PullPolicy(Verification.NEVER)
    facts = pinned(node_facts())
    nodes = [
        view(
            name=f"n{n}",
            cluster=dataclasses.replace(NODES[0], name=f"n{n}"),
            policy=policy,
            facts=facts,
        )
        for n in range(1000)
    ]
    many = [
        *(
            dataclasses.replace(pod, placement=placement_of({"nodeName": f"n{n % 1000}"}))
            for n in range(5000)
        ),
        *(dataclasses.replace(template, part=str(n)) for n in range(200)),
    ]
    begun = time.monotonic()
    assert Judge(LISTED, nodes).judge(many, ALL_PROVEN, lambda *_: {}).is_safe
    assert time.monotonic() - begun < 30
