"""The content of pushes and pulls, and the program for them (`benchmarks/load`, written in Go)."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import BIN
from benchmarks.server import Server

LOAD = BIN / "benchmark-load"
MIB = 2**20
REPOSITORY = "bench/data"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_GZIP_LAYER = f"{OCI_LAYER}+gzip"

USER, PASSWORD = "bench", "correct horse battery staple"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
LOOKER = "looker"
LOOKER_BASIC = "Basic " + base64.b64encode(f"{LOOKER}:{PASSWORD}".encode()).decode()
"""Login of the user `LOOKER`, whose role is allowed to see the rollout page."""


@dataclass(frozen=True)
class Blob:
    """A slice of the data file; offset and size in bytes."""

    digest: str
    offset: int
    size: int


@dataclass(frozen=True)
class Result:
    """The results of a load; latencies are of one push, pull or request each.

    Attributes:
        cpu_seconds: of the load; of commands that it ran, theirs.
        peak_kib: of commands, the largest resident memory of one of them.
    """

    seconds: float
    bytes: int
    count: int
    p50_ms: float
    p99_ms: float
    cpu_seconds: float
    cipher: str
    peak_kib: int


class Data:
    """One file of random bytes, and the blobs that are slices of it.

    Args:
        directory: for the file, removed by the caller.
        scale: 1 for blobs of the sizes named here.
    """

    def __init__(self, directory: Path, scale: float) -> None:
        self.path = directory / "data"
        large, layer = max(4, 4 * round(64 * scale)) * MIB, max(1, round(16 * scale)) * MIB
        with self.path.open("wb") as file:
            for _ in range(2 * large // MIB):
                file.write(os.urandom(MIB))
        self.large = [self._blob(i * large, large) for i in range(2)]
        self.middle = [self._blob(i * large // 4, large // 4) for i in range(8)]
        self.layers = [self._blob(i * layer, layer) for i in range(6)]
        self.small = self._blob(0, 4096)
        self.index = directory / "blobs.json"
        pulled = (*self.large, *self.middle, *self.layers, self.small)
        known = [asdict(blob) for blob in pulled]
        self.index.write_text(json.dumps(known))

    def _blob(self, offset: int, size: int) -> Blob:
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            file.seek(offset)
            for start in range(0, size, MIB):
                digest.update(file.read(min(MIB, size - start)))
        return Blob(f"sha256:{digest.hexdigest()}", offset, size)


def run(server: Server, kind: str, authorization: str, **job: Any) -> Result:
    """Run one job against a server; see ``Job`` in ``benchmarks/load/main.go``.

    Raises:
        RuntimeError: a request failed, or content was wrong.
    """
    job |= {"address": server.address, "authorization": authorization}
    job |= {"ca": str(server.ca or ""), "repository": REPOSITORY}
    if "blobs" in job:
        job["blobs"] = [asdict(blob) for blob in job["blobs"]]
    return _run(kind, job)


def run_commands(commands: list[list[str]], environment: dict[str, str]) -> Result:
    """Run programs one after the other and measure them.

    Args:
        commands: each with its arguments.
        environment: added to that of this process.

    Raises:
        RuntimeError: one failed.
    """
    added = [f"{name}={value}" for name, value in environment.items()]
    return _run("commands", {"commands": commands, "environment": added})


def _run(kind: str, job: dict[str, Any]) -> Result:
    job["kind"] = kind
    done = subprocess.run(
        [LOAD], input=json.dumps(job).encode(), capture_output=True, timeout=330, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace").strip()[-1000:])
    return Result(**json.loads(done.stdout))


def token(server: Server, scopes: list[str]) -> str:
    """Log in once, as after a 401, and return the Authorization for later requests."""
    try:
        _open(server, urllib.request.Request(f"{server.url}/v2/"))
    except urllib.error.HTTPError as error:
        challenge = dict(re.findall(r'(\w+)="([^"]*)"', error.headers["WWW-Authenticate"]))
    else:
        return ""
    query = urllib.parse.urlencode(
        [("service", challenge["service"]), *(("scope", scope) for scope in scopes)]
    )
    asked = urllib.request.Request(
        f"{challenge['realm']}?{query}", headers={"Authorization": BASIC}
    )
    return f"Bearer {json.loads(_open(server, asked))['token']}"


def token_path(scope: str) -> str:
    query = urllib.parse.urlencode([("service", "mayfly"), ("scope", scope)])
    return f"/auth/token?{query}"


def mount(server: Server, repository: str, blobs: list[Blob]) -> None:
    """Link blobs of `REPOSITORY` into another one.

    Raises:
        RuntimeError: the registry cannot.
    """
    for blob in blobs:
        path = f"/v2/{repository}/blobs/uploads/?mount={blob.digest}&from={REPOSITORY}"
        if "uploads" in _request(server, "", "POST", path).get("Location", ""):
            raise RuntimeError(f"{blob.digest} was not mounted into {repository}")


def put_image(
    server: Server,
    authorization: str,
    tag: str,
    layers: list[Blob],
    repository: str = REPOSITORY,
    layer_type: str = OCI_LAYER,
) -> str:
    """Push config and manifest of an image whose layers are there; the manifest's digest."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "name": tag}).encode()
    config_digest = sha256(config)
    begun = _request(server, authorization, "POST", f"/v2/{repository}/blobs/uploads/")
    location = urllib.parse.urljoin(server.url, begun["Location"])
    location += ("&" if "?" in location else "?") + f"digest={config_digest}"
    _request(server, authorization, "PUT", location, config, "application/octet-stream")
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": len(config)},
        "layers": [{"mediaType": layer_type, "digest": b.digest, "size": b.size} for b in layers],
    }
    body = json.dumps(document).encode()
    path = f"/v2/{repository}/manifests/{tag}"
    _request(server, authorization, "PUT", path, body, OCI_MANIFEST)
    return sha256(body)


def check_manifest(server: Server, authorization: str, digest: str) -> None:
    """Get a manifest and hash it.

    Raises:
        RuntimeError: it is another one.
    """
    asked = urllib.request.Request(f"{server.url}/v2/{REPOSITORY}/manifests/{digest}")
    asked.add_header("Accept", OCI_MANIFEST)
    if authorization:
        asked.add_header("Authorization", authorization)
    if sha256(_open(server, asked)) != digest:
        raise RuntimeError(f"the manifest of {digest} is another one")


def sha256(body: bytes) -> str:
    """The digest of some content."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def _request(
    server: Server,
    authorization: str,
    method: str,
    url: str,
    body: bytes = b"",
    content_type: str = "",
) -> dict[str, str]:
    asked = urllib.request.Request(urllib.parse.urljoin(server.url, url), data=body, method=method)
    if authorization:
        asked.add_header("Authorization", authorization)
    if content_type:
        asked.add_header("Content-Type", content_type)
    with urllib.request.urlopen(asked, timeout=60, context=server.trust()) as answer:
        return dict(answer.headers)


def _open(server: Server, asked: urllib.request.Request) -> bytes:
    with urllib.request.urlopen(asked, timeout=60, context=server.trust()) as answer:
        body: bytes = answer.read()
        return body
