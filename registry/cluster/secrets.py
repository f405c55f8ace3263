"""The credentials that a pod's imagePullSecrets have for a repository, as kubelet finds them.

Hashes of credentials are compared with those of kubelet's records; neither is shown or kept.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from mayfly.registry.cluster.kubelet import Credential
from mayfly.registry.nodes.object_fields import Object, mapping, text

_FORMS = {
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson", ("auths",)),
    "kubernetes.io/dockercfg": (".dockercfg", ()),
}
"""Type of a Secret → the key of its data, and where the logins are in that."""

_HUB_HOSTS = ("docker.io", "index.docker.io")
_HUB_KEY = "index.docker.io"

_LONGEST_PATTERN = 1024
"""Characters of the pattern of a host; hosts have at most 253. The time that fnmatch takes grows
with the square of a pattern's length."""

_ESCAPED = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}
"""Characters that Go's JSON escapes and Python's does not."""


def credentials_for(repository: str, secrets: Iterable[Object]) -> list[Credential]:
    """Return the logins that Secrets have for a repository.

    Args:
        repository: with its host.
        secrets: as the API server has them.
    """
    found: dict[str, list[Credential]] = {}
    for secret in secrets:
        source = tuple(text(secret, "metadata", key) for key in ("uid", "namespace", "name"))
        for location, login in _logins(secret):
            key, digest = _key(location), _hash(login)
            if key is not None and digest is not None:
                one = Credential((source[0], source[1], source[2]), digest)
                found.setdefault(key, []).append(one)
    matching = [one for key, some in found.items() if _matches(key, repository) for one in some]
    host = repository.partition("/")[0]
    if not matching and host in _HUB_HOSTS:
        return found.get(_HUB_KEY, [])
    return matching


def _logins(secret: Object) -> Iterator[tuple[str, Object]]:
    form = _FORMS.get(text(secret, "type"))
    if form is None:
        return
    try:
        document = json.loads(base64.b64decode(text(secret, "data", form[0])))
    except (ValueError, RecursionError):
        return
    for location, login in mapping(document, *form[1]).items():
        if isinstance(login, Mapping):
            yield str(location), login


def _key(location: str) -> str | None:
    """Return the host, and the path where there is one, that a login is for."""
    has_scheme = location.startswith(("https://", "http://"))
    try:
        parts = urlsplit(location if has_scheme else f"https://{location}")
    except ValueError:
        return None
    path = parts.path
    if path.startswith(("/v1/", "/v2/")):
        path = path[3:]
    return parts.netloc + ("" if path == "/" else path)


def _matches(key: str, repository: str) -> bool:
    host, slash, path = key.partition("/")
    own_host, own_slash, own_path = repository.partition("/")
    name, _, port = host.partition(":")
    own_name, _, own_port = own_host.partition(":")
    labels, own_labels = name.split("."), own_name.split(".")
    return (
        port == own_port
        and len(name) <= _LONGEST_PATTERN
        and len(labels) == len(own_labels)
        and f"{own_slash}{own_path}".startswith(f"{slash}{path}")
        and all(fnmatchcase(own, label) for label, own in zip(labels, own_labels, strict=True))
    )


def _hash(login: Object) -> str | None:
    """Return the hash by which kubelet compares credentials: SHA-256 of their JSON.

    None for a login that kubelet cannot read either.
    """
    user, password = text(login, "username"), text(login, "password")
    if auth := text(login, "auth"):
        try:
            decoded = base64.b64decode(auth + "=" * (-len(auth) % 4), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        user, colon, password = decoded.partition(":")
        if not colon:
            return None
    fields = {"username": user, "password": password, "email": text(login, "email")}
    document = json.dumps(
        {key: value for key, value in fields.items() if value},
        ensure_ascii=False,
        separators=(",", ":"),
    )
    for character, escape in _ESCAPED.items():
        document = document.replace(character, escape)
    return hashlib.sha256(document.encode(errors="replace")).hexdigest()
