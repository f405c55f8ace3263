"""podman, skopeo, crane, oras and regctl log in over TLS, each told of the CA in its own way."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import jwt
import pytest

from tests.clients.images import Images
from tests.clients.programs import Client
from tests.security.node import Node, NodeMayfly
from tests.security.servers import SECURE, login, make_auth, one_run_users, server_of
from tests.security.wire import ask
from tests.support.client import basic, bearer
from tests.support.process import Mayfly, find_program, need

UNKNOWN_AUTHORITY = "certificate signed by unknown authority"
LOCAL = "mayfly-test/small:1"


@pytest.fixture(scope="module")
def tls(workspace: Path) -> Iterator[Mayfly]:
    """Mayfly on loopback with TLS and the users of this run."""
    with Mayfly(workspace / "tls/root", workspace / "tls/state", *SECURE) as server:
        yield server


@pytest.fixture
def certs(tls: Mayfly, tmp_path: Path) -> Path:
    """A directory of certificates as containers/image takes it."""
    made = tmp_path / "certs"
    made.mkdir()
    (made / "ca.crt").write_bytes((tls.state_dir / "ca.crt").read_bytes())
    return made


@pytest.fixture
def password(tls: Mayfly, tmp_path: Path) -> Path:
    """A file with admin's password."""
    path = tmp_path / "password"
    path.write_text(one_run_users(tls)["admin"])
    return path


def log_in(client: Client, password: Path, *args: str | Path) -> str:
    """A login that reads its password from standard input."""
    done = client.run(*args, stdin=password)
    told = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, told
    return told


def refused(told: str) -> bool:
    """Whether a client says that it was not let in."""
    return re.search(r"unauthorized|authentication required|401", told, re.IGNORECASE) is not None


@pytest.fixture
def podman(node: Node, home: Path, archive: Path) -> Client:
    """podman on the node, with a storage of its own and an image to push."""
    need("runc")
    client = node.client(
        "podman",
        home,
        f"--root={node.directory}/podman/root",
        f"--runroot={node.directory}/podman/run",
        f"--runtime={find_program('runc')}",
        "--cgroup-manager=cgroupfs",
        "--events-backend=file",
    )
    client("load", "--quiet", f"--input={archive}")
    return client


def test_podman(podman: Client, node: Node, secure: NodeMayfly, home: Path) -> None:
    """podman logs in, pushes, pulls and logs out once certs.d has the CA, and not before."""
    password = home / "password"
    password.write_text(one_run_users(secure)["admin"])
    into = ("login", "--username=admin", "--password-stdin", secure.host)
    refusal = podman.run(*into, stdin=password)
    assert refusal.returncode != 0 and UNKNOWN_AUTHORITY in refusal.stderr.decode()
    before = node.files()
    node.configure("apply", "podman", "--state-dir", secure.state_dir)
    log_in(podman, password, *into)
    reference = f"{secure.host}/team/podman:1"
    podman("push", LOCAL, reference)
    identity = podman("image", "inspect", "--format={{.Id}}", LOCAL).strip()
    podman("image", "rm", "--force", identity)
    assert podman("pull", "--quiet", reference).strip() == identity
    podman("logout", secure.host)
    assert refused(podman.fails("pull", reference))
    podman("image", "rm", "--force", identity)
    node.configure("revert", "podman")
    assert node.files() == before


def test_skopeo(
    tls: Mayfly, images: Images, certs: Path, password: Path, home: Path, tmp_path: Path
) -> None:
    """skopeo logs in with --cert-dir, copies in and out, and is refused after logout."""
    skopeo = Client("skopeo", home, "--insecure-policy")
    trust = f"--cert-dir={certs}"
    log_in(skopeo, password, "login", trust, "--username=admin", "--password-stdin", tls.host)
    reference = f"docker://{tls.host}/team/skopeo:1"
    skopeo("copy", f"--dest-cert-dir={certs}", f"oci:{images.layout}:small", reference)
    skopeo("copy", f"--src-cert-dir={certs}", reference, f"dir:{tmp_path}/copied")
    copied = (tmp_path / "copied/manifest.json").read_bytes()
    assert f"sha256:{hashlib.sha256(copied).hexdigest()}" == images.digest("small")
    assert json.loads(skopeo("list-tags", trust, reference.rpartition(":")[0]))["Tags"] == ["1"]
    skopeo("logout", tls.host)
    assert refused(skopeo.fails("inspect", trust, reference))
    assert UNKNOWN_AUTHORITY in skopeo.fails("inspect", f"--cert-dir={tmp_path}", reference)


