"""Digests, repository names and tags: the grammars, by table and against naive models."""

from __future__ import annotations

import hashlib
import re
import string
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.storage import digest as digests
from mayfly.storage.digest import HEX_LENGTHS, Digest
from mayfly.storage.directory.layout import Layout
from mayfly.storage.errors import DigestInvalid, NameInvalid, TagInvalid, UploadUnknown
from mayfly.storage.reference import check_reference, check_repository, check_tag

SHA256 = "sha256:" + "0123456789abcdef" * 4
SHA512 = "sha512:" + "0123456789abcdef" * 8


@pytest.mark.parametrize("text", [SHA256, SHA512])
def test_digest_is_read_and_written(text: str) -> None:
    """A digest's text comes back as it was."""
    assert str(digests.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "sha256", "sha256:", SHA256[:-1], SHA256 + "0", SHA256.upper(), " " + SHA256,
        SHA256 + "\n", "SHA256:" + SHA256[7:], "sha256:" + "A" * 64, "sha256:" + "g" * 64,
        "sha256:" + "\u0660" * 64, "sha512:" + SHA256[7:], "sha256:" + SHA512[7:],
        "md5:" + "0" * 32,
        "sha384:" + "0" * 96, "sha256+b64:" + "0" * 64, "../" * 20 + SHA256,
        "sha256:../" + "0" * 61,
        "sha256:" + "\0" * 64, "\udcff:" + "0" * 64, "x" * 100_000,
    ],
)  # fmt: skip
def test_digest_refused(text: str) -> None:
    """What is not a digest of a registered algorithm is refused, in a message of a few lines."""
    with pytest.raises(DigestInvalid) as refused:
        digests.parse(text)
    assert len(refused.value.message) < 300


@given(st.text(max_size=150))
def test_digest_of_any_text(text: str) -> None:
    """Any text is a digest that reads back, or `DigestInvalid`."""
    try:
        assert str(digests.parse(text)) == text
    except DigestInvalid:
        assert not re.fullmatch("sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", text)


@pytest.mark.parametrize("algorithm", HEX_LENGTHS)
def test_digest_of_data(algorithm: str) -> None:
    """The digest of data is hashlib's."""
    made = digests.of(b"data", algorithm)
    assert made.hex == hashlib.new(algorithm, b"data").hexdigest()
    assert digests.parse(str(made)) == made


@pytest.mark.parametrize(
    "algorithm", ["", "sha1", "md5", "sha384", "SHA256", "shake_128", "x" * 999]
)
def test_hasher_of_an_unsupported_algorithm(algorithm: str) -> None:
    """hashlib knows more algorithms than a registry serves."""
    with pytest.raises(DigestInvalid):
        digests.hasher(algorithm)


def _is_name(text: str) -> bool:
    """The spec's expression, written out as it stands there."""
    component = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
    return len(text) <= 255 and bool(re.fullmatch(f"{component}(\\/{component})*", text))


@pytest.mark.parametrize(
    "name",
    ["a", "0", "a/b", "a--b", "a__b", "a.b_c-d", "library/ubuntu", "a" * 255, "a/" * 127 + "a"],
)
def test_repository_name(name: str) -> None:
    """Names of the grammar come back unchanged."""
    assert check_repository(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "a/", "/a", "a//b", "A", "a.", ".a", "..", "a/../b", "a/./b", "-a", "a-", "a___b",
        "a..b", "a._b", "_a", "a/_b", "a b", "a\n", "a\0b", "é", "a\\b", "a%2fb", "a:b", "a@b",
        "a" * 256, "\udcff", "\u0660",
    ],
)  # fmt: skip
def test_repository_name_refused(name: str) -> None:
    """Anything else is `NameInvalid`, in a message of a few lines."""
    with pytest.raises(NameInvalid) as refused:
        check_repository(name)
    assert len(refused.value.message) < 1200


@given(st.text(string.ascii_lowercase[:2] + "._-/0A", max_size=14))
def test_repository_name_is_the_spec_s(text: str) -> None:
    """The grammar is exactly the one of the distribution-spec."""
    try:
        assert check_repository(text) == text
        assert _is_name(text)
    except NameInvalid:
        assert not _is_name(text)


@pytest.mark.parametrize("part", ["a", "a-", "a--", "a_", "a__", "a.", "a/", "a/a-", "ab0_a-"])
def test_long_bad_names_are_refused_at_once(part: str) -> None:
    """No backtracking: a name of the greatest length with a bad end is refused in a moment."""
    name = (part * 255)[:254] + "!"
    began = time.process_time()
    for _ in range(100):
        with pytest.raises(NameInvalid):
            check_repository(name)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("tag", ["a", "A", "_", "0", "v1.2.3-rc_1", "a" * 128, "_.-"])
def test_tag(tag: str) -> None:
    """Tags of the grammar come back unchanged."""
    assert check_tag(tag) == tag


@pytest.mark.parametrize(
    "tag",
    ["", ".", "..", "-", ".a", "-a", "a" * 129, "a/b", "a:b", "a b", "a\n", "a\0", "é", "\udcff"],
)
def test_tag_refused(tag: str) -> None:
    """Anything else is `TagInvalid`."""
    with pytest.raises(TagInvalid) as refused:
        check_tag(tag)
    assert len(refused.value.message) < 1000


@given(st.text("aZ0_.-/:\n", max_size=8))
def test_tag_is_the_spec_s(text: str) -> None:
    """The grammar is exactly the one of the distribution-spec."""
    expected = bool(re.fullmatch(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", text))
    try:
        assert check_tag(text) == text
        assert expected
    except TagInvalid:
        assert not expected


@given(name=st.text(max_size=30), tag=st.text(max_size=10), upload=st.text(max_size=40))
def test_no_text_leads_out_of_the_root(
    tmp_path_factory: pytest.TempPathFactory, name: str, tag: str, upload: str
) -> None:
    """Whatever text is given, a path is below the root or is never made."""
    layout = Layout(tmp_path_factory.getbasetemp())
    for make in (
        lambda: layout.repository(name),
        lambda: layout.tag_link("a", tag),
        lambda: layout.upload("a", upload),
        lambda: layout.upload(name, upload),
    ):
        try:
            made = make()
        except (NameInvalid, TagInvalid, UploadUnknown):
            continue
        assert ".." not in made.parts
        assert made.is_relative_to(layout.repositories)


@pytest.mark.parametrize(
    "unchecked",
    [
        Digest("sha256", "../" * 21 + "x"),
        Digest("sha256", "a" * 63),
        Digest("../..", "a" * 64),
        Digest("md5", "a" * 32),
    ],
)
def test_layout_checks_digests_again(tmp_path: Path, unchecked: Digest) -> None:
    """A `Digest` made from unchecked parts makes no path either."""
    layout = Layout(tmp_path)
    for make in (
        lambda: layout.data(unchecked),
        lambda: layout.layer_link("a", unchecked),
        lambda: layout.revision_link("a", unchecked),
        lambda: layout.tag_history_link("a", "t", unchecked),
    ):
        with pytest.raises(DigestInvalid):
            make()


def test_a_reference_is_a_digest_if_it_has_a_colon() -> None:
    """Else a tag; outside the grammar of what it is, it has that one's error."""
    digest = f"sha256:{'0' * 64}"
    assert check_reference(digest) == digests.parse(digest)
    assert check_reference("v1") == "v1"
    with pytest.raises(DigestInvalid):
        check_reference("v1:2")
    with pytest.raises(TagInvalid):
        check_reference(".v1")
