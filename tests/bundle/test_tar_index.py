"""`tar_index`: every way to write a name or a size, links, and archives nobody should trust."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.storage.bundle import tar_index
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.tar_index import NOT_A_TAR, TarIndex
from tests.bundle.builders import hard_link, symlink, tar, tar_info, tar_of

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
GIB = 1024**3


def scan(data: bytes, repeatable: str = "") -> TarIndex:
    """Index a tar that is given as bytes."""
    descriptor = os.memfd_create("tar")
    try:
        os.write(descriptor, data)
        return tar_index.scan(descriptor, repeatable)
    finally:
        os.close(descriptor)


def content(data: bytes, name: str) -> bytes | None:
    """The bytes found under a name."""
    place = scan(data).locate(name)
    return None if place is None else data[place.offset : place.offset + place.size]


def sealed(header: bytes | bytearray) -> bytes:
    """A header with the right checksum."""
    header = bytearray(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def header(name: str = "file", size: bytes = b"00000000000\0", kind: bytes = b"0") -> bytes:
    """A POSIX header with any size field and type."""
    made = bytearray(tar_info(name).tobuf(tarfile.USTAR_FORMAT)[:512])
    made[124:136], made[156:157] = size, kind
    return sealed(made)


def refused(data: bytes, *words: str) -> None:
    """The tar is refused with a message that says all of this."""
    with pytest.raises(BundleInvalid) as caught:
        scan(data)
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("length", [1, 99, 100, 101, 140, 220])
def test_names_of_any_length(format: int, length: int) -> None:
    """Names that fit the header, its prefix, or need an extension."""
    name = "/".join(["d" * 60] * (length // 61) + ["x" * (length % 61 or 1)])
    data = tar({name: b"found", "next": b"after"}, format)
    assert content(data, name) == b"found"
    assert content(data, "next") == b"after"


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_very_long_names_and_targets(format: int) -> None:
    """Beyond what any header holds, of members and of links."""
    name = "deep/" * 900 + "file"
    data = tar_of((tar_info(name, b"bytes"), b"bytes"), hard_link("l" * 200, name), format=format)
    assert content(data, name) == b"bytes"
    assert content(data, "l" * 200) == b"bytes"


def test_too_much_to_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, their length, and the bytes of all of them have bounds."""
    refused(tar({"n" * 20_000: b""}), "name at byte", "too long")
    refused(tar_of(symlink("link", "t" * 20_000)), "name at byte", "too long")
    monkeypatch.setattr(tar_index, "_MAX_NAMES", 100)
    refused(tar({f"{number}" * 30: b"" for number in range(4)}), "100 bytes of names")
    monkeypatch.setattr(tar_index, "_MAX_MEMBERS", 2)
    refused(tar({"a": b"", "b": b"", "c": b""}), "more than 2 members")


@pytest.mark.parametrize("name", ["./file", "a/../file", "file", "././/file"])
def test_names_are_normalised(name: str) -> None:
    """However a tool spells a path inside the archive, it is one name."""
    assert content(tar({name: b"x"}), "file") == b"x"


def test_old_header_without_magic() -> None:
    """The format before POSIX: no magic, type NUL, a directory by its trailing slash."""
    made = bytearray(header("old", b"00000000003\0", b"\0"))
    made[257:265] = bytes(8)
    directory = bytearray(header("dir/", kind=b"\0"))
    index = scan(sealed(directory) + sealed(made) + b"abc" + bytes(509) + bytes(1024))
    assert index.members.keys() == {"old"}
    assert index.ended


def test_times_of_gnu_are_no_prefix() -> None:
    """Where POSIX has the first half of a long name, GNU tar keeps times in incremental dumps."""
    made = bytearray(header("name"))
    made[257:265] = b"ustar  \0"
    made[345:369] = b"14371203333\0" * 2
    assert scan(sealed(made) + bytes(1024)).members.keys() == {"name"}


def test_signed_checksum() -> None:
    """Old tars summed signed bytes; names outside ASCII show the difference."""
    made = bytearray(header("caf\u00e9"))
    made[148:156] = b" " * 8
    total = sum(byte if byte < 128 else byte - 256 for byte in made)
    made[148:156] = b"%06o\0 " % total
    assert scan(bytes(made) + bytes(1024)).members.keys() == {"caf\u00e9"}


