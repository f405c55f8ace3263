"""The text an operator pastes on a node."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mayfly.registry.cli import node_config
from mayfly.registry.nodes import journal
from mayfly.registry.nodes.commands import node_commands
from mayfly.registry.nodes.journal import NodeConfig
from mayfly.registry.nodes.runtimes import RUNTIMES, EmptyNode, Runtime, make_plan
from mayfly.registry.nodes.target import NodeCredential, parse
from mayfly.registry.pki.certificate import fingerprint
from mayfly.registry.pki.errors import TrustError
from tests.nodes.pasting import break_off, killed_at_each_change, paste, put_own_hosts, way_back
from tests.nodes.test_journal import furnish
from tests.nodes.test_script import SHELLS
from tests.support.commands import mayfly
from tests.support.process import need
from tests.support.trees import interfering, killed_after, snapshot

HOST = "10.0.0.5:5000"


def test_it_says_where_and_whom_to_trust(ca_pem: bytes) -> None:
    """URL and fingerprint come first, then each runtime."""
    text = node_commands(parse(HOST, ca_pem))
    lines = text.splitlines()
    assert lines[:2] == [f"# Registry: https://{HOST}", f"# CA SHA-256: {fingerprint(ca_pem)}"]
    assert "Paste one of these sections only" in lines[2]
    assert [line.split(":")[0] for line in lines if line.endswith("as root")] == [
        f"# {runtime}" for runtime in RUNTIMES
    ]
    assert text.endswith("\n")
    assert f"docker login {HOST}" in lines


@pytest.mark.parametrize(
    ("runtime", "credential"),
    [*((runtime, None) for runtime in RUNTIMES), ("containerd", NodeCredential("robot+n", "p"))],
)
@pytest.mark.parametrize("times", [1, 2])
def test_pasting_it_makes_the_files(
    root: Path,
    ca_pem: bytes,
    runtime: Runtime,
    credential: NodeCredential | None,
    times: int,
) -> None:
    """A POSIX shell makes the bytes and modes that apply would, also when run again."""
    target = parse(HOST, ca_pem, ["quay.io"], credential=credential)
    text = node_commands(target, [runtime])
    script = "\n".join(line for line in text.splitlines() if " login " not in line)
    for _ in range(times):
        paste(script, root)
    written = {
        str(path)[len(str(root)) :]: (path.stat().st_mode & 0o777, path.read_bytes())
        for path in (root / "etc").rglob("*")
        if path.is_file()
    }
    plan = make_plan(runtime, target, EmptyNode())
    assert written == {file.path: (file.mode, file.content) for file in plan.files}


def _client(directory: Path, runtime: Runtime) -> str:
    """A directory with a program that notes what it is told."""
    client = directory / "bin" / runtime
    client.parent.mkdir(exist_ok=True)
    client.write_text(f'#!/bin/sh\necho "$@" >> {directory}/told\ncat >> {directory}/told\n')
    client.chmod(0o755)
    return str(client.parent)


@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_pasting_it_logs_a_node_in(
    tmp_path: Path, root: Path, ca_pem: bytes, runtime: Runtime
) -> None:
    """The credential of a node goes to the runtime's own login, its password by standard input."""
    target = parse(HOST, ca_pem, credential=NodeCredential("robot+n", "pass"))
    paste(node_commands(target, [runtime]), root, _client(tmp_path, runtime))
    told = f"login {HOST} --username robot+n --password-stdin\npass\n"
    assert (tmp_path / "told").read_text() == told


