"""Settings of distributions: as their documentation has them, and merged with what a node has."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mayfly.registry.cli import node_config
from mayfly.registry.nodes.distributions import DISTRIBUTIONS, Rendered, render
from mayfly.registry.nodes.merging import MAX_EXISTING
from mayfly.registry.nodes.plan import NoteCode
from mayfly.registry.nodes.target import NodeCredential, Target, parse
from mayfly.registry.pki.errors import TrustError
from tests.nodes.pasting import paste
from tests.support.commands import mayfly, run_mayfly
from tests.support.process import need
from tests.support.programs import versioned, versions

HOST = "10.0.0.5:5000"
URL = f"https://{HOST}"
CREDENTIAL = NodeCredential("robot+n1", 'pass"word')
DIGEST = "sha256:" + "0" * 64
RANCHER = ("k3s", "rke2")


@pytest.fixture
def target(ca_pem: bytes) -> Target:
    """A registry with a CA of its own that mirrors two upstreams; a node has a login for it."""
    return parse(URL, ca_pem, ["docker.io", "quay.io"], credential=CREDENTIAL)


@pytest.fixture
def anonymous(ca_pem: bytes) -> Target:
    """The same without a login."""
    return parse(URL, ca_pem, ["docker.io", "quay.io"])


def documents(rendered: Rendered) -> list[dict[str, Any]]:
    """The documents of a YAML text."""
    return [*yaml.safe_load_all(rendered.text)]


def files(rendered: Rendered, directory: Path) -> dict[str, tuple[int, bytes]]:
    """Run shell commands twice, with another root; mode and content of each file."""
    for _ in range(2):
        paste(rendered.text, directory)
    return {
        f"/{path.relative_to(directory)}": (path.stat().st_mode & 0o777, path.read_bytes())
        for path in (directory / "etc").rglob("*")
        if path.is_file()
    }


def codes(rendered: Rendered) -> set[NoteCode]:
    """The kinds of its notes."""
    return {note.code for note in rendered.notes}


def test_talos(target: Target, ca_pem: bytes) -> None:
    """A mirror for each upstream, which stays the fallback; the CA, the node's login."""
    hub, quay, trust, login = documents(render("talos", target))
    assert hub == {
        "apiVersion": "v1alpha1",
        "kind": "RegistryMirrorConfig",
        "name": "docker.io",
        "endpoints": [{"url": URL}],
    }
    assert quay == {**hub, "name": "quay.io"}
    assert trust == {
        "apiVersion": "v1alpha1",
        "kind": "RegistryTLSConfig",
        "name": HOST,
        "ca": ca_pem.decode(),
    }
    assert login == {
        "apiVersion": "v1alpha1",
        "kind": "RegistryAuthConfig",
        "name": HOST,
        "username": "robot+n1",
        "password": 'pass"word',
    }


@pytest.mark.parametrize("url", ["https://r.example/below", "http://10.0.0.5:5000"])
def test_talos_of_a_registry_that_is_not_where_its_name_says(url: str) -> None:
    """Below a path, or without TLS, the registry's own name needs an endpoint."""
    target = parse(url, None, ["docker.io"])
    hub, own = documents(render("talos", target))
    wanted: dict[str, object] = {"url": url}
    if target.path:
        wanted = {"url": f"{url}/v2", "overridePath": True}
    assert hub["endpoints"] == own["endpoints"] == [wanted]
    assert own["name"] == target.registry
    assert own["skipFallback"] is True


def test_openshift(anonymous: Target, ca_pem: bytes) -> None:
    """Both kinds of mirror sets, the CA under a name with two dots, pins for each pool."""
    images = (f"quay.io/team/two@{DIGEST}", "docker.io/library/one:1", f"a.b/c/d/e@{DIGEST}")
    rendered = render("openshift", anonymous, images)
    by_digest, by_tag, ca, *pins = documents(rendered)
    mirrors = [
        {
            "source": name,
            "mirrors": [f"{HOST}/{name}"],
            "mirrorSourcePolicy": "AllowContactingSource",
        }
        for name in ("docker.io", "quay.io")
    ]
    assert by_digest == {
        "apiVersion": "config.openshift.io/v1",
        "kind": "ImageDigestMirrorSet",
        "metadata": {"name": "mayfly"},
        "spec": {"imageDigestMirrors": mirrors},
    }
    assert by_tag["kind"] == "ImageTagMirrorSet"
    assert by_tag["spec"] == {"imageTagMirrors": mirrors}
    assert ca["metadata"] == {"name": "mayfly-ca", "namespace": "openshift-config"}
    assert ca["data"] == {"10.0.0.5..5000": ca_pem.decode()}
    assert [pin["spec"]["pinnedImages"] for pin in pins] == [[{"name": images[0]}]] * 2
    roles = [pin["metadata"]["labels"]["machineconfiguration.openshift.io/role"] for pin in pins]
    assert roles == ["master", "worker"]
    assert len({pin["metadata"]["name"] for pin in pins}) == 2
    assert NoteCode.UNPINNED in codes(rendered)
    assert any("2 of 3 images" in str(note) for note in rendered.notes)
    patch = re.search(r"--patch '(.*)'", rendered.activate[1])
    assert patch is not None
    assert json.loads(patch[1]) == {"spec": {"additionalTrustedCA": {"name": "mayfly-ca"}}}


