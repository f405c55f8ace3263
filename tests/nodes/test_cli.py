"""`mayfly node-config`, as typed."""

from __future__ import annotations

import json
import os
import socket
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mayfly.auth.basic import parse_basic
from mayfly.auth.errors import CredentialsInvalid
from mayfly.auth.robots import Robots
from mayfly.auth.signing import new_key
from mayfly.registry.access.policy_files import load_key
from mayfly.registry.cli import node_config
from mayfly.registry.errors import NotRunning
from mayfly.registry.nodes.runtimes import RUNTIMES as KNOWN_RUNTIMES
from mayfly.registry.pki.authority import CertificateFiles
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.state.runs import Run
from tests.nodes.test_journal import furnish
from tests.support.trees import snapshot

HOST = "10.0.0.5:5000"


def _invoke(*arguments: str | Path, env: dict[str, str | None] | None = None) -> Result:
    """Run it as `registry.cli.execute` does, which turns these errors into one line and exit 2."""
    return CliRunner().invoke(
        node_config.command, [str(argument) for argument in arguments], env=env
    )


def _run(*arguments: str | Path, env: dict[str, str | None] | None = None) -> Result:
    result = _invoke(*arguments, env=env)
    assert result.exception is None, result.output
    return result


def _error(*arguments: str | Path, env: dict[str, str | None] | None = None) -> str:
    """The one line it ends with."""
    error = _invoke(*arguments, env=env).exception
    assert isinstance(error, ConfigError), error
    assert "\n" not in str(error)
    return str(error)


def test_the_runtimes_are_those_of_the_library() -> None:
    """The help spells them once more so as not to import it."""
    assert node_config.RUNTIMES == KNOWN_RUNTIMES


def test_show_apply_revert(root: Path, identity: CertificateFiles) -> None:
    """show tells what apply does; one line for each file; revert undoes it."""
    furnish(root)
    before = snapshot(root)
    node = ("--runtime", "docker", "--root-dir", root)
    registry = ("--registry", HOST, "--ca", identity.ca, "--mirror", "docker.io")
    shown = _run("show", *node, *registry)
    assert f"==> /etc/docker/certs.d/{HOST}/ca.crt (mode 0644)\n-----BEGIN" in shown.stdout
    assert snapshot(root) == before
    applied = _run("apply", *node, *registry)
    assert applied.stdout.splitlines() == [
        f"wrote /etc/docker/certs.d/{HOST}/ca.crt (new)",
        "wrote /etc/docker/certs.d/docker.io/hosts.toml (new)",
        "wrote /etc/docker/daemon.json (the original is saved)",
    ]
    assert applied.stderr.startswith("now run: systemctl reload docker")
    reverted = _run("revert", *node)
    assert reverted.stdout.splitlines()[:2] == [
        "restored /etc/docker/daemon.json",
        "removed /etc/docker/certs.d/docker.io/hosts.toml",
    ]
    assert "until it is restarted" in reverted.stderr
    assert snapshot(root) == before
    assert _run("revert", *node).stdout == "docker: nothing to do\n"


