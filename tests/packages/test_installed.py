"""The packages: that for Debian in one with systemd as PID 1 (inside.sh runs in there), the rpm."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mayfly.registry.version import VERSION
from tests.bundle.builders import Layout, layers
from tests.support.packing import builder, stand_in
from tests.support.process import REPO, find_program, need, need_root, remove_tree

INSIDE = Path(__file__).with_name("inside.sh")

PACKAGES = "systemd,systemd-sysv,dbus,ca-certificates,curl,procps"
REBOOTED = 133
"""Exit code of systemd-nspawn."""

UNIT = """
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo boot >>/boots; exec sh /inside.sh $$(wc -l </boots)'
"""


def _run(*words: object) -> None:
    argv = [str(word) for word in words]
    done = subprocess.run(
        [find_program(argv[0]) or argv[0], *argv[1:]], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.timeout(3000)
def test_installed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed, served as its user, crashed, rebooted: credentials hold. Removed: nothing is left.

    But the users and grants that were made, and the user that they belong to.
    """
    need_root()
    need("systemd-nspawn", "debootstrap", "dpkg-deb", "cc", "strip")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", builder().EPOCH)
    home = workspace / "packages"
    machine = home / "machine"
    machine.mkdir(parents=True)
    try:
        _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", machine)
        _run(sys.executable, REPO / "deploy/onefile/build.py", home)
        builder().lay_out(home / "tree", home / f"mayfly-{VERSION}-linux-x86_64")
        shutil.copy(builder().make_deb(home / "tree", home, "x86_64"), machine / "mayfly.deb")
        layout = Layout()
        layout.name(layout.image(layers("one")[0]), "quay.example/team/app:1")
        layout.write_tar(machine / "srv/up.tar")
        shutil.copy(INSIDE, machine / "inside.sh")
        units = machine / "etc/systemd/system"
        (units / "inside.service").write_text(UNIT)
        (units / "multi-user.target.wants").mkdir(exist_ok=True)
        (units / "multi-user.target.wants/inside.service").symlink_to("../inside.service")
        codes = [_boot(machine, home / "console") for _ in range(2)]
        result = (machine / "result").read_text()
        assert codes == [REBOOTED, 0], result
        _, _, left = result.partition("inactive\ninactive\n")
        assert left.splitlines()[:3] == [
            "/etc/mayfly",
            "/etc/mayfly/grants.toml",
            "/etc/mayfly/htpasswd",
        ], result
        assert left.splitlines()[3].startswith("mayfly:x:")
        assert left.splitlines()[4:] == ["== done"]
    finally:
        remove_tree(home)


def _boot(machine: Path, console: Path) -> int:
    """Boot until it powers off or reboots; the exit code."""
    options = ("--register=no", "--keep-unit", "--private-network", "--boot")
    argv = [find_program("systemd-nspawn") or "", "-D", str(machine), *options]
    with console.open("ab") as output:
        # It would take the terminal.
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=1200
        ).returncode


def test_rpm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one file as it was, not stripped; and the same bytes when it is built again."""
    need("rpmbuild", "rpm")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", builder().EPOCH)
    one_file = stand_in(tmp_path / f"mayfly-{VERSION}-linux-x86_64")
    Path(f"{one_file}.cdx.json").write_text("{}")
    rpms = []
    for number in ("1", "2"):
        tree = tmp_path / number / "tree"
        builder().lay_out(tree, one_file)
        rpms.append(builder().make_rpm(tree, tree.parent, "x86_64"))
    assert rpms[0].name == f"mayfly-{VERSION}-1.x86_64.rpm"
    assert rpms[0].read_bytes() == rpms[1].read_bytes()
    first = _query(rpms[0], "--dump")
    digest = builder()._sha256(one_file.read_bytes())
    assert f" {digest} 0100755 root root " in first
    assert _query(rpms[0], "--requires").count("\n") < 10
    assert "libc.so" not in _query(rpms[0], "--requires")


def _query(rpm: Path, *words: str) -> str:
    argv = ["rpm", "--query", "--package", *words, str(rpm)]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
