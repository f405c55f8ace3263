"""`storage.reference`: image names read as docker reads them."""

from __future__ import annotations

import pytest

from mayfly.storage.digest import HEX_LENGTHS, Digest
from mayfly.storage.errors import DigestInvalid, NameInvalid, TagInvalid
from mayfly.storage.reference import (
    Reference,
    address_of,
    canonical_host,
    is_attached_tag,
    is_full_name,
    is_tag,
    parse_reference,
    split_name,
    split_stored,
)
from mayfly.storage.transfer.attached import COSIGN_ENDINGS, flat_tag

DIGEST = "sha256:" + "ab" * 32

# Cases of github.com/distribution/reference, normalize_test.go and reference_test.go, among them.
READ = {
    "nginx": ("docker.io", "library/nginx", None),
    "nginx:1.25": ("docker.io", "library/nginx", "1.25"),
    "team/app:v1": ("docker.io", "team/app", "v1"),
    "docker.io/nginx": ("docker.io", "library/nginx", None),
    "docker.io/library/nginx:x": ("docker.io", "library/nginx", "x"),
    "index.docker.io/nginx": ("docker.io", "library/nginx", None),
    "quay.io/openstack.kolla/nova-api:2025.1": ("quay.io", "openstack.kolla/nova-api", "2025.1"),
    "localhost/app:1": ("localhost", "app", "1"),
    "localhost:5000/app": ("localhost:5000", "app", None),
    "host:5000/app:5000": ("host:5000", "app", "5000"),
    "[::1]:5000/app:1": ("[::1]:5000", "app", "1"),
    "Registry.Example/app": ("registry.example", "app", None),
    "UPPER/app": ("upper", "app", None),
    "a.b/c": ("a.b", "c", None),
    "a/b.c": ("docker.io", "a/b.c", None),
    "docker/docker": ("docker.io", "docker/docker", None),
    "library/debian": ("docker.io", "library/debian", None),
}

BROKEN = {
    "": NameInvalid,
    "Nginx": NameInvalid,
    "a/B": NameInvalid,
    "nginx:": TagInvalid,
    "nginx:v/1": NameInvalid,
    "nginx:-v": TagInvalid,
    "/nginx": NameInvalid,
    "https://quay.io/x": NameInvalid,
    "a..b/x": NameInvalid,
    "quay.io/../x": NameInvalid,
    "quay.io/": NameInvalid,
    "nginx@sha256:ab": DigestInvalid,
    "nginx@": DigestInvalid,
    "a b/x.y": NameInvalid,
    "-a.b/x": NameInvalid,
    "quay.io/" + "a" * 256: NameInvalid,
}


@pytest.mark.parametrize("text", READ)
def test_reading(text: str) -> None:
    """Host, repository and tag as docker normalises them."""
    assert parse_reference(text) == Reference(*READ[text])


@pytest.mark.parametrize("text", BROKEN)
def test_refusing(text: str) -> None:
    """What docker refuses is refused."""
    with pytest.raises(BROKEN[text]):
        parse_reference(text)


def test_digest_outweighs_the_tag() -> None:
    """Of a name with both, the tag may since have moved: as in docker, it is dropped."""
    digest = Digest("sha256", "ab" * 32)
    for text in (f"quay.io/x@{DIGEST}", f"quay.io/x:1@{DIGEST}"):
        assert parse_reference(text) == Reference("quay.io", "x", None, digest)
    assert str(parse_reference(f"x:1@{DIGEST}")) == f"docker.io/library/x@{DIGEST}"
    assert str(parse_reference("x:1")) == "docker.io/library/x:1"


def test_telling_a_name_from_a_tag() -> None:
    """An OCI ref name is mostly only a tag."""
    assert not is_full_name("1.25")
    assert not is_full_name("latest")
    assert is_full_name("nginx:1.25")
    assert is_full_name("library/nginx")


def test_parts_as_written() -> None:
    """Nothing is added to a short name, and a host keeps its case."""
    assert split_name("x") == (None, "x", None, None)
    assert split_name("Quay.IO:443/x:1") == ("Quay.IO:443", "x", "1", None)
    assert split_name(f"library/x:1@{DIGEST}") == (
        None,
        "library/x",
        "1",
        Digest("sha256", DIGEST.partition(":")[2]),
    )


@pytest.mark.parametrize("text", BROKEN)
def test_broken_parts(text: str) -> None:
    """A part outside its grammar is refused, also where nothing is added."""
    with pytest.raises(BROKEN[text]):
        split_name(text)


def test_docker_hub() -> None:
    """Docker Hub has one name to compare, and another host that answers."""
    hosts = ("docker.io", "Index.Docker.IO", "registry-1.docker.io")
    assert {canonical_host(host) for host in hosts} == {"docker.io"}
    assert address_of("docker.io") == "registry-1.docker.io"
    assert address_of("quay.io:443") == "quay.io:443"


def test_repositories_of_a_reference() -> None:
    """An official image may lie under its full path or under its word alone."""
    assert parse_reference("x").stored_as == ("library/x", "x")
    assert set(parse_reference("quay.io/a/x").stored_as) == {"a/x"}


def test_names_of_stored_images() -> None:
    """A repository, and its tag or digest."""
    assert split_stored("a/b:1") == ("a/b", "1")
    assert split_stored(f"a/b@{DIGEST}") == ("a/b", DIGEST)
    assert split_stored("a/b") == ("a/b", "")


@pytest.mark.parametrize(("algorithm", "length"), HEX_LENGTHS.items())
def test_tags_of_artifacts_are_tags(algorithm: str, length: int) -> None:
    """For any digest; longer ones are cut."""
    tag = flat_tag(Digest(algorithm, "ab" * (length // 2)))
    for ending in ("", *COSIGN_ENDINGS):
        assert is_tag(tag + ending)
        assert is_attached_tag(tag + ending)
    assert not is_attached_tag(tag + ".other")
