"""``mayfly check``: find the causes of failures before an upgrade, and change nothing."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import click

from mayfly.registry import one_file
from mayfly.registry.cli.help import Command
from mayfly.registry.cli.node import images_option, listed_images
from mayfly.registry.cli.node_config import node_errors
from mayfly.registry.cli.options import (
    JSON_HELP,
    print_json,
    refuse_given,
    root_directory,
    state_directory,
)
from mayfly.registry.cli.prefetch import OF_SSH, STATUS_SECONDS, names_in, node_names, ssh_options
from mayfly.registry.exit_codes import Exit
from mayfly.registry.text import echo, host_time, join_names, to_the_minute

if TYPE_CHECKING:
    import socket
    import ssl

    from mayfly.registry.control.readiness import Ready
    from mayfly.registry.nodes.image_content import ImageContent
    from mayfly.registry.nodes.probe import NodeFindings
    from mayfly.registry.nodes.script import NodeImage
    from mayfly.registry.nodes.ssh import SSH
    from mayfly.storage.interface import Reader

_NAMES = 5
_CONNECT_SECONDS = 10.0
_RESERVE_SHARE = 100
_RESERVE = 64 * 1024 * 1024
"""Bytes of the root's disk that `serve` leaves free, or the hundredth of a small one."""

_RECEIVED = 64 * 1024
_OF_TIME = frozenset({9, 10})
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of <openssl/x509_vfy.h>."""

_SOON = timedelta(days=1)
"""A certificate that ends within this time ends in the upgrade."""


class Finding(NamedTuple):
    """Something that is not in order.

    Attributes:
        code: of `HERE`, or a `Cause`.
        message: the remedy.
        node: None for one about the registry.
        images: it is about.
        detail: further facts; may be text of a node.
    """

    code: str
    message: str
    node: str | None = None
    images: tuple[str, ...] = ()
    detail: str = ""


HERE = {
    "absent": (
        "the registry does not have it",
        "serve a bundle that has it, or add it: mayfly import or mayfly copy",
    ),
    "incomplete": (
        "content of it is missing or damaged",
        "fetch the bundle again, or repair the store: mayfly verify --repair",
    ),
    "no_users": (
        "the registry runs without users, so nodes cannot prove which images they have",
        "start it with --auth auto",
    ),
    "unreachable": (
        "the registry does not answer at its own address",
        "start it with --listen, --hostname or --external-url as nodes reach it",
    ),
    "certificate": (
        "its certificate is not valid there",
        "start it with --hostname or --external-url for the name that nodes use, or give it a "
        "certificate that has that name",
    ),
    "certificate_time": (
        "its certificate is not valid by this host's clock, or ends within a day",
        "compare date -u with the right time; if this host's clock is right, renew the "
        "certificate: with --tls auto start Mayfly again, with --tls CERT,KEY replace the files",
    ),
    "root_full": (
        "the disk of the root is full",
        "free space there: mayfly du shows how it is used, mayfly gc removes unused content",
    ),
}
"""Code of a finding about the registry → its meaning, and the remedy."""


@click.command("check", cls=Command)
@click.argument("bundles", metavar="[BUNDLE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--nodes",
    envvar="MAYFLY_NODES",
    metavar="FILE",
    help="Nodes, one a line.  [default: --nodes of the Mayfly that runs here]",
)
@click.option(
    "--via",
    type=click.Choice(["none", "ssh"]),
    default="none",
    show_default=True,
    help="Also look at nodes over ssh; they are not changed.",
)
@images_option
@ssh_options
@root_directory
@state_directory
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(
    bundles: tuple[Path, ...],
    nodes: str | None,
    via: str,
    images: Path | None,
    ssh_config: Path | None,
    user: str | None,
    sudo: bool,
    concurrency: int,
    root: Path,
    state_dir: Path,
    as_json: bool,
) -> int:
    """Look for causes of failures in an upgrade; nothing is changed anywhere.

    The BUNDLEs and --root are those of the Mayfly that runs here. Without one, name --images, and
    for --via ssh --nodes; then only the registry itself, and whether nodes reach it, are left out.
    """
    from mayfly.registry.control.client import ask
    from mayfly.registry.nodes.image_content import contents
    from mayfly.registry.nodes.script import images_of

    if via != "ssh":
        refuse_given((*OF_SSH, "concurrency", "nodes"), "for --via ssh alone")
    ready = _running(state_dir, images is not None and (via != "ssh" or nodes is not None))
    listed = listed_images(images, state_dir)
    with node_errors():
        wanted = images_of(listed, "localhost" if ready is None else urlsplit(ready.url).netloc)
    with _readers((*one_file.bundles(), *bundles), root) as readers:
        content = contents(readers, wanted)
    mirrored: set[str] = set()
    findings: list[Finding] = []
    if ready is not None:
        status = ask(state_dir, "status", timeout=STATUS_SECONDS)
        mirrored = {upstream["host"] for upstream in status["upstreams"]}
        findings += _of_registry(ready, state_dir)
    findings = [*_of_images(content, mirrored), *findings, *_of_root(root)]
    names: tuple[str, ...] = ()
    if via == "ssh":
        from mayfly.registry.nodes.ssh import SSH

        if ready is None and nodes is not None:
            names = names_in(nodes)
        else:
            names = node_names(nodes, state_dir)
        seen = _look(names, wanted, content, ready, SSH(ssh_config, user, sudo), concurrency)
        findings += _of_nodes(seen, content)
    if as_json:
        found = [finding._asdict() for finding in findings]
        looked_at = {"images": len(wanted), "nodes": len(names), "registry": ready is not None}
        print_json({**looked_at, "findings": found})
    else:
        _print(findings, len(wanted), len(names), is_running=ready is not None)
    return Exit.INCOMPLETE if findings else Exit.DONE


def _running(state_dir: Path, is_enough: bool) -> Ready | None:
    """Return the announcement of the Mayfly that runs here; None if none runs.

    Args:
        state_dir: of it.
        is_enough: whether the lists are known without it.

    Raises:
        NotRunning: none runs, and a list is missing.
    """
    from mayfly.registry.control.readiness import read_ready
    from mayfly.registry.errors import NotRunning

    try:
        return read_ready(state_dir)
    except NotRunning as error:
        if is_enough:
            return None
        raise NotRunning(
            f"{error.message}, or name --images LIST, and --nodes FILE for --via ssh"
        ) from None


def _print(
    findings: Sequence[Finding], images: int, nodes: int, *, is_running: bool = True
) -> None:
    from mayfly.registry.nodes.causes import TEXTS, Cause
    from mayfly.storage.text import counted

    for one in findings:
        what = HERE[one.code][0] if one.code in HERE else TEXTS[Cause(one.code)][0]
        names = join_names(one.images, _NAMES)
        where = one.node or names or "registry"
        about = f" ({names})" if one.node and names else ""
        detail = f": {one.detail}" if one.detail else ""
        text = f"{where}: {what}{about}{detail}"
        echo(f"{text.rstrip('.')}. To do: {one.message}")
    without = "" if is_running else ", not at the registry, as no Mayfly runs here"
    echo(
        f"looked at {counted(images, 'image')} and {counted(nodes, 'node')}{without}: "
        f"{counted(len(findings), 'finding') if findings else 'nothing found'}"
    )


@contextlib.contextmanager
def _readers(bundles: Sequence[Path], root: Path) -> Iterator[list[Reader]]:
    """The bundles and the store, to read them.

    Raises:
        BundleInvalid: a bundle cannot be read.
    """
    from mayfly.storage.directory.reader import DirectoryReader

    with contextlib.ExitStack() as stack:
        readers: list[Reader] = []
        if bundles:
            from mayfly.storage.bundle.open import open_bundles

            opened = stack.enter_context(contextlib.closing(open_bundles(bundles)))
            if opened.unhashed:
                opened.hash(lambda size: None)
            readers.append(opened.layer)
        if root.is_dir():
            readers.append(DirectoryReader(root))
        yield readers


def _of_images(
    content: dict[str, ImageContent | None], mirrored: Collection[str]
) -> Iterator[Finding]:
    """Find images that are not here or not whole; those of mirrored registries are fetched."""
    for name, found in content.items():
        if name.partition("/")[0] in mirrored:
            continue
        if found is None:
            yield _here("absent", (name,))
        elif found.lacking or found.damaged:
            blobs = join_names([str(digest) for digest in found.lacking], _NAMES)
            yield _here("incomplete", (name,), "; ".join(t for t in (blobs, found.damaged) if t))


def _here(code: str, images: tuple[str, ...] = (), detail: str = "") -> Finding:
    return Finding(code, HERE[code][1], None, images, detail)


def _of_root(root: Path) -> Iterator[Finding]:
    if root.is_dir():
        disk = shutil.disk_usage(root)
        if disk.free < min(_RESERVE, disk.total // _RESERVE_SHARE):
            yield _here("root_full", detail=str(root))


def _of_registry(ready: Ready, state_dir: Path) -> Iterator[Finding]:
    from mayfly.registry.state import runs
    from mayfly.registry.state.directory import SIGNING_KEY

    if runs.load(state_dir) is None or not (state_dir / SIGNING_KEY).exists():
        yield _here("no_users")
    yield from _of_connection(ready)


def _of_connection(ready: Ready) -> Iterator[Finding]:
    """Connect as a node does, without a request."""
    import socket
    import ssl

    parts = urlsplit(ready.url)
    host = parts.hostname or ""
    now = datetime.now(UTC)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((host, port), _CONNECT_SECONDS) as connection:
            if parts.scheme != "https":
                return
            context = ssl.create_default_context(cafile=ready.ca)
            certificate = _handshake(connection, context, host)
    except ssl.SSLCertVerificationError as error:
        code = "certificate_time" if error.verify_code in _OF_TIME else "certificate"
        detail = f"{ready.url}: {error.verify_message}"
        if code == "certificate_time":
            detail += f", and {host_time(now)}"
        yield _here(code, detail=detail)
        return
    except ssl.SSLError as error:
        yield _here("certificate", detail=f"{ready.url}: {error.reason or error}")
        return
    except OSError as error:
        yield _here("unreachable", detail=f"{ready.url}: {error.strerror or error}")
        return
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    if ends < now + _SOON:
        detail = f"{ready.url}: it ends on {to_the_minute(ends)}"
        yield _here("certificate_time", detail=detail)


def _handshake(
    connection: socket.socket, context: ssl.SSLContext, host: str
) -> Mapping[str, object]:
    """Make a TLS handshake, and return the server's certificate.

    The server is not told that it failed: it would log that this host does not trust it, as if
    this host were a node.

    Raises:
        ssl.SSLError: the certificate is not accepted, or the server speaks no TLS.
        OSError: the connection fails.
    """
    import ssl

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secured = context.wrap_bio(incoming, outgoing, server_hostname=host)

    def advance(step: Callable[[], object]) -> None:
        while True:
            try:
                step()
                return
            except ssl.SSLWantReadError:
                connection.sendall(outgoing.read())
                received = connection.recv(_RECEIVED)
                if received:
                    incoming.write(received)
                else:
                    incoming.write_eof()

    advance(secured.do_handshake)
    connection.sendall(outgoing.read())
    certificate = secured.getpeercert() or {}
    # Otherwise the server may log that the connection broke.
    with contextlib.suppress(OSError):
        advance(secured.unwrap)
    return certificate


def _look(
    nodes: Sequence[str],
    wanted: Sequence[NodeImage],
    content: dict[str, ImageContent | None],
    ready: Ready | None,
    ssh: SSH,
    concurrency: int,
) -> list[NodeFindings]:
    from mayfly.registry.cli.interrupts import run_cancellable
    from mayfly.registry.nodes.image_content import needed
    from mayfly.registry.nodes.probe import look_at_nodes, probe_script
    from mayfly.registry.nodes.target import parse

    ssh.check(nodes)
    with node_errors():
        target = None
        if ready is not None:
            target = parse(ready.url, None if ready.ca is None else Path(ready.ca).read_bytes())
        script = probe_script(target, wanted)
    return run_cancellable(
        look_at_nodes(
            nodes,
            [image.reference for image in wanted],
            script,
            ssh,
            lambda architecture, images: needed(content, architecture, images),
            concurrency,
        )
    )


def _of_nodes(
    seen: Sequence[NodeFindings], content: dict[str, ImageContent | None]
) -> Iterator[Finding]:
    from mayfly.registry.nodes.causes import HERE_IS_WRONG, TEXTS, Cause, is_wrong_here

    wrong_here = is_wrong_here([one.skew for one in seen])
    for one in seen:
        for failure in one.findings:
            remedy = TEXTS[failure.cause][1]
            if failure.cause is Cause.CLOCK and wrong_here:
                remedy = HERE_IS_WRONG
            yield Finding(failure.cause, remedy, one.node, failure.images, failure.detail)
        if one.architecture is None:
            continue
        without = tuple(
            name
            for name, found in content.items()
            if found is not None
            and not found.damaged
            and found.layers_for(one.architecture) is None
        )
        if without:
            remedy = TEXTS[Cause.NO_PLATFORM][1]
            detail = f"linux/{one.architecture}"
            yield Finding(Cause.NO_PLATFORM, remedy, one.node, without, detail)
