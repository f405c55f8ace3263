"""kubelet's way: PullImage over containerd's socket, with what the printed Secret says.

crictl makes the gRPC call that kubelet makes. The credentials are found by kubelet's rules, the
trust is what ``mayfly node-config apply`` wrote, and containerd reads it without a restart.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.auth.globs import parse_glob
from mayfly.auth.identity import Permission
from mayfly.auth.robots import MIN_LIFETIME, Robots
from mayfly.auth.roles import Role
from mayfly.registry.access.policy_files import load_key
from mayfly.registry.state import runs
from tests.clients.images import Images
from tests.clients.programs import Client
from tests.security.keyring import AuthConfig, lookup
from tests.security.node import Node, NodeContainerd, NodeMayfly
from tests.security.servers import credential, one_run_users
from tests.support.commands import run_mayfly
from tests.support.process import need


@pytest.fixture(scope="module")
def containerd(node: Node) -> Iterator[NodeContainerd]:
    """A containerd on the node, that was configured for host directories and nothing else."""
    need("crictl")
    daemon = NodeContainerd(node)
    crictl = Client("crictl", node.directory, *_options(daemon))
    daemon.wait_for(lambda: crictl.run("images", timeout=30).returncode == 0)
    yield daemon
    daemon.stop()


def _options(daemon: NodeContainerd) -> list[str]:
    endpoint = f"unix://{daemon.socket}"
    return [f"--runtime-endpoint={endpoint}", f"--image-endpoint={endpoint}", "--timeout=60s"]


@pytest.fixture
def crictl(containerd: NodeContainerd, home: Path) -> Iterator[Client]:
    """crictl, and no image left over to the next test."""
    client = Client("crictl", home, *_options(containerd))
    yield client
    for image in json.loads(client("images", "--output=json"))["images"]:
        client("rmi", image["id"])


@pytest.fixture
def trusted(node: Node, containerd: NodeContainerd, secure: NodeMayfly) -> Iterator[None]:
    """The node trusts the registry while the test runs."""
    node.configure("apply", "containerd", "--state-dir", secure.state_dir)
    yield
    node.configure("revert", "containerd")


@pytest.fixture(scope="module")
def pushed(images: Images, node: Node, secure: NodeMayfly, workspace: Path) -> str:
    """The small image in the registry, under two names."""
    home = node.directory / "pusher"
    home.mkdir()
    (home / "auth.json").write_text("{}")
    skopeo = node.client("skopeo", home, "--insecure-policy")
    for name in ("team/app", "secret/app"):
        skopeo(
            "copy",
            f"--dest-creds=admin:{one_run_users(secure)['admin']}",
            f"--dest-cert-dir={_certs(secure, home)}",
            f"oci:{images.layout}:small",
            f"docker://{secure.host}/{name}:1",
        )
    return f"{secure.host}/team/app:1"


def _certs(secure: NodeMayfly, home: Path) -> Path:
    certs = home / "certs"
    certs.mkdir(exist_ok=True)
    (certs / "ca.crt").write_bytes((secure.state_dir / "ca.crt").read_bytes())
    return certs


def secret(secure: NodeMayfly, *options: str) -> dict[str, Any]:
    """The Secret that ``mayfly credentials`` prints."""
    arguments = ("--state-dir", secure.state_dir, "--format", "secret", *options)
    return dict(json.loads(run_mayfly("credentials", *arguments)))


def pull(crictl: Client, image: str, auth: AuthConfig | None) -> tuple[int, str]:
    """PullImage: how it ended, and what it said."""
    creds = [] if auth is None else [f"--creds={auth.username}:{auth.password}"]
    done = crictl.run("pull", *creds, image, timeout=90)
    return done.returncode, (done.stdout + done.stderr).decode()


def as_kubelet(crictl: Client, image: str, *secrets: dict[str, Any]) -> tuple[int, str]:
    """Pull as kubelet does: with each credential that matches, until one works; else with none."""
    found = lookup(list(secrets), image.rpartition(":")[0])
    outcome = (1, "nothing tried")
    for auth in (*found, *([] if found else [None])):
        outcome = pull(crictl, image, auth)
        if outcome[0] == 0:
            break
    return outcome


@pytest.mark.usefixtures("trusted")
def test_pull_with_the_printed_secret(crictl: Client, secure: NodeMayfly, pushed: str) -> None:
    """PullImage with the Secret's credentials brings the image, over TLS, by hosts.toml."""
    status, told = as_kubelet(crictl, pushed, secret(secure, "--hours", "2", "--node", "node-1"))
    assert status == 0, told
    listed = json.loads(crictl("images", "--output=json"))["images"]
    assert [image["repoTags"] for image in listed] == [[pushed]]


def test_secret_has_the_form_kubernetes_wants(secure: NodeMayfly) -> None:
    """Type, key, name and namespace are an imagePullSecret's, and it matches this host alone."""
    made = secret(secure, "--secret-name", "pull-one", "--namespace", "apps")
    assert made["type"] == "kubernetes.io/dockerconfigjson"
    assert made["metadata"] == {"name": "pull-one", "namespace": "apps"}
    assert set(made["data"]) == {".dockerconfigjson"}
    host, _, port = secure.host.partition(":")
    (found,) = lookup([made], f"{secure.host}/any/image")
    assert found.username.startswith("robot+")
    for other in (host, f"{host}:{int(port) + 1}", f"x.{secure.host}", "docker.io"):
        assert lookup([made], f"{other}/any/image") == []


