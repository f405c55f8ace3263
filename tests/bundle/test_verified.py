"""`verified`: content is proven once, and what is not right is refused for good."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage.bundle import verified
from mayfly.storage.bundle.errors import BundleChanged, BundleInvalid
from mayfly.storage.bundle.files import read as read_small
from mayfly.storage.bundle.verified import (
    FILE_NAME,
    BundleFault,
    Piece,
    PieceProof,
    Problem,
    Proofs,
)
from mayfly.storage.digest import Digest
from mayfly.storage.errors import ContentCorrupt, Interrupted
from mayfly.storage.files import stamp_of
from tests.bundle.builders import proof_of

DATA = b"before" + b"content" * 100_000 + b"after"
CONTENT = DATA[6:-5]
DIGEST = digests.of(CONTENT)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file in which the content lies somewhere."""
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def piece(file: Path) -> Piece:
    """The content's place."""
    return Piece(file, 6, len(CONTENT), stamp_of(file.stat()))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Piece]:
    """Every piece that is read to be hashed."""
    found: list[Piece] = []
    real: Callable[..., Digest] = verified._hash

    def count(piece: Piece, *rest: object) -> Digest:
        found.append(piece)
        return real(piece, *rest)

    monkeypatch.setattr(verified, "_hash", count)
    return found


def holds(proof: PieceProof, path: Path) -> bool:
    """Whether it holds for a sender that opened this file."""
    with path.open("rb") as opened:
        return proof.of(opened.fileno()).holds


def test_proven_once(piece: Piece, file: Path, state: Path, hashed: list[Piece]) -> None:
    """Before the first proof it does not hold, afterwards it does, also after a restart."""
    proof = proof_of(Proofs(state).extent(piece, DIGEST, "b.tar"))
    assert not holds(proof, file)
    proof.establish()
    assert holds(proof, file)
    again = proof_of(Proofs(state).extent(piece, DIGEST, "b.tar"))
    assert holds(again, file)
    assert len(hashed) == 1


def test_written_to_through_a_mapping(piece: Piece, file: Path, state: Path) -> None:
    """What was mapped and written to before the proof shows when it is written to after it."""
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped[100:101] = mapped[100:101]  # from now on this page can be written to unnoticed
        piece = piece._replace(stamp=stamp_of(file.stat()))
        proof = proof_of(Proofs(state).extent(piece, DIGEST, "b.tar"))
        proof.establish()
        assert holds(proof, file)
        mapped[100:101] = b"!"
        with pytest.raises(BundleChanged):
            holds(proof, file)


def test_changed_just_now(file: Path) -> None:
    """A file that changed just now is proven once a further change has another time.

    Kernels before 6.13 give all changes within one step of their clock the same time.
    """
    file.write_bytes(b"new")
    stamp = stamp_of(file.stat())
    small = Piece(file, 0, 3, stamp)
    proof_of(Proofs(None).extent(small, digests.of(b"new"), "b.tar")).establish()
    assert time.time_ns() - stamp.ctime_ns >= verified._CLOCK_STEP_NS


def test_equal_proofs(piece: Piece, state: Path) -> None:
    """Two requests for the same content have equal proofs, so that one hashing serves both."""
    proofs = Proofs(state)
    one, other = (proof_of(proofs.extent(piece, DIGEST, "b.tar")) for _ in range(2))
    assert one == other
    assert len({one, other}) == 1
    assert one != proof_of(proofs.extent(piece, digests.of(CONTENT, "sha512"), "b.tar"))
    assert one != proof_of(proofs.extent(piece._replace(offset=7), DIGEST, "b.tar"))


def test_another_algorithm_is_another_proof(piece: Piece, file: Path, state: Path) -> None:
    """What is proven for one digest says nothing of another."""
    proofs = Proofs(state)
    proof_of(proofs.extent(piece, DIGEST, "b.tar")).establish()
    sha512 = proof_of(proofs.extent(piece, digests.of(CONTENT, "sha512"), "b.tar"))
    assert not holds(sha512, file)
    sha512.establish()
    assert holds(proof_of(Proofs(state).extent(piece, sha512.digest, "b.tar")), file)