@pytest.mark.parametrize("verb", ["show", "apply", "revert"])
def test_json(root: Path, identity: CertificateFiles, verb: str) -> None:
    """Each prints one JSON object."""
    node = ("--runtime", "podman", "--root-dir", root, "--json")
    registry: list[str | Path] = ["--registry", HOST, "--ca", identity.ca]
    if verb == "revert":
        _run("apply", *node, *registry)
        registry = []
    value = json.loads(_run(verb, *node, *registry).stdout)
    assert value["runtime"] == "podman"
    assert value["run"] == []
    assert value["notes"]
    keys = {"path", "mode", "content"} if verb == "show" else {"path", "action", "code"}
    assert all(file.keys() == keys for file in value["files"])
    assert f"/etc/containers/certs.d/{HOST}/ca.crt" in [file["path"] for file in value["files"]]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[None]:
    """A server that answers in the state directory ``tmp_path``."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "control.sock"))
        listening.listen()
        yield


def _ready(directory: Path, **values: object) -> tuple[str, Path]:
    """The option for a state directory with this ready.json."""
    (directory / "ready.json").write_text(json.dumps(values))
    return "--state-dir", directory


@pytest.mark.usefixtures("running")
def test_a_running_mayfly_says_registry_and_ca(
    root: Path, tmp_path: Path, identity: CertificateFiles
) -> None:
    """From ready.json, by default."""
    ready = _ready(
        tmp_path, url=f"https://{HOST}", pid=os.getpid(), ca=str(identity.ca), version="1"
    )
    shown = _run("show", "--runtime", "podman", "--root-dir", root, *ready)
    assert f'prefix = "{HOST}"' in shown.stdout
    assert identity.ca.read_text() in shown.stdout
    assert "insecure" not in shown.stdout


@pytest.mark.usefixtures("running")
def test_a_running_mayfly_without_tls(root: Path, tmp_path: Path) -> None:
    """It has no CA, and says http."""
    ready = _ready(tmp_path, url="http://10.0.0.5:5000", pid=os.getpid(), ca=None)
    shown = _run("show", "--runtime", "podman", "--root-dir", root, *ready)
    assert "insecure = true" in shown.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not ready"),
        ("{", "is not ready"),
        ("[]", "cannot be understood"),
        ('{"pid": 1}', "cannot be understood"),
        ('{"url": "http://0.0.0.0:1", "pid": 1}', "the address that nodes reach the registry at"),
    ],
)
@pytest.mark.usefixtures("running")
def test_announcement_that_does_not_help(
    root: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    """What a running Mayfly announced cannot be used: nothing is written."""
    if content is not None:
        (tmp_path / "ready.json").write_text(content)
    before = snapshot(root)
    done = _invoke("apply", "--runtime", "docker", "--root-dir", root, "--state-dir", tmp_path)
    assert message in str(done.exception)
    assert snapshot(root) == before


def test_without_a_running_mayfly_the_error_says_what_to_give(root: Path, tmp_path: Path) -> None:
    """Exit code 6, also where a server that was killed left its announcement."""
    ready = _ready(tmp_path, url=f"https://{HOST}", pid=os.getpid(), ca=None)
    before = snapshot(root)
    done = _invoke("apply", "--runtime", "docker", "--root-dir", root, *ready)
    assert isinstance(done.exception, NotRunning)
    assert done.exception.exit_code == 6
    assert "or give --registry HOST:PORT and --ca FILE" in str(done.exception)
    assert snapshot(root) == before


def test_commands_for_every_runtime(root: Path, identity: CertificateFiles) -> None:
    """Without --runtime, show prints what to paste on nodes of each kind."""
    options = ("--root-dir", root, "--registry", HOST, "--ca", identity.ca)
    shown = _run("show", *options).stdout
    for runtime in ("docker", "containerd", "podman"):
        assert f"# {runtime}: on the node, as root" in shown
    assert shown.count(identity.ca.read_text().splitlines()[1]) >= 3
    found = json.loads(_run("show", "--json", *options).stdout)
    assert found["commands"].keys() == {"docker", "containerd", "podman"}


def test_commands_with_what_only_containerd_takes(root: Path, identity: CertificateFiles) -> None:
    """--certs-dir goes to containerd, and the other runtimes are shown all the same."""
    options = ("--root-dir", root, "--registry", HOST, "--ca", identity.ca)
    shown = _run("show", *options, "--certs-dir", "/k3s/certs.d").stdout
    assert f"/k3s/certs.d/{HOST}/hosts.toml" in shown
    assert f"/etc/docker/certs.d/{HOST}/ca.crt" in shown


def test_every_option_has_a_variable(root: Path, identity: CertificateFiles) -> None:
    """Each option is also read from `MAYFLY_<OPTION>` (docs/configuration.md)."""
    shown = _run(
        "show",
        env={
            "MAYFLY_RUNTIME": "containerd",
            "MAYFLY_ROOT_DIR": str(root),
            "MAYFLY_REGISTRY": HOST,
            "MAYFLY_CA": str(identity.ca),
            "MAYFLY_MIRROR": "docker.io quay.io",
            "MAYFLY_CERTS_DIR": "/k3s/certs.d",
            "MAYFLY_STATE_DIR": "/nowhere",
        },
    )
    headings = [line for line in shown.stdout.splitlines() if line.startswith("==>")]
    assert headings == [
        f"==> /k3s/certs.d/{path} (mode 0644)"
        for path in (
            f"{HOST}/ca.crt",
            f"{HOST}/hosts.toml",
            "docker.io/hosts.toml",
            "quay.io/hosts.toml",
        )
    ]


@pytest.mark.usefixtures("running")
def test_node_gets_a_credential_of_the_registry_that_runs_here(root: Path, tmp_path: Path) -> None:
    """It is the node's own, pulls only, and ends in time; without authentication there is none."""
    ready = _ready(tmp_path, url=f"https://{HOST}", pid=os.getpid(), ca=None)
    options = ("--runtime", "containerd", "--root-dir", root, *ready)
    refused = _invoke("show", *options, "--node", "Node-1")
    assert refused.exit_code != 0
    assert "it needs no credential" in refused.output
    run = Run.begin(tmp_path, None, {})
    (tmp_path / "signing.key").write_bytes(new_key())
    (tmp_path / "signing.key").chmod(0o600)
    _run("apply", *options, "--node", "Node-1", "--hours", "1")
    hosts = root / f"etc/containerd/certs.d/{HOST}/hosts.toml"
    assert hosts.stat().st_mode & 0o777 == 0o600
    authorization = tomllib.loads(hosts.read_text())["header"]["authorization"]
    name, password = parse_basic(authorization)
    robots = Robots(load_key(tmp_path / "signing.key"), run.id)
    assert robots.verify(name, password, time.time()).node == "Node-1"
    with pytest.raises(CredentialsInvalid):
        robots.verify(name, password, time.time() + 3601)
    shown = _run("show", "--root-dir", root, *ready, "--node", "Node-1").stdout
    for runtime in ("docker", "podman"):
        login = f"{runtime} login {HOST} --username robot+node-1 --password-stdin"
        assert login in shown
        words = ("--root-dir", root, *ready, "--node", "Node-1", "--runtime", runtime)
        alone = _run("show", *words).stdout
        assert login in alone
        assert [line for line in alone.splitlines() if line.endswith("as root")] == [
            f"# {runtime}: on the node, as root"
        ]
        assert json.loads(_run("show", *words, "--json").stdout)["commands"].keys() == {runtime}


