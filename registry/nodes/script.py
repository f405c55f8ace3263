"""Render the script that a node runs: `script.sh` with the operator's data in its head.

The files are those of `mayfly node-config apply`: one plan, rendered as shell functions that write
it with the same journal. Whatever comes from outside stands in single quotes (`quote`), so no name
can end its string; references of images are checked once more, since the script splits them at
blanks.
"""

from __future__ import annotations

import dataclasses
import json
import pkgutil
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import quote as percent_encoded

from mayfly.registry.coverage.upgrade_lists import parse_image
from mayfly.registry.nodes import crio, rancher
from mayfly.registry.nodes.plan import Note, PlannedFile
from mayfly.registry.nodes.runtimes import (
    AFTER_REVERT,
    BELOW_A_PATH,
    RUNTIMES,
    EmptyNode,
    Runtime,
    make_plan,
)
from mayfly.registry.nodes.runtimes import no_path as no_path_text
from mayfly.registry.nodes.target import Target
from mayfly.registry.pki.errors import TrustError
from mayfly.storage.reference import DOCKER_HUB

PARALLEL = 4
"""Images that a node pulls at a time."""

_PLACE = "#@DATA@\n"
_BEGIN = '{ main "$@" 8<&0 </dev/null; }\n'
"""The last line of the script, which begins its work."""

_CERTS = "/@certs@"
"""Stands for containerd's directory of host configurations, which the node finds out."""

_REFERENCE = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:/@\[\]-]*")
_PORT = re.compile(r":[0-9]+(?=/)")
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]*")


class NodeImage(NamedTuple):
    """An image that a node is to have.

    Attributes:
        reference: its full name, as kubelet knows it.
        paths: it may have on this registry, with tag or digest, the likeliest first; for docker,
            whose mirrors cover docker.io only.
    """

    reference: str
    paths: tuple[str, ...]


def node_script(
    target: Target,
    node: str,
    images: Sequence[NodeImage],
    *,
    runtime: Runtime | None = None,
    parallel: int = PARALLEL,
    only: str = "",
) -> str:
    """Return the script, which holds the node's credential.

    Args:
        target: the registry, with the node's credential and the upstreams to mirror.
        node: its name.
        images: that it is to have.
        runtime: of the node; None for the one that the script finds.
        parallel: images pulled at a time.
        only: the one verb that it does; "" for all.

    Raises:
        TrustError: a name cannot stand in the script.
    """
    if not _PRINTABLE.fullmatch(node):
        raise TrustError(f"{node!r} is not the name of a node")
    names = (word for image in images for word in (image.reference, *image.paths))
    for name in names:
        if not _REFERENCE.fullmatch(name):
            raise TrustError(f"{name!r} is not the name of an image")
    credential = target.credential
    login = {} if credential is None else {"auth": credential.authorization.partition(" ")[2]}
    values = {
        "tree": "",
        "registry": target.registry,
        "url": target.url,
        "node": node,
        "node_json": json.dumps(node)[1:-1],
        "node_path": f"/mayfly/v1/nodes/{percent_encoded(node, safe='')}",
        "authorization": "" if credential is None else credential.authorization,
        "docker_config": json.dumps({"auths": {target.registry: login}} if login else {}),
        "ca": (target.ca or b"").decode(),
        "runtime": runtime or "auto",
        "parallel": str(parallel),
        "only": only,
        "containerd_config": "/etc/containerd/config.toml",
        "images": "\n".join(" ".join((image.reference, *image.paths)) for image in images),
    }
    lines = [f"{name}={quote(value)}" for name, value in values.items()]
    for one in RUNTIMES:
        files, notes = _plan(one, target)
        if one == "podman" and not target.path:
            files += _pins(images)
        lines += ["", *_function(f"plan_{one}", files), "", *_function(f"notes_{one}", notes)]
    for product in rancher.PRODUCTS:
        files, notes = _rancher_plan(product, target)
        name = f"plan_{product}"
        lines += ["", *_function(name, files), "", *_function(f"notes_{product}", notes)]
    put_back = [
        _of_note("restored", dataclasses.replace(note, file=path))
        for path, given in AFTER_REVERT.items()
        for note in given
    ]
    lines += ["", *_function("notes_after_revert", put_back)]
    before, _, after = shell_file("script.sh").partition(_PLACE)
    return before + "\n".join(lines) + "\n" + after


def revert_script(runtime: Runtime | None = None) -> str:
    """Return a script that restores the files from before the registry, and does nothing else.

    It takes no registry: the files to restore are in the journal on the node.
    """
    nowhere = Target("localhost", tls=False)
    return node_script(nowhere, "", (), runtime=runtime, only="revert")


def reading_script(target: Target, images: Sequence[NodeImage], end: str) -> str:
    """Return a script that reads on a node and changes nothing: `script.sh` with another end.

    Args:
        target: the registry; its credential stays out.
        images: for the script.
        end: file of this package that follows the functions of `script.sh`.

    Raises:
        TrustError: a name cannot stand in the script.
    """
    text = node_script(dataclasses.replace(target, credential=None), "", images)
    before, _, after = text.rpartition(_BEGIN)
    assert not after
    return before + shell_file(end)


def shell_file(name: str) -> str:
    """Return the text of a shell script in this package, which may be in the one file."""
    data = pkgutil.get_data("mayfly.registry.nodes", name)
    assert data is not None  # None is for loaders that read no files
    return data.decode()


