"""The images of ``--protect LIST``, which no eviction removes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.upstream import lists
from mayfly.registry.upstream.errors import ListInvalid
from mayfly.registry.upstream.lists import Wanted, choose_tags
from mayfly.storage.bundle.names import full_name
from mayfly.storage.digest import Digest


class Protected:
    """Images that are protected; see `storage.upkeep.evict.IsProtected`.

    A name protects the repositories that it may be stored as: by its path, with and without
    ``library/``, and by its full name, as upstreams' images are.

    Args:
        path: of a list in any format.

    Raises:
        ConfigError: the list cannot be read.
    """

    def __init__(self, path: Path) -> None:
        origin = f"--protect {path}"
        try:
            with path.open("rb") as file:
                found = lists.read(file.read(lists.MAX_BYTES + 1), origin)
        except OSError as error:
            raise ConfigError(f"{origin}: {error.strerror}") from None
        except ListInvalid as error:
            raise ConfigError(str(error)) from None
        self._wanted: dict[str, list[Wanted]] = {}
        for one in found.wanted:
            for name in dict.fromkeys((one.source, one.target or one.source)):
                for path_of in name.stored_as:
                    for repository in (path_of, full_name(name.host, path_of)):
                        entry = Wanted(name, tags=one.tags)
                        self._wanted.setdefault(repository, []).append(entry)

    def __call__(self, repository: str, digest: Digest, tags: Collection[str]) -> bool:
        return any(_covers(one, digest, tags) for one in self._wanted.get(repository, ()))


def _covers(one: Wanted, digest: Digest, tags: Collection[str]) -> bool:
    if one.tags is not None:
        return bool(choose_tags(tags, one.tags))
    return digest == one.source.digest or one.source.tag in tags
