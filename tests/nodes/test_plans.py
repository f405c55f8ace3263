"""The files each runtime gets."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field

import pytest

from mayfly.registry.nodes.plan import NoteCode, Plan
from mayfly.registry.nodes.runtimes import RUNTIMES, EmptyNode, Runtime, make_plan
from mayfly.registry.nodes.target import NodeCredential, parse
from mayfly.registry.pki.errors import TrustError

HOST = "10.0.0.5:5000"


@dataclass
class Node:
    """A node with these files and directories."""

    files: dict[str, bytes] = field(default_factory=dict)
    directories: frozenset[str] = frozenset()

    def read(self, path: str) -> bytes | None:
        return self.files.get(path)

    def is_directory(self, path: str) -> bool:
        return path in self.directories


def _contents(plan: Plan) -> dict[str, str]:
    return {file.path: file.content.decode() for file in plan.files}


def _daemon_json(plan: Plan) -> object:
    return json.loads(_contents(plan)["/etc/docker/daemon.json"])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_everything_is_readable_by_all_and_absolute(ca_pem: bytes, runtime: Runtime) -> None:
    """Nothing written is a secret, and rootless users read it, too."""
    plan = make_plan(runtime, parse(HOST, ca_pem, ["docker.io"]), EmptyNode())
    for file in plan.files:
        assert file.mode == 0o644
        assert file.path.startswith("/etc/")
        assert file.content.endswith(b"\n")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_ca_precedes_what_names_it(ca_pem: bytes, runtime: Runtime) -> None:
    """A pull between two writes must not find a file that names an absent CA."""
    plan = make_plan(runtime, parse(HOST, ca_pem, ["docker.io"]), EmptyNode())
    assert plan.files[0].content == ca_pem


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_publicly_trusted_registry_needs_no_ca(runtime: Runtime) -> None:
    """No CA file, no reference to one, and nothing insecure."""
    plan = make_plan(runtime, parse(f"https://{HOST}", mirrors=["docker.io"]), EmptyNode())
    text = "".join(_contents(plan).values())
    assert "ca" not in [line.split("=")[0].strip() for line in text.splitlines()]
    assert "insecure" not in text
    assert "http://" not in text


def test_containerd_hosts(ca_pem: bytes) -> None:
    """Both `server` and a host table; push for the registry itself alone."""
    target = parse(HOST, ca_pem, ["docker.io", "quay.io"])
    plan = make_plan("containerd", target, EmptyNode())
    files = _contents(plan)
    certs = "/etc/containerd/certs.d"
    ca = f"{certs}/{HOST}/ca.crt"
    assert files.pop(ca).encode() == ca_pem
    assert {path: tomllib.loads(text) for path, text in files.items()} == {
        f"{certs}/{host}/hosts.toml": {
            **server,
            "host": {f"https://{HOST}": {"capabilities": capabilities, "ca": ca}},
        }
        for host, server, capabilities in (
            (HOST, {"server": f"https://{HOST}", "ca": ca}, ["pull", "resolve", "push"]),
            ("docker.io", {"server": "https://registry-1.docker.io"}, ["pull", "resolve"]),
            ("quay.io", {"server": "https://quay.io"}, ["pull", "resolve"]),
        )
    }
    assert plan.activate == ()


def test_containerd_credential_of_the_node(ca_pem: bytes) -> None:
    """The registry alone is sent it, in its own file and as a mirror; nobody else reads it."""
    credential = NodeCredential("robot+node-1", "pass word")
    target = parse(HOST, ca_pem, ["docker.io"], credential=credential)
    plan = make_plan("containerd", target, EmptyNode())
    header = {"authorization": "Basic cm9ib3Qrbm9kZS0xOnBhc3Mgd29yZA=="}
    hosts = {f.path: f for f in plan.files if f.path.endswith("hosts.toml")}
    own, mirrored = (
        hosts[f"/etc/containerd/certs.d/{host}/hosts.toml"] for host in (HOST, "docker.io")
    )
    for file in (own, mirrored):
        assert (file.private, file.mode) == (True, 0o600)
        assert tomllib.loads(file.content.decode())["host"][f"https://{HOST}"]["header"] == header
    assert tomllib.loads(own.content.decode())["header"] == header
    assert "header" not in tomllib.loads(mirrored.content.decode())
    (ca,) = (file for file in plan.files if file.path.endswith("ca.crt"))
    assert (ca.private, ca.mode) == (False, 0o644)


@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_a_runtime_without_headers_is_told_to_log_in(runtime: Runtime) -> None:
    """Their configuration has no place for a credential of the node's."""
    target = parse("localhost", credential=NodeCredential("robot+n", "p"))
    message = f"--node writes files for containerd only; {runtime} logs in"
    with pytest.raises(TrustError, match=message):
        make_plan(runtime, target, EmptyNode())