def test_openshift_has_room_for_500_pins_in_a_set(anonymous: Target) -> None:
    """More of them take more sets."""
    images = [f"quay.io/team/i{number}@{DIGEST}" for number in range(501)]
    pins = [one for one in documents(render("openshift", anonymous, images)) if "labels" in
            one["metadata"]]  # fmt: skip
    assert [len(pin["spec"]["pinnedImages"]) for pin in pins] == [500, 1, 500, 1]
    assert len({pin["metadata"]["name"] for pin in pins}) == 4


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.5:5000", "https://r.example/below", "https://[fd00::5]:5000"],
)
def test_openshift_cannot_use_every_registry(url: str) -> None:
    """Plain HTTP, a path and an IPv6 address have no place in its objects."""
    with pytest.raises(TrustError):
        render("openshift", parse(url, None, ["docker.io"]))


@pytest.mark.parametrize("distribution", ["openshift", "crio"])
def test_a_login_that_a_distribution_has_no_place_for_is_refused(
    target: Target, distribution: str
) -> None:
    """It is said where a login belongs."""
    with pytest.raises(TrustError, match="leave --node out"):
        render(distribution, target)


@pytest.mark.parametrize("product", RANCHER)
def test_rancher_from_nothing(target: Target, ca_pem: bytes, tmp_path: Path, product: str) -> None:
    """Two files, the one with the login private; the service to restart is named, not restarted."""
    rendered = render(product, target)
    written = files(rendered, tmp_path)
    ca_file = f"/etc/rancher/{product}/mayfly-ca.crt"
    path = f"/etc/rancher/{product}/registries.yaml"
    assert written.keys() == {ca_file, path}
    assert written[ca_file] == (0o644, ca_pem)
    assert written[path][0] == 0o600
    assert yaml.safe_load(written[path][1]) == {
        "mirrors": {"docker.io": {"endpoint": [URL]}, "quay.io": {"endpoint": [URL]}},
        "configs": {
            HOST: {
                "auth": {"username": "robot+n1", "password": 'pass"word'},
                "tls": {"ca_file": ca_file},
            }
        },
    }
    assert codes(rendered) == {NoteCode.MERGE, NoteCode.RESTART, NoteCode.TAKE_BACK}
    commands = [line for line in rendered.text.splitlines() if not line.startswith("#")]
    assert not any("systemctl" in line for line in commands)


@pytest.mark.parametrize("product", RANCHER)
def test_rancher_merged(target: Target, tmp_path: Path, product: str) -> None:
    """All that there was stays, and merging again changes nothing."""
    existing = {
        "mirrors": {
            "docker.io": {"endpoint": ["https://other.example"], "rewrite": {"^a": "b"}},
            "*": {"endpoint": ["https://any.example"]},
        },
        "configs": {
            "other.example": {"tls": {"insecure_skip_verify": True}},
            HOST: {"auth": {"username": "old", "password": "old"}, "more": 1},
        },
        "more": [1],
    }
    text = yaml.safe_dump(existing).encode()
    found = []
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        rendered = render(product, target, existing=text)
        text = files(rendered, directory)[f"/etc/rancher/{product}/registries.yaml"][1]
        found.append(yaml.safe_load(text))
    assert found[0] == found[1]
    merged = found[0]
    assert merged["mirrors"]["docker.io"] == {
        "endpoint": [URL, "https://other.example"],
        "rewrite": {"^a": "b"},
    }
    # Without it, what the wildcard had would be lost for this upstream.
    assert merged["mirrors"]["quay.io"] == {"endpoint": [URL, "https://any.example"]}
    assert merged["mirrors"]["*"] == existing["mirrors"]["*"]  # type: ignore[index]
    assert set(merged["configs"]) == {HOST, "other.example"}
    assert merged["configs"][HOST]["auth"]["username"] == "robot+n1"
    assert merged["configs"][HOST]["more"] == 1
    assert merged["more"] == [1]
    assert codes(rendered) == {NoteCode.REWRITE, NoteCode.RESTART, NoteCode.TAKE_BACK}


