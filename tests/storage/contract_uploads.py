"""Contract, part uploads: sessions, offsets, restarts, verification, concurrency."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.digest import HEX_LENGTHS
from mayfly.storage.errors import (
    BlobUnknown,
    DigestInvalid,
    NameInvalid,
    UploadOffset,
    UploadUnknown,
)
from mayfly.storage.interface import Store, Upload
from tests.support.images import all_succeed, push, read, together

NO_UPLOAD = UUID("6f1c9d0e-3b52-4c58-9a57-0d4b7f6e21aa")
"""An id that no upload has: always the same, since it is part of tests' names."""

NO_UPLOAD_IDS = (
    "",
    ".",
    "..",
    "../../x",
    "data",
    str(NO_UPLOAD),
    str(NO_UPLOAD).upper(),
    f"{{{NO_UPLOAD}}}",
    NO_UPLOAD.hex,
    f"{NO_UPLOAD}/data",
    f"{NO_UPLOAD}\0",
    "a" * 5000,
    "\udcff" * 36,
)


def other(algorithm: str) -> str:
    """A registered algorithm that is not this one."""
    return next(a for a in HEX_LENGTHS if a != algorithm)


def assert_ended(store: Store, repository: str, upload: Upload) -> None:
    """Nothing can be done with a session any more, and nobody finds it."""
    with pytest.raises(UploadUnknown):
        store.upload(repository, upload.id)
    with pytest.raises(UploadUnknown):
        _ = upload.offset
    with pytest.raises(UploadUnknown):
        upload.write([b"more"], 0)
    with pytest.raises(UploadUnknown):
        upload.commit(digests.of(b""))
    with pytest.raises(UploadUnknown):
        upload.cancel()


