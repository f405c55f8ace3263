"""containerd: pull with ctr, exact content, a whole index, push, TLS and a mirror.

Each test runs with the machine's containerd and with those that `.ci/programs.toml` has.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.images import Images
from tests.clients.programs import Client, Containerd, push_by_skopeo
from tests.support.commands import run_mayfly
from tests.support.process import PATIENCE, Mayfly
from tests.support.programs import versions

PLAIN = "--plain-http"
SECURE = ("--tls", "auto", "--auth", "auto")
HUB_NAME = "docker.io/library/small:1"
PART = 4 * 2**20


@pytest.fixture
def ctr(each_containerd: Containerd) -> Iterator[Client]:
    """ctr of each version of containerd, with no image left over to the next test."""
    yield each_containerd.ctr
    remove_images(each_containerd.ctr)


def remove_images(ctr: Client) -> None:
    """Have a containerd forget all that it pulled."""
    for reference in ctr("images", "ls", "--quiet").split():
        ctr("images", "rm", "--sync", reference)


@pytest.fixture
def reference(
    skopeo: Client, images: Images, mayfly: Mayfly, repository: str, request: pytest.FixtureRequest
) -> str:
    """An image or index of the layout in the registry, named by the test's parameter."""
    target = f"{mayfly.host}/{repository}:{request.param}"
    push_by_skopeo(skopeo, images.layout, request.param, target)
    return target


def content(ctr: Client, digest: str) -> str:
    """The digest of what containerd holds under a digest."""
    held = ctr.bytes("content", "get", digest)
    return f"sha256:{hashlib.sha256(held).hexdigest()}"


@pytest.mark.parametrize("reference", ["debian"], indirect=True)
def test_pulled_image_is_exact_and_runs(ctr: Client, images: Images, reference: str) -> None:
    """Manifest, configuration and layers of 140 MB arrive as they are, and a container runs."""
    ctr("images", "pull", PLAIN, reference)
    digest = images.digest("debian")
    assert digest in ctr("images", "ls", f"name=={reference}")
    manifest = images.manifest("debian")
    for descriptor in [{"digest": digest}, manifest["config"], *manifest["layers"]]:
        assert content(ctr, descriptor["digest"]) == descriptor["digest"]
    # runc's directory is one for all containerds of the machine, which run side by side.
    output = ctr("run", "--rm", reference, f"container-of-a-pull-{secrets.token_hex(4)}")
    assert "ID=debian" in output.splitlines()


@pytest.mark.parametrize("reference", ["multi"], indirect=True)
def test_index_is_pulled_with_all_platforms(ctr: Client, images: Images, reference: str) -> None:
    """--all-platforms brings every image of an index."""
    ctr("content", "fetch", PLAIN, "--all-platforms", reference)
    for digest in [images.digest("multi")] + [
        entry["digest"] for entry in images.manifest("multi")["manifests"]
    ]:
        assert content(ctr, digest) == digest


@pytest.mark.parametrize("reference", ["multi"], indirect=True)
def test_pulled_index_is_pushed(
    ctr: Client, skopeo: Client, images: Images, mayfly: Mayfly, reference: str
) -> None:
    """An index that containerd pulled goes to another repository under the same digest."""
    ctr("content", "fetch", PLAIN, "--all-platforms", reference)
    target = reference.replace(":multi", "/pushed:multi")
    ctr("images", "push", PLAIN, target, reference)
    raw = skopeo.bytes("inspect", "--raw", "--tls-verify=false", f"docker://{target}")
    assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == images.digest("multi")


@pytest.fixture
def bundle(skopeo: Client, images: Images, scratch: Path) -> Path:
    """An archive of the small image under the name that Docker Hub would have for it."""
    made = scratch / "bundle.tar"
    skopeo("copy", f"oci:{images.layout}:small", f"oci-archive:{made}:{HUB_NAME}")
    return made


