"""The images of ``--until-pulled``, whatever names them: a list of any format, or the bundles."""

from __future__ import annotations

from pathlib import Path

from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.upstream import lists
from mayfly.registry.upstream.errors import ListInvalid
from mayfly.storage.bundle.open import Bundles
from mayfly.storage.errors import StorageError
from mayfly.storage.images import resolve
from mayfly.storage.reading import load

ALL = Path("all")
"""Every image of the bundles, instead of a file. A file of that name is given as ./all."""

_IMAGE_CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)


def images_to_pull(wanted: Path, bundles: Bundles | None) -> list[str] | None:
    """Name the images that nodes must pull; None if the file itself is a plain list.

    Args:
        wanted: the file, or `ALL`.
        bundles: that are served.

    Raises:
        ConfigError: the list cannot be read or names no image, or there are no bundles.
    """
    if wanted == ALL:
        found = _of_bundles(bundles) if bundles is not None else []
        if not found:
            raise ConfigError("--until-pulled all: there is no image in the bundles; name a BUNDLE")
        return found
    origin = f"--until-pulled {wanted}"
    try:
        with wanted.open("rb") as file:
            data = file.read(lists.MAX_BYTES + 1)
        if lists.is_plain(data, origin):
            return None
        read = lists.read(data, origin)
    except OSError as error:
        raise ConfigError(f"--until-pulled {wanted}: {error.strerror}") from None
    except ListInvalid as error:
        raise ConfigError(str(error)) from None
    for one in read.wanted:
        if one.tags is not None:
            raise ConfigError(f"{one.origin}: nodes pull single images: list the tags")
    return [str(one.target or one.source) for one in read.wanted]


def _of_bundles(bundles: Bundles) -> list[str]:
    """Every tagged image; artifacts, which no node pulls, are left out."""
    return [name for name in bundles.tagged_names() if not _is_artifact(bundles, name)]


def _is_artifact(bundles: Bundles, name: str) -> bool:
    try:
        manifest = load(bundles.layer, *resolve(bundles.layer, name))
    except StorageError:
        return False  # it is not known yet, as in a docker archive
    kind = manifest.artifact_type
    return bool(kind) and kind not in _IMAGE_CONFIGS