@pytest.mark.parametrize("url", ["https://r.example/below", "http://10.0.0.5:5000"])
def test_rancher_of_a_registry_that_is_not_where_its_name_says(url: str, tmp_path: Path) -> None:
    """Below a path, or without TLS, the registry's own name needs an endpoint."""
    target = parse(url, None, ["docker.io"])
    written = files(render("k3s", target), tmp_path)
    (found,) = (yaml.safe_load(content) for _, content in written.values())
    endpoint = f"{url}/v2" if target.path else url
    assert found == {
        "mirrors": {
            "docker.io": {"endpoint": [endpoint]},
            target.registry: {"endpoint": [endpoint]},
        }
    }


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(24)
)


@pytest.mark.parametrize(
    "existing",
    [b"- a", b"mirrors: 5", b"mirrors: {docker.io: [a]}", b"a: [", b"\xff", b"{" * 9000,
     b"mirrors: {docker.io: {endpoint: x}}", b"configs: []", b"!!python/object:x.y {}",
     b"a: \x00", b"#" * (MAX_EXISTING + 1), LAUGHS.encode(), b"mirrors: {'*': [a]}",
     b"a: " + b"[" * 40 + b"]" * 40,
     b"a: 1\n---\nb: 2"],
    ids=range(15),
)  # fmt: skip
def test_a_file_that_cannot_be_merged_is_refused(target: Target, existing: bytes) -> None:
    """Nothing is guessed about it, and the message says which option it came by."""
    with pytest.raises(TrustError, match=r"^--merge") as refused:
        render("k3s", target, existing=existing)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("product", RANCHER)
def test_hostile_texts_of_a_merged_file_stay_texts(
    anonymous: Target, tmp_path: Path, product: str
) -> None:
    """No line of the file ends the shell's here-document or runs a command."""
    hostile = "x\nMAYFLY\ntouch /etc/owned\n$(touch /etc/owned)`touch /etc/owned`'\"\\"
    existing = {"mirrors": {hostile: {"endpoint": [hostile]}}, hostile: [hostile, "MAYFLY"]}
    rendered = render(product, anonymous, existing=yaml.safe_dump(existing).encode())
    written = files(rendered, tmp_path)
    assert len(written) == 2
    found = yaml.safe_load(written[f"/etc/rancher/{product}/registries.yaml"][1])
    assert found[hostile] == [hostile, "MAYFLY"]
    assert found["mirrors"][hostile] == {"endpoint": [hostile]}


def test_crio(anonymous: Target, tmp_path: Path, ca_pem: bytes) -> None:
    """Podman's files, and a drop-in that pins these images beside those that are pinned."""
    images = ("docker.io/library/web:1", f"quay.io/a/b@{DIGEST}")
    rendered = render("crio", anonymous, images)
    written = files(rendered, tmp_path)
    pins = tomllib.loads(written["/etc/crio/crio.conf.d/50-mayfly-pins.conf"][1].decode())
    assert pins == {"crio": {"image": {"pinned_images": [*images]}}}
    mirrors = tomllib.loads(written["/etc/containers/registries.conf.d/50-mayfly.conf"][1].decode())
    assert [one["prefix"] for one in mirrors["registry"]] == [HOST, "docker.io", "quay.io"]
    assert written[f"/etc/containers/certs.d/{HOST}/ca.crt"] == (0o644, ca_pem)
    assert codes(rendered) == {NoteCode.RELOAD, NoteCode.MERGE, NoteCode.TAKE_BACK}
    others = ["registry.k8s.io/pause:3.10", 'a\x7f"\\\U0001f600*']
    existing = f"[crio.image]\npinned_images = {json.dumps(others[:1])[:-1]}, {_toml(others[1])}]"
    rendered = render("crio", anonymous, images[:1], existing.encode())
    text = files(rendered, tmp_path)["/etc/crio/crio.conf.d/50-mayfly-pins.conf"][1].decode()
    assert tomllib.loads(text)["crio"]["image"]["pinned_images"] == [*others, images[0]]
    assert NoteCode.MERGE not in codes(rendered)


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@pytest.mark.parametrize(
    "existing", [b"[crio", b"crio = 1", b"[crio.image]\npinned_images = 1", b"\xff",
                 b"[crio.image]\npinned_images = [1]", b"#" * (MAX_EXISTING + 1)],
    ids=range(6),
)  # fmt: skip
def test_pins_that_cannot_be_merged_are_refused(anonymous: Target, existing: bytes) -> None:
    """As registries.yaml."""
    with pytest.raises(TrustError, match="--merge"):
        render("crio", anonymous, (), existing)


