"""`mayfly bundle create` from an upstream that lies, redirects, limits, or is not to be trusted."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from mayfly.storage.manifest import OCI_MANIFEST
from tests.support.beside import Request, answering
from tests.support.certificates import self_signed
from tests.support.client import basic
from tests.support.commands import mayfly
from tests.support.images import digest_of, image_body

CONFIG, LAYER = b"{}", b"the layer" * 10_000
MANIFEST = image_body(CONFIG, [LAYER])
BLOBS = {digest_of(data): data for data in (CONFIG, LAYER)}
USER, PASSWORD = "me", "correct-horse"


@dataclass
class Upstream:
    """A registry with one image; what it does to a layer is the test's matter.

    Attributes:
        answer: of a request for the layer; None for the usual.
        before: of any request; True if it is answered by that.
        seen: path and headers of each request.
    """

    answer: Callable[[Request], None] | None = None
    before: Callable[[Request], bool] = lambda _: False
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def handle(self, request: Request) -> None:
        """Answer a GET or HEAD."""
        self.seen.append((request.path, dict(request.headers)))
        if self.before(request):
            return
        last = request.path.partition("?")[0].rpartition("/")[2]
        if "/manifests/" in request.path and last in ("1", digest_of(MANIFEST)):
            request.reply(200, MANIFEST, ("Content-Type", OCI_MANIFEST))
        elif last == digest_of(LAYER) and self.answer is not None:
            self.answer(request)
        elif last in BLOBS:
            request.reply(200, BLOBS[last])
        else:
            request.reply(404, b"{}")


@dataclass
class Running:
    """A server of an upstream."""

    upstream: Upstream
    host: str

    def create(self, output: Path, *words: str | Path, **env: str) -> CompletedProcess[str]:
        """Make a bundle of its image."""
        image = f"{self.host}/team/app:1"
        return mayfly("bundle", "create", image, "-o", output, *words, env=env)


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Starts upstreams."""
    with contextlib.ExitStack() as stack:

        def started(context: ssl.SSLContext | None = None) -> Running:
            upstream = Upstream()
            return Running(upstream, stack.enter_context(answering(upstream.handle, context)))

        yield started


def _refused(done: CompletedProcess[str], output: Path, *words: str) -> None:
    """Exit code 3, the reason, and no file under the name."""
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()
    for word in words:
        assert word in done.stderr, done.stderr


def _other(request: Request) -> None:
    request.reply(200, LAYER[:-1] + b"!")


def _shorter(request: Request) -> None:
    request.reply(200, LAYER[:-1])


def _longer(request: Request) -> None:
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    data = LAYER + b"more"
    request.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))


LIES = {
    "other bytes": (_other, "other content than its digest says"),
    "a shorter blob": (_shorter, f"would be {len(LAYER) - 1} bytes long"),
    "a longer blob": (_longer, "longer than the 90000 bytes announced"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_named_and_nothing_of_them_is_kept(
    name: str, start: Callable[..., Running], tmp_path: Path
) -> None:
    """Exit code 3 with the digest; once the registry is honest the same command continues."""
    running, output = start(), tmp_path / "up.tar"
    running.upstream.answer, text = LIES[name]
    _refused(running.create(output), output, text, digest_of(LAYER))
    running.upstream.answer = None
    done = running.create(output)
    assert done.returncode == 0, done.stderr
    assert mayfly("verify", output).returncode == 0
    honest = tmp_path / "honest.tar"
    assert running.create(honest).returncode == 0
    assert honest.read_bytes() == output.read_bytes()


def test_a_login_stays_with_its_host(start: Callable[..., Running], tmp_path: Path) -> None:
    """The blob comes from a host that the registry redirects to, which sees no credentials."""
    running, elsewhere = start(), start()
    _, login = basic(USER, PASSWORD)

    def ask(request: Request) -> bool:
        if request.headers.get("Authorization") == login:
            return False
        request.reply(401, b"{}", ("WWW-Authenticate", 'Basic realm="x"'))
        return True

    def redirect(request: Request) -> None:
        request.reply(307, b"", ("Location", f"http://{elsewhere.host}{request.path}?signed=1"))

    running.upstream.before, running.upstream.answer = ask, redirect
    auth = login.removeprefix("Basic ")
    (tmp_path / "config.json").write_text(json.dumps({"auths": {running.host: {"auth": auth}}}))
    output = tmp_path / "up.tar"
    done = running.create(output, DOCKER_CONFIG=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert elsewhere.upstream.seen
    for _, headers in elsewhere.upstream.seen:
        assert "Authorization" not in headers
        assert "Cookie" not in headers
    running.upstream.seen.clear()
    _refused(running.create(tmp_path / "x.tar"), tmp_path / "x.tar", "docker login")


def test_a_rate_limit_is_waited_for(start: Callable[..., Running], tmp_path: Path) -> None:
    """Two refusals, each with a time to wait; then it continues by itself."""
    running = start()

    def limit(request: Request) -> bool:
        if len(running.upstream.seen) > 2:
            return False
        request.reply(429, b"{}", ("Retry-After", "1"))
        return True

    running.upstream.before = limit
    done = running.create(tmp_path / "up.tar")
    assert done.returncode == 0, done.stderr


def test_an_unknown_ca_is_refused_with_the_remedy(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    """Nothing is asked of it; with --ca it is trusted."""
    pair = self_signed(tmp_path, ca=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    running, output = start(context), tmp_path / "up.tar"
    port = running.host.rpartition(":")[2]
    upstream = ("--upstream", f"{running.host}=https://localhost:{port}")
    _refused(running.create(output, *upstream), output, "not trusted", "--ca FILE")
    assert running.upstream.seen == []
    done = running.create(output, *upstream, "--ca", pair.certificate)
    assert done.returncode == 0, done.stderr


def test_a_list_that_is_not_there_is_no_image(tmp_path: Path) -> None:
    """A mistyped name of a file is told as such; no registry is asked for it."""
    done = mayfly("bundle", "create", "imagse.txt", "-o", tmp_path / "up.tar", cwd=tmp_path)
    assert done.returncode == 2
    assert "imagse.txt: there is no such file" in done.stderr
