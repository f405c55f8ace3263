"""The causes for which a node lacks an image, and their remedies.

A cause is concluded from the exit code of ssh, from the states of pods, and from texts that ssh,
kubelet, the node script and the programs on the node print. No program gives these as data; where a
text says nothing known, the cause is a general one and the text itself is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum


class Cause(StrEnum):
    """Why a node lacks an image, or another problem there."""

    UNRESOLVED = "unresolved"
    DOWN = "down"
    HOST_UNKNOWN = "host_unknown"
    HOST_KEY = "host_key"
    LOGIN = "login"
    SSH = "ssh"
    NO_SHELL = "no_shell"
    NOT_ROOT = "not_root"
    NO_RUNTIME = "no_runtime"
    BUSY = "busy"
    LOST = "lost"
    KILLED = "killed"
    TIMED_OUT = "timed_out"
    UNREADABLE = "unreadable"
    EDITED = "edited"
    SCRIPT = "script"
    DISK_FULL = "disk_full"
    CLOCK = "clock"
    TRUST = "trust"
    NO_REGISTRY = "no_registry"
    DENIED = "denied"
    NOT_THERE = "not_there"
    PULL = "pull"
    NO_PROOF = "no_proof"
    PROOF = "proof"
    DIFFERENT = "different"
    NO_CONFIG_PATH = "no_config_path"
    NO_ROOM = "no_room"
    NO_SENDER = "no_sender"
    NO_PLATFORM = "no_platform"
    NOT_PINNED = "not_pinned"
    NO_NODE = "no_node"
    NOT_READY = "not_ready"
    NO_IMAGE = "no_image"
    POD = "pod"
    CLUSTER = "cluster"


TEXTS: dict[Cause, tuple[str, str]] = {
    Cause.UNRESOLVED: (
        "its name has no address",
        "correct the name in --nodes, or give its HostName in ssh's configuration",
    ),
    Cause.DOWN: (
        "it does not answer ssh",
        "start the node and its sshd, and open its port for this host; ssh NODE true shows whether "
        "it answers",
    ),
    Cause.HOST_UNKNOWN: (
        "its host key is not known here",
        "log in once by hand, with the same configuration, compare the key that is shown with the "
        "node's own, and accept it: ssh NODE true, or ssh -F FILE NODE true for --ssh-config FILE",
    ),
    Cause.HOST_KEY: (
        "its host key is not the one that is known",
        "find out why it changed; if the node was set up anew, forget the old key with ssh-keygen "
        "-R NODE and accept the new one with ssh NODE true, or ssh -F FILE NODE true for "
        "--ssh-config FILE",
    ),
    Cause.LOGIN: (
        "it refuses the login",
        "load the key into ssh-agent or name it in ssh's configuration; nothing can be asked here, "
        "so ssh -o BatchMode=yes NODE true has to work",
    ),
    Cause.SSH: (
        "ssh failed",
        "look at the output of ssh -o BatchMode=yes NODE true",
    ),
    Cause.NO_SHELL: (
        "it has no POSIX shell",
        "the script needs sh on the node; a node without one is prepared with mayfly node-config "
        "or by its own configuration",
    ),
    Cause.NOT_ROOT: (
        "the script does not run as root",
        "log in as root (--user root), or use --sudo with a rule that asks for no password",
    ),
    Cause.NO_RUNTIME: (
        "no container runtime answers",
        "start containerd, docker or podman on the node",
    ),
    Cause.BUSY: (
        "another run of the script is at work there",
        "wait for it to end, then run this again",
    ),
    Cause.LOST: (
        "the connection ended under way",
        "run this again when the node is back; it resumes where it was",
    ),
    Cause.KILLED: (
        "the script was killed under way",
        "find the cause on the node (journalctl -k shows out of memory), then run this "
        "again; it resumes where it was",
    ),
    Cause.TIMED_OUT: (
        "it took too long",
        "look on the node for a program that hangs, or give a longer --timeout, then run this "
        "again",
    ),
    Cause.UNREADABLE: (
        "it did not send the script's answer",
        "look at the output of its script: (umask 077; mayfly node script --node NODE >FILE) && "
        "ssh NODE sh <FILE",
    ),
    Cause.EDITED: (
        "somebody changed files that Mayfly wrote there",
        "save the edits that you need, then discard the others: "
        "(umask 077; mayfly node script --node NODE >FILE) && "
        "ssh NODE sh -s -- apply --force <FILE; then run this again",
    ),
    Cause.SCRIPT: (
        "the script cannot do its work there",
        "fix the problem that the message names, then run this again",
    ),
    Cause.DISK_FULL: (
        "its disk is full",
        "free space where its runtime keeps images (crictl rmi --prune, or docker or podman image "
        "prune --all, removes unused ones), then run this again",
    ),
    Cause.CLOCK: (
        "its clock or this host's is wrong",
        "compare date -u on both with the right time and set the clock that is wrong (chronyc "
        "makestep, or timedatectl set-ntp true), then run this again; a node that is off by a day "
        "or more may not accept the registry's certificate",
    ),
    Cause.TRUST: (
        "it does not trust the registry's certificate",
        "see that the registry's certificate is valid for the name that nodes use (--hostname, "
        "--external-url), and that --ca is the CA that signed it",
    ),
    Cause.NO_REGISTRY: (
        "it does not reach the registry",
        "open the registry's port for the node, and listen on an address that it reaches "
        "(--listen, --external-url)",
    ),
    Cause.DENIED: (
        "the registry refuses it",
        "its credential may have ended: run this again; mayfly status shows who was refused",
    ),
    Cause.NOT_THERE: (
        "the registry does not have the image",
        "serve a bundle that has it, or add it: mayfly import or mayfly copy",
    ),
    Cause.PULL: (
        "its runtime could not pull",
        "fix the problem that the message names, then run this again",
    ),
    Cause.NO_PROOF: (
        "its images are there, but it cannot tell the registry",
        "install curl or GNU wget on the node, then run this again; or send its proof with "
        "mayfly node proof",
    ),
    Cause.PROOF: (
        "the registry did not take its proof",
        "fix the problem that the message names, then run this again",
    ),
    Cause.DIFFERENT: (
        "it proved other images than the registry has under these names",
        "see with mayfly status whether the registry has the images, and that the node pulls them "
        "through it, then run this again",
    ),
    Cause.NO_CONFIG_PATH: (
        "kubelet's own pulls do not go through the registry",
        "set config_path in its containerd's config.toml and restart containerd once; the node "
        "script prints the two lines",
    ),
    Cause.NO_ROOM: (
        "the images do not fit on the file system of its images",
        "free space there, or enlarge it",
    ),
    Cause.NO_SENDER: (
        "it has no program that can send its proof",
        "install curl or GNU wget on the node, or send its proof with mayfly node proof",
    ),
    Cause.NO_PLATFORM: (
        "an image has nothing for its platform",
        "also fetch the image for this platform: mayfly bundle create with --platform",
    ),
    Cause.NOT_PINNED: (
        "images are there, but could not be pinned",
        "fix the problem that the message names, then run this with --again; until then kubelet "
        "may remove them when the disk fills",
    ),
    Cause.NO_NODE: (
        "the cluster has no node of this name",
        "name nodes in --nodes as kubectl get nodes does",
    ),
    Cause.NOT_READY: (
        "its kubelet does not answer",
        "start the node and its kubelet, then run this again; kubectl describe node NODE shows "
        "what is wrong",
    ),
    Cause.NO_IMAGE: (
        "no image there can start a pod",
        "name an image that the node has with --image; crictl images on the node lists them",
    ),
    Cause.POD: (
        "its kubelet did not run the pod",
        "fix the problem that the message names, then run this again",
    ),
    Cause.CLUSTER: (
        "the cluster refuses, or does not answer",
        "see that kubectl works here and may create and remove namespaces, service accounts, "
        "pods and secrets, and read nodes, events and logs",
    ),
}
"""Cause → its meaning, after "NODE: ", and the remedy."""

RETRIED = frozenset(
    {
        Cause.UNRESOLVED,
        Cause.DOWN,
        Cause.SSH,
        Cause.BUSY,
        Cause.LOST,
        Cause.KILLED,
        Cause.UNREADABLE,
        Cause.NO_REGISTRY,
        Cause.PULL,
        Cause.PROOF,
        Cause.NOT_READY,
        Cause.NO_IMAGE,  # a node tells of its images half a minute after they came
        Cause.POD,
        Cause.CLUSTER,
    }
)
"""Causes that may pass by themselves."""

_SSH_FAILED = 255
_KILLED = frozenset({129, 130, 137, 141, 143})
_NO_COMMAND = frozenset({126, 127})

_NO_SPACE = ("no space left on device", "disk quota exceeded", "not enough space")

_OF_SSH: Sequence[tuple[Cause, tuple[str, ...]]] = (
    (Cause.UNRESOLVED, ("could not resolve hostname",)),
    (Cause.HOST_KEY, ("host identification has changed", "host key for")),
    (Cause.HOST_UNKNOWN, ("host key verification failed", "host key is known for")),
    (Cause.LOGIN, ("permission denied", "too many authentication failures")),
    (Cause.LOST, ("closed by remote host", "send disconnect", "not responding")),
    (
        Cause.DOWN,
        ("connect to host", "kex_exchange", "banner exchange", "connection closed", "reset by"),
    ),
)

_OF_PULL: Sequence[tuple[Cause, tuple[str, ...]]] = (
    (Cause.DISK_FULL, _NO_SPACE),
    (
        Cause.CLOCK,
        ("not yet valid", "certificate has expired", "certificate expired", "not yet activated"),
    ),
    (Cause.TRUST, ("x509:", "certificate", "tls: ", "http response to https client")),
    (
        Cause.NO_REGISTRY,
        (
            *("connection refused", "no route to host", "network is unreachable", "i/o timeout"),
            *("timed out", "no such host", "deadline exceeded", "connection reset", "dial tcp"),
            *("could not resolve", "failed to connect", "couldn't connect"),
        ),
    ),
    (Cause.NOT_THERE, ("not found", "manifest unknown", "name unknown")),
    (Cause.DENIED, ("unauthorized", "forbidden", "denied", "401", "403")),
)

_OF_POD: Sequence[tuple[Cause, tuple[str, ...]]] = (
    (Cause.DISK_FULL, (*_NO_SPACE, "low on resource: ephemeral-storage", "diskpressure")),
    (Cause.NO_SHELL, ("hostpath type check failed", "/bin/sh")),
)


def cause_of_end(code: int, from_script: Iterable[str], others: Iterable[str]) -> Cause:
    """Return why a script gave no answer.

    Args:
        code: exit code of ssh.
        from_script: messages of the script, as it printed them.
        others: lines of ssh, the shell and the programs of the node.
    """
    script, other = "\n".join(from_script).lower(), "\n".join(others).lower()
    if _has(script + other, _NO_SPACE):
        return Cause.DISK_FULL
    if code == _SSH_FAILED:
        found = _first(_OF_SSH, other)
        return found or (Cause.SSH if other else Cause.LOST)
    if code in _KILLED:
        return Cause.KILLED
    if "sudo:" in other or "run this as root" in script:
        return Cause.NOT_ROOT
    if code in _NO_COMMAND:
        return Cause.NO_SHELL
    if "another run of this script" in script:
        return Cause.BUSY
    if "changed by somebody since mayfly wrote it" in script:
        return Cause.EDITED
    if "on this node" in script and "answer" in script:
        return Cause.NO_RUNTIME
    return Cause.SCRIPT if script else Cause.UNREADABLE


def cause_of_pull(text: str, skew: float | None) -> Cause:
    """Return why a pull or a request failed.

    Args:
        text: of the program that failed.
        skew: seconds by which the node's clock is ahead; None if unknown.
    """
    found = _first(_OF_PULL, text.lower()) or Cause.PULL
    if found is Cause.CLOCK and skew is not None and not is_wrong(skew):
        # The clock is right, so the certificate is indeed over.
        return Cause.TRUST
    return found


def cause_of_pod(text: str) -> Cause:
    """Return why a pod was not started, or was ended by kubelet.

    Args:
        text: of kubelet or the container runtime.
    """
    return _first(_OF_POD, text.lower()) or Cause.POD


MAX_SKEW_SECONDS = 300.0
"""A clock that is off by more is wrong."""


def is_wrong(skew: float) -> bool:
    """Whether a clock that is off by these seconds is wrong."""
    return abs(skew) > MAX_SKEW_SECONDS


_SAME_SECONDS = 60.0

HERE_IS_WRONG = (
    "the clocks of all nodes differ from this host's by the same, so it is most likely this "
    "host's that is wrong: set it (chronyc makestep, or timedatectl set-ntp true), start Mayfly "
    "again, then run this again"
)
"""The remedy for clocks if `is_wrong_here`."""


def is_wrong_here(skews: Sequence[float | None]) -> bool:
    """Whether it is this host's clock that is wrong: several nodes differ from it by the same.

    Args:
        skews: seconds by which each node's clock is ahead; None where that is unknown.
    """
    known = [skew for skew in skews if skew is not None]
    return len(known) > 1 and is_wrong(known[0]) and max(known) - min(known) < _SAME_SECONDS


def skew_text(skew: float) -> str:
    """Return by how much a clock is off, for people."""
    return f"{abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"


def _first(rules: Sequence[tuple[Cause, tuple[str, ...]]], text: str) -> Cause | None:
    return next((cause for cause, signs in rules if _has(text, signs)), None)


def _has(text: str, signs: tuple[str, ...]) -> bool:
    return any(sign in text for sign in signs)
