"""Apply and revert, undisturbed and disturbed by others."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.registry.nodes.journal import JOURNALS, NodeConfig
from mayfly.registry.nodes.runtimes import RUNTIMES, Runtime
from mayfly.registry.nodes.target import NodeCredential, Target, parse
from mayfly.registry.pki.errors import TrustError
from tests.support.trees import snapshot

HOST = "10.0.0.5:5000"
DAEMON_JSON = "etc/docker/daemon.json"
HUB_HOSTS = "etc/containerd/certs.d/docker.io/hosts.toml"


@pytest.fixture
def target(ca_pem: bytes) -> Target:
    """A registry with a CA that stands in for two upstreams."""
    return parse(HOST, ca_pem, ["docker.io", "quay.io"])


def _write(root: Path, path: str, content: bytes, mode: int = 0o644) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.chmod(mode)
    os.utime(file, ns=(10**18, 10**18 + 123_456_789))
    return file


def furnish(root: Path) -> None:
    """What nodes have before: files of odd modes and owners, links, other people's directories."""
    daemon = _write(root, DAEMON_JSON, b'{ "debug":true }', 0o600)
    os.setxattr(daemon, "user.note", b"kept")
    hosts = _write(root, HUB_HOSTS, b'server = "https://corporate.example"\n', 0o640)
    if os.geteuid() == 0:
        os.chown(hosts, 1234, 4321)
    conf = root / "etc/containers/registries.conf.d"
    conf.mkdir(parents=True)
    conf.chmod(0o750)
    (conf / "50-mayfly.conf").symlink_to(".//elsewhere")
    _write(root, "etc/docker/certs.d/quay.io/client.cert", b"somebody's")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("furnished", [False, True], ids=["bare", "furnished"])
def test_revert_brings_back_every_byte(
    root: Path, target: Target, runtime: Runtime, furnished: bool
) -> None:
    """Content, mode, owner, times, attributes, links, and absence; both are idempotent."""
    if furnished:
        furnish(root)
    before = snapshot(root)
    node = NodeConfig(root, runtime)
    plan, actions = node.apply(target)
    assert {action.verb for action in actions} == {"wrote"}
    for file in plan.files:
        assert (root / file.path.lstrip("/")).read_bytes() == file.content
    applied = snapshot(root)
    _, again = node.apply(target)
    assert {action.verb for action in again} == {"kept"}
    assert snapshot(root) == applied
    assert node.plan(target) == plan
    assert node.revert() != []
    assert snapshot(root) == before
    assert node.revert() == []
    assert snapshot(root) == before


def test_what_exists_keeps_mode_owner_and_attributes(root: Path, target: Target) -> None:
    """A daemon.json that was 0600 may hold secrets, and is 0600 throughout."""
    furnish(root)
    NodeConfig(root, "docker").apply(target)
    assert (root / DAEMON_JSON).stat().st_mode & 0o777 == 0o600
    assert os.getxattr(root / DAEMON_JSON, "user.note") == b"kept"
    if os.geteuid() == 0:
        NodeConfig(root, "containerd").apply(target)
        found = (root / HUB_HOSTS).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 4321, 0o640)


def test_the_journal_is_for_root_alone(root: Path, target: Target) -> None:
    """It keeps copies of files that may be secret."""
    furnish(root)
    NodeConfig(root, "docker").apply(target)
    journal = root / JOURNALS.lstrip("/") / "docker"
    assert journal.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in journal.iterdir()} == {0o600}