def test_containerd_without_tls() -> None:
    """The scheme says it; no CA is named."""
    plan = make_plan("containerd", parse("127.0.0.1:5000"), EmptyNode())
    ((path, text),) = _contents(plan).items()
    assert path == "/etc/containerd/certs.d/127.0.0.1:5000/hosts.toml"
    assert tomllib.loads(text) == {
        "server": "http://127.0.0.1:5000",
        "host": {"http://127.0.0.1:5000": {"capabilities": ["pull", "resolve", "push"]}},
    }


@pytest.mark.parametrize(
    "plugin", ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"], ids=["1.x", "2.x"]
)
def test_containerd_s_own_configuration_says_where(plugin: str) -> None:
    """The first directory of config_path, and then there is nothing to note."""
    config = f'[plugins."{plugin}".registry]\nconfig_path = "/opt/certs.d:/etc/docker/certs.d"\n'
    node = Node({"/etc/containerd/config.toml": config.encode()})
    plan = make_plan("containerd", parse("localhost"), node)
    assert list(_contents(plan)) == ["/opt/certs.d/localhost/hosts.toml"]
    assert plan.notes == ()


@pytest.mark.parametrize("config", [None, b"", b"version = 2\n", b"[[[", b"plugins = 1\n", b"\xff"])
def test_containerd_that_reads_no_directory_is_noted(config: bytes | None) -> None:
    """Otherwise kubelet pulls past all that was written, and nobody knows why."""
    node = Node({"/etc/containerd/config.toml": config} if config is not None else {})
    plan = make_plan("containerd", parse("localhost"), node)
    (note,) = plan.notes
    assert note.code in (NoteCode.CONFIG_PATH, NoteCode.CONFIG_UNREADABLE)
    assert (note.file, note.directory) == ("/etc/containerd/config.toml", "/etc/containerd/certs.d")
    assert 'set config_path = "/etc/containerd/certs.d"' in note.text


def test_containerd_directory_can_be_said() -> None:
    """As for distributions that keep it elsewhere; it wins over config.toml."""
    node = Node({"/etc/containerd/config.toml": b"[[["})
    plan = make_plan("containerd", parse("localhost", certs_dir="/k3s/certs.d"), node)
    assert list(_contents(plan)) == ["/k3s/certs.d/localhost/hosts.toml"]
    assert plan.notes == ()


def test_containerd_prefers_its_other_spelling_of_a_port() -> None:
    """HOST_PORT_ is looked for first, so a file in HOST:PORT would not be read beside it."""
    node = Node(directories=frozenset({"/etc/containerd/certs.d/127.0.0.1_5000_"}))
    plan = make_plan("containerd", parse("127.0.0.1:5000"), node)
    assert list(_contents(plan)) == ["/etc/containerd/certs.d/127.0.0.1_5000_/hosts.toml"]


def test_docker_trust_alone_changes_nothing_else(ca_pem: bytes) -> None:
    """One file, read at every connection: no reload."""
    plan = make_plan("docker", parse(HOST, ca_pem), Node({"/etc/docker/daemon.json": b"{}"}))
    assert _contents(plan) == {f"/etc/docker/certs.d/{HOST}/ca.crt": ca_pem.decode()}
    assert (plan.activate, plan.notes) == ((), ())


def test_docker_mirrors_in_both_its_ways(ca_pem: bytes) -> None:
    """hosts.toml for the containerd image store, daemon.json for every other dockerd."""
    plan = make_plan("docker", parse(HOST, ca_pem, ["docker.io", "quay.io"]), EmptyNode())
    files = _contents(plan)
    for upstream in ("docker.io", "quay.io"):
        hosts = tomllib.loads(files[f"/etc/docker/certs.d/{upstream}/hosts.toml"])
        assert hosts["host"][f"https://{HOST}"]["ca"] == f"/etc/docker/certs.d/{HOST}/ca.crt"
    assert _daemon_json(plan) == {"registry-mirrors": [f"https://{HOST}"]}
    assert plan.activate[0].startswith("systemctl reload docker")
    (note,) = plan.notes
    assert (note.code, note.mirrors) == (NoteCode.IMAGE_STORE, ("quay.io",))
    assert "quay.io" in note.text


