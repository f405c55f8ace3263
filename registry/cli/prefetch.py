"""``mayfly prefetch``: run the node script on every node, before the first one is drained."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mayfly.registry.cli.help import Command
from mayfly.registry.cli.node import (
    PROOF_HOURS,
    chosen_runtime,
    images_option,
    listed_images,
    runtime_option,
)
from mayfly.registry.cli.node_config import node_errors, nodes_options, read_target
from mayfly.registry.cli.options import DURATION, JSON_HELP, combined, refuse_given
from mayfly.registry.cli.progress import print_event
from mayfly.registry.exit_codes import Exit
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.text import echo, join_names
from mayfly.storage.text import counted_of

if TYPE_CHECKING:
    from mayfly.registry.nodes.carrier import Carrier
    from mayfly.registry.nodes.prefetch import Failure, NodeResult, Prefetch

_PROGRESS_SECONDS = 5.0
_NODES_SHOWN = 8
STATUS_SECONDS = 60.0
"""For the status of many nodes and images."""

# Spelled here once more so that the help needs no import; a test compares.
CONCURRENCY = 16
ATTEMPTS = 4
TIMEOUT = "2h"


ssh_options = combined(
    click.option(
        "--ssh-config",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        envvar="MAYFLY_SSH_CONFIG",
        metavar="FILE",
        help="ssh's configuration.  [default: the user's and the system's]",
    ),
    click.option(
        "--user",
        envvar="MAYFLY_USER",
        metavar="NAME",
        help="User to log in as.  [default: of ssh's configuration]",
    ),
    click.option("--sudo", is_flag=True, help="Become root on the node by sudo -n."),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 256),
        default=CONCURRENCY,
        show_default=True,
        metavar="N",
        help="Nodes at a time.",
    ),
)
"""Options by which nodes are reached."""

OF_SSH = ("ssh_config", "user", "sudo")
"""Parameters of these that are for ``--via ssh`` alone."""


kubectl_options = combined(
    click.option(
        "--kubeconfig",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        envvar="MAYFLY_KUBECONFIG",
        metavar="FILE",
        help="kubectl's configuration.  [default: as kubectl finds it]",
    ),
    click.option(
        "--context",
        envvar="MAYFLY_CONTEXT",
        metavar="NAME",
        help="Context of it.  [default: the current one]",
    ),
)
"""Options by which kubectl reaches the cluster."""

_OF_PODS = ("kubeconfig", "context", "image", "print_only")
"""Parameters of ``prefetch`` that are for ``--via kubernetes`` alone."""


@click.command("prefetch", cls=Command)
@click.option(
    "--nodes",
    envvar="MAYFLY_NODES",
    metavar="FILE",
    help="Nodes, one a line, by the names that coverage and ssh or the cluster have for them.  "
    "[default: --nodes of the Mayfly that runs here]",
)
@click.option(
    "--via",
    type=click.Choice(["ssh", "kubernetes"]),
    default="ssh",
    show_default=True,
    help="How nodes are reached: by the system's ssh, its configuration and agent; or in a pod on "
    "each node, made and removed by the system's kubectl.",
)
@images_option
@runtime_option
@ssh_options
@kubectl_options
@click.option(
    "--image",
    envvar="MAYFLY_IMAGE",
    metavar="NAME",
    help="With --via kubernetes: any image that every node has, for the pods.  [default: one that "
    "the cluster knows the node to have]",
)
@click.option(
    "--print",
    "print_only",
    is_flag=True,
    help="With --via kubernetes: print the objects that would be made, with the nodes' "
    "credentials, and make none.",
)
@click.option(
    "--attempts",
    type=click.IntRange(1, 20),
    default=ATTEMPTS,
    show_default=True,
    metavar="N",
    help="Tries at a node, with growing pauses, if a failure may pass.",
)
@click.option(
    "--timeout",
    type=DURATION,
    default=TIMEOUT,
    show_default=True,
    metavar="D",
    help="Longest time for a try at a node.",
)
@click.option("--again", is_flag=True, help="Run on nodes too that have proved every image.")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
@nodes_options
def command(
    nodes: str | None,
    via: str,
    images: Path | None,
    runtime: str,
    ssh_config: Path | None,
    user: str | None,
    sudo: bool,
    concurrency: int,
    kubeconfig: Path | None,
    context: str | None,
    image: str | None,
    print_only: bool,
    attempts: int,
    timeout: float,
    again: bool,
    as_json: bool,
    **registry: Any,
) -> int:
    """Have every node pull, pin and prove the images now, before the first one is drained.

    Runs the script of mayfly node script on each node. Nodes that have proved every image are
    skipped, so a second run only continues the first.
    """
    from mayfly.registry.cli.interrupts import run_cancellable
    from mayfly.registry.nodes.kubectl import Kubectl
    from mayfly.registry.nodes.pods import Pods
    from mayfly.registry.nodes.prefetch import Prefetch
    from mayfly.registry.nodes.proof import send_proof
    from mayfly.registry.nodes.script import images_of, node_script, with_mirrors
    from mayfly.registry.nodes.ssh import SSH

    state_dir: Path = registry["state_dir"]
    names = node_names(nodes, state_dir)
    other, its = ("kubernetes", _OF_PODS) if via == "ssh" else ("ssh", OF_SSH)
    refuse_given(its, f"for --via {other} alone")
    carrier: Carrier = SSH(ssh_config, user, sudo)
    if via == "kubernetes":
        carrier = Pods(Kubectl(kubeconfig, context), image)
    carrier.check(names)
    listed = listed_images(images, state_dir)
    with node_errors():
        host = read_target(node=None, **registry).registry
        wanted = images_of(listed, host)
    references = tuple(image.reference for image in wanted)

    def script(node: str) -> str:
        with node_errors():
            target = with_mirrors(read_target(node=node, **registry), wanted)
            return node_script(target, node, wanted, runtime=chosen_runtime(runtime))

    def send(node: str, proof: list[Any]) -> None:
        with node_errors():
            target = read_target(node=node, **{**registry, "hours": PROOF_HOURS})
        send_proof(target, node, proof)

    proven = set() if again else _proven(state_dir, host, references)
    plan = Prefetch(
        tuple(node for node in names if node not in proven),
        references,
        script,
        carrier,
        send,
        concurrency,
        attempts,
        timeout,
    )
    if print_only:
        _print_objects(plan)
        return Exit.DONE
    observer = (_Events if as_json else _Lines)(len(names), len(references))
    skipped = [node for node in names if node in proven]
    observer.skipped(skipped)
    results = run_cancellable(_run(plan, observer))
    if any(result.proven for result in results):
        results = _checked(results, _lacking(state_dir, host, references), references, observer)
    observer.done(results, len(skipped))
    return Exit.DONE if all(result.proven for result in results) else Exit.INCOMPLETE


def _print_objects(plan: Prefetch) -> None:
    """Print the objects that a prefetch would make in the cluster."""
    from mayfly.registry.cli.interrupts import run_cancellable
    from mayfly.registry.nodes.pod_objects import manifest
    from mayfly.registry.nodes.pods import Pods

    assert isinstance(plan.carrier, Pods)
    objects = run_cancellable(plan.carrier.objects(plan.nodes, plan.script, plan.timeout))
    # Many lines: `echo` would make one of them.
    click.echo(manifest(objects), nl=False)


def node_names(nodes: str | None, state_dir: Path) -> tuple[str, ...]:
    """Return the names of a list of nodes.

    Args:
        nodes: its file; None for the list of the Mayfly that runs here.
        state_dir: of that.

    Raises:
        ConfigError: there is no list, or the Mayfly that runs here waits for other nodes.
        NotRunning: none runs here.
    """
    from mayfly.registry.control.readiness import read_ready

    known = read_ready(state_dir).nodes
    if nodes is None:
        if not known:
            raise ConfigError(
                "--nodes FILE: the Mayfly that runs here has no list of nodes, so name them"
            )
        return known
    names = names_in(nodes)
    unknown = [name for name in names if known and name not in known]
    if unknown:
        raise ConfigError(
            f"--nodes {nodes}: the Mayfly that runs here does not wait for "
            f"{join_names(unknown, _NODES_SHOWN)}; start it with the same list"
        )
    return names


def names_in(nodes: str) -> tuple[str, ...]:
    """Return the names of a file.

    Raises:
        ConfigError: it has none, or cannot be read.
    """
    from mayfly.registry.coverage.upgrade_lists import read_nodes

    names = read_nodes(nodes).names
    if not names:
        raise ConfigError(f"--nodes {nodes}: give a file of names, one a line")
    return names


def _states(state_dir: Path, registry: str, images: Collection[str]) -> Iterator[tuple[str, bool]]:
    """Yield a node's name and whether it proved an image, for each that the registry knows of.

    Nothing, if it waits for other images: then it does not say which nodes have them.
    """
    from mayfly.registry.control.client import ask
    from mayfly.registry.coverage.states import State, accepted
    from mayfly.registry.nodes.script import images_of

    coverage = ask(state_dir, "status", timeout=STATUS_SECONDS)["coverage"]
    if coverage is None:
        return
    matrix = {
        image.reference: row
        for text, row in coverage["matrix"].items()
        for image in images_of([text], registry)
    }
    if not matrix.keys() >= set(images):
        return
    enough = accepted(State.PROVEN)
    for image in images:
        for node, state in matrix[image].items():
            yield node, state in enough


def _proven(state_dir: Path, registry: str, images: Collection[str]) -> set[str]:
    """The nodes that have proved every image."""
    states: dict[str, bool] = {}
    for node, is_proven in _states(state_dir, registry, images):
        states[node] = states.get(node, True) and is_proven
    return {node for node, all_proven in states.items() if all_proven}


def _lacking(state_dir: Path, registry: str, images: Collection[str]) -> set[str]:
    """The nodes that have not proved every image, by the registry's own judgement."""
    from mayfly.registry.errors import NotRunning

    try:
        return {node for node, is_proven in _states(state_dir, registry, images) if not is_proven}
    except NotRunning:
        return set()  # it may have ended because every node has everything


