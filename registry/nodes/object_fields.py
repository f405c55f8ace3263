"""Read fields of documents from a cluster, whatever type they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Object = Mapping[str, Any]


def mapping(value: object, *path: str) -> Object:
    """Return the object below a path of keys; an empty one if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def objects(value: object, *path: str) -> list[Object]:
    """Return the objects of the list below a path of keys."""
    *parents, last = path
    found = mapping(value, *parents).get(last)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def text(value: object, *path: str) -> str:
    """Return the text below a path of keys; "" if there is none."""
    *parents, last = path
    found = mapping(value, *parents).get(last)
    return found if isinstance(found, str) else ""


def texts(value: object, *path: str) -> tuple[str, ...]:
    """Return the texts of the list below a path of keys."""
    *parents, last = path
    found = mapping(value, *parents).get(last)
    return tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()
