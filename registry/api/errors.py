"""Maps domain errors to HTTP: one table gives each its status and OCI error code.

Source of the codes: OCI distribution-spec, "Error Codes"; UNSUPPORTED, RANGE_INVALID, TAG_INVALID,
PAGINATION_NUMBER_INVALID, UNAVAILABLE and UNKNOWN are CNCF distribution's, where the spec has none.
"""

from __future__ import annotations

import json
from http import HTTPStatus

from mayfly.auth.errors import ScopeInvalid
from mayfly.registry.access.errors import AccessDenied, Unauthorized
from mayfly.registry.errors import Draining, UpstreamUnavailable
from mayfly.registry.http.errors import BodyIncomplete, RangeInvalid
from mayfly.storage import errors as storage
from mayfly.storage.bundle.errors import (
    BundleChanged,
    BundleConflict,
    BundleInvalid,
    NameAmbiguous,
    NotReady,
)
from mayfly.storage.errors import Interrupted


class RequestError(Exception):
    """Base of the errors found without the store; see `storage.errors` for the others."""

    def __init__(self, message: str, detail: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class EndpointUnknown(RequestError):
    """A path that no route has."""


class MethodUnsupported(RequestError):
    """A known path with a method that it does not have; ``allow`` lists those it has."""

    def __init__(self, method: str, allow: tuple[str, ...]) -> None:
        super().__init__(f"method {method} is not supported here", {"allow": list(allow)})
        self.allow = allow


class ParameterInvalid(RequestError):
    """A query parameter, form or header that cannot be parsed."""


class PaginationInvalid(RequestError):
    """``n`` is not a number of entries."""


class NonceInvalid(RequestError):
    """A proof whose nonce is another node's, spent or too old: recorded, replayed or late."""


class ScriptUnknown(RequestError):
    """A token of a node's script that is spent, too old, or was never issued."""


TABLE: dict[type[Exception], tuple[HTTPStatus, str]] = {
    EndpointUnknown: (HTTPStatus.NOT_FOUND, "UNSUPPORTED"),
    MethodUnsupported: (HTTPStatus.METHOD_NOT_ALLOWED, "UNSUPPORTED"),
    ParameterInvalid: (HTTPStatus.BAD_REQUEST, "UNSUPPORTED"),
    PaginationInvalid: (HTTPStatus.BAD_REQUEST, "PAGINATION_NUMBER_INVALID"),
    ScriptUnknown: (HTTPStatus.NOT_FOUND, "UNSUPPORTED"),
    NonceInvalid: (HTTPStatus.CONFLICT, "DENIED"),
    RangeInvalid: (HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "RANGE_INVALID"),
    BodyIncomplete: (HTTPStatus.BAD_REQUEST, "SIZE_INVALID"),
    Unauthorized: (HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED"),
    AccessDenied: (HTTPStatus.FORBIDDEN, "DENIED"),
    Draining: (HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"),
    # Not 503, after which containerd waits, nor 429, which docker does not retry: both try the
    # next mirror or the upstream itself.
    UpstreamUnavailable: (HTTPStatus.BAD_GATEWAY, "UNAVAILABLE"),
    ScopeInvalid: (HTTPStatus.BAD_REQUEST, "UNSUPPORTED"),
    storage.NameInvalid: (HTTPStatus.BAD_REQUEST, "NAME_INVALID"),
    storage.TagInvalid: (HTTPStatus.BAD_REQUEST, "TAG_INVALID"),
    storage.DigestInvalid: (HTTPStatus.BAD_REQUEST, "DIGEST_INVALID"),
    storage.SizeInvalid: (HTTPStatus.BAD_REQUEST, "SIZE_INVALID"),
    storage.NameUnknown: (HTTPStatus.NOT_FOUND, "NAME_UNKNOWN"),
    storage.BlobUnknown: (HTTPStatus.NOT_FOUND, "BLOB_UNKNOWN"),
    storage.ManifestUnknown: (HTTPStatus.NOT_FOUND, "MANIFEST_UNKNOWN"),
    storage.ManifestInvalid: (HTTPStatus.BAD_REQUEST, "MANIFEST_INVALID"),
    storage.ManifestBlobUnknown: (HTTPStatus.BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
    storage.ManifestTooLarge: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "MANIFEST_INVALID"),
    storage.UploadUnknown: (HTTPStatus.NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
    storage.UploadOffset: (HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "RANGE_INVALID"),
    storage.ReadOnly: (HTTPStatus.METHOD_NOT_ALLOWED, "UNSUPPORTED"),
    # Not 507: docker and skopeo do not show the message of a 5xx, and docker retries it five times.
    # With this status and code docker, crane and skopeo stop at once and show the reason.
    storage.StorageFull: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "DENIED"),
    storage.DoesNotFit: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "DENIED"),
    storage.StorageFailed: (HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN"),
    storage.ContentCorrupt: (HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN"),
    storage.PathRefused: (HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN"),
    BundleInvalid: (HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN"),
    BundleConflict: (HTTPStatus.CONFLICT, "DENIED"),
    BundleChanged: (HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN"),
    NameAmbiguous: (HTTPStatus.BAD_REQUEST, "NAME_INVALID"),
    Interrupted: (HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"),
    NotReady: (HTTPStatus.NOT_FOUND, "MANIFEST_UNKNOWN"),
}

UNKNOWN = (HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN")
"""For every error that is not in the table: the log has the details, the client does not."""


def body(code: str, message: str, detail: object = None) -> bytes:
    """Return the OCI error document. A list as ``detail`` makes one error of each entry."""
    details = detail if isinstance(detail, list) and detail else [detail]
    errors = [
        {"code": code, "message": message} | ({"detail": d} if d is not None else {})
        for d in details
    ]
    return json.dumps({"errors": errors}).encode()


def headers_of(error: Exception) -> dict[str, str]:
    """Return the headers that a refusal must have besides its body."""
    match error:
        case Unauthorized():
            return {"WWW-Authenticate": error.challenge}
        case MethodUnsupported():
            return {"Allow": ", ".join(error.allow)}
        case RangeInvalid():
            return {"Content-Range": f"bytes */{error.size}"}
        case storage.UploadOffset():
            return {"Range": upload_range(error.offset)}
        case _:
            return {}


def upload_range(offset: int) -> str:
    """Return the ``Range`` of an upload of ``offset`` bytes; ``0-0`` for none, as distribution."""
    return f"0-{max(offset - 1, 0)}"
