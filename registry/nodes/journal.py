"""Put a plan in place so that it can be taken back exactly, whenever and however often.

The journal is a directory per runtime, ``/var/lib/mayfly-node-config/RUNTIME``: it survives a
reboot, and is apart from any store of images. ``journal.json`` names each file with its original
from before Mayfly's first change and the digests of all contents that Mayfly meant to write there
since; the original contents lie beside it. States and steps:

    no journal.json    Nothing is applied. Anything else in the directory is litter.
    apply              Save contents, publish journal.json, and only then make directories and
                       write files. Files of an earlier plan that the new one lacks are put back,
                       and dropped from the journal after that.
    journal.json       Applied, wholly or in part. Apply completes it, revert takes it back.
    revert             Put every file back, remove the directories that apply made as far as
                       they are empty, remove journal.json, and only then the rest of it.

Commands that an operator pasted on the node (`commands`) leave the list ``pasted`` in the same
directory: ``F SHA256 FILE`` for each file that they wrote, after ``D DIRECTORY`` for each that they
made, innermost first. A file that was there before is kept as ``FILE.before-mayfly``, after
``B FILE.before-mayfly``. Apply and revert first take the list over into the journal
(`NodeConfig._take_over`). The hosts that the commands logged in at are in ``logins``, until
`NodeConfig.forget_login` or the node's script has removed them.

Every step changes one name on disk, durably (`storage.files`), and every step can be done
twice. So a crash between any two of them leaves one of the states above, and the first original
is never overwritten by a later apply.

A file is *edited* when its content is neither the original nor one that Mayfly wrote. Both commands
refuse then, before they change anything, unless told to lose the edit. A file that was removed
meanwhile is not edited: there is nothing to lose.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mayfly.registry.nodes.node_root import NodeRoot
from mayfly.registry.nodes.plan import Plan, PlannedFile
from mayfly.registry.nodes.runtimes import Runtime, make_plan
from mayfly.registry.nodes.saved import Saved, Vault, look, put_back
from mayfly.registry.nodes.target import Target
from mayfly.registry.pki.authority import locked
from mayfly.registry.pki.errors import TrustError
from mayfly.storage.files import Attributes, replace_file, sync, temporary_of

JOURNALS = "/var/lib/mayfly-node-config"

PASTED = "pasted"
"""File in a journal's directory: lines about the files that pasted commands wrote."""

LOGINS = "logins"
"""File in a journal's directory: the hosts that pasted commands logged in at, one a line."""

BEFORE = ".before-mayfly"
"""End of the name of a file that pasted commands replaced."""

_VERSION = 1
_MAX_LINKS = 40


class ActionCode(StrEnum):
    """The circumstances of an action."""

    NEW = "new"
    ORIGINAL_SAVED = "original_saved"
    LINK_SAVED = "link_saved"
    UNCHANGED = "unchanged"
    NOT_EMPTY = "not_empty"
    PUT_BACK = "put_back"


_TEXTS = {
    ActionCode.NEW: "new",
    ActionCode.ORIGINAL_SAVED: "the original is saved",
    ActionCode.LINK_SAVED: "in place of a link, which is saved",
    ActionCode.UNCHANGED: "as it should be already",
    ActionCode.NOT_EMPTY: "somebody else's files are in it",
}
_SAVED = {
    "absent": ActionCode.NEW,
    "file": ActionCode.ORIGINAL_SAVED,
    "link": ActionCode.LINK_SAVED,
}


@dataclass(frozen=True)
class Action:
    """One thing done, or found not to need doing, to ``path``."""

    verb: Literal["wrote", "kept", "restored", "removed"]
    path: str
    code: ActionCode

    def __str__(self) -> str:
        text = _TEXTS.get(self.code)
        return f"{self.verb} {self.path}" + (f" ({text})" if text else "")


@dataclass(frozen=True)
class Entry:
    """One file: its original, and the SHA-256 of every content meant for it since."""

    original: Saved
    written: tuple[str, ...]


