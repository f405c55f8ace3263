"""Real clients through a real nginx that ends TLS, set up as docs/proxies.md shows."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import ssl
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mayfly.registry.pki.authority import ensure
from tests.clients.images import Images
from tests.clients.programs import Client, Cri
from tests.support.client import basic
from tests.support.commands import run_mayfly
from tests.support.process import REPO, Mayfly, Process, find_program, free_port, need

SMALL = "docker.io/library/small:1"

LARGE = 2 << 30 if os.environ.get("MAYFLY_SOAK") == "1" else 96 << 20
"""Bytes of the large layer."""


@dataclass
class Front:
    """A registry behind nginx.

    Attributes:
        host: nginx's, with port.
        ca: that signed its certificate.
        user, password: of an administrator.
    """

    host: str
    ca: Path
    user: str
    password: str
    server: Mayfly
    workers: Process


def configuration(directory: Path, port: int, upstream: str, *, buffering: str, path: str) -> str:
    """The page's server block for these ports, in an nginx that keeps all it writes in a place."""
    page = (REPO / "docs" / "proxies.md").read_text()
    (block,) = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
    block = block.replace("listen 443", f"listen 127.0.0.1:{port}")
    block = block.replace("server.crt", str(directory / "server.crt"))
    block = block.replace("server.key", str(directory / "server.key"))
    block = block.replace("buffering off", f"buffering {buffering}")
    block = block.replace("location / {", f"location {path}/ {{")
    tail = "/" if path else ""
    block = block.replace("http://127.0.0.1:5000", f"http://{upstream}{tail}")
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"user {getpass.getuser()}; daemon off;\n"
        f"pid {directory}/nginx.pid; error_log {directory}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off;\n{temporary}{block}}}\n"
    )


@pytest.fixture
def front(workspace: Path, tmp_path: Path) -> Iterator[Callable[..., Front]]:
    """Start a registry behind nginx: front(buffering="off", path="")."""
    need("nginx")
    running: list[Front] = []

    def start(buffering: str = "off", path: str = "") -> Front:
        port = free_port()
        made = ensure(tmp_path / "ca", ["127.0.0.1"], datetime.now(UTC))
        place = workspace / tmp_path.name
        url = f"https://127.0.0.1:{port}{path}"
        options = ["--auth", "auto", "--external-url", url, "--trusted-proxy", "127.0.0.1"]
        inner = free_port()
        where = f"127.0.0.1:{inner}"
        server = Mayfly(place / "root", place / "state", *options, listen=where)
        directory = place / "nginx"
        directory.mkdir()
        shutil.copy(made.certificate, directory / "server.crt")
        shutil.copy(made.key, directory / "server.key")
        text = configuration(directory, port, where, buffering=buffering, path=path)
        (directory / "nginx.conf").write_text(text)
        program = find_program("nginx")
        assert program is not None
        workers = Process([program, "-c", directory / "nginx.conf"], directory / "output.log")
        found = json.loads((place / "state" / "credentials.json").read_text())
        front = Front(f"127.0.0.1:{port}", made.ca, "admin", found["admin"], server, workers)
        running.append(front)
        workers.wait_for(lambda: connects(port))
        return front

    yield start
    for one in running:
        one.workers.stop()
        one.server.stop()