def test_docker_keeps_the_rest_of_daemon_json(ca_pem: bytes) -> None:
    """Order and text included; the mirror comes first."""
    existing = '\ufeff{"z": "ü", "registry-mirrors": ["https://a"], "a": {"b": [1, 2.5, null]}}'
    node = Node({"/etc/docker/daemon.json": existing.encode()})
    plan = make_plan("docker", parse(HOST, ca_pem, ["docker.io"]), node)
    merged = _daemon_json(plan)
    assert merged == {
        "z": "ü",
        "registry-mirrors": [f"https://{HOST}", "https://a"],
        "a": {"b": [1, 2.5, None]},
    }
    assert isinstance(merged, dict)
    assert list(merged) == ["z", "registry-mirrors", "a"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_docker_that_has_the_mirror_is_left_alone(ca_pem: bytes, slash: str) -> None:
    """No reformatting for nothing."""
    existing = json.dumps({"registry-mirrors": [f"https://{HOST}{slash}"]})
    node = Node({"/etc/docker/daemon.json": existing.encode()})
    plan = make_plan("docker", parse(HOST, ca_pem, ["docker.io"]), node)
    assert "/etc/docker/daemon.json" not in _contents(plan)
    assert plan.activate == ()


def test_docker_without_tls() -> None:
    """insecure-registries, unless in 127.0.0.0/8, where docker assumes it."""
    plan = make_plan("docker", parse(f"http://{HOST}"), EmptyNode())
    assert _daemon_json(plan) == {"insecure-registries": [HOST]}
    assert make_plan("docker", parse("127.0.0.1:5000"), EmptyNode()).files == ()
    mirrored = make_plan("docker", parse("127.0.0.1:5000", mirrors=["docker.io"]), EmptyNode())
    assert _daemon_json(mirrored) == {"registry-mirrors": ["http://127.0.0.1:5000"]}


@pytest.mark.parametrize("blank", [b"", b" \n"])
def test_docker_with_a_blank_daemon_json(blank: bytes) -> None:
    """dockerd takes it for an empty object."""
    plan = make_plan("docker", parse(f"http://{HOST}"), Node({"/etc/docker/daemon.json": blank}))
    assert _daemon_json(plan) == {"insecure-registries": [HOST]}


@pytest.mark.parametrize(
    "broken", [b"{", b"[]", b"\xff", b'{"insecure-registries": "x"}'], ids=repr
)
def test_a_broken_daemon_json_is_not_touched(broken: bytes) -> None:
    """The error names it."""
    node = Node({"/etc/docker/daemon.json": broken})
    with pytest.raises(TrustError, match=r"^/etc/docker/daemon\.json: .* mend the file first$"):
        make_plan("docker", parse(f"http://{HOST}"), node)


def test_podman_names_the_upstream_in_the_mirror_s_location(ca_pem: bytes) -> None:
    """A mirror is not told which upstream was meant, so the path says it."""
    target = parse(HOST, ca_pem, ["docker.io", "r.example:5000"])
    files = _contents(make_plan("podman", target, EmptyNode()))
    assert files[f"/etc/containers/certs.d/{HOST}/ca.crt"].encode() == ca_pem
    conf = tomllib.loads(files["/etc/containers/registries.conf.d/50-mayfly.conf"])
    assert conf == {
        "registry": [
            {"prefix": HOST, "location": HOST},
            {
                "prefix": "docker.io",
                "location": "docker.io",
                "mirror": [{"location": f"{HOST}/docker.io"}],
            },
            {
                "prefix": "r.example:5000",
                "location": "r.example:5000",
                "mirror": [{"location": f"{HOST}/r.example"}],
            },
        ]
    }


def test_podman_without_tls() -> None:
    """Insecure is the registry and the mirror on it, never the upstream."""
    target = parse("127.0.0.1:5000", mirrors=["docker.io"])
    (text,) = _contents(make_plan("podman", target, EmptyNode())).values()
    own, upstream = tomllib.loads(text)["registry"]
    assert own["insecure"]
    assert "insecure" not in upstream
    assert upstream["mirror"][0]["insecure"]


@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_certs_dir_is_containerd_s(runtime: Runtime) -> None:
    """The others have no such setting."""
    with pytest.raises(TrustError, match="--certs-dir is for containerd"):
        make_plan(runtime, parse("localhost", certs_dir="/x"), EmptyNode())
