"""Reading and writing the files that decide access."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mayfly.registry.access import files
from mayfly.registry.access.errors import PolicyFileInvalid


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("mode", "forbidden", "allowed"),
    [
        (0o600, files.PRIVATE, True),
        (0o400, files.PRIVATE, True),
        (0o660, files.PRIVATE, False),
        (0o604, files.PRIVATE, False),
        (0o620, files.PRIVATE, False),
        (0o644, files.NOT_WRITABLE_BY_OTHERS, True),
        (0o664, files.NOT_WRITABLE_BY_OTHERS, False),
        (0o602, files.NOT_WRITABLE_BY_OTHERS, False),
    ],
)
def test_permissions(tmp_path: Path, mode: int, forbidden: int, allowed: bool) -> None:
    """A secret is for its owner alone; other files may be read by all and written by the owner."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    path.chmod(mode)
    if allowed:
        assert files.read(path, forbidden) == b"x"
    else:
        with pytest.raises(PolicyFileInvalid, match="chmod"):
            files.read(path, forbidden)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of other users")
@pytest.mark.parametrize("mode", [0o440, 0o640])
def test_group_may_read_a_secret_of_root(tmp_path: Path, mode: int) -> None:
    """A Secret volume's fsGroup makes 0400 into 0440, owned by root; another owner may not."""
    path = tmp_path / "key"
    path.write_bytes(b"x")
    path.chmod(mode)
    os.chown(path, 0, 65532)
    assert files.read(path, files.PRIVATE) == b"x"
    os.chown(path, 65532, 65532)
    with pytest.raises(PolicyFileInvalid, match="chmod 600"):
        files.read(path, files.PRIVATE)


def test_reading_follows_symlinks_to_a_checked_target(tmp_path: Path) -> None:
    """Kubernetes' mounts are symlinks; the permissions that count are the target's."""
    target = tmp_path / "target"
    target.write_bytes(b"x")
    link = tmp_path / "link"
    link.symlink_to(target)
    assert files.read(link, files.NOT_WRITABLE_BY_OTHERS) == b"x"
    target.chmod(0o666)
    with pytest.raises(PolicyFileInvalid, match="written by other users"):
        files.read(link, files.NOT_WRITABLE_BY_OTHERS)


def test_not_a_regular_file(tmp_path: Path) -> None:
    """A directory, a device or a FIFO is refused at once; a FIFO does not make it wait."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (fifo, tmp_path, Path(os.devnull)):
        with pytest.raises(PolicyFileInvalid):
            files.read(path, 0)


def test_missing_and_oversized(tmp_path: Path) -> None:
    """Both are named errors."""
    with pytest.raises(PolicyFileInvalid, match="No such file"):
        files.read(tmp_path / "none", files.PRIVATE)
    path = tmp_path / "big"
    files.write(path, b"x" * (files.MAX_SIZE + 1))
    with pytest.raises(PolicyFileInvalid, match="larger"):
        files.read(path, files.PRIVATE)


def test_new_file_is_private(tmp_path: Path) -> None:
    """A new file is 0600 whatever the umask, and no temporary file stays."""
    before = os.umask(0)
    try:
        files.write(tmp_path / "new", b"x")
    finally:
        os.umask(before)
    assert _mode(tmp_path / "new") == 0o600
    assert os.listdir(tmp_path) == ["new"]


def test_new_file_is_for_the_group_of_a_setgid_directory(tmp_path: Path) -> None:
    """So a server in that group reads what root makes there, as in /etc/mayfly of the packages."""
    tmp_path.chmod(0o2750)
    files.write(tmp_path / "new", b"x")
    assert _mode(tmp_path / "new") == 0o640
    assert (tmp_path / "new").stat().st_gid == tmp_path.stat().st_gid


@pytest.mark.parametrize(("before", "after"), [(0o640, 0o640), (0o644, 0o640), (0o600, 0o600)])
def test_existing_file_keeps_its_group_reading(tmp_path: Path, before: int, after: int) -> None:
    """A server that reads the file through its group can still do so; others cannot."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(before)
    files.write(path, b"new")
    assert (path.read_bytes(), _mode(path)) == (b"new", after)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away (run as root)")
def test_existing_file_keeps_its_owner(tmp_path: Path) -> None:
    """Root's change does not take the file from the server's user."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 12345, 54321)
    files.write(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


def test_writing_refuses_a_symlink(tmp_path: Path) -> None:
    """The link and its target stay unchanged, also if the link is dangling."""
    target = tmp_path / "target"
    link = tmp_path / "link"
    link.symlink_to(target)
    for existing in (False, True):
        if existing:
            target.write_bytes(b"old")
        with pytest.raises(PolicyFileInvalid, match="is a symlink"):
            files.write(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"old"


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk changes nothing and leaves nothing behind."""
    path = tmp_path / "file"
    files.write(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PolicyFileInvalid, match="No space left"):
        files.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_lock_needs_a_directory(tmp_path: Path) -> None:
    """A missing directory is a named error."""
    with (
        pytest.raises(PolicyFileInvalid, match="make the directory"),
        files.locked(tmp_path / "none" / "file"),
    ):
        pass
