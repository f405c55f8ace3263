"""Untrusted JSON objects, read within bounds on nesting, on the number of values, and on time.

Python's decoder builds every value and recurses once a level, so a few megabytes of ``{"":0}``
become hundreds, and a thousand brackets end in a RecursionError. The bounds are therefore checked
on the text before anything is built, by scans that run in C and take time in proportion to its
length. `read` refuses a text that exceeds a bound or repeats a key. `read_leniently` is for content
that is stored already: it reads the parts within the bounds and names the others.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mayfly.storage.errors import ManifestInvalid

MAX_DEPTH = 64
"""Levels of nesting; an index with annotations on its descriptors has four."""

MAX_VALUES = 200_000
"""Keys and values of one document. Real manifests have some twenty for each descriptor; these
are decoded in 0.1 s and take 30 MiB."""

_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
_MEMBERS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}:,]', re.DOTALL)
_LONGEST_INT64 = len(str(-(2**63)))

Object = dict[str, Any]


class Lenient(NamedTuple):
    """An object as far as it could be read.

    Attributes:
        repeats: whether an object in it has a key twice: decoders differ on which one counts.
        faults: the parts that were not read, with the reason.
    """

    fields: Object
    repeats: bool
    faults: tuple[str, ...]


def read(body: bytes) -> Object:
    """Decode an object that every decoder reads the same way.

    Raises:
        ManifestInvalid: the bytes are not one JSON object (RFC 8259, UTF-8), an object has a key
            twice, or a bound is exceeded.
    """
    try:
        # Decoded by hand: json would take UTF-16 too, which no other client reads.
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise ManifestInvalid("manifest is not JSON: not valid text") from None
    if _has_too_many_values(text):
        raise ManifestInvalid(f"manifest has more than {MAX_VALUES} JSON values")
    if _is_too_deep(text):
        raise ManifestInvalid(f"manifest is nested deeper than {MAX_DEPTH} levels")
    return _decode(text, _unique)


def read_leniently(body: bytes, is_wanted: Callable[[str], bool]) -> Lenient:
    """Decode an object that another registry may have accepted although `read` does not.

    Invalid UTF-8 is replaced, as Go's decoder does. Containers below `MAX_DEPTH` read as null. Of
    an object with too many values only the wanted fields are decoded, each within the bounds.

    Args:
        is_wanted: whether a field of the outermost object matters to the caller.

    Raises:
        ManifestInvalid: the bytes are not a JSON object.
    """
    text = body.decode("utf-8", "replace")
    faults: list[str] = []
    repeats: list[bool] = []

    def object_of(pairs: list[tuple[str, Any]]) -> Object:
        found = dict(pairs)
        if len(found) != len(pairs):
            repeats.append(True)
        return found

    if _is_too_deep(text):
        text = _pruned(text)
        faults.append(f"values nested deeper than {MAX_DEPTH} levels")
    if not _has_too_many_values(text):
        fields = _decode(text, object_of)
    else:
        fields = {}
        for key, value in _members(text):
            if not is_wanted(key):
                continue
            if key in fields:
                repeats.append(True)
            if _has_too_many_values(value):
                faults.append(f"field {key[:40]}: it has more than {MAX_VALUES} values")
            else:
                # As an object of one field, so that every value is decoded in the same way.
                fields |= _decode(f'{{"":{value}}}', object_of, key)
    return Lenient(fields, bool(repeats), tuple(faults))


def exceeded(text: str, most_values: int) -> str | None:
    """Return the bound that a JSON text exceeds, in words; None if it may be decoded."""
    if _has_too_many_values(text, most_values):
        return f"has more than {most_values} JSON values"
    if _is_too_deep(text):
        return f"is nested deeper than {MAX_DEPTH} levels"
    return None


def _decode(
    text: str,
    object_of: Callable[[list[tuple[str, Any]]], Object],
    name: str | None = None,
) -> Object:
    try:
        found = json.loads(
            text,
            object_pairs_hook=object_of,
            parse_int=_integer,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        raise ManifestInvalid(
            f"manifest is not JSON: {error.msg} at character {error.pos}"
        ) from None
    if not isinstance(found, dict):
        raise ManifestInvalid("manifest is not a JSON object")
    return found if name is None else {name: found[""]}


def _unique(pairs: list[tuple[str, Any]]) -> Object:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ManifestInvalid("manifest has a field twice in one object")
    return found


def _integer(text: str) -> float:
    """An int64; a larger number becomes infinity, which is refused where a size is wanted."""
    # The length first: int() takes long for thousands of digits, and refuses more.
    if len(text) <= _LONGEST_INT64 and -(2**63) <= (number := int(text)) < 2**63:
        return number
    return math.inf


def _refuse_constant(name: str) -> None:
    raise ManifestInvalid(f"manifest is not JSON: {name} is no JSON value")


def _has_too_many_values(text: str, most: int = MAX_VALUES) -> bool:
    if _count_values(text) <= most:
        return False
    # The characters that were counted may be inside strings. Few strings are quickly taken out;
    # of too many strings, too many are keys or values.
    if text.count('"') - text.count(r"\"") > 2 * most:
        return True
    return _count_values(_STRING.sub("", text)) > most


def _count_values(text: str) -> int:
    """Return at least the number of values: each but the first follows one of these characters."""
    return sum(text.count(mark) for mark in "[{,:")


def _is_too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    return any(depth > MAX_DEPTH for _, depth in _brackets(text))


def _brackets(text: str) -> Iterator[tuple[int, int]]:
    """Yield the position of every bracket outside strings, and the depth on its inner side."""
    depth = 0
    for token in _STRUCTURE.finditer(text):
        mark = text[token.start()]
        if mark in "[{":
            depth += 1
            yield token.start(), depth
        elif mark != '"':
            yield token.start(), depth
            depth -= 1


def _pruned(text: str) -> str:
    """Return the text with ``null`` instead of each container below `MAX_DEPTH`."""
    kept: list[str] = []
    position = 0
    is_open = False
    for at, depth in _brackets(text):
        if depth != MAX_DEPTH + 1:
            continue
        if is_open:
            position = at + 1
        else:
            kept += (text[position:at], "null")
        is_open = not is_open
    if not is_open:
        kept.append(text[position:])
    return "".join(kept)


def _members(text: str) -> Iterator[tuple[str, str]]:
    """Yield the fields of the outermost object with the text of their values.

    Raises:
        ManifestInvalid: the text is not an object.
    """
    if not text.lstrip(" \t\r\n").startswith("{"):
        raise ManifestInvalid("manifest is not a JSON object")
    depth = 0
    key: str | None = None
    string = ""
    start = 0
    for token in _MEMBERS.finditer(text):
        mark = text[token.start()]
        if mark in "]},":
            if depth == 1 and key is not None and mark != "]":
                yield key, text[start : token.start()]
                key = None
            depth -= mark != ","
        elif mark in "[{":
            depth += 1
        elif depth == 1 and mark == '"':
            string = token.group()
        elif depth == 1 and key is None:
            key, start = _decoded(string), token.end()
    if depth:
        raise ManifestInvalid("manifest is not JSON: it ends early")


def _decoded(string: str) -> str:
    try:
        found = json.loads(string)
    except ValueError:
        raise ManifestInvalid("manifest is not JSON: a key is no string") from None
    return str(found)