def test_corrupt_content(piece: Piece, file: Path, state: Path, hashed: list[Piece]) -> None:
    """Found out once, refused from then on, told of once; a restart looks again."""
    proofs = Proofs(state)
    told: list[BundleFault] = []
    proofs.on_fault = told.append
    wrong = digests.of(b"something else")
    proof = proof_of(proofs.extent(piece, wrong, "b.tar"))
    with pytest.raises(ContentCorrupt, match=str(wrong)):
        proof.establish()
    assert not holds(proof, file)
    with pytest.raises(ContentCorrupt):
        proofs.extent(piece, wrong, "b.tar")
    end = len(CONTENT) + 5
    assert told == [
        BundleFault(wrong, "b.tar", Problem.DIGEST_MISMATCH, str(file.resolve()), 6, end)
    ]
    assert str(proof) == f"{wrong}, bytes 6 to {len(CONTENT) + 5} of {file}"
    assert len(hashed) == 1
    proof_of(Proofs(state).extent(piece, wrong, "b.tar"))
    assert proofs.extent(piece, DIGEST, "b.tar").size == len(CONTENT)


def test_file_written_to(piece: Piece, file: Path, state: Path) -> None:
    """A file with another mtime or size is not the one that was proven."""
    proofs = Proofs(state)
    proof = proof_of(proofs.extent(piece, DIGEST, "b.tar"))
    proof.establish()
    os.utime(file, ns=(0, piece.stamp.mtime_ns + 1))
    told: list[BundleFault] = []
    proofs.on_fault = told.append
    with pytest.raises(BundleChanged):
        holds(proof, file)
    with pytest.raises(BundleChanged):
        proof.establish()
    assert [(fault.digest, fault.bundle) for fault in told] == [(DIGEST, "b.tar")]
    fresh = piece._replace(stamp=stamp_of(file.stat()))
    assert not holds(proof_of(proofs.extent(fresh, DIGEST, "b.tar")), file)


def overwrite_and_set_the_time_back(file: Path, data: bytes) -> None:
    """Leave what ``rsync --inplace --times``, or an attacker, leaves."""
    before = file.stat()
    # The change time ticks every few milliseconds only.
    while True:
        with file.open("r+b") as opened:
            opened.write(data)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        if file.stat().st_ctime_ns != before.st_ctime_ns:
            return


def test_overwritten_with_its_time_set_back(piece: Piece, file: Path, state: Path) -> None:
    """Neither this server nor the next one takes the old proof for the new bytes."""
    proofs = Proofs(state)
    proof = proof_of(proofs.extent(piece, DIGEST, "b.tar"))
    proof.establish()
    assert holds(proof, file)
    overwrite_and_set_the_time_back(file, DATA[::-1])
    assert not holds(proof, file)
    for after in (proofs, Proofs(state)):
        now = piece._replace(stamp=stamp_of(file.stat()))
        again = proof_of(after.extent(now, DIGEST, "b.tar"))
        assert not holds(again, file)
        with pytest.raises(ContentCorrupt):
            again.establish()


@pytest.mark.parametrize("touch", ["chmod", "link", "rename"])
def test_change_time_alone(piece: Piece, file: Path, state: Path, touch: str) -> None:
    """What leaves the content as it is costs hashing it again, and refuses nothing."""
    proofs = Proofs(state)
    proof = proof_of(proofs.extent(piece, DIGEST, "b.tar"))
    proof.establish()
    while file.stat().st_ctime_ns == piece.stamp.ctime_ns:
        if touch == "chmod":
            file.chmod(0o640)
        elif touch == "link":
            (file.parent / "other").unlink(missing_ok=True)
            (file.parent / "other").hardlink_to(file)
        else:
            file.rename(file.parent / "other")
            (file.parent / "other").rename(file)
    assert not holds(proof, file)
    with file.open("rb") as opened:
        again = proof.of(opened.fileno())
    again.establish()
    assert holds(proof, file)


