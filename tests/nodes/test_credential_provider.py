"""`mayfly credential-provider`: kubelet's request, the node's file, the response."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.access.errors import PolicyFileInvalid
from mayfly.registry.nodes.credential_provider import (
    API,
    MAX_CACHED_SECONDS,
    configuration,
    read_file,
    read_image,
    respond,
)
from mayfly.registry.settings.errors import ConfigError
from tests.support.commands import assert_refused, mayfly, run_mayfly

NOW = 1_800_000_000.0
MADE = {
    "host": "10.0.0.5:5000",
    "hosts": ["10.0.0.5:5000", "docker.io"],
    "username": "robot+node",
    "password": "secret",
    "expires": NOW + 3600,
}


def request(image: object, **fields: object) -> str:
    """Kubelet's request for an image."""
    document = {"kind": "CredentialProviderRequest", "apiVersion": API, "image": image}
    return json.dumps(document | fields)


def written(path: Path, mode: int = 0o600, **fields: object) -> Path:
    """The node's file, with other fields."""
    path.write_text(json.dumps(MADE | fields))
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("image", "host"),
    [
        ("10.0.0.5:5000/team/app:1", "10.0.0.5:5000"),
        (f"10.0.0.5:5000/team/app@sha256:{'0' * 64}", "10.0.0.5:5000"),
        ("10.0.0.5:5000/Team/APP:1", "10.0.0.5:5000"),
        ("nginx", "docker.io"),
        ("docker.io/library/nginx:1", "docker.io"),
        ("registry-1.docker.io/library/nginx:1", "docker.io"),
        ("10.0.0.5/team/app:1", None),
        ("10.0.0.5:5000.evil.example/team/app:1", None),
        ("evil.example/10.0.0.5:5000/app", None),
        ("quay.io/team/app", None),
    ],
)
def test_credential_goes_to_its_hosts_alone(tmp_path: Path, image: str, host: str | None) -> None:
    """An image of another host gets none, whatever else it names."""
    response = respond(image, read_file(written(tmp_path / "file")), NOW)
    expected = {host: {"username": "robot+node", "password": "secret"}} if host else {}
    assert response["auth"] == expected
    assert response["cacheDuration"] == (f"{MAX_CACHED_SECONDS}s" if host else "0s")
    assert response["kind"] == "CredentialProviderResponse"
    assert response["apiVersion"] == API
    assert response["cacheKeyType"] == "Registry"


@pytest.mark.parametrize(
    ("expires", "duration"), [(NOW + 100.5, "100s"), (NOW, "0s"), (NOW - 1e9, "0s"), (None, "300s")]
)
def test_credential_is_not_kept_past_its_end(
    tmp_path: Path, expires: float | None, duration: str
) -> None:
    """One that has ended is none, so that kubelet asks again at once."""
    found = read_file(written(tmp_path / "file", expires=expires))
    response = respond("10.0.0.5:5000/app", found, NOW)
    assert response["cacheDuration"] == duration
    assert bool(response["auth"]) == (duration != "0s")


def test_no_file_is_no_credential(tmp_path: Path) -> None:
    """Before and after an upgrade pulls from elsewhere must not fail by this."""
    response = respond("10.0.0.5:5000/app", read_file(tmp_path / "none"), NOW)
    assert (response["auth"], response["cacheDuration"]) == ({}, "0s")


@pytest.mark.parametrize(
    ("mode", "owner"),
    [(0o604, 0), (0o644, 0), (0o666, 0), (0o602, 0), (0o601, 0), (0o620, 0), (0o640, 1000)],
)
def test_file_that_others_may_read(tmp_path: Path, mode: int, owner: int) -> None:
    """It is refused, with the command that mends it."""
    path = written(tmp_path / "file", mode)
    os.chown(path, owner, -1)
    with pytest.raises(PolicyFileInvalid, match="chmod 600"):
        read_file(path)


def test_file_for_a_group(tmp_path: Path) -> None:
    """A group may read root's file: volumes of Kubernetes are mounted so."""
    assert read_file(written(tmp_path / "file", 0o640)) is not None


@pytest.mark.parametrize("kind", ["pipe", "directory", "large"])
def test_file_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    """It is refused at once: kubelet waits for the answer."""
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        written(path, more="x" * 2_000_000)
    with pytest.raises(PolicyFileInvalid, match=str(path)):
        read_file(path)


def test_link_without_a_file(tmp_path: Path) -> None:
    """It is no credential, as no file is: a Kubernetes volume has its files behind links."""
    (tmp_path / "file").symlink_to("..data/file")
    assert read_file(tmp_path / "file") is None
    (tmp_path / "..data").mkdir()
    written(tmp_path / "..data/file")
    assert read_file(tmp_path / "file") is not None


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 60_000, b'{"hosts": ["h"]}',
        json.dumps(MADE | {"password": None}).encode(),
        json.dumps(MADE | {"hosts": [1]}).encode(),
        json.dumps(MADE | {"hosts": "h"}).encode(),
        json.dumps(MADE | {"expires": "soon"}).encode(),
        json.dumps(MADE | {"expires": True}).encode(),
    ],
)  # fmt: skip
def test_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    """Its path is named, and the command that makes it."""
    path = tmp_path / "file"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="mayfly credentials --format json"):
        read_file(path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"{}", b"[" * 60_000,
        request("").encode(),
        request(5).encode(),
        request("h/app", kind="Secret").encode(),
        request("h/app", apiVersion="credentialprovider.kubelet.k8s.io/v1beta1").encode(),
        request("h/app", apiVersion=["v1"]).encode(),
    ],
)  # fmt: skip
def test_request_that_is_none(content: bytes) -> None:
    """It is refused in one line."""
    with pytest.raises(ConfigError, match="standard input"):
        read_image(content)


def test_command(tmp_path: Path) -> None:
    """As kubelet runs it: the request on standard input, the response alone on standard output."""
    file = written(tmp_path / "file", expires=None)
    answered: dict[str, Any] = json.loads(
        run_mayfly("credential-provider", "--file", file, stdin=request("10.0.0.5:5000/app:1"))
    )
    assert answered["auth"]["10.0.0.5:5000"]["password"] == "secret"
    assert_refused(mayfly("credential-provider", "--file", file, stdin="x"), "standard input")


def test_configuration(tmp_path: Path) -> None:
    """It names the hosts of the file, or those that are given, and the file by its whole path."""
    file = written(tmp_path / "file")
    made = json.loads(run_mayfly("credential-provider", "--config", "--file", file))
    (provider,) = made["providers"]
    assert made["kind"] == "CredentialProviderConfig"
    assert provider["matchImages"] == MADE["hosts"]
    assert provider["args"] == ["credential-provider", "--file", str(file)]
    options = ("--config", "--host", "*.example:5000", "--host", "[fd00::5]:5000")
    made = json.loads(run_mayfly("credential-provider", *options))
    assert made["providers"][0]["matchImages"] == ["*.example:5000", "[fd00::5]:5000"]
    none = mayfly("credential-provider", "--config", "--file", tmp_path / "none")
    assert_refused(none, "give --host")


@pytest.mark.parametrize("host", ["", "a b", "http://h:1", "h:1\n", "h:port", "\x1b[31mh"])
def test_host_that_is_none(host: str) -> None:
    """kubelet would refuse to start with it."""
    with pytest.raises(ConfigError, match="HOST"):
        configuration([host], Path("/etc/x"))
