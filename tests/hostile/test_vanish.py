"""Attempts to make good content vanish by what is written elsewhere, with the right to push there.

`good/app` is somebody else's. The attacker pushes to, and deletes from, `evil/app`; in some attacks
they also push to `good/app`, as a colleague with a broken tool would. Nothing that they write
hides, replaces or frees what `good/app:v1` is made of: not at once, not after a collection that
spares nothing, not after a restart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from mayfly.storage.manifest import OCI_INDEX, OCI_MANIFEST
from tests.hostile.harness import Hostile
from tests.hostile.pushes import Pusher
from tests.support.client import Answer
from tests.support.images import CONFIG_TYPE, LAYER_TYPE, descriptor, digest_of

CONFIG_BYTES, LAYERS = b'{"os":"linux"}', (b"first layer" * 1000, b"second layer" * 1000, b"")


class Victim:
    """An image, what it is made of, and an artifact that refers to it."""

    def __init__(self, client: Pusher) -> None:
        self.client = client
        for data in (CONFIG_BYTES, b"{}", *LAYERS):
            client.blob("good/app", data)
        layers = [descriptor(data) for data in LAYERS]
        self.child = client.image(
            "good/app", None, config=descriptor(CONFIG_BYTES, CONFIG_TYPE), layers=layers
        )
        self.index = client.index("good/app", "v1", [self.child])
        subject = descriptor(self.index, OCI_INDEX)
        self.referrer = client.image("good/app", None, subject=subject)

    def check(self) -> None:
        """See that everything is there, as it was pushed."""
        assert self.client.ask("GET", "/v2/good/app/manifests/v1").body == self.index
        for body in (self.index, self.child, self.referrer):
            assert self._get("manifests", body) == body
        for data in (CONFIG_BYTES, *LAYERS):
            path = f"/v2/good/app/blobs/{digest_of(data)}"
            head = self.client.ask("HEAD", path)
            assert (head.status, head.headers["Content-Length"]) == (200, str(len(data)))
            assert self._get("blobs", data) == data
        found = self.client.ask("GET", f"/v2/good/app/referrers/{digest_of(self.index)}")
        assert digest_of(self.referrer).encode() in found.body

    def _get(self, kind: str, data: bytes) -> bytes:
        answer = self.client.ask("GET", f"/v2/good/app/{kind}/{digest_of(data)}")
        assert answer.status == 200, answer
        return answer.body


def _put(client: Pusher, repository: str, body: bytes, media_type: str = OCI_MANIFEST) -> Answer:
    return client.put(repository, "x", body, media_type)


def _manifest(**fields: object) -> dict[str, object]:
    config = descriptor(b"{}", CONFIG_TYPE)
    content = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
    return content | fields


def wrong_sizes(victim: Victim) -> None:
    """Manifests that give the blobs other sizes, with every excuse for their absence."""
    for repository in ("evil/app", "good/app"):
        for size in (0, 1, 2**62, -1, None, 1.5, True):
            for extra in ({}, {"urls": ["https://x/"]}, {"mediaType": f"{LAYER_TYPE}.foreign"}):
                layers = [descriptor(data) | {"size": size} | extra for data in LAYERS]
                for one in (layers, layers[:1] * 50):
                    body = json.dumps(_manifest(layers=one)).encode()
                    _put(victim.client, repository, body)
                entries = [descriptor(victim.child, OCI_MANIFEST) | {"size": size} | extra]
                index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
                _put(victim.client, repository, json.dumps(index).encode(), OCI_INDEX)


def wrong_bytes(victim: Victim) -> None:
    """Uploads under the digests of what is there: others bytes, none, too few, in pieces."""
    client = victim.client
    for repository in ("evil/app", "good/app"):
        for data in (CONFIG_BYTES, *LAYERS, victim.child, victim.index):
            digest = digest_of(data)
            for wrong in (b"x", data[:-1] + b"x", data + b"x", data[: len(data) // 2]):
                if wrong == data:
                    continue
                path = f"/v2/{repository}/blobs/uploads/?digest={digest}"
                assert client.ask("POST", path, wrong).status == 400
                session = client.ask("POST", f"/v2/{repository}/blobs/uploads/").headers["Location"]
                session = session[session.index("/v2/") :]
                client.ask("PATCH", session, wrong)
                joint = "&" if "?" in session else "?"
                client.ask("PUT", f"{session}{joint}digest={digest}", b"")
                client.ask("PUT", f"{session}{joint}digest={quote(digest)}", wrong)
                client.ask("DELETE", session)
            path = f"/v2/{repository}/manifests/{digest}"
            wrong_manifest = json.dumps(_manifest()).encode()
            assert client.ask("PUT", path, wrong_manifest).status in (400, 404)


def deletions(victim: Victim) -> None:
    """What is shared with the attacker's repository is deleted there."""
    client = victim.client
    for data in (b"{}", CONFIG_BYTES, *LAYERS):
        path = f"/v2/evil/app/blobs/uploads/?mount={digest_of(data)}&from=good/app"
        assert client.ask("POST", path).status == 201
    for body, media_type in ((victim.child, OCI_MANIFEST), (victim.index, OCI_INDEX)):
        assert client.put("evil/app", "mine", body, media_type).status == 201
    # A manifest is a blob to a client that pushes it as one.
    for body in (victim.child, victim.index, victim.referrer):
        client.blob("evil/app", body)
        assert client.ask("DELETE", f"/v2/evil/app/blobs/{digest_of(body)}").status == 202
    for body in (victim.index, victim.child):
        assert client.ask("DELETE", f"/v2/evil/app/manifests/{digest_of(body)}").status == 202
    for data in (CONFIG_BYTES, *LAYERS):
        assert client.ask("DELETE", f"/v2/evil/app/blobs/{digest_of(data)}").status == 202


