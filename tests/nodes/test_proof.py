"""`mayfly node proof`: the proof of a node that cannot send it, out of what its script printed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mayfly.registry.errors import LifetimeError
from mayfly.registry.exit_codes import Exit
from mayfly.registry.nodes.proof import MAX_AGE_SECONDS, MAX_OUTPUT, printed_images, send_proof
from mayfly.registry.nodes.target import NodeCredential, Target, parse
from mayfly.registry.pki.errors import TrustError
from tests.nodes.test_script import Node, without_clients
from tests.nodes.test_script import dash as dash
from tests.support.beside import Request, answering
from tests.support.commands import assert_refused, mayfly_here, printed_here
from tests.support.process import Mayfly, Process

DIGEST = "sha256:" + "ab" * 32
ENTRY: dict[str, Any] = {
    "image": "docker.io/library/web:1",
    "digest": DIGEST,
    "runtime": "podman",
    "time": int(time.time()),
    "pinned": False,
    "free": 7,
}


def _line(*entries: dict[str, Any]) -> str:
    """What the script of n1 prints for a proof."""
    report = {"version": 1, "nonce": "", "images": entries}
    return json.dumps({"node": "n1", "report": report})


PROOF = _line(ENTRY)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mayfly]:
    """A registry with TLS and users that waits for the proofs of two nodes."""
    top = tmp_path_factory.mktemp("server")
    (top / "images").write_text("docker.io/library/web:1\n")
    (top / "nodes").write_text("n1\nnode-7\n")
    options = ["--tls", "auto", "--auth", "auto", "--until-pulled", str(top / "images")]
    options += ["--nodes", str(top / "nodes"), "--accept", "proven"]
    running = Mayfly(top / "root", top / "state", *options)
    yield running
    assert Process.stop(running) == Exit.INCOMPLETE  # the registry has no image


def proofs(server: Mayfly) -> dict[str, int]:
    """Node → number of images that it proved."""
    found = json.loads(printed_here("status", "--json", "--state-dir", server.state_dir))
    return {node: one["images"] for node, one in found["coverage"]["proofs"].items()}


@pytest.mark.parametrize("option", [(), ("--quiet",), ("--json",)], ids=str)
def test_output_of_a_script(
    server: Mayfly, dash: Node, tmp_path: Path, option: tuple[str, ...]
) -> None:
    """Whatever it printed beside the proof; by standard input or from a file."""
    target = replace(parse("http://10.0.0.5:5000"), credential=NodeCredential("robot", "secret"))
    script = dash.script(target, "podman", ("docker.io/library/web:1",))
    done = dash.run(script, *option, PATH=without_clients(dash))
    assert done.returncode == 0, done.stderr
    state = ("--state-dir", server.state_dir)
    other = mayfly_here("node", "proof", "--node", "node-7", *state, "-", stdin=done.stdout)
    assert_refused(other, "-: the script of node 'n1' printed it, not node-7")
    told = printed_here("node", "proof", "--node", "n1", *state, "-", stdin=done.stdout)
    assert told == "n1: proof of 1 image sent\n"
    (tmp_path / "output").write_text(done.stdout)
    told = printed_here("node", "proof", "--node", "n1", *state, tmp_path / "output", "--json")
    assert json.loads(told) == {"node": "n1", "images": 1}
    assert proofs(server) == {"n1": 1}


def _printed(output: bytes) -> list[Any]:
    return printed_images(output, "n1", ENTRY["time"])


def test_last_proof_counts() -> None:
    """Of several runs in one output; with the document of --json as with the line alone."""
    empty = _line()
    with_more = json.dumps({"runtime": "podman", **json.loads(PROOF)})
    assert _printed(f"{empty}\nmissing x\n{PROOF}\nnote\n".encode()) == [ENTRY]
    assert _printed(f"{PROOF}\n{empty}\n".encode()) == []
    assert _printed(f"{empty}\r\n{with_more}".encode()) == [ENTRY]


@pytest.mark.parametrize(
    "output",
    [
        b"", b"web:1 is present\n", b"[]", b"\xff\xfe", b" " + PROOF.encode(), b"{}", b"{",
        b'{"report": 1}', b'{"report": null}', b'{"version": 1, "nonce": "", "images": [1]}',
        PROOF[:-1].encode(), b"{" * 100_000, b'{"a":' * 100_000, b"\xff".join([b"{", b"}"]),
        PROOF.encode() + b" " * MAX_OUTPUT,
    ],
)  # fmt: skip
def test_output_without_a_proof(output: bytes) -> None:
    """It is refused before a credential is made, in one line."""
    with pytest.raises(TrustError) as refused:
        _printed(output)
    assert "\n" not in str(refused.value)


def test_proof_of_another_node_or_time() -> None:
    """An output that was kept, or belongs to another node, proves nothing."""
    named = PROOF.replace('"n1"', '"n2"').encode()
    assert printed_images(named, "n2", ENTRY["time"]) == [ENTRY]
    with pytest.raises(TrustError, match="node 'n2' printed it, not n1"):
        printed_images(named, "n1", ENTRY["time"])
    for unnamed in (named.replace(b'"node"', b'"x"'), json.dumps(json.loads(PROOF)["report"])):
        text = unnamed if isinstance(unnamed, bytes) else unnamed.encode()
        with pytest.raises(TrustError, match="does not say which node printed it"):
            printed_images(text, "n1", ENTRY["time"])
    later = ENTRY["time"] + MAX_AGE_SECONDS + 1
    with pytest.raises(TrustError, match="older than a day"):
        printed_images(PROOF.encode(), "n1", later)
    mixed = _line(ENTRY, ENTRY | {"time": later})
    with pytest.raises(TrustError, match="older than a day"):
        printed_images(mixed.encode(), "n1", later)


def test_refusals_in_one_line(server: Mayfly, tmp_path: Path) -> None:
    """No proof, no file, a node that is not waited for, no Mayfly here, no registry there."""
    state = ("--state-dir", server.state_dir)
    proof = ("node", "proof", "--node", "n1")
    assert_refused(mayfly_here(*proof, *state, "-", stdin="nothing"), "-: no proof is in it")
    assert_refused(mayfly_here(*proof, *state, tmp_path / "none"), "none: No such file")
    named = PROOF.replace('"n1"', '"other"')
    other = mayfly_here("node", "proof", "--node", "other", *state, "-", stdin=named)
    assert_refused(other, "--node other: not listed")
    none = mayfly_here(*proof, "--state-dir", tmp_path, "-", stdin=PROOF)
    assert none.returncode == Exit.NOT_RUNNING
    nobody = mayfly_here(*proof, *state, "--registry", "http://127.0.0.1:1", "-", stdin=PROOF)
    assert nobody.returncode == Exit.INCOMPLETE
    assert nobody.stderr.startswith("mayfly: http://127.0.0.1:1/mayfly/v1/nodes/n1/nonce: ")
    assert nobody.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (302, b"", "refused (302)"),
        (403, b'{"errors": [{"code": "DENIED", "message": "no\\u001b[31m"}]}', "refused (403: no"),
        (500, b"[" * 60_000, "refused (500)"),
        (500, b'{"errors": []}', "refused (500)"),
        (200, b"not JSON", ""),
        (200, b"[]", "is not that of Mayfly"),
        (200, b"[" * 60_000, ""),
        (200, b"", ""),
    ],
)
def test_other_answers(status: int, body: bytes, message: str) -> None:
    """Each is one error; no redirect gets the credential."""
    asked = []

    def answer(request: Request) -> None:
        asked.append(f"{request.path} {request.headers['Authorization']}")
        request.reply(status, body, ("Location", f"http://{request.headers['Host']}/elsewhere"))

    with answering(answer) as host:
        target: Target = replace(
            parse(f"http://{host}"), credential=NodeCredential("robot", "secret")
        )
        with pytest.raises(LifetimeError) as failed:
            send_proof(target, "a b", [ENTRY])
    assert failed.value.exit_code == Exit.INCOMPLETE
    assert message in str(failed.value)
    assert len(asked) == 1
    assert asked[0].startswith("/mayfly/v1/nodes/a%20b/nonce Basic ")
