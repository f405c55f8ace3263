"""podman: push, push again, pull and run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote

from tests.clients.images import Images
from tests.clients.layout import Layout, layer
from tests.clients.programs import Client
from tests.support.process import REPO, Mayfly

TLS = "--tls-verify=false"
# podman's defaults raise the limits of this process, which takes a capability.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")


def load(podman: Client, skopeo: Client, images: Images, scratch: Path, name: str) -> str:
    """Bring an image of the layout into podman's storage: its id."""
    archive = scratch / f"{name}.tar"
    reference = f"localhost/mayfly-test/{name}:1"
    skopeo("copy", f"oci:{images.layout}:{name}", f"docker-archive:{archive}:{reference}")
    podman("load", f"--input={archive}")
    return podman("image", "inspect", "--format={{.Id}}", reference).strip()


def test_pushed_image_is_pulled_and_runs(
    podman: Client, skopeo: Client, images: Images, mayfly: Mayfly, repository: str, scratch: Path
) -> None:
    """A pushed image that was removed is pulled with the same id, and its container runs."""
    local = load(podman, skopeo, images, scratch, "debian")
    reference = f"{mayfly.host}/{repository}:debian"
    podman("push", TLS, local, reference)
    podman("image", "rm", "--force", local)
    assert local not in podman("image", "ls", "--quiet", "--no-trunc")
    assert podman("pull", "--quiet", TLS, reference).strip() == local
    output = podman("run", "--rm", "--network=none", *LIMITS, reference)
    assert "ID=debian" in output.splitlines()


def test_only_the_first_push_uploads(
    podman: Client,
    skopeo: Client,
    images: Images,
    start_mayfly: Callable[[], Mayfly],
    repository: str,
    scratch: Path,
) -> None:
    """A second push finds every blob, one to another repository mounts both layers."""
    # podman shares with skopeo what it remembers of a registry: one of its own is unknown.
    mayfly = start_mayfly()
    local = load(podman, skopeo, images, scratch, "small")
    requests, digests = [], []
    for target in (repository, repository, f"{repository}/second"):
        options = ["--log-level=debug", TLS, f"--digestfile={scratch}/digest"]
        pushed = podman.run("push", *options, local, f"{mayfly.host}/{target}:small")
        assert pushed.returncode == 0, pushed.stderr.decode()
        requests.append(re.findall(r'msg="((?:POST|PATCH|PUT) [^"]+)"', pushed.stderr.decode()))
        digests.append((scratch / "digest").read_text())
    first, second, other = requests
    assert len([line for line in first if line.startswith("PATCH")]) == 3
    assert not [line for line in second if "/blobs/" in line]
    assert len([line for line in other if "mount=" in line]) == 2
    # The configuration is never mounted.
    assert len([line for line in other if line.startswith("PATCH")]) == 1
    assert len(set(digests)) == 1


def test_manifest_list_is_pushed_and_pulled_from(
    podman: Client, skopeo: Client, images: Images, mayfly: Mayfly, repository: str, scratch: Path
) -> None:
    """A list made by podman goes in with its image, and a pull takes the image from it."""
    local = load(podman, skopeo, images, scratch, "small")
    reference = f"{mayfly.host}/{repository}:list"
    podman("manifest", "create", "mayfly-test/list", f"containers-storage:{local}")
    podman("manifest", "push", "--all", TLS, "mayfly-test/list", f"docker://{reference}")
    podman("image", "rm", "--force", local)
    assert podman("pull", "--quiet", TLS, reference).strip() == local


def test_pull_by_the_command_of_a_run(podman: Client, scratch: Path) -> None:
    """`MAYFLY_CERT_DIR`, as it is given to the command, is all that podman and skopeo need to trust
    the registry: no option of theirs turns the check off."""
    options = " ".join(map(quote, [podman.program, *podman.options]))
    layout = Layout(scratch / "layout")
    layout.add("team/small:1", layer({"etc/small": b"small"}))
    bundle = layout.archive()
    script = scratch / "pull.sh"
    script.write_text(
        "set -eu\n"
        'skopeo --insecure-policy copy --src-cert-dir "$MAYFLY_CERT_DIR" --dest-cert-dir '
        '"$MAYFLY_CERT_DIR" "docker://$MAYFLY_HOST/team/small:1" "docker://$MAYFLY_HOST/copy:1"\n'
        f'{options} pull --cert-dir "$MAYFLY_CERT_DIR" "$MAYFLY_HOST/team/small:1"\n'
        f'{options} image rm "$MAYFLY_HOST/team/small:1"\n'
        f'! {options} pull "$MAYFLY_HOST/team/small:1" 2>untrusted\n'
        "grep -q 'unknown authority' untrusted\n"
    )
    words = ["run", bundle, "--root", scratch / "root", "--state-dir", scratch / "state"]
    words += ["--listen", "127.0.0.1:0", "--tls", "auto", "--auth", "auto"]
    done = subprocess.run(
        [sys.executable, "-m", "mayfly", *map(str, words), "--", "sh", str(script)],
        cwd=scratch,
        env={**podman.env, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (scratch / "untrusted").read_text()
