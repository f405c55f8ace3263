"""One file system entry as it was before, kept so that it can be put back exactly.

Kept are the kind (absent, file, symlink), the bytes, mode, owner, modification time and extended
attributes. Hard links to a file are not: the file put back is a new one.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mayfly.registry.pki.errors import TrustError
from mayfly.storage.files import Attributes, replace_by_link, replace_file, sync, temporary_of


@dataclass(frozen=True)
class Saved:
    """One entry as it was.

    Attributes:
        kind: file, symlink, or absent.
        content: the SHA-256 of a file's bytes, under which a `Vault` has them; a symlink's target.
        attributes: of a file; of a symlink the owner alone.
    """

    kind: Literal["absent", "file", "link"]
    content: str = ""
    attributes: Attributes = field(default_factory=lambda: Attributes(0))

    def matches(self, other: Saved) -> bool:
        """Whether both are alike but for times and extended attributes."""
        mine, its = self.attributes, other.attributes
        return (self.kind, self.content, mine.mode, mine.owner) == (
            other.kind,
            other.content,
            its.mode,
            its.owner,
        )

    def to_json(self) -> dict[str, Any]:
        """The form the journal keeps."""
        xattrs = {
            name: base64.b64encode(value).decode() for name, value in self.attributes.xattrs.items()
        }
        return {
            "kind": self.kind,
            "content": self.content,
            "mode": f"{self.attributes.mode:04o}",
            "owner": self.attributes.owner,
            "mtime_ns": self.attributes.mtime_ns,
            "xattrs": xattrs,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> Saved:
        """From the journal's form.

        Raises:
            KeyError, TypeError, ValueError: it is not that form.
        """
        owner = value["owner"]
        attributes = Attributes(
            int(value["mode"], 8),
            None if owner is None else (int(owner[0]), int(owner[1])),
            value["mtime_ns"],
            {name: base64.b64decode(text) for name, text in value["xattrs"].items()},
        )
        return Saved(value["kind"], value["content"], attributes)


ABSENT = Saved("absent")


class Vault:
    """Contents kept by their SHA-256 in one directory; 0600, as a file may hold secrets."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, content: bytes) -> str:
        """Keep bytes; the name to get them back by."""
        name = hashlib.sha256(content).hexdigest()
        if not (self._directory / name).exists():
            replace_file(self._directory / name, content, Attributes(0o600))
        return name

    def get(self, name: str) -> bytes:
        """Bytes kept before.

        Raises:
            TrustError: they are gone or damaged.
        """
        try:
            content = (self._directory / name).read_bytes()
        except FileNotFoundError:
            content = b""
        if hashlib.sha256(content).hexdigest() != name:
            raise TrustError(
                f"{self._directory / name}: a saved file is missing or damaged, so the original "
                "cannot be put back"
            )
        return content


def look(path: Path) -> Saved:
    """Describe the entry at ``path``; a file's bytes are hashed, not kept.

    Raises:
        TrustError: it is neither a file nor a symlink nor absent.
        OSError: it cannot be read.
    """
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    owner = (found.st_uid, found.st_gid)
    if stat.S_ISLNK(found.st_mode):
        # A Path would drop the "./" and "//" that are to be put back.
        return Saved("link", os.readlink(path), Attributes(0, owner))  # noqa: PTH115
    if not stat.S_ISREG(found.st_mode):
        raise TrustError(f"{path}: is neither a file nor a link; move it away first")
    attributes = Attributes(stat.S_IMODE(found.st_mode), owner, found.st_mtime_ns, _xattrs(path))
    return Saved("file", hashlib.sha256(path.read_bytes()).hexdigest(), attributes)


def put_back(path: Path, original: Saved, vault: Vault) -> bool:
    """Restore ``path``; return whether there was anything to do.

    Raises:
        TrustError: the saved bytes are gone.
        OSError: it cannot be done.
    """
    temporary_of(path).unlink(missing_ok=True)
    if look(path).matches(original):
        return False
    if original.kind == "absent":
        path.unlink()
        sync(path.parent)
    elif original.kind == "link":
        assert original.attributes.owner is not None
        replace_by_link(path, original.content, original.attributes.owner)
    else:
        replace_file(path, vault.get(original.content), original.attributes)
    return True


def _xattrs(path: Path) -> dict[str, bytes]:
    try:
        return {name: os.getxattr(path, name) for name in os.listxattr(path)}
    except OSError:
        return {}