def test_name_that_is_not_utf_8() -> None:
    """Any bytes are a name."""
    made = bytearray(header("x"))
    made[0:2] = b"\xff\xfe"
    assert len(scan(sealed(made) + bytes(1024)).members) == 1


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_sizes_beyond_octal(tmp_path: Path, format: Literal[1, 2]) -> None:
    """20 GiB in base 256 and in a pax record; the file is sparse and its body is never read."""
    path = tmp_path / "large.tar"
    with path.open("wb") as file:
        file.write(tar_info("large", size=20 * GIB).tobuf(format))
        body = file.tell()
        file.seek(20 * GIB, os.SEEK_CUR)
        file.write(tar({"small": b"after"}))
    with path.open("rb") as file:
        index = tar_index.scan(file.fileno())
    assert index.locate("large") == (body, 20 * GIB)
    assert index.locate("small") is not None
    assert path.stat().st_blocks * 512 < 1024**2


def test_pax_size_overrides_the_header() -> None:
    """A pax size is the member's, whatever the header says; of a global header, it is refused."""
    record = b"10 size=3\n"
    extension = header("pax", b"%011o\0" % len(record), b"x") + record + bytes(512 - len(record))
    data = extension + header("file", b"00000000777\0") + b"abc" + bytes(509) + bytes(1024)
    assert content(data, "file") == b"abc"
    globally = header("pax", b"%011o\0" % len(record), b"g") + record + bytes(512 - len(record))
    refused(globally + bytes(1024), "global", "byte 0")


def test_global_header_and_label_are_passed_over() -> None:
    """What git archive and GNU tar put in front does not disturb."""
    record = b"13 comment=x\n"
    extension = header("pax", b"%011o\0" % len(record), b"g") + record + bytes(512 - len(record))
    assert content(extension + header("label", kind=b"V") + tar({"a": b"b"}), "a") == b"b"


def test_links_inside() -> None:
    """Links of both kinds, of links too, as old docker archives have between their layers."""
    data = tar_of(
        (tar_info("one/layer.tar", b"layer"), b"layer"),
        symlink("two/layer.tar", "../one/layer.tar"),
        symlink("three/layer.tar", "../two/layer.tar"),
        hard_link("four/layer.tar", "one/layer.tar"),
        hard_link("five/layer.tar", "three/layer.tar"),
    )
    for name in ("one", "two", "three", "four", "five"):
        assert content(data, f"{name}/layer.tar") == b"layer"


def test_link_to_nothing() -> None:
    """A dangling link is an absent file."""
    assert content(tar_of(symlink("a", "b")), "a") is None


@pytest.mark.parametrize(
    "members",
    [
        [symlink("a", "/etc/passwd")],
        [symlink("a", "../../etc/passwd")],
        [symlink("a/b", "../../etc/passwd")],
        [hard_link("a", "/etc/passwd")],
        [hard_link("a/b", "../etc/passwd")],
    ],
    ids=lambda members: f"{members[0].name} to {members[0].linkname}",
)
def test_link_that_leads_outside(members: list[tarfile.TarInfo]) -> None:
    """Refused when it is looked at, naming the member."""
    index = scan(tar_of(*members))
    with pytest.raises(BundleInvalid, match=r"member 'a.* links outside"):
        index.locate(members[0].name)


@pytest.mark.parametrize(
    "members",
    [
        [symlink("a", "a")],
        [hard_link("a", "b"), hard_link("b", "a")],
        [symlink("a", "b"), hard_link("b", "c"), symlink("c", "a")],
    ],
    ids=["self", "hard", "mixed"],
)
def test_link_loop(members: list[tarfile.TarInfo]) -> None:
    """Circles end."""
    with pytest.raises(BundleInvalid, match="circles"):
        scan(tar_of(*members)).locate("a")


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "..", "//x"])
def test_name_that_leads_outside(name: str) -> None:
    """Absolute names and those that climb out are refused, be they of files or of links."""
    refused(header(name) + bytes(1024), "outside the archive", name)
    refused(header(name, kind=b"2") + bytes(1024), "outside the archive")


