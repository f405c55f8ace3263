"""Settings of distributions that own their nodes' files, for their own tools to apply.

    talos      documents for ``talosctl patch machineconfig``: mirrors, the CA, the node's login
    openshift  objects for ``oc apply``: mirror sets, the CA's ConfigMap, sets of pinned images
    k3s, rke2  shell commands that write ``registries.yaml``, merged with the node's own
    crio       shell commands that write podman's files and a drop-in that pins images

Nothing is applied here, so nothing is saved for a revert: the notes say how to take it back.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mayfly.registry.nodes import crio, podman, rancher
from mayfly.registry.nodes.commands import plan_commands
from mayfly.registry.nodes.journal import JOURNALS, PASTED
from mayfly.registry.nodes.merging import to_yaml
from mayfly.registry.nodes.plan import Note, NoteCode, Plan
from mayfly.registry.nodes.runtimes import EmptyNode, make_plan
from mayfly.registry.nodes.target import Target
from mayfly.registry.pki.errors import TrustError
from mayfly.storage.text import counted_of

NAME = "mayfly"
"""The name of every object that is rendered."""

_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_OPENSHIFT_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]+)?")
# PinnedImageSet has room for one namespace, and for this number of images.
_OPENSHIFT_PIN = re.compile(
    r"(?:[a-zA-Z0-9-]+\.)+[a-zA-Z0-9-]+(?::[0-9]{2,5})?/(?:[a-zA-Z0-9_-]{0,61}/)?[a-zA-Z0-9_.-]+"
    r"@sha256:[a-f0-9]{64}"
)
_OPENSHIFT_PINS = 500
_OPENSHIFT_POOLS = ("master", "worker")


@dataclass(frozen=True)
class Rendered:
    """A text to apply.

    Attributes:
        text: YAML documents, or shell commands for a node.
        activate: commands that apply it; FILE stands for a file with the text.
        notes: facts that the operator has to know.
    """

    text: str
    activate: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()


def render(
    distribution: str, target: Target, images: Sequence[str] = (), existing: bytes | None = None
) -> Rendered:
    """Return the settings of one distribution.

    Args:
        distribution: a key of `DISTRIBUTIONS`.
        target: the registry, and the upstreams to mirror.
        images: full names of the images to pin, where that is a setting.
        existing: the node's ``registries.yaml`` for k3s and RKE2, a configuration with
            ``pinned_images`` for CRI-O; None to begin anew.

    Raises:
        TrustError: the distribution cannot use the target, or ``existing`` cannot be merged.
    """
    if target.certs_dir is not None:
        raise TrustError(f"--certs-dir is for containerd, not for {distribution}")
    return DISTRIBUTIONS[distribution](target, images, existing)


def _talos(target: Target, images: Sequence[str], existing: bytes | None) -> Rendered:
    _refuse_existing("talos", existing)
    documents: list[dict[str, Any]] = []

    def add(kind: str, name: str, **fields: object) -> None:
        documents.append({"apiVersion": "v1alpha1", "kind": kind, "name": name, **fields})

    endpoint: dict[str, object] = {"url": target.url}
    if target.path:
        endpoint = {"url": f"{target.url}/v2", "overridePath": True}
    for upstream in target.mirrors:
        add("RegistryMirrorConfig", upstream, endpoints=[endpoint])
    if target.path or not target.tls:
        add("RegistryMirrorConfig", target.registry, endpoints=[endpoint], skipFallback=True)
    if target.ca is not None:
        # Not TrustedRootsConfig: containerd reads those roots at its start only, and would trust
        # the CA for every registry.
        add("RegistryTLSConfig", target.registry, ca=target.ca.decode())
    notes: tuple[Note, ...] = ()
    if target.credential is not None:
        username, password = target.credential
        add("RegistryAuthConfig", target.registry, username=username, password=password)
        notes += (
            Note(
                NoteCode.RESTART,
                "Talos before 1.14 uses a new RegistryAuthConfig after a reboot only; pods with an "
                "imagePullSecret need none (mayfly credentials --format secret)",
            ),
        )
    notes += (
        Note(
            NoteCode.TAKE_BACK,
            "to take it back, patch with each document's apiVersion, kind and name, "
            "and $patch: delete",
        ),
    )
    apply = "talosctl patch machineconfig --nodes NODE --patch @FILE"
    return Rendered(to_yaml(documents), (apply,), notes)


def _openshift(target: Target, images: Sequence[str], existing: bytes | None) -> Rendered:
    _refuse_existing("openshift", existing)
    for host in (target.registry, *target.mirrors):
        if not _OPENSHIFT_HOST.fullmatch(host):
            raise TrustError(f"OpenShift's mirror sets take no name such as {host!r}")
    if target.path:
        raise TrustError(f"OpenShift cannot use {target.url}: it has no setting for a path")
    if not target.tls:
        raise TrustError(f"OpenShift's mirrors need TLS, which {target.url} does not speak")
    if target.credential is not None:
        raise TrustError(
            "OpenShift has one pull secret for all nodes, so leave --node out; "
            "mayfly credentials --format docker prints a login to add to it"
        )
    mirrors = [
        {
            "source": upstream,
            "mirrors": [podman.mirror_location(target, upstream)],
            "mirrorSourcePolicy": "AllowContactingSource",
        }
        for upstream in target.mirrors
    ]
    documents: list[dict[str, Any]] = []

    def add(api: str, kind: str, metadata: dict[str, Any], **fields: object) -> None:
        documents.append({"apiVersion": api, "kind": kind, "metadata": metadata, **fields})

    if mirrors:
        config = "config.openshift.io/v1"
        add(config, "ImageDigestMirrorSet", {"name": NAME}, spec={"imageDigestMirrors": mirrors})
        add(config, "ImageTagMirrorSet", {"name": NAME}, spec={"imageTagMirrors": mirrors})
    activate: tuple[str, ...] = ("oc apply -f FILE",)
    notes: tuple[Note, ...] = ()
    if target.ca is not None:
        metadata = {"name": f"{NAME}-ca", "namespace": "openshift-config"}
        # A ConfigMap's keys hold no colon: two dots stand for that of the port.
        key = target.registry.replace(":", "..")
        add("v1", "ConfigMap", metadata, data={key: target.ca.decode()})
        patch = json.dumps({"spec": {"additionalTrustedCA": {"name": f"{NAME}-ca"}}})
        image = "image.config.openshift.io/cluster"
        activate += (f"oc patch {image} --type merge --patch '{patch}'",)
        notes += (
            Note(
                NoteCode.MERGE,
                f"if {image} names an additionalTrustedCA already, add the key {key} to that "
                "ConfigMap instead of running oc patch",
            ),
        )
    pinned = [name for name in images if _OPENSHIFT_PIN.fullmatch(name)]
    for role in _OPENSHIFT_POOLS:
        for start in range(0, len(pinned), _OPENSHIFT_PINS):
            number = start // _OPENSHIFT_PINS + 1
            labels = {"machineconfiguration.openshift.io/role": role}
            pins = [{"name": name} for name in pinned[start : start + _OPENSHIFT_PINS]]
            add(
                "machineconfiguration.openshift.io/v1",
                "PinnedImageSet",
                {"name": f"{NAME}-{role}-{number}", "labels": labels},
                spec={"pinnedImages": pins},
            )
    unpinned = [name for name in images if name not in set(pinned)]
    if unpinned:
        notes += (
            Note(
                NoteCode.UNPINNED,
                f"not pinned: {counted_of(len(unpinned), len(images), 'image')}, such as "
                f"{unpinned[0]}: PinnedImageSet takes HOST/NAME@sha256:… or "
                "HOST/NAMESPACE/NAME@sha256:…",
            ),
        )
    notes += (
        Note(
            NoteCode.RESTART,
            "the machine-config operator brings changes to one node after another, and may drain "
            "each; oc get machineconfigpool shows how far it is",
        ),
        Note(NoteCode.TAKE_BACK, "to take it back: oc delete -f FILE, and undo oc patch"),
    )
    return Rendered(to_yaml(documents), activate, notes)


def _rancher(product: str) -> Callable[[Target, Sequence[str], bytes | None], Rendered]:
    """The renderer of k3s or RKE2, which differ in names only."""
    path = rancher.registries_yaml(product)

    def rendered(target: Target, images: Sequence[str], existing: bytes | None) -> Rendered:
        plan = rancher.plan(product, target, existing)
        notes = plan.notes
        if existing is None:
            notes += (
                Note(
                    NoteCode.MERGE,
                    f"this replaces a {path} that the node has; give that file with --merge to "
                    "keep its settings",
                    path,
                ),
            )
        notes += (
            Note(
                NoteCode.TAKE_BACK,
                f"to take it back put the old {path} in its place, or remove it, remove "
                f"{JOURNALS}/containerd/{PASTED}, and restart again",
                path,
            ),
        )
        commands = plan_commands("containerd", dataclasses.replace(plan, notes=notes))
        return Rendered("\n".join([*commands, ""]), (), notes)

    return rendered


def _crio(target: Target, images: Sequence[str], existing: bytes | None) -> Rendered:
    if target.credential is not None:
        raise TrustError(
            "CRI-O takes a node's login from kubelet: leave --node out, and put the output of "
            "mayfly credentials --format docker in /var/lib/kubelet/config.json"
        )
    plan = make_plan("podman", target, EmptyNode())
    notes = plan.notes
    files = plan.files
    others = [] if existing is None else crio.pinned_in(existing)
    pinned = dict.fromkeys((*others, *images))
    if pinned:
        files += (crio.pins_file(pinned),)
        if existing is None:
            notes += (
                Note(
                    NoteCode.MERGE,
                    "CRI-O takes pinned_images from the last file that has it; give such a file "
                    "of the node's with --merge to keep its images pinned",
                    crio.PINS_CONF,
                ),
            )
    removed = " ".join((*(file.path for file in files), f"{JOURNALS}/podman/{PASTED}"))
    notes += (Note(NoteCode.TAKE_BACK, f"to take it back: rm {removed}; systemctl reload crio"),)
    return Rendered("\n".join([*plan_commands("podman", Plan(files, notes=notes)), ""]), (), notes)


def _refuse_existing(distribution: str, existing: bytes | None) -> None:
    if existing is not None:
        raise TrustError(f"--merge: {distribution}'s own tools merge; leave it out")


DISTRIBUTIONS: Mapping[str, Callable[[Target, Sequence[str], bytes | None], Rendered]] = {
    "talos": _talos,
    "openshift": _openshift,
    "k3s": _rancher("k3s"),
    "rke2": _rancher("rke2"),
    "crio": _crio,
}
