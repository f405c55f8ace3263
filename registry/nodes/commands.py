"""Render commands to paste on a node that has neither Mayfly nor the internet."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Iterator

from mayfly.registry.nodes.plan import Plan, PlannedFile
from mayfly.registry.nodes.runtimes import (
    BELOW_A_PATH,
    RUNTIMES,
    EmptyNode,
    Runtime,
    make_plan,
    no_path,
)
from mayfly.registry.nodes.target import Target
from mayfly.registry.pki.certificate import fingerprint

_END = "MAYFLY"

_SECRET_HINT = "# kubelet logs in with an imagePullSecret: mayfly credentials --format secret"
_LOGIN_HINT = "# name and password: mayfly credentials --node NAME, run where the registry runs"


def node_commands(target: Target, runtimes: Iterable[Runtime] = RUNTIMES) -> str:
    """A text for the terminal: where the registry is, and for each runtime the shell commands.

    They run in any POSIX shell as root, hold the CA in full, and may be run again. A file that
    would have to be merged with what the node has is only described. Ends in a newline.
    """
    lines = [f"Registry: {target.url}"]
    if target.ca is not None:
        lines.append(f"CA SHA-256: {fingerprint(target.ca)}")
    for runtime in runtimes:
        lines += ["", f"# {runtime}: on the node, as root", *_setup(runtime, target)]
    return "\n".join([*lines, ""])


def _setup(runtime: Runtime, target: Target) -> Iterator[str]:
    """The shell lines that make one runtime trust the registry, and log it in."""
    if target.path and runtime not in BELOW_A_PATH:
        yield f"# {no_path(runtime, target)}"
        return
    if runtime == "containerd":
        yield from plan_commands(make_plan(runtime, target, EmptyNode()))
        if target.credential is None:
            yield _SECRET_HINT
        return
    # docker and podman keep credentials in files that their own login writes.
    files = dataclasses.replace(target, credential=None, certs_dir=None)
    yield from plan_commands(make_plan(runtime, files, EmptyNode()))
    login = f"{runtime} login {target.registry}"
    if target.credential is None:
        yield _LOGIN_HINT
        yield login
        return
    yield (
        f"{login} --username {shlex.quote(target.credential.username)} --password-stdin <<'{_END}'"
    )
    yield target.credential.password
    yield _END


def plan_commands(plan: Plan) -> Iterator[str]:
    """The shell lines that put a plan in place, and its notes as comments."""
    for file in plan.files:
        yield from _described(file) if file.merged else _written(file)
    yield from plan.activate
    yield from (f"# note: {note}" for note in plan.notes)


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
