"""The script for a node: `node-config` in shell, with the same journal, killed at every step.

Programs of the node are stubs that keep their state in files; `tests/clients/test_node_script.py`
has the real ones.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mayfly.registry.nodes import crio, rancher
from mayfly.registry.nodes.commands import node_commands
from mayfly.registry.nodes.journal import NodeConfig
from mayfly.registry.nodes.runtimes import RUNTIMES, Runtime, notes_after_revert
from mayfly.registry.nodes.script import NodeImage, images_of, node_script, quote
from mayfly.registry.nodes.target import NodeCredential, Target, parse
from mayfly.registry.pki.errors import TrustError
from tests.nodes.pasting import break_off, killed_at_each_change, paste, put_own_hosts, way_back
from tests.nodes.test_journal import furnish
from tests.support.commands import mayfly
from tests.support.process import PATIENCE, killed_at_end, need, text_of
from tests.support.trees import snapshot

SHELLS = {
    "dash": ["dash"],
    "bash": ["bash", "--posix"],
    "busybox": ["busybox", "sh"],
}
REGISTRY = "10.0.0.5:5000"
PASSWORD = "s3cret-" + "x" * 20
NAMES = ("docker.io/library/web:1", "quay.io/team/app:2", f"{REGISTRY}/own/tool:3")
STUBS = Path(__file__).with_name("stub_runtime.sh")


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> list[str]:
    """Each shell that the script is for."""
    found: list[str] = SHELLS[request.param]
    need(found[0])
    return found


@pytest.fixture
def target(ca_pem: bytes) -> Target:
    """A registry with a CA of its own, a node's credential, and two upstreams."""
    credential = NodeCredential("robot+n1", PASSWORD)
    return parse(REGISTRY, ca_pem, ["docker.io", "quay.io"], credential=credential)