def _checked(
    results: Sequence[NodeResult],
    lacking: Collection[str],
    images: tuple[str, ...],
    observer: _Lines | _Events,
) -> list[NodeResult]:
    """Return the results as the registry has them, and show those that it corrects."""
    from mayfly.registry.nodes.prefetch import checked

    found = checked(results, lacking, images)
    for before, after in zip(results, found, strict=True):
        if after is not before:
            observer.ended(after)
    return found


async def _run(plan: Prefetch, observer: _Lines | _Events) -> list[NodeResult]:
    ticking = asyncio.create_task(observer.tick())
    try:
        return await plan.run(observer)
    finally:
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking


class _Lines:
    """Prints lines for people: results on standard output, progress on standard error."""

    def __init__(self, nodes: int, images: int) -> None:
        self._nodes = nodes
        self._images = images
        self._done = 0
        self._running: dict[str, int] = {}
        """Node → images that it pulled in this try."""
        self._waiting: dict[str, float] = {}
        """Node → when its next try is due, by the monotonic clock."""

    def skipped(self, nodes: Sequence[str]) -> None:
        self._done += len(nodes)
        if nodes:
            shown = join_names(nodes, _NODES_SHOWN)
            echo(f"skipped, since every image is proven: {shown}", err=True)

    def started(self, node: str, attempt: int) -> None:
        self._running[node] = 0
        self._waiting.pop(node, None)

    def image(self, node: str, image: str, state: str) -> None:
        self._running[node] = min(self._running.get(node, 0) + 1, self._images)

    def paused(self, node: str, failure: Failure, seconds: float) -> None:
        from mayfly.registry.nodes.prefetch import failure_text

        self._running.pop(node, None)
        self._waiting[node] = time.monotonic() + seconds
        text = failure_text(failure, self._images)
        echo(f"{node}: {text}; trying again in {seconds:.0f} s", err=True)

    def ended(self, result: NodeResult) -> None:
        from mayfly.registry.nodes.prefetch import node_lines

        if self._running.pop(result.node, None) is not None:
            self._done += 1
        for text in node_lines(result, self._images):
            echo(text)

    def note(self, text: str) -> None:
        echo(text, err=True)

    async def tick(self) -> None:
        """Print a line about the nodes that run, now and then."""
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            echo(self._progress(), err=True)

    def _progress(self) -> str:
        """Which nodes run, and which wait for their next try and for how long."""
        text = f"{counted_of(self._done, self._nodes, 'node')} done"
        now = time.monotonic()
        running = [f"{node} {count}/{self._images}" for node, count in self._running.items()]
        waiting = [
            f"{node} (in {seconds:.0f} s)" if (seconds := due - now) > 0 else node
            for node, due in self._waiting.items()
        ]
        for what, names in (("at work", running), ("to be tried again", waiting)):
            if names:
                text += f"; {what}: {join_names(names, _NODES_SHOWN)}"
        return text

    def done(self, results: Sequence[NodeResult], skipped: int) -> None:
        from mayfly.registry.nodes.causes import TEXTS
        from mayfly.registry.nodes.prefetch import remedies

        proven = skipped + sum(result.proven for result in results)
        echo(f"{counted_of(proven, self._nodes, 'node')} proved every image")
        for cause, nodes, remedy in remedies(results):
            echo(f"{join_names(nodes, _NODES_SHOWN)}: {TEXTS[cause][0]}. To do: {remedy}")


