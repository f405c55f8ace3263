"""The .run file in Debian 11 without Python and network: it carries an upgrade of two nodes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.rehearsal import EXAMPLE, IMAGES
from tests.packages.conftest import debian
from tests.support.process import need, need_root

INSIDE = Path(__file__).with_name("old_host.sh")
PACKAGES = "docker.io,containerd,runc,iproute2,ca-certificates"
PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ROOT = """
mount --bind "$1" "$1"
mount --rbind /dev "$1/dev"
exec chroot "$1" env -i PATH="$2" sh /old_host.sh
"""
"""A root that is a mount point, as docker needs it to unpack layers."""


@pytest.mark.timeout(1800)
def test_upgrade_of_two_nodes(one_file: Path, home: Path) -> None:
    """Over TLS to its docker and its containerd, which are older than any that CI has."""
    need_root()
    need("debootstrap", "unshare", "chroot", "mount")
    machine = home / "machine"
    debian("bullseye", machine, PACKAGES)
    upgrade = machine / "upgrade"
    shutil.copytree(EXAMPLE, upgrade, ignore=shutil.ignore_patterns("expected"))
    subprocess.run(["./make-bundle.sh"], cwd=upgrade, check=True, timeout=60)
    (upgrade / "nodes.txt").write_text("node-docker\nnode-containerd\n")
    until = ("--until-pulled", "images.txt", "--nodes", "nodes.txt", "--max-lifetime", "5m")
    listen = ("--listen", "127.0.0.1:5000", "--tls", "auto", "--auth", "auto")
    pack = ("pack", "bundle.tar", "-o", machine / "upgrade.run", "--script", "upgrade.sh")
    subprocess.run([one_file, *pack, *until, *listen], cwd=upgrade, check=True, timeout=60)
    (machine / "usr/local/bin/mayfly").symlink_to("/upgrade.run")
    shutil.copy(INSIDE, machine)
    namespaces = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child")
    done = subprocess.run(
        [*namespaces, "sh", "-ec", ROOT, "sh", machine, PATH],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert "ended because every node has every image" in lines
    for image in IMAGES:
        assert any(line.endswith(f"docker has 127.0.0.1:5000/{image}") for line in lines), image
        assert f"containerd has 127.0.0.1:5000/{image}" in lines, image
    made = {line.split()[1] for line in lines if line.startswith("made ")}
    ours = ("/before", "/after", "/etc/containerd/certs.d", "/etc/docker/certs.d", "/root/store",
            "/state", "/upgrade/login", "/var/lib/mayfly-node-config")  # fmt: skip
    assert {path for path in made if not path.startswith(ours)} == set()
    assert not [line for line in lines if line.startswith("left ")]
