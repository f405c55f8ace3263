"""The packages, in a Linux with systemd as PID 1 (inside.sh runs in there), and the rpm's bytes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mayfly.registry.version import VERSION
from tests.bundle.builders import Layout, layers
from tests.packages.conftest import debian
from tests.support.packing import builder, stand_in
from tests.support.process import find_program, need, need_root

INSIDE = Path(__file__).with_name("inside.sh")

PACKAGES = "systemd,systemd-sysv,dbus,ca-certificates,curl,procps"
REBOOTED = 133
"""Exit code of systemd-nspawn."""

OLDER = f"{VERSION}~1"
"""A version before this one, for both kinds of package."""

UNIT = """
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo boot >>/boots; exec sh /inside.sh $$(wc -l </boots) {kind}'
"""

SYSTEM = """
Name: system
Version: 1
Release: 1
Summary: Stands for the packages that a system of rpm's own has
License: none
BuildArch: noarch
Provides: /bin/sh
%description
%files
"""


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("kind", "suite"), [("deb", "bookworm"), ("rpm", "bullseye")])
def test_installed(
    kind: str, suite: str, one_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed, served as its user, upgraded, crashed, rebooted: credentials hold.

    Removed: nothing is left but the users and grants that were made, and the user that they belong
    to. The rpm is installed by Debian's rpm, into a database of its own.
    """
    need_root()
    need("systemd-nspawn", "debootstrap", "dpkg-deb")
    machine = home / "machine"
    debian(suite, machine, f"{PACKAGES},rpm" if kind == "rpm" else PACKAGES)
    for name, version in (("old", OLDER), ("new", VERSION)):
        monkeypatch.setattr(builder(), "VERSION", version)
        tree = home / name / "tree"
        builder().lay_out(tree, one_file)
        make = builder().make_deb if kind == "deb" else builder().make_rpm
        shutil.move(make(tree, home, "x86_64"), machine / f"{name}.{kind}")
    if kind == "rpm":
        _make_system(home, machine)
    layout = Layout()
    layout.name(layout.image(layers("one")[0]), "quay.example/team/app:1")
    layout.write_tar(machine / "srv/up.tar")
    shutil.copy(INSIDE, machine / "inside.sh")
    units = machine / "etc/systemd/system"
    (units / "inside.service").write_text(UNIT.format(kind=kind))
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/inside.service").symlink_to("../inside.service")
    codes = [_boot(machine, home / "console") for _ in range(2)]
    result = (machine / "result").read_text()
    assert codes == [REBOOTED, 0], result
    _, _, left = result.partition("inactive\ninactive\n")
    stays = ["/etc/mayfly", "/etc/mayfly/grants.toml", "/etc/mayfly/htpasswd"]
    if kind == "rpm":  # settings that were changed, as of any rpm
        stays.append("/etc/mayfly/mayfly.env.rpmsave")
    *found, user, done = left.splitlines()
    assert found == stays, result
    assert user.startswith("mayfly:x:")
    assert done == "== done"


def _boot(machine: Path, console: Path) -> int:
    """Boot until it powers off or reboots; the exit code."""
    options = ("--register=no", "--keep-unit", "--private-network", "--boot")
    argv = [find_program("systemd-nspawn") or "", "-D", str(machine), *options]
    with console.open("ab") as output:
        # It would take the terminal.
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=1200
        ).returncode


def _make_system(home: Path, machine: Path) -> None:
    """Write a package that provides what Debian's packages do, which rpm does not know."""
    need("rpmbuild")
    spec = home / "system.spec"
    spec.write_text(SYSTEM)
    words = ["rpmbuild", "-bb", "--quiet", "--define", f"_topdir {home}/system", str(spec)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=300)
    (made,) = home.glob("system/RPMS/*/*.rpm")
    shutil.move(made, machine / "system.rpm")


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
    # Directories of its own, which rpm then removes; not those of the system.
    listed = _query(rpms[0], "--list").splitlines()
    assert {"/usr/share/doc/mayfly", "/usr/share/fish/vendor_completions.d"} <= set(listed)
    assert not {"/usr/bin", "/usr/share", "/usr/share/man/man1", "/etc/mayfly"} & set(listed)


def _query(rpm: Path, *words: str) -> str:
    argv = ["rpm", "--query", "--package", *words, str(rpm)]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