class UploadContract:
    """What `Store.begin_upload`, `Store.upload` and `Upload` promise."""

    @pytest.mark.parametrize("algorithm", HEX_LENGTHS)
    def test_blob_comes_back_as_it_was_sent(self, store: Store, algorithm: str) -> None:
        """Batches of several pieces make one blob, found under a digest of either algorithm."""
        upload = store.begin_upload("team/app", algorithm)
        assert upload.offset == 0
        upload.write([b"one ", b"two "], 0)
        upload.write([b"", b"three"], 8)
        assert upload.offset == 13
        digest = digests.of(b"one two three", algorithm)
        upload.commit(digest)
        assert read(store.blob("team/app", digest)) == b"one two three"
        assert_ended(store, "team/app", upload)

    @pytest.mark.parametrize("algorithm", HEX_LENGTHS)
    def test_empty_blob(self, store: Store, algorithm: str) -> None:
        """A blob of no bytes is a blob."""
        digest = push(store, "team/app", b"", algorithm)
        assert read(store.blob("team/app", digest)) == b""

    def test_id_is_a_uuid(self, store: Store) -> None:
        """The id is a UUID in its usual form, and each session has its own."""
        ids = {store.begin_upload("team/app", "sha256").id for _ in range(5)}
        assert len(ids) == 5
        assert {str(UUID(i)) for i in ids} == ids

    @pytest.mark.parametrize("algorithm", ["sha1", "md5", "SHA256", "", "sha256 ", "blake3"])
    def test_unsupported_algorithm(self, store: Store, algorithm: str) -> None:
        """A session cannot be hashed with an algorithm that is not registered."""
        with pytest.raises(DigestInvalid):
            store.begin_upload("team/app", algorithm)

    @pytest.mark.parametrize("name", ["", "A", "a/", "/a", "a//b", "../a", "a/../b", "a\0", "_a"])
    def test_bad_repository_name(self, store: Store, name: str) -> None:
        """A name outside the grammar never becomes a path."""
        with pytest.raises(NameInvalid):
            store.begin_upload(name, "sha256")
        with pytest.raises(NameInvalid):
            store.upload(name, str(NO_UPLOAD))

    @pytest.mark.parametrize("unknown", NO_UPLOAD_IDS)
    def test_unknown_id(self, store: Store, unknown: str) -> None:
        """What is no session's id is unknown, whatever it looks like."""
        store.begin_upload("team/app", "sha256")
        with pytest.raises(UploadUnknown):
            store.upload("team/app", unknown)

    def test_session_belongs_to_its_repository(self, store: Store) -> None:
        """A session of one repository is not found in another."""
        upload = store.begin_upload("team/app", "sha256")
        push(store, "team/other", b"makes the repository")
        with pytest.raises(UploadUnknown):
            store.upload("team/other", upload.id)
        assert store.upload("team/app", upload.id).id == upload.id

    @pytest.mark.parametrize("at", [0, 4, 6, 10**18])
    def test_wrong_offset_changes_nothing(self, store: Store, at: int) -> None:
        """Bytes for another offset are refused, told the right one, and the session continues."""
        upload = store.begin_upload("team/app", "sha256")
        upload.write([b"first"], 0)
        with pytest.raises(UploadOffset) as refused:
            upload.write([b"XXXX"], at)
        assert refused.value.offset == 5
        assert upload.offset == 5
        upload.write([b" last"], 5)
        digest = digests.of(b"first last")
        upload.commit(digest)
        assert read(store.blob("team/app", digest)) == b"first last"

    def test_two_writers_at_one_offset(self, store: Store) -> None:
        """Of writers at the same offset one continues, and no byte of another is mixed in."""
        upload = store.begin_upload("team/app", "sha256")
        pieces = [bytes([65 + n]) * 50_000 for n in range(6)]
        outcomes = together([lambda p=p: upload.write([p] * 3, 0) for p in pieces])
        assert outcomes.count(None) == 1
        refused = [o for o in outcomes if o is not None]
        assert all(isinstance(o, UploadOffset) and o.offset == 150_000 for o in refused)
        digest = digests.of(pieces[outcomes.index(None)] * 3)
        upload.commit(digest)
        assert store.blob("team/app", digest).size == 150_000

    @pytest.mark.parametrize("algorithm", HEX_LENGTHS)
    def test_wrong_digest_ends_the_session(self, store: Store, algorithm: str) -> None:
        """Bytes with another digest than announced are never a blob."""
        upload = store.begin_upload("team/app", algorithm)
        upload.write([b"right"], 0)
        wrong = digests.of(b"wrong", algorithm)
        with pytest.raises(DigestInvalid):
            upload.commit(wrong)
        assert_ended(store, "team/app", upload)
        for digest in (wrong, digests.of(b"right", algorithm)):
            with pytest.raises(BlobUnknown):
                store.blob("team/app", digest)

    @pytest.mark.parametrize("algorithm", HEX_LENGTHS)
    def test_commit_under_another_algorithm(self, store: Store, algorithm: str) -> None:
        """A digest of another algorithm than the session's is verified, and can be wrong too."""
        data = b"hashed twice"
        upload = store.begin_upload("team/app", other(algorithm))
        upload.write([data], 0)
        digest = digests.of(data, algorithm)
        upload.commit(digest)
        assert read(store.blob("team/app", digest)) == data
        upload = store.begin_upload("team/app", other(algorithm))
        upload.write([b"something else"], 0)
        with pytest.raises(DigestInvalid):
            upload.commit(digest)

    def test_cancel(self, store: Store) -> None:
        """A cancelled session is gone, bytes and all."""
        upload = store.begin_upload("team/app", "sha256")
        upload.write([b"never mind"], 0)
        upload.cancel()
        assert_ended(store, "team/app", upload)

    @pytest.mark.parametrize("algorithm", HEX_LENGTHS)
    def test_resume_after_a_restart(self, open_store: Any, algorithm: str) -> None:
        """Another instance on the same data continues where the first stopped."""
        upload = open_store().begin_upload("team/app", algorithm)
        upload.write([b"before "], 0)
        again = open_store()
        resumed = again.upload("team/app", upload.id)
        assert resumed.offset == 7
        with pytest.raises(UploadOffset):
            resumed.write([b"after"], 0)
        resumed.write([b"after"], 7)
        digest = digests.of(b"before after", algorithm)
        resumed.commit(digest)
        assert read(again.blob("team/app", digest)) == b"before after"

    def test_two_instances_in_turn(self, open_store: Any) -> None:
        """A session that two instances write to in turn is verified over all its bytes."""
        first, second = open_store(), open_store()
        here = first.begin_upload("team/app", "sha256")
        there = second.upload("team/app", here.id)
        here.write([b"a"], 0)
        there.write([b"b"], 1)
        here.write([b"c"], 2)
        here.commit(digests.of(b"abc"))
        assert read(second.blob("team/app", digests.of(b"abc"))) == b"abc"
        assert_ended(second, "team/app", there)

    def test_restart_does_not_trust_what_was_hashed(self, open_store: Any) -> None:
        """A resumed session whose bytes do not have the digest is refused like any other."""
        upload = open_store().begin_upload("team/app", "sha256")
        upload.write([b"evil"], 0)
        resumed = open_store().upload("team/app", upload.id)
        with pytest.raises(DigestInvalid):
            resumed.commit(digests.of(b"good"))

    def test_concurrent_commits_of_one_blob(self, store: Store) -> None:
        """The same layer pushed by many at once, also to other repositories, succeeds for all."""
        data = b"popular layer" * 1000
        names = [f"team/app{n % 3}" for n in range(9)]
        uploads = [store.begin_upload(name, "sha256") for name in names]
        for upload in uploads:
            upload.write([data], 0)
        digest = digests.of(data)
        all_succeed([lambda u=u: u.commit(digest) for u in uploads])
        for name in names:
            assert read(store.blob(name, digest)) == data

    def test_one_session_committed_twice_at_once(self, store: Store) -> None:
        """Of two commits of one session one publishes, the other finds it finished."""
        for number in range(10):
            data = b"%d" % number
            upload = store.begin_upload("team/app", "sha256")
            upload.write([data], 0)
            again = store.upload("team/app", upload.id)
            digest = digests.of(data)
            outcomes = together([partial(u.commit, digest) for u in (upload, again)])
            assert outcomes.count(None) == 1
            assert [type(o) for o in outcomes if o is not None] == [UploadUnknown]
            assert read(store.blob("team/app", digest)) == data

    def test_sessions_that_begin_and_end_at_once(self, store: Store) -> None:
        """Sessions ending in an otherwise empty repository never break one that begins."""

        def begin_and_end() -> None:
            for _ in range(25):
                upload = store.begin_upload("fresh/deep/name", "sha256")
                upload.write([b"x"], 0)
                upload.cancel()

        all_succeed([begin_and_end] * 6)