def test_file_written_to_while_it_is_hashed(
    piece: Piece, file: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proof of bytes that changed on the way is none."""
    real: Callable[..., int] = os.preadv

    def preadv(descriptor: int, *rest: object) -> int:
        os.utime(file, ns=(0, piece.stamp.mtime_ns + 1))
        return real(descriptor, *rest)

    monkeypatch.setattr(os, "preadv", preadv)
    proof = proof_of(Proofs(state).extent(piece, DIGEST, "b.tar"))
    with pytest.raises(BundleChanged):
        proof.establish()
    assert not (state / FILE_NAME).exists()


def test_small_file_changed_before_it_is_read(piece: Piece, file: Path) -> None:
    """Documents and manifests are read as they were found, or not at all."""
    assert read_small(piece, "document") == CONTENT
    file.write_bytes(DATA[::-1])
    os.utime(file, ns=(0, piece.stamp.mtime_ns + 1))
    with pytest.raises(BundleChanged):
        read_small(piece, "document")
    with pytest.raises(BundleInvalid, match="bytes long, at most 10 are read"):
        read_small(piece, "document", 10)


def test_replaced_file(piece: Piece, file: Path, state: Path) -> None:
    """Another file under the same path, equal in size and time, is another file."""
    proof = proof_of(Proofs(state).extent(piece, DIGEST, "b.tar"))
    proof.establish()
    file.rename(file.with_name("old"))
    file.write_bytes(DATA[::-1])
    os.utime(file, ns=(0, piece.stamp.mtime_ns))
    with pytest.raises(BundleChanged):
        holds(proof, file)


def test_file_shorter_than_the_piece(piece: Piece, state: Path) -> None:
    """Hashing ends with the file."""
    proof = proof_of(Proofs(state).extent(piece._replace(size=10**12), DIGEST, "b.tar"))
    with pytest.raises(ContentCorrupt):
        proof.establish()


def test_empty_content(tmp_path: Path, state: Path) -> None:
    """Zero bytes have a digest too."""
    path = tmp_path / "empty"
    path.touch()
    piece = Piece(path, 0, 0, stamp_of(path.stat()))
    proof = proof_of(Proofs(state).extent(piece, digests.of(b""), "b.tar"))
    proof.establish()
    assert holds(proof, path)
    with pytest.raises(ContentCorrupt):
        Proofs(state).extent(piece, DIGEST, "b.tar")


def test_damaged_file_of_proofs(piece: Piece, file: Path, state: Path) -> None:
    """Lines that were cut or are no lines are passed over; the others count."""
    proof = proof_of(Proofs(state).extent(piece, DIGEST, "b.tar"))
    proof.establish()
    kept = (state / FILE_NAME).read_bytes()
    for damage in (b"", kept[:-20], b"\xff\0\n", b"1 2 3\n", b"a b c d e f g h\n", kept * 2):
        (state / FILE_NAME).write_bytes(damage + kept)
        assert holds(proof_of(Proofs(state).extent(piece, DIGEST, "b.tar")), file), damage
    (state / FILE_NAME).write_bytes(kept[:-20])
    assert not holds(proof_of(Proofs(state).extent(piece, DIGEST, "b.tar")), file)


def test_file_of_proofs_does_not_grow_for_ever(
    piece: Piece, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too large, it is begun anew; what was in it is hashed again."""
    proof_of(Proofs(state).extent(piece, DIGEST, "b.tar")).establish()
    monkeypatch.setattr(verified, "_MAX_FILE_SIZE", 10)
    proof = proof_of(Proofs(state).extent(piece, DIGEST, "b.tar"))
    assert not holds(proof, piece.path)
    proof.establish()
    assert (state / FILE_NAME).stat().st_size < 300


def test_state_that_cannot_be_written(piece: Piece, file: Path, state: Path) -> None:
    """A full or lost state directory costs hashing again, and nothing else."""
    proof = proof_of(Proofs(state).extent(piece, DIGEST, "b.tar"))
    state.rmdir()
    proof.establish()
    assert holds(proof, file)


def test_many_threads(piece: Piece, file: Path, state: Path) -> None:
    """Lines of several threads do not mix."""
    proofs = Proofs(state)
    pieces = [piece._replace(size=size) for size in range(200)]
    found = [digests.of(CONTENT[: one.size]) for one in pieces]

    def prove(part: int) -> None:
        for number in range(part, 200, 8):
            proof_of(proofs.extent(pieces[number], found[number], "b.tar")).establish()

    threads = [threading.Thread(target=prove, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = Proofs(state)
    for one, digest in zip(pieces, found, strict=True):
        assert holds(proof_of(again.extent(one, digest, "b.tar")), file)


def test_interrupted(piece: Piece, file: Path, state: Path) -> None:
    """A server that stops does not wait until a large layer is hashed; nothing is proven by it."""
    proofs = Proofs(state)
    proof = proof_of(proofs.extent(piece, DIGEST, "b.tar"))
    read = 0

    def progress(count: int) -> None:
        nonlocal read
        read += count
        proofs.interrupt()

    large = piece._replace(offset=0, size=10**9)
    os.truncate(file, 10**9)
    large = large._replace(stamp=stamp_of(file.stat()))
    with pytest.raises(Interrupted):
        proofs.measure(large, progress=progress)
    assert read < 10**8
    with pytest.raises(Interrupted):
        proof.establish()
    assert proofs.measured(large) is None


def test_state_is_private(state: Path, piece: Piece) -> None:
    """What it says is trusted, so nobody else may write to it."""
    proof_of(Proofs(state).extent(piece, DIGEST, "b.tar")).establish()
    assert state.stat().st_mode & 0o077 == 0
    assert (state / FILE_NAME).stat().st_mode & 0o077 == 0