class _Events:
    """Prints a JSON object for each event."""

    def __init__(self, nodes: int, images: int) -> None:
        self._nodes = nodes

    def skipped(self, nodes: Sequence[str]) -> None:
        for node in nodes:
            print_event("skipped", node=node)

    def started(self, node: str, attempt: int) -> None:
        print_event("started", node=node, attempt=attempt)

    def image(self, node: str, image: str, state: str) -> None:
        print_event("image", node=node, image=image, state=state)

    def paused(self, node: str, failure: Failure, seconds: float) -> None:
        print_event("paused", node=node, seconds=seconds, **_failure(failure))

    def ended(self, result: NodeResult) -> None:
        print_event(
            "ended",
            node=result.node,
            proven=result.proven,
            attempts=result.attempts,
            seconds=round(result.seconds, 3),
            pinned=result.pinned,
            free=result.free,
            failures=[_failure(one) for one in result.failures],
            warnings=[_failure(one) for one in result.warnings],
        )

    def note(self, text: str) -> None:
        print_event("note", message=text)

    async def tick(self) -> None:
        """Nothing: each event has its line."""

    def done(self, results: Sequence[NodeResult], skipped: int) -> None:
        from mayfly.registry.nodes.prefetch import remedies

        print_event(
            "done",
            nodes=self._nodes,
            proven=skipped + sum(result.proven for result in results),
            remedies=[
                {"code": cause, "nodes": nodes, "message": remedy}
                for cause, nodes, remedy in remedies(results)
            ],
        )


def _failure(failure: Failure) -> dict[str, Any]:
    return {"code": failure.cause, "images": failure.images, "detail": failure.detail}
