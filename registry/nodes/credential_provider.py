"""Kubelet's exec plugin for image credentials (credentialprovider.kubelet.k8s.io/v1).

kubelet runs the plugin for each image whose host its configuration names, with a request on
standard input, and takes the credentials in the response for the pull. Pods then need no
imagePullSecrets, and a credential that is replaced in the node's file counts without a restart of
kubelet.

Source: Kubernetes, "Configure a kubelet image credential provider", and the types of
``k8s.io/kubelet/pkg/apis/credentialprovider/v1``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mayfly.registry.access import files
from mayfly.registry.access.errors import PolicyFileInvalid
from mayfly.registry.settings.errors import ConfigError
from mayfly.storage.errors import StorageError
from mayfly.storage.files import is_absent
from mayfly.storage.reference import canonical_host, parse_reference

API = "credentialprovider.kubelet.k8s.io/v1"
CONFIG_API = "kubelet.config.k8s.io/v1"
PLUGIN = "mayfly"
"""Name of the program in kubelet's directory of plugins."""

MAX_CACHED_SECONDS = 300
"""For which kubelet may keep a credential, and so uses one that was replaced since."""

MAX_REQUEST = 64 * 1024
"""Bytes."""

_PATTERN = re.compile(r"[A-Za-z0-9.*-]+(:[0-9]{1,5})?(/[A-Za-z0-9._/-]+)?|\[[0-9a-fA-F:]+\].*")


class Credential(NamedTuple):
    """The content of the node's file, which ``mayfly credentials --format json`` prints.

    Attributes:
        hosts: as image names have them.
        expires: Unix second at which it ends; None if it does not.
    """

    hosts: tuple[str, ...]
    username: str
    password: str
    expires: float | None


def read_image(request: bytes) -> str:
    """Return the image of kubelet's request.

    Raises:
        ConfigError: it is no request of this version.
    """
    try:
        document = json.loads(request)
        kind, version, image = (document[key] for key in ("kind", "apiVersion", "image"))
    except (ValueError, KeyError, TypeError, RecursionError):
        kind = version = image = None
    if kind != "CredentialProviderRequest" or not isinstance(image, str) or not image:
        raise ConfigError(
            "standard input: expected a CredentialProviderRequest: kubelet runs this command"
        )
    if version != API:
        raise ConfigError(f"standard input: {str(version)[:100]!r} is not {API}: set apiVersion")
    return image


def read_file(path: Path) -> Credential | None:
    """Return the node's credential; None without a file: the registry has ended, or not begun.

    Raises:
        ConfigError: it has no credential.
        PolicyFileInvalid: it cannot be read, or others may read it.
    """
    try:
        content = files.read(path, files.PRIVATE)
    except PolicyFileInvalid as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and is_absent(cause) and not path.exists():
            return None
        raise
    try:
        found = json.loads(content)
        read = Credential(
            tuple(found["hosts"]), found["username"], found["password"], found["expires"]
        )
        texts = (*read.hosts, read.username, read.password)
        valid = isinstance(found["hosts"], list) and all(isinstance(text, str) for text in texts)
        valid = valid and (read.expires is None or type(read.expires) in (int, float))
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise ConfigError(f"{path}: expected the output of mayfly credentials --format json")
    return read


def respond(image: str, credential: Credential | None, now: float) -> dict[str, Any]:
    """Return the response for an image: the credential if it is for the image's host.

    Args:
        image: as kubelet has it.
        credential: of the node; None if there is none.
        now: Unix seconds.
    """
    auth: dict[str, dict[str, str]] = {}
    left = 0
    if credential is not None:
        left = MAX_CACHED_SECONDS
        if credential.expires is not None:
            left = int(max(0.0, min(left, credential.expires - now)))
        host = _host(image)
        if left and host in map(canonical_host, credential.hosts):
            auth[host] = {"username": credential.username, "password": credential.password}
    return {
        "kind": "CredentialProviderResponse",
        "apiVersion": API,
        "cacheKeyType": "Registry",
        # "No credential" is not kept: the file may be written at any moment.
        "cacheDuration": f"{left if auth else 0}s",
        "auth": auth,
    }


def configuration(hosts: Iterable[str], file: Path) -> dict[str, Any]:
    """Return kubelet's configuration of this plugin, for ``--image-credential-provider-config``.

    Args:
        hosts: as image names have them; ``*`` stands for a part of a name.
        file: with the node's credential.

    Raises:
        ConfigError: a host is not one.
    """
    patterns = list(dict.fromkeys(hosts))
    for one in patterns:
        if not _PATTERN.fullmatch(one):
            raise ConfigError(f"--host {one}: expected HOST or HOST:PORT, as image names have it")
    return {
        "apiVersion": CONFIG_API,
        "kind": "CredentialProviderConfig",
        "providers": [
            {
                "name": PLUGIN,
                "apiVersion": API,
                "matchImages": patterns,
                "defaultCacheDuration": "0s",
                "args": ["credential-provider", "--file", str(file)],
            }
        ],
    }


def _host(image: str) -> str:
    try:
        return parse_reference(image).host
    except StorageError:
        # Of a name that this registry has no image for; its host decides all the same.
        return canonical_host(image.partition("/")[0])
