"""`names`: which repository a request means."""

from __future__ import annotations

import pytest

from mayfly.storage.bundle.errors import BundleConflict, NameAmbiguous
from mayfly.storage.bundle.names import BundleNames
from mayfly.storage.errors import NameInvalid

KNOWN = [
    ("docker.io", "library/nginx"),
    ("docker.io", "team/app"),
    ("quay.io", "openstack/nova"),
    ("reg.local:5000", "tools"),
    ("localhost", "bundle"),
]


@pytest.mark.parametrize(
    ("asked", "ns", "meant"),
    [
        ("library/nginx", None, "library/nginx"),
        ("library/nginx", "docker.io", "library/nginx"),
        ("library/nginx", "registry-1.docker.io", "library/nginx"),
        ("nginx", None, "library/nginx"),
        ("docker.io/library/nginx", None, "library/nginx"),
        ("docker.io/nginx", None, "library/nginx"),
        ("team/app", None, "team/app"),
        ("docker.io/team/app", None, "team/app"),
        ("app", None, "app"),
        ("openstack/nova", "quay.io", "openstack/nova"),
        ("quay.io/openstack/nova", None, "openstack/nova"),
        ("tools", "reg.local:5000", "tools"),
        ("reg.local_5000/tools", None, "tools"),
        ("bundle", None, "bundle"),
        ("not/in/it", None, "not/in/it"),
        ("not/in/it", "quay.io", "not/in/it"),
    ],
)
def test_what_a_request_means(asked: str, ns: str | None, meant: str) -> None:
    """By path, short name, full name or upstream; a name in no bundle is itself."""
    assert BundleNames(KNOWN).resolve(asked, ns) == meant


def test_another_upstream_is_another_repository() -> None:
    """Content of docker.io is never given for a name at quay.io."""
    names = BundleNames(KNOWN)
    assert names.resolve("library/nginx", "quay.io") == "quay.io/library/nginx"
    assert names.resolve("openstack/nova", "docker.io") == "docker.io/openstack/nova"
    assert names.resolve("bundle", "docker.io") == "docker.io/bundle"
    assert names.resolve("nginx", "docker.io") == "library/nginx"
    assert names.resolve("nginx", "quay.io") == "quay.io/nginx"
    assert names.resolve("docker.io/library/nginx", "docker.io") == "library/nginx"
    assert names.resolve("docker.io/library/nginx", "quay.io") == "quay.io/docker.io/library/nginx"


def test_upstream_that_is_none() -> None:
    """What a client sends as ``ns`` ends in no path."""
    for ns in ("..", "../..", "a/../b", "-", "a" * 300, "\0", "é", "."):
        for asked in ("library/nginx", "nginx"):
            with pytest.raises(NameInvalid):
                BundleNames(KNOWN).resolve(asked, ns)
    assert BundleNames(KNOWN).resolve("library/nginx", "") == "library/nginx"


def test_two_upstreams_of_one_path() -> None:
    """Told apart by ``ns`` or full name; without either it is an error that says what to ask."""
    names = BundleNames([("docker.io", "library/x"), ("quay.io", "library/x"), ("quay.io", "y")])
    assert names.resolve("library/x", "docker.io") == "docker.io/library/x"
    assert names.resolve("library/x", "quay.io") == "quay.io/library/x"
    assert names.resolve("docker.io/library/x") == "docker.io/library/x"
    assert names.resolve("quay.io/library/x") == "quay.io/library/x"
    assert names.canonical("quay.io", "library/x") == "quay.io/library/x"
    with pytest.raises(NameAmbiguous, match=r"docker.io/library/x or quay.io/library/x"):
        names.resolve("library/x")
    assert names.ambiguous() == {"library/x": ["docker.io/library/x", "quay.io/library/x"]}
    assert names.resolve("y") == "y"
    for exists in (True, False):
        meant = names.resolve("quay.io/library/x", "docker.io", lambda _, found=exists: found)
        assert meant == "docker.io/quay.io/library/x"


def test_short_name_means_docker_hub() -> None:
    """``x`` alone is docker.io's by docker's own rule, also when quay.io has a ``library/x``."""
    names = BundleNames([("docker.io", "library/x"), ("quay.io", "library/x")])
    assert names.resolve("x") == "docker.io/library/x"
    assert BundleNames([("docker.io", "library/x"), ("quay.io", "x")]).resolve("x") == "x"


def test_what_was_pushed_under_the_name_itself() -> None:
    """A repository of the writable store is not hidden by another's short or full name."""
    names = BundleNames(KNOWN)
    for ns in (None, "docker.io", "quay.io"):
        assert names.resolve("nginx", ns, lambda name: name == "nginx") == "nginx"
    assert names.resolve("nginx", exists=lambda name: False) == "library/nginx"


def test_full_name_that_is_taken() -> None:
    """A path that is another's full name, where that is needed to tell two upstreams apart."""
    known = [("docker.io", "x/y"), ("quay.io", "x/y"), ("ghcr.io", "docker.io/x/y")]
    with pytest.raises(BundleConflict, match=r"docker.io/x/y"):
        BundleNames(known)
    assert BundleNames(known[1:]).resolve("docker.io/x/y") == "docker.io/x/y"
