"""The error table: every domain error has its status and code, every other one says nothing."""

from __future__ import annotations

import importlib
import json
import pkgutil
from http import HTTPStatus

import pytest

from mayfly import auth, registry
from mayfly import storage as storage_package
from mayfly.registry.access.errors import AccessDenied, Unauthorized
from mayfly.registry.api import errors
from mayfly.registry.api.errors import TABLE, body, headers_of, upload_range
from mayfly.registry.http.errors import RangeInvalid
from mayfly.storage import errors as storage
from mayfly.storage.bundle.errors import BundleConflict, BundleInvalid

OCI_CODES = {
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID",
    "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED", "UNSUPPORTED", "TOOMANYREQUESTS",
}  # fmt: skip
DISTRIBUTION_CODES = {
    "RANGE_INVALID", "TAG_INVALID", "PAGINATION_NUMBER_INVALID", "UNAVAILABLE", "UNKNOWN",
}  # fmt: skip


BASES = {
    "AccessError",
    "AuthError",
    "FetchError",
    "LifetimeError",
    "RequestError",
    "StorageError",
    "TrustError",
    "WireError",
}
"""Never raised themselves where a request is answered."""

NEVER_ANSWERED = {
    "ConfigError": "at the start, and in commands",
    "CredentialsInvalid": "the guard makes an Unauthorized of it",
    "LoginsBusy": "the guard makes an Unauthorized of it",
    "TokenInvalid": "the guard makes an Unauthorized of it",
    "InputInvalid": "in commands that write users and grants",
    "ProofInvalid": "the handler makes a ParameterInvalid of it",
    "_Repeated": "inside the parser of a bundle's documents",
    "PolicyInvalid": "becomes a PolicyFileInvalid where the file is known",
    "PolicyFileInvalid": "at the start; a file that turns bad later is logged and not taken",
    "FramingInvalid": "below the handlers: the connection answers 400 itself",
    "NotRunning": "in commands that ask a running server",
    "ServerGone": "in commands that ask a running server",
    "TimedOut": "in commands that ask a running server",
    **dict.fromkeys(
        (
            "ListInvalid",
            "LoginsInvalid",
            "VolumeTooSmall",
            "UpstreamError",
            "NotThere",
            "LoginRefused",
            "RequestRefused",
            "TooMuch",
            "_Problematic",
        ),
        "in commands that copy from elsewhere",
    ),
    **dict.fromkeys(("ContentWrong", "ImagesMissing"), "in commands that copy from elsewhere"),
    "_TooMuchOutput": "in commands that run programs of a node",
    "LayerInvalid": "in commands that read file trees",
}
"""Errors that no request can end with, and where they end instead."""


def _classes() -> dict[str, type]:
    """Every error class that the code base defines, by its name."""
    for package in (auth, registry, storage_package):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found: dict[str, type] = {}
    waiting = [BaseException]
    while waiting:
        for error in waiting.pop().__subclasses__():
            waiting.append(error)
            if error.__module__.startswith("mayfly."):
                assert found.setdefault(error.__name__, error) is error, "one name, one meaning"
    return found


def test_every_error_is_in_the_table() -> None:
    """No error class of the code base is forgotten: it has a status, or cannot reach a client."""
    names = _classes().keys()
    assert {error.__name__ for error in TABLE}.isdisjoint(NEVER_ANSWERED)
    assert {error.__name__ for error in TABLE} | NEVER_ANSWERED.keys() | BASES == names


@pytest.mark.parametrize("error", TABLE, ids=lambda error: error.__name__)
def test_only_our_faults_are_internal(error: type[Exception]) -> None:
    """An error that a client can cause is never answered as an internal one."""
    status, code = TABLE[error]
    ours = issubclass(error, storage.ContentCorrupt | storage.StorageFailed | BundleInvalid)
    assert (status >= 500 and code == "UNKNOWN") == ours


