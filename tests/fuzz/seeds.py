"""Valid requests to every endpoint, as docker, containerd, podman and others write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from tests.fuzz.messages import Message, message
from tests.support.images import digest_of, image_body

ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json;q=0.9",
        "*/*;q=0.1",
    )
)
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCTETS = ("Content-Type", "application/octet-stream")

CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
LAYER = bytes(range(256)) * 24
SECRET = "only-for-those-who-may-5f1c2a9e"
MARKER = f"a layer {SECRET}".encode()
"""What a repository holds that the guarded server's callers may not pull from."""

ARTIFACT = "application/vnd.example.signature"


@dataclass(frozen=True)
class Target:
    """What a server holds that requests can be about.

    Attributes:
        repositories: names to ask for.
        authorization: values of the header to send; "" sends none.
        sessions: gives the id of an upload session of a repository.
        ns: values of containerd's parameter.
    """

    repositories: Sequence[str]
    authorization: Sequence[str] = ("",)
    sessions: Callable[[str], str] = lambda repository: "1b671a64-40d5-491e-99b0-da01ff1f3341"
    ns: Sequence[str] = ("docker.io", "registry.test:5000")


def manifest() -> bytes:
    """The image that the targets hold, of `CONFIG` and `LAYER`."""
    return image_body(CONFIG, [LAYER])


def artifact(note: str = "signed") -> bytes:
    """What refers to the image."""
    body = manifest()
    subject = {"mediaType": OCI_MANIFEST, "digest": digest_of(body), "size": len(body)}
    annotations = {"org.example.note": note}
    return image_body(
        CONFIG, [LAYER], subject=subject, artifactType=ARTIFACT, annotations=annotations
    )


def requests(target: Target, name: str, source: str) -> Iterator[Message]:
    """One of every kind, about the repository ``name``."""
    yield from _reading(target, name)
    yield from _pushing(target, name, source)
    yield from _deleting(name)
    yield from _tokens(name)


def _reading(target: Target, name: str) -> Iterator[Message]:
    image = digest_of(manifest())
    for path in ("/v2/", "/v2", "/livez", "/readyz"):
        yield message("GET", path, [("User-Agent", "containerd/2.0")])
        yield message("HEAD", path)
    yield message("GET", "/v2/_catalog?n=2&last=a")
    yield message("GET", f"/v2/{name}/tags/list?n=10&last=a")
    yield message("GET", f"/v2/{name}/referrers/{image}?artifactType={ARTIFACT}")
    for reference in ("latest", image):
        for method in ("GET", "HEAD"):
            where = f"/v2/{name}/manifests/{reference}?ns={target.ns[0]}"
            yield message(method, where, [("Accept", ACCEPT)])
    for data in (CONFIG, LAYER, MARKER):
        where = f"/v2/{name}/blobs/{digest_of(data)}"
        yield message("HEAD", where)
        yield message("GET", where, [("Accept-Encoding", "gzip")])
        yield message("GET", f"{where}?ns={target.ns[-1]}", [("Range", "bytes=16-47")])


def _pushing(target: Target, name: str, source: str) -> Iterator[Message]:
    uploads = f"/v2/{name}/blobs/uploads/"
    yield message("POST", uploads, pieces=[])
    yield message("POST", f"{uploads}?digest-algorithm=sha512", pieces=[])
    yield message("POST", f"{uploads}?digest={digest_of(CONFIG)}", [OCTETS], [CONFIG])
    yield message("POST", f"{uploads}?mount={digest_of(LAYER)}&from={source}", pieces=[])
    session = f"{uploads}{target.sessions(name)}"
    yield message("GET", session)
    yield message("PATCH", session, [OCTETS], [LAYER[:100], LAYER[100:]], "chunks")
    yield message("PATCH", session, [OCTETS, ("Content-Range", "0-99")], [LAYER[:100]])
    yield message("PUT", session, [("Expect", "100-continue")], [LAYER])
    yield message("DELETE", session)
    session = f"{uploads}{target.sessions(name)}?digest="
    yield message("PUT", f"{session}{digest_of(LAYER)}", [OCTETS], [LAYER])
    session = f"{uploads}{target.sessions(name)}?digest="
    yield message("PUT", f"{session}{digest_of(b'')}", pieces=[])
    where, announced = f"/v2/{name}/manifests/", [("Content-Type", OCI_MANIFEST)]
    yield message("PUT", f"{where}v1.0", announced, [manifest()])
    yield message("PUT", f"{where}{digest_of(artifact())}?tag=a&tag=b", announced, [artifact()])
    index = {"schemaVersion": 2, "manifests": [], "subject": None}
    yield message("PUT", f"{where}index", pieces=[json.dumps(index).encode()], framing="chunks")


def _deleting(name: str) -> Iterator[Message]:
    yield message("DELETE", f"/v2/{name}/manifests/v1.0")
    yield message("DELETE", f"/v2/{name}/manifests/{digest_of(artifact())}")
    yield message("DELETE", f"/v2/{name}/blobs/{digest_of(b'never pushed')}")


def _tokens(name: str) -> Iterator[Message]:
    asked = {"service": "mayfly", "scope": f"repository:{name}:pull,push", "account": "pull"}
    yield message("GET", f"/auth/token?{urlencode(asked)}")
    form = asked | {"grant_type": "password", "username": "pull", "password": "guess"}
    posted = ("Content-Type", "application/x-www-form-urlencoded")
    yield message("POST", "/auth/token", [posted], [urlencode(form).encode()])
    form |= {"grant_type": "refresh_token", "refresh_token": "e30.e30.c2ln"}
    yield message("POST", "/auth/token", [posted], [urlencode(form).encode()], "chunks")