def hosts_directory(server: Mayfly, directory: Path, *options: str) -> Path:
    """What `mayfly node-config` has for a containerd whose host directories are there."""
    show = ("node-config", "show", "--runtime", "containerd", "--json", "--mirror", "docker.io")
    where = ("--state-dir", server.state_dir, "--certs-dir", directory)
    for file in json.loads(run_mayfly(*show, *where, *options))["files"]:
        path = Path(file["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file["content"])
    return directory


def until_node_has(directory: Path, image: str) -> list[str]:
    """The options with which a server ends once ``node-1`` has an image."""
    options = []
    for option, content in (("--until-pulled", image), ("--nodes", "node-1")):
        file = directory / option.lstrip("-")
        file.write_text(f"{content}\n")
        options += [option, str(file)]
    return options


def test_tls_login_and_push(
    ctr: Client,
    images: Images,
    bundle: Path,
    start_mayfly: Callable[..., Mayfly],
    scratch: Path,
) -> None:
    """With the CA from hosts.toml and a user name: pulled by the registry's name, and pushed."""
    server = start_mayfly(str(bundle), *SECURE)
    admin = json.loads((server.state_dir / "credentials.json").read_text())["admin"]
    hosts = ("--hosts-dir", hosts_directory(server, scratch / "certs.d"))
    source, target = f"{server.host}/docker.io/library/small:1", f"{server.host}/team/small:1"
    refused = ctr.fails("images", "pull", *hosts, source)
    assert "401" in refused or "authorization failed" in refused, refused
    ctr("images", "pull", *hosts, "--user", f"admin:{admin}", source)
    ctr("images", "push", *hosts, "--user", f"admin:{admin}", target, source)
    assert images.digest("small") in run_mayfly("ls", "--root", server.root, "--json")


def test_hub_name_comes_from_a_bundle(
    ctr: Client,
    images: Images,
    bundle: Path,
    start_mayfly: Callable[..., Mayfly],
    scratch: Path,
) -> None:
    """`docker.io/library/small:1` without retagging, by the node's own credential in hosts.toml."""
    server = start_mayfly(str(bundle), *SECURE, *until_node_has(scratch, HUB_NAME))
    hosts = hosts_directory(server, scratch / "certs.d", "--node", "node-1")
    ctr("images", "pull", "--hosts-dir", hosts, HUB_NAME)
    assert server.popen.wait(PATIENCE) == 0, server.describe()
    assert "node-1" in server.output()
    assert images.digest("small") in ctr("images", "ls", f"name=={HUB_NAME}")
    manifest = images.manifest("small")
    for descriptor in [manifest["config"], *manifest["layers"]]:
        assert content(ctr, descriptor["digest"]) == descriptor["digest"]


def test_upstreams_of_one_path_by_login(
    ctr: Client,
    skopeo: Client,
    images: Images,
    bundle: Path,
    start_mayfly: Callable[..., Mayfly],
    scratch: Path,
) -> None:
    """A login that may pull from one upstream gets its image by `ns`, and no other's by that path.

    The challenge names the path alone, for both.
    """
    second = scratch / "second.tar"
    names = {"docker": HUB_NAME, "quay": HUB_NAME.replace("docker.io", "quay.io")}
    skopeo("copy", f"oci:{images.layout}:debian", f"oci-archive:{second}:{names['quay']}")
    auth = scratch / "auth"
    for user in names:
        words = ("user", "add", user, "--password-stdin", "--auth", auth)
        run_mayfly(*words, stdin=f"password of {user}\n")
        only = ("--role", "guest", "--repositories", f"{user}.io/**")
        run_mayfly("grant", "add", "--user", user, *only, "--auth", auth)
    server = start_mayfly(str(bundle), str(second), "--tls", "auto", "--auth", str(auth))
    hosts = hosts_directory(server, scratch / "certs.d", "--mirror", "quay.io")
    pull = ("images", "pull", "--hosts-dir", hosts)
    for user, source in (("docker", "small"), ("quay", "debian")):
        login = ("--user", f"{user}:password of {user}")
        for upstream, name in names.items():
            if upstream != user:
                ctr.fails(*pull, *login, name)
                continue
            ctr(*pull, *login, name)
            assert images.digest(source) in ctr("images", "ls", f"name=={name}")
    refused = {
        line.split("WARNING ")[1] for line in server.output().splitlines() if " may " in line
    }
    assert refused == {
        f"{user} at 127.0.0.1 was refused: may not pull on repository {upstream}.io/library/small"
        for user, upstream in (("docker", "quay"), ("quay", "docker"))
    }


def test_missing_image_is_reported_as_missing(
    ctr: Client, bundle: Path, start_mayfly: Callable[..., Mayfly], scratch: Path
) -> None:
    """containerd asks `server` last: what it says there is the answer, not a certificate."""
    server = start_mayfly(str(bundle), *SECURE)
    hosts = hosts_directory(server, scratch / "certs.d", "--node", "node-1")
    told = ctr.fails("images", "pull", "--hosts-dir", hosts, f"{server.host}/team/none:1")
    assert "not found" in told
    assert "x509" not in told


@pytest.mark.parametrize("version", versions("containerd"))
def test_layers_fetched_in_parts_side_by_side(
    version: str,
    skopeo: Client,
    images: Images,
    home: Path,
    start_mayfly: Callable[..., Mayfly],
    scratch: Path,
) -> None:
    """With `concurrent_layer_fetch_buffer` the parts of a blob, together, count as the blob.

    containerd 2 asks for it by several open-ended ranges, reads its part of each, and hangs up.
    """
    bundle = scratch / "debian.tar"
    skopeo("copy", f"oci:{images.layout}:debian", f"oci-archive:{bundle}:{HUB_NAME}")
    until = until_node_has(scratch, HUB_NAME)
    server = start_mayfly(str(bundle), *SECURE, *until, "--accept", "served")
    hosts = hosts_directory(server, scratch / "certs.d", "--node", "node-1")
    settings = (
        '[plugins."io.containerd.transfer.v1.local"]\n'
        f"max_concurrent_downloads = 4\nconcurrent_layer_fetch_buffer = {PART}\n"
    )
    daemon = Containerd(scratch / "containerd", home, version, settings)
    try:
        daemon.ctr("images", "pull", "--hosts-dir", hosts, HUB_NAME)
        manifest = images.manifest("debian")
        assert max(layer["size"] for layer in manifest["layers"]) > 3 * PART
        for layer in manifest["layers"]:
            assert content(daemon.ctr, layer["digest"]) == layer["digest"]
    finally:
        daemon.stop()
    assert server.popen.wait(PATIENCE) == 0, server.describe()
    report = (server.state_dir / "report.json").read_text()
    assert '"failed"' not in report
    assert "cut: " not in server.output()
