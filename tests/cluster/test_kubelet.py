"""kubelet's rule for credentials of images that its node has, and what it compares."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from mayfly.registry.cluster.facts import NodeFacts, parse_images
from mayfly.registry.cluster.kubelet import (
    EVERYBODY,
    NOBODY,
    Access,
    Credential,
    Image,
    PullPolicy,
    PullRecord,
    Verification,
    access_of,
    endpoint_of,
    parse_intent,
    parse_record,
    policy_of,
)
from mayfly.registry.cluster.secrets import credentials_for
from tests.cluster.conftest import HOST, RECORDED, items, node_facts, recorded

REPOSITORY = f"{HOST}/team/app"
CONFIGURED = "imagePullCredentialsVerificationPolicy"
GATE = {"featureGates": {"KubeletEnsureSecretPulledImages": True}}


def _config(**fields: Any) -> dict[str, Any]:
    return {"kubeletconfig": fields}


@pytest.mark.parametrize(
    ("version", "configuration", "expected"),
    [
        ("v1.32.4", None, PullPolicy(Verification.NEVER)),
        ("v1.34.5", _config(), PullPolicy(Verification.NEVER)),
        ("v1.34.5", _config(**GATE), PullPolicy(Verification.PULLED)),
        ("v1.34.5", _config(featureGates={"AllAlpha": True}), PullPolicy(Verification.PULLED)),
        ("v1.35.4", recorded("configz"), PullPolicy(Verification.PULLED)),
        ("v1.35.4", _config(featureGates={"AllBeta": False}), PullPolicy(Verification.NEVER)),
        (
            "v1.35.4",
            _config(featureGates={"AllBeta": False} | GATE["featureGates"]),
            PullPolicy(Verification.PULLED),
        ),
        (
            "v1.35.4",
            _config(featureGates={"KubeletEnsureSecretPulledImages": False}),
            PullPolicy(Verification.NEVER),
        ),
        ("v1.36.0+k3s1", _config(**{CONFIGURED: "NeverVerify"}), PullPolicy(Verification.NEVER)),
        (
            "v1.36.0",
            _config(
                **{
                    CONFIGURED: "NeverVerifyAllowlistedImages",
                    "preloadedImagesVerificationAllowlist": ["a/b", "c/*"],
                }
            ),
            PullPolicy(Verification.NOT_LISTED, frozenset({"a/b", "c/*"})),
        ),
        ("v1.36.0", _config(**{CONFIGURED: "SomethingNew"}), None),
        ("v1.36.0", _config(featureGates={"KubeletEnsureSecretPulledImages": "false"}), None),
        ("v1.36.0", _config(featureGates={"AllBeta": None}), None),
        ("v1.35.4", None, None),
        ("v1.35.4", {"kind": "Status"}, None),
        ("", recorded("configz"), None),
    ],
)
def test_policy(version: str, configuration: Any, expected: PullPolicy | None) -> None:
    """By version, feature gate and configuration; unknown if one that matters is."""
    assert policy_of(version, configuration) == expected


@pytest.mark.parametrize(
    ("fields", "endpoint"),
    [
        ({"containerRuntimeEndpoint": "unix:///run/c.sock"}, "/run/c.sock"),
        ({"containerRuntimeEndpoint": "/run/c.sock"}, "/run/c.sock"),
        (
            {
                "containerRuntimeEndpoint": "unix:///run/c.sock",
                "imageServiceEndpoint": "unix:///run/i.sock",
            },
            "/run/i.sock",
        ),
        *(
            ({"containerRuntimeEndpoint": one}, "")
            for one in ("", "npipe:////./pipe/c", "unix:///a b", "unix:///a\n", "tcp://h:1", 7)
        ),
        ({}, ""),
    ],
)
def test_endpoint_of_a_kubelet(fields: dict[str, Any], endpoint: str) -> None:
    """The socket by which it manages images."""
    assert endpoint_of(_config(**fields)) == endpoint
    assert endpoint_of(None) == endpoint_of({"kubeletconfig": 7}) == ""


@pytest.mark.parametrize(
    ("policy", "pulled", "preloaded"),
    [
        (PullPolicy(Verification.NEVER), False, False),
        (PullPolicy(Verification.PULLED), True, False),
        (PullPolicy(Verification.ALWAYS), True, True),
        (PullPolicy(Verification.NOT_LISTED), True, True),
        # 1.35.4 compares an entry with the name in the pod, tag included.
        (PullPolicy(Verification.NOT_LISTED, frozenset({REPOSITORY})), True, True),
        (PullPolicy(Verification.NOT_LISTED, frozenset({f"{HOST}/team/*"})), False, False),
        (PullPolicy(Verification.NOT_LISTED, frozenset({f"{HOST}/*"})), False, False),
        (
            PullPolicy(Verification.NOT_LISTED, frozenset({f"{HOST}/te/*", f"{HOST}/team"})),
            True,
            True,
        ),
    ],
)
def test_verified(policy: PullPolicy, pulled: bool, preloaded: bool) -> None:
    """Images that kubelet pulled, and those that it found."""
    assert policy.verifies(f"{REPOSITORY}:1", REPOSITORY, True) is pulled
    assert policy.verifies(f"{REPOSITORY}:1", REPOSITORY, False) is preloaded


@pytest.mark.parametrize(
    ("written", "repository", "entry", "verified"),
    [
        (REPOSITORY, REPOSITORY, REPOSITORY, False),
        ("hello:1", "docker.io/library/hello", "docker.io/library/*", True),
        ("hello", "docker.io/library/hello", "docker.io/library/hello", True),
        ("docker.io/library/hello:1", "docker.io/library/hello", "docker.io/library/*", False),
        ("library/hello:1", "docker.io/library/hello", "library/*", True),
    ],
)
def test_names_of_an_allowlist(written: str, repository: str, entry: str, verified: bool) -> None:
    """An image is allowed if the name in the pod and the full name are."""
    policy = PullPolicy(Verification.NOT_LISTED, frozenset({entry}))
    assert policy.verifies(written, repository, False) is verified


def test_recorded_node() -> None:
    """Records, images and kubelet of a real node."""
    facts = node_facts()
    assert facts.complete and facts.is_root and facts.has_kubelet and facts.has_records
    assert facts.images is not None
    pulled = facts.images[f"{HOST}/team/app:1"]
    assert pulled.id in facts.records and not pulled.pinned
    assert facts.images[f"{HOST}/team/app:3"].id not in facts.records
    digests = [name for name in facts.images if "@sha256:" in name]
    assert len(digests) == len({image.id for image in facts.images.values()}) - 1  # the sandbox


def test_hash_is_that_of_kubelet() -> None:
    """The recorded Secret's credentials have the hash of the real kubelet's record."""
    facts = node_facts()
    assert facts.images is not None
    record = facts.records[facts.images[f"{HOST}/team/app:1"].id]
    (secret,) = (one for one in items("secrets") if one["metadata"]["name"] == "mayfly")
    access = record.access[REPOSITORY]
    (credential,) = credentials_for(REPOSITORY, [secret])
    assert ([*access.hashes], [*access.sources]) == ([credential.hash], [credential.source])


def _secret(auths: dict[str, Any], form: str = "kubernetes.io/dockerconfigjson") -> dict[str, Any]:
    is_json = form.endswith("json")
    document = {"auths": auths} if is_json else auths
    data = base64.b64encode(json.dumps(document).encode()).decode()
    key = ".dockerconfigjson" if is_json else ".dockercfg"
    metadata = {"uid": "u", "namespace": "n", "name": "s"}
    return {"metadata": metadata, "type": form, "data": {key: data}}


LOGIN = {"username": "a", "password": "b"}


@pytest.mark.parametrize(
    ("location", "repository", "matches"),
    [
        ("r.example:5000", "r.example:5000/x", True),
        ("https://r.example:5000/v1/", "r.example:5000/x", True),
        ("r.example:5000/team", "r.example:5000/team/x", True),
        ("r.example:5000/team", "r.example:5000/other/x", False),
        ("r.example", "r.example:5000/x", False),
        ("*.example", "r.example/x", True),
        ("*.example", "r.s.example/x", False),
        ("https://index.docker.io/v1/", "docker.io/library/x", True),
        ("docker.io", "docker.io/library/x", True),
        ("index.docker.io", "quay.io/x", False),
        ("https://[", "quay.io/x", False),
    ],
)
def test_login_for_a_repository(location: str, repository: str, matches: bool) -> None:
    """By host, port, path and wildcards; Docker Hub by its old name."""
    found = credentials_for(repository, [_secret({location: LOGIN})])
    assert [one.source for one in found] == ([("u", "n", "s")] if matches else [])


def test_login_in_other_forms() -> None:
    """User and password, both in one, the old type of a Secret: one hash."""
    auth = base64.b64encode(b"a:b").decode()
    forms = [
        _secret({"h.x": LOGIN}),
        _secret({"h.x": {"auth": auth}}),
        _secret({"h.x": {"auth": auth.rstrip("="), "username": "ignored"}}),
        _secret({"h.x": LOGIN}, "kubernetes.io/dockercfg"),
    ]
    hashes = {one.hash for form in forms for one in credentials_for("h.x/y", [form])}
    assert len(hashes) == 1
    assert {one.hash for one in credentials_for("h.x/y", [_secret({"h.x": {}})])} != hashes


@pytest.mark.parametrize(
    "secret",
    [
        {},
        {"type": "Opaque", "data": {"a": "b"}},
        {"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "%"}},
        {"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "W10="}},
        _secret({"h.x": 7}),
        _secret({"h.x": {"auth": "!"}}),
        _secret({"h.x": {"auth": base64.b64encode(b"none").decode()}}),
    ],
)
def test_secret_without_a_login(secret: dict[str, Any]) -> None:
    """It has no credential, and nothing raises."""
    assert credentials_for("h.x/y", [secret]) == []


OWN = Credential(("1", "team", "mayfly"), "hash")
KNOWN = Access(
    False, frozenset({OWN.hash}), frozenset({OWN.source}), frozenset({("2", "team", "puller")})
)


@pytest.mark.parametrize(
    ("credentials", "account", "allowed"),
    [
        ([OWN], ("", "team", "default"), True),
        ([Credential(("9", "default", "copy"), "hash")], ("", "team", "default"), True),
        ([Credential(OWN.source, "other")], ("", "team", "default"), True),
        ([Credential(("9", "team", "mayfly"), "other")], ("", "team", "default"), False),
        ([Credential(("9", "x", "y"), "")], ("", "team", "default"), False),
        ([], ("", "team", "default"), False),
        ([], ("2", "team", "puller"), True),
        # Made anew, or not seen.
        ([], ("3", "team", "puller"), False),
        ([], ("", "team", "puller"), False),
    ],
)
def test_access(
    credentials: list[Credential], account: tuple[str, str, str], allowed: bool
) -> None:
    """By content or by the Secret itself, or by the ServiceAccount."""
    assert KNOWN.allows(credentials, account) is allowed
    assert EVERYBODY.allows(credentials, account)
    assert not NOBODY.allows(credentials, account)


@pytest.mark.parametrize("number", [2, 99, 100, 101])
def test_access_by_a_record_of_many_secrets(number: int) -> None:
    """Of such a record kubelet takes Secrets by their content only (1.35.4)."""
    secrets: list[dict[str, str]] = [
        {"uid": str(n), "namespace": "n", "name": "s", "credentialHash": f"hash-{n}"}
        for n in range(number)
    ]
    secrets[0].pop("credentialHash")
    mapping = {REPOSITORY: {"kubernetesSecrets": secrets}}
    document = {"kind": "ImagePulledRecord", "imageRef": "i", "credentialMapping": mapping}
    record = parse_record(json.dumps(document).encode())
    assert record is not None
    assert record.entries == 2 + number
    access = record.access[REPOSITORY]
    account = ("", "", "")
    assert access.by_secrets
    assert access.allows([Credential(("x", "y", "z"), "hash-1")], account)
    assert access.allows([Credential(("1", "n", "s"), "other")], account) is (number < 100)
    assert access.allows([Credential(("0", "n", "s"), "")], account) is (number < 100)
    assert not access.allows([Credential(("x", "y", "z"), "")], account)


def test_records_decide_for_images() -> None:
    """With a record, without one, for another repository, and while it is pulled."""
    policy = PullPolicy(Verification.PULLED)
    image = Image(f"{REPOSITORY}:1", f"{REPOSITORY}:1", REPOSITORY, "id")
    records = {"id": PullRecord("id", {REPOSITORY: KNOWN})}
    assert access_of(image, policy, records, ()) == KNOWN
    assert access_of(image, policy, {}, ()).everybody
    nobody = access_of(image._replace(repository="other/x"), policy, records, ())
    assert not nobody.allows([OWN], ("2", "team", "puller"))
    assert not access_of(image, policy, {}, {image.name}).everybody


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"[]", b'{"kind": "Other"}', b'{"kind": "ImagePulledRecord"}', b"[" * 9999],
)
def test_files_that_are_no_records(document: bytes) -> None:
    """They are not read, and nothing raises."""
    assert parse_record(document) is None
    assert parse_intent(document) is None


def test_record_that_cannot_be_read_is_a_gap() -> None:
    """kubelet asks the registry then; it is not said that all records were seen."""
    facts = node_facts()
    facts.take(b"mayfly-kubelet pulled {")
    facts.take(b"mayfly-kubelet records 4")
    assert not facts.has_records
    facts.take(b"mayfly-kubelet images {")
    assert facts.images is None
    facts.take(b"other line")


def test_names_of_images() -> None:
    """In full, as every runtime lists them; those without a name are left out."""
    image = {
        "id": "i",
        "repoTags": ["busybox:1", "<none>:<none>"],
        "repoDigests": ["<none>@<none>"],
    }
    found = parse_images(json.dumps({"images": [image, 7, {"repoTags": "x"}]}).encode())
    assert found is not None and [*found] == ["docker.io/library/busybox:1"]
    same = {"images": [image, image | {"repoTags": ["docker.io/library/busybox:1"]}]}
    assert parse_images(json.dumps(same).encode()) == found
    for other in ({"id": "j"}, {"pinned": True}):
        twice = {"images": [image, image | other]}
        assert parse_images(json.dumps(twice).encode()) is None
    assert parse_images(b"[]") is None


def test_image_that_kubelet_began_to_pull() -> None:
    """It is known by its full name, however its pod writes it."""
    facts = NodeFacts()
    for name in (b"a/b:1", b"quay.io/x", b"A//b"):
        intent = b'{"kind": "ImagePullIntent", "image": "' + name + b'"}'
        facts.take(b"mayfly-kubelet pulling " + intent)
    facts.take(b"mayfly-kubelet records 3")
    assert facts.intents == {"docker.io/a/b:1", "quay.io/x:latest"} and facts.has_records
    facts.take(b"mayfly-kubelet pulling {")
    facts.take(b"mayfly-kubelet records 4")
    assert not facts.has_records


@pytest.mark.parametrize(
    ("lost", "twice", "seen"), [(0, False, True), (0, True, True), (1, False, False)]
)
def test_log_of_a_pod(lost: int, twice: bool, seen: bool) -> None:
    """It may be read twice; one that was rotated lacks records, and then not all were seen."""
    lines = (RECORDED / "node-1.txt").read_bytes().splitlines()
    first = next(n for n, line in enumerate(lines) if b" pulled " in line)
    facts = NodeFacts()
    for line in (lines * (2 if twice else 1))[first + lost :]:
        facts.take(line)
    assert facts.has_records is seen
