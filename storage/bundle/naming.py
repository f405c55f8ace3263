"""Full names for the images that a bundle lists, and notices about those without one."""

from __future__ import annotations

from collections.abc import Iterator

from mayfly.storage.bundle.archive import ArchiveReader, Listed
from mayfly.storage.bundle.diagnostics import Code, Diagnostic
from mayfly.storage.bundle.errors import BundleInvalid
from mayfly.storage.bundle.graph import BundleImage, Graph
from mayfly.storage.bundle.notices import Notices
from mayfly.storage.digest import Digest
from mayfly.storage.errors import StorageError
from mayfly.storage.reference import LATEST, LOCAL, Reference, is_tag, parse_reference

_MOST_NAMES = 100_000
"""Most names of a bundle's images; each costs memory here and in the tables made of them."""


def name_images(
    archive: ArchiveReader, graph: Graph, fallback: str, notices: Notices
) -> list[BundleImage]:
    """Return the images that a bundle lists, with names.

    An image without a full name gets the repository ``fallback``, of no registry; an artifact that
    refers to another image belongs to that image's repository and gets no name.

    Args:
        notices: given those about names.

    Raises:
        BundleInvalid: there are too many names.
    """
    images: list[BundleImage] = []
    loose: list[Listed] = []
    by_config: dict[Digest | None, tuple[str, ...]] = {}
    # Each entry once: an index may have the same one a hundred thousand times.
    for listed in dict.fromkeys(archive.listed):
        texts = listed.names
        if not texts:
            if listed.digest not in by_config:
                names = _names_by_config(archive, graph, listed.digest)
                by_config[listed.digest] = tuple(dict.fromkeys(names))
            texts = by_config[listed.digest]
        if len(images) + len(texts) > _MOST_NAMES:
            raise BundleInvalid(f"it gives its images more than {_MOST_NAMES} names")
        found = [*_references(texts, notices)]
        images += [BundleImage(reference, listed.digest) for reference in found]
        if not found and _refers(listed, graph):
            images.append(BundleImage(None, listed.digest))
        elif not found:
            loose.append(listed)
    images += [_without_name(one, fallback, len(loose) == 1, notices) for one in loose]
    return images


def _refers(listed: Listed, graph: Graph) -> bool:
    """Whether it has a subject, and neither name nor tag."""
    node = graph.node(listed.digest) if listed.digest else None
    return listed.tag is None and node is not None and node.subject is not None


def _names_by_config(archive: ArchiveReader, graph: Graph, digest: Digest | None) -> Iterator[str]:
    node = graph.node(digest) if digest and archive.names_by_config else None
    if node is None:
        return
    children = [graph.node(child.digest) for child in node.children]
    for one in [node, *children]:
        if one is not None and one.config is not None:
            yield from archive.names_by_config.get(one.config, ())


def _references(texts: tuple[str, ...], notices: Notices) -> Iterator[Reference]:
    for text in texts:
        try:
            reference = parse_reference(text)
        except StorageError as error:
            notices.add(
                Diagnostic(
                    Code.NAME_REFUSED,
                    f"image name {text[:300]!r} is passed over: {error.message}",
                    image=text[:300],
                    detail=error.message,
                )
            )
            continue
        if reference.tag is None and reference.digest is None:
            # docker's rule for a name alone.
            reference = reference._replace(tag=LATEST)
        yield reference


def _without_name(listed: Listed, fallback: str, alone: bool, notices: Notices) -> BundleImage:
    tag = listed.tag if listed.tag and is_tag(listed.tag) else LATEST if alone else None
    called = f"{fallback}:{tag}" if tag else f"{fallback}@{listed.digest}"
    notices.add(
        Diagnostic(
            Code.NAME_MADE,
            f"an image has no full name in the bundle: it can be pulled as {called}",
            image=called,
            digest=listed.digest,
        )
    )
    return BundleImage(
        Reference(LOCAL, fallback, tag, None if tag else listed.digest), listed.digest
    )
