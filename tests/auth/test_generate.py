"""Credentials the server makes, and the forms clients take them in."""

from __future__ import annotations

import base64
import json

import pytest

from mayfly.auth.errors import InputInvalid
from mayfly.auth.generate import docker_config, ephemeral_users, kubernetes_secret, random_password
from mayfly.auth.identity import ANONYMOUS, Credential
from mayfly.auth.verify import CredentialVerifier

CREDENTIAL = Credential("robot+n", "p:a ss")
AUTH = base64.b64encode(b"robot+n:p:a ss").decode()


def test_random_passwords() -> None:
    """They are long, differ, and mean nothing to a shell."""
    passwords = {random_password() for _ in range(50)}
    assert len(passwords) == 50
    assert all(len(one) == 32 and one.isalnum() and one.isascii() for one in passwords)


def test_ephemeral_users() -> None:
    """The administrator does everything, the other pulls everything, nobody else anything."""
    made = ephemeral_users()
    verifier = CredentialVerifier(lambda: made.users)
    admin = verifier.check(made.admin.name, made.admin.password)
    pull = verifier.check(made.pull.name, made.pull.password)
    assert made.policy.actions(admin, "a/b") >= {"pull", "push", "delete"}
    assert made.policy.actions(pull, "a/b") == {"pull"}
    assert made.policy.registry_actions(pull, "lifetime") == frozenset()
    assert made.policy.actions(ANONYMOUS, "a/b") == frozenset()
    assert made.admin.password not in repr(made)


def test_docker_config() -> None:
    """The auth entry is what docker login writes."""
    assert docker_config(["10.0.0.1:5000", "docker.io"], CREDENTIAL) == {
        "auths": {"10.0.0.1:5000": {"auth": AUTH}, "docker.io": {"auth": AUTH}}
    }


@pytest.mark.parametrize("host", ["a", "a.b-c:1", "[fe80::1]:5000", "[::1]"])
def test_hosts(host: str) -> None:
    """Names, addresses and ports as image names have them."""
    assert host in json.dumps(docker_config([host], CREDENTIAL))


@pytest.mark.parametrize("host", ["", "https://a", "a/b", "a:port", "a b", 'a"', "::1", "a\n"])
def test_refused_hosts(host: str) -> None:
    """A host that no image name can begin with is refused."""
    with pytest.raises(InputInvalid, match="registry host"):
        docker_config(["r", host], CREDENTIAL)


def test_kubernetes_secret() -> None:
    """Type, key and encoding are those kubelet reads."""
    secret = kubernetes_secret("mayfly-pull", "kube-system", ["r:5000"], CREDENTIAL)
    data = secret.pop("data")
    assert secret == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "mayfly-pull", "namespace": "kube-system"},
        "type": "kubernetes.io/dockerconfigjson",
    }
    assert isinstance(data, dict)
    assert data.keys() == {".dockerconfigjson"}
    decoded = json.loads(base64.b64decode(data[".dockerconfigjson"]))
    assert decoded == {"auths": {"r:5000": {"auth": AUTH}}}


@pytest.mark.parametrize(
    ("name", "namespace"),
    [
        ("", "a"),
        ("A", "a"),
        ("a_b", "a"),
        ("-a", "a"),
        ("a" * 254, "a"),
        ("a\n", "a"),
        ("a", ""),
        ("a", "a.b"),
        ("a", "A"),
        ("a", "a" * 64),
    ],
)
def test_refused_secret_names(name: str, namespace: str) -> None:
    """The Secret would be refused by Kubernetes, so it is refused here."""
    with pytest.raises(InputInvalid, match="invalid"):
        kubernetes_secret(name, namespace, ["r"], CREDENTIAL)
