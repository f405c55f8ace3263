"""docker logs in, pushes, pulls and logs out over HTTPS, trusting the CA by certs.d alone.

The registry is at an address outside 127/8, with no option given: TLS and users are the default
there. Trust is put in place by ``mayfly node-config apply`` and taken back by ``revert``.
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import version_id
from tests.clients.programs import Client, wait_for_answer
from tests.security.node import Node, NodeDockerd, NodeMayfly
from tests.security.servers import credential, one_run_users
from tests.support.programs import versions

LOCAL = "mayfly-test/small:1"
DAEMON_JSON = '{\n\t"log-level": "info",   "debug": false }\n'


@pytest.fixture(scope="module", params=["", *versions("docker")], ids=version_id)
def dockerd(node: Node, workspace: Path, request: pytest.FixtureRequest) -> Iterator[NodeDockerd]:
    """A Docker daemon on the node, whose administrator has configured it already.

    The machine's, and each engine that the manifest of programs has.
    """
    etc = node.root / "etc/docker"
    etc.mkdir(exist_ok=True)
    (etc / "daemon.json").write_text(DAEMON_JSON)
    daemon = NodeDockerd(node, workspace, request.param)
    wait_for_answer(daemon, daemon.docker, "version")
    yield daemon
    daemon.stop()


@pytest.fixture
def docker(dockerd: NodeDockerd, home: Path, archive: Path) -> Iterator[Client]:
    """The docker command, logged in nowhere, and an image to push."""
    client = Client("docker", home, *dockerd.docker.options)
    client("load", "--input", archive)
    yield client
    for image in client("image", "ls", "--format={{.Repository}}:{{.Tag}}").split():
        client("image", "rm", "--force", image)


@pytest.fixture
def trusted(node: Node, dockerd: NodeDockerd, secure: NodeMayfly) -> Iterator[None]:
    """The node trusts the registry while the test runs."""
    node.configure("apply", "docker", "--state-dir", secure.state_dir)
    yield
    node.configure("revert", "docker")


def login(docker: Client, host: str, name: str, password: str, home: Path) -> str:
    """``docker login`` as people type it."""
    given = home / "password"
    given.write_text(password)
    done = docker.run("login", "--username", name, "--password-stdin", host, stdin=given)
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output
    return output


def test_refused_without_the_ca(docker: Client, secure: NodeMayfly, home: Path) -> None:
    """Before apply, docker takes neither login nor push nor pull: the certificate is unknown."""
    given = home / "password"
    given.write_text(one_run_users(secure)["admin"])
    done = docker.run("login", "--username=admin", "--password-stdin", secure.host, stdin=given)
    assert done.returncode != 0
    assert b"certificate signed by unknown authority" in done.stderr
    docker("tag", LOCAL, f"{secure.host}/team/app:1")
    for verb in ("push", "pull"):
        told = docker.fails(verb, f"{secure.host}/team/app:1")
        assert "certificate signed by unknown authority" in told


def test_apply_and_revert_leave_no_trace(
    node: Node, dockerd: NodeDockerd, secure: NodeMayfly
) -> None:
    """Revert restores every byte, mode and owner, also after two applies; twice is once."""
    before = node.files()
    node.configure("apply", "docker", "--state-dir", secure.state_dir, "--mirror", "docker.io")
    node.configure("apply", "docker", "--state-dir", secure.state_dir)
    applied = node.files()
    ca = f"etc/docker/certs.d/{secure.host}/ca.crt"
    assert ca in applied
    assert (node.root / ca).read_bytes() == (secure.state_dir / "ca.crt").read_bytes()
    node.configure("revert", "docker")
    node.configure("revert", "docker")
    assert node.files() == before
    assert (node.root / "etc/docker/daemon.json").read_text() == DAEMON_JSON


@pytest.mark.usefixtures("trusted")
def test_login_push_pull_logout(docker: Client, secure: NodeMayfly, home: Path) -> None:
    """With the CA in certs.d the whole round works, and after logout nothing does."""
    users = one_run_users(secure)
    reference = f"{secure.host}/team/app:1"
    assert "Login Succeeded" in login(docker, secure.host, "admin", users["admin"], home)
    docker("tag", LOCAL, reference)
    pushed = docker("push", reference)
    assert "digest: sha256:" in pushed
    identity = docker("image", "inspect", "--format={{.Id}}", reference)
    docker("image", "rm", reference, LOCAL)
    assert "Downloaded newer image" in docker("pull", reference)
    assert docker("image", "inspect", "--format={{.Id}}", reference) == identity
    docker("logout", secure.host)
    for verb in ("push", "pull"):
        told = docker.fails(verb, reference)
        assert "denied" in told or "unauthorized" in told, told


@pytest.mark.usefixtures("trusted")
def test_login_keeps_no_password(docker: Client, secure: NodeMayfly, home: Path) -> None:
    """docker asks for a refresh token when it logs in, and keeps that in place of the password."""
    users = one_run_users(secure)
    login(docker, secure.host, "admin", users["admin"], home)
    kept = json.loads((home / ".docker/config.json").read_text())["auths"][secure.host]
    assert kept.get("identitytoken")
    assert users["admin"] not in (home / ".docker/config.json").read_text()
    docker("logout", secure.host)


@pytest.mark.usefixtures("trusted")
def test_wrong_password_is_said_plainly(docker: Client, secure: NodeMayfly, home: Path) -> None:
    """A wrong password is refused at the login, in words."""
    given = home / "password"
    given.write_text("wrong")
    done = docker.run("login", "--username=admin", "--password-stdin", secure.host, stdin=given)
    assert done.returncode != 0
    assert b"invalid user name or password" in done.stderr, done.stderr


@pytest.mark.usefixtures("trusted")
def test_pull_user_cannot_push(docker: Client, secure: NodeMayfly, home: Path) -> None:
    """The one-run pull user pulls what admin pushed, and a push is denied without a loop."""
    users = one_run_users(secure)
    reference = f"{secure.host}/team/shared:1"
    login(docker, secure.host, "admin", users["admin"], home)
    docker("tag", LOCAL, reference)
    docker("push", reference)
    login(docker, secure.host, "pull", users["pull"], home)
    docker("pull", reference)
    docker("tag", LOCAL, f"{secure.host}/team/new:1")
    told = docker.fails("push", f"{secure.host}/team/new:1")
    assert "denied" in told or "unauthorized" in told or "does not grant" in told, told


@pytest.mark.usefixtures("trusted")
def test_unreadable_mount_source_does_not_fail_a_push(
    docker: Client, secure: NodeMayfly, home: Path
) -> None:
    """docker offers layers of a repository the pusher may not read: they are uploaded instead."""
    login(docker, secure.host, "admin", one_run_users(secure)["admin"], home)
    first = f"{secure.host}/secret/app:1"
    docker("tag", LOCAL, first)
    docker("push", first)
    made = credential(secure, "--push", "--repositories", "public/**", "--name", "builder")
    login(docker, secure.host, made["username"], made["password"], home)
    docker.fails("pull", first)
    second = f"{secure.host}/public/app:1"
    docker("tag", LOCAL, second)
    pushed = docker("push", second)
    assert "digest: sha256:" in pushed
    assert "Mounted from secret/app" not in pushed


@pytest.mark.usefixtures("trusted")
def test_short_lived_credential_logs_in(docker: Client, secure: NodeMayfly, home: Path) -> None:
    """What `mayfly credentials` prints is a user name and password like any other to docker."""
    made = credential(secure, "--push", "--hours", "1")
    reference = f"{secure.host}/team/robot:1"
    login(docker, secure.host, made["username"], made["password"], home)
    docker("tag", LOCAL, reference)
    docker("push", reference)
    docker("image", "rm", reference)
    docker("pull", reference)


def test_hub_name_comes_from_a_bundle(
    node: Node, dockerd: NodeDockerd, docker: Client, archive: Path, workspace: Path
) -> None:
    """`small:1` without retagging, through the mirror of docker.io that apply configured.

    Docker asks mirrors without credentials.
    """
    docker("image", "rm", "--force", LOCAL)
    directory = Path(tempfile.mkdtemp(prefix="mirror-", dir=workspace))
    bundle = directory / "hub.tar"
    skopeo = Client("skopeo", directory, "--insecure-policy")
    skopeo("copy", f"docker-archive:{archive}", f"oci-archive:{bundle}:docker.io/library/small:1")
    with NodeMayfly(node, directory, str(bundle), "--anonymous", "pull") as server:
        told = node.configure(
            "apply", "docker", "--state-dir", server.state_dir, "--mirror", "docker.io"
        )
        assert "/etc/docker/daemon.json" in told
        dockerd.popen.send_signal(signal.SIGHUP)
        mirrors = "{{.RegistryConfig.Mirrors}}"
        dockerd.wait_for(lambda: server.host in docker("info", "--format", mirrors))
        assert "Downloaded newer image for small:1" in docker("pull", "small:1")
        node.configure("revert", "docker")


def test_start_tells_how_to_trust_it(secure: NodeMayfly) -> None:
    """Off loopback, the first lines have the address, the users and the command that sets up nodes.

    No password among them, since nobody reads them on a terminal: journald and kubectl keep logs.
    """
    told = secure.output()
    assert f"ready at https://{secure.host}" in told
    assert str(secure.state_dir / "credentials.json") in told
    for name, password in one_run_users(secure).items():
        assert name in told and password not in told
    assert f"mayfly node-config show --state-dir {secure.state_dir}" in told
    assert "CERTIFICATE" not in told
