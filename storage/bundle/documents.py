"""The JSON documents of bundles, read from untrusted bytes into checked shapes."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from mayfly.storage import json_object
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.files import Files, read_named

Object = dict[str, Any]

_MAX_VALUES = 500_000
"""Keys and values of one document: some 30,000 images. So many take 60 MiB and half a second."""


class DockerImage(NamedTuple):
    """An image in the ``manifest.json`` of ``docker save``: names of members, and its RepoTags."""

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]


def read_object(files: Files, name: str) -> Object | None:
    """A document that is a JSON object; None when there is no such file.

    Raises:
        BundleInvalid: it is something else.
    """
    text = read_named(files, name)
    return None if text is None else _of_type(text, name, dict)


def read_docker_index(files: Files, name: str) -> list[DockerImage]:
    """The images that ``docker save`` lists; empty when there is no such file.

    Raises:
        BundleInvalid: it is not such a list.
    """
    text = read_named(files, name)
    images: list[Any] = [] if text is None else _of_type(text, name, list)
    return [_docker_image(image, f"{name}, image {i}") for i, image in enumerate(images)]


def read_diff_ids(config: bytes, name: str) -> list[str]:
    """The digests of an image's uncompressed layers, lowest first; none where it does not say.

    Raises:
        BundleInvalid: it is no image config.
    """
    rootfs = _of_type(config, name, dict).get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    return list(_texts(found or [], f"{name}, diff_ids"))


def _docker_image(value: object, where: str) -> DockerImage:
    if not isinstance(value, dict) or not isinstance(value.get("Config"), str):
        raise BundleInvalid(f"{where} has no Config")
    layers = _texts(value.get("Layers") or [], f"{where}, Layers")
    names = _texts(value.get("RepoTags") or [], f"{where}, RepoTags")
    return DockerImage(value["Config"], layers, names)


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BundleInvalid(f"{where} is not a list of text")
    return tuple(value)


def _of_type(text: bytes, name: str, wanted: type) -> Any:
    try:
        decoded = text.decode("utf-8")
        bound = json_object.exceeded(decoded, _MAX_VALUES)
        if bound is not None:
            raise BundleInvalid(f"{name} {bound}: no bundle needs that")
        value = json.loads(decoded)
    except ValueError:
        raise BundleInvalid(f"{name} is not JSON: the bundle is damaged or made wrongly") from None
    if not isinstance(value, wanted):
        raise BundleInvalid(f"{name} is not a JSON {'list' if wanted is list else 'object'}")
    return value
