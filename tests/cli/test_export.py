"""`mayfly export`: the file it writes, and what it must not take for one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from mayfly.registry.cli.output import writing
from mayfly.registry.settings.errors import ConfigError
from mayfly.storage.errors import StorageFull
from tests.support.commands import assert_refused, mayfly


def test_special_file_is_not_replaced(root: Path, tmp_path: Path) -> None:
    """A device, a pipe or a directory stays what it is."""
    root.mkdir()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert_refused(
        mayfly("export", "--all", "-o", pipe, "--root", root), str(pipe), "not a regular file"
    )
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    (tmp_path / "link").symlink_to(pipe)
    assert_refused(
        mayfly("export", "--all", "-o", tmp_path / "link", "--root", root), "not a regular file"
    )
    assert (tmp_path / "link").is_symlink()
    assert_refused(mayfly("export", "--all", "-o", tmp_path, "--root", root), "not a regular file")


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, ConfigError)],
)
def test_disk_fails(number: int, error: type[Exception], tmp_path: Path) -> None:
    """A full disk is a storage failure, and nothing of the archive stays."""
    output = tmp_path / "all.tar"
    with pytest.raises(error, match=str(output)), writing(output):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []
