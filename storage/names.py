"""The grammar of repository names and tags.

Source: OCI distribution-spec, "Pulling manifests". Checked again wherever a path is built, so that
no caller can make one from unchecked text.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import takewhile

from mayfly.storage.errors import NameInvalid, TagInvalid

MAX_NAME_LENGTH = 255
"""Longest repository name in bytes: many clients stop there (spec), and one path part holds it."""

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PART = re.compile(_COMPONENT)
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")


def check_repository(name: str) -> str:
    """Give back a valid repository name.

    Raises:
        NameInvalid: the name is outside the grammar or longer than `MAX_NAME_LENGTH`.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise NameInvalid(f"repository name is longer than {MAX_NAME_LENGTH} characters")
    if not _NAME.fullmatch(name):
        raise NameInvalid(
            f"invalid repository name {name!r}: lower-case letters, digits, "
            "separators . _ - inside a part, parts joined by /"
        )
    return name


def is_component(text: str) -> bool:
    """Whether a text can stand between the slashes of a repository name."""
    return _PART.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether a text is a valid tag."""
    return _TAG.fullmatch(text) is not None


def check_tag(tag: str) -> str:
    """Give back a valid tag.

    Raises:
        TagInvalid: the tag is outside the grammar.
    """
    if not is_tag(tag):
        raise TagInvalid(
            f"invalid tag {tag[:150]!r}: up to 128 letters, digits, _ . - "
            "and not beginning with . or -"
        )
    return tag


def page_of(names: Sequence[str], after: str, limit: int, prefix: str = "") -> list[str]:
    """Up to ``limit`` of some sorted names that follow ``after`` and begin with ``prefix``."""
    start = max(bisect_right(names, after), bisect_left(names, prefix))
    following = names[start : start + limit]
    return list(takewhile(lambda name: name.startswith(prefix), following))