def test_new_directories_are_open_whatever_the_umask(root: Path, target: Target) -> None:
    """Rootless podman has to read them."""
    old = os.umask(0o077)
    try:
        NodeConfig(root, "podman").apply(target)
    finally:
        os.umask(old)
    for path in (root / "etc/containers").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_another_target_replaces_the_first(
    root: Path, target: Target, ca_pem: bytes, runtime: Runtime
) -> None:
    """Nothing of the first stays, and the original is still what revert brings back."""
    furnish(root)
    before = snapshot(root)
    second = parse("10.0.0.6:5000", ca_pem, ["quay.io"])
    node = NodeConfig(root, runtime)
    node.apply(target)
    node.apply(second)
    both = snapshot(root)
    node.revert()
    assert snapshot(root) == before
    node.apply(second)
    without_journal = {path for path in snapshot(root) if not path.startswith("var/")}
    assert {path for path in both if not path.startswith("var/")} == without_journal
    node.revert()
    assert snapshot(root) == before


def test_runtimes_are_apart(root: Path, target: Target) -> None:
    """Each is applied and reverted by itself."""
    furnish(root)
    before = snapshot(root)
    for runtime in RUNTIMES:
        NodeConfig(root, runtime).apply(target)
    for runtime in RUNTIMES:
        NodeConfig(root, runtime).revert()
    assert snapshot(root) == before


def test_a_plan_without_files_leaves_no_trace(root: Path, target: Target) -> None:
    """docker needs nothing for a registry on loopback, not even a journal."""
    before = snapshot(root)
    loopback = parse("127.0.0.1:5000")
    node = NodeConfig(root, "docker")
    assert node.apply(loopback)[1] == []
    assert snapshot(root) == before
    node.apply(target)
    node.apply(loopback)
    assert snapshot(root) == before


def test_a_plan_that_fails_leaves_no_trace(root: Path, target: Target) -> None:
    """A broken daemon.json is found before anything is written."""
    _write(root, DAEMON_JSON, b"{")
    before = snapshot(root)
    with pytest.raises(TrustError, match="not valid JSON"):
        NodeConfig(root, "docker").apply(target)
    assert snapshot(root) == before


def test_show_changes_nothing(root: Path, target: Target) -> None:
    """Not even a lock is left."""
    furnish(root)
    before = snapshot(root)
    for runtime in RUNTIMES:
        NodeConfig(root, runtime).plan(target)
    assert snapshot(root) == before


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_an_edit_is_not_lost_unasked(root: Path, target: Target, verb: str) -> None:
    """Nothing is changed then; --force loses the edit, and says nothing else."""
    furnish(root)
    before = snapshot(root)
    node = NodeConfig(root, "docker")
    node.apply(target)
    edited = root / DAEMON_JSON
    edited.write_bytes(edited.read_bytes() + b"\n")
    with_edit = snapshot(root)
    with pytest.raises(TrustError, match=r"^/etc/docker/daemon\.json: changed .* --force \(the"):
        node.apply(target) if verb == "apply" else node.revert()
    assert snapshot(root) == with_edit
    if verb == "apply":
        node.apply(target, force=True)
        node.revert()
    else:
        node.revert(force=True)
    assert snapshot(root) == before


def test_a_link_in_place_of_a_file_is_an_edit(root: Path, target: Target) -> None:
    """Its target is not ours to judge."""
    node = NodeConfig(root, "podman")
    node.apply(target)
    conf = root / "etc/containers/registries.conf.d/50-mayfly.conf"
    conf.rename(conf.with_name("other"))
    conf.symlink_to("other")
    with pytest.raises(TrustError, match="changed by somebody"):
        node.revert()


def test_a_secret_is_read_by_its_owner_alone(root: Path, ca_pem: bytes) -> None:
    """A file that others could read is closed to them while it holds a credential; then as before.

    An access list would let others in past the mode.
    """
    furnish(root)
    others_may_read = bytes.fromhex(
        "02000000 01000600ffffffff 02000400d2040000 04000400ffffffff 10000400ffffffff"
        "20000000ffffffff"
    )
    os.setxattr(root / HUB_HOSTS, "system.posix_acl_access", others_may_read)
    before = snapshot(root)
    node = NodeConfig(root, "containerd")
    own = root / f"etc/containerd/certs.d/{HOST}/hosts.toml"
    secret = parse(
        HOST, ca_pem, ["docker.io"], credential=NodeCredential("robot+node-1", "password")
    )
    open_to_all = parse(HOST, ca_pem, ["docker.io"])
    for target, mode in ((open_to_all, 0o644), (secret, 0o600), (open_to_all, 0o644)):
        node.apply(target)
        assert own.stat().st_mode & 0o777 == mode
        hidden = target is secret
        assert bool((root / HUB_HOSTS).stat().st_mode & 0o077) is not hidden
        acl = "system.posix_acl_access" in os.listxattr(root / HUB_HOSTS)
        assert acl is not hidden
    node.revert()
    assert snapshot(root) == before


