"""The script for a node where writes, pins and removals fail, and where it is interrupted."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from mayfly.registry.nodes.runtimes import RUNTIMES, EmptyNode, Runtime, make_plan
from mayfly.registry.nodes.target import Target, parse
from tests.nodes.test_journal import furnish
from tests.nodes.test_script import NAMES, NUMBERED, REGISTRY, Node, wrappers
from tests.nodes.test_script import dash as dash
from tests.nodes.test_script import node as node
from tests.nodes.test_script import shell as shell
from tests.nodes.test_script import target as target
from tests.support.process import PATIENCE, killed_at_end, poll, text_of
from tests.support.trees import snapshot

FAILER = f"""#!/bin/sh
# Fail at the call number $FAIL_AT. With $SHORT only cp does: it writes a part first, and if that
# is "quiet" says nothing of it.
[ -z "${{SHORT:-}}" ] || [ NAME = cp ] || exec /bin/NAME "$@"
{NUMBERED}
[ "$count" = "${{FAIL_AT:-0}}" ] || exec /bin/NAME "$@"
if [ -n "${{SHORT:-}}" ]; then
    head -c 7 "$1" >"$2"
    [ "$SHORT" != quiet ] || exit 0
fi
echo "NAME: failed for a test" >&2
exit 1
"""


def applied(tree: Mapping[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """A tree without the times of the files that `apply` wrote, also without those in journals."""
    return {
        path: (*one[:3], *one[4:])
        for path, one in tree.items()
        if not path.endswith("journal.json")
    }


@pytest.mark.parametrize("runtime", ["containerd", "podman"])
@pytest.mark.parametrize("short", ["", "loud", "quiet"])
def test_every_change_may_fail(dash: Node, target: Target, runtime: Runtime, short: str) -> None:
    """Either all is as it should be, or the code is not 0; revert brings every byte back."""
    furnish(dash.root)
    before = snapshot(dash.root)
    path = wrappers(dash, FAILER)
    script = dash.script(target, runtime)
    begin, counts, wanted = {}, {}, {}
    for verb in ("apply", "revert"):
        begin[verb] = dash.keep()
        assert dash.run(script, verb, path=path, SHORT=short).returncode == 0
        counts[verb] = dash.count_calls()
        wanted[verb] = applied(snapshot(dash.root))
    assert snapshot(dash.root) == before
    for verb in ("apply", "revert"):
        failed = 0
        for at in range(1, counts[verb] + 1):
            begin[verb]()
            dash.count_calls()
            done = dash.run(script, verb, path=path, FAIL_AT=str(at), SHORT=short)
            what = (verb, at, done.stdout, done.stderr)
            if done.returncode == 0:
                assert applied(snapshot(dash.root)) == wanted[verb], what
            else:
                failed += 1
                assert "mayfly: " in done.stderr, what
            if verb == "apply" and at % 2:
                # Another run of the verb continues from there, too.
                again = dash.run(script, verb)
                assert (again.returncode, applied(snapshot(dash.root))) == (0, wanted[verb]), what
            assert dash.run(script, "revert").returncode == 0, what
            assert snapshot(dash.root) == before, what
        assert failed == counts[verb] if short else failed > 5


READING = ("awk", "cat", "cmp", "cut", "readlink", "sed", "sha256sum", "sort", "stat", "tail", "tr")


@pytest.mark.parametrize("verb", ["apply", "pull", "unpin", "revert"])
def test_what_a_program_reads_may_be_missing(dash: Node, target: Target, verb: str) -> None:
    """A program that cannot read loses nothing, neither files nor what is recorded of pins."""
    furnish(dash.root)
    before = snapshot(dash.root)
    path = wrappers(dash, FAILER, READING)
    script = dash.script(target, "containerd")
    verbs = ["apply", "pull", "unpin", "revert"]
    earlier = verbs[: verbs.index(verb)]
    failed, at, total = 0, 0, 0
    if earlier:
        assert dash.run(script, *earlier).returncode == 0
    begin = dash.keep()
    # Without a failure first, to count the calls.
    while at <= total:
        begin()
        dash.count_calls()
        done = dash.run(script, verb, path=path, FAIL_AT=str(at), STUB_PATH="/usr/bin:/bin")
        what = (verb, at, done.returncode, done.stdout, done.stderr)
        total = total or dash.count_calls()
        failed += done.returncode != 0
        assert at or not failed, what
        recorded = (dash.root / "var/lib/mayfly-node-config/pins").exists()
        assert recorded or not pins(dash), what
        if verb == "unpin" and done.returncode == 0:
            assert not pins(dash), what
        assert dash.run(script, "revert").returncode == 0, what
        assert (snapshot(dash.root), pins(dash)) == (before, set()), what
        at += 1
    assert failed or verb == "pull"


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_disk_that_is_full(node: Node, target: Target, verb: str) -> None:
    """No file can grow beyond some bytes, the shell's own writes included; then it can again."""
    furnish(node.root)
    before = node.look()
    script = node.script(target, "containerd")
    assert node.run(script, "apply").returncode == 0
    whole = applied(node.look())
    if verb == "apply":
        assert node.run(script, "revert").returncode == 0
    begin = node.keep()
    failed = 0
    sizes = [0, 1, 40, 130, 200, 330, 450, 600, 800, 1100, 1500, 2100, 3000, 100_000]
    for size in sizes:
        begin()
        done = subprocess.run(
            [*node.shell, "-s", "--", verb],
            input=script,
            env={
                "PATH": f"{node.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
                "STUB_STATE": str(node.state),
                "CONTAINERD_ADDRESS": "/stub.sock",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            # SIGXFSZ stays ignored, so that a write that is too long fails like one on a full disk.
            restore_signals=False,
            preexec_fn=lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        )
        what = (size, done.stdout, done.stderr)
        if done.returncode:
            failed += 1
            assert node.run(script, verb).returncode == 0, what
        assert applied(node.look()) == (whole if verb == "apply" else applied(before)), what
    assert 3 < failed < len(sizes)
    assert node.run(script, "revert").returncode == 0
    assert node.look() == before


def test_saved_file_that_was_damaged_is_saved_again(dash: Node, target: Target) -> None:
    """What an interrupted run left beside the journal is not trusted by its name."""
    furnish(dash.root)
    before = snapshot(dash.root)
    script = dash.script(target, "containerd")
    assert dash.run(script, "apply").returncode == 0
    journal = dash.root / "var/lib/mayfly-node-config/containerd"
    saved = [path.name for path in journal.iterdir() if path.name != "journal.json"]
    assert saved
    assert dash.run(script, "revert").returncode == 0
    journal.mkdir(parents=True)
    for name in saved:
        (journal / name).write_text("half")
    assert dash.run(script, "apply").returncode == 0
    assert dash.run(script, "revert").returncode == 0
    assert snapshot(dash.root) == before


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_renewed_file_keeps_its_place(dash: Node, target: Target, runtime: Runtime) -> None:
    """The journal's order is the one in which files are put back: a CA after what names it."""
    script = dash.script(target, runtime)
    assert dash.run(script, "apply").returncode == 0
    file = dash.root / f"var/lib/mayfly-node-config/{runtime}/journal.json"
    before = list(json.loads(file.read_text())["entries"])
    renewed = replace(target, ca=b"another\n")
    assert dash.run(dash.script(renewed, runtime), "apply").returncode == 0
    entries = json.loads(file.read_text())["entries"]
    assert list(entries) == before
    assert {len(one["written"]) for path, one in entries.items() if path.endswith("ca.crt")} == {2}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_notes_about_files_that_were_written(dash: Node, runtime: Runtime) -> None:
    """The plan's commands and notes are given once, when the files are written."""
    plain = parse("http://10.0.0.5:5000", None, ["docker.io", "quay.io"])
    plan = make_plan(runtime, plain, EmptyNode())
    paths = {file.path for file in plan.files} | {""}
    script = dash.script(plain, runtime)
    done = dash.run(script, "apply")
    assert done.returncode == 0, done.stderr
    for note in plan.notes:
        # The node has no CRI-O.
        assert (f"note: {note}\n" in done.stderr) == (note.file in paths and not note.program)
    for command in plan.activate:
        assert f"after: {command}\n" in done.stderr
    assert runtime != "docker" or plan.activate
    assert "crio" not in done.stderr
    assert dash.run(script, "apply").stderr == ""


def test_note_about_a_file_to_edit_by_hand(dash: Node) -> None:
    """A docker.json that exists is not written; the command is still named, after the text."""
    (dash.root / "etc/docker").mkdir()
    (dash.root / "etc/docker/daemon.json").write_text("{}")
    done = dash.run(dash.script(parse("http://10.0.0.5:5000", None), "docker"), "apply")
    assert "add to it by hand" in done.stderr
    assert "systemctl reload docker" in done.stderr


_PULLED: dict[tuple[object, ...], Callable[[Path], None]] = {}
"""(shell, runtime, names) → gives a node what the script made of one; see `pulled`."""


def pulled(node: Node, target: Target, runtime: Runtime, *names: str) -> str:
    """A node that has images by the script, which is returned.

    The script pulls them once for each shell; other nodes get a copy of what it made.
    """
    script = node.script(target, runtime, names or NAMES)
    key = (*node.shell, runtime, names)
    if key in _PULLED:
        _PULLED[key](node.root.parent)
    else:
        done = node.run(script, "apply", "pull", "--quiet")
        assert done.returncode == 0, done.stderr
        _PULLED[key] = node.keep()
    return script


def pins(node: Node) -> set[str]:
    """The pins of the stub's images."""
    return {path.name for path in node.state.glob("pin-*")}


def images(node: Node) -> set[str]:
    """The stub's images."""
    return {path.name for path in node.state.glob("img-*")}


@pytest.mark.parametrize("verb", ["unpin", "revert"])
@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_pins_are_removed_beside_another_runtime(
    node: Node, target: Target, verb: str, runtime: Runtime
) -> None:
    """Containerd has the pins, whichever runtime the script uses now."""
    script = pulled(node, target, "containerd")
    done = node.run(script, verb, "--runtime", runtime)
    assert (done.returncode, pins(node)) == (0, set()), done.stderr


@pytest.mark.parametrize("verb", ["unpin", "revert"])
@pytest.mark.parametrize("lost", ["program", "daemon"])
def test_containerd_that_does_not_answer(node: Node, target: Target, verb: str, lost: str) -> None:
    """Pins stay recorded, files are put back, the code says it, and a later run finishes."""
    before = node.look()
    script = pulled(node, target, "containerd")
    ctr = (node.bin / "ctr").read_text()
    if lost == "program":
        (node.bin / "ctr").unlink()
    else:
        (node.bin / "ctr").write_text("#!/bin/sh\nexit 1\n")
    done = node.run(script, verb, "--runtime", "docker")
    assert done.returncode == 3
    assert "containerd does not answer" in done.stderr
    assert (node.root / "var/lib/mayfly-node-config/pins").exists()
    if verb == "revert":
        assert {path for path in node.look() if path not in before} == {
            "var/lib/mayfly-node-config",
            "var/lib/mayfly-node-config/pins",
        }
    (node.bin / "ctr").write_text(ctr)
    (node.bin / "ctr").chmod(0o755)
    assert node.run(script, "revert").returncode == 0
    assert (pins(node), node.look()) == (set(), before)


@pytest.mark.parametrize("verb", ["unpin", "revert"])
def test_unpinning_that_fails(node: Node, target: Target, verb: str) -> None:
    """It is named with the reason, counted, and stays recorded; the others are unpinned."""
    script = pulled(node, target, "containerd")
    (node.state / "unlabelled").write_text(NAMES[1])
    done = node.run(script, verb)
    assert done.returncode == 3
    assert f"mayfly: {NAMES[1]}: not unpinned: label: no" in done.stderr
    assert f"unpinned {NAMES[1]}" not in done.stdout
    assert pins(node) == {f"pin-{NAMES[1].replace('/', '_')}"}
    record = node.root / "var/lib/mayfly-node-config/pins"
    assert record.read_text() == f"{NAMES[1]}\n"
    (node.state / "unlabelled").unlink()
    assert node.run(script, verb).returncode == 0
    assert (pins(node), record.exists()) == (set(), False)


def test_unpinning_an_image_that_is_gone(node: Node, target: Target) -> None:
    """Its pin went with it."""
    script = pulled(node, target, "containerd")
    (node.state / "unlabelled").write_text(NAMES[1])
    (node.state / f"img-{NAMES[1].replace('/', '_')}").unlink()
    done = node.run(script, "unpin")
    assert done.returncode == 0, done.stderr
    assert not (node.root / "var/lib/mayfly-node-config/pins").exists()


@pytest.mark.parametrize("runtime", ["containerd", "docker"])
def test_removal_that_fails(node: Node, target: Target, runtime: Runtime) -> None:
    """It is named with the reason, counted, and stays recorded; one that is gone is removed."""
    script = pulled(node, target, runtime)
    (node.state / "unremovable").write_text(NAMES[1])
    (node.state / f"img-{NAMES[0].replace('/', '_')}").unlink()
    done = node.run(script, "unpin", "--prune")
    assert done.returncode == 3
    assert f"mayfly: {NAMES[1]}: not removed: rm" in done.stderr
    assert f"removed {NAMES[1]}" not in done.stdout
    assert images(node) == {f"img-{NAMES[1].replace('/', '_')}"}
    (node.state / "unremovable").unlink()
    assert node.run(script, "unpin", "--prune").returncode == 0
    assert images(node) == set()
    assert not list((node.root / "var/lib/mayfly-node-config").glob("pulled-*"))


def test_docker_removes_what_it_pulled_by_digest(node: Node, target: Target) -> None:
    """Docker has such an image by the registry's name; --keep names it by the image's own."""
    name = f"quay.io/team/app@sha256:{'a' * 64}"
    script = pulled(node, target, "docker", name)
    assert images(node) == {f"img-{REGISTRY}/{name}".replace("/", "_")}
    keep = node.root / "keep"
    keep.write_text(f"{name}\n")
    assert node.run(script, "unpin", "--prune", "--keep", str(keep)).returncode == 0
    assert len(images(node)) == 1
    done = node.run(script, "unpin", "--prune")
    assert (done.returncode, images(node)) == (0, set()), done.stderr


def test_another_runtime_does_not_prune(node: Node, target: Target) -> None:
    """An image of the same name in another runtime is not the one that was pulled."""
    script = pulled(node, target, "containerd")
    done = node.run(script, "unpin", "--prune", "--runtime", "docker")
    assert done.returncode == 3
    assert "--runtime containerd" in done.stderr
    assert len(images(node)) == 3


@pytest.mark.parametrize(
    "line",
    [
        "web:1", "library/web:1", "docker.io/web:1", "quay.io/team/app", "index.docker.io/a/b:1",
        "registry-1.docker.io/a/b:1", f"quay.io/a@sha256:{'a' * 63}", "quay.io/a:1 # a comment",
        f"quay.io/a:1@sha256:{'a' * 64}", "Quay.io/a:1", "quay.io/A:1", "https://quay.io/a:1", "*",
        "quay.io/a:", "quay.io/a@", "quay.io/", "/a:1", "quay.io/a:1 quay.io/b:2", "\x1b[31m",
    ],
)  # fmt: skip
def test_kept_name_that_is_not_whole(node: Node, target: Target, line: str, tmp_path: Path) -> None:
    """Its image would be removed, as no record has that name: refused before any change."""
    script = pulled(node, target, "containerd")
    keep = tmp_path / "keep"
    keep.write_text(f"{NAMES[0]}\n{line}\n")
    before = (images(node), pins(node), node.look())
    for verbs in (["unpin"], ["apply", "unpin"]):
        done = node.run(script, *verbs, "--prune", "--keep", str(keep))
        assert (done.returncode, done.stdout) == (2, "")
        assert "line 2" in done.stderr
        assert "\x1b" not in done.stderr
        assert (images(node), pins(node), node.look()) == before


@pytest.mark.parametrize("text", ["", "# none\n", None])
def test_list_of_kept_names_that_has_none(
    node: Node, target: Target, text: str | None, tmp_path: Path
) -> None:
    """A list that is missing or names nothing would keep nothing."""
    script = pulled(node, target, "containerd")
    if text is not None:
        (tmp_path / "keep").write_text(text)
    done = node.run(script, "unpin", "--prune", "--keep", str(tmp_path / "keep"))
    assert (done.returncode, len(images(node)), len(pins(node))) == (2, 3, 3)


def test_kept_names_are_trimmed(node: Node, target: Target, tmp_path: Path) -> None:
    """Line ends of Windows, blanks around, comments and empty lines."""
    names = (*NAMES, f"quay.io/team/app@sha256:{'a' * 64}", "localhost:5000/x:1")
    script = pulled(node, target, "containerd", *names)
    keep = tmp_path / "keep"
    keep.write_bytes(
        f"# kept\r\n\r\n  # more\n{names[0]}\r\n\t {names[1]} \t\n{names[3]}\n{names[4]}".encode()
    )
    done = node.run(script, "unpin", "--prune", "--keep", str(keep))
    assert done.returncode == 0, done.stderr
    assert pins(node) == {f"pin-{one.replace('/', '_')}" for one in names if one != names[2]}
    assert images(node) == {f"img-{one.replace('/', '_')}" for one in names if one != names[2]}


def test_a_pin_that_fails(node: Node, target: Target) -> None:
    """It is no success, and the reason is named; a runtime that has no pins is one."""
    (node.state / "unlabelled").write_text(NAMES[1])
    script = node.script(target, "containerd")
    done = node.run(script, "apply", "pull")
    assert done.returncode == 3
    assert f"mayfly: {NAMES[1]}: pulled, but not pinned: label: no" in done.stderr
    assert f"pulled {NAMES[0]}" in done.stdout
    assert f"pulled {NAMES[1]}" not in done.stdout
    assert node.run(script, "revert", "--runtime", "docker").returncode == 3


SLOW = """#!/bin/sh
case " $* " in
    *" pull "*)
        echo $$ >>"$STUB_STATE/pulling"
        [ ! -e "$STUB_STATE/deaf" ] || trap '' TERM
        sleep 400 & wait
        sleep 400
        echo ended >>"$STUB_STATE/ended" ;;
esac
"""


def _running(node: Node) -> list[str]:
    """The processes that have the stub's directory in their environment."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            environment = (directory / "environ").read_bytes()
            words = (
                (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except OSError:
            continue
        if f"STUB_STATE={node.state}".encode() in environment.split(b"\0"):
            found.append(f"{directory.name} {words}")
    return found


def _signalled(number: signal.Signals, *, group: bool) -> Callable[[subprocess.Popen[str]], None]:
    """Send a signal to the script, or to its whole process group."""

    def end(process: subprocess.Popen[str]) -> None:
        if group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)

    return end


def _end_input(process: subprocess.Popen[str]) -> None:
    """End the script's input, as sshd does after the connection broke."""
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE])
@pytest.mark.parametrize("group", [True, False], ids=["group", "parent"])
def test_signal_while_it_pulls(
    node: Node, target: Target, number: signal.Signals, group: bool
) -> None:
    """Nothing that the script started continues, nothing holds the lock, and it can be reverted."""
    code = _end_while_it_pulls(node, target, _signalled(number, group=group))
    assert code == 128 + number