def test_devices_and_directories_are_no_files() -> None:
    """Devices, pipes and directories are passed over; what names them finds nothing."""
    kinds = {"chr": tarfile.CHRTYPE, "blk": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE}
    members = [tar_info(name, type=kind) for name, kind in kinds.items()]
    index = scan(tar_of(*members, tar_info("dir", type=tarfile.DIRTYPE), tar_info("file")))
    assert index.members.keys() == {"file"}


def extension(kind: bytes, body: bytes) -> bytes:
    """An extension header."""
    return header("ext", b"%011o\0" % len(body), kind) + body + bytes(-len(body) % 512)


def record(key: bytes, value: bytes) -> bytes:
    """A record of a pax header."""
    length = len(key) + len(value) + 3
    while len(b"%d" % (length + len(b"%d" % length))) != len(b"%d" % length):
        length += 1
    total = length + len(b"%d" % length)
    return b"%d %s=%s\n" % (total, key, value)


END = bytes(1024)
BODY = b"abc" + bytes(509)
THREE = b"00000000003\0"


@pytest.mark.parametrize(
    "data",
    [
        # libarchive takes a link's size for a body, Go, Python and GNU tar do not.
        header("link", b"00000001000\0", b"1") + tar({"seen": b"x"}),
        header("link", b"00000001000\0", b"2") + tar({"seen": b"x"}),
        extension(b"x", record(b"size", b"512")) + header("l", kind=b"1") + tar({"seen": b"x"}),
        # A directory for Go and Python if its type is NUL, a file for GNU tar.
        header("dir/", THREE, b"\0") + BODY + END,
        header("dir/", THREE) + BODY + END,
        extension(b"x", record(b"path", b"dir/")) + header("f", THREE, b"\0") + BODY + END,
        # Go passes over a global header; Python and GNU tar do not.
        extension(b"g", record(b"path", b"other")) + header("f", THREE) + BODY + END,
        extension(b"g", record(b"linkpath", b"other")) + header("f", kind=b"2") + END,
        # In Go the GNU name counts wherever it stands, in Python the first.
        extension(b"L", b"one\0") + extension(b"x", record(b"path", b"two")) + header() + END,
        extension(b"x", record(b"path", b"two")) + extension(b"L", b"one\0") + header() + END,
        extension(b"K", b"a\0") + extension(b"x", record(b"linkpath", b"b"))
        + header(kind=b"2") + END,
        # Go takes the last pax header alone, Python both.
        extension(b"x", record(b"size", b"3")) + extension(b"x", record(b"path", b"p"))
        + header() + BODY + END,
        # Python and GNU tar take the last of two records, others the first.
        extension(b"x", record(b"path", b"a") + record(b"path", b"b")) + header() + END,
        # Python keeps the NUL, C programs end there.
        extension(b"x", record(b"path", b"file\0.txt")) + header() + END,
        extension(b"x", record(b"linkpath", b"file\0.txt")) + header(kind=b"2") + END,
        # Go trims the NUL in front, Python ends there.
        header("f", b"\0\0\0\0\0\0\0\0\0\0\0003") + BODY + END,
        header("f", b"000000\x003\0\0\0\0") + BODY + END,
    ],
)  # fmt: skip
def test_what_readers_disagree_on(data: bytes) -> None:
    """Refused: a member could be shown to one reader of the bundle and hidden from another."""
    with pytest.raises(BundleInvalid):
        scan(data)


def test_empty_records_take_nothing_away() -> None:
    """An empty value stands for the member's own header (POSIX)."""
    data = extension(b"x", record(b"path", b"") + record(b"linkpath", b""))
    assert content(data + header("f", THREE) + BODY + END, "f") == b"abc"
    index = scan(data + tar_of(symlink("a", "b")))
    assert index.members["a"].target == "b"


def test_extensions_that_agree() -> None:
    """A name that is said twice, alike, is a name."""
    data = extension(b"L", b"one\0") + extension(b"x", record(b"path", b"one"))
    assert content(data + header("f", THREE) + BODY + END, "one") == b"abc"


@pytest.mark.parametrize("record", [b"22 GNU.sparse.major=1\n", b"22 GNU.sparse.size=99\n"])
def test_sparse_members(record: bytes) -> None:
    """Sparse members do not lie in the tar as they are; both ways to write them are refused."""
    refused(header("holes", kind=b"S") + bytes(1024), "holes", "sparse", "plain tar")
    extension = header("pax", b"%011o\0" % len(record), b"x") + record + bytes(512 - len(record))
    refused(extension + header() + bytes(1024), "sparse")


