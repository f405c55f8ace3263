"""Write an executable that contains Mayfly and a bundle."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mayfly.registry import one_file
from mayfly.registry.cli.bundle_or_url import looking_at
from mayfly.registry.cli.help import Command
from mayfly.registry.cli.options import as_json, every_setting, output_file, texts_of
from mayfly.registry.cli.output import check_output, writing
from mayfly.registry.cli.progress import print_event, reporting
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.text import echo
from mayfly.storage.text import counted, format_size

if TYPE_CHECKING:
    from mayfly.storage.bundle.packed import Table

_SHELLS = frozenset({"sh", "ash", "bash", "dash", "ksh", "zsh"})
"""Programs that run the text after ``-c`` as a script."""

_LONGEST_SCRIPT = 128 * 1024 - 1
"""Bytes of one argument of a program on Linux (MAX_ARG_STRLEN)."""


@click.command("pack", cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@output_file("The file to write.")
@click.option(
    "--runtime",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The one file to put the bundle behind, such as that of another architecture.  "
    "[default: the one that runs]",
)
@click.option(
    "--script",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A shell script that the file runs while it serves.",
)
@as_json
@every_setting
def command(
    bundle: Path,
    output: Path,
    runtime: Path | None,
    script: Path | None,
    json: bool,
    **given: Any,
) -> None:
    """Write one file that is Mayfly and a bundle; started, it serves its own images in place.

    The options of serve become its defaults, and paths in them are those of the host that runs it.
    Every blob of the bundle is hashed first.
    """
    from mayfly.registry.settings.loading import check
    from mayfly.storage.bundle import packed
    from mayfly.storage.bundle.errors import BundleInvalid
    from mayfly.storage.files import stamp_at, stamp_of

    settings = texts_of(given)
    check(settings)
    check_output(output)
    more = {} if script is None else {"script": _read_script(script)}
    with contextlib.ExitStack() as stack:
        runtime = runtime or _own_runtime()
        program = _opened(runtime, "--runtime", stack)
        table = _table_of(program, runtime)
        content = _opened(bundle, "BUNDLE", stack)
        for one in (program, content):
            _check_differs(output, one)
        opened = stamp_of(os.fstat(content))
        images = _check_bundle(bundle, json)
        # It was checked by its path, and is copied from the open file.
        if stamp_at(bundle) != opened:
            raise BundleInvalid(f"{bundle}: it has changed while it was read: pack it again")
        # A bundle that is packed already gets another program, or other settings.
        inner = packed.read(content)
        place = inner.bundle if inner else packed.Place(0, os.fstat(content).st_size)
        name = inner.name if inner else bundle.name
        document = {"bundle": name, "settings": settings, **more}
        with (
            reporting("packing", table.end + place.size, json) as progress,
            writing(output, 0o777) as file,
        ):
            packed.write(file, program, content, place, document, progress)
    if json:
        size = output.stat().st_size
        print_event("packed", file=str(output), size=size, machine=table.machine)
    else:
        echo(f"{output}: {images}, {format_size(place.size)}, runs on {table.machine}")


def _read_script(path: Path) -> str:
    """Return the text of a script.

    Raises:
        ConfigError: it is no text, too long, or not for a shell.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_SCRIPT + 1)
        text = data.decode()
    except OSError as error:
        raise ConfigError(f"--script {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--script {path}: it is not text") from None
    if len(data) > _LONGEST_SCRIPT or "\0" in text:
        raise ConfigError(
            f"--script {path}: it is no script, or longer than {_LONGEST_SCRIPT} bytes"
        )
    names = [Path(word).name for word in one_file.interpreter(text) if not word.startswith("-")]
    shell = names[-1] if names[0] == "env" else names[0]
    if shell not in _SHELLS:
        raise ConfigError(
            f"--script {path}: it is for {shell}, and scripts that are packed are for a shell: "
            f"have one start {shell}"
        )
    return text


def _own_runtime() -> Path:
    """Return the one file that runs.

    Raises:
        ConfigError: this is an installed Mayfly.
    """
    found = one_file.path()
    if found is None:
        raise ConfigError(
            "this Mayfly is installed, and only the one file can be packed: name it with "
            "--runtime FILE (make dist builds mayfly-VERSION-linux-ARCH)"
        )
    return found


def _table_of(runtime: int, path: Path) -> Table:
    """Return the table of the one file to put the bundle behind.

    Raises:
        ConfigError: it is no one file.
        BundleInvalid: it is not whole.
    """
    from mayfly.storage.bundle import packed
    from mayfly.storage.bundle.errors import BundleInvalid

    try:
        table = packed.read_table(runtime)
    except BundleInvalid as error:
        raise BundleInvalid(f"--runtime {path}: {error.message}") from None
    if table is None:
        raise ConfigError(f"--runtime {path}: it is not the one file that make dist builds")
    return table


def _opened(path: Path, what: str, stack: contextlib.ExitStack) -> int:
    """Open a file.

    Raises:
        ConfigError: it cannot be read.
    """
    from mayfly.storage.files import open_regular

    if path.is_dir():
        raise ConfigError(
            f"{what} {path}: it is a directory, and one file is packed: make a tar of it first, "
            "such as tar -C DIRECTORY -cf BUNDLE.tar ."
        )
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror}") from None
    stack.callback(os.close, descriptor)
    return descriptor


def _check_differs(output: Path, descriptor: int) -> None:
    """See that the output is none of the files that are read.

    Raises:
        ConfigError: it is.
    """
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(output.stat(), os.fstat(descriptor)):
            raise ConfigError(f"-o {output} is one of the files that are read: name another")


def _check_bundle(path: Path, json: bool) -> str:
    """Read every blob of the bundle, and return how many images it has, in words.

    Content that is missing may be in another volume, or in the bundle that this one builds on.

    Raises:
        BundleInvalid: it cannot be served, or content of it is damaged.
    """
    from mayfly.storage.bundle.errors import BundleInvalid
    from mayfly.storage.upkeep.check import check, size_of
    from mayfly.storage.upkeep.verify import Fault

    with looking_at([str(path)], Path()) as looked:
        assert looked.bundles is not None
        images = counted(len(looked.bundles.stored_names()), "image")
        with reporting("checking", size_of(looked.reader), json) as progress:
            found = check(looked.reader, progress)
        faults = [one for one in found.findings if one.fault is not Fault.MISSING]
        left_out = looked.bundles.left_out
        if faults or left_out:
            first = (
                f"{faults[0].digest} of {faults[0].image} is {faults[0].fault.text}"
                if faults
                else str(left_out[0])
            )
            total = counted(len(faults) + len(left_out), "fault")
            raise BundleInvalid(
                f"{path}: {total}, the first: {first}; fetch the bundle again (mayfly verify and "
                "mayfly ls name them all)"
            )
        for one in looked.bundles.lacking(looked.bundles.has):
            print_event("notice", **one.to_json()) if json else echo(one, err=True)
    return images
