"""Contract, part listings: tags, the catalog and its pages, referrers."""

from __future__ import annotations

import random

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.errors import NameUnknown
from mayfly.storage.interface import Store
from mayfly.storage.manifest import OCI_INDEX, OCI_MANIFEST
from tests.support.images import (
    CONFIG_TYPE,
    descriptor,
    image_body,
    index_body,
    push,
    put,
    put_image,
    subject_of,
)

REPO = "team/app"
AWKWARD_NAMES = (
    "a", "a-b", "a--b", "a.b", "a/b", "a/b/c", "a/b-c", "a0", "a0/b", "a_b", "a__b", "ab",
    "a-b/c", "a.b/c", "b/a", "z/deep/er/still",
)  # fmt: skip


def _make(store: Store, names: tuple[str, ...] | list[str]) -> None:
    shuffled = list(names)
    random.Random(7).shuffle(shuffled)
    for name in shuffled:
        push(store, name, b"{}")


class ListingContract:
    """What `tags`, `repositories` and `referrers` promise."""

    def test_tags_are_in_lexical_order(self, store: Store) -> None:
        """By code point, not by number, length or case."""
        tags = ["v1.10", "v1.9", "B", "a", "_x", "0", "latest", "v1", "A.b-c"]
        put_image(store, REPO, *tags)
        assert store.tags(REPO) == sorted(tags)

    @pytest.mark.parametrize("name", ["no/such", "team", "team/app/sub", "tea"])
    def test_tags_of_an_unknown_repository(self, store: Store, name: str) -> None:
        """What the catalog does not list has no tags, be it the parent of a repository."""
        put_image(store, REPO, "v1")
        assert name not in store.repositories("", 100)
        with pytest.raises(NameUnknown):
            store.tags(name)

    def test_tags_of_an_upload_alone(self, store: Store) -> None:
        """A session that was only begun makes no repository."""
        store.begin_upload(REPO, "sha256")
        assert store.repositories("", 100) == []
        with pytest.raises(NameUnknown):
            store.tags(REPO)

    def test_repository_without_tags(self, store: Store) -> None:
        """A repository that holds blobs or untagged manifests has an empty list."""
        push(store, "blobs/only", b"x")
        put_image(store, "untagged")
        assert store.repositories("", 100) == ["blobs/only", "untagged"]
        assert store.tags("blobs/only") == []
        assert store.tags("untagged") == []

    def test_catalog_of_an_empty_store(self, store: Store) -> None:
        """No repositories yet."""
        assert store.repositories("", 100) == []

    def test_catalog_is_in_lexical_order_of_whole_names(self, store: Store) -> None:
        """``a-b`` comes before ``a/b``: whole names are compared, not directories."""
        _make(store, AWKWARD_NAMES)
        assert store.repositories("", 100) == sorted(AWKWARD_NAMES)

    def test_catalog_pages(self, store: Store) -> None:
        """Pages that each begin after the last name of the one before cover all, once."""
        _make(store, AWKWARD_NAMES)
        for limit in (1, 2, 3, 7):
            found: list[str] = []
            while page := store.repositories(found[-1] if found else "", limit):
                assert len(page) <= limit
                found += page
            assert found == sorted(AWKWARD_NAMES), limit

    def test_catalog_after_any_text(self, store: Store) -> None:
        """``after`` need not be a repository, nor a valid name."""
        _make(store, AWKWARD_NAMES)
        marks = ("", "/", "a/", "a/a", "a/b/", "a-", "aa", "z/deep/er", "zz", "~", "A", "é", "a\0")
        for mark in (*marks, *AWKWARD_NAMES):
            expected = sorted(n for n in AWKWARD_NAMES if n > mark)
            assert store.repositories(mark, 100) == expected, mark
            assert store.repositories(mark, 2) == expected[:2], mark

    def test_catalog_below_a_prefix(self, store: Store) -> None:
        """Only names that begin so, from wherever the page begins."""
        _make(store, AWKWARD_NAMES)
        for prefix in ("", "a", "a/", "a-", "a/b", "a/b/", "a-b", "z/deep/", "z/d", "b", "c", "~"):
            for mark in ("", "a", "a-b", "a/b", "a/b/c", "aa", "z", "zz"):
                names = (n for n in AWKWARD_NAMES if n > mark and n.startswith(prefix))
                expected = sorted(names)
                assert store.repositories(mark, 100, prefix) == expected, (prefix, mark)
                assert store.repositories(mark, 2, prefix) == expected[:2], (prefix, mark)

    def test_referrers_of_nothing(self, store: Store) -> None:
        """No referrers is an empty list, also in a repository that does not exist."""
        _, digest = put_image(store, REPO, "v1")
        assert list(store.referrers(REPO, digest)) == []
        assert list(store.referrers("no/such", digest)) == []
        assert list(store.referrers(REPO, digests.of(b"unknown", "sha512"))) == []

    def test_referrers_describe_each_manifest(self, store: Store) -> None:
        """Image, artifact and index, with artifact type and annotations, in order of digest."""
        image, digest = put_image(store, REPO, "v1")
        subject = subject_of(image)
        plain = put(store, REPO, image_body(subject=subject))
        artifact = put(
            store,
            REPO,
            image_body(
                subject=subject, artifactType="application/x.sbom", annotations={"by": "me"}
            ),
        )
        index = put(store, REPO, index_body([image], subject=subject, annotations={}))
        put(store, REPO, image_body(annotations={"not": "a referrer"}))
        expected = [
            {
                "mediaType": OCI_MANIFEST,
                "digest": str(plain[1]),
                "size": len(plain[0].body),
                "artifactType": CONFIG_TYPE,
            },
            {
                "mediaType": OCI_MANIFEST,
                "digest": str(artifact[1]),
                "size": len(artifact[0].body),
                "artifactType": "application/x.sbom",
                "annotations": {"by": "me"},
            },
            {"mediaType": OCI_INDEX, "digest": str(index[1]), "size": len(index[0].body)},
        ]
        assert list(store.referrers(REPO, digest)) == sorted(
            expected, key=lambda d: str(d["digest"])
        )

    def test_referrers_of_a_missing_subject(self, store: Store) -> None:
        """The subject itself need not be there."""
        push(store, REPO, b"{}")
        subject = descriptor(b"to come", OCI_MANIFEST, "sha512")
        _, digest = put(store, REPO, image_body(subject=subject))
        found = list(store.referrers(REPO, digests.of(b"to come", "sha512")))
        assert [d["digest"] for d in found] == [str(digest)]

    def test_referrers_follow_every_change_at_once(self, store: Store) -> None:
        """Each put and each delete shows in the very next list, however fast they come."""
        image, digest = put_image(store, REPO)
        dice = random.Random(11)
        bodies = [
            image_body(subject=subject_of(image), annotations={"n": str(n)}) for n in range(4)
        ]
        present: set[str] = set()
        for _ in range(40):
            body = dice.choice(bodies)
            name = str(digests.of(body))
            if name in present:
                store.delete_manifest(REPO, digests.of(body))
                present.remove(name)
            else:
                put(store, REPO, body)
                present.add(name)
            assert [d["digest"] for d in list(store.referrers(REPO, digest))] == sorted(present)

    def test_referrers_of_one_repository_only(self, store: Store) -> None:
        """A referrer pushed elsewhere is not listed, though the subject is in both."""
        image, digest = put_image(store, REPO)
        put_image(store, "team/copy")
        put(store, "team/copy", image_body(subject=subject_of(image)))
        assert list(store.referrers(REPO, digest)) == []
        assert len(list(store.referrers("team/copy", digest))) == 1

    def test_referrers_outlive_the_subject(self, store: Store) -> None:
        """Deleting the subject leaves its referrers, and so their list."""
        image, digest = put_image(store, REPO)
        _, referrer = put(store, REPO, image_body(subject=subject_of(image)))
        store.delete_manifest(REPO, digest)
        assert [d["digest"] for d in list(store.referrers(REPO, digest))] == [str(referrer)]