def test_volumes() -> None:
    """A part of an archive of several volumes is refused."""
    refused(header("rest", kind=b"M") + bytes(1024), "rest", "volume")


def test_twice_the_same_name() -> None:
    """Readers disagree on which counts, so it is refused, but for content named by digest."""
    twice = tar_of((tar_info("index.json", b"one"), b"one"), (tar_info("./index.json", b"2"), b"2"))
    refused(twice, "'index.json'", "twice", "bytes 512 and 1536")
    same = tar_of((tar_info("index.json", b"one"), b"one"), (tar_info("index.json", b"1"), b"1"))
    refused(same, "'index.json'", "twice")
    equal = tar_of(*[(tar_info("./index.json", b"one"), b"one")] * 3)
    assert content(equal, "index.json") == b"one"
    blobs = tar_of((tar_info("blobs/a", b"one"), b"one"), (tar_info("blobs/a", b"two"), b"two"))
    place = scan(blobs, "blobs/").locate("blobs/a")
    assert place is not None
    assert blobs[place.offset : place.offset + place.size] == b"two"


def test_every_cut_is_seen() -> None:
    """Cut at any byte, a tar is refused or has no end mark; a cut member is named."""
    data = tar({"first": b"a" * 700, "second": b"b" * 5, "third" * 40: b"c" * 1000})
    end = len(data.rstrip(b"\0"))
    for length in range(0, end, 7):
        try:
            index = scan(data[:length])
        except BundleInvalid as error:
            assert "byte" in error.message or (length < 512 and error.message == NOT_A_TAR)
        else:
            assert not index.ended
    refused(data[:900], "'first'", "700 bytes from byte 512", "ends at byte 900", "cut short")


def test_missing_end_mark() -> None:
    """Some tools write none; it is told apart, since a cut between two members looks the same."""
    whole = tar({"a": b"x"})
    assert scan(whole).ended
    assert not scan(whole[:1024]).ended
    assert scan(whole[:1024]).members.keys() == {"a"}
    assert not scan(b"").ended


def test_what_follows_the_end() -> None:
    """Two zero blocks end it, one alone is damage; a second archive would be served to nobody."""
    one, other = tar({"one": b"x"}), tar({"other": b"y"})
    for between in (b"", bytes(512), bytes(65536)):
        refused(one + between + other, f"another tar follows at byte {len(one + between)}")
    refused(bytes(1024) + other, "another tar follows at byte 1024")
    refused(bytes(512) + other, "empty header", "byte 0")
    for rest in (b"", bytes(10**6), b"garbage", b"garbage" * 1000, bytes(2 * 1024**2) + other):
        assert scan(one + rest).members.keys() == {"one"}


def test_damage_in_the_middle() -> None:
    """An overwritten header is an error with its place, not an early end as in `tarfile`."""
    data = bytearray(tar(dict.fromkeys("abcdef", b"x" * 1000)))
    data[3 * 1536 : 3 * 1536 + 512] = b"garbage!" * 64
    assert len(tarfile.open(fileobj=io.BytesIO(data)).getmembers()) == 3  # noqa: SIM115
    refused(bytes(data), "damaged", "byte 4608", "checksum")


@pytest.mark.parametrize("data", [b"PK\3\4" * 200, b"{}" * 600, b"\x7fELF" + bytes(2000)])
def test_no_tar_at_all(data: bytes) -> None:
    """Another kind of file is told to be no tar."""
    refused(data, "not a tar")


@pytest.mark.parametrize(
    "size",
    [b"-0000000001\0", b"0_000000010\0", b"0o000000010\0", b"0000000008x\0", b"\xff" * 12,
     b"\x80" + b"\xff" * 11, b"+0000000010\0", b"9999999999\0\0"],
)  # fmt: skip
def test_sizes_that_are_none(size: bytes) -> None:
    """Signs, underscores, other bases, negative and overflowing numbers."""
    refused(header("file", size) + bytes(1024), "size", "byte 0")


