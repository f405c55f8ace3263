"""What an operator pastes on a node that has neither Mayfly nor the internet."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from registry.trust.certificate import fingerprint
from registry.trust.node.plan import Plan, PlannedFile
from registry.trust.node.runtimes import RUNTIMES, EmptyNode, Runtime, make_plan
from registry.trust.node.target import Target

_END = "MAYFLY"

# How each runtime is told the credentials, and what may be left unsaid there.
_LOGIN: dict[Runtime, str] = {
    "docker": "docker login {registry}",
    "containerd": "# kubelet logs in with an imagePullSecret: mayfly credentials --format secret",
    "podman": "podman login {registry}",
}


def node_commands(target: Target, runtimes: Iterable[Runtime] = RUNTIMES) -> str:
    """A text for the terminal: where the registry is, and for each runtime the shell commands.

    They run in any POSIX shell as root, hold the CA in full, and may be run again. A file that
    would have to be merged with what the node has is only described. Ends in a newline.
    """
    lines = [f"Registry: {target.url}"]
    if target.ca is not None:
        lines.append(f"CA SHA-256: {fingerprint(target.ca)}")
    for runtime in runtimes:
        plan = make_plan(runtime, target, EmptyNode())
        lines += ["", f"# {runtime}: on the node, as root", *plan_commands(plan)]
        if target.credential is None:
            lines.append(_LOGIN[runtime].format(registry=target.registry))
    return "\n".join([*lines, ""])


def plan_commands(plan: Plan) -> Iterator[str]:
    """The shell lines that put a plan in place."""
    for file in plan.files:
        yield from _described(file) if file.merged else _written(file)
    yield from plan.activate


def _written(file: PlannedFile) -> Iterator[str]:
    directory, _, _ = file.path.rpartition("/")
    yield f"mkdir -p {shlex.quote(directory)}"
    if file.private:
        # Nobody else may open it before or after it is written.
        yield f"install -m {file.mode:o} /dev/null {shlex.quote(file.path)}"
    yield f"cat > {shlex.quote(file.path)} <<'{_END}'"
    yield from file.content.decode().splitlines()
    yield _END


def _described(file: PlannedFile) -> Iterator[str]:
    yield f"# Add to {file.path}, and keep what else it has:"
    for line in file.content.decode().splitlines():
        yield f"#   {line}"
