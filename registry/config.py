"""Settings: one table; each has a flag, an environment variable and a key in ``mayfly.toml``.

Precedence is flag, environment, file, default (CONTRACT). Values are read by the setting's own
reader whatever their source; a bad one is fatal and the error names the source. An unknown key of
the file is fatal too. An unknown ``MAYFLY_`` variable is not: Kubernetes makes some for a Service
of that name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from registry.config_file import ConfigError, read_file
from registry.lifetime.durations import parse as parse_duration
from registry.lifetime.durations import parse_timeout
from registry.readers import (
    Address,
    read_accept,
    read_address,
    read_anonymous,
    read_auth,
    read_count,
    read_on_corrupt,
    read_path,
    read_size,
    read_switch,
    read_text,
    read_tls,
    read_until,
)

__all__ = ["SETTINGS", "ConfigError", "Setting", "Settings", "load"]

T = TypeVar("T")

ENVIRONMENT_PREFIX = "MAYFLY_"


@dataclass(frozen=True)
class Setting(Generic[T]):
    """One setting.

    Attributes:
        name: as the flag without dashes; the environment variable and file key follow from it.
        read: from text to the value; raises ValueError with what is expected.
        default: the value when no source has one, made anew from the environment.
        help: one line for ``--help`` and the documentation.
        metavar: what the value looks like, or None for a switch.
        repeatable: whether several values make a list.
    """

    name: str
    read: Callable[[str], T]
    default: Callable[[Mapping[str, str]], Any]
    help: str
    metavar: str | None = None
    repeatable: bool = False

    @property
    def key(self) -> str:
        """The name in Python and in the file."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + self.key.upper()


