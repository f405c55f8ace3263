"""The kinds and fields of a diagnostic of a bundle: facts for programs, a sentence for people."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mayfly.storage.digest import Digest


class Code(StrEnum):
    """The kind of a diagnostic; docs/bundles.md, "Diagnostics", has a row for each."""

    BLOBS_MISSING = "blobs_missing"
    BUNDLE_EMPTY = "bundle_empty"
    CONTENT_DAMAGED = "content_damaged"
    DIGESTS_MADE = "digests_made"
    LINK_LOST = "link_lost"
    MADE_BY = "made_by"
    MANIFEST_MISSING = "manifest_missing"
    MANIFEST_ODD = "manifest_odd"
    MANIFEST_REFUSED = "manifest_refused"
    MORE = "more"
    NAME_MADE = "name_made"
    NAME_REFUSED = "name_refused"
    PART_LEFT_OUT = "part_left_out"
    SUBJECT_MISSING = "subject_missing"
    UNREADABLE = "unreadable"
    VOLUME_MISSING = "volume_missing"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One fact about a bundle.

    Attributes:
        code: its kind.
        text: a sentence for people.
        bundle: its label; "" if it is about all bundles.
        image: the name that it is about; "" without one.
        digest: of the manifest that it is about.
        needs: the content that is missing or damaged.
        detail: the message of the error behind it; "" if the code says it all.
        count: how many such there are; for a volume, of the images that need it.
        file: the name of a volume that is missing.
        maker: the tool that made the bundle.
    """

    code: Code
    text: str
    bundle: str = ""
    image: str = ""
    digest: Digest | None = None
    needs: Digest | None = None
    detail: str = ""
    count: int = 1
    file: str = ""
    maker: str = ""

    def __str__(self) -> str:
        return f"{self.bundle}: {self.text}" if self.bundle else self.text

    def to_json(self) -> dict[str, Any]:
        """The facts, without those that are not known."""
        facts = {
            "bundle": self.bundle,
            "image": self.image,
            "digest": str(self.digest or ""),
            "needs": str(self.needs or ""),
            "detail": self.detail,
            "file": self.file,
            "maker": self.maker,
        }
        known = {name: fact for name, fact in facts.items() if fact}
        return {"code": self.code.value, **known, "count": self.count}