def test_crane(tls: Mayfly, images: Images, password: Path, home: Path, tmp_path: Path) -> None:
    """crane takes the CA from SSL_CERT_FILE, logs in, pushes, pulls and lists."""
    trust = {"SSL_CERT_FILE": str(tls.state_dir / "ca.crt")}
    crane = Client("crane", home, env=trust)
    log_in(crane, password, "auth", "login", "--username=admin", "--password-stdin", tls.host)
    skopeo = Client("skopeo", home)
    skopeo("copy", f"oci:{images.layout}:small", f"oci:{tmp_path}/small")
    reference = f"{tls.host}/team/crane:1"
    crane("push", tmp_path / "small", reference)
    assert crane("digest", reference).strip() == images.digest("small")
    crane("pull", "--format=oci", reference, tmp_path / "pulled")
    assert "team/crane" in crane("catalog", tls.host).split()
    crane("copy", reference, f"{tls.host}/team/crane/copy:1")
    crane("delete", f"{tls.host}/team/crane/copy@{images.digest('small')}")
    crane("auth", "logout", tls.host)
    assert refused(crane.fails("digest", reference))


def test_oras(tls: Mayfly, password: Path, home: Path, tmp_path: Path) -> None:
    """oras takes --ca-file, logs in, pushes, attaches, pulls."""
    oras = Client("oras", home)
    trust = f"--ca-file={tls.state_dir}/ca.crt"
    log_in(oras, password, "login", trust, "--username=admin", "--password-stdin", tls.host)
    (tmp_path / "chart.txt").write_text("the chart\n")
    reference = f"{tls.host}/team/oras:1"
    push = ("push", trust, "--artifact-type=application/vnd.example.chart", reference)
    oras(*push, "chart.txt:text/plain", cwd=tmp_path)
    attach = ("attach", trust, "--artifact-type=application/vnd.example.sbom", reference)
    oras(*attach, "chart.txt", cwd=tmp_path)
    found = json.loads(oras("discover", trust, "--format=json", reference))
    assert len(found.get("referrers", found.get("manifests", []))) == 1
    oras("pull", trust, f"--output={tmp_path}/out", reference)
    assert (tmp_path / "out/chart.txt").read_text() == "the chart\n"
    oras("logout", tls.host)
    assert refused(oras.fails("pull", trust, reference))


def test_regctl(tls: Mayfly, images: Images, home: Path) -> None:
    """regctl keeps CA and login in its configuration, copies in, lists."""
    regctl = Client("regctl", home)
    users = one_run_users(tls)
    cacert = (tls.state_dir / "ca.crt").read_text()
    regctl("registry", "set", f"--cacert={cacert}", "--skip-check", tls.host)
    regctl("registry", "login", "--user=admin", f"--pass={users['admin']}", tls.host)
    reference = f"{tls.host}/team/regctl:multi"
    regctl("image", "copy", f"ocidir://{images.layout}:multi", reference)
    assert regctl("image", "digest", reference).strip() == images.digest("multi")
    assert regctl("tag", "ls", reference.rpartition(":")[0]).split() == ["multi"]
    regctl("tag", "delete", reference)
    regctl("registry", "logout", tls.host)
    assert refused(regctl.fails("tag", "ls", reference.rpartition(":")[0]))


def test_wrong_password_is_said_by_each(tls: Mayfly, certs: Path, home: Path) -> None:
    """Each client fails to log in with a wrong password, and says why."""
    wrong = home / "password"
    wrong.write_text("wrong")
    login_with = ("--username=admin", "--password-stdin", tls.host)
    ca = tls.state_dir / "ca.crt"
    skopeo = Client("skopeo", home).run("login", f"--cert-dir={certs}", *login_with, stdin=wrong)
    oras = Client("oras", home).run("login", f"--ca-file={ca}", *login_with, stdin=wrong)
    for done in (skopeo, oras):
        assert done.returncode != 0
        assert re.search(rb"invalid user|unauthorized|401", done.stdout + done.stderr), done