@pytest.mark.usefixtures("trusted")
def test_right_secret_among_wrong_ones(crictl: Client, secure: NodeMayfly, pushed: str) -> None:
    """Several Secrets match: kubelet tries the wrong one, then the one that works."""
    wrong = secret(secure, "--repositories", "elsewhere/**", "--name", "elsewhere")
    status, told = as_kubelet(crictl, pushed, wrong, secret(secure))
    assert status == 0, told


@pytest.mark.usefixtures("trusted")
def test_wrong_secret_is_refused_clearly(crictl: Client, secure: NodeMayfly, pushed: str) -> None:
    """A forged password and one for other repositories fail, and say that it is authorization."""
    (good,) = lookup([secret(secure)], pushed.rpartition(":")[0])
    forged = AuthConfig(good.username, good.password[:-8] + "AAAAAAAA")
    status, told = pull(crictl, pushed, forged)
    assert status != 0
    assert "401 Unauthorized" in told, told
    (elsewhere,) = lookup(
        [secret(secure, "--repositories", "team/**")], f"{secure.host}/secret/app"
    )
    status, told = pull(crictl, f"{secure.host}/secret/app:1", elsewhere)
    assert status != 0
    assert "authorization failed" in told or "insufficient_scope" in told, told


@pytest.mark.usefixtures("trusted")
def test_no_secret_is_refused(crictl: Client, pushed: str) -> None:
    """Without imagePullSecrets nothing is pulled."""
    status, told = as_kubelet(crictl, pushed)
    assert status != 0
    assert "authorization failed" in told or "401" in told, told


@pytest.mark.usefixtures("trusted")
def test_secret_expires(crictl: Client, secure: NodeMayfly, pushed: str) -> None:
    """A credential works until its end and is refused after it, for an image that is there too.

    `mayfly credentials` gives a minute at least; this one was given most of a minute ago.
    """
    run = runs.load(secure.state_dir)
    assert run is not None
    robots = Robots(load_key(secure.state_dir / "signing.key"), run.id)
    permission = Permission(Role.LIMITED_GUEST, parse_glob("**"))
    left = 6
    given = time.time() - MIN_LIFETIME + left
    made = robots.issue("short", [permission], MIN_LIFETIME, given)
    auth = AuthConfig(made.name, made.password)
    status, told = pull(crictl, pushed, auth)
    assert status == 0, told
    assert made.expires is not None
    time.sleep(max(0.0, made.expires - time.time()))
    status, told = pull(crictl, pushed, auth)
    assert status != 0
    assert "401 Unauthorized" in told, told


def test_untrusted_without_hosts_toml(
    node: Node, crictl: Client, secure: NodeMayfly, pushed: str
) -> None:
    """Before apply and after revert containerd does not know the CA, and the tree is as it was."""
    before = node.files()
    made = secret(secure)
    for _ in range(2):
        status, told = as_kubelet(crictl, pushed, made)
        assert status != 0
        assert "certificate signed by unknown authority" in told, told
        node.configure("apply", "containerd", "--state-dir", secure.state_dir)
        status, told = as_kubelet(crictl, pushed, made)
        assert status == 0, told
        node.configure("revert", "containerd")
        assert node.files() == before


@pytest.mark.usefixtures("trusted")
def test_hosts_toml_names_server_and_host(node: Node, secure: NodeMayfly) -> None:
    """containerd 1.6 wants both, and the CA where the node sees it."""
    directory = node.root / "etc/containerd/certs.d" / secure.host
    written = (directory / "hosts.toml").read_text()
    assert f'server = "https://{secure.host}"' in written
    assert f'[host."https://{secure.host}"]' in written
    assert f'ca = "/etc/containerd/certs.d/{secure.host}/ca.crt"' in written


@pytest.mark.usefixtures("trusted")
def test_unreadable_mount_source_does_not_fail_a_push(
    node: Node, containerd: NodeContainerd, secure: NodeMayfly, pushed: str, home: Path
) -> None:
    """ctr offers layers of a repository the pusher may not read: they are uploaded instead."""
    ctr = node.client("ctr", home, f"--address={containerd.socket}", "--namespace=push")
    hosts = "--hosts-dir=/etc/containerd/certs.d"
    source = pushed.replace("team/app", "secret/app")
    target = pushed.replace("team/app", "public/app")
    ctr("images", "pull", hosts, f"--user=admin:{one_run_users(secure)['admin']}", source)
    ctr("images", "tag", source, target)
    made = credential(secure, "--push", "--repositories", "public/**", "--name", "builder")
    user = f"--user={made['username']}:{made['password']}"
    done = ctr.run("images", "pull", hosts, user, source, timeout=90)
    assert done.returncode != 0, "it may not read the source"
    ctr("images", "push", hosts, user, target)
    ctr("images", "rm", source, target)
    ctr("images", "pull", hosts, user, target)
    ctr("images", "rm", target)