@pytest.mark.parametrize("shell", SHELLS)
def test_all_of_it_is_shell(ca_pem: bytes, shell: str) -> None:
    """Headings, notes and the way back are comments, so the text can be piped to a shell."""
    need(SHELLS[shell][0])
    for credential in (None, NodeCredential("robot+n", "pass")):
        for url, ca in (
            (HOST, ca_pem),
            (f"http://{HOST}", None),
            ("https://r.example/below", None),
        ):
            text = node_commands(parse(url, ca, ["docker.io"], credential=credential))
            done = subprocess.run(
                [*SHELLS[shell], "-n"], input=text, capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_way_back_by_hand(tmp_path: Path, root: Path, ca_pem: bytes, runtime: Runtime) -> None:
    """The commands that are printed for it log out and remove every file."""
    target = parse(HOST, ca_pem, ["quay.io"], credential=NodeCredential("robot+n", "pass"))
    text, path = node_commands(target, [runtime]), _client(tmp_path, runtime)
    paste(text, root, path)
    (tmp_path / "told").unlink(missing_ok=True)
    paste(way_back(text), root, path)
    assert [path for path in root.rglob("*") if path.is_file()] == []
    if runtime != "containerd":
        assert (tmp_path / "told").read_text().startswith(f"logout {HOST}\n")


def forget(node: NodeConfig) -> None:
    """The hosts of logins stay noted until somebody logged out."""
    for host in node.logins():
        assert node.logins() == (host,)
        node.forget_login(host)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("way", ["revert", "apply", "by hand"])
def test_a_paste_that_broke_off(
    tmp_path: Path, root: Path, ca_pem: bytes, runtime: Runtime, way: str
) -> None:
    """Nothing of the file that it was writing is left, which may hold a credential."""
    before = snapshot(root)
    target = parse(HOST, ca_pem, ["quay.io"], credential=NodeCredential("robot+n", "pass"))
    text, node = node_commands(target, [runtime]), NodeConfig(root, runtime)
    break_off(text, root, tmp_path / "killing")
    if way == "by hand":
        paste(way_back(text), root, _client(tmp_path, runtime))
    else:
        if way == "apply":
            node.apply(parse(HOST, ca_pem, ["docker.io"]))
            assert list(root.rglob(".*.mayfly")) == []
        node.revert()
    assert snapshot(root) == before


def _prepared(root: Path, ca_pem: bytes) -> str:
    """Commands for files of which a node has one, and a dangling link in place of another."""
    other = put_own_hosts(root).parents[1] / "ghcr.io/hosts.toml"
    other.parent.mkdir()
    other.symlink_to("not-there")
    return node_commands(parse(HOST, ca_pem, ["quay.io", "ghcr.io"]), ["containerd"])


@pytest.mark.parametrize("way", ["revert", "by hand", "by hand again"])
def test_a_paste_that_is_killed(tmp_path: Path, root: Path, ca_pem: bytes, way: str) -> None:
    """At any change: every way back, also after another paste, brings back all that was there."""
    text = _prepared(root, ca_pem)
    before = snapshot(root)
    for at in killed_at_each_change(text, root, tmp_path / "killing"):
        if way.endswith("again"):
            paste(text, root)
        if way.startswith("by hand"):
            paste(way_back(text), root)
        else:
            NodeConfig(root, "containerd").revert()
        assert snapshot(root) == before, f"killed at change {at}"


@pytest.mark.parametrize("way", ["revert", "by hand"])
def test_a_way_back_that_is_killed(tmp_path: Path, root: Path, ca_pem: bytes, way: str) -> None:
    """At any change: it can be gone once more."""
    text = _prepared(root, ca_pem)
    before, node = snapshot(root), NodeConfig(root, "containerd")
    for at in killed_at_each_change(way_back(text), root, tmp_path / "killing", first=text):
        # Once the list is gone, all that may be left are two empty directories.
        if way == "revert" or not (root / "var/lib/mayfly-node-config/containerd/pasted").exists():
            node.revert()
        else:
            paste(way_back(text), root)
        assert snapshot(root) == before, f"killed at change {at}"


_FEW = (
    "awk",
    "cat",
    "chmod",
    "cp",
    "grep",
    "mkdir",
    "mv",
    "rm",
    "rmdir",
    "sed",
    "sha256sum",
    "sort",
)


@pytest.mark.parametrize("shell", SHELLS)
def test_they_need_few_programs(tmp_path: Path, root: Path, ca_pem: bytes, shell: str) -> None:
    """Also where an earlier paste was killed before it replaced a file that was there."""
    need(SHELLS[shell][0])
    target = parse(HOST, ca_pem, ["quay.io"])
    for file in make_plan("containerd", target, EmptyNode()).files:
        mine = root / file.path.lstrip("/")
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text("# mine\n")
        os.utime(mine, (1, 1))  # busybox sets times of whole seconds only
    before = snapshot(root)
    text, few = node_commands(target, ["containerd"]), tmp_path / "few"
    break_off(text, root, tmp_path / "killing")
    few.mkdir()
    for name in (SHELLS[shell][0], *_FEW):
        (few / name).symlink_to(str(shutil.which(name)))
    for commands in (text, way_back(text)):
        done = paste(commands, root, shell=[*SHELLS[shell], "-eu"], PATH=str(few))
        assert done.stderr == b""
    assert snapshot(root) == before


def _half_taken_back(root: Path, ca_pem: bytes, lost: str) -> tuple[str, dict[str, object]]:
    """Paste on a node, restore one of two files from its copy, and remove the copy of the other.

    Returns:
        The commands, and the node as it is once they are taken back.
    """
    text = _prepared(root, ca_pem)
    before = snapshot(root)
    paste(text, root)
    for copy in root.rglob("*.before-mayfly"):
        if copy.parent.name == lost:
            copy.unlink()
        else:
            copy.rename(copy.with_name("hosts.toml"))
    return text, {path: one for path, one in before.items() if f"{lost}/" not in path}


_LOST = pytest.mark.parametrize("lost", ["quay.io", "ghcr.io"])


@_LOST
@pytest.mark.parametrize("verbs", [["revert"], ["apply", "revert"]])
def test_revert_without_a_copy(root: Path, ca_pem: bytes, lost: str, verbs: list[str]) -> None:
    """Mayfly's file is removed, and a warning names it; a file that was restored stays."""
    _, after = _half_taken_back(root, ca_pem, lost)
    warnings = []
    for verb in verbs:
        words = ["node-config", verb, "--runtime", "containerd", "--root-dir", str(root)]
        if verb == "apply":
            words += ["--registry", f"http://{HOST}", "--mirror", "docker.io"]
        done = mayfly(*words)
        assert done.returncode == 0, done.stderr
        warnings += re.findall(r"^mayfly: (.*)$", done.stderr, re.MULTILINE)
    file = f"/etc/containerd/certs.d/{lost}/hosts.toml"
    assert warnings == [
        f"{file}.before-mayfly: this copy of the file from before Mayfly is gone, so revert "
        f"removes {file} and cannot restore it"
    ]
    assert snapshot(root) == after


@_LOST
@pytest.mark.parametrize("shell", SHELLS)
def test_by_hand_without_a_copy(root: Path, ca_pem: bytes, lost: str, shell: str) -> None:
    """As revert does."""
    need(SHELLS[shell][0])
    text, after = _half_taken_back(root, ca_pem, lost)
    done = paste(way_back(text), root, shell=[*SHELLS[shell], "-eu"])
    file = f"{root}/etc/containerd/certs.d/{lost}/hosts.toml"
    warning = f"{file}.before-mayfly: this copy is gone, so {file} is removed, not restored\n"
    assert done.stderr.decode() == warning
    assert snapshot(root) == after


def test_a_file_that_looks_like_a_copy(root: Path, ca_pem: bytes) -> None:
    """It is somebody else's, so nothing takes its place, and it is never put back."""
    text = _prepared(root, ca_pem)
    other = root / "etc/containerd/certs.d/quay.io/hosts.toml.before-mayfly"
    other.write_text("# other\n")
    before = snapshot(root)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        paste(text, root)
    assert b"not of these commands: move it away" in refused.value.stderr
    paste(way_back(text), root)
    assert snapshot(root) == before


def test_a_paste_that_is_old(root: Path, ca_pem: bytes, tmp_path: Path) -> None:
    """What was edited between a paste that was killed and the next one is put back as it is."""
    text, node = _prepared(root, ca_pem), NodeConfig(root, "containerd")
    mine = root / "etc/containerd/certs.d/quay.io/hosts.toml"
    copies = 0
    for at in killed_at_each_change(text, root, tmp_path / "killing"):
        list_ = root / "var/lib/mayfly-node-config/containerd/pasted"
        noted = list_.read_text() if list_.exists() else ""
        if re.search("^F .*/quay.io/", noted, re.MULTILINE):
            node.revert()
            continue
        copies += Path(f"{mine}.before-mayfly").exists()
        mine.write_text("# edited\n")
        paste(text, root)
        node.revert()
        assert mine.read_text() == "# edited\n", at
        mine.write_text("# mine\n")
    assert copies


def test_by_hand_after_apply(root: Path, ca_pem: bytes) -> None:
    """Pasted commands that were taken over are not in the list any more: nothing is lost."""
    text, node = _prepared(root, ca_pem), NodeConfig(root, "containerd")
    before = snapshot(root)
    paste(text, root)
    node.apply(parse(HOST, ca_pem, ["quay.io"]))
    with pytest.raises(subprocess.CalledProcessError):
        paste(way_back(text), root)
    node.revert()
    assert snapshot(root) == before


@pytest.mark.parametrize("shell", SHELLS)
def test_by_hand_after_a_paste_over_what_was_applied(root: Path, ca_pem: bytes, shell: str) -> None:
    """A file whose original is in the journal stays for revert, which is named; others do not."""
    need(SHELLS[shell][0])
    text, node = _prepared(root, ca_pem), NodeConfig(root, "containerd")
    before = snapshot(root)
    node.apply(parse(f"http://{HOST}", None, ["quay.io"]))
    paste(text, root)
    certs = root / "etc/containerd/certs.d"
    pasted = (certs / "quay.io/hosts.toml").read_bytes()
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError) as left:
            paste(way_back(text), root, shell=[*SHELLS[shell], "-eu"])
        revert = "mayfly node-config revert --runtime containerd\n"
        said = left.value.stderr.decode()
        assert f"{certs}/quay.io/hosts.toml stays: for it, {revert}" in said
        assert said.endswith(f"for the rest: {revert}")
        assert "ghcr.io" not in said
        assert (certs / "quay.io/hosts.toml").read_bytes() == pasted
        assert (certs / "ghcr.io/hosts.toml").is_symlink()
    node.revert()
    assert snapshot(root) == before