def test_codes_are_known() -> None:
    """Only codes of the OCI spec and, where it has none, of distribution."""
    assert {code for _, code in TABLE.values()} <= OCI_CODES | DISTRIBUTION_CODES


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (storage.NameInvalid, 400, "NAME_INVALID"),
        (storage.NameUnknown, 404, "NAME_UNKNOWN"),
        (storage.TagInvalid, 400, "TAG_INVALID"),
        (storage.DigestInvalid, 400, "DIGEST_INVALID"),
        (storage.SizeInvalid, 400, "SIZE_INVALID"),
        (storage.BlobUnknown, 404, "BLOB_UNKNOWN"),
        (storage.ManifestUnknown, 404, "MANIFEST_UNKNOWN"),
        (storage.ManifestInvalid, 400, "MANIFEST_INVALID"),
        (storage.ManifestTooLarge, 413, "MANIFEST_INVALID"),
        (storage.UploadUnknown, 404, "BLOB_UPLOAD_UNKNOWN"),
        (storage.UploadOffset, 416, "RANGE_INVALID"),
        (storage.ReadOnly, 405, "UNSUPPORTED"),
        (BundleConflict, 409, "DENIED"),
        (errors.EndpointUnknown, 404, "UNSUPPORTED"),
        (errors.MethodUnsupported, 405, "UNSUPPORTED"),
        (RangeInvalid, 416, "RANGE_INVALID"),
        (AccessDenied, 403, "DENIED"),
        (Unauthorized, 401, "UNAUTHORIZED"),
    ],
)
def test_status_and_code(error: type[Exception], status: int, code: str) -> None:
    """The pairs that clients rely on (PROTOCOL, "Codes")."""
    assert TABLE[error] == (status, code)


def test_no_status_makes_a_client_give_up() -> None:
    """docker does not retry a 429, containerd gives up on a 503: neither slows a client down.

    Giving up is what a registry wants that is about to end, and only then. Browsers that look at a
    rollout page are no such clients.
    """
    sent = {error.__name__: status for error, (status, _) in TABLE.items()}
    assert HTTPStatus.TOO_MANY_REQUESTS not in sent.values()
    final = {name for name, status in sent.items() if status == HTTPStatus.SERVICE_UNAVAILABLE}
    assert final <= {"Draining", "Interrupted"}


def test_unknown_error_is_opaque() -> None:
    """An error that is not in the table is internal, without details."""
    assert errors.UNKNOWN == (500, "UNKNOWN")
    assert not {OSError, ValueError, KeyError, Exception, RuntimeError} & TABLE.keys()


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        (None, [{"code": "X", "message": "m"}]),
        ({"a": 1}, [{"code": "X", "message": "m", "detail": {"a": 1}}]),
        ("text", [{"code": "X", "message": "m", "detail": "text"}]),
        ([], [{"code": "X", "message": "m", "detail": []}]),
        (
            [{"a": 1}, {"a": 2}],
            [
                {"code": "X", "message": "m", "detail": {"a": 1}},
                {"code": "X", "message": "m", "detail": {"a": 2}},
            ],
        ),
    ],
)
def test_document(detail: object, expected: list[object]) -> None:
    """One error for each detail of a list, else one; no detail where there is none."""
    assert json.loads(body("X", "m", detail)) == {"errors": expected}


def test_document_takes_any_text() -> None:
    """Surrogates and control characters of a request become valid JSON in ASCII."""
    document = body("X", "bad \udcff \0 \u2028 é")
    assert document.isascii()
    assert json.loads(document)["errors"][0]["message"] == "bad \udcff \0 \u2028 é"


def test_headers() -> None:
    """A refusal has the headers that its error requires."""
    assert headers_of(errors.MethodUnsupported("PUT", ("GET", "HEAD"))) == {"Allow": "GET, HEAD"}
    assert headers_of(RangeInvalid("no", 10)) == {"Content-Range": "bytes */10"}
    assert headers_of(storage.UploadOffset("no", 7)) == {"Range": "0-6"}
    assert headers_of(Unauthorized("no", "Bearer x")) == {"WWW-Authenticate": "Bearer x"}
    assert headers_of(storage.BlobUnknown("no")) == {}


@pytest.mark.parametrize(("offset", "expected"), [(0, "0-0"), (1, "0-0"), (2, "0-1"), (99, "0-98")])
def test_upload_range(offset: int, expected: str) -> None:
    """The last byte received; distribution writes ``0-0`` for none as well."""
    assert upload_range(offset) == expected
