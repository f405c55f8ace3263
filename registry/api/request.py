"""From method, path and query to one frozen request. Pure: no I/O, no framework.

Paths are matched from their end, since a repository name may hold any of the fixed words. Each
part is percent-decoded once, by itself: an encoded slash never becomes a separator, it is a
character that no name, tag or digest has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qsl, unquote

from mayfly.registry.api.errors import EndpointUnknown, MethodUnsupported, ParameterInvalid
from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import NameInvalid
from mayfly.storage.names import check_repository, check_tag

MAX_PATH_LENGTH = 2048
MAX_QUERY_FIELDS = 64


class Endpoint(Enum):
    """What can be asked for; each has its methods, its handler and its access rule in a table."""

    BASE = "base"
    CATALOG = "catalog"
    TAGS = "tags"
    MANIFEST = "manifest"
    BLOB = "blob"
    UPLOADS = "uploads"
    UPLOAD = "upload"
    REFERRERS = "referrers"
    TOKEN = "token"
    ROOT = "root"
    LIVE = "live"
    READY = "ready"


METHODS: dict[Endpoint, tuple[str, ...]] = {
    Endpoint.BASE: ("GET", "HEAD"),
    Endpoint.CATALOG: ("GET",),
    Endpoint.TAGS: ("GET",),
    Endpoint.MANIFEST: ("GET", "HEAD", "PUT", "DELETE"),
    Endpoint.BLOB: ("GET", "HEAD", "DELETE"),
    Endpoint.UPLOADS: ("POST",),
    Endpoint.UPLOAD: ("GET", "PATCH", "PUT", "DELETE"),
    Endpoint.REFERRERS: ("GET",),
    Endpoint.TOKEN: ("GET", "POST"),
    Endpoint.ROOT: ("GET", "HEAD"),
    Endpoint.LIVE: ("GET", "HEAD"),
    Endpoint.READY: ("GET", "HEAD"),
}

_FIXED = {
    "/": Endpoint.ROOT,
    "/v2": Endpoint.BASE,
    "/v2/": Endpoint.BASE,
    "/v2/_catalog": Endpoint.CATALOG,
    "/auth/token": Endpoint.TOKEN,
    "/livez": Endpoint.LIVE,
    "/readyz": Endpoint.READY,
}

_NO_QUERY: dict[str, list[str]] = {}


@dataclass(frozen=True, slots=True)
class Request:
    """One request, understood.

    Attributes:
        endpoint: what is asked for.
        method: one of the endpoint's `METHODS`.
        repository: a valid repository name, or "" where the endpoint has none.
        digest: of a blob, a referrers subject, or a manifest asked for by digest.
        tag: of a manifest asked for by tag.
        upload_id: of an upload session, not yet known to exist.
        query: parameter → its values in order, percent-decoded.
    """

    endpoint: Endpoint
    method: str
    repository: str = ""
    digest: Digest | None = None
    tag: str | None = None
    upload_id: str = ""
    query: dict[str, list[str]] = field(default_factory=dict)

    def parameter(self, name: str) -> str | None:
        """The first value of a query parameter."""
        values = self.query.get(name)
        return values[0] if values else None


def parse(method: str, path: str, query: str) -> Request:
    """Understand a request line.

    Args:
        method: as sent.
        path: still percent-encoded, without the query.
        query: still percent-encoded, without the question mark.

    Raises:
        EndpointUnknown, MethodUnsupported, ParameterInvalid: not a request of the protocol.
        NameInvalid, TagInvalid, DigestInvalid: a part is outside its grammar.
    """
    if len(path) > MAX_PATH_LENGTH:
        raise NameInvalid(f"path is longer than {MAX_PATH_LENGTH} characters")
    parameters = read_form(query) if query else _NO_QUERY
    fixed = _FIXED.get(path)
    if fixed is not None:
        return Request(fixed, _method(fixed, method), query=parameters)
    parts = path.split("/")
    if len(parts) < 5 or parts[0] or parts[1] != "v2":
        raise EndpointUnknown("no such endpoint")
    if "%" in path:
        parts = [_decode(part) for part in parts]
    return _of_repository(method, parts[2:], parameters)


def _of_repository(method: str, parts: list[str], query: dict[str, list[str]]) -> Request:
    last = parts[-1]
    match parts[-3:-1]:
        case [_, "tags"] if last == "list":
            return _named(Endpoint.TAGS, method, parts[:-2], query)
        case [_, "manifests"]:
            if ":" in last:
                found = digests.parse(last)
                return _named(Endpoint.MANIFEST, method, parts[:-2], query, digest=found)
            return _named(Endpoint.MANIFEST, method, parts[:-2], query, tag=check_tag(last))
        case [_, "referrers"]:
            found = digests.parse(last)
            return _named(Endpoint.REFERRERS, method, parts[:-2], query, digest=found)
        case ["blobs", "uploads"] if not last:
            return _named(Endpoint.UPLOADS, method, parts[:-3], query)
        case ["blobs", "uploads"]:
            return _named(Endpoint.UPLOAD, method, parts[:-3], query, upload_id=last)
        case [_, "blobs"] if last == "uploads":
            return _named(Endpoint.UPLOADS, method, parts[:-2], query)
        case [_, "blobs"]:
            found = digests.parse(last)
            return _named(Endpoint.BLOB, method, parts[:-2], query, digest=found)
    raise EndpointUnknown("no such endpoint")


def _named(
    endpoint: Endpoint,
    method: str,
    name: list[str],
    query: dict[str, list[str]],
    *,
    digest: Digest | None = None,
    tag: str | None = None,
    upload_id: str = "",
) -> Request:
    repository = check_repository("/".join(name))
    return Request(endpoint, _method(endpoint, method), repository, digest, tag, upload_id, query)


def _method(endpoint: Endpoint, method: str) -> str:
    allowed = METHODS[endpoint]
    if method not in allowed:
        raise MethodUnsupported(method, allowed)
    return method


def _decode(part: str) -> str:
    try:
        decoded = unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise NameInvalid("path is not UTF-8") from None
    if "/" in decoded:
        raise NameInvalid("path has an encoded slash")
    return decoded


def read_form(text: str) -> dict[str, list[str]]:
    """Read ``name=value&…``: a query, or a form that was posted.

    Raises:
        ParameterInvalid: it has too many fields or is not UTF-8.
    """
    try:
        # Bytes that came unencoded and are not UTF-8 stand in the text as lone surrogates.
        text.encode()
        pairs = parse_qsl(
            text, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS
        )
    except ValueError:
        raise ParameterInvalid("query or form cannot be read") from None
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found
