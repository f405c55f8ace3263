"""`names`: what a request means where other registries are mirrored, and whose content it is."""

from __future__ import annotations

import pytest

from mayfly.registry.api.context import AS_WRITTEN
from mayfly.registry.upstream.names import Origin, UpstreamNames
from mayfly.storage.bundle.names import BundleNames, ServedNames
from mayfly.storage.errors import NameInvalid

HUB, QUAY = "docker.io", "quay.io"

BUNDLES = BundleNames(
    [
        (HUB, "library/nginx"),
        (QUAY, "org/img"),
        ("ghcr.io", "org/only"),
        (HUB, "two/hosts"),
        (QUAY, "two/hosts"),
    ]
)


def _names(default: str | None, *, bundles: bool = False) -> UpstreamNames:
    served = ServedNames(BUNDLES, lambda repository: False) if bundles else AS_WRITTEN
    hosts = [HUB, QUAY, "reg.local:5000"]
    return UpstreamNames(hosts, default, served, BUNDLES if bundles else None)


@pytest.mark.parametrize(
    ("asked", "ns", "name", "origin"),
    [
        ("org/app", None, "org/app", None),
        ("org/app", HUB, "docker.io/org/app", Origin(HUB, "org/app", True)),
        ("app", HUB, "docker.io/library/app", Origin(HUB, "library/app", True)),
        ("docker.io/app", None, "docker.io/library/app", Origin(HUB, "library/app", True)),
        ("org/app", QUAY, "quay.io/org/app", Origin(QUAY, "org/app", True)),
        ("quay.io/org/app", None, "quay.io/org/app", Origin(QUAY, "org/app", True)),
        # The ns of this registry itself says nothing; that of another upstream does.
        ("quay.io/org/app", "me.local:5000", "quay.io/org/app", Origin(QUAY, "org/app", True)),
        (
            "docker.io/org/app", QUAY, "quay.io/docker.io/org/app",
            Origin(QUAY, "docker.io/org/app", True),
        ),
        (
            "reg.local_5000/app", None, "reg.local_5000/app",
            Origin("reg.local:5000", "app", True),
        ),
        ("app", "reg.local:5000", "reg.local_5000/app", Origin("reg.local:5000", "app", True)),
        ("org/app", "ghcr.io", "org/app", None),
        ("ghcr.io/org/app", None, "ghcr.io/org/app", None),
    ],
)  # fmt: skip
def test_without_a_default(asked: str, ns: str | None, name: str, origin: Origin | None) -> None:
    """Names with a host are its own; others are what was pushed here."""
    names = _names(None)
    assert names.resolve(asked, ns) == names.meant(asked, ns) == name
    assert names.origin(name) == origin


@pytest.mark.parametrize(
    ("asked", "ns", "name", "origin"),
    [
        ("org/app", None, "org/app", Origin(HUB, "org/app", False)),
        ("org/app", HUB, "org/app", Origin(HUB, "org/app", False)),
        ("docker.io/org/app", None, "org/app", Origin(HUB, "org/app", False)),
        ("app", None, "app", Origin(HUB, "library/app", False)),
        ("app", HUB, "library/app", Origin(HUB, "library/app", False)),
        ("org/app", QUAY, "quay.io/org/app", Origin(QUAY, "org/app", True)),
        # Never the default's content under another host's name.
        ("org/app", "ghcr.io", "ghcr.io/org/app", None),
        ("org/app", "h:5000", "h_5000/org/app", None),
        ("org/app", "localhost", "localhost/org/app", None),
        ("ghcr.io/org/app", None, "ghcr.io/org/app", None),
        # A path that looks like another host's name.
        (
            "ghcr.io/org/app", HUB, "docker.io/ghcr.io/org/app",
            Origin(HUB, "ghcr.io/org/app", True),
        ),
    ],
)  # fmt: skip
def test_with_a_default(asked: str, ns: str | None, name: str, origin: Origin | None) -> None:
    """Names without host are shared by the default upstream and by pushes."""
    names = _names(HUB)
    assert names.resolve(asked, ns) == names.meant(asked, ns) == name
    assert names.origin(name) == origin


@pytest.mark.parametrize("default", [None, HUB])
@pytest.mark.parametrize(
    ("asked", "ns", "name", "origin"),
    [
        ("nginx", None, "library/nginx", Origin(HUB, "library/nginx", False)),
        ("library/nginx", HUB, "library/nginx", Origin(HUB, "library/nginx", False)),
        ("library/nginx", QUAY, "quay.io/library/nginx", Origin(QUAY, "library/nginx", True)),
        ("org/img", None, "org/img", Origin(QUAY, "org/img", False)),
        ("org/img", QUAY, "org/img", Origin(QUAY, "org/img", False)),
        ("org/img", HUB, "docker.io/org/img", Origin(HUB, "org/img", True)),
        ("org/only", None, "org/only", None),
        ("two/hosts", HUB, "docker.io/two/hosts", Origin(HUB, "two/hosts", False)),
        ("two/hosts", QUAY, "quay.io/two/hosts", Origin(QUAY, "two/hosts", False)),
    ],
)
def test_over_bundles(
    default: str | None, asked: str, ns: str | None, name: str, origin: Origin | None
) -> None:
    """What a bundle has keeps its name; what it lacks of that upstream is asked of it."""
    names = _names(default, bundles=True)
    assert names.resolve(asked, ns) == names.meant(asked, ns) == name
    assert names.origin(name) == origin


def test_a_host_that_is_none() -> None:
    """It is refused, and means nothing before the caller has a right."""
    names = _names(HUB)
    assert names.meant("org/app", "no host!") == "no_host/org/app"
    assert names.meant("org/app", "../..") == "org/app"
    with pytest.raises(NameInvalid):
        names.resolve("org/app", "../..")


def test_two_upstreams_share_no_name() -> None:
    """Whatever is asked for, content of one upstream has no name of another."""
    for default in (None, HUB):
        for bundles in (False, True):
            names = _names(default, bundles=bundles)
            owners: dict[str, tuple[str, str]] = {}
            for path in ("app", "org/app", "library/nginx", "org/img", "two/hosts", "quay.io/x/y"):
                for host in (HUB, QUAY, "reg.local:5000"):
                    name = names.resolve(path, host)
                    origin = names.origin(name)
                    assert origin is not None and origin.host == host, (path, host, name)
                    source = owners.setdefault(name, (host, origin.repository))
                    assert source == (host, origin.repository)
