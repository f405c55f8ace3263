"""Whether a kubelet asks the registry for an image that its node has.

From Kubernetes 1.35 on (KubeletEnsureSecretPulledImages) kubelet keeps a record of each image that
it pulled, in ``image_manager/pulled`` of its directory: by which credentials of which repository.
A pod whose credentials are not in the record has kubelet ask the registry, although the image is
there. Images without a record, such as those pulled through the CRI, count as preloaded; whether
these are verified, too, is the policy's (imagePullCredentialsVerificationPolicy).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from mayfly.registry.nodes.object_fields import mapping, objects, text, texts

GATE = "KubeletEnsureSecretPulledImages"
FIRST_WITH_GATE = (1, 33)
FIRST_ON_BY_DEFAULT = (1, 35)

_MAX_SECRETS = 100
"""With as many in a record, kubelet compares Secrets by their content only."""

_SOCKET = re.compile(r"/[A-Za-z0-9_./@:+-]{1,200}")
_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})\b")


class Verification(StrEnum):
    """Which images a kubelet verifies credentials for; its policies."""

    NEVER = "NeverVerify"
    PULLED = "NeverVerifyPreloadedImages"
    NOT_LISTED = "NeverVerifyAllowlistedImages"
    ALWAYS = "AlwaysVerify"


class PullPolicy(NamedTuple):
    """The policy of one kubelet.

    Attributes:
        allowlist: repositories with their host, or patterns: prefixes of these and ``/*``.
    """

    verification: Verification
    allowlist: frozenset[str] = frozenset()

    def verifies(self, written: str, repository: str, pulled: bool) -> bool:
        """Whether credentials count for an image.

        Args:
            written: its name in the pod.
            repository: of it, with its host.
            pulled: whether this kubelet pulled it.
        """
        match self.verification:
            case Verification.NEVER:
                return False
            case Verification.PULLED:
                return pulled
            case Verification.ALWAYS:
                return True
        return self.allowlist.isdisjoint(_entries(written, repository))


def _entries(written: str, repository: str) -> Iterator[str]:
    """Yield the entries of an allowlist that allow an image; of each part of its name one.

    kubelet 1.35.4 compares the name as it is written, with its tag, so that only patterns match;
    later ones compare the repository's full name. Images that both allow are allowed.
    """
    if written == repository:
        yield repository
    for slash in re.finditer("/", repository):
        prefix = repository[: slash.end()]
        if written.startswith(prefix):
            yield f"{prefix}*"


def policy_of(version: str, configuration: Mapping[str, object] | None) -> PullPolicy | None:
    """Return a kubelet's policy; None if it cannot be told.

    Args:
        version: of the kubelet, such as ``v1.35.4``.
        configuration: the answer of its ``configz``; None if it could not be asked.
    """
    found = _VERSION.match(version)
    number = (int(found[1]), int(found[2])) if found else None
    if number is not None and number < FIRST_WITH_GATE:
        return PullPolicy(Verification.NEVER)
    if configuration is None or number is None or "kubeletconfig" not in configuration:
        return None
    config = mapping(configuration, "kubeletconfig")
    gates = mapping(config, "featureGates")
    is_beta = number >= FIRST_ON_BY_DEFAULT
    of_its_kind = gates.get("AllBeta" if is_beta else "AllAlpha", is_beta)
    match gates.get(GATE, of_its_kind):
        case False:
            return PullPolicy(Verification.NEVER)
        case True:
            pass
        case _:
            return None
    try:
        named = text(config, "imagePullCredentialsVerificationPolicy") or Verification.PULLED
        verification = Verification(named)
    except ValueError:
        return None
    allowlist = frozenset(texts(config, "preloadedImagesVerificationAllowlist"))
    return PullPolicy(verification, allowlist)


def endpoint_of(configuration: Mapping[str, object] | None) -> str:
    """Return the path of the socket by which a kubelet manages images; "" if it cannot be told.

    Args:
        configuration: the answer of its ``configz``; None if it could not be asked.
    """
    config = mapping(configuration, "kubeletconfig")
    named = text(config, "imageServiceEndpoint") or text(config, "containerRuntimeEndpoint")
    path = named.removeprefix("unix://")
    return path if _SOCKET.fullmatch(path) else ""


class Credential(NamedTuple):
    """A pod's credential for a repository, as kubelet compares it.

    Attributes:
        source: UID, namespace and name of the Secret.
        hash: of its content; "" if unknown.
    """

    source: tuple[str, str, str]
    hash: str


@dataclass(frozen=True, slots=True)
class Access:
    """The pods that may use an image of one repository, by a record.

    Attributes:
        everybody: all pods of the node.
        hashes: of the credentials that it was pulled with.
        sources: UID, namespace and name of their Secrets; none in a record of many, where kubelet
            compares Secrets by their content only (1.35.4).
        accounts: UID, namespace and name of ServiceAccounts.
    """

    everybody: bool = False
    hashes: frozenset[str] = frozenset()
    sources: frozenset[tuple[str, str, str]] = frozenset()
    accounts: frozenset[tuple[str, str, str]] = frozenset()

    @property
    def by_secrets(self) -> bool:
        """Whether it depends on a pod's Secrets."""
        return not self.everybody and bool(self.hashes or self.sources)

    def allows(self, credentials: Iterable[Credential], account: tuple[str, str, str]) -> bool:
        """Whether a pod may use it without the registry being asked.

        Args:
            credentials: of the pod for the repository.
            account: UID, namespace and name of its ServiceAccount.
        """
        return (
            self.everybody
            or account in self.accounts
            or any(one.hash in self.hashes or one.source in self.sources for one in credentials)
        )


EVERYBODY = Access(everybody=True)
NOBODY = Access()


@dataclass(frozen=True, slots=True)
class PullRecord:
    """A record of kubelet's.

    Attributes:
        image: ID of the image in the runtime.
        access: repository with its host → the pods that kubelet lets use it without asking.
        entries: number of its repositories, Secrets and ServiceAccounts, with one for itself.
    """

    image: str
    access: Mapping[str, Access]
    entries: int = 1


def parse_record(document: bytes) -> PullRecord | None:
    """Read a file of ``image_manager/pulled``; None if it is not one. Its API group may change."""
    try:
        found = json.loads(document)
    except (ValueError, RecursionError):
        return None
    image = text(found, "imageRef")
    if text(found, "kind") != "ImagePulledRecord" or not image:
        return None
    access, entries = {}, 1
    for repository, entry in mapping(found, "credentialMapping").items():
        secrets = objects(entry, "kubernetesSecrets")
        accounts = objects(entry, "kubernetesServiceAccounts")
        entries += 1 + len(secrets) + len(accounts)
        few = secrets if len(secrets) < _MAX_SECRETS else ()
        access[str(repository)] = Access(
            mapping(entry).get("nodePodsAccessible") is True,
            frozenset(filter(None, (text(one, "credentialHash") for one in secrets))),
            frozenset(map(_coordinates, few)),
            frozenset(map(_coordinates, accounts)),
        )
    return PullRecord(image, access, entries)


def parse_intent(document: bytes) -> str | None:
    """Read a file of ``image_manager/pulling``: the image that is pulled; None if it is not one."""
    try:
        found = json.loads(document)
    except (ValueError, RecursionError):
        return None
    return text(found, "image") or None if text(found, "kind") == "ImagePullIntent" else None


def _coordinates(one: Mapping[str, object]) -> tuple[str, str, str]:
    return text(one, "uid"), text(one, "namespace"), text(one, "name")


class Image(NamedTuple):
    """An image on a node, as a pod names it.

    Attributes:
        written: its name in the pod.
        name: the same in full.
        repository: of it, with its host.
        id: in the runtime.
    """

    written: str
    name: str
    repository: str
    id: str


def access_of(
    image: Image,
    policy: PullPolicy,
    records: Mapping[str, PullRecord],
    intents: Collection[str],
) -> Access:
    """Return which pods kubelet lets use an image of the node without asking the registry.

    Args:
        records: image's ID → record.
        intents: full names of images that kubelet began to pull.
    """
    record = records.get(image.id)
    if not policy.verifies(
        image.written, image.repository, record is not None or image.name in intents
    ):
        return EVERYBODY
    return NOBODY if record is None else record.access.get(image.repository, NOBODY)