def test_errors_are_one_line_and_name_the_file(root: Path, identity: CertificateFiles) -> None:
    """What is wrong, where, what to do."""
    node = ("--runtime", "docker", "--root-dir", root)
    absent = root / "absent.crt"
    error = _error("apply", *node, "--registry", HOST, "--ca", absent)
    assert error == f"--ca {absent}: No such file or directory"
    assert "--ca FILE" in _error("apply", *node, "--registry", HOST)
    assert "not the name of an upstream" in _error(
        "apply", *node, "--registry", "localhost", "--mirror", "a/b"
    )
    (root / "etc/docker").write_text("a file")
    error = _error("apply", *node, "--registry", HOST, "--ca", identity.ca)
    assert error.startswith(f"{root}/etc/docker: File exists")
    assert _invoke("apply", "--runtime", "rkt").exit_code == 2


def test_a_note_about_a_program_that_is_not_there(root: Path, identity: CertificateFiles) -> None:
    """CRI-O is spoken of where it is, by apply and by revert."""
    node = ("--runtime", "podman", "--root-dir", root)
    registry = ("--registry", HOST, "--ca", identity.ca)
    assert _run("apply", *node, *registry).stderr == ""
    assert _run("revert", *node).stderr == ""
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/crio").touch()
    assert "CRI-O reads" in _run("apply", *node, *registry).stderr
    assert "CRI-O reads" in _run("revert", *node).stderr


def test_nothing_to_write_is_said(root: Path) -> None:
    """docker trusts a registry on loopback as it is."""
    node = ("--runtime", "docker", "--root-dir", root, "--registry", "127.0.0.1:5000")
    assert _run("show", *node).stdout == "docker: nothing to write\n"
    assert _run("apply", *node).stdout == "docker: nothing to do\n"


def test_an_edit_needs_force(root: Path, identity: CertificateFiles) -> None:
    """And force is enough."""
    node = ("--runtime", "podman", "--root-dir", root)
    before = snapshot(root)
    _run("apply", *node, "--registry", HOST, "--ca", identity.ca)
    (root / "etc/containers/registries.conf.d/50-mayfly.conf").write_text("# mine\n")
    words = f"mayfly node-config revert --runtime podman --root-dir {root} --force"
    assert words in _error("revert", *node)
    _run("revert", *node, "--force")
    assert snapshot(root) == before


def test_the_group_is_mounted_as_every_command_is() -> None:
    """`registry.cli` looks for ``command``."""
    assert isinstance(node_config.command, click.Group)
    assert node_config.command.name == "node-config"