def test_a_paste_on_a_full_disk(tmp_path: Path, root: Path, ca_pem: bytes) -> None:
    """It fails, leaves no part of a file, and what was there stays, also in its copy."""
    mine = put_own_hosts(root)
    before = snapshot(root)
    text = node_commands(parse(HOST, ca_pem, ["quay.io"]), ["containerd"])
    (tmp_path / "full").mkdir()
    full = tmp_path / "full/cp"
    full.write_text('#!/bin/sh\nfor last in "$@"; do :; done\nprintf "#" >"$last"\nexit 1\n')
    full.chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError):
        paste(text, root, str(full.parent))
    assert list(root.rglob(".*.mayfly")) == [] == list(root.rglob("*.before-mayfly"))
    full.rename(full.with_name("cat")).write_text('#!/bin/sh\n[ $# -gt 0 ] || printf "#"\nexit 1\n')
    with pytest.raises(subprocess.CalledProcessError):
        paste(text, root, str(full.parent))
    assert list(root.rglob(".*.mayfly")) == []
    assert mine.read_text() == "# mine\n"
    NodeConfig(root, "containerd").revert()
    assert snapshot(root) == before


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("furnished", [False, True], ids=["bare", "furnished"])
def test_revert_takes_a_paste_back(
    tmp_path: Path, root: Path, ca_pem: bytes, runtime: Runtime, furnished: bool
) -> None:
    """Every byte, and the logins are named; also after apply on top of it."""
    if furnished:
        furnish(root)
        put_own_hosts(root)
    before = snapshot(root)
    target = parse(HOST, ca_pem, ["quay.io"], credential=NodeCredential("robot+n", "pass"))
    text, path = node_commands(target, [runtime]), _client(tmp_path, runtime)
    node = NodeConfig(root, runtime)
    for applied in (False, True):
        paste(text, root, path)
        paste(text, root, path)
        assert node.logins() == (() if runtime == "containerd" else (HOST,))
        if applied:
            node.apply(parse(HOST, ca_pem, ["docker.io"]))
            assert node.logins() == (() if runtime == "containerd" else (HOST,))
        assert node.revert()
        forget(node)
        assert snapshot(root) == before


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_paste_over_what_was_applied(
    tmp_path: Path, root: Path, ca_pem: bytes, runtime: Runtime
) -> None:
    """It was Mayfly that changed the files, so nothing is forced, and the first original stays."""
    furnish(root)
    before = snapshot(root)
    node = NodeConfig(root, runtime)
    node.apply(parse(HOST, ca_pem, ["docker.io", "quay.io"]))
    text = node_commands(parse(HOST, ca_pem), [runtime])
    paste(text, root, _client(tmp_path, runtime))
    node.apply(parse(HOST, ca_pem, ["docker.io", "quay.io"]))
    node.revert()
    forget(node)
    assert snapshot(root) == before


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_edit_of_what_was_pasted_is_not_lost(
    tmp_path: Path, root: Path, ca_pem: bytes, runtime: Runtime
) -> None:
    """Revert refuses, names the command that loses it, and that one takes all back."""
    before = snapshot(root)
    paste(node_commands(parse(HOST, ca_pem), [runtime]), root, _client(tmp_path, runtime))
    written = next(path for path in (root / "etc").rglob("*") if path.is_file())
    written.write_text("# mine\n")
    node = NodeConfig(root, runtime)
    with pytest.raises(TrustError, match=f"revert --runtime {runtime} --root-dir {root} --force"):
        node.revert()
    assert written.read_text() == "# mine\n"
    node.revert(force=True)
    forget(node)
    assert snapshot(root) == before