def test_end_of_input_while_it_pulls(node: Node, target: Target) -> None:
    """With --attended it is a signal, for the connection is gone."""
    code = _end_while_it_pulls(node, target, _end_input, "--attended")
    assert code == 128 + signal.SIGTERM


def test_end_of_input_of_a_script_that_was_killed(dash: Node, target: Target) -> None:
    """What waits for the end of the input ends, and ends nothing: the number may be another's."""

    def shells() -> list[str]:
        return [line for line in _running(dash) if line.partition(" ")[2].startswith("dash -s")]

    def end(process: subprocess.Popen[str]) -> None:
        poll(lambda: len(shells()) == 6)  # the script, four workers, and the one that waits
        process.kill()
        _end_input(process)
        poll(lambda: len(shells()) == 4)
        for line in _running(dash):
            os.kill(int(line.split()[0]), signal.SIGKILL)

    assert _end_while_it_pulls(dash, target, end, "--attended") == -signal.SIGKILL


def _end_while_it_pulls(
    node: Node, target: Target, end: Callable[[subprocess.Popen[str]], None], *options: str
) -> int:
    """End a script that pulls, see that nothing is left, and revert it; its exit code."""
    before = node.look()
    script = node.script(target, "containerd", tuple(f"quay.io/a/b:{i}" for i in range(6)))
    whole = (node.bin / "crictl").read_text()
    (node.bin / "crictl").write_text(SLOW)
    process = subprocess.Popen(
        [*node.shell, "-s", "--", "apply", "pull", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            "PATH": f"{node.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
            "STUB_STATE": str(node.state),
            "CONTAINERD_ADDRESS": "/stub.sock",
        },
        start_new_session=True,
    )
    pulling = node.state / "pulling"
    with killed_at_end(process):
        assert process.stdin is not None
        process.stdin.write(script)
        process.stdin.flush()
        if not options:
            _end_input(process)
        poll(lambda: len(text_of(pulling).split()) >= 4, process.poll)
        end(process)
        _, errors = process.communicate(timeout=PATIENCE)
    assert "illed" not in errors
    poll(lambda: not _running(node), lambda: _running(node))
    assert len(pulling.read_text().split()) == 4
    (node.bin / "crictl").write_text(whole)
    assert node.run(script, "revert").returncode == 0
    assert node.look() == before
    return process.returncode


def test_pull_that_ignores_a_signal_is_killed(dash: Node, target: Target) -> None:
    """After ten seconds."""
    (dash.state / "deaf").touch()
    began = time.monotonic()
    test_signal_while_it_pulls(dash, target, signal.SIGTERM, group=False)
    assert time.monotonic() - began > 5