class Node:
    """A node in a directory, with stubs of its programs.

    Attributes:
        root: of its file system.
        state: of its runtime: one file for each image, and the log of arguments.
        socket: of its containerd.
        calls: a directory with a file for each call of a program that has `NUMBERED` in it.
    """

    socket = "/stub.sock"

    def __init__(self, directory: Path, root: Path, shell: list[str]) -> None:
        self.root = root
        self.state = directory / "state"
        self.calls = self.state / "calls"
        self.bin = directory / "bin"
        self.shell = shell
        self.calls.mkdir(parents=True)
        self.bin.mkdir()
        for name in ("docker", "podman", "ctr", "crictl", "curl"):
            shutil.copy(STUBS, self.bin / name)
            (self.bin / name).chmod(0o755)

    def script(
        self, target: Target, runtime: Runtime | None, images: tuple[str, ...] = NAMES
    ) -> str:
        """The script, for this node's directory."""
        wanted = images_of(images, target.registry)
        text = node_script(target, "n1", wanted, runtime=runtime)
        return text.replace("tree=''\n", f"tree='{self.root}'\n", 1)

    def run(
        self, script: str, *arguments: str, path: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it as `ssh NODE sh` does, from standard input."""
        environment = {
            "PATH": f"{path}{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
            "STUB_STATE": str(self.state),
            "CONTAINERD_ADDRESS": self.socket,
            **variables,
        }
        return subprocess.run(
            [*self.shell, "-s", "--", *arguments],
            input=script,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            start_new_session=True,
        )

    def keep(self) -> Callable[..., None]:
        """Copy the root and the runtime's state; the function that brings back what was there.

        It takes the place of a run of the script that is not what a test is about. Its argument is
        the directory of another node, which then has that state.
        """
        kept = Path(tempfile.mkdtemp(dir=self.root.parent, prefix="kept-"))
        subprocess.run(["cp", "--archive", self.root, self.state, kept], check=True)
        return partial(self.bring_back, kept)

    def bring_back(self, kept: Path, directory: Path | None = None) -> None:
        """Put the root and the runtime's state of a copy in the place of this node's.

        Args:
            kept: the directory of the copy.
            directory: of another node, to which that is done.
        """
        directory = directory or self.root.parent
        names = [self.root.name, self.state.name]
        subprocess.run(["rm", "-rf", *names], cwd=directory, check=True)
        subprocess.run(["cp", "--archive", *names, directory], cwd=kept, check=True)

    def sleep_at_once(self) -> None:
        """Have `sleep` return at once."""
        (self.bin / "sleep").write_text("#!/bin/sh\n")
        (self.bin / "sleep").chmod(0o755)

    def become(self, kind: str) -> Runtime:
        """Be one of RUNTIMES, or a node of k3s or RKE2; the runtime to use."""
        if kind not in rancher.PRODUCTS:
            return next(one for one in RUNTIMES if one == kind)
        self.socket = "/run/k3s/containerd/containerd.sock"
        (self.root / "var/lib/rancher" / kind).mkdir(parents=True)
        return "containerd"

    def look(self) -> dict[str, tuple[object, ...]]:
        """All that `revert` has to bring back; busybox sets times of whole seconds only."""
        found = snapshot(self.root)
        if self.shell[0] == "busybox":
            for path, one in found.items():
                if one[0] == "file" and isinstance(one[3], int):
                    found[path] = (*one[:3], one[3] // 10**9, *one[4:])
        return found

    def count_calls(self) -> int:
        """The number of calls since the last time; the next one is number 1."""
        calls = list(self.calls.iterdir())
        for call in calls:
            call.unlink()
        return len(calls)

    def arguments(self) -> str:
        """All arguments that a program got, as `ps` would have shown them."""
        log = self.state / "arguments"
        return text_of(log)


@pytest.fixture
def node(tmp_path: Path, root: Path, shell: list[str]) -> Node:
    """A node that has nothing of Mayfly."""
    return Node(tmp_path, root, shell)


@pytest.fixture
def dash(tmp_path: Path, root: Path) -> Node:
    """The same in one shell, where the others add nothing."""
    return Node(tmp_path, root, SHELLS["dash"])


def test_script_is_clean(target: Target) -> None:
    """shellcheck has nothing to say about it, with data in it or not."""
    need("shellcheck")
    for given_target in (target, parse("127.0.0.1:5000"), parse("https://r.example/below")):
        text = node_script(given_target, "n1", images_of(NAMES, REGISTRY))
        done = subprocess.run(
            ["shellcheck", "-s", "sh", "-"], input=text, capture_output=True, text=True, check=False
        )
        assert done.stdout == ""


@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
def test_quoted_text_is_one_word(text: str) -> None:
    """Whatever it is, each shell takes it for exactly that text."""
    for shell in SHELLS.values():
        need(shell[0])
        script = f"printf '%s\\n' {quote(text)} $#; exit\n$(touch /tmp/never)\n"
        done = subprocess.run(
            [*shell, "-s"], input=script.encode(), capture_output=True, check=False
        )
        assert done.stdout == text.encode() + b"\n0\n"
        assert done.stderr == b""


@pytest.mark.parametrize(
    "name",
    [
        "$(touch x)", "`id`", "a'b", 'a"b', "a b", "a\nb", "a;b", "a|b", "a&b", "a>b", "*", "?", "",
        "-x", "a\\b", "a$b", "ä", "a\tb", "a\0b", "#a", "~a", "a{b,c}", "!a",
    ],
)  # fmt: skip
def test_hostile_names_of_images_are_refused(target: Target, name: str) -> None:
    """A name that a shell could take for more than a word is not the name of an image."""
    for image in (NodeImage(name, ("a:1",)), NodeImage("docker.io/a:1", (name,))):
        with pytest.raises(TrustError):
            node_script(target, "n1", [image])
    with pytest.raises(TrustError):
        images_of([name], REGISTRY)


@pytest.mark.parametrize("name", ["n'; touch x; '", "$(touch x)", "`touch x`", 'n"1', "a\\b", "ä"])
def test_hostile_name_of_a_node(target: Target, root: Path, tmp_path: Path, name: str) -> None:
    """It is quoted in the script and in the JSON, and percent-encoded in the path."""
    made = Node(tmp_path, root, SHELLS["dash"])
    text = node_script(target, name, images_of(NAMES, REGISTRY), runtime="podman")
    text = text.replace("tree=''\n", f"tree='{root}'\n", 1)
    done = made.run(text, "apply", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["node"] == name
    assert not (tmp_path / "x").exists()
    with pytest.raises(TrustError):
        node_script(target, "n\n1", [])


def test_names_of_images() -> None:
    """A node knows an image by its full name, docker asks this registry for its path here."""
    digest = "sha256:" + "a" * 64
    names = ["web", f"quay.io/a/b@{digest}", f"{REGISTRY}/x:2", "r.example:99/p/q:1", "web:latest"]
    assert images_of(names, REGISTRY) == [
        NodeImage("docker.io/library/web:latest", ("library/web:latest", "web:latest")),
        NodeImage(f"quay.io/a/b@{digest}", (f"quay.io/a/b@{digest}", f"a/b@{digest}")),
        NodeImage(f"{REGISTRY}/x:2", ("x:2",)),
        NodeImage("r.example:99/p/q:1", ("r.example/p/q:1", "p/q:1")),
    ]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_files_are_those_of_node_config(
    node: Node, target: Target, runtime: Runtime, tmp_path: Path
) -> None:
    """One plan, two renderings: the same files with the same modes, and nothing else."""
    done = node.run(node.script(target, runtime), "apply")
    assert done.returncode == 0, done.stderr
    other = tmp_path / "other"
    for directory in ("etc", "var/lib"):
        (other / directory).mkdir(parents=True)
    planned = target if runtime == "containerd" else parse(REGISTRY, target.ca, target.mirrors)
    NodeConfig(other, runtime).apply(planned)
    expected = {
        path: one for path, one in snapshot(other).items() if "mayfly-node-conf" not in path
    }
    found = {
        path: one for path, one in snapshot(node.root).items() if "mayfly-node-conf" not in path
    }
    assert {path: (one[:2], one[-1]) for path, one in found.items()} == {
        path: (one[:2], one[-1]) for path, one in expected.items()
    }


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("furnished", [False, True], ids=["bare", "furnished"])
def test_revert_brings_back_every_byte(
    node: Node, target: Target, runtime: Runtime, furnished: bool
) -> None:
    """Content, mode, owner, times and links, with apply run twice; also by `node-config revert`."""
    if furnished:
        furnish(node.root)
    before = node.look()
    script = node.script(target, runtime)
    assert node.run(script, "apply").returncode == 0
    applied = node.look()
    again = node.run(script, "apply")
    assert "wrote" not in again.stdout
    assert node.look() == applied
    done = node.run(script, "revert")
    put_back = [f"/{path}" for path in applied if applied[path] != before.get(path)]
    notes = "".join(f"note: {note}\n" for note in notes_after_revert(put_back) if not note.program)
    assert (done.returncode, done.stderr) == (0, notes)
    assert node.look() == before
    assert node.run(script, "revert").returncode == 0
    assert node.look() == before
    # The other rendering reads the same journal.
    assert node.run(script, "apply").returncode == 0
    NodeConfig(node.root, runtime).revert()
    assert node.look() == before
    planned = target if runtime == "containerd" else parse(REGISTRY, target.ca, target.mirrors)
    NodeConfig(node.root, runtime).apply(planned)
    done = node.run(script, "revert")
    if furnished and runtime == "docker" and shutil.which("setfattr") is None:
        assert (done.returncode, "no setfattr" in done.stderr) == (1, True)
        NodeConfig(node.root, runtime).revert()
    else:
        assert done.returncode == 0, done.stderr
    assert node.look() == before


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_script_that_only_reverts(
    node: Node, target: Target, runtime: Runtime, tmp_path: Path
) -> None:
    """It is made without a registry, brings back every byte and pin, and does nothing else."""
    before = node.look()
    assert node.run(node.script(target, runtime), "apply", "pull").returncode == 0
    applied = node.look()
    made = mayfly("node", "script", "--revert", "--state-dir", tmp_path / "none")
    assert (made.returncode, made.stderr) == (0, "")
    script = made.stdout.replace("tree=''\n", f"tree='{node.root}'\n", 1)
    assert PASSWORD not in script and REGISTRY not in script
    for verbs in (["apply"], ["revert", "pull"], ["status"]):
        done = node.run(script, *verbs)
        assert (done.returncode, "nothing but: revert" in done.stderr) == (2, True)
        assert node.look() == applied
    assert node.run(script, "--quiet").returncode == 0
    assert node.look() == before
    assert node.run(script, "revert").returncode == 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_another_registry_takes_the_place_of_the_first(
    dash: Node, target: Target, runtime: Runtime, ca_pem: bytes
) -> None:
    """What only the first one's plan had is taken back, and the original is still the first."""
    furnish(dash.root)
    before = snapshot(dash.root)
    assert dash.run(dash.script(target, runtime), "apply").returncode == 0
    second = parse("10.0.0.6:5000", ca_pem, ["ghcr.io"], credential=target.credential)
    script = dash.script(second, runtime, ("ghcr.io/a/b:1",))
    done = dash.run(script, "apply")
    assert done.returncode == 0, done.stderr
    assert not any(REGISTRY in path for path in snapshot(dash.root))
    assert dash.run(script, "revert").returncode == 0
    assert snapshot(dash.root) == before


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_edited_files_are_not_lost(dash: Node, target: Target, runtime: Runtime) -> None:
    """Neither apply nor revert touches a file that somebody changed, unless told to."""
    script = dash.script(target, runtime)
    before = snapshot(dash.root)
    assert dash.run(script, "apply").returncode == 0
    edited = next(path for path in sorted(dash.root.joinpath("etc").rglob("*")) if path.is_file())
    edited.write_text("edited")
    state = snapshot(dash.root)
    for verb in ("apply", "revert"):
        done = dash.run(script, verb)
        assert done.returncode == 2
        assert "changed by somebody" in done.stderr
        assert snapshot(dash.root) == state
    assert dash.run(script, "revert", "--force").returncode == 0
    assert snapshot(dash.root) == before


def test_secrets_are_private_and_do_not_stay(node: Node, target: Target) -> None:
    """Only hosts.toml and what the journal saves may hold it, mode 0600; no program's arguments."""
    script = node.script(target, "containerd")
    done = node.run(script)
    assert done.returncode == 0, done.stderr
    assert target.credential is not None
    authorization = target.credential.authorization
    words = (PASSWORD, authorization, authorization.partition(" ")[2])
    holders = [
        path
        for path in node.root.rglob("*")
        if path.is_file() and any(word in path.read_text() for word in words)
    ]
    assert {path.name for path in holders} == {"hosts.toml"}
    assert {path.stat().st_mode & 0o777 for path in holders} == {0o600}
    assert node.arguments()
    for word in words:
        assert word not in node.arguments()
        assert word not in done.stdout + done.stderr
    assert node.run(script, "revert").returncode == 0
    for path in node.root.rglob("*"):
        assert not path.is_file() or not any(word in path.read_text() for word in words)


NUMBERED = """
# Take the next number: each is for one call, although programs of a pipeline run at the same time.
[ -d "$STUB_STATE/calls" ] || exit 99
count=1
set -C
until true >"$STUB_STATE/calls/$count"; do count=$((count + 1)); done 2>/dev/null
set +C
"""
"""The part of a program that sets $count to the number of its call."""

KILLER = f"""#!/bin/sh
# Kill the script, all of its processes, before the change number $KILL_AT.
{NUMBERED}
[ "$count" != "${{KILL_AT:-0}}" ] || kill -9 0
exec /bin/NAME "$@"
"""

KEEPER = f"""#!/bin/sh
# Copy the node, as a kill -9 before this change would leave it; then make the change.
{NUMBERED}
/bin/mkdir "$KEPT/$count" || exit 99
/bin/cp --archive "$NODE" "$STUB_STATE" "$KEPT/$count" || exit 99
exec /bin/NAME "$@"
"""
CHANGING = ("mv", "rm", "rmdir", "mkdir", "cp", "chmod", "chown", "ln", "touch", "sync")


def wrappers(node: Node, text: str, names: Iterable[str] = CHANGING) -> str:
    """A directory with a program for each of some names; to be first in PATH.

    Args:
        text: of each program, with /bin/NAME for the real one and NAME for its name.
    """
    directory = Path(tempfile.mkdtemp(dir=node.bin.parent))
    for name in names:
        real = shutil.which(name, path="/bin:/usr/bin")
        assert real is not None
        (directory / name).write_text(text.replace("/bin/NAME", real).replace("NAME", name))
        (directory / name).chmod(0o755)
    return f"{directory}:"


def _killed_at_each_change(node: Node, script: str, verb: str) -> Iterator[int]:
    """Have the node as kill -9 before each change of a verb, and after the last, would leave it.

    The verb runs once, which keeps a copy of the node before each change.

    Yields:
        The number of the change.
    """
    kept = Path(tempfile.mkdtemp(dir=node.bin.parent))
    node.count_calls()
    path = wrappers(node, KEEPER)
    done = node.run(script, verb, path=path, KEPT=str(kept), NODE=str(node.root))
    assert done.returncode == 0, done.stderr
    count = node.count_calls()
    assert count == len(list(kept.iterdir())) > 10
    yield count + 1
    for at in range(1, count + 1):
        node.bring_back(kept / str(at))
        yield at


@pytest.mark.parametrize("kind", ["containerd", "podman", "k3s"])
def test_killed_at_every_step(dash: Node, target: Target, kind: str) -> None:
    """kill -9 before and after each change of apply and of revert: revert brings all back."""
    furnish(dash.root)
    runtime = dash.become(kind)
    before = snapshot(dash.root)
    script = dash.script(target, runtime)
    for verb in ("apply", "revert"):
        if verb == "revert":
            assert dash.run(script, "apply").returncode == 0
        for at in _killed_at_each_change(dash, script, verb):
            done = dash.run(script, "revert")
            assert done.returncode == 0, (verb, at, done.stderr)
            assert snapshot(dash.root) == before, (verb, at)


def _paste(node: Node, target: Target, runtime: Runtime, *mirrors: str) -> None:
    """Paste the commands of `mayfly node-config show` on a node."""
    pasted = replace(target, mirrors=mirrors)
    text, state = node_commands(pasted, [runtime]), str(node.state)
    paste(text, node.root, str(node.bin), node.shell, STUB_STATE=state)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_revert_takes_a_paste_back(node: Node, target: Target, runtime: Runtime) -> None:
    """Every byte that was there before, and the login; also after apply on top of it."""
    furnish(node.root)
    put_own_hosts(node.root)
    before = node.look()
    script = node.script(target, runtime)
    for verbs in (["revert"], ["apply", "revert"]):
        _paste(node, target, runtime, "quay.io", "ghcr.io")
        assert "applied\n" in node.run(script, "status").stdout
        for verb in verbs:
            done = node.run(script, verb)
            assert done.returncode == 0, done.stderr
            assert "somebody" not in done.stderr
        if runtime != "containerd":
            assert f"logged out of {REGISTRY}" in done.stdout
            assert f"{runtime} logout {REGISTRY}" in node.arguments()
        assert node.look() == before


def test_revert_of_a_paste_that_broke_off(node: Node, target: Target) -> None:
    """Nothing of the file that it was writing is left, which may hold a credential."""
    before = node.look()
    break_off(node_commands(target, ["containerd"]), node.root, node.state / "killing")
    done = node.run(node.script(target, "containerd"), "revert")
    assert (done.returncode, node.look()) == (0, before), done.stderr


@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_revert_that_cannot_log_out(node: Node, target: Target, runtime: Runtime) -> None:
    """It ends with 3 and notes the login, and no more, until a later one logs out."""
    before = node.look()
    script = node.script(target, runtime)
    _paste(node, target, runtime)
    (node.state / "dead").touch()
    for _ in range(2):
        done = node.run(script, "revert")
        assert done.returncode == 3
        assert f"run on the node: {runtime} logout {REGISTRY}" in done.stderr
        left = {path: one for path, one in node.look().items() if before.get(path) != one}
        journal = "var/lib/mayfly-node-config"
        noted = node.root / journal / runtime / "logins"
        assert {path for path in left if path.split("/")[-1] not in ("lib", "etc")} == {
            journal,
            f"{journal}/{runtime}",
            f"{journal}/{runtime}/logins",
        }
        assert noted.read_text() == f"{REGISTRY}\n"
    (node.state / "dead").unlink()
    done = node.run(script, "revert")
    assert (done.returncode, node.look()) == (0, before), done.stderr


def test_revert_without_the_runtime_that_is_logged_in(node: Node, target: Target) -> None:
    """Nothing can log out any more: it says so once, and is done."""
    before = node.look()
    found = 'has() { command -v "$1" '
    script = node.script(target, None)
    assert found in script
    # This machine may have one.
    script = script.replace(found, 'has() { [ "$1" != docker ] && command -v "$1" ')
    _paste(node, target, "docker")
    done = node.run(script, "revert")
    assert (done.returncode, node.look()) == (0, before), done.stderr
    assert f"docker is not installed any more, so its file of logins may still have {REGISTRY}" in (
        done.stderr
    )
    assert node.run(script, "revert").stderr == ""


@pytest.mark.parametrize("verbs", [["revert"], ["apply", "revert"]])
def test_revert_of_a_paste_without_a_copy(node: Node, target: Target, verbs: list[str]) -> None:
    """Mayfly's file is removed, and a warning names it; a file that was restored stays."""
    lost, restored = (put_own_hosts(node.root, host) for host in ("quay.io", "ghcr.io"))
    before = node.look()
    _paste(node, target, "containerd", "quay.io", "ghcr.io")
    lost.with_name("hosts.toml.before-mayfly").unlink()
    restored.with_name("hosts.toml.before-mayfly").rename(restored)
    warnings = []
    for verb in verbs:
        done = node.run(node.script(target, "containerd"), verb)
        assert done.returncode == 0, done.stderr
        warnings += [line for line in done.stderr.splitlines() if line.startswith("mayfly: ")]
    file = "/etc/containerd/certs.d/quay.io/hosts.toml"
    assert warnings == [
        f"mayfly: {file}.before-mayfly: this copy of the file from before Mayfly is gone, so "
        f"revert removes {file} and cannot restore it"
    ]
    del before[file.lstrip("/")]
    assert node.look() == before


def test_revert_of_a_paste_that_was_killed(dash: Node, target: Target) -> None:
    """At any change, and after commands that put it back were killed, too."""
    put_own_hosts(dash.root)
    before = snapshot(dash.root)
    script = dash.script(target, "containerd")
    text = node_commands(replace(target, mirrors=("quay.io",)), ["containerd"])
    for commands, first in ((text, ""), (way_back(text), text)):
        for at in killed_at_each_change(commands, dash.root, dash.state / "killing", first):
            done = dash.run(script, "revert")
            assert done.returncode == 0, (at, done.stderr)
            assert snapshot(dash.root) == before, at
        assert dash.run(script, "revert").returncode == 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_paste_between_two_runs(node: Node, target: Target, runtime: Runtime) -> None:
    """It was Mayfly that changed the files, so nothing is forced, and the first original stays."""
    furnish(node.root)
    before = node.look()
    script = node.script(target, runtime)
    assert node.run(script, "apply").returncode == 0
    _paste(node, target, runtime)
    done = node.run(script, "apply")
    assert done.returncode == 0, done.stderr
    assert node.run(script, "revert").returncode == 0
    assert node.look() == before


def test_an_edit_names_the_words_that_lose_it(dash: Node, target: Target) -> None:
    """By this script, with the verb that was given."""
    before = dash.look()
    _paste(dash, target, "podman")
    conf = dash.root / "etc/containers/registries.conf.d/50-mayfly.conf"
    conf.write_text("# mine\n")
    script = dash.script(target, "podman")
    for verb in ("apply", "revert"):
        done = dash.run(script, verb)
        assert done.returncode == 2
        assert done.stderr.startswith("mayfly: /etc/containers/registries.conf.d/50-mayfly.conf: ")
        assert f"ssh NODE sh -s -- {verb} --force <SCRIPT" in done.stderr
        assert conf.read_text() == "# mine\n"
    assert dash.run(script, "revert", "--force").returncode == 0
    assert dash.look() == before


def test_killed_while_a_paste_is_taken_over(dash: Node, target: Target) -> None:
    """kill -9 before each change of apply and of revert: revert brings all back."""
    put_own_hosts(dash.root)
    before = snapshot(dash.root)
    script = dash.script(target, "containerd")
    for verb in ("apply", "revert"):
        _paste(dash, target, "containerd", "quay.io")
        for at in _killed_at_each_change(dash, script, verb):
            done = dash.run(script, "revert")
            assert done.returncode == 0, (verb, at, done.stderr)
            assert snapshot(dash.root) == before, (verb, at)


@pytest.mark.parametrize("product", rancher.PRODUCTS)
def test_rancher(node: Node, target: Target, product: str) -> None:
    """registries.yaml where there is none, and a restart named; pulls need none; all goes back."""
    node.become(product)
    before = node.look()
    script = node.script(target, None)
    done = node.run(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pinned,   present") == len(NAMES)
    for file in rancher.plan(product, target).files:
        written = node.root / file.path.lstrip("/")
        assert written.read_bytes() == file.content
        assert written.stat().st_mode & 0o777 == file.mode
    assert not (node.root / "etc/containerd").exists()
    note = f"note: {rancher.restart_note(product)}"
    assert note in done.stderr.splitlines()
    assert "config_path" not in done.stderr
    hosts = f"--hosts-dir {node.root}/var/lib/mayfly-node-config/work/certs.d"
    assert node.arguments().count(hosts) == len(NAMES)
    holders = [path for path in node.root.rglob("*") if path.is_file() and PASSWORD in
               path.read_text()]  # fmt: skip
    assert [path.name for path in holders] == ["registries.yaml"]
    assert note not in node.run(script).stderr
    done = node.run(script, "revert")
    assert note in done.stderr.splitlines()
    assert node.look() == before


def test_registries_yaml_that_exists_is_not_touched(dash: Node, target: Target) -> None:
    """The command that merges it is named, without the credential; images are pulled."""
    dash.become("k3s")
    existing = dash.root / rancher.registries_yaml("k3s").lstrip("/")
    existing.parent.mkdir(parents=True)
    existing.write_text("mirrors: {}\n")
    before = dash.look()
    done = dash.run(dash.script(target, None))
    assert done.returncode == 0, done.stderr
    assert "mayfly node-config show --for k3s --node NAME --merge FILE" in done.stderr
    assert PASSWORD not in done.stderr
    assert "3 of 3 images are present" in done.stdout
    assert dash.run(dash.script(target, None), "revert").returncode == 0
    assert dash.look() == before
    existing.write_text(f"mirrors: {{docker.io: {{endpoint: ['https://{REGISTRY}']}}}}\n")
    assert "--merge" not in dash.run(dash.script(target, None), "apply").stderr


def test_crio_pins_by_a_file(dash: Node, target: Target) -> None:
    """It names the images; where another file has pins, the command that merges them is named."""
    shutil.copy(dash.bin / "podman", dash.bin / "crio")
    script = dash.script(target, "podman")
    before = dash.look()
    done = dash.run(script)
    assert done.returncode == 0, done.stderr
    pins = dash.root / crio.PINS_CONF.lstrip("/")
    assert crio.pinned_in(pins.read_bytes()) == [*NAMES]
    assert "note: CRI-O reads" in done.stderr
    assert "stay pinned until revert" in dash.run(script, "unpin").stdout
    assert dash.run(script, "revert").returncode == 0
    assert dash.look() == before
    other = pins.with_name("10-other.conf")
    other.parent.mkdir(parents=True)
    other.write_text('[crio.image]\npinned_images = ["a"]\n')
    done = dash.run(script, "apply")
    assert f"{other} says which images CRI-O pins" in done.stderr
    assert not pins.exists()


def test_killed_while_it_pulls(dash: Node, target: Target) -> None:
    """Nothing is unpinned that is not ours, nothing of ours stays pinned, and it can continue."""
    before = snapshot(dash.root)
    path = wrappers(dash, KILLER)
    script = dash.script(target, "containerd")
    assert dash.run(script, "pull", path=path).returncode == 0
    count = dash.count_calls()
    assert count > 10
    assert dash.run(script, "revert").returncode == 0
    for at in range(1, count + 1, 3):
        dash.count_calls()
        dash.run(script, "pull", path=path, KILL_AT=str(at))
        done = dash.run(script)
        assert done.returncode == 0, done.stderr
        assert len(list(dash.state.glob("pin-*"))) == len(NAMES)
        assert dash.run(script, "revert").returncode == 0
        assert list(dash.state.glob("pin-*")) == []
        assert snapshot(dash.root) == before


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_apply_pull_verify(node: Node, target: Target, runtime: Runtime) -> None:
    """Without a verb: all three; each image is pulled, pinned where that is possible, and there."""
    done = node.run(node.script(target, runtime))
    assert done.returncode == 0, done.stderr
    pins = "pinned,   present" if runtime == "containerd" else "\npresent"
    for name in NAMES:
        assert f"{pins}  {name}" in done.stdout
    assert (f"{runtime} cannot pin images" in done.stdout) is (runtime != "containerd")
    # Of CRI-O only where it is.
    assert "CRI-O" not in done.stderr + node.run(node.script(target, runtime), "revert").stderr
    assert "3 of 3 images are present; proof: sent" in done.stdout
    proof = json.loads((node.state / "proof").read_text())
    assert proof["nonce"] == "abc123"
    assert [one["image"] for one in proof["images"]] == [*NAMES]
    assert {one["runtime"] for one in proof["images"]} == {runtime}
    assert {one["pinned"] for one in proof["images"]} == {runtime == "containerd"}
    assert all(one["free"] > 0 and one["time"] > 0 for one in proof["images"])


def test_output_for_programs(node: Node, target: Target) -> None:
    """--json prints one document, --quiet nothing but problems."""
    script = node.script(target, "containerd")
    done = node.run(script, "--json")
    found = json.loads(done.stdout)
    assert found["verbs"] == ["apply", "pull", "verify"]
    assert found["proof"] == "sent"
    assert found["failures"] == 0
    assert found["images"] == [{"image": name, "present": True, "pinned": True} for name in NAMES]
    quiet = node.run(script, "--quiet")
    assert (quiet.returncode, quiet.stdout) == (0, "")


def test_a_pull_that_fails_is_tried_again(dash: Node, target: Target) -> None:
    """Twice it fails, then it succeeds."""
    (dash.state / "fail").write_text("2")
    dash.sleep_at_once()
    done = dash.run(dash.script(target, "containerd", NAMES[:1]))
    assert done.returncode == 0, done.stderr
    assert "pulled docker.io/library/web:1" in done.stdout


def test_the_end_of_a_long_message_is_shown(node: Node, target: Target) -> None:
    """There programs name the cause."""
    (node.state / "broken").write_text(NAMES[1])
    (node.state / "message").write_text(f"failed: write /{'x' * 900}: no space left on device\n")
    node.sleep_at_once()
    done = node.run(node.script(target, "containerd"))
    assert done.returncode == 3
    (line,) = (line for line in done.stderr.splitlines() if "not pulled" in line)
    assert ": failed: write /x" in line
    assert line.endswith("xxx: no space left on device")
    assert len(line) < 400


def test_one_image_is_counted_as_one(dash: Node, target: Target) -> None:
    """The last line of a script for one image, whether it is there or not."""
    script = dash.script(target, "containerd", NAMES[:1])
    assert "\n0 of 1 image is present\n" in dash.run(script, "status").stdout
    assert "\n1 of 1 image is present; proof: sent\n" in dash.run(script).stdout


def test_an_image_that_cannot_be_pulled(dash: Node, target: Target) -> None:
    """It is named with the runtime's last word, the others continue, and the code is 3."""
    (dash.state / "broken").write_text(NAMES[1])
    dash.sleep_at_once()
    done = dash.run(dash.script(target, "containerd"))
    assert done.returncode == 3
    assert f"mayfly: {NAMES[1]}: not pulled: no such image" in done.stderr
    assert "2 of 3 images are present; proof: sent" in done.stdout
    assert f"missing  {NAMES[1]}" in done.stdout


@pytest.mark.parametrize("lost", ["content", "snapshot"])
def test_an_image_of_which_something_is_gone_is_missing(
    dash: Node, target: Target, lost: str
) -> None:
    """The record of the image alone is not the image."""
    script = dash.script(target, "containerd")
    assert dash.run(script).returncode == 0
    (dash.state / f"lost-{lost}").write_text(NAMES[0])
    done = dash.run(script, "verify")
    assert done.returncode == 3
    assert f"missing  {NAMES[0]}" in done.stdout
    proof = json.loads((dash.state / "proof").read_text())
    assert [one["image"] for one in proof["images"]] == [*NAMES[1:]]


def test_where_the_cri_shows_no_pin_it_is_unpinned(dash: Node, target: Target) -> None:
    """Debian's containerd 1.6.20 takes the label and ignores it."""
    (dash.state / "no-pins").touch()
    done = dash.run(dash.script(target, "containerd"))
    assert done.returncode == 0
    assert "pinned,   present" not in done.stdout
    assert done.stdout.count("unpinned, present") == 3


def test_unpin(dash: Node, target: Target, tmp_path: Path) -> None:
    """Pins of others stay; --keep keeps some; --prune removes what was pulled and is not in use."""
    mine = dash.state / f"pin-{NAMES[2].replace('/', '_')}"
    mine.touch()
    dash.run(dash.script(target, "containerd"))
    keep = tmp_path / "keep"
    keep.write_text(f"{NAMES[0]}\n")
    (dash.state / "in-use").write_text(NAMES[2])
    done = dash.run(dash.script(target, "containerd"), "unpin", "--keep", str(keep), "--prune")
    assert done.returncode == 0, done.stderr
    assert f"unpinned {NAMES[1]}" in done.stdout
    assert f"removed {NAMES[1]}" in done.stdout
    assert f"kept {NAMES[2]} (in use)" in done.stdout
    pins = {path.name for path in dash.state.glob("pin-*")}
    assert pins == {f"pin-{NAMES[0].replace('/', '_')}", mine.name}
    assert dash.run(dash.script(target, "containerd"), "revert").returncode == 0
    assert {path.name for path in dash.state.glob("pin-*")} == {mine.name}


_TOOLS = (
    "dash", "sh", "awk", "sed", "sort", "sha256sum", "stat", "cmp", "cat", "grep", "head", "tail",
    "cut", "tr", "cp", "mv", "rm", "rmdir", "mkdir", "chmod", "chown", "ln", "touch", "sync", "df",
    "date", "readlink", "sleep", "timeout", "flock", "ls",
)  # fmt: skip


def without_clients(node: Node) -> str:
    """A PATH for the node on which neither curl nor GNU wget is."""
    (node.bin / "curl").unlink()
    tools = node.state / "tools"
    tools.mkdir()
    for name in _TOOLS:
        (tools / name).symlink_to(str(shutil.which(name)))
    (tools / "wget").symlink_to(str(shutil.which("busybox")))
    return f"{node.bin}:{tools}"


def test_without_a_client_the_proof_is_printed(dash: Node, target: Target) -> None:
    """A node that has neither curl nor GNU wget says it to the caller."""
    done = dash.run(dash.script(target, "containerd"), PATH=without_clients(dash))
    assert done.returncode == 0, done.stderr
    (line,) = (one for one in done.stdout.splitlines() if one.startswith("{"))
    printed = json.loads(line)
    assert printed["node"] == "n1"
    assert len(printed["report"]["images"]) == 3
    assert not (dash.state / "proof").exists()


def test_a_part_of_the_script_does_nothing(dash: Node, target: Target) -> None:
    """A connection that breaks while the script arrives leaves the node as it is."""
    script = dash.script(target, "containerd")
    before = snapshot(dash.root)
    for size in range(0, len(script) - 20, len(script) // 25):
        dash.run(script[:size])
        assert snapshot(dash.root) == before


def test_input_that_stays_open_or_is_closed(node: Node, target: Target, tmp_path: Path) -> None:
    """Over a connection that stays, the script ends by itself; a file runs without any input."""
    script = node.script(target, "containerd")
    environment = {
        "PATH": f"{node.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
        "STUB_STATE": str(node.state),
        "CONTAINERD_ADDRESS": node.socket,
    }
    process = subprocess.Popen(
        [*node.shell, "-s", "--", "--json", "--attended"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with killed_at_end(process):
        assert process.stdin is not None
        process.stdin.write(script)
        process.stdin.flush()
        assert process.wait(PATIENCE) == 0
        output, errors = process.communicate()
    assert errors == ""
    assert json.loads(output)["failures"] == 0
    (tmp_path / "script").write_text(script)
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *node.shell, tmp_path / "script", "status"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert NAMES[0] in done.stdout


def test_usage(dash: Node, target: Target) -> None:
    """Unknown words, a missing value and a runtime that is not there are errors of usage."""
    script = dash.script(target, None)
    before = snapshot(dash.root)
    for words in (["no"], ["--no"], ["--keep"], ["--runtime", "rkt"]):
        assert dash.run(script, *words).returncode == 2
    (dash.state / "dead").touch()
    done = dash.run(script)
    assert (done.returncode, snapshot(dash.root)) == (2, before)
    assert "neither docker, containerd nor podman answers" in done.stderr
    shutil.copy(dash.bin / "podman", dash.bin / "crio")
    assert "CRI-O without podman" in dash.run(script).stderr
    assert dash.run(script, "revert").returncode == 0


def test_runtime_is_found(dash: Node, target: Target) -> None:
    """Kubelet's own comes first where there is a kubelet; without one docker."""
    script = dash.script(target, None)
    assert json.loads(dash.run(script, "status", "--json").stdout)["runtime"] == "docker"
    (dash.root / "var/lib/kubelet").mkdir()
    assert json.loads(dash.run(script, "status", "--json").stdout)["runtime"] == "containerd"


def test_progress_is_a_line_for_each_image(dash: Node, target: Target) -> None:
    """With --json --progress each image has its line as soon as it is pulled or given up."""
    (dash.state / "broken").write_text(f"{NAMES[1]}\n")
    done = dash.run(dash.script(target, "podman"), "--json", "--progress")
    *lines, document = (json.loads(line) for line in done.stdout.splitlines())
    states = {line["image"]: line["state"] for line in lines}
    assert states == {NAMES[0]: "pulled", NAMES[1]: "failed", NAMES[2]: "pulled"}
    assert document["time"] > 0
    assert document["free"] > 0
    assert document["config_path"] == ""
    assert json.loads(dash.run(dash.script(target, "podman"), "--json").stdout)["config_path"] == ""
