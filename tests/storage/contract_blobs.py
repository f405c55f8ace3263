"""Contract, part blobs: isolation of repositories, mounts, deletes."""

from __future__ import annotations

from typing import Any

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.digest import HEX_LENGTHS
from mayfly.storage.errors import BlobUnknown, ManifestUnknown, NameInvalid
from mayfly.storage.interface import Store
from tests.support.images import all_succeed, push, put_image, read


class BlobContract:
    """What a store promises about blobs that are already there."""

    def test_unknown_blob(self, store: Store) -> None:
        """A blob never pushed is unknown, in a repository that exists and in one that does not."""
        push(store, "team/app", b"something")
        for name in ("team/app", "no/such"):
            with pytest.raises(BlobUnknown):
                store.blob(name, digests.of(b"nothing"))

    def test_blob_is_only_where_it_is_linked(self, store: Store) -> None:
        """Knowing a digest gives nobody a blob of another repository."""
        digest = push(store, "team/app", b"secret")
        for name in ("team", "team/app/sub", "team/other", "other"):
            with pytest.raises(BlobUnknown):
                store.blob(name, digest)

    def test_digests_of_two_algorithms_are_two_blobs(self, store: Store) -> None:
        """The same bytes are found only under the algorithm they were pushed with."""
        push(store, "team/app", b"bytes", "sha512")
        with pytest.raises(BlobUnknown):
            store.blob("team/app", digests.of(b"bytes", "sha256"))

    def test_manifest_is_not_a_blob_and_a_blob_no_manifest(self, store: Store) -> None:
        """A blob is not served as a manifest."""
        digest = push(store, "team/app", b"{}")
        with pytest.raises(ManifestUnknown):
            store.manifest("team/app", digest)

    @pytest.mark.parametrize("name", ["", "A", "..", "a/../b", "/etc", "a\0b", "a" * 300])
    def test_bad_names(self, store: Store, name: str) -> None:
        """Every method refuses a name outside the grammar."""
        digest = push(store, "team/app", b"x")
        for call in (
            lambda: store.blob(name, digest),
            lambda: store.delete_blob(name, digest),
            lambda: store.mount(name, digest, "team/app"),
            lambda: store.mount("team/app", digest, name),
            lambda: store.tags(name),
            lambda: list(store.referrers(name, digest)),
        ):
            with pytest.raises(NameInvalid):
                call()

    @pytest.mark.parametrize("algorithm", HEX_LENGTHS)
    def test_mount(self, store: Store, algorithm: str) -> None:
        """A mounted blob is readable where it was mounted, and only there."""
        digest = push(store, "team/app", b"shared", algorithm)
        store.mount("team/copy", digest, "team/app")
        assert read(store.blob("team/copy", digest)) == b"shared"
        store.mount("team/copy", digest, "team/app")
        with pytest.raises(BlobUnknown):
            store.blob("team/other", digest)

    def test_mount_from_a_repository_that_lacks_it(self, store: Store) -> None:
        """A mount from where the blob is not linked links nothing, even if others hold it."""
        digest = push(store, "team/app", b"secret")
        with pytest.raises(BlobUnknown):
            store.mount("thief", digest, "team/other")
        with pytest.raises(BlobUnknown):
            store.blob("thief", digest)
        assert "thief" not in store.repositories("", 100)

    def test_mounted_blob_outlives_its_source(self, store: Store) -> None:
        """Deleting the source's link leaves the mounted one."""
        digest = push(store, "team/app", b"shared")
        store.mount("team/copy", digest, "team/app")
        store.delete_blob("team/app", digest)
        assert read(store.blob("team/copy", digest)) == b"shared"
        with pytest.raises(BlobUnknown):
            store.blob("team/app", digest)

    def test_delete_takes_effect_at_once(self, store: Store) -> None:
        """The next read after a delete finds nothing, and another delete neither."""
        digest = push(store, "team/app", b"short-lived")
        store.delete_blob("team/app", digest)
        with pytest.raises(BlobUnknown):
            store.blob("team/app", digest)
        with pytest.raises(BlobUnknown):
            store.delete_blob("team/app", digest)

    def test_delete_of_what_is_linked_elsewhere(self, store: Store) -> None:
        """A repository can only delete what is linked in itself."""
        digest = push(store, "team/app", b"mine")
        with pytest.raises(BlobUnknown):
            store.delete_blob("team/other", digest)
        assert read(store.blob("team/app", digest)) == b"mine"

    def test_push_again_after_delete(self, store: Store) -> None:
        """A deleted blob can be pushed and read again."""
        for _ in range(3):
            digest = push(store, "team/app", b"again")
            assert read(store.blob("team/app", digest)) == b"again"
            store.delete_blob("team/app", digest)

    def test_delete_is_seen_by_another_instance(self, open_store: Any) -> None:
        """Two instances on the same data see each other's pushes and deletes."""
        first, second = open_store(), open_store()
        digest = push(first, "team/app", b"seen")
        assert read(second.blob("team/app", digest)) == b"seen"
        second.delete_blob("team/app", digest)
        with pytest.raises(BlobUnknown):
            first.blob("team/app", digest)

    def test_repositories_with(self, store: Store) -> None:
        """The repositories that link a blob, and no others."""
        digest = push(store, "team/app", b"held")
        store.mount("team/copy", digest, "team/app")
        push(store, "team/other", b"something else")
        put_image(store, "images", "latest")
        assert sorted(store.repositories_with(digest)) == ["team/app", "team/copy"]
        store.delete_blob("team/app", digest)
        assert list(store.repositories_with(digest)) == ["team/copy"]

    def test_hold(self, store: Store) -> None:
        """To hold a blob is to find it, where it is linked and nowhere else."""
        digest = push(store, "team/app", b"held")
        assert store.touch("team/app", digest) == store.blob("team/app", digest)
        for name, wanted in (("team/other", digest), ("team/app", digests.of(b"absent"))):
            with pytest.raises(BlobUnknown):
                store.touch(name, wanted)
        with pytest.raises(NameInvalid):
            store.touch("../x", digest)

    def test_repositories_with_unknown_content(self, store: Store) -> None:
        """A blob that nobody links has none."""
        assert list(store.repositories_with(digests.of(b"nothing"))) == []
        digest = push(store, "team/app", b"gone")
        store.delete_blob("team/app", digest)
        assert list(store.repositories_with(digest)) == []

    def test_push_while_others_delete(self, store: Store) -> None:
        """A push that ended after the last delete is there, whatever was deleted meanwhile."""

        def push_and_delete(number: int) -> None:
            for turn in range(15):
                digest = push(store, "busy/repo", b"%d %d" % (number, turn))
                assert store.blob("busy/repo", digest).size > 0
                store.delete_blob("busy/repo", digest)
            push(store, "busy/repo", b"last %d" % number)

        all_succeed([lambda n=n: push_and_delete(n) for n in range(6)])
        for number in range(6):
            data = b"last %d" % number
            assert read(store.blob("busy/repo", digests.of(data))) == data
