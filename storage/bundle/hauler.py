"""The entries of hauler's stores and hauls: OCI layouts whose list gives the kind of each entry.

Source: hauler's ``pkg/consts/consts.go`` and ``pkg/store/store.go``. The annotation ``kind`` is

    dev.hauler/image, dev.hauler/imageIndex     an image; also a chart or file, without a full name
    dev.hauler/sigs, /atts, /sboms              cosign's for the image with the same names
    dev.hauler/referrers/HEX                    an artifact that refers to an image by its subject

Versions before 2 write ``dev.cosignproject.cosign`` in place of ``dev.hauler``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mayfly.storage.bundle.archive import FULL_NAME, KIND, REF_NAME, Entry, Listed
from mayfly.storage.reference import LOCAL

_PREFIXES = ("dev.hauler/", "dev.cosignproject.cosign/")
_IMAGES = frozenset({"image", "imageIndex"})
_SUFFIXES = {"sigs": ".sig", "atts": ".att", "sboms": ".sbom"}
_REFERRERS = "referrers/"


def is_haul(entries: Sequence[Entry]) -> bool:
    """Whether the list of a layout is hauler's."""
    return any(entry.annotations.get(KIND, "").startswith(_PREFIXES) for entry in entries)


def listed(entries: Sequence[Entry]) -> Iterator[Listed]:
    """Yield the entries by the names that ``hauler store serve`` gives them."""
    images = {_name(entry): entry.digest for entry in entries if _kind(entry) in _IMAGES}
    for entry in entries:
        kind, name = _kind(entry), _name(entry)
        suffix = _SUFFIXES.get(kind)
        if kind.startswith(_REFERRERS):
            yield Listed(entry.digest)
        elif suffix is None:
            yield Listed(entry.digest, (name,) if name else ())
        elif (image := images.get(name)) is not None:
            tag = f"{image.algorithm}-{image.hex}{suffix}"
            yield Listed(entry.digest, (f"{_repository(name)}:{tag}",))
        else:
            yield Listed(entry.digest)


def _kind(entry: Entry) -> str:
    kind = entry.annotations.get(KIND, "")
    prefix = next((prefix for prefix in _PREFIXES if kind.startswith(prefix)), "")
    return kind.removeprefix(prefix)


def _name(entry: Entry) -> str:
    """Return an entry's name; charts and files, which come from no registry, get a local one."""
    full, ref = entry.annotations.get(FULL_NAME, ""), entry.annotations.get(REF_NAME, "")
    return full or (f"{LOCAL}/{ref}" if ref else "")


def _repository(name: str) -> str:
    name = name.partition("@")[0]
    head, colon, tail = name.rpartition(":")
    return head if colon and "/" not in tail else name
