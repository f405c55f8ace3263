"""New files of a store take owner, group and mode from its root."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mayfly.storage import digest as digests
from mayfly.storage import manifest as manifests
from mayfly.storage.directory.store import DistributionStore
from tests.security.registries import image_manifest, push_blob

CONFIG = b"{}"


def _push(root: Path) -> None:
    """A blob, a manifest with a tag, and an upload that is left open."""
    store = DistributionStore(root)
    try:
        push_blob(store, "team/app", CONFIG)
        body = image_manifest(CONFIG)
        store.put_manifest("team/app", manifests.parse(body, None), digests.of(body), ("1",))
        store.begin_upload("team/app", "sha256").write([b"half"], 0)
    finally:
        store.close()


def _facts(root: Path, *, but: frozenset[Path] = frozenset()) -> set[tuple[str, int, int, int]]:
    """Kind, owner, group and mode of all below a root."""
    found = set()
    for path in root.rglob("*"):
        if path not in but:
            status = path.lstat()
            kind = "directory" if path.is_dir() else "file"
            found.add((kind, status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)))
    return found


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_root_that_we_make_is_private(tmp_path: Path, umask: int) -> None:
    """Images are nobody else's to read, whatever the umask."""
    root = tmp_path / "a" / "root"
    before = os.umask(umask)
    try:
        _push(root)
    finally:
        os.umask(before)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    ours = (os.geteuid(), os.getegid())
    assert _facts(root) == {("directory", *ours, 0o700), ("file", *ours, 0o600)}


@pytest.mark.parametrize(
    ("mode", "directories", "files"),
    [(0o755, 0o755, 0o644), (0o750, 0o750, 0o640), (0o2775, 0o2775, 0o664), (0o1777, 0o777, 0o666)],
)
def test_existing_root_decides(tmp_path: Path, mode: int, directories: int, files: int) -> None:
    """A root of registry:2, or one made for a group, stays as it is, and so is all that is new."""
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(mode)
    before = os.umask(0o027)
    try:
        _push(root)
    finally:
        os.umask(before)
    assert stat.S_IMODE(root.stat().st_mode) == mode
    assert {(kind, bits) for kind, _, _, bits in _facts(root)} == {
        ("directory", directories),
        ("file", files),
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to work in a store of another user")
def test_store_of_another_user_stays_theirs(tmp_path: Path) -> None:
    """`sudo mayfly import` locks no server out; what was there before is not touched."""
    root = tmp_path / "root"
    (root / "docker").mkdir(parents=True)
    old = root / "docker" / "old"
    old.write_text("registry:2 wrote this")
    old.chmod(0o604)
    os.chown(root, 65532, 65531)
    root.chmod(0o750)
    kept = {path: (path.stat().st_uid, path.stat().st_mode) for path in (root / "docker", old)}
    _push(root)
    assert {path: (path.stat().st_uid, path.stat().st_mode) for path in kept} == kept
    assert _facts(root, but=frozenset(kept)) == {
        ("directory", 65532, 65531, 0o750),
        ("file", 65532, 65531, 0o640),
    }