@pytest.mark.parametrize("path", [HUB_HOSTS, f"etc/containerd/certs.d/{HOST}/hosts.toml"])
def test_a_removed_file_is_no_edit(root: Path, target: Target, path: str) -> None:
    """There is nothing to lose: revert brings the original back."""
    furnish(root)
    before = snapshot(root)
    node = NodeConfig(root, "containerd")
    node.apply(target)
    (root / path).unlink()
    node.revert()
    assert snapshot(root) == before


def test_removed_directories_are_made_again_for_an_original(root: Path, target: Target) -> None:
    """Somebody purged the package in between."""
    furnish(root)
    node = NodeConfig(root, "containerd")
    node.apply(target)
    original = b'server = "https://corporate.example"\n'
    for path in sorted((root / "etc/containerd").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (root / "etc/containerd").rmdir()
    node.revert()
    assert (root / HUB_HOSTS).read_bytes() == original
    assert not (root / "etc/containerd/certs.d" / HOST).exists()


def test_an_original_put_back_by_hand_is_no_edit(root: Path, target: Target) -> None:
    """Whatever mode it has then: revert sets it right."""
    furnish(root)
    before = snapshot(root)
    node = NodeConfig(root, "docker")
    node.apply(target)
    (root / DAEMON_JSON).write_bytes(b'{ "debug":true }')
    (root / DAEMON_JSON).chmod(0o644)
    node.revert()
    found = snapshot(root)
    assert found[DAEMON_JSON][:3] == before[DAEMON_JSON][:3]
    assert found.keys() == before.keys()


def test_somebody_else_s_file_keeps_its_directory(root: Path, target: Target) -> None:
    """It is not ours to remove, and the rest is."""
    node = NodeConfig(root, "docker")
    node.apply(target)
    theirs = _write(root, f"etc/docker/certs.d/{HOST}/client.cert", b"theirs")
    actions = node.revert()
    kept = [(a.path, a.code) for a in actions if a.verb == "kept"]
    assert kept[0] == (f"/etc/docker/certs.d/{HOST}", "not_empty")
    assert theirs.read_bytes() == b"theirs"
    assert not theirs.with_name("ca.crt").exists()
    assert node.revert() == []


def test_a_file_system_that_became_read_only(
    root: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An apply fails, a revert fails; afterwards a revert names nothing that was never made."""
    before = snapshot(root)

    def refusing(call: Callable[..., None]) -> Callable[..., None]:
        def run(path: Path, *arguments: object, **options: object) -> None:
            if path.is_relative_to(root / "etc"):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            call(path, *arguments, **options)

        return run

    with monkeypatch.context() as read_only:
        read_only.setattr(Path, "mkdir", refusing(Path.mkdir))
        with pytest.raises(OSError, match="Read-only"):
            NodeConfig(root, "docker").apply(target)
    assert NodeConfig(root, "docker").revert() == []
    assert snapshot(root) == before
    NodeConfig(root, "docker").apply(target)
    with monkeypatch.context() as read_only:
        read_only.setattr(Path, "rmdir", refusing(Path.rmdir))
        with pytest.raises(OSError, match="Read-only"):
            NodeConfig(root, "docker").revert()
    NodeConfig(root, "docker").revert()
    assert snapshot(root) == before


def test_a_merge_starts_from_the_original(root: Path, ca_pem: bytes) -> None:
    """A second target's daemon.json does not hold the first one's mirror."""
    _write(root, DAEMON_JSON, b'{"registry-mirrors": ["https://a"]}')
    node = NodeConfig(root, "docker")
    for host in ("10.0.0.5", "10.0.0.6"):
        node.apply(parse(host, ca_pem, ["docker.io"]))
    mirrors = json.loads((root / DAEMON_JSON).read_bytes())["registry-mirrors"]
    assert mirrors == ["https://10.0.0.6", "https://a"]


def test_a_linked_file_is_merged_and_the_link_comes_back(root: Path, target: Target) -> None:
    """The file it leads to is read, within the root, and never written."""
    real = _write(root, "opt/daemon.json", b'{"debug": true}')
    (root / "etc/docker").mkdir()
    (root / DAEMON_JSON).symlink_to("/opt/daemon.json")
    before = snapshot(root)
    node = NodeConfig(root, "docker")
    node.apply(target)
    assert json.loads((root / DAEMON_JSON).read_bytes())["debug"] is True
    node.apply(target)
    assert real.read_bytes() == b'{"debug": true}'
    node.revert()
    assert snapshot(root) == before


def test_links_in_a_circle_are_refused(root: Path, target: Target) -> None:
    """And end."""
    (root / "etc/docker").mkdir()
    (root / DAEMON_JSON).symlink_to("daemon.json")
    with pytest.raises(TrustError, match="too many symlinks"):
        NodeConfig(root, "docker").apply(target)


def test_a_link_out_of_the_root_is_refused(root: Path, target: Target) -> None:
    """A mounted node must not change the host it is mounted on."""
    outside = root.parent / "outside"
    outside.mkdir()
    (root / "etc/docker").symlink_to(outside)
    with pytest.raises(TrustError, match="leads out of"):
        NodeConfig(root, "docker").apply(target)
    assert list(outside.iterdir()) == []


def test_a_directory_in_place_of_a_file_is_refused(root: Path, target: Target) -> None:
    """It is named, and nothing is changed."""
    (root / DAEMON_JSON).mkdir(parents=True)
    before = snapshot(root)
    with pytest.raises(TrustError, match=r"daemon\.json: is neither a file nor a link"):
        NodeConfig(root, "docker").apply(target)
    assert snapshot(root) == before


def test_two_at_once_are_refused(root: Path, target: Target) -> None:
    """The second says so and changes nothing."""
    node = NodeConfig(root, "docker")
    node.apply(target)
    holder = os.open(root / JOURNALS.lstrip("/") / "docker", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        with pytest.raises(TrustError, match="another mayfly process"):
            node.revert()
    finally:
        os.close(holder)
    assert node.revert()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"version": 2}', b'{"version": 1}'])
def test_a_journal_not_understood_stops_both(root: Path, target: Target, content: bytes) -> None:
    """Guessing could lose the original."""
    node = NodeConfig(root, "docker")
    node.apply(target)
    (root / JOURNALS.lstrip("/") / "docker/journal.json").write_bytes(content)
    before = snapshot(root)
    for command in (node.revert, lambda: node.apply(target), lambda: node.plan(target)):
        with pytest.raises(TrustError, match=r"journal\.json: cannot be understood"):
            command()
    assert snapshot(root) == before


def test_a_lost_original_is_found_before_anything_is_changed(root: Path, target: Target) -> None:
    """A half reverted node would be worse."""
    furnish(root)
    node = NodeConfig(root, "docker")
    node.apply(target)
    for saved in (root / JOURNALS.lstrip("/") / "docker").iterdir():
        if saved.name != "journal.json":
            saved.write_bytes(b"damaged")
    before = snapshot(root)
    with pytest.raises(TrustError, match="missing or damaged"):
        node.revert()
    assert snapshot(root) == before