def two_readings(victim: Victim) -> None:
    """Manifests that may be read in two ways, deep ones, and floods, that name what is there."""
    one, two = digest_of(LAYERS[0]), digest_of(LAYERS[1])
    bodies = []
    for names in (("digest", "Digest"), ("Digest", "digest"), ("digest", "dige\u017ft")):
        first, second = names
        layer = f'{{"mediaType":"{LAYER_TYPE}","size":11000,"{first}":"{one}","{second}":"{two}"}}'
        bodies.append(json.dumps(_manifest())[:-1] + f',"layers":[{layer}]}}')
        bodies.append(json.dumps(_manifest(layers=None))[:-1] + f',"Layers":[{layer}]}}')
    deep = "[" * 5000 + f'"{one}"' + "]" * 5000
    bodies.append(json.dumps(_manifest())[:-1] + f',"x":{deep}}}')
    for repository in ("evil/app", "good/app"):
        for body in bodies:
            assert _put(victim.client, repository, body.encode()).status == 400


def other_kinds(victim: Victim) -> None:
    """Blobs named as manifests and manifests as blobs, as subjects, and under other algorithms."""
    client = victim.client
    client.blob("evil/app", b"{}")
    everything = [*LAYERS, CONFIG_BYTES, victim.child, victim.index, victim.referrer]
    for repository in ("evil/app", "good/app"):
        for data in everything:
            for media_type in (OCI_MANIFEST, OCI_INDEX, LAYER_TYPE, "x/y"):
                entry = descriptor(data, media_type)
                index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
                _put(client, repository, json.dumps(index).encode(), OCI_INDEX)
                _put(client, repository, json.dumps(_manifest(layers=[entry])).encode())
                _put(client, repository, json.dumps(_manifest(subject=entry)).encode())
                _put(client, repository, json.dumps(_manifest(config=entry)).encode())
    client.ask("DELETE", "/v2/good/app/manifests/x")
    client.ask("DELETE", "/v2/evil/app/manifests/x")


ATTACKS = [
    (attack, options)
    for attack in (wrong_sizes, wrong_bytes, deletions, two_readings, other_kinds)
    for options in ((), ("--allow-sparse",))
    # Only these two push manifests that the option lets in.
    if not options or attack in (wrong_sizes, other_kinds)
]


@pytest.mark.parametrize(
    ("attack", "options"), ATTACKS, ids=[" ".join((a.__name__, *o)) for a, o in ATTACKS]
)
def test_good_content_stays(
    hostile: Hostile, attack: Callable[[Victim], None], options: tuple[str, ...]
) -> None:
    """Nothing that is written hides, replaces or frees somebody else's content."""
    server = hostile.serve(*options, "--drain-timeout", "1s")
    root: Path = server.root
    victim = Victim(Pusher(server.host))
    name = f"vanishing: {attack.__name__.replace('_', ' ')} {' '.join(options)}".strip()
    with hostile.attack(name, before="-") as under:
        attack(victim)
        victim.check()
        while under.going():
            victim.check()
    done = hostile.command(f"{name}, gc", "gc", "--grace", "0s", "--root", root, before="-")
    assert done.returncode == 0, done.stderr
    victim.check()
    again = hostile.serve(root=root)
    victim.client = Pusher(again.host)
    victim.check()
    done = hostile.command(f"{name}, verify", "verify", "--root", root, before="-")
    faults = [line for line in done.stdout.splitlines() if "good/app:v1" in line]
    assert not faults, done.stdout
