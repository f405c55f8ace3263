"""``mayfly status``, ``stop`` and ``wait``: talking to the registry that runs here."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mayfly.registry.cli.help import Command
from mayfly.registry.cli.options import (
    DURATION,
    as_json,
    print_json,
    refuse_given,
    state_directory,
)
from mayfly.registry.cli.prefetch import OF_SSH, kubectl_options, ssh_options
from mayfly.registry.exit_codes import Exit
from mayfly.registry.text import echo

if TYPE_CHECKING:
    from mayfly.registry.control.client import TimedOut
    from mayfly.registry.control.socket import Message
    from mayfly.registry.nodes.carrier import Carrier

_WATCH_SECONDS = 1.0
_LINE_SECONDS = 30.0
"""Between two lines of --watch without a terminal if nothing changes."""

_OF_SAFE_TO_STOP = (
    *("via", "no_kubernetes", "hold", "kubeconfig", "context"),
    *("ssh_config", "user", "sudo", "concurrency"),
)
"""Options of ``wait`` that are for --safe-to-stop alone."""


@click.command("status", cls=Command)
@state_directory
@as_json
@click.option(
    "--watch",
    is_flag=True,
    help="Follow it until the server ends, then print the report. A terminal is redrawn in place; "
    "other output gets a line for each change; --json prints a document each second.",
)
def status(state_dir: Path, json: bool, watch: bool) -> int:
    """Show the state of a running registry, and which node has which image."""
    from mayfly.registry.control.client import ask

    found = ask(state_dir, "status")
    if watch:
        return _watch(state_dir, found, json)
    _show_status(found, json)
    return Exit.DONE


@click.command("stop", cls=Command)
@state_directory
@as_json
def stop(state_dir: Path, json: bool) -> int:
    """Drain and end a running registry; return when it has ended.

    Exit code 3 says that coverage was incomplete, or that transfers were cut.
    """
    from mayfly.registry.control import status_text
    from mayfly.registry.control.client import ask

    answer = ask(state_dir, "stop", timeout=None)
    unfinished = bool(answer["cut_requests"]) or answer["covered"] is False
    if json:
        print_json(answer)
    else:
        for line in status_text.aborted_lines(answer["cut"], answer["cut_requests"]):
            echo(line)
        if answer["coverage"] is not None:
            echo(status_text.progress(answer["coverage"]))
        echo(f"stopped with exit code {answer['exit_code']}; report: {answer['report']}")
    return Exit.INCOMPLETE if unfinished else Exit.DONE


@click.command("wait", cls=Command)
@click.option("--ready", "what", flag_value="ready", help="Wait until it answers.")
@click.option(
    "--covered", "what", flag_value="covered", help="Wait until every node has every image."
)
@click.option(
    "--safe-to-stop",
    "what",
    flag_value="safe-to-stop",
    help="Wait until every node has proved every image, then look whether all pods would start "
    "without the registry. Exit code 3: some would not, or it could not be seen.",
)
@click.option(
    "--timeout",
    type=DURATION,
    metavar="D",
    help="Give up after this long, with exit code 3.  [default: never]",
)
@click.option(
    "--via",
    type=click.Choice(["none", "ssh", "kubernetes"]),
    default="none",
    show_default=True,
    help="With --safe-to-stop: read images and kubelet's records on the nodes, over ssh or in a "
    "pod on each.",
)
@click.option(
    "--no-kubernetes",
    is_flag=True,
    help="With --safe-to-stop: the nodes are in no cluster, so proofs decide alone.",
)
@click.option(
    "--hold",
    is_flag=True,
    help="With --safe-to-stop: keep images that are not pinned by pods that use them, in the "
    "namespace mayfly-hold, which stays.",
)
@kubectl_options
@ssh_options
@state_directory
@as_json
def wait(
    what: str | None,
    timeout: float | None,
    via: str,
    no_kubernetes: bool,
    hold: bool,
    kubeconfig: Path | None,
    context: str | None,
    ssh_config: Path | None,
    user: str | None,
    sudo: bool,
    concurrency: int,
    state_dir: Path,
    json: bool,
) -> int:
    """Wait for a registry: to be ready, to have reached every node, or to be needed no more."""
    from mayfly.registry.control.client import TimedOut, ask, wait_for_server

    if what is None:
        raise click.UsageError("say what to wait for: --ready, --covered or --safe-to-stop")
    if what == "safe-to-stop":
        from mayfly.registry.cli.safe_to_stop import safe_to_stop
        from mayfly.registry.nodes.kubectl import Kubectl
        from mayfly.registry.nodes.pods import Pods
        from mayfly.registry.nodes.ssh import SSH

        if no_kubernetes and (hold or via == "kubernetes"):
            option = "--hold" if hold else "--via kubernetes"
            raise click.UsageError(f"--no-kubernetes is not for {option}; leave it out")
        if hold and via == "none":
            raise click.UsageError("--hold needs the nodes' images: add --via ssh or kubernetes")
        if no_kubernetes:
            refuse_given(("kubeconfig", "context"), "not for --no-kubernetes")
        if via != "ssh":
            refuse_given(OF_SSH, "for --via ssh alone")
        if via == "none":
            refuse_given(("concurrency",), "for --via ssh or kubernetes alone")
        kubectl = Kubectl(kubeconfig, context)
        carriers: dict[str, Carrier] = {
            "ssh": SSH(ssh_config, user, sudo),
            "kubernetes": Pods(kubectl),
        }
        return safe_to_stop(
            state_dir,
            timeout,
            kubectl=None if no_kubernetes else kubectl,
            carrier=carriers.get(via),
            concurrency=concurrency,
            hold=hold,
            json=json,
        )
    refuse_given(_OF_SAFE_TO_STOP, "for --safe-to-stop alone")
    end = None if timeout is None else time.monotonic() + timeout
    if what == "ready":
        wait_for_server(state_dir, timeout)
    left = None if end is None else max(end - time.monotonic(), 0.1)
    try:
        answer = ask(state_dir, "wait", timeout=left, **{"for": what})
    except TimedOut:
        assert timeout is not None
        answer = _too_late(state_dir, what, timeout)
    if json:
        print_json(answer)
    elif not answer["reached"]:
        echo(f"mayfly: {_unreached(answer, timeout)}", err=True)
    return Exit.DONE if answer["reached"] else Exit.INCOMPLETE


def _too_late(state_dir: Path, what: str, timeout: float) -> Message:
    """Make the answer for a wait that timed out."""
    from mayfly.registry.control.client import TimedOut, ask

    found = ask(state_dir, "status")
    if what == "ready" and found["state"] != "starting":
        raise TimedOut(timeout, "the server did not answer")
    return {"reached": False, "ended": False, "coverage": found["coverage"]}


def _unreached(answer: Message, timeout: float | None) -> str:
    from mayfly.registry.control import status_text
    from mayfly.registry.durations import exact

    when = "the server ended" if answer["ended"] else f"timed out after {exact(timeout or 0)}"
    covered = answer["coverage"]
    return f"{when}: {status_text.progress(covered)}" if covered else f"{when} before it was ready"


def _watch(state_dir: Path, found: Message, json: bool) -> int:
    """Show the status until the server ends, and then its report.

    Args:
        found: the first answer.
    """
    from mayfly.registry.cli import live_screen

    if json:
        show = _watch_json
    elif live_screen.is_able(sys.stdout):
        show = _watch_live
    else:
        show = _watch_lines
    return _show_end(show(state_dir, found), json)


def _answers(state_dir: Path) -> Iterator[Message | TimedOut]:
    """Yield an answer, or that none came in time, each second until the server ends."""
    from mayfly.registry.control.client import TimedOut, ask
    from mayfly.registry.errors import NotRunning

    while True:
        time.sleep(_WATCH_SECONDS)
        try:
            yield ask(state_dir, "status")
        except NotRunning:
            return
        except TimedOut as error:
            yield error


def _watch_json(state_dir: Path, found: Message) -> Message:
    """Print each answer; return the last one."""
    print_json(found)
    for answer in _answers(state_dir):
        if isinstance(answer, Exception):
            echo(f"mayfly: {answer}", err=True)
        else:
            found = answer
            print_json(found)
    return found


def _watch_lines(state_dir: Path, found: Message) -> Message:
    """Print the first answer, and a line for each change; return the last answer."""
    from mayfly.registry.control.live_text import progress_line

    _show_status(found, json=False)
    shown, at = _progress(found), time.monotonic()
    for answer in _answers(state_dir):
        if isinstance(answer, Exception):
            echo(f"{time.strftime('%H:%M:%S')} {answer}")
            continue
        before, found = found, answer
        if _progress(found) != shown or time.monotonic() - at >= _LINE_SECONDS:
            shown, at = _progress(found), time.monotonic()
            echo(f"{time.strftime('%H:%M:%S')} {progress_line(found, before)}")
    return found


def _progress(found: Message) -> tuple[object, ...]:
    """Return the part of an answer whose change is worth a line; amounts change all the time."""
    coverage = found["coverage"]
    matrix = coverage and coverage["matrix"]
    return found["state"], matrix, len(found["warnings"]), len(found["corrupt"])


def _watch_live(state_dir: Path, found: Message) -> Message:
    """Show each answer in place on the terminal; return the last one."""
    from mayfly.registry.cli.live_screen import Screen
    from mayfly.registry.control.client import TimedOut, ask
    from mayfly.registry.control.live_text import frame
    from mayfly.registry.errors import NotRunning

    before: Message | None = None
    answered, next_at = time.monotonic(), time.monotonic() + _WATCH_SECONDS
    silent = 0.0
    with Screen(sys.stdout) as screen:
        while True:
            width, height = screen.size
            screen.draw(frame(found, before, width, height, bar=screen.bar, silent=silent))
            if screen.wait(max(next_at - time.monotonic(), 0)):
                continue
            next_at = time.monotonic() + _WATCH_SECONDS
            try:
                before, found = found, ask(state_dir, "status")
                answered, silent = time.monotonic(), 0.0
            except NotRunning:
                return found
            except TimedOut:
                silent = time.monotonic() - answered


def _show_status(found: Message, json: bool) -> None:
    from mayfly.registry.control import status_text

    if json:
        print_json(found)
    else:
        width = shutil.get_terminal_size((120, 24)).columns
        for line in status_text.status_lines(found, width):
            echo(line)


def _show_end(last: Message, json: bool) -> int:
    """Show the report, since the server has ended."""
    from mayfly.registry.control import report, status_text

    content = report.read(Path(last["report"]), last["pid"])
    if content is None:
        echo("mayfly: the server was killed or crashed: it left no report", err=True)
        return Exit.NOT_RUNNING
    if json:
        print_json(content)
    else:
        click.echo(
            status_text.report_text(content, shutil.get_terminal_size((120, 24)).columns), nl=False
        )
        if claims := status_text.claims_line(content):
            echo(claims)
    return Exit.DONE
