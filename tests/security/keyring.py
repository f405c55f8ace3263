"""How kubelet finds the credentials for an image in a pull Secret.

After pkg/credentialprovider/keyring.go of Kubernetes: ``Add``, ``Lookup``, ``URLsMatch``. A key of
``auths`` matches by port (equal), labels of the host name (as many, each a glob) and path (a plain
prefix). Those that match are tried in the order of their keys, the last in the alphabet first.
"""

from __future__ import annotations

import base64
import fnmatch
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TYPE = "kubernetes.io/dockerconfigjson"
KEY = ".dockerconfigjson"


@dataclass(frozen=True)
class AuthConfig:
    """What kubelet sends the runtime with PullImage."""

    username: str
    password: str


def lookup(secrets: list[dict[str, Any]], image: str) -> list[AuthConfig]:
    """The credentials kubelet tries for an image named without tag and digest, in order."""
    index: dict[str, list[AuthConfig]] = {}
    for secret in secrets:
        for registry, entry in _auths(secret).items():
            index.setdefault(_key(registry), []).append(_credentials(entry))
    keys = sorted(index, reverse=True)
    return [found for key in keys if _matches(key, image) for found in index[key]]


def _auths(secret: dict[str, Any]) -> dict[str, dict[str, str]]:
    if secret["type"] != TYPE or KEY not in secret["data"]:
        return {}
    config = json.loads(base64.b64decode(secret["data"][KEY], validate=True))
    return dict(config["auths"])


def _credentials(entry: dict[str, str]) -> AuthConfig:
    name, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    return AuthConfig(name, password)


def _key(registry: str) -> str:
    url = urlsplit(registry if "://" in registry else f"https://{registry}")
    path = url.path
    if path.startswith(("/v1/", "/v2/")):
        path = path[3:]
    return url.netloc + path if path not in ("", "/") else url.netloc


def _matches(pattern: str, image: str) -> bool:
    wanted, given = urlsplit(f"https://{pattern}"), urlsplit(f"https://{image}")
    if wanted.port != given.port or not given.path.startswith(wanted.path):
        return False
    globs, labels = (_labels(url.netloc) for url in (wanted, given))
    if len(globs) != len(labels):
        return False
    return all(fnmatch.fnmatchcase(label, glob) for label, glob in zip(labels, globs, strict=True))


def _labels(netloc: str) -> list[str]:
    return netloc.rpartition(":")[0].split(".") if ":" in netloc else netloc.split(".")
