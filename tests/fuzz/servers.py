"""Servers to be fuzzed: each with content, and what of it must never change or be seen."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from mayfly.auth.globs import parse_glob
from mayfly.auth.policy import Grant, Subject, SubjectKind
from mayfly.auth.roles import Role
from mayfly.registry.access.policy_files import add_grant, set_user
from tests.bundle.builders import CONFIG_TYPE, LAYER_TYPE, Layout
from tests.fuzz import seeds
from tests.fuzz.messages import Message
from tests.fuzz.seeds import Target
from tests.security.wire import Server, ask
from tests.support.client import Answer, Header, basic, bearer
from tests.support.images import digest_of
from tests.support.process import Mayfly, peak_bytes

OPEN = ("fuzz/a", "fuzz/b/c")
CLOSED = "private/app"
PASSWORD = "correct horse"
_ROUNDS = 4
_QUICK_STOP = ("--drain-timeout", "1s")


@dataclass
class Fuzzed:
    """A running server, and what requests to it are about."""

    process: Mayfly
    repositories: tuple[str, ...]
    authorization: tuple[str, ...] = ("",)
    writable: bool = True
    sessions: set[str] = field(default_factory=set)

    def ask(self, method: str, target: str, *headers: Header, body: bytes = b"") -> Answer:
        """One valid request."""
        return ask(Server(self.process.host), method, target, headers, body)

    def seeds(self, chance: random.Random) -> list[Message]:
        """Valid requests, with upload sessions of now."""
        target = Target(self.repositories, self.authorization, self._session)
        made = []
        for name in self.repositories:
            for one in seeds.requests(target, name, chance.choice(self.repositories)):
                if shown := chance.choice(self.authorization):
                    one.headers.append((b"Authorization", shown.encode()))
                made.append(one)
        return made

    def _session(self, repository: str) -> str:
        if not self.writable:
            return "1b671a64-40d5-491e-99b0-da01ff1f3341"
        answer = self.ask("POST", f"/v2/{repository}/blobs/uploads/")
        assert answer.status == 202, answer
        session = answer.headers["Docker-Upload-UUID"]
        self.sessions.add(session)
        return session

    def memory(self) -> int:
        """The most bytes of memory it ever had."""
        return peak_bytes(self.process.pid)


def push(server: Fuzzed, repository: str, *headers: Header, extra: bytes = b"") -> None:
    """Push the image that requests are about, and one blob more."""
    for data in (seeds.CONFIG, seeds.LAYER, extra):
        where = f"/v2/{repository}/blobs/uploads/?digest={quote(digest_of(data))}"
        answer = server.ask("POST", where, *headers, body=data)
        assert answer.status == 201, (answer, repository)
    announced = ("Content-Type", seeds.OCI_MANIFEST)
    for reference, body in (("latest", seeds.manifest()), ("signature", seeds.artifact())):
        where = f"/v2/{repository}/manifests/{reference}"
        assert server.ask("PUT", where, *headers, announced, body=body).status == 201


@contextlib.contextmanager
def opened(start: Callable[..., Mayfly], directory: Path) -> Iterator[Fuzzed]:
    """Anyone may do anything."""
    server = Fuzzed(start(*_QUICK_STOP), OPEN)
    for name in OPEN:
        push(server, name)
    yield server


@contextlib.contextmanager
def overlaid(start: Callable[..., Mayfly], directory: Path) -> Iterator[Fuzzed]:
    """Anyone may do anything, over a bundle of images of two upstreams."""
    path = bundle(directory / "bundle.tar")
    before = hashlib.sha256(path.read_bytes()).digest()
    server = Fuzzed(
        start(*_QUICK_STOP, path), ("library/app", "docker.io/team/app", "app", "fuzz/a")
    )
    push(server, "fuzz/a")
    yield server
    assert hashlib.sha256(path.read_bytes()).digest() == before


def bundle(path: Path) -> Path:
    """The same image under three names, two of them of one path."""
    layout = Layout()
    layout.add(seeds.CONFIG, CONFIG_TYPE)
    layout.add(seeds.LAYER, LAYER_TYPE)
    image = layout.add(seeds.manifest(), seeds.OCI_MANIFEST)
    for name in ("docker.io/library/app:latest", "docker.io/team/app:latest"):
        layout.name(image, name)
    layout.name(image, "registry.test:5000/team/app:latest")
    return layout.write_tar(path)


@contextlib.contextmanager
def guarded(start: Callable[..., Mayfly], directory: Path) -> Iterator[Fuzzed]:
    """Callers are nobody, or may pull from some repositories; what is private they never see."""
    auth = directory / "auth"
    auth.mkdir()
    for name, role, glob in (("admin", Role.ADMIN, "**"), ("pull", Role.GUEST, "fuzz/**")):
        set_user(auth / "htpasswd", name, PASSWORD, _ROUNDS)
        add_grant(
            auth / "grants.toml", Grant(Subject(SubjectKind.USER, name), role, parse_glob(glob))
        )
    server = Fuzzed(start(*_QUICK_STOP, "--auth", auth), (OPEN[0], CLOSED), writable=False)
    admin = basic("admin", PASSWORD)
    push(server, OPEN[0], admin)
    push(server, CLOSED, admin, extra=seeds.MARKER)
    body, announced = seeds.artifact(seeds.SECRET), ("Content-Type", seeds.OCI_MANIFEST)
    for tag in ("latest", seeds.SECRET):
        where = f"/v2/{CLOSED}/manifests/{tag}"
        assert server.ask("PUT", where, admin, announced, body=body).status == 201
    pull = basic("pull", PASSWORD)
    scope = quote(f"repository:{OPEN[0]}:pull,push repository:{CLOSED}:pull")
    token = server.ask("GET", f"/auth/token?scope={scope}", pull).json["token"]
    tampered = f"{token[:-9]}{token[-9:][::-1]}"
    shown = (pull, bearer(token), basic("pull", "guess"), basic("admin", ""), bearer(tampered))
    server.authorization = ("", *(value for _, value in shown))
    yield server


def private(received: bytes) -> bool:
    """Whether an answer has what only others may see: a layer, a manifest, a referrer, a tag."""
    return seeds.SECRET.encode() in received
