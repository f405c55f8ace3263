"""The archive that is written in any order, and continues after an interruption."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.storage.bundle import writer
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.writer import ArchiveLayout, Draft, check_space, lay_out
from mayfly.storage.digest import Digest, of
from mayfly.storage.errors import StorageFull
from mayfly.storage.files import try_lock

BLOBS = {of(data): data for data in (b"", b"a", b"b" * 512, b"c" * 100_000)}
DOCUMENTS = {of(b"{}"): b"{}"}


def _layout(blobs: dict[Digest, bytes] | None = None) -> ArchiveLayout:
    chosen = BLOBS if blobs is None else blobs
    return lay_out(b'{"manifests": []}', DOCUMENTS, [(d, len(b)) for d, b in chosen.items()])


def _fill(draft: Draft, digest: Digest, data: bytes, step: int = 1000) -> None:
    for at in range(draft.have(digest), len(data), step):
        draft.write(digest, at, data[at : at + step])
    draft.complete(digest)


def _write(output: Path, order: list[Digest]) -> str:
    with Draft(output, _layout()) as draft:
        for digest in order:
            _fill(draft, digest, BLOBS[digest])
        draft.publish()
    return hashlib.sha256(output.read_bytes()).hexdigest()


def test_any_order_gives_the_same_readable_file(tmp_path: Path) -> None:
    """Two orders of arrival give the same bytes, which tarfile reads."""
    first = _write(tmp_path / "one.tar", list(BLOBS))
    second = _write(tmp_path / "two.tar", list(reversed(BLOBS)))
    assert first == second
    with tarfile.open(tmp_path / "one.tar") as archive:
        names = archive.getnames()
        assert names[:2] == ["oci-layout", "index.json"]
        for digest, data in (BLOBS | DOCUMENTS).items():
            member = archive.extractfile(f"blobs/sha256/{digest.hex}")
            assert member is not None
            assert member.read() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.tar", "two.tar"]
    assert (tmp_path / "one.tar").stat().st_size % 10240 == 0


def test_space_that_an_earlier_run_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts for the same archive only: of another one the file stays until it is copied."""
    output, digest = tmp_path / "up.tar", of(b"c" * 100_000)
    with Draft(output, _layout()) as draft:
        _fill(draft, digest, BLOBS[digest])
    taken = (tmp_path / ".up.tar.partial").stat().st_blocks * 512
    assert taken >= 100_000
    same, other = _layout(), _layout(BLOBS | {of(b"d"): b"d"})
    for layout, free, is_enough in (
        (same, same.size - taken, True),
        (other, other.size - taken, False),
        (other, other.size, True),
    ):
        blocks = SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=2**40)
        with monkeypatch.context() as patched:
            patched.setattr("os.statvfs", lambda _, blocks=blocks: blocks)
            if is_enough:
                check_space([(output, layout)])
            else:
                with pytest.raises(StorageFull, match="nothing was fetched"):
                    check_space([(output, layout)])


def test_a_blob_larger_than_eight_gibibytes_has_a_place() -> None:
    """A header of the pax format carries sizes that the old one cannot."""
    big = of(b"big")
    layout = lay_out(b"{}", {}, [(big, 9 * 2**30)])
    assert layout.size > 9 * 2**30
    assert layout.blobs[big].at % 512 == 0


def test_an_interrupted_archive_goes_on(tmp_path: Path) -> None:
    """What has arrived is not asked for again; the name appears only at the end."""
    output = tmp_path / "up.tar"
    finished, begun = of(b"b" * 512), of(b"c" * 100_000)
    with Draft(output, _layout()) as draft:
        _fill(draft, finished, BLOBS[finished])
        draft.write(begun, 0, BLOBS[begun][:5000])
    assert not output.exists()
    with Draft(output, _layout()) as draft:
        assert draft.check(finished)
        assert draft.have(begun) < len(BLOBS[begun])
        for digest, data in BLOBS.items():
            if not draft.is_complete(digest):
                _fill(draft, digest, data)
        draft.publish()
    assert output.read_bytes() == _expected(tmp_path)


