"""Attacks by what manifests hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.storage.manifest import OCI_INDEX, OCI_MANIFEST
from tests.hostile.harness import LONG, Hostile, lines
from tests.hostile.pushes import Pusher, at_once
from tests.support.client import Answer
from tests.support.images import CONFIG_TYPE, LAYER_TYPE, descriptor, digest_of

MIB = 1024 * 1024
LARGEST = 4 * MIB

HEAD = b'{"schemaVersion":2,"mediaType":"%s","layers":[],"config":%s,"x":' % (
    OCI_MANIFEST.encode(),
    json.dumps(descriptor(b"{}", CONFIG_TYPE)).encode(),
)


def _filled(piece: bytes, size: int = LARGEST) -> bytes:
    return HEAD + b"[" + piece * ((size - len(HEAD) - 4) // len(piece)) + b"0]}"


FLOODS = {
    "objects": (_filled(b'{"":0},'), "peaked at 1.2 GiB, delayed `/livez` by 3 s"),
    "lists": (_filled(b"[],"), "as the first"),
    "numbers": (_filled(b"0,"), "as the first"),
    "short strings": (_filled(b'"",'), "as the first"),
    "objects at the limit": (_filled(b'{"":0},', 450_000), "as the first"),
    "escapes": (HEAD + b'"' + b"\\\\" * (LARGEST // 2 - 500) + b'"}', "as the first"),
    "wide characters": (HEAD + b'"' + "\U0001f600".encode() * (MIB - 500) + b'"}', "as the first"),
    "brackets": (HEAD + b"[" * (LARGEST - 500), "RecursionError"),
}


IN_SHORT = ("objects", "objects at the limit", "wide characters", "brackets")
TRIED = {name: flood for name, flood in FLOODS.items() if LONG or name in IN_SHORT}


@pytest.mark.parametrize(("body", "before"), TRIED.values(), ids=TRIED)
def test_sixteen_large_manifests(
    hostile: Hostile, body: bytes, before: str, request: pytest.FixtureRequest
) -> None:
    """However many values 4 MiB of JSON hold, few are decoded, one manifest after the other."""
    name = request.node.callspec.id
    with hostile.attack(f"16 manifests of 4 MiB at once: {name}", before=before) as under:
        client = Pusher(under.host)
        client.blob("team/app", b"{}")
        while under.going():
            answers = at_once([lambda: client.put("team/app", "x", body, OCI_MANIFEST)] * 16)
            assert {one.status for one in answers} <= {201, 400}
            assert b"MANIFEST_INVALID" in answers[0].body or answers[0].status == 201


def test_large_manifests_pulled_slowly(hostile: Hostile) -> None:
    """Manifests of 4 MiB are sent from their files: slow readers hold none in memory."""
    with hostile.attack("200 slow pulls of 4 MiB manifests", before="4 MiB for each") as under:
        client = Pusher(under.host)
        client.blob("team/app", b"{}")
        bodies = [client.image("team/app", x="x" * (LARGEST - 1000) + str(n)) for n in range(5)]
        with lines(under.host, 200, receive_buffer=4096) as made:
            for number, line in enumerate(made):
                path = f"/v2/team/app/manifests/{digest_of(bodies[number % 5])}"
                line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert b" 200 " in line.recv(64)
            while under.going():
                assert client.ask("HEAD", f"/v2/team/app/manifests/{digest_of(bodies[0])}").status
        whole = client.ask("GET", f"/v2/team/app/manifests/{digest_of(bodies[1])}")
        assert (whole.body, whole.headers["Content-Type"]) == (bodies[1], OCI_MANIFEST)


def test_slow_senders_do_not_take_the_gate(hostile: Hostile) -> None:
    """Announced manifests of 4 MiB that never arrive keep no small one from its place."""
    with hostile.attack("50 announced manifests of 4 MiB that stall", before="-") as under:
        client = Pusher(under.host)
        client.blob("team/app", b"{}")
        head = (
            f"PUT /v2/team/app/manifests/x HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGEST}\r\n\r\n"
        )
        with lines(under.host, 50) as made:
            for line in made:
                line.sendall(head.encode() + b"{" * 60_000)
            while under.going():
                client.image("team/app", "small")
                client.image("team/app", "medium", x="x" * 100_000)


def test_referrers_with_large_annotations(hostile: Hostile) -> None:
    """Descriptors are made as they are listed, page by page; what is kept of them is bounded."""
    with hostile.attack(
        "100 referrers with 4 MiB of annotations", before="466 MiB, kept also after a restart"
    ) as under:
        client = Pusher(under.host)
        client.blob("team/app", b"{}")
        image = client.image("team/app", "v1")
        subject = descriptor(image, OCI_MANIFEST)
        count = 100 if hostile.long else 40
        pushed = set()
        for number in range(count):
            text = {"a": str(number) + "x" * (LARGEST - 1000)}
            pushed.add(digest_of(client.image("team/app", annotations=text, subject=subject)))
        path: str | None = f"/v2/team/app/referrers/{digest_of(image)}"
        found: list[str] = []
        while path is not None:
            answer = client.ask("GET", path)
            found += [one["digest"] for one in json.loads(answer.body)["manifests"]]
            link = answer.headers.get("Link")
            path = link[1 : link.index(">")] if link else None
        assert found == sorted(pushed)
        while under.going():
            client.ask("GET", f"/v2/team/app/referrers/{digest_of(image)}")


def test_referrers_that_nobody_reads(hostile: Hostile) -> None:
    """Responses in memory share a budget, also when clients do not read them."""
    count = 300 if hostile.long else 80
    with hostile.attack(
        f"{count} clients that ask for 4 MiB of referrers and read nothing",
        before="520 MiB for 80",
    ) as under:
        client = Pusher(under.host)
        client.blob("team/app", b"{}")
        image = client.image("team/app", "v1")
        subject = descriptor(image, OCI_MANIFEST)
        for number in range(12):
            text = {"a": str(number) + "x" * (LARGEST // 8)}
            client.image("team/app", annotations=text, subject=subject)
        head = f"GET /v2/team/app/referrers/{digest_of(image)} HTTP/1.1\r\nHost: x\r\n\r\n"
        with lines(under.host, count, receive_buffer=4096) as made:
            for line in made:
                line.sendall(head.encode())
            while under.going():
                answer = client.ask("GET", f"/v2/team/app/referrers/{digest_of(image)}")
                assert len(answer.body) > LARGEST * 3 // 4


def test_contents_of_large_manifests(hostile: Hostile) -> None:
    """What manifests refer to is kept within bytes, and read where it holds up nobody."""
    with hostile.attack(
        "25 manifests of 10,000 layers, asked for by HEAD",
        before="167 MiB, each HEAD held up all for 0.5 s",
    ) as under:
        client = Pusher(under.host)
        client.blob("team/app", b"{}")
        client.blob("team/app", b"x")
        pushed = []
        for number in range(25):
            layers = [descriptor(b"x", f"{LAYER_TYPE}-{n}") for n in range(10_000)]
            pushed.append(client.image("team/app", f"v{number}", layers=layers, n=number))
        while under.going():
            paths = [f"/v2/team/app/manifests/{digest_of(body)}" for body in pushed]
            answers = at_once([_head(client, path) for path in paths])
            assert {one.status for one in answers} == {200}


def test_different_layers(hostile: Hostile) -> None:
    """What a node was served, and what lies below that, is kept within bytes too."""
    hostile.serve("--allow-sparse", "--drain-timeout", "1s")
    count = 40 if hostile.long else 12
    with hostile.attack(
        f"{count} manifests of 10,000 different layers, pulled", before="-"
    ) as under:
        client = Pusher(under.host, {"User-Agent": "containerd/1.7.0"})
        client.blob("team/app", b"{}")
        for number in range(count):
            layers = [descriptor(f"{number} {n}".encode()) for n in range(10_000)]
            body = client.image("team/app", f"v{number}", layers=layers)
            assert client.ask("GET", f"/v2/team/app/manifests/v{number}").body == body
        while under.going():
            client.ask("GET", "/v2/team/app/manifests/v0")


def _head(client: Pusher, path: str) -> Callable[[], Answer]:
    return lambda: client.ask("HEAD", path)


def test_one_child_named_ten_thousand_times(hostile: Hostile) -> None:
    """A child counts once, however often an index names it."""
    with hostile.attack(
        "an index that names one child 10,000 times", before="each GET stalled 2.5 to 19 s"
    ) as under:
        client = Pusher(under.host)
        client.blob("team/app", b"{}")
        index = client.index("team/app", "v1", [client.image("team/app")] * 10_000)
        while under.going():
            assert client.ask("GET", "/v2/team/app/manifests/v1").body == index


def test_a_chain_of_indexes(hostile: Hostile, tmp_path: Path) -> None:
    """Depth is followed without recursion, by the server and by every command."""
    server = hostile.serve()
    client = Pusher(server.host)
    client.blob("team/app", b"{}")
    below = client.image("team/app")
    for _ in range(1100):
        below = client.index("team/app", None, [below])
    client.put("team/app", "deep", below, OCI_INDEX)
    _every_command(hostile, tmp_path, "a chain of 1,100 indexes", "five commands crash")


def test_a_diamond_of_indexes(hostile: Hostile, tmp_path: Path) -> None:
    """A manifest that is reached by 2^40 ways is looked at once."""
    server = hostile.serve()
    client = Pusher(server.host)
    client.blob("team/app", b"{}")
    below = [client.image("team/app", n=n) for n in range(2)]
    for level in range(40):
        below = [
            client.index("team/app", None, below, annotations={"n": f"{level} {n}"})
            for n in range(2)
        ]
    client.index("team/app", "deep", below)
    _every_command(hostile, tmp_path, "a diamond of 40 levels", "`inspect` never ends")


def _every_command(hostile: Hostile, tmp_path: Path, name: str, before: str) -> None:
    with hostile.attack(f"{name}, pulled", before=before) as under:
        client = Pusher(under.host)
        while under.going():
            assert client.ask("GET", "/v2/team/app/manifests/deep").status == 200
        root = under.server.root
    image, archive = "team/app:deep", tmp_path / "deep.tar"
    for argv in (
        ["ls", "--root", root],
        ["inspect", image, "--root", root],
        ["du", "--root", root],
        ["gc", "--root", root],
        ["verify", "--root", root],
        ["export", image, "-o", archive, "--root", root],
        ["import", archive, "--root", tmp_path / "second"],
    ):
        done = hostile.command(f"{name}: {argv[0]}", *argv, before=before)
        assert done.returncode == 0, done.stderr