def connects(port: int) -> bool:
    """Whether somebody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def layer(path: Path) -> Path:
    """A small layer."""
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("file")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"hello"))
    return path


def test_clients_at_the_root(
    front: Callable[..., Front], home: Path, skopeo: Client, oras: Client, tmp_path: Path
) -> None:
    """crane, skopeo, oras and regctl log in through nginx, push and pull."""
    there = front()
    login = ("-u", there.user, "-p", there.password)
    trust = {"SSL_CERT_FILE": str(there.ca)}
    crane = Client("crane", home, env=trust)
    crane("auth", "login", there.host, *login)
    crane("append", "-f", layer(tmp_path / "layer.tar"), "-t", f"{there.host}/team/app:1")
    digest = crane("digest", f"{there.host}/team/app:1").strip()
    certificates = tmp_path / "certs"
    certificates.mkdir()
    shutil.copy(there.ca, certificates / "ca.crt")
    credentials = f"{there.user}:{there.password}"
    skopeo(
        "copy", f"docker://{there.host}/team/app:1", f"docker://{there.host}/team/app:2",
        "--src-cert-dir", certificates, "--dest-cert-dir", certificates,
        "--src-creds", credentials, "--dest-creds", credentials,
    )  # fmt: skip
    assert crane("digest", f"{there.host}/team/app:2").strip() == digest
    oras("login", there.host, "--ca-file", there.ca, *login)
    (tmp_path / "note").write_text("note")
    oras("push", "--ca-file", there.ca, "--disable-path-validation",
         f"{there.host}/team/note:1", tmp_path / "note")  # fmt: skip
    assert crane("ls", f"{there.host}/team/app").split() == ["1", "2"]
    assert "team/note" in crane("catalog", there.host)
    crane("validate", "--remote", f"{there.host}/team/app:2")
    regctl = Client("regctl", home, env=trust)
    regctl("registry", "login", there.host, *login)
    assert regctl("image", "digest", f"{there.host}/team/app:1").strip() == digest


@pytest.fixture
def archive(skopeo: Client, images: Images, scratch: Path) -> Path:
    """A small image, as `docker save` writes it."""
    made = scratch / "small.tar"
    skopeo("copy", f"oci:{images.layout}:small", f"docker-archive:{made}:{SMALL}")
    return made


def names(server: Mayfly) -> str:
    """What lies in the store of a server."""
    return run_mayfly("ls", "--root", server.root, "--json")


def test_docker_at_the_root(front: Callable[..., Front], docker: Client, archive: Path) -> None:
    """docker logs in through nginx, pushes and pulls."""
    there = front()
    name = f"{there.host}/team/small:1"
    docker("login", there.host, "-u", there.user, "-p", there.password)
    docker("load", "--input", archive)
    docker("tag", SMALL, name)
    docker("push", name)
    assert "team/small" in names(there.server)
    docker("rmi", name)
    docker("pull", name)
    docker("rmi", name)
    docker("logout", there.host)
    docker.fails("pull", name)


def test_podman_at_the_root(
    front: Callable[..., Front], podman: Client, archive: Path, tmp_path: Path
) -> None:
    """podman logs in through nginx, pushes and pulls."""
    there = front()
    name = f"{there.host}/team/small:1"
    certificates = tmp_path / "certs"
    certificates.mkdir()
    shutil.copy(there.ca, certificates / "ca.crt")
    trust = ("--cert-dir", certificates)
    podman("login", *trust, there.host, "-u", there.user, "-p", there.password)
    podman("load", "--input", archive)
    podman("push", *trust, SMALL, name)
    assert "team/small" in names(there.server)
    podman("pull", *trust, name)
    podman("rmi", name)
    podman("logout", there.host)


@pytest.mark.parametrize("path", ["", "/hub"])
def test_containerd(front: Callable[..., Front], each_cri: Cri, archive: Path, path: str) -> None:
    """ctr pushes and pulls, and crictl pulls as kubelet does, as `node-config show` sets them up.

    With the machine's containerd and those of `.ci/programs.toml`. Image names have the host alone,
    whatever path the registry is served below.
    """
    there = front(path=path)
    cri, ctr = each_cri, each_cri.ctr
    login = f"{there.user}:{there.password}"
    name = f"{there.host}/team/small:1"
    show = ("node-config", "show", "--runtime", "containerd", "--json", "--ca", there.ca)
    where = ("--state-dir", there.server.state_dir, "--certs-dir", cri.hosts)
    for file in json.loads(run_mayfly(*show, *where))["files"]:
        target = Path(file["path"])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file["content"])
    hosts = ("--hosts-dir", cri.hosts)
    ctr("images", "import", archive)
    ctr("images", "push", *hosts, "--user", login, name, SMALL)
    assert "team/small" in names(there.server)
    ctr("images", "rm", "--sync", SMALL)
    ctr.fails("images", "pull", *hosts, name)
    ctr("images", "pull", *hosts, "--user", login, name)
    ctr("images", "rm", "--sync", name)
    made = json.loads(run_mayfly("credentials", "--json", *where[:2]))
    assert made["host"] == there.host
    cri.crictl("pull", "--creds", f"{made['username']}:{made['password']}", name)
    assert name.rpartition(":")[0] in cri.crictl("images")
    cri.crictl("rmi", name)


@pytest.mark.parametrize("buffering", ["off", "on"])
def test_large_layer(front: Callable[..., Front], buffering: str) -> None:
    """A large layer goes through nginx in both directions, streamed or kept in its files."""
    there = front(buffering=buffering)
    trust = ssl.create_default_context(cafile=there.ca)
    piece = os.urandom(1 << 20)
    hashed = hashlib.sha256()
    for _ in range(LARGE >> 20):
        hashed.update(piece)
    with contextlib.closing(
        http.client.HTTPSConnection(there.host, context=trust, timeout=600)
    ) as line:
        push_and_pull(there, line, piece, hashed.hexdigest())


def push_and_pull(
    there: Front, line: http.client.HTTPSConnection, piece: bytes, expected: str
) -> None:
    """A layer that repeats one piece, streamed up and read back."""
    digest = f"sha256:{expected}"

    def ask(method: str, target: str, body: object = None) -> http.client.HTTPResponse:
        line.request(method, target, body, administrator(there), encode_chunked=True)  # type: ignore[arg-type]
        return line.getresponse()

    begun = ask("POST", "/v2/team/app/blobs/uploads/")
    begun.read()
    assert begun.status == 202
    location = begun.headers["Location"]
    line.putrequest("PATCH", location)
    for name, value in {**administrator(there), "Transfer-Encoding": "chunked"}.items():
        line.putheader(name, value)
    line.endheaders()
    for _ in range(LARGE >> 20):
        line.send(b"100000\r\n" + piece + b"\r\n")
    line.send(b"0\r\n\r\n")
    sent = line.getresponse()
    sent.read()
    assert sent.status == 202
    done = ask("PUT", f"{sent.headers['Location']}?digest={digest}")
    done.read()
    assert done.status == 201
    got = ask("GET", f"/v2/team/app/blobs/{digest}")
    found = hashlib.sha256()
    while data := got.read(1 << 20):
        found.update(data)
    assert found.hexdigest() == expected


def administrator(there: Front) -> dict[str, str]:
    """The administrator's credentials."""
    return dict([basic(there.user, there.password)])


def test_path_prefix(front: Callable[..., Front]) -> None:
    """Below a path every address that a client is told begins with it."""
    there = front(path="/hub")
    trust = ssl.create_default_context(cafile=there.ca)
    with contextlib.closing(
        http.client.HTTPSConnection(there.host, context=trust, timeout=60)
    ) as line:
        line.request("GET", "/hub/v2/")
        refused = line.getresponse()
        refused.read()
        realm = f'realm="https://{there.host}/hub/auth/token"'
        assert (refused.status, realm in refused.headers["WWW-Authenticate"]) == (401, True)
        line.request("POST", "/hub/v2/team/app/blobs/uploads/", headers=administrator(there))
        begun = line.getresponse()
        begun.read()
        assert begun.headers["Location"].startswith("/hub/v2/team/app/blobs/uploads/")
        line.request("DELETE", begun.headers["Location"], headers=administrator(there))
        assert line.getresponse().status == 204