@pytest.mark.parametrize("applied", [False, True], ids=["pasted", "and applied"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_pasting_again_loses_no_edit(
    tmp_path: Path, root: Path, ca_pem: bytes, runtime: Runtime, applied: bool
) -> None:
    """The file is named and left as it is; once it is removed the commands write it again."""
    text, path = node_commands(parse(HOST, ca_pem), [runtime]), _client(tmp_path, runtime)
    paste(text, root, path)
    if applied:
        NodeConfig(root, runtime).apply(parse(HOST, ca_pem))
    edited = next(path for path in (root / "etc").rglob("*") if path.is_file())
    content = edited.read_bytes()
    edited.write_text("# mine\n")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        paste(text, root, path)
    assert f"{edited}: somebody has changed it".encode() in refused.value.stderr
    assert edited.read_text() == "# mine\n"
    edited.unlink()
    paste(text, root, path)
    assert edited.read_bytes() == content


@pytest.mark.parametrize(
    ("says", "is_out"),
    [("exit 0", True), ("echo Not logged in; exit 1", True), ("exit 1", False), (None, True)],
)
def test_log_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    says: str | None,
    is_out: bool,
) -> None:
    """What the runtime says; where there is none any more, a warning is all that can be done."""
    if says is not None:
        script = f'#!/bin/sh\n[ "$*" = "logout {HOST}" ] || exit 9\n{says}\n'
        (tmp_path / "podman").write_text(script)
        (tmp_path / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if says else str(tmp_path))
    assert node_config._log_out("podman", HOST) is is_out
    assert ("podman is not installed any more" in capsys.readouterr().err) is (says is None)


def test_revert_says_where_somebody_is_logged_in(tmp_path: Path, root: Path, ca_pem: bytes) -> None:
    """It ends with 3, and so does the next one, until the note of it is gone."""
    paste(node_commands(parse(HOST, ca_pem), ["podman"]), root, _client(tmp_path, "podman"))
    words = ("node-config", "revert", "--runtime", "podman", "--root-dir", root)
    for _ in range(2):
        done = mayfly(*words)
        assert done.returncode == 3
        assert f"podman logout {HOST}" in done.stderr
    forget(NodeConfig(root, "podman"))
    done = mayfly(*words)
    assert (done.returncode, done.stderr) == (0, "")


def test_removed_copies_are_durable_before_the_list_goes(
    root: Path, ca_pem: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut nothing else would know of a copy, which may hold a credential."""
    paste(_prepared(root, ca_pem), root)
    synced = []

    def note(directory: Path) -> None:
        if (root / "var/lib/mayfly-node-config/containerd/pasted").exists():
            synced.append(directory.name)

    monkeypatch.setattr(journal, "sync", note)
    NodeConfig(root, "containerd").revert()
    assert {"quay.io", "ghcr.io"} <= set(synced)


def test_a_crash_while_a_paste_is_taken_over(root: Path, ca_pem: bytes) -> None:
    """At every point of apply and of revert: revert brings back every byte."""
    put_own_hosts(root)
    before = snapshot(root)
    target = parse(HOST, ca_pem, ["quay.io"])
    text, node = node_commands(target, ["containerd"]), NodeConfig(root, "containerd")
    for operation in (lambda: node.apply(target), node.revert):
        paste(text, root)
        with interfering(lambda _: None) as changes:
            operation()
        node.revert()
        assert changes.seen > 10
        for point in range(changes.seen):
            paste(text, root)
            with killed_after(point):
                operation()
            node.revert()
            assert snapshot(root) == before, f"after {point} changes"


def test_what_has_to_be_merged_is_only_described() -> None:
    """Writing daemon.json would lose what the node has in it."""
    text = node_commands(parse(f"http://{HOST}"), ["docker"])
    assert "cat >" not in text
    assert f'#       "{HOST}"' in text.splitlines()
    assert "systemctl reload docker" in text
    assert "CA SHA-256" not in text


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_notes_of_apply_are_there(ca_pem: bytes, runtime: Runtime) -> None:
    """What `apply` tells the operator besides its files stands in the text, as comments."""
    target = parse(HOST, ca_pem, ["quay.io"])
    notes = make_plan(runtime, target, EmptyNode()).notes
    assert notes
    lines = node_commands(target, [runtime]).splitlines()
    assert all(f"# note: {note}" in lines for note in notes)


def test_below_a_path_only_containerd_is_set_up() -> None:
    """containerd gets the whole path and is told not to add to it; others are said not to work."""
    target = parse("https://registry.example/hub", mirrors=["docker.io"])
    text = node_commands(target)
    assert 'server = "https://registry.example/hub/v2"\noverride_path = true\n' in text
    assert text.count('[host."https://registry.example/hub/v2"]') == 2
    assert text.count("  override_path = true\n") == 2
    assert "certs.d/registry.example/hosts.toml" in text
    for runtime in ("docker", "podman"):
        assert f"# {runtime} cannot use https://registry.example/hub" in text
        assert f"{runtime} login" not in text
