"""Real clients trust what was made and read what was written.

Node configuration has fixed places below /etc, so the clients run in a mount namespace of their
own where the configured node's directories lie over the machine's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mayfly.registry.nodes.journal import NodeConfig
from mayfly.registry.nodes.runtimes import Runtime
from mayfly.registry.nodes.target import parse
from mayfly.registry.pki.authority import CertificateFiles
from mayfly.registry.pki.context import ServerTLS
from tests.clients.programs import Containerd
from tests.support.certificates import CLIENT, self_signed
from tests.support.process import find_program, need, need_root
from tests.support.serving import Served, serving

IMAGE = "library/small"

# Called with: what to lay over, where, and the command. Ends with its process, mounts and all.
_OVERLAID = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'


@pytest.fixture(params=[False, True], ids=["any name", "constrained"])
def identity(
    request: pytest.FixtureRequest, identity: CertificateFiles, constrained: CertificateFiles
) -> CertificateFiles:
    """Every client is tried with a CA that may sign any name, and with one of `--tls-constrain`."""
    return constrained if request.param else identity


@pytest.fixture
def server(identity: CertificateFiles) -> Iterator[Served]:
    """A registry on TLS, with one image by its short and its full name."""
    with serving(
        ServerTLS(identity.certificate, identity.key).context, IMAGE, f"docker.io/{IMAGE}"
    ) as served:
        yield served


def _run(*command: str | Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and all that was said."""
    program = find_program(str(command[0]))
    assert program is not None
    done = subprocess.run(
        [program, *command[1:]],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    return done.returncode, done.stdout.decode()


def _on_node(root: Path, directory: str, command: Sequence[str | Path]) -> tuple[int, str]:
    """Run a command where ``directory`` is the node's."""
    need_root()
    if not Path(directory).is_dir():
        pytest.skip(f"needs a directory {directory} to mount on (install: its package)")
    return _run(
        "unshare", "--mount", "sh", "-c", _OVERLAID, "sh", f"{root}{directory}", directory, *command
    )


def _apply(runtime: Runtime, root: Path, host: str, ca: Path) -> None:
    NodeConfig(root, runtime).apply(parse(host, ca.read_bytes(), ["docker.io"]))


@pytest.fixture
def other_ca(tmp_path: Path) -> Path:
    """A CA that signed nothing here."""
    return self_signed(tmp_path, "other", ca=True).certificate


@pytest.mark.parametrize("options", [[], ["--tls-max", "1.2"]], ids=["1.3", "1.2"])
def test_curl(
    server: Served, identity: CertificateFiles, other_ca: Path, options: list[str]
) -> None:
    """It verifies chain and address, and refuses without our CA."""
    need("curl")
    url = f"https://{server.host}/v2/"
    assert _run("curl", "-sS", *options, "--cacert", identity.ca, url) == (0, "{}")
    code, output = _run("curl", "-sS", *options, "--cacert", other_ca, url)
    assert (code, "certificate" in output) == (60, True)


def test_openssl(server: Served, identity: CertificateFiles) -> None:
    """With its strict checks of RFC 5280 on."""
    need("openssl")
    code, output = _run(
        *("openssl", "s_client", "-connect", server.host, "-CAfile", identity.ca),
        *("-x509_strict", "-verify_return_error", "-verify_ip", "127.0.0.1", "-alpn", "http/1.1"),
    )
    assert code == 0, output
    assert "Verify return code: 0 (ok)" in output
    assert "ALPN protocol: http/1.1" in output


def test_curl_with_a_client_certificate(identity: CertificateFiles, tmp_path: Path) -> None:
    """The handshake says who is calling."""
    need("curl")
    pair = self_signed(tmp_path, common_names=["node-7"], purpose=CLIENT, ca=True)
    tls = ServerTLS(identity.certificate, identity.key, pair.certificate)
    curl = ("curl", "-sS", "--cacert", identity.ca)
    with serving(tls.context) as server:
        url = f"https://{server.host}/v2/"
        assert _run(*curl, url)[0] == 0
        assert _run(*curl, "--cert", pair.certificate, "--key", pair.key, url)[0] == 0
    assert server.callers == [None, "node-7"]


def test_go_verifies_the_chain(server: Served, identity: CertificateFiles) -> None:
    """crane, with our CA as the only one in the system's pool."""
    need("crane")
    trusted = {"SSL_CERT_FILE": str(identity.ca), "SSL_CERT_DIR": "/nonexistent"}
    code, output = _run("crane", "manifest", f"{server.host}/{IMAGE}:1", env=trusted)
    assert code == 0, output


def test_skopeo_by_certificate_directory(
    server: Served, identity: CertificateFiles, root: Path
) -> None:
    """What apply puts in certs.d is what it reads there."""
    need("skopeo")
    inspect = ("skopeo", "inspect", "--raw", f"docker://{server.host}/{IMAGE}:1")
    code, output = _run(*inspect)
    assert code != 0
    assert "x509" in output
    _apply("podman", root, server.host, identity.ca)
    certs = root / "etc/containers/certs.d" / server.host
    code, output = _run(*inspect, "--cert-dir", certs)
    assert code == 0, output


def test_podman_by_certificate_directory(
    server: Served, identity: CertificateFiles, other_ca: Path, tmp_path: Path
) -> None:
    """podman pulls the image, and refuses another CA."""
    need_root()
    need("podman")
    # podman refuses a run root of more than 50 characters.
    run = tempfile.mkdtemp(prefix="mayfly-")
    storage = (f"--root={tmp_path / 'storage'}", f"--runroot={run}")
    podman = ("podman", *storage, "--storage-driver=vfs")
    outcomes = []
    for name, ca in (("ours", identity.ca), ("other", other_ca)):
        certs = tmp_path / name
        certs.mkdir()
        shutil.copy(ca, certs / "ca.crt")
        pull = ("pull", f"--cert-dir={certs}", f"{server.host}/{IMAGE}:1")
        outcomes.append(_run(*podman, *pull))
    shutil.rmtree(run)
    assert outcomes[0][0] == 0, outcomes[0]
    assert outcomes[1][0] != 0 and "x509" in outcomes[1][1]


@pytest.fixture
def containers(root: Path) -> Path:
    """A node with the machine's own /etc/containers."""
    if Path("/etc/containers").is_dir():
        shutil.copytree("/etc/containers", root / "etc/containers", symlinks=True)
    return root


def test_skopeo_on_a_node(
    server: Served, identity: CertificateFiles, other_ca: Path, containers: Path
) -> None:
    """By the registry's name and, through the mirror, by Docker Hub's; and not after revert."""
    need("skopeo")
    own = ("skopeo", "inspect", "--raw", f"docker://{server.host}/{IMAGE}:1")
    hub = ("skopeo", "inspect", "--raw", f"docker://docker.io/{IMAGE}:1")
    _apply("podman", containers, server.host, other_ca)
    code, output = _on_node(containers, "/etc/containers", own)
    assert (code != 0, "x509" in output) == (True, True)
    _apply("podman", containers, server.host, identity.ca)
    for inspect in (own, hub):
        code, output = _on_node(containers, "/etc/containers", inspect)
        assert code == 0, output
    assert f"/v2/docker.io/{IMAGE}/manifests/1" in server.asked
    NodeConfig(containers, "podman").revert()
    code, output = _on_node(containers, "/etc/containers", own)
    assert (code != 0, "x509" in output) == (True, True)


def test_skopeo_on_a_node_without_tls(containers: Path) -> None:
    """insecure = true reaches the registry and the mirror."""
    need("skopeo")
    with serving(None, IMAGE, f"docker.io/{IMAGE}") as server:
        NodeConfig(containers, "podman").apply(parse(server.host, mirrors=["docker.io"]))
        for host in (server.host, "docker.io"):
            inspect = ("skopeo", "inspect", "--raw", f"docker://{host}/{IMAGE}:1")
            code, output = _on_node(containers, "/etc/containers", inspect)
            assert code == 0, output
    assert f"/v2/docker.io/{IMAGE}/manifests/1" in server.asked


def test_containerd_on_a_node(
    server: Served, identity: CertificateFiles, other_ca: Path, root: Path, tmp_path: Path
) -> None:
    """hosts.toml names the CA; the mirror is told which upstream was meant."""
    need_root()
    (root / "etc/containerd").mkdir()
    containerd = Containerd(tmp_path / "containerd", tmp_path)
    fetch = [str(containerd.ctr.program), *containerd.ctr.options, "content", "fetch"]
    fetch += ["--hosts-dir", "/etc/containerd/certs.d"]
    own, hub = f"{server.host}/{IMAGE}:1", f"docker.io/{IMAGE}:1"
    try:
        _apply("containerd", root, server.host, other_ca)
        code, output = _on_node(root, "/etc/containerd", [*fetch, own])
        assert (code != 0, "x509" in output) == (True, True)
        _apply("containerd", root, server.host, identity.ca)
        for reference in (own, hub):
            code, output = _on_node(root, "/etc/containerd", [*fetch, reference])
            assert code == 0, output
    finally:
        containerd.stop()
    assert f"/v2/{IMAGE}/manifests/1" in server.asked
    assert f"/v2/{IMAGE}/manifests/1?ns=docker.io" in server.asked


def test_containerd_on_a_node_without_tls(root: Path, tmp_path: Path) -> None:
    """The scheme in hosts.toml says it."""
    need_root()
    (root / "etc/containerd").mkdir()
    containerd = Containerd(tmp_path / "containerd", tmp_path)
    fetch = [str(containerd.ctr.program), *containerd.ctr.options, "content", "fetch"]
    fetch += ["--hosts-dir", "/etc/containerd/certs.d"]
    try:
        with serving(None, IMAGE) as server:
            NodeConfig(root, "containerd").apply(parse(server.host, mirrors=["docker.io"]))
            for host in (server.host, "docker.io"):
                fetched = [*fetch, f"{host}/{IMAGE}:1"]
                code, output = _on_node(root, "/etc/containerd", fetched)
                assert code == 0, output
    finally:
        containerd.stop()
    assert f"/v2/{IMAGE}/manifests/1?ns=docker.io" in server.asked
