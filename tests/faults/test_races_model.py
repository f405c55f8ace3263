"""Every kind of store against plain dicts, in sequences of changes that hypothesis chooses.

Whatever was pushed, mounted, tagged, deleted, collected and restarted: after each step all that can
be read is what the model says, byte for byte.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from mayfly.storage import digest as digests
from mayfly.storage.bundle.open import open_bundles
from mayfly.storage.digest import Digest
from mayfly.storage.directory.store import DistributionStore
from mayfly.storage.manifest import OCI_MANIFEST, Manifest
from mayfly.storage.overlay import OverlayStore
from mayfly.storage.upkeep.collect import collect
from mayfly.storage.upkeep.verify import Fault, verify
from tests.bundle.builders import Layout
from tests.faults.asking import WAYS, OverHTTP, running_loop
from tests.faults.model import (
    BLOBS,
    IMAGE,
    LOWER,
    MANIFESTS,
    OK,
    OTHER,
    REPOSITORIES,
    SUBJECTS,
    TAGS,
    UPLOAD_UNKNOWN,
    Model,
)
from tests.faults.subjects import ByMethods
from tests.storage.disk import skip_sync

EXAMPLES = int(os.environ.get("MAYFLY_SOAK_EXAMPLES", "8"))
"""Sequences for each kind of store; `make soak` gives many more. Requests take four times as long,
so a fourth of them goes over HTTP."""

STEPS = 30
GRACE = 3600.0

repository = st.sampled_from(REPOSITORIES)
blob = st.sampled_from(list(BLOBS))
manifest = st.sampled_from(list(MANIFESTS))
tag = st.sampled_from(TAGS)

Start = Callable[[], tuple[ByMethods, Model]]


class Machine(RuleBasedStateMachine):
    """A registry and its model, changed alike."""

    sessions = Bundle("sessions")

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.subject, self.model = start()
        self.ended: dict[str, str] = {}

    # Pushes

    @rule(repository=repository, digest=blob, way=st.integers(0, WAYS - 1))
    def push(self, repository: str, digest: Digest, way: int) -> None:
        answer = self.subject.push(repository, BLOBS[digest], way)
        assert answer == self.model.push(repository, digest)

    @rule(repository=repository, digest=blob, source=repository)
    def mount(self, repository: str, digest: Digest, source: str) -> None:
        answer = self.subject.mount(repository, digest, source)
        assert answer == self.model.mount(repository, digest, source)

    @rule(repository=repository, digest=blob)
    def touch(self, repository: str, digest: Digest) -> None:
        assert self.subject.touch(repository, digest) == self.model.touch(repository, digest)

    @rule(repository=repository, digest=manifest, tags=st.lists(tag, unique=True).map(tuple))
    def put(self, repository: str, digest: Digest, tags: tuple[str, ...]) -> None:
        answer = self.subject.put(repository, MANIFESTS[digest].body, tags)
        assert answer == self.model.put(repository, digest, tags)

    @rule(repository=repository, digest=manifest, tags=st.lists(tag, unique=True).map(tuple))
    def push_all(self, repository: str, digest: Digest, tags: tuple[str, ...]) -> None:
        """As a client does: what a manifest names, and then the manifest."""
        for named in MANIFESTS[digest].blobs:
            self.push(repository, named.digest, 0)
        for child in MANIFESTS[digest].manifests:
            self.push_all(repository, child.digest, ())
        self.put(repository, digest, tags)

    # Upload sessions

    @rule(target=sessions, repository=repository)
    def begin(self, repository: str) -> str:
        session = self.subject.begin(repository)
        self.model.uploads[session] = repository, b""
        return session

    @rule(session=sessions, digest=blob, cut=st.integers(1, 99))
    def resume(self, session: str, digest: Digest, cut: int) -> None:
        """Ask where a session stands and send some of what a blob has from there on."""
        if session in self.ended:
            repository = self.ended[session]
            assert self.subject.offset(repository, session) is None
            assert self.subject.write(repository, session, 0, b"late") == UPLOAD_UNKNOWN
            return
        repository, received = self.model.uploads[session]
        if received and self.subject.offset(repository, session) != len(received):
            raise AssertionError(f"{session} does not stand at {len(received)}")
        if piece := BLOBS[digest][len(received) : len(received) + cut]:
            answer = self.subject.write(repository, session, len(received), piece)
            assert answer == self.model.write(session, len(received), piece)

    @rule(session=sessions, ahead=st.integers(1, 9))
    def write_elsewhere(self, session: str, ahead: int) -> None:
        if session not in self.ended:
            repository, received = self.model.uploads[session]
            at = len(received) + ahead
            answer = self.subject.write(repository, session, at, b"x")
            assert answer == self.model.write(session, at, b"x")

    @rule(session=consumes(sessions), digest=blob, honest=st.booleans())
    def commit(self, session: str, digest: Digest, honest: bool) -> None:
        """Finish under the digest of what was sent, or under one that may be wrong."""
        repository, received = self.model.uploads[session]
        sent = digests.of(received)
        wanted = sent if honest and sent in BLOBS else digest
        answer = self.subject.commit(repository, session, wanted)
        assert answer == self.model.commit(session, wanted)
        self.ended[session] = repository
        assert self.subject.offset(repository, session) is None

    @rule(session=consumes(sessions))
    def cancel(self, session: str) -> None:
        repository, _ = self.model.uploads.pop(session)
        assert self.subject.cancel(repository, session) == OK
        assert self.subject.cancel(repository, session) == UPLOAD_UNKNOWN

    # Deletes

    @rule(repository=repository, digest=blob)
    def delete_blob(self, repository: str, digest: Digest) -> None:
        answer = self.subject.delete_blob(repository, digest)
        assert answer == self.model.delete_blob(repository, digest)

    @rule(repository=repository, digest=manifest)
    def delete_manifest(self, repository: str, digest: Digest) -> None:
        answer = self.subject.delete_manifest(repository, digest)
        assert answer == self.model.delete_manifest(repository, digest)

    @rule(repository=repository, tag=tag)
    def delete_tag(self, repository: str, tag: str) -> None:
        answer = self.subject.delete_tag(repository, tag)
        assert answer == self.model.delete_tag(repository, tag)

    # Upkeep

    @rule()
    def time_passes(self) -> None:
        self.subject.time_passes(2 * GRACE)
        self.model.time_passes()

    @rule(young_too=st.booleans())
    def collect(self, young_too: bool) -> None:
        found = collect(self.subject.store, 0 if young_too else GRACE)
        assert set(found.blobs) == self.model.collect(young_too=young_too)

    @rule()
    def restart(self) -> None:
        self.subject.restart()

    @rule()
    def verify(self) -> None:
        """Nothing is corrupt, and what is missing is what was deleted beneath an image."""
        found = verify(self.subject.store)
        assert {f.digest for f in found.findings} == self.model.missing()
        assert {f.fault for f in found.findings} <= {Fault.MISSING, Fault.UNLINKED}
        assert found.blobs == len(self.model.stored)

    # What must hold after each step

    @invariant()
    def content_is_right(self) -> None:
        for name in REPOSITORIES:
            for digest, data in BLOBS.items():
                linked = (name, digest) in self.model.links
                assert self.subject.blob(name, digest) == (data if linked else None)
            for digest, known in MANIFESTS.items():
                linked = (name, digest) in self.model.revisions
                assert self.subject.manifest(name, digest) == (known.body if linked else None)
            for tag in TAGS:
                assert self.subject.tag(name, tag) == self.model.tags.get((name, tag))

    @invariant()
    def listings_are_right(self) -> None:
        assert self.subject.repositories() == self.model.repositories()
        for name in REPOSITORIES:
            assert self.subject.tags(name) == self.model.tags_of(name)
            for subject in SUBJECTS:
                assert self.subject.referrers(name, subject) == self.model.referrers(name, subject)

    @invariant()
    def disk_is_right(self) -> None:
        assert self.subject.on_disk() == set(self.model.stored)
        assert self.subject.sessions() == set(self.model.uploads)
        assert self.subject.left_over() == []

    def teardown(self) -> None:
        self.subject.close()


@pytest.fixture(autouse=True)
def quick_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `skip_sync`."""
    skip_sync(monkeypatch)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Where the servers run."""
    with running_loop() as loop:
        yield loop


def _bundle(path: Path) -> Model:
    """Two images under one tag each, one of them in two repositories; what a model says of it."""
    layout, model = Layout(), Model()
    for name, tag, image in (("team/a", "one", IMAGE), ("team/b", "two", OTHER)):
        for named in image.blobs:
            layout.add(BLOBS[named.digest], named.media_type)
            model.links[name, named.digest] = {LOWER}
        digest = layout.name(layout.add(image.body, OCI_MANIFEST), f"quay.io/{name}:{tag}")
        model.revisions[name, digest] = {LOWER}
        model.tags[name, tag] = digest
        model.beneath |= {digest, *(named.digest for named in image.blobs)}
    layout.write_tar(path)
    return model


def _run(start: Start, examples: int = EXAMPLES) -> None:
    every = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        # Each step costs some forty reads: shrinking would take minutes.
        phases=[Phase.generate],
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(lambda: Machine(start), settings=every)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["store", "overlay"])
@pytest.mark.parametrize("young_too", [False, True])
@pytest.mark.parametrize("lost", [(OTHER,), (IMAGE, OTHER)])
def test_deleted_children_of_an_index(
    tmp_path: Path, kind: str, lost: tuple[Manifest, ...], young_too: bool
) -> None:
    """One is like a platform that was left out, before and after its collection; all are not."""
    start = _start_store if kind == "store" else _start_overlay
    machine = Machine(partial(start, tmp_path, ByMethods))
    index = next(d for d, manifest in MANIFESTS.items() if len(manifest.manifests) == 2)
    children = {digests.of(manifest.body) for manifest in lost}
    try:
        for repository in REPOSITORIES:
            machine.push_all(repository, index, ())
            for digest in children:
                machine.delete_manifest(repository, digest)
        machine.verify()
        machine.collect(young_too)
        machine.verify()
        assert machine.model.missing() == (children if len(children) == 2 else set())
    finally:
        machine.teardown()


def _fresh(directory: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=directory))


def test_store(tmp_path: Path) -> None:
    """The registry:2 directory."""
    _run(partial(_start_store, tmp_path, ByMethods))


def test_overlay(tmp_path: Path) -> None:
    """An overlay, whose bundle holds some of the names and content already."""
    _run(partial(_start_overlay, tmp_path, ByMethods))


def test_http(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    """The same through requests, over the plain store."""
    _run(partial(_start_store, tmp_path, partial(OverHTTP, loop=loop)), EXAMPLES // 4)


def test_http_over_overlay(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    """The same through requests, over a bundle."""
    _run(partial(_start_overlay, tmp_path, partial(OverHTTP, loop=loop)), EXAMPLES // 4)


def _start_store(directory: Path, ask: Callable[..., ByMethods]) -> tuple[ByMethods, Model]:
    root = _fresh(directory)
    return ask(root, lambda: DistributionStore(root)), Model()


def _start_overlay(directory: Path, ask: Callable[..., ByMethods]) -> tuple[ByMethods, Model]:
    root, tar = _fresh(directory), directory / "bundle.tar"
    model = _bundle(tar)
    bundles = open_bundles([tar], directory / "state")
    # Its bundle is closed with the test's directory: nothing holds it open between reads.
    return ask(root, lambda: OverlayStore(DistributionStore(root), bundles.layer)), model
