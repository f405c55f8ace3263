"""Contract, part manifests: exact bytes, references, tags, deletes."""

from __future__ import annotations

from typing import Any

import pytest

from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.digest import HEX_LENGTHS
from mayfly.storage.errors import (
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestUnknown,
    NameInvalid,
    SizeInvalid,
    TagInvalid,
)
from mayfly.storage.interface import Store
from tests.support.images import (
    CONFIG_TYPE,
    FOREIGN_TYPE,
    all_succeed,
    descriptor,
    image_body,
    index_body,
    push,
    put,
    put_image,
    read,
)

REPO = "team/app"


def assert_no_manifest(store: Store, body: bytes, *tags: str) -> None:
    """Neither the manifest nor any of the tags is there."""
    with pytest.raises(ManifestUnknown):
        store.manifest(REPO, digests.of(body))
    for tag in tags:
        with pytest.raises(ManifestUnknown):
            store.tag(REPO, tag)


class ManifestContract:
    """What `put_manifest`, `manifest`, `tag` and the deletes promise."""

    @pytest.mark.parametrize("algorithm", HEX_LENGTHS)
    def test_exact_bytes_by_digest_and_tag(self, store: Store, algorithm: str) -> None:
        """The bytes come back exactly, and each tag remembers the digest it was pushed with."""
        push(store, REPO, b"{}")
        body = b" \n" + image_body() + b"\r\n"
        _, digest = put(store, REPO, body, "v1", "latest", algorithm=algorithm)
        assert read(store.manifest(REPO, digest)) == body
        assert [store.tag(REPO, tag) for tag in ("v1", "latest")] == [digest, digest]

    @pytest.mark.parametrize("docker", [False, True])
    def test_image_index_and_nested_index(self, store: Store, docker: bool) -> None:
        """Images, indexes of them and indexes of indexes, of both families."""
        push(store, REPO, b"{}")
        layer = b"layer"
        push(store, REPO, layer)
        image, _ = put(store, REPO, image_body(b"{}", [layer], docker=docker))
        index, _ = put(store, REPO, index_body([image], docker=docker))
        _, digest = put(store, REPO, index_body([index, image], docker=docker), "all")
        assert store.tag(REPO, "all") == digest

    def test_empty_index_and_image_without_layers(self, store: Store) -> None:
        """An index of nothing and an image of nothing but its config are manifests."""
        put_image(store, REPO, "image")
        put(store, REPO, index_body(), "index")
        assert store.tags(REPO) == ["image", "index"]

    @pytest.mark.parametrize("algorithm", HEX_LENGTHS)
    def test_wrong_digest(self, store: Store, algorithm: str) -> None:
        """A manifest under a digest that is not its own is refused, and nothing stays."""
        body = index_body()
        wrong = digests.of(b"other", algorithm)
        with pytest.raises(DigestInvalid):
            store.put_manifest(REPO, manifests.parse(body), wrong, ("v1",))
        assert_no_manifest(store, body, "v1")
        with pytest.raises(ManifestUnknown):
            store.manifest(REPO, wrong)

    def test_missing_references_are_named(self, store: Store) -> None:
        """Every blob that is missing is listed, and the tag stays where it was."""
        _, before = put_image(store, REPO, "v1")
        layers = [b"here", b"missing one", b"missing two"]
        push(store, REPO, layers[0])
        body = image_body(b"missing config", layers)
        with pytest.raises(ManifestBlobUnknown) as refused:
            put(store, REPO, body, "v1", "v2")
        missing = [b"missing config", *layers[1:]]
        assert refused.value.detail == [{"digest": str(digests.of(m))} for m in missing]
        assert_no_manifest(store, body, "v2")
        assert store.tag(REPO, "v1") == before

    def test_missing_child(self, store: Store) -> None:
        """An index that names a manifest the repository lacks is refused."""
        child, digest = put_image(store, "team/other")
        body = index_body([child])
        with pytest.raises(ManifestBlobUnknown) as refused:
            put(store, REPO, body, "v1")
        assert refused.value.detail == [{"digest": str(digest)}]
        assert_no_manifest(store, body, "v1")

    def test_child_that_is_only_a_blob(self, store: Store) -> None:
        """A manifest pushed as a blob is no child of an index."""
        push(store, REPO, b"{}")
        body = image_body()
        push(store, REPO, body)
        with pytest.raises(ManifestBlobUnknown):
            put(store, REPO, index_body([manifests.parse(body)]))

    def test_blob_of_another_repository_is_missing(self, store: Store) -> None:
        """References are looked for in the manifest's own repository only."""
        push(store, "team/other", b"{}")
        with pytest.raises(ManifestBlobUnknown):
            put(store, REPO, image_body(), "v1")

    @pytest.mark.parametrize("size", [0, 1, 3, 2**63 - 1])
    @pytest.mark.parametrize("allow_sparse", [False, True])
    def test_wrong_size(self, open_store: Any, size: int, allow_sparse: bool) -> None:
        """A size that is not the held content's is refused, also by a store that takes sparse."""
        store = open_store(allow_sparse=allow_sparse)
        push(store, REPO, b"{}")
        body = image_body(config=descriptor(b"{}", CONFIG_TYPE, size=size))
        with pytest.raises(SizeInvalid):
            put(store, REPO, body, "v1")
        assert_no_manifest(store, body, "v1")

    def test_wrong_size_of_a_child(self, store: Store) -> None:
        """The same for the manifests of an index."""
        child, _ = put_image(store, REPO)
        wrong = descriptor(child.body, child.media_type, size=len(child.body) + 1)
        with pytest.raises(SizeInvalid):
            put(store, REPO, index_body(manifests=[wrong]), "v1")

    def test_sparse(self, open_store: Any) -> None:
        """A store told to take sparse manifests takes images and indexes with missing content."""
        store = open_store(allow_sparse=True)
        image, image_digest = put(store, REPO, image_body(b"none", [b"absent"]), "image")
        absent = manifests.parse(image_body(b"not there"))
        _, index_digest = put(store, REPO, index_body([image, absent]), "index")
        assert store.tag(REPO, "image") == image_digest
        assert store.tag(REPO, "index") == index_digest

    @pytest.mark.parametrize(
        "layer",
        [
            descriptor(b"foreign", FOREIGN_TYPE),
            descriptor(b"foreign", "application/vnd.oci.image.layer.nondistributable.v1.tar"),
            descriptor(b"foreign", "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"),
            descriptor(b"foreign", urls=["https://example.com/layer"]),
        ],
    )
    def test_foreign_layers_need_not_be_held(self, store: Store, layer: dict[str, object]) -> None:
        """Layers that clients fetch elsewhere may be missing."""
        push(store, REPO, b"{}")
        _, digest = put(store, REPO, image_body(layers=[layer]), "windows")
        assert store.tag(REPO, "windows") == digest

    def test_subject_need_not_exist(self, store: Store) -> None:
        """A manifest may refer to a subject that comes later or never."""
        push(store, REPO, b"{}")
        _, digest = put(store, REPO, image_body(subject=descriptor(b"absent", CONFIG_TYPE)))
        assert store.manifest(REPO, digest).size > 0

    def test_put_again(self, store: Store) -> None:
        """The same manifest put again, with another tag, changes nothing else."""
        _, digest = put_image(store, REPO, "v1")
        assert put_image(store, REPO, "v2")[1] == digest
        assert put_image(store, REPO)[1] == digest
        assert store.tags(REPO) == ["v1", "v2"]

    def test_tag_moves(self, store: Store) -> None:
        """A tag points at what was pushed last; the older manifest stays by its digest."""
        _, old = put_image(store, REPO, "latest", config=b"{}")
        _, new = put_image(store, REPO, "latest", config=b"{ }")
        assert store.tag(REPO, "latest") == new
        assert store.manifest(REPO, old).size > 0
        _, back = put_image(store, REPO, "latest", config=b"{}")
        assert back == old
        assert store.tag(REPO, "latest") == old

    def test_manifest_is_only_in_its_repository(self, store: Store) -> None:
        """Neither digest nor tag reach into another repository."""
        _, digest = put_image(store, REPO, "v1")
        for name in ("team", "team/app/sub", "other"):
            with pytest.raises(ManifestUnknown):
                store.manifest(name, digest)
            with pytest.raises(ManifestUnknown):
                store.tag(name, "v1")

    @pytest.mark.parametrize("tag", ["", ".", "..", "-v", "a/b", "a" * 129, "v1\n", "é", "a:b"])
    def test_bad_tag(self, store: Store, tag: str) -> None:
        """Every method refuses a tag outside the grammar."""
        manifest, digest = put_image(store, REPO)
        with pytest.raises(TagInvalid):
            store.tag(REPO, tag)
        with pytest.raises(TagInvalid):
            store.delete_tag(REPO, tag)
        with pytest.raises(TagInvalid):
            store.put_manifest(REPO, manifest, digest, (tag,))

    def test_bad_repository_name(self, store: Store) -> None:
        """Every method refuses a repository name outside the grammar."""
        manifest, digest = put_image(store, REPO)
        for call in (
            lambda: store.manifest("../x", digest),
            lambda: store.tag("../x", "v1"),
            lambda: store.delete_manifest("../x", digest),
            lambda: store.delete_tag("../x", "v1"),
            lambda: store.put_manifest("../x", manifest, digest, ()),
        ):
            with pytest.raises(NameInvalid):
                call()

    def test_delete_tag(self, store: Store) -> None:
        """A deleted tag is gone at once; the manifest and its other tags stay."""
        _, digest = put_image(store, REPO, "v1", "v2")
        store.delete_tag(REPO, "v1")
        with pytest.raises(ManifestUnknown):
            store.tag(REPO, "v1")
        with pytest.raises(ManifestUnknown):
            store.delete_tag(REPO, "v1")
        assert store.tags(REPO) == ["v2"]
        assert store.tag(REPO, "v2") == digest
        assert store.manifest(REPO, digest).size > 0

    def test_delete_manifest_removes_its_tags(self, store: Store) -> None:
        """Deleting by digest removes every tag on it, none on others, and no blob."""
        _, kept = put_image(store, REPO, "keep", "moved", config=b"{ }")
        _, doomed = put_image(store, REPO, "a", "b", config=b"{}")
        put_image(store, REPO, "a", "moved", config=b"{}")
        put_image(store, REPO, "moved", config=b"{ }")
        store.delete_manifest(REPO, doomed)
        assert_no_manifest(store, image_body(b"{}"), "a", "b")
        assert store.tags(REPO) == ["keep", "moved"]
        assert store.tag(REPO, "moved") == kept
        assert read(store.blob(REPO, digests.of(b"{}"))) == b"{}"
        with pytest.raises(ManifestUnknown):
            store.delete_manifest(REPO, doomed)

    def test_delete_in_one_repository_only(self, store: Store) -> None:
        """The same manifest in another repository stays, with its tags."""
        _, digest = put_image(store, REPO, "v1")
        put_image(store, "team/copy", "v1")
        with pytest.raises(ManifestUnknown):
            store.delete_manifest("team/other", digest)
        store.delete_manifest(REPO, digest)
        assert store.tag("team/copy", "v1") == digest
        assert read(store.manifest("team/copy", digest)) == image_body()

    def test_push_again_after_delete(self, store: Store) -> None:
        """What was deleted can be pushed again, tags included."""
        for _ in range(3):
            _, digest = put_image(store, REPO, "v1")
            assert store.tag(REPO, "v1") == digest
            assert read(store.manifest(REPO, digest)) == image_body()
            store.delete_manifest(REPO, digest)

    def test_delete_is_seen_by_another_instance(self, open_store: Any) -> None:
        """Two instances on the same data see each other's tags and deletes."""
        first, second = open_store(), open_store()
        _, digest = put_image(first, REPO, "v1")
        assert second.tag(REPO, "v1") == digest
        second.delete_manifest(REPO, digest)
        assert_no_manifest(first, image_body(), "v1")

    def test_many_push_one_tag(self, store: Store) -> None:
        """Pushes of one tag at once leave it at one of them, with every manifest there."""
        bodies = [image_body(b"{}", annotations={"n": str(n)}) for n in range(8)]
        push(store, REPO, b"{}")
        all_succeed([lambda b=b: put(store, REPO, b, "latest") for b in bodies])
        assert store.tag(REPO, "latest") in {digests.of(b) for b in bodies}
        for body in bodies:
            assert read(store.manifest(REPO, digests.of(body))) == body

    def test_push_against_delete(self, store: Store) -> None:
        """Pushing and deleting one manifest at once ends in one of the two states, no mixture."""
        push(store, REPO, b"{}")
        body = image_body()
        digest = digests.of(body)
        for _ in range(12):
            put(store, REPO, body, "v1")
            all_succeed(
                [
                    lambda: put(store, REPO, body, "v1", "v2"),
                    lambda: store.delete_manifest(REPO, digest),
                ]
            )
            if store.tags(REPO):
                assert store.tags(REPO) == ["v1", "v2"]
                assert read(store.manifest(REPO, store.tag(REPO, "v1"))) == body
            else:
                assert_no_manifest(store, body, "v1", "v2")