def test_docker_get_flow(tls: Mayfly) -> None:
    """Challenge, token by GET with Basic, resource with the token: and nothing beyond its scope."""
    server = server_of(tls)
    asked = ask(server, "GET", "/v2/team/app/tags/list")
    found = re.fullmatch(
        r'Bearer realm="([^"]+)",service="([^"]+)",scope="([^"]+)"', asked.challenge or ""
    )
    assert found is not None, asked.challenge
    realm, service, scope = found.groups()
    assert realm == f"{tls.url}/auth/token"
    query = urlencode({"service": service, "scope": scope, "account": "admin"})
    answer = ask(server, "GET", f"/auth/token?{query}", [login(tls)]).json
    assert answer["token"] == answer["access_token"]
    assert answer["expires_in"] >= 60 and "refresh_token" not in answer
    issued = time.strptime(answer["issued_at"], "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(issued) - time.mktime(time.gmtime())) < 60
    claims = jwt.decode(answer["token"], options={"verify_signature": False})
    assert claims["access"] == [{"type": "repository", "name": "team/app", "actions": ["pull"]}]
    assert (claims["sub"], claims["aud"]) == ("admin", service)
    assert {"iss", "exp", "nbf", "iat", "jti"} <= set(claims)
    token = [bearer(answer["token"])]
    assert ask(server, "GET", "/v2/team/app/tags/list", token).status == 404
    for method, target in (("POST", "/v2/team/app/blobs/uploads/"), ("GET", "/v2/x/y/tags/list")):
        assert ask(server, method, target, token).status == 401


def test_post_flows(tls: Mayfly) -> None:
    """grant_type=password buys a refresh token, and that buys access tokens, in turn refreshed."""
    server = server_of(tls)
    form = {"service": "mayfly", "client_id": "test", "scope": "repository:team/app:pull,push"}
    password = {
        "grant_type": "password",
        "username": "admin",
        "password": one_run_users(tls)["admin"],
        "access_type": "offline",
    }
    bought = ask(server, "POST", "/auth/token", [], urlencode(form | password).encode())
    assert bought.status == 200
    assert bought.json["scope"] == form["scope"]
    online = {key: value for key, value in password.items() if key != "access_type"}
    answer = ask(server, "POST", "/auth/token", [], urlencode(form | online).encode())
    assert "refresh_token" not in answer.json
    refresh = {"grant_type": "refresh_token", "refresh_token": bought.json["refresh_token"]}
    again = ask(server, "POST", "/auth/token", [], urlencode(form | refresh).encode())
    assert again.status == 200
    uploads = "/v2/team/app/blobs/uploads/"
    assert ask(server, "POST", uploads, [bearer(again.json["access_token"])]).status == 202
    for wrong in (
        password | {"password": "wrong"},
        refresh | {"refresh_token": "wrong"},
        refresh | {"refresh_token": again.json["access_token"]},
    ):
        refusal = ask(server, "POST", "/auth/token", [], urlencode(form | wrong).encode())
        assert (refusal.status, refusal.code) == (401, "UNAUTHORIZED")
    unknown = urlencode(form | {"grant_type": "authorization_code"}).encode()
    assert ask(server, "POST", "/auth/token", [], unknown).status == 400


def test_users_and_grants_made_by_command(
    start_mayfly: Callable[..., Mayfly], tmp_path: Path
) -> None:
    """What `mayfly user` and `mayfly grant` wrote decides; Basic is enough, without a token."""
    auth = make_auth(
        tmp_path / "auth",
        {"ci": "pass word:with colon", "reader": "another one"},
        [("ci", "developer", "team/**"), ("reader", "guest", "team/*")],
    )
    server = server_of(start_mayfly("--tls", "auto", "--auth", str(auth)))
    ci, reader = basic("ci", "pass word:with colon"), basic("reader", "another one")
    uploads = "/v2/team/app/blobs/uploads/"
    assert ask(server, "POST", uploads, [ci]).status == 202
    assert ask(server, "POST", uploads, [reader]).status == 403
    assert ask(server, "GET", "/v2/team/app/tags/list", [reader]).status == 404
    assert ask(server, "GET", "/v2/team/app/deep/tags/list", [reader]).status == 403
    assert ask(server, "POST", "/v2/other/app/blobs/uploads/", [ci]).status == 403


def test_anonymous_pull(
    start_mayfly: Callable[..., Mayfly], images: Images, home: Path, tmp_path: Path
) -> None:
    """With --anonymous pull a client without credentials pulls what admin pushed, and no more."""
    server = start_mayfly(*SECURE, "--anonymous", "pull")
    (tmp_path / "ca.crt").write_bytes((server.state_dir / "ca.crt").read_bytes())
    skopeo = Client("skopeo", home, "--insecure-policy")
    reference = f"docker://{server.host}/team/open:1"
    push = ("copy", f"--dest-cert-dir={tmp_path}", f"oci:{images.layout}:small", reference)
    assert refused(skopeo.fails(*push))
    skopeo(*push[:1], f"--dest-creds=admin:{one_run_users(server)['admin']}", *push[1:])
    skopeo("copy", f"--src-cert-dir={tmp_path}", reference, f"dir:{tmp_path}/copied")
    assert refused(skopeo.fails("delete", f"--cert-dir={tmp_path}", reference))