def _expected(tmp_path: Path) -> bytes:
    _write(tmp_path / "expected.tar", list(BLOBS))
    return (tmp_path / "expected.tar").read_bytes()


def test_progress_of_a_large_blob_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob that was cut resumes where the last note says."""
    monkeypatch.setattr(writer, "_NOTE_EVERY", 10_000)
    output = tmp_path / "up.tar"
    begun = of(b"c" * 100_000)
    with Draft(output, _layout()) as draft:
        for at in range(0, 35_000, 1000):
            draft.write(begun, at, BLOBS[begun][at : at + 1000])
    with Draft(output, _layout()) as draft:
        assert draft.have(begun) == 30_000
        assert b"".join(draft.read(begun, 30_000)) == BLOBS[begun][:30_000]


def test_another_list_keeps_the_blobs_that_both_need(tmp_path: Path) -> None:
    """Finished blobs move to their new places; the rest of the old file goes."""
    output = tmp_path / "up.tar"
    kept, dropped = of(b"c" * 100_000), of(b"b" * 512)
    with Draft(output, _layout()) as draft:
        _fill(draft, kept, BLOBS[kept])
        _fill(draft, dropped, BLOBS[dropped])
    with Draft(output, _layout({kept: BLOBS[kept]})) as draft:
        assert draft.is_complete(kept)
        draft.publish()
    with tarfile.open(output) as archive:
        member = archive.extractfile(f"blobs/sha256/{kept.hex}")
        assert member is not None
        assert member.read() == BLOBS[kept]
    assert [path.name for path in tmp_path.iterdir()] == ["up.tar"]


def test_finished_blobs_are_hashed_again(tmp_path: Path) -> None:
    """Nothing was synced: a stick that was pulled out may have holes the journal calls finished."""
    output = tmp_path / "up.tar"
    good, bad = of(b"c" * 100_000), of(b"b" * 512)
    layout = _layout()
    with Draft(output, layout) as draft:
        _fill(draft, good, BLOBS[good])
        _fill(draft, bad, BLOBS[bad])
    with (tmp_path / ".up.tar.partial").open("r+b") as file:
        file.seek(layout.blobs[bad].at)
        file.write(bytes(512))
    with Draft(output, layout) as draft:
        assert not draft.is_complete(good)
        assert draft.check(good)
        assert draft.is_complete(good)
        assert not draft.check(bad)
        assert draft.have(bad) == 0


def test_one_process_writes_an_archive(tmp_path: Path) -> None:
    """A second one is refused with a sentence, and disturbs nothing."""
    output = tmp_path / "up.tar"
    with Draft(output, _layout()), pytest.raises(BundleInvalid, match="another mayfly"):
        Draft(output, _layout())
    with Draft(output, _layout()):
        pass


def test_a_lock_that_was_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that opened it before another one published takes the new one."""
    output, lock = tmp_path / "up.tar", tmp_path / ".up.tar.partial.lock"
    removed: list[int] = []

    def late(descriptor: int) -> bool:
        if not removed:
            removed.append(descriptor)
            lock.unlink()
        return try_lock(descriptor)

    monkeypatch.setattr(writer, "try_lock", late)
    with Draft(output, _layout()), pytest.raises(BundleInvalid, match="another mayfly"):
        Draft(output, _layout())
    assert removed


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_journal_cut_anywhere_is_read(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A kill in the middle of a line loses that line at most, never a wrong claim."""
    tmp_path = tmp_path_factory.mktemp("cut")
    output = tmp_path / "up.tar"
    with Draft(output, _layout()) as draft:
        for digest, content in BLOBS.items():
            _fill(draft, digest, content)
    journal = tmp_path / ".up.tar.partial.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with Draft(output, _layout()) as draft:
        for digest, content in BLOBS.items():
            if draft.have(digest) == len(content):
                assert draft.check(digest)
            else:
                _fill(draft, digest, content)
        draft.publish()
    with tarfile.open(output) as archive:
        assert len(archive.getnames()) == 3 + len(BLOBS)