@pytest.mark.parametrize(
    "record",
    [b"99999999 size=1\n", b"0 size=1\n", b"-5 size=1\n", b"x", b"9 size=1x", b"7 size=",
     b"8 size\n\n", b"12 size=-100\n", b"12 size=1_00\n", b"34 size=99999999999999999999999999\n"],
)  # fmt: skip
def test_pax_records_that_are_none(record: bytes) -> None:
    """Lengths, keys and numbers that do not hold together."""
    extension = header("pax", b"%011o\0" % len(record), b"x") + record + bytes(512 - len(record))
    refused(extension + header() + bytes(1024), "pax header at byte 0")


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_huge_extension_is_not_read(kind: bytes) -> None:
    """A name of 8 GiB is refused before a byte of it is read."""
    refused(header("name", b"77777777777\0", kind) + bytes(1024), "bytes long")


def test_extension_that_is_cut() -> None:
    """The file ends inside a long name."""
    refused(header("name", b"00000001000\0", b"L") + b"part", "ends in the middle")


def test_too_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar of nothing but headers does not fill the memory."""
    monkeypatch.setattr(tar_index, "_MAX_MEMBERS", 10)
    refused(tar({str(n): b"" for n in range(11)}), "more than 10 members")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of every read that `os.pread` makes."""
    sizes: list[int] = []
    real: Callable[..., bytes] = os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        data = real(descriptor, size, offset)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", pread)
    return sizes


@pytest.mark.parametrize("size", [10_000, 2_000_000])
def test_reads_do_not_grow_with_the_bodies(tmp_path: Path, reads: list[int], size: int) -> None:
    """10,000 members, 100 MB and 20 GB of them: one read each, and the same number of reads."""
    path = tmp_path / "many.tar"
    step = 512 + -(-size // 512) * 512
    with path.open("wb") as file:
        for number in range(10_000):
            file.seek(number * step)
            file.write(header(f"blobs/sha256/{number:064x}", b"%011o\0" % size))
        file.truncate(10_000 * step + 1024)
    with path.open("rb") as file:
        index = tar_index.scan(file.fileno(), "blobs/")
    assert len(index.members) == 10_000
    assert index.ended
    assert len(reads) <= 10_002
    assert sum(reads) < 100_000_000


def test_small_members_share_reads(reads: list[int]) -> None:
    """Neighbours that lie within one window cost one read."""
    assert len(scan(tar({str(n): b"x" for n in range(800)})).members) == 800
    assert len(reads) < 130


NAMES = st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
    .map(lambda part: part[:120])
    .filter(lambda part: part not in (".", "..")),
    min_size=1,
    max_size=5,
).map("/".join)


@settings(deadline=None, max_examples=150)
@given(
    files=st.dictionaries(NAMES, st.binary(max_size=1500), max_size=8),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_agrees_with_tarfile(files: dict[str, bytes], format: int) -> None:
    """Whatever `tarfile` writes is found here, byte for byte."""
    data = tar(files, format)
    index = scan(data)
    assert index.ended
    for name, expected in files.items():
        place = index.locate(name)
        assert place is not None
        assert data[place.offset : place.offset + place.size] == expected


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_mutated_archives(data: Any) -> None:
    """Bytes changed anywhere give an index whose members lie in the file, or a clear refusal."""
    made = bytearray(
        tar_of(
            (tar_info("a" * 120, b"one"), b"one"),
            symlink("link", "a" * 120),
            (tar_info("b", b"x" * 600), b"x" * 600),
            format=data.draw(st.sampled_from(list(FORMATS.values())[1:])),
        )
    )
    for _ in range(data.draw(st.integers(1, 6))):
        made[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(0, 255))
    for start in range(0, len(made) - 512, 512):
        # Most mutations would end at the checksum: mend some.
        if data.draw(st.booleans()) and any(made[start : start + 512]):
            made[start : start + 512] = sealed(made[start : start + 512])
    try:
        index = scan(bytes(made))
        places = [index.locate(name) for name in index.members]
    except BundleInvalid:
        return
    for place in places:
        assert place is None or 0 <= place.offset <= place.offset + place.size <= len(made)


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=3000))
def test_any_bytes(data: bytes) -> None:
    """Nothing but `BundleInvalid` comes out of bytes that are no tar."""
    with contextlib.suppress(BundleInvalid):
        scan(data)