def quote(text: str) -> str:
    """Return a shell word that stands for exactly this text.

    Raises:
        TrustError: the text has a NUL, which no shell variable can hold.
    """
    if "\0" in text:
        raise TrustError("a NUL cannot stand in a script")
    return "'" + text.replace("'", "'\\''") + "'"


def _function(name: str, body: Sequence[str]) -> list[str]:
    return [f"{name}() {{", *(f"    {line}" for line in body or (":",)), "}"]


def _plan(runtime: Runtime, target: Target) -> tuple[list[str], list[str]]:
    """Return the calls that name one runtime's files, and those for the notes about them."""
    if target.path and runtime not in BELOW_A_PATH:
        return [f"die 2 {quote(no_path_text(runtime, target))}"], []
    if runtime == "containerd":
        planned = dataclasses.replace(target, certs_dir=target.certs_dir or _CERTS)
    else:
        # docker and podman get their credential for each pull, from a file that does not stay.
        planned = dataclasses.replace(target, certs_dir=None, credential=None)
    plan = make_plan(runtime, planned, EmptyNode())
    own = runtime == "containerd" and target.certs_dir is None
    calls = [f"own=$(host_directory {quote(target.registry)})"] if own else []
    calls += [_planned(file, target) for file in plan.files]
    # A daemon that has to be told is told of the file that it shares with others.
    shared = [file.path for file in plan.files if file.merged]
    notes = [
        _note("written", path, f"{runtime} takes notice of {path} after: {command}")
        for path in shared
        for command in plan.activate
    ]
    notes += [_of_note("written", note) for note in plan.notes]
    return calls, notes


def _rancher_plan(product: str, target: Target) -> tuple[list[str], list[str]]:
    """The same for k3s or RKE2, whose file is written only where the node has none."""
    plan = rancher.plan(product, target)
    path = rancher.registries_yaml(product)
    node = "--node NAME " if target.credential is not None else ""
    note = (
        f"{path} exists, and this script cannot merge YAML, so pods do not pull from the registry "
        f"yet; mayfly node-config show --for {product} {node}--merge FILE, with a copy of it as "
        "FILE, prints the commands that merge it"
    )
    calls = [f"if is_free {quote(path)} {quote(note)}; then"]
    calls += [f"    {_planned(file, target)}" for file in plan.files]
    return [*calls, "fi"], [_of_note("written", one) for one in plan.notes]


def _pins(images: Sequence[NodeImage]) -> list[str]:
    """The call that names the drop-in by which CRI-O, where there is one, pins images."""
    if not images:
        return []
    file = crio.pins_file(image.reference for image in images)
    path, content = quote(file.path), quote(file.content.decode())
    return [f"if crio_pins_are_free {path}; then planned {file.mode:o} {path} {content} whole; fi"]


def _of_note(changed: str, note: Note) -> str:
    """The call that gives a note of a plan, where it concerns the node."""
    call = _note(changed, note.file, note)
    return f"if has {note.program}; then {call}; fi" if note.program else call


def _note(changed: str, path: str, text: object) -> str:
    """Return the call that gives a note if a file changed; if any did, for an empty path."""
    call = f'note_of "${changed}" {quote(path)} {quote(str(text))}'
    # A command in it is printed, not run.
    return f"# shellcheck disable=SC2016\n    {call}" if "$" in str(text) else call


def _planned(file: PlannedFile, target: Target) -> str:
    """The call that names one file; the node's own directories stand in it as variables."""
    host, _, name = file.path.removeprefix(f"{_CERTS}/").partition("/")
    if not file.path.startswith(_CERTS):
        path = quote(file.path)
    elif host == target.registry:
        path = f'"$own"{quote(f"/{name}")}'
    else:
        path = f'"$(host_directory {quote(host)})"{quote(f"/{name}")}'
    pieces = file.content.decode().split(f"{_CERTS}/{target.registry}")
    content = '"$own"'.join(map(quote, pieces))
    return f"planned {file.mode:o} {path} {content} {'merged' if file.merged else 'whole'}"


def images_of(names: Iterable[str], registry: str) -> list[NodeImage]:
    """Return the images of a list, as a node has them.

    Args:
        names: as in a pod or a ``docker pull``.
        registry: HOST:PORT of this registry.

    Raises:
        TrustError: one is not an image's name.
    """
    found = {}
    for name in names:
        try:
            image = parse_image(name, (registry,))
        except ValueError as error:
            raise TrustError(f"{name!r}: {error}") from None
        end = f"@{image.digest}" if image.digest else f":{image.tag}"
        host = registry if image.host is None and name.startswith(f"{registry}/") else image.host
        reference = f"{host or DOCKER_HUB}/{image.paths[0]}{end}"
        # A repository's name holds no port (see `podman.mirror_location`).
        paths = dict.fromkeys(_PORT.sub("", path) + end for path in image.repositories())
        found[reference] = NodeImage(reference, tuple(paths))
    return list(found.values())


def with_mirrors(target: Target, images: Iterable[NodeImage]) -> Target:
    """Return a target that also mirrors the upstreams of these images."""
    hosts = (image.reference.partition("/")[0] for image in images)
    mirrors = dict.fromkeys((*target.mirrors, *hosts))
    mirrors.pop(target.registry, None)
    return dataclasses.replace(target, mirrors=tuple(mirrors))