@pytest.mark.parametrize("distribution", ["talos", "openshift"])
def test_what_others_merge_is_refused(anonymous: Target, distribution: str) -> None:
    """talosctl and oc know what there is."""
    with pytest.raises(TrustError, match="--merge"):
        render(distribution, anonymous, (), b"")


def test_the_distributions_are_those_of_the_library() -> None:
    """The help spells them once more so as not to import it."""
    assert tuple(DISTRIBUTIONS) == node_config.DISTRIBUTIONS


SETTINGS = versioned("node-settings", versions("node-settings")[0])


def _read_by(reader: str, text: str) -> str:
    """What the distribution's own code says of settings; "" if it takes them."""
    need("node-settings", directory=SETTINGS)
    done = subprocess.run(
        [SETTINGS / "node-settings", reader],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == bool(done.stderr), done
    return done.stderr


@pytest.mark.parametrize("url", [URL, "https://r.example/below", "http://10.0.0.5:5000"])
def test_talos_reads_it(url: str, ca_pem: bytes) -> None:
    """Its loader knows every document and field, and refuses others."""
    ca = ca_pem if url == URL else None
    text = render("talos", parse(url, ca, ["docker.io", "a:5000"], credential=CREDENTIAL)).text
    assert _read_by("talos", text) == ""
    assert "unknown keys" in _read_by("talos", text.replace("endpoints:", "endpoint:"))


def test_openshift_reads_it(anonymous: Target) -> None:
    """Its types have every field, and refuse others."""
    text = render("openshift", anonymous, [f"quay.io/team/two@{DIGEST}"]).text
    assert _read_by("openshift", text) == ""
    for field in ("mirrors:", "pinnedImages:", "imageTagMirrors:"):
        assert "unknown field" in _read_by("openshift", text.replace(field, f"un{field}"))


@pytest.mark.parametrize("product", RANCHER)
def test_rancher_reads_it(target: Target, tmp_path: Path, product: str) -> None:
    """Its types have every field, and refuse others."""
    written = files(render(product, target), tmp_path)
    text = written[f"/etc/rancher/{product}/registries.yaml"][1].decode()
    assert _read_by("rancher", text) == ""
    assert "not found" in _read_by("rancher", text.replace("ca_file", "file"))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_command(distribution: str, tmp_path: Path, ca_pem: bytes) -> None:
    """The text on standard output, the steps on standard error; the lists' upstreams mirrored."""
    (tmp_path / "ca").write_bytes(ca_pem)
    (tmp_path / "images").write_text("web:1\nquay.io/a/b:2\n")
    words = ("--registry", HOST, "--ca", tmp_path / "ca", "--images", tmp_path / "images")
    done = mayfly("node-config", "show", "--for", distribution, *words)
    assert done.returncode == 0, done.stderr
    assert "quay.io" in done.stdout
    assert "docker.io" in done.stdout
    assert all(line.startswith(("note: ", "now run: ")) for line in done.stderr.splitlines())
    found = json.loads(run_mayfly("node-config", "show", "--for", distribution, *words, "--json"))
    assert (found["for"], found["content"]) == (distribution, done.stdout)


def test_merge_from_standard_input(tmp_path: Path, ca_pem: bytes) -> None:
    """`ssh NODE cat … | mayfly … --merge - | ssh NODE sh`."""
    (tmp_path / "ca").write_bytes(ca_pem)
    words = ["show", "--for", "k3s", "--registry", HOST, "--ca", str(tmp_path / "ca")]
    done = CliRunner().invoke(node_config.command, [*words, "--merge", "-"], input="more: 1\n")
    assert done.exit_code == 0, done.output
    assert "\nmore: 1\n" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("--for", "k3s", "--runtime", "docker"),
        ("--images", "x"),
        ("--merge", "x"),
        ("--for", "k3s", "--merge", "/absent"),
        ("--for", "k3s", "--certs-dir", "/x"),
        ("--for", "nix"),
    ],
)
def test_usage(words: tuple[str, ...]) -> None:
    """Options that do not belong together, or name nothing, are errors of usage."""
    done = mayfly("node-config", "show", "--registry", URL, *words)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
