"""Lists of images in every format that other tools write."""

from __future__ import annotations

import textwrap

import pytest

from mayfly.registry.upstream import lists
from mayfly.registry.upstream.errors import ListInvalid
from mayfly.registry.upstream.lists import ImageList, TagFilter, read

DIGEST = "sha256:" + "a" * 64


def _read(text: str) -> ImageList:
    return read(textwrap.dedent(text).encode(), "list")


FORMATS = {
    "plain text": (
        f"""
        # rke2-images.txt
        docker.io/rancher/klipper-helm:v0.9.3-build20241008
        registry.k8s.io/pause:3.10   # the sandbox
        busybox
        localhost:5000/app@{DIGEST}
        busybox:latest
        """,
        [
            "docker.io/rancher/klipper-helm:v0.9.3-build20241008",
            "registry.k8s.io/pause:3.10",
            "docker.io/library/busybox:latest",
            f"localhost:5000/app@{DIGEST}",
        ],
    ),
    "mapping": (
        f"docker://quay.io/a/b@{DIGEST}=docker://mirror.local:5000/a/b:1\n",
        [f"quay.io/a/b@{DIGEST}"],
    ),
    "hauler": (
        """
        apiVersion: content.hauler.cattle.io/v1
        kind: Images
        metadata: {name: x, annotations: {hauler.dev/registry: quay.io}}
        spec:
          images:
            - name: docker.io/library/nginx:1.27
              platform: linux/amd64
            - name: org/tool:2
        ---
        apiVersion: content.hauler.cattle.io/v1
        kind: Charts
        spec:
          charts: [{name: app, repoURL: "oci://ghcr.io/org/charts", version: 1.2.3+build}]
        """,
        [
            "docker.io/library/nginx:1.27",
            "quay.io/org/tool:2",
            "ghcr.io/org/charts/app:1.2.3_build",
        ],
    ),
    "oc-mirror": (
        """
        apiVersion: mirror.openshift.io/v2alpha1
        kind: ImageSetConfiguration
        mirror:
          additionalImages:
            - {name: quay.io/a/b:1, targetRepo: x/y, targetTag: "2"}
            - {name: quay.io/a/secret:1}
          blockedImages: [{name: ".*secret.*"}]
        """,
        ["quay.io/a/b:1"],
    ),
    "regsync": (
        """
        version: 1
        creds: [{registry: ghcr.io, user: me, pass: word}]
        sync:
          - {source: ghcr.io/a/b:1, target: "mirror:5000/a/b:1", type: image}
          - source: ghcr.io/a/c
            target: mirror:5000/a/c
            type: repository
            tags: {allow: ["v.*"], deny: [".*-rc.*"], semverRange: [">=1.0"]}
        """,
        ["ghcr.io/a/b:1", "ghcr.io/a/c"],
    ),
    "skopeo sync": (
        """
        registry.example.com:
          images:
            busybox: []
            redis:
              - "1.0"
              - sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
          images-by-tag-regex: {nginx: '^1\\.13'}
          images-by-semver: {alpine: ">= 3.12"}
        """,
        [
            "registry.example.com/busybox",
            "registry.example.com/redis:1.0",
            f"registry.example.com/redis@{DIGEST}",
            "registry.example.com/nginx",
            "registry.example.com/alpine",
        ],
    ),
    "image-syncer": (
        """
        quay.io/coreos/etcd:1.0,1.1: mirror.local/coreos/etcd
        quay.io/x/y:/v1.*/: [mirror.local/x/y, other.local/x/y]
        """,
        ["quay.io/coreos/etcd:1.0", "quay.io/coreos/etcd:1.1", "quay.io/x/y", "quay.io/x/y"],
    ),
    "zarf": (
        """
        kind: ZarfPackageConfig
        components:
          - name: a
            images: [ghcr.io/a/b:1]
            imageArchives: [{path: old.tar, images: [x]}]
        """,
        ["ghcr.io/a/b:1"],
    ),
    "Kubernetes": (
        """
        # Source: app/templates/deployment.yaml
        apiVersion: apps/v1
        kind: Deployment
        metadata: {name: app}
        spec:
          template:
            spec:
              initContainers: [{name: i, image: "a/init:1"}]
              containers:
                - name: c
                  image: a/main:1
                  env: [{name: RELATED_IMAGE_TOOL, value: "a/tool:1"}, {name: X, value: "a/no:1"}]
              ephemeralContainers: [{name: e, image: "a/debug:1"}]
              volumes: [{name: v, image: {reference: "a/data:1"}}]
        ---
        apiVersion: v1
        kind: ConfigMap
        data: {image: "a/never:1"}
        ---
        apiVersion: ceph.rook.io/v1
        kind: CephCluster
        spec: {cephVersion: {image: "quay.io/ceph/ceph:v19"}}
        """,
        [
            "docker.io/a/init:1",
            "docker.io/a/main:1",
            "docker.io/a/tool:1",
            "docker.io/a/debug:1",
            "docker.io/a/data:1",
            "quay.io/ceph/ceph:v19",
        ],
    ),
    "Helm chart": (
        """
        apiVersion: v2
        name: app
        version: 1.0.0
        annotations:
          artifacthub.io/images: |
            - name: app
              image: a/app:1
        """,
        ["docker.io/a/app:1"],
    ),
    "Compose": (
        "services: {web: {image: 'nginx:1'}, own: {build: .}}",
        ["docker.io/library/nginx:1"],
    ),
    "kustomization": (
        "kind: Kustomization\nimages: [{name: app, newName: a/b, newTag: '3'}]",
        ["docker.io/a/b:3"],
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_told_by_its_content(name: str) -> None:
    """The format is recognised, and its images come in the list's order, each once."""
    text, expected = FORMATS[name]
    found = _read(text)
    assert found.format == name
    assert sorted(str(one.source) for one in found.wanted) == sorted(expected)
    if name != "Kubernetes":
        assert [str(one.source) for one in found.wanted] == expected


def test_details_of_each_format() -> None:
    """Targets, platforms, filters, credentials and notices are taken over."""
    hauler = _read(FORMATS["hauler"][0])
    assert hauler.wanted[0].platforms == ("linux/amd64",)
    oc_mirror = _read(FORMATS["oc-mirror"][0])
    assert str(oc_mirror.wanted[0].target) == "quay.io/x/y:2"
    assert any("blockedImages" in notice for notice in oc_mirror.notices)
    regsync = _read(FORMATS["regsync"][0])
    assert regsync.credentials == {"ghcr.io": ("me", "word")}
    assert regsync.wanted[1].tags == TagFilter((), ("v.*",), (".*-rc.*",), (">=1.0",))
    skopeo = _read(FORMATS["skopeo sync"][0])
    assert skopeo.wanted[0].tags == TagFilter()
    assert skopeo.wanted[3].tags == TagFilter(allow=(".*(?:^1\\.13).*",))
    zarf = _read(FORMATS["zarf"][0])
    assert any("old.tar" in notice for notice in zarf.notices)


def test_a_tag_beside_a_digest_is_kept() -> None:
    """The digest says what to fetch, the tag under which name it is kept."""
    (wanted,) = _read(f"quay.io/a/b:1@{DIGEST}").wanted
    assert (str(wanted.source), str(wanted.target)) == (f"quay.io/a/b@{DIGEST}", "quay.io/a/b:1")


def test_places_are_named() -> None:
    """A message says which line or field is wrong."""
    assert _read("a/b:1\n\n# x\nc/d:2\n").wanted[1].origin == "list:4"
    for text in ("a/b:1\nc/d 2\n", "---\na/b:1 c/d:2\n", "a/b:1\nc/d:2, e/f:3"):
        with pytest.raises(ListInvalid, match=r"list:2: '.*' is not one image reference"):
            _read(text)
    with pytest.raises(ListInvalid, match=r"list:2: .*Name"):
        _read("a/b:1\nInvalid/Name:1:2\n")


REFUSED = {
    "operators": (
        """
        apiVersion: mirror.openshift.io/v2alpha1
        kind: ImageSetConfiguration
        mirror: {operators: [{catalog: x}]}
        """,
        "mapping.txt",
    ),
    "local images": (
        """
        apiVersion: content.hauler.cattle.io/v1
        kind: Images
        spec: {images: [{name: x, local: true}]}
        """,
        "docker save",
    ),
    "chart repository": (
        """
        apiVersion: content.hauler.cattle.io/v1
        kind: Charts
        spec: {charts: [{name: x, repoURL: "https://charts.example"}]}
        """,
        "helm push",
    ),
    "chart without images": ("apiVersion: v2\nname: x\nversion: '1'", "helm template"),
    "variable": ("services: {web: {image: 'nginx:$TAG'}}", "docker compose config"),
    "number for a tag": ("host.example: {images: {redis: [1.10]}}", "quotes"),
    "bad pattern": ("host.example: {images-by-tag-regex: {redis: '('}}", "not a pattern"),
    "registry sync": ("version: 1\nsync: [{source: a, target: b, type: registry}]", "repository"),
    "nothing": ("# only a comment\n", "names no image"),
    "no image in manifests": ("apiVersion: v1\nkind: Service", "names no image"),
    "other mapping": ("hello: {world: 1}", "known format"),
    "broken YAML": ("a: [1, 2\nb: }", "nor YAML"),
    "binary": ("\0\0", "NUL"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_with_a_remedy(name: str) -> None:
    """The message is one line and says what to do instead."""
    text, remedy = REFUSED[name]
    with pytest.raises(ListInvalid, match=remedy) as caught:
        _read(text)
    assert "\n" not in str(caught.value)


HOSTILE = {
    "alias bomb": "a0: &a0 [x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    + "apiVersion: v1\nkind: List\n",
    "deep flow": "[" * 100_000,
    "deep blocks": "- " * 100_000,
    "deep mapping": "{a: " * 900 + "x" + "}" * 900,
    "merge bomb": "m0: &m0 {k: v}\n"
    + "".join(f"m{i}: &m{i}\n  <<: [*m{i - 1}, *m{i - 1}]\n  k{i}: v\n" for i in range(1, 40)),
    "huge date": "apiVersion: v1\nkind: 9999-99-99\n",
    "recursive": "&a [*a]",
    "recursive resource": "apiVersion: v1\nkind: List\nitems: &a [*a]\n",
    "types": "apiVersion: [v1]\nkind: {a: 1}\nimages: 7\n",
    "non-text keys": "1: {2: 3}\nnull: [~]\n",
    "complex key": "? [a, b]\n: c\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_lists_end_in_one_clear_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expansion, depth and odd types neither hang nor crash the reader."""
    monkeypatch.setattr(lists, "MAX_NODES", 10_000)
    with pytest.raises(ListInvalid):
        _read(HOSTILE[name])


def test_a_list_is_limited_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle given by mistake is not read into memory as a list."""
    monkeypatch.setattr(lists, "MAX_BYTES", 10)
    with pytest.raises(ListInvalid, match="larger than"):
        _read("a/b:1\nc/d:2\n")