def _default_root(environment: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/mayfly")
    data = environment.get("XDG_DATA_HOME")
    try:
        return (Path(data) if data else Path.home() / ".local" / "share") / "mayfly"
    except RuntimeError:
        raise ConfigError("there is no home directory for the store: give --root DIR") from None


def _default_state_dir(environment: Mapping[str, str]) -> Path:
    runtime = environment.get("XDG_RUNTIME_DIR")
    if os.geteuid() == 0 or not runtime:
        return Path("/run/mayfly")
    return Path(runtime) / "mayfly"


SETTINGS: tuple[Setting[Any], ...] = (
    Setting("root", read_path, _default_root, "Writable store, in registry:2's format.", "DIR"),
    Setting("ephemeral", read_switch, lambda _: False, "A scratch root, removed at exit."),
    Setting(
        "listen",
        read_address,
        lambda _: (Address("127.0.0.1", 5000),),
        "Address to serve on; port 0 picks one. Repeatable.",
        "HOST:PORT",
        repeatable=True,
    ),
    Setting("read-only", read_switch, lambda _: False, "Refuse every change."),
    Setting(
        "allow-sparse",
        read_switch,
        lambda _: False,
        "Accept manifests that name content not in the repository.",
    ),
    Setting(
        "tls",
        read_tls,
        lambda _: None,
        "TLS: 'auto' makes a CA and certificates. Default: off on loopback, else auto.",
        "auto|off|CERT,KEY",
    ),
    Setting(
        "hostname",
        read_text,
        lambda _: (),
        "A further name or address for the certificate of --tls auto. Repeatable.",
        "NAME",
        repeatable=True,
    ),
    Setting(
        "client-ca",
        read_path,
        lambda _: None,
        "Take client certificates of this CA as proof of identity.",
        "FILE",
    ),
    Setting(
        "auth",
        read_auth,
        lambda _: None,
        "Users: 'auto' makes them for this run, DIR has htpasswd and grants.toml. "
        "Default: none on loopback, else auto.",
        "auto|none|DIR",
    ),
    Setting(
        "anonymous",
        read_anonymous,
        lambda _: False,
        "What callers without credentials may do.",
        "pull|none",
    ),
    Setting(
        "signing-key",
        read_path,
        lambda _: None,
        "Sign with the key in this file, so that credentials outlive the run.",
        "FILE",
    ),
    Setting(
        "audit", read_path, lambda _: None, "Record refusals in this file, as JSON lines.", "FILE"
    ),
    Setting(
        "idle-timeout",
        parse_timeout,
        lambda _: None,
        "End once no request and no transfer was seen for so long; armed by the first pull.",
        "D",
    ),
    Setting(
        "unused-timeout",
        parse_timeout,
        lambda _: None,
        "End if nothing was pulled and nothing else happens for so long.",
        "D",
    ),
    Setting(
        "max-lifetime",
        parse_timeout,
        lambda _: None,
        "End after so long, whatever happens: exit 3 if something is missing.",
        "D",
    ),
    Setting(
        "until-pulled",
        read_path,
        lambda _: None,
        "End when every image listed in this file was pulled by every node of --nodes.",
        "FILE",
    ),
    Setting(
        "nodes", read_text, lambda _: None, "How many nodes, or a file of their names.", "N|FILE"
    ),
    Setting(
        "accept",
        read_accept,
        lambda _: "claimed",
        "Weakest evidence that a node has an image: its runtime's claim, or bytes served.",
        "claimed|served|proven",
    ),
    Setting(
        "until",
        read_until,
        lambda _: False,
        "End on the first condition met, or only once all of them hold.",
        "first|all",
    ),
    Setting(
        "drain-timeout",
        parse_duration,
        lambda _: 60.0,
        "How long transfers that are under way may go on at the end.",
        "D",
    ),
    Setting(
        "gc-interval",
        parse_timeout,
        lambda _: 900.0,
        "Free what no image refers to so often while serving.",
        "D",
    ),
    Setting(
        "gc-grace",
        parse_duration,
        lambda _: 3600.0,
        "Spare what is newer: a slow push may refer to it last.",
        "D",
    ),
    Setting(
        "on-corrupt",
        read_on_corrupt,
        lambda _: False,
        "When content of a bundle turns out corrupt: serve the rest, or end with exit code 4.",
        "report|stop",
    ),
    Setting(
        "upload-expiry",
        parse_timeout,
        lambda _: 7 * 24 * 3600.0,
        "Drop an upload session without a write for so long.",
        "D",
    ),
    Setting(
        "reserve",
        read_size,
        lambda _: None,
        "Room on the disk that blobs leave free. Default: 64MiB, or a hundredth of a small disk.",
        "SIZE",
    ),
    Setting(
        "max-connections",
        read_count,
        lambda _: None,
        "Connections served at once; others wait. Default: what the limit on open files allows.",
        "N",
    ),
    Setting(
        "header-timeout",
        parse_timeout,
        lambda _: 30.0,
        "How long a request's header, or a connection's first request, may take.",
        "D",
    ),
    Setting(
        "stall-timeout",
        parse_timeout,
        lambda _: 300.0,
        "Cut a transfer that has moved less than 1 KiB in so long.",
        "D",
    ),
    Setting(
        "vanished-timeout",
        parse_timeout,
        lambda _: 60.0,
        "Give up a client whose host has not answered for so long.",
        "D",
    ),
    Setting("stop-file", read_path, lambda _: None, "End when this file appears.", "FILE"),
    Setting("exit-with-parent", read_switch, lambda _: False, "End when the parent process does."),
    Setting(
        "exit-on-stdin-eof", read_switch, lambda _: False, "End when standard input is closed."
    ),
    Setting(
        "report",
        read_path,
        lambda _: None,
        "Where the report goes. Default: report.json in --state-dir.",
        "FILE",
    ),
    Setting(
        "state-dir",
        read_path,
        _default_state_dir,
        "Where ready.json and the rest of the running state lie.",
        "DIR",
    ),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What `serve` and `run` work with: the keys of `SETTINGS`, and the bundles to serve.

    Times are in seconds; None is never. ``until`` says whether all conditions must hold,
    ``on_corrupt`` whether it ends the server.
    """

    root: Path
    ephemeral: bool
    listen: tuple[Address, ...]
    read_only: bool
    allow_sparse: bool
    tls: Literal["auto", "off"] | tuple[Path, Path] | None
    hostname: tuple[str, ...]
    client_ca: Path | None
    auth: Literal["auto", "none"] | Path | None
    anonymous: bool
    signing_key: Path | None
    audit: Path | None
    idle_timeout: float | None
    unused_timeout: float | None
    max_lifetime: float | None
    until_pulled: Path | None
    nodes: str | None
    accept: str
    until: bool
    drain_timeout: float
    gc_interval: float | None
    gc_grace: float
    on_corrupt: bool
    upload_expiry: float | None
    reserve: int | None
    max_connections: int | None
    header_timeout: float | None
    stall_timeout: float | None
    vanished_timeout: float | None
    stop_file: Path | None
    exit_with_parent: bool
    exit_on_stdin_eof: bool
    report: Path | None
    state_dir: Path
    bundles: tuple[Path, ...] = ()

    @property
    def exposed(self) -> bool:
        """Whether anyone but this host can connect."""
        return not all(address.is_loopback for address in self.listen)


def load(
    flags: Mapping[str, tuple[str, ...]],
    environment: Mapping[str, str],
    file: Path | None,
    bundles: tuple[Path, ...] = (),
) -> Settings:
    """Put the sources together.

    Args:
        flags: setting key → texts from the command line; absent keys were not given.
        environment: of the process.
        file: of ``--config``.
        bundles: the arguments.

    Raises:
        ConfigError: a value is bad, or a key is unknown.
    """
    lists = {setting.key: setting.repeatable for setting in SETTINGS}
    from_file = read_file(file, lists) if file else {}
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        found = _find(setting, flags, environment, from_file, file)
        if found is None:
            values[setting.key] = setting.default(environment)
        else:
            values[setting.key] = _read(setting, *found)
    return Settings(**values, bundles=tuple(path.absolute() for path in bundles))


def _find(
    setting: Setting[Any],
    flags: Mapping[str, tuple[str, ...]],
    environment: Mapping[str, str],
    from_file: Mapping[str, tuple[str, ...]],
    file: Path | None,
) -> tuple[tuple[str, ...], str] | None:
    """The texts of the strongest source that has the setting, and that source's name."""
    if setting.key in flags:
        return flags[setting.key], f"--{setting.name}"
    if setting.variable in environment:
        text = environment[setting.variable]
        texts = tuple(text.split()) if setting.repeatable else (text,)
        return texts, f"environment variable {setting.variable}"
    if setting.key in from_file:
        return from_file[setting.key], f"key {setting.key} in {file}"
    return None


def _read(setting: Setting[Any], texts: tuple[str, ...], source: str) -> Any:
    try:
        values = tuple(setting.read(text) for text in texts)
        if setting.repeatable and not values:
            raise ValueError(f"expected {setting.metavar}")
    except ValueError as error:
        shown = ", ".join(repr(t[:200]) for t in texts)
        raise ConfigError(f"{source}: {shown} is not usable: {error}") from None
    return values if setting.repeatable else values[-1]