@dataclass(frozen=True)
class Journal:
    """All that one runtime's node configuration may have changed, by path as the node sees it."""

    entries: dict[str, Entry]
    directories: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The form on disk."""
        entries = {
            path: {"original": entry.original.to_json(), "written": entry.written}
            for path, entry in self.entries.items()
        }
        return {"version": _VERSION, "entries": entries, "directories": self.directories}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Journal:
        """From the form on disk.

        Raises:
            KeyError, TypeError, ValueError: it is not that form.
        """
        if value["version"] != _VERSION:
            raise ValueError(f"its version is {value['version']}")
        entries = {
            path: Entry(Saved.from_json(entry["original"]), tuple(entry["written"]))
            for path, entry in dict(value["entries"]).items()
        }
        return Journal(entries, tuple(value["directories"]))


NOTHING = Journal({}, ())


class NodeConfig:
    """The configuration of one runtime, on the node whose file system begins at ``root``.

    ``warn`` is called with a message for each file that cannot be restored any more.
    """

    def __init__(
        self, root: Path, runtime: Runtime, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        self._node_root = NodeRoot(root)
        self._runtime = runtime
        self._warn = warn
        self._directory = self._node_root.real(f"{JOURNALS}/{runtime}")
        self._file = self._directory / "journal.json"
        self._pasted = self._directory / PASTED
        self._vault = Vault(self._directory)

    def plan(self, target: Target) -> Plan:
        """Return the files that `apply` would put in place.

        Raises:
            TrustError: a file there cannot be understood.
            OSError: a file there cannot be read.
        """
        return self._plan(target, self._load())

    def apply(self, target: Target, *, force: bool = False) -> tuple[Plan, list[Action]]:
        """Put the plan for ``target`` in place, instead of any applied before.

        Raises:
            TrustError: a file there cannot be understood, or is edited and not ``force``; nothing
                was changed.
            OSError: a change failed; apply again, or revert.
        """
        missing = [d for d in self._node_root.missing_parents(f"{JOURNALS}/x") if d != JOURNALS]
        with locked(self._directory):
            try:
                before = self._take_over()
                plan = self._plan(target, before)
                journal = self._extended(before, plan.files, missing)
                self._refuse_edits(journal, force, "apply")
                if journal != before:
                    self._store(journal)
                actions = [self._write(file, journal) for file in plan.files]
                actions += self._drop_all_but({file.path for file in plan.files}, journal)
            finally:
                if not (self._load().entries or self.logins() or self._pasted.exists()):
                    self._discard()
        return plan, actions

    def revert(self, *, force: bool = False) -> list[Action]:
        """Put back all that was there before the first `apply`; empty when nothing is applied.

        The hosts of `logins` stay noted.

        Raises:
            TrustError: a file is edited and not ``force``, or a saved original is gone; nothing
                was changed.
            OSError: a change failed; revert again.
        """
        if not self._directory.is_dir():
            self._discard_parent()
            return []
        with locked(self._directory):
            journal = self._take_over()
            self._refuse_edits(journal, force, "revert")
            for entry in journal.entries.values():
                if entry.original.kind == "file":
                    self._vault.get(entry.original.content)
            above = [d for d in journal.directories if _is_above(d, JOURNALS)]
            others = [d for d in journal.directories if d not in above]
            actions = [*self._put_back(journal.entries), *self._remove(others)]
            self._discard()
            if not self.logins():
                actions += self._remove(above)
        return actions

    def _plan(self, target: Target, journal: Journal) -> Plan:
        return make_plan(self._runtime, target, _Before(self._node_root, journal, self._vault))

    def _load(self) -> Journal:
        try:
            return Journal.from_json(json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            return NOTHING
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrustError(
                f"{self._file}: cannot be understood ({error!r}); another version of Mayfly wrote "
                "it, or it is damaged: use that version, or mend the files it names by hand"
            ) from None

    def logins(self) -> tuple[str, ...]:
        """Return the hosts that pasted commands logged in at."""
        try:
            return tuple(dict.fromkeys((self._directory / LOGINS).read_text().split()))
        except FileNotFoundError:
            return ()

    def forget_login(self, host: str) -> None:
        """Remove a host from `logins`, since the runtime logged out there."""
        with locked(self._directory):
            left = "".join(f"{one}\n" for one in self.logins() if one != host)
            replace_file(self._directory / LOGINS, left.encode(), Attributes(0o600))
            if not (self._load().entries or self._pasted.exists()):
                self._discard()

    def _take_over(self) -> Journal:
        """Return the journal, after it has all that pasted commands wrote.

        The list is removed last, and the files of before are in the vault by then, so after a crash
        between two steps another call takes over the rest. Files that a paste did not finish are
        removed. A file of Mayfly's whose copy of before is gone counts as one that is new.

        Raises:
            TrustError: the journal cannot be understood.
            OSError: it cannot be written.
        """
        journal = self._load()
        try:
            lines = self._pasted.read_text().splitlines()
        except FileNotFoundError:
            return journal
        entries, directories = dict(journal.entries), dict.fromkeys(journal.directories)
        litter: dict[Path, None] = {}
        for kind, _, rest in (line.partition(" ") for line in lines):
            digest, _, path = rest.partition(" ")
            if kind == "D":
                directories[rest] = None
            elif kind == "B" and rest.startswith("/") and rest.endswith(BEFORE):
                litter |= self._litter(rest.removesuffix(BEFORE))
            elif kind == "F" and path.startswith("/"):
                litter |= self._litter(path)
                entry = entries.get(path) or Entry(self._save(path + BEFORE), ())
                is_copied = path not in entries and f"B {path}{BEFORE}" in lines
                if is_copied and entry.original.kind == "absent":
                    found = look(self._node_root.real(path))
                    if found.kind != "file" or f"F {found.content} {path}" not in lines:
                        continue  # restored already by a way back that was interrupted
                    self._warn(
                        f"{path}{BEFORE}: this copy of the file from before Mayfly is gone, so "
                        f"revert removes {path} and cannot restore it"
                    )
                written = tuple(dict.fromkeys((*entry.written, digest)))
                entries[path] = replace(entry, written=written)
        journal = Journal(entries, tuple(directories))
        self._store(journal)
        for file in litter:
            file.unlink(missing_ok=True)
        for directory in {file.parent for file in litter}:
            if directory.is_dir():
                sync(directory)
        self._pasted.unlink()
        sync(self._directory)
        return journal

    def _litter(self, path: str) -> dict[Path, None]:
        """List the files that pasted commands may leave beside a file."""
        return dict.fromkeys(
            (self._node_root.real(path + BEFORE), temporary_of(self._node_root.real(path)))
        )

    def _store(self, journal: Journal) -> None:
        text = json.dumps(journal.to_json(), indent=1).encode() + b"\n"
        replace_file(self._file, text, Attributes(0o600))
        # Its directory may be new, and has to outlive a power cut before anything is changed.
        for directory in (self._directory, *self._directory.parents):
            sync(directory)
            if directory == self._node_root.root:
                break

    def _discard(self) -> None:
        """Remove the journal: its name first, for that alone says "applied". `logins` stay."""
        self._file.unlink(missing_ok=True)
        sync(self._directory)
        kept = [LOGINS] if self.logins() else []
        for litter in self._directory.iterdir():
            if litter.name not in kept:
                litter.unlink()
        if not kept:
            self._directory.rmdir()
            self._discard_parent()

    def _discard_parent(self) -> None:
        # Another runtime's journal may be in it.
        with suppress(OSError):
            self._directory.parent.rmdir()

    def _extended(
        self, before: Journal, files: Iterable[PlannedFile], made: Iterable[str]
    ) -> Journal:
        """The journal once it also covers ``files``; replaced files are in the vault by then."""
        entries = dict(before.entries)
        directories = dict.fromkeys((*before.directories, *made))
        for file in files:
            entry = entries.get(file.path) or Entry(self._save(file.path), ())
            written = dict.fromkeys((*entry.written, _digest(file)))
            entries[file.path] = replace(entry, written=tuple(written))
            directories.update(dict.fromkeys(self._node_root.missing_parents(file.path)))
        return Journal(entries, tuple(directories))

    def _save(self, path: str) -> Saved:
        real = self._node_root.real(path)
        found = look(real)
        if found.kind == "file":
            self._vault.put(real.read_bytes())
        return found

    def _refuse_edits(self, journal: Journal, force: bool, verb: str) -> None:
        edited = [] if force else [p for p, e in journal.entries.items() if self._edited(p, e)]
        if edited:
            root = self._node_root.root
            where = "" if root == Path("/") else f" --root-dir {root}"
            raise TrustError(
                f"{', '.join(edited)}: changed by somebody since Mayfly wrote it; save the edits "
                f"that you need, then run: mayfly node-config {verb} --runtime {self._runtime}"
                f"{where} --force (the original is kept in {self._directory})"
            )

    def _edited(self, path: str, entry: Entry) -> bool:
        found = look(self._node_root.real(path))
        if found.kind == "absent" or found.matches(entry.original):
            return False
        return found.kind == "link" or found.content not in (
            entry.original.content,
            *entry.written,
        )

    def _write(self, file: PlannedFile, journal: Journal) -> Action:
        real = self._node_root.real(file.path)
        for directory in journal.directories:
            if _is_above(directory, file.path):
                self._node_root.make_directory(directory)
        temporary_of(real).unlink(missing_ok=True)
        found = look(real)
        if found.kind == "file" and found.content == _digest(file):
            return Action("kept", file.path, ActionCode.UNCHANGED)
        original = journal.entries[file.path].original
        attributes = Attributes(file.mode)
        if original.kind == "file":
            attributes = replace(original.attributes, mtime_ns=None)
            if file.private:
                attributes = _without_others(attributes, file.mode)
        replace_file(real, file.content, attributes)
        return Action("wrote", file.path, _SAVED[original.kind])

    def _drop_all_but(self, planned: set[str], journal: Journal) -> list[Action]:
        """Revert the files that an earlier plan had and this one lacks."""
        needed = {path: entry for path, entry in journal.entries.items() if path in planned}
        if len(needed) == len(journal.entries):
            return []
        dropped = {path: entry for path, entry in journal.entries.items() if path not in planned}
        directories = tuple(
            d for d in journal.directories if any(_is_above(d, p) for p in (*needed, JOURNALS))
        )
        actions = [
            *self._put_back(dropped),
            *self._remove(set(journal.directories).difference(directories)),
        ]
        self._store(Journal(needed, directories))
        return actions

    def _put_back(self, entries: dict[str, Entry]) -> Iterator[Action]:
        # The last written first: a file that refers to a CA is removed before the CA.
        for path, entry in reversed(entries.items()):
            real = self._node_root.real(path)
            absent = entry.original.kind == "absent"
            if not real.parent.is_dir():
                if absent:
                    continue
                for directory in self._node_root.missing_parents(path):
                    self._node_root.make_directory(directory)
            if put_back(real, entry.original, self._vault):
                yield Action("removed" if absent else "restored", path, ActionCode.PUT_BACK)

    def _remove(self, directories: Iterable[str]) -> Iterator[Action]:
        """Remove directories that `apply` made, innermost first. It may have failed before that."""
        for path in sorted(directories, key=len, reverse=True):
            if not self._node_root.has(path):
                continue
            if self._node_root.remove_directory(path):
                yield Action("removed", path, ActionCode.PUT_BACK)
            else:
                yield Action("kept", path, ActionCode.NOT_EMPTY)


class _Before:
    """The node as it was before Mayfly: originals in place of the applied files."""

    def __init__(self, node_root: NodeRoot, journal: Journal, vault: Vault) -> None:
        self._node_root = node_root
        self._journal = journal
        self._vault = vault

    def read(self, path: str) -> bytes | None:
        """A file's content, through symlinks as the node would follow them; None without one."""
        for _ in range(_MAX_LINKS):
            entry = self._journal.entries.get(path)
            real = self._node_root.real(path)
            found = look(real) if entry is None else entry.original
            if found.kind == "absent":
                return None
            if found.kind == "file":
                return real.read_bytes() if entry is None else self._vault.get(found.content)
            path = str(PurePosixPath(path).parent / found.content)
        raise TrustError(f"{self._node_root.real(path)}: too many symlinks")

    def is_directory(self, path: str) -> bool:
        """Whether there was a directory."""
        return path not in self._journal.directories and self._node_root.real(path).is_dir()


def _digest(file: PlannedFile) -> str:
    return sha256(file.content).hexdigest()


def _without_others(attributes: Attributes, mode: int) -> Attributes:
    """The attributes without mode bits beyond ``mode`` and without ACLs."""
    kept = {k: v for k, v in attributes.xattrs.items() if not k.startswith("system.posix_acl")}
    return replace(attributes, mode=attributes.mode & mode, xattrs=kept)


def _is_above(directory: str, path: str) -> bool:
    return path.startswith(f"{directory}/")
