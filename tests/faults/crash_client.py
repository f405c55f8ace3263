"""A client that pushes, tags, mounts and deletes at random until the server is killed under it."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator

from tests.faults.crash_model import CLOCK_TICK, Key, Model, Race, Session, manifest_of
from tests.faults.crash_wire import Cut, Wire, offset_of, pieces_of
from tests.support.client import Answer
from tests.support.images import digest_of

TAGS = ("t0", "t1", "t2")
MAX_SESSIONS = 3
MAX_MANIFESTS = 6
KEPT_DELETIONS = 12

SHARED = "shared/app"
CONTENDED = Key("tag", SHARED, "latest")


class Client:
    """One client with two repositories of its own.

    Args:
        number: of this client.
        model: what it was told.
        race: of the tag that all clients move.
        shared: contents that several clients push, mount and delete.
        grace: the collector's, in seconds.
    """

    def __init__(
        self, number: int, model: Model, race: Race, shared: list[bytes], grace: float
    ) -> None:
        self.number = number
        self.model = model
        self.repositories = [f"client{number}/app", f"client{number}/copy"]
        self._race = race
        self._shared = shared
        self._grace = grace
        self._own = [b"%d %d" % (number, which) * 50 for which in range(2)]
        self.others: list[Client] = []

    def begin_life(self, wire: Wire, chance: random.Random) -> None:
        """Work with a server that was started anew."""
        self.wire = wire
        self._chance = chance

    def work(self) -> None:
        """Operations until the server is killed."""
        with contextlib.suppress(Cut):
            while True:
                operation, *_ = self._chance.choices(
                    [
                        self._push_image,
                        self._retag,
                        self._delete_tag,
                        self._delete_manifest,
                        self._push_and_delete_blob,
                        self._mount,
                        self._sign,
                        self._read,
                        self._leave_session,
                        self._go_on,
                        self._cancel,
                        self._contend,
                    ],
                    (30, 8, 6, 8, 10, 8, 6, 6, 8, 4, 2, 6),
                )
                operation()

    def prepare(self) -> None:
        """Push what `_contend` points the tag at."""
        for content in self._own:
            self._put_manifest(SHARED, manifest_of([content]), [content])
        self._contend()

    # Operations

    def _push_image(self) -> None:
        repository = self._chance.choice(self.repositories)
        blobs = [self._content(small=True), self._content()]
        if self._chance.random() < 0.5:
            blobs.append(self._chance.choice(self._shared))
        tag = Key("tag", repository, self._chance.choice(TAGS))
        replaced = self.model.known.get(tag)
        self._put_manifest(repository, manifest_of(blobs), blobs, tag)
        if replaced and (
            self._chance.random() < 0.7 or len(self.model.held("manifest")) > MAX_MANIFESTS
        ):
            self._delete(repository, replaced)

    def _retag(self) -> None:
        if manifest := self._some("manifest"):
            tag = Key("tag", manifest.repository, self._chance.choice(TAGS))
            body = self.model.bodies[manifest.name]
            self._put(manifest.repository, tag.name, body, manifest, tag)

    def _delete_tag(self) -> None:
        if tag := self._some("tag"):
            with self.model.change((tag, None)):
                self._expect(202, self.wire.ask("DELETE", tag.path))

    def _delete_manifest(self) -> None:
        if manifest := self._some("manifest"):
            self._delete(manifest.repository, manifest.name)

    def _push_and_delete_blob(self) -> None:
        repository = self._chance.choice(self.repositories)
        content = self._content()
        self._push(repository, content)
        used = {d for key in self.model.held("manifest", repository) for d in self._named(key)}
        if self._chance.random() < 0.6 and digest_of(content) not in used:
            blob = Key("blob", repository, digest_of(content))
            with self.model.change((blob, None)):
                self._expect_or_collected(202, self.wire.ask("DELETE", blob.path), blob)

    def _mount(self) -> None:
        source = self._chance.choice([self, *self.others])
        held = [key for key in list(source.model.known) if key.kind == "blob"]
        if not held:
            return
        blob = self._chance.choice(held)
        repository = self._chance.choice(self.repositories)
        deleted = source is self and self.model.known[blob] is None
        mounted = self._try_mount(Key("blob", repository, blob.name), blob.repository)
        assert not (mounted and deleted), f"{blob} was deleted"

    def _sign(self) -> None:
        """A referrer: an artifact whose subject is an image."""
        if subject := self._some("manifest"):
            config = self._content(small=True)
            body = manifest_of([config], self.model.bodies[subject.name])
            self._put_manifest(subject.repository, body, [config])

    def _read(self) -> None:
        if tag := self._some("tag"):
            answer = self._expect(200, self.wire.ask("GET", tag.path))
            assert digest_of(answer.body) == self.model.known[tag]

    def _leave_session(self) -> None:
        if len(self.model.sessions) < MAX_SESSIONS:
            location = self._begin(self._chance.choice(self.repositories), self._content())
            for _ in range(self._chance.randint(0, 3)):
                self._patch(location, self._chance.random() / 2)

    def _go_on(self) -> None:
        if self.model.sessions:
            self.complete(self._chance.choice(list(self.model.sessions)))

    def _cancel(self) -> None:
        if self.model.sessions:
            location = self._chance.choice(list(self.model.sessions))
            self.model.sessions[location].ending = True
            self._expect(204, self.wire.ask("DELETE", location))
            del self.model.sessions[location]

    def _contend(self) -> None:
        body = manifest_of([self._chance.choice(self._own)])
        with self._race.write(digest_of(body)):
            self._expect(201, self.wire.ask("PUT", CONTENDED.path, [body]))

    # Parts of them

    def _content(self, *, small: bool = False) -> bytes:
        large = not small and self._chance.random() < 0.1
        limits = (1 << 20, 3 << 20) if large else (2, 2000 if small else 1 << 17)
        return self._chance.randbytes(self._chance.randint(*limits))

    def _some(self, kind: str) -> Key | None:
        held = [k for r in self.repositories for k in self.model.held(kind, r)]
        return self._chance.choice(held) if held else None

    def _named(self, manifest: Key) -> list[str]:
        return self.model.blobs_of(manifest.name)

    def _put_manifest(
        self, repository: str, body: bytes, blobs: list[bytes], tag: Key | None = None
    ) -> None:
        """Push an image as docker does: ask for each blob, mount it, or else send it."""
        began = time.time()
        for blob in blobs:
            key = Key("blob", repository, digest_of(blob))
            asked = time.time()
            if self.wire.ask("HEAD", key.path).status == 200:
                assert self.model.known.get(key, "never pushed"), f"{key} was deleted"
                self.model.confirm(key, key.name, asked)
            elif self._chance.random() < 0.3 and self._try_mount(key, None):
                pass
            else:
                self._push(repository, blob)
        digest = digest_of(body)
        self.model.bodies[digest] = body
        manifest = Key("manifest", repository, digest)
        reference = tag.name if tag else digest
        if tag and self._chance.random() < 0.3:
            reference = f"{digest}?tag={tag.name}"
        self._put(repository, reference, body, manifest, tag, since=began)

    def _put(
        self,
        repository: str,
        reference: str,
        body: bytes,
        manifest: Key,
        tag: Key | None,
        since: float | None = None,
    ) -> None:
        began = time.time()
        changes: list[tuple[Key, str | None]] = [(manifest, manifest.name)]
        if tag:
            changes.append((tag, manifest.name))
        target = f"/v2/{repository}/manifests/{reference}"
        with self.model.change(*changes):
            answer = self.wire.ask("PUT", target, [body])
            if since is not None and answer.status != 201 and time.time() - since > self._grace:
                # The blobs waited longer than the grace: the collector may have had them.
                raise Cut
            self._expect(201, answer)
        for blob in self._named(manifest):
            self.model.touch(Key("blob", repository, blob), began)

    def _delete(self, repository: str, digest: str) -> None:
        tags = self.model.tags_of(repository, digest)
        manifest = Key("manifest", repository, digest)
        with self.model.change(*((key, None) for key in (*tags, manifest))):
            self._expect(202, self.wire.ask("DELETE", manifest.path))

    def _try_mount(self, blob: Key, source: str | None) -> bool:
        target = f"/v2/{blob.repository}/blobs/uploads/?mount={blob.name}"
        target += f"&from={source}" if source else ""
        with self._unnamed_session(), self.model.change((blob, blob.name)) as applied:
            answer = self.wire.ask("POST", target)
            if answer.status == 201:
                return True
            applied.clear()
            self._expect(202, answer)
        # Not there: a session was opened instead, as the protocol wants it.
        location = answer.headers["Location"]
        self.model.sessions[location] = Session(blob, b"", ending=True)
        self._expect(204, self.wire.ask("DELETE", location))
        del self.model.sessions[location]
        return False

    def _push(self, repository: str, content: bytes) -> None:
        how = self._chance.choice(["monolithic", "put", "stream", "chunks"])
        key = Key("blob", repository, digest_of(content))
        if how == "monolithic":
            target = f"/v2/{repository}/blobs/uploads/?digest={key.name}"
            with self.model.change((key, key.name)):
                self._expect(201, self.wire.ask("POST", target, pieces_of(content)))
            return
        location = self._begin(repository, content)
        if how == "stream":
            self._patch(location, 1, chunked=True)
        elif how == "chunks":
            for _ in range(self._chance.randint(1, 4)):
                self._patch(location, self._chance.random())
        self.complete(location)

    def _begin(self, repository: str, content: bytes) -> str:
        with self._unnamed_session():
            answer = self.wire.ask("POST", f"/v2/{repository}/blobs/uploads/")
            self._expect(202, answer)
        location: str = answer.headers["Location"]
        self.model.sessions[location] = Session(
            Key("blob", repository, digest_of(content)), content
        )
        return location

    def _patch(self, location: str, part: float, *, chunked: bool = False) -> None:
        """Send part of what is left; the answer says how far the server is."""
        session = self.model.sessions[location]
        start = session.acknowledged
        end = start + int((len(session.content) - start) * part)
        if end == 1:
            end = 0  # "0-0" means both: nothing, and one byte
        headers = {} if chunked or end == start else {"Content_Range": f"{start}-{end - 1}"}
        pieces = pieces_of(session.content[start:end])
        with self._sending(session) as on_sent:
            answer = self.wire.ask(
                "PATCH", location, pieces, chunked=chunked, on_sent=on_sent, **headers
            )
        self._expect(202, answer)
        assert offset_of(answer) == end, (answer.headers["Range"], end)
        session.acknowledged = end

    def complete(self, location: str) -> None:
        """Send what is left, and close the upload."""
        session = self.model.sessions[location]
        rest = pieces_of(session.content[session.acknowledged :])
        with self.model.change((session.key, session.key.name)), self._sending(session) as on_sent:
            session.ending = True
            target = f"{location}?digest={session.key.name}"
            self._expect(201, self.wire.ask("PUT", target, rest, on_sent=on_sent))
        del self.model.sessions[location]

    @contextlib.contextmanager
    def _sending(self, session: Session) -> Iterator[Callable[[int], None]]:
        session.sent = session.acknowledged

        def on_sent(size: int) -> None:
            session.sent += size

        yield on_sent

    @contextlib.contextmanager
    def _unnamed_session(self) -> Iterator[None]:
        """Around a request whose answer names a session: if it is cut, nobody knows that one."""
        try:
            yield
        except Cut:
            self.model.lost_sessions += 1
            raise

    @staticmethod
    def _expect(status: int, answer: Answer) -> Answer:
        assert answer.status == status, (answer.status, answer.body[:500])
        return answer

    def _expect_or_collected(self, status: int, answer: Answer, blob: Key) -> None:
        if answer.status == 404 and time.time() - self.model.touched[blob] > self._grace:
            return
        self._expect(status, answer)


def may_be_collected(touched: float, grace: float) -> bool:
    """Whether the collector may have taken a blob that nothing refers to by now."""
    return time.time() - touched > grace - CLOCK_TICK
