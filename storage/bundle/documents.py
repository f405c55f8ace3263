"""The JSON documents of bundles, read from untrusted bytes into checked shapes.

Other readers of bundles are written in Go, whose decoder takes a field's name in any case and lets
the last of several win. So ``{"manifests": A, "Manifests": B}`` lists A to one reader and B to
another; as in `storage.manifest`, neither a field that is there twice nor one in another spelling
is taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mayfly.storage import json_object
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.files import Files, read_named
from mayfly.storage.manifest import folded

Object = dict[str, Any]
Names = Mapping[str, str]
"""The fields of an object that readers decode, by their folded spelling."""


def names(*fields: str) -> Names:
    """The names of an object's fields, for `check_spelling`."""
    return {folded(field): field for field in fields}


_IMAGE = names("Config", "RepoTags", "Layers", "Parent", "LayerSources")
_IMAGE_CONFIG = names("rootfs")
_ROOTFS = names("type", "diff_ids")

_MAX_VALUES = 500_000
"""Keys and values of one document: some 30,000 images. So many take 60 MiB and half a second."""


class _Repeated(Exception):
    """An object has a field twice."""


class DockerImage(NamedTuple):
    """An image in the ``manifest.json`` of ``docker save``: names of members, and its RepoTags."""

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]


def read_object(files: Files, name: str, fields: Names) -> Object | None:
    """Return a document that is a JSON object; None if there is no such file.

    Args:
        files: of the bundle.
        name: of the document.
        fields: those that readers decode.

    Raises:
        BundleInvalid: it is not a JSON object, or readers read it differently.
    """
    text = read_named(files, name)
    if text is None:
        return None
    found: Object = _of_type(text, name, dict)
    check_spelling(found, fields, name)
    return found


def check_spelling(value: Object, fields: Names, where: str) -> None:
    """Refuse a field in another spelling, which only some readers accept.

    Raises:
        BundleInvalid: there is one.
    """
    for key in value:
        field = fields.get(folded(key))
        if field is not None and field != key:
            raise BundleInvalid(f"{where}: field {key[:40]!r} must be spelled {field}")


def read_list(files: Files, name: str) -> list[object]:
    """Return a document that is a JSON list; an empty list if there is no such file.

    Raises:
        BundleInvalid: it is not a JSON list.
    """
    text = read_named(files, name)
    found: list[object] = [] if text is None else _of_type(text, name, list)
    return found


def docker_images(entries: list[object], name: str) -> list[DockerImage]:
    """Return the images that ``docker save`` lists.

    Args:
        entries: the list, as `read_list` returns it.
        name: of its document.

    Raises:
        BundleInvalid: an entry is no image.
    """
    images = enumerate(entries)
    return [_docker_image(image, f"{name}, image {number}") for number, image in images]


def read_diff_ids(config: bytes, name: str) -> list[str]:
    """Return the digests of an image's uncompressed layers, lowest first; none if absent.

    Raises:
        BundleInvalid: it is no image config.
    """
    fields: Object = _of_type(config, name, dict)
    check_spelling(fields, _IMAGE_CONFIG, name)
    rootfs = fields.get("rootfs")
    found = None
    if isinstance(rootfs, dict):
        check_spelling(rootfs, _ROOTFS, f"{name}, rootfs")
        found = rootfs.get("diff_ids")
    return list(_texts(found or [], f"{name}, diff_ids"))


def _docker_image(value: object, where: str) -> DockerImage:
    if not isinstance(value, dict) or not isinstance(value.get("Config"), str):
        raise BundleInvalid(f"{where} has no Config")
    check_spelling(value, _IMAGE, where)
    layers = _texts(value.get("Layers") or [], f"{where}, Layers")
    names = _texts(value.get("RepoTags") or [], f"{where}, RepoTags")
    return DockerImage(value["Config"], layers, names)


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BundleInvalid(f"{where} is not a list of text")
    return tuple(value)


def _unique(pairs: list[tuple[str, Any]]) -> Object:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Repeated
    return found


def _of_type(text: bytes, name: str, wanted: type) -> Any:
    try:
        decoded = text.decode("utf-8")
        bound = json_object.exceeded(decoded, _MAX_VALUES)
        if bound is not None:
            raise BundleInvalid(f"{name} {bound}: no bundle needs that")
        value = json.loads(decoded, object_pairs_hook=_unique)
    except _Repeated:
        raise BundleInvalid(f"{name} has a field twice in one object") from None
    except ValueError:
        raise BundleInvalid(f"{name} is not JSON: the bundle is damaged or made wrongly") from None
    if not isinstance(value, wanted):
        raise BundleInvalid(f"{name} is not a JSON {'list' if wanted is list else 'object'}")
    return value
