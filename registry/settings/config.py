"""Settings: one table; each has a flag, an environment variable and a key in ``mayfly.toml``.

Precedence is flag, environment, file, default (CONTRACT). Values are read by the setting's own
reader whatever their source; a bad one is fatal and the error names the source. So is an unknown
key of the file; unknown variables are refused by `registry.settings.environment`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from mayfly.registry.durations import parse as parse_duration
from mayfly.registry.durations import parse_timeout
from mayfly.registry.settings.file import ConfigError, read_file
from mayfly.registry.settings.readers import (
    Address,
    ExternalURL,
    Network,
    read_accept,
    read_address,
    read_anonymous,
    read_auth,
    read_count,
    read_external_url,
    read_log_format,
    read_log_level,
    read_network,
    read_node_identity,
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
        group: the heading it stands under.
        shown: the default in words.
        metavar: what the value looks like, or None for a switch.
        repeatable: whether several values make a list.
    """

    name: str
    read: Callable[[str], T]
    default: Callable[[Mapping[str, str]], Any]
    help: str
    group: str
    shown: str = "off"
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
    return _home(environment, "XDG_DATA_HOME", ".local/share", "--root") / "mayfly"


def _default_state_dir(environment: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/mayfly/state")
    return _home(environment, "XDG_STATE_HOME", ".local/state", "--state-dir") / "mayfly"


def _home(environment: Mapping[str, str], variable: str, below: str, option: str) -> Path:
    """A base directory of the user's (XDG Base Directory Specification)."""
    given = environment.get(variable, "")
    if given.startswith("/"):  # the specification has relative paths ignored
        return Path(given)
    try:
        return Path.home() / below
    except RuntimeError:
        raise ConfigError(f"this user has no home directory: give {option} DIR") from None


STORAGE, NETWORK, ACCESS, LIFETIME, UPKEEP, LIMITS, OUTPUT = (
    "Storage",
    "Network and TLS",
    "Access",
    "When it ends",
    "Upkeep",
    "Limits",
    "State and output",
)
"""Headings of the settings in ``--help`` and the documentation."""

SETTINGS: tuple[Setting[Any], ...] = (
    Setting(
        "root",
        read_path,
        _default_root,
        "Writable store, in the directory format of CNCF distribution (registry:2).",
        STORAGE,
        "/var/lib/mayfly as root, else $XDG_DATA_HOME/mayfly",
        "DIR",
    ),
    Setting(
        "ephemeral", read_switch, lambda _: False, "Use a scratch root, removed at exit.", STORAGE
    ),
    Setting("read-only", read_switch, lambda _: False, "Refuse every change.", STORAGE),
    Setting(
        "allow-sparse",
        read_switch,
        lambda _: False,
        "Accept manifests that name content not in the repository.",
        STORAGE,
    ),
    Setting(
        "on-corrupt",
        read_on_corrupt,
        lambda _: False,
        "When content of a bundle is found corrupt: report it and serve the rest, or stop with "
        "exit code 4.",
        STORAGE,
        "report",
        "report|stop",
    ),
    Setting(
        "listen",
        read_address,
        lambda _: (Address("127.0.0.1", 5000),),
        "Address to serve on; :5000 is every address, port 0 picks a free one. Repeatable. "
        "Sockets passed by systemd take its place.",
        NETWORK,
        "127.0.0.1:5000",
        "HOST:PORT",
        repeatable=True,
    ),
    Setting(
        "tls",
        read_tls,
        lambda _: None,
        "auto makes a CA and certificates for every address; or give two PEM files.",
        NETWORK,
        "off on loopback, else auto",
        "auto|off|CERT,KEY",
    ),
    Setting(
        "hostname",
        read_text,
        lambda _: (),
        "Another name or address for the certificate of --tls auto; the first is the one "
        "announced. Repeatable.",
        NETWORK,
        "none",
        "NAME",
        repeatable=True,
    ),
    Setting(
        "tls-name",
        read_text,
        lambda _: (),
        "Another name or address for the certificate of --tls auto, which is never announced. "
        "Repeatable.",
        NETWORK,
        "none",
        "NAME",
        repeatable=True,
    ),
    Setting(
        "tls-constrain",
        read_switch,
        lambda _: False,
        "Make a CA that can sign the names of --listen, --hostname, --external-url and "
        "--tls-name only.",
        NETWORK,
    ),
    Setting(
        "external-url",
        read_external_url,
        lambda _: None,
        "How clients reach the registry, where that is not by an address of its own: behind a "
        "proxy, a NodePort, a path.",
        NETWORK,
        "the address that a client used",
        "URL",
    ),
    Setting(
        "trusted-proxy",
        read_network,
        lambda _: (),
        "Proxies whose Forwarded or X-Forwarded-For, -Proto and -Host count. Repeatable.",
        NETWORK,
        "none",
        "CIDR",
        repeatable=True,
    ),
    Setting(
        "client-ca",
        read_path,
        lambda _: None,
        "Accept client certificates signed by this CA as proof of identity.",
        NETWORK,
        "none",
        "FILE",
    ),
    Setting(
        "auth",
        read_auth,
        lambda _: None,
        "auto makes an admin and a pull user for this run; DIR has htpasswd and grants.toml.",
        ACCESS,
        "none on loopback, else auto",
        "auto|none|DIR",
    ),
    Setting(
        "anonymous",
        read_anonymous,
        lambda _: False,
        "What callers without credentials may do.",
        ACCESS,
        "none",
        "pull|none",
    ),
    Setting(
        "signing-key",
        read_path,
        lambda _: None,
        "Sign tokens and credentials with the key in this file.",
        ACCESS,
        "a new key for each run",
        "FILE",
    ),
    Setting(
        "audit",
        read_path,
        lambda _: None,
        "Append refused requests to this file, as JSON lines.",
        ACCESS,
        "none",
        "FILE",
    ),
    Setting(
        "until-pulled",
        read_path,
        lambda _: None,
        "End when every node of --nodes has every image listed in this file.",
        LIFETIME,
        "none",
        "FILE",
    ),
    Setting(
        "nodes",
        read_text,
        lambda _: None,
        "How many nodes, or a file of their names.",
        LIFETIME,
        "none",
        "N|FILE",
    ),
    Setting(
        "accept",
        read_accept,
        lambda _: "claimed",
        "Weakest evidence that a node has an image: its container runtime's claim, bytes that "
        "reached it, or its own answer.",
        LIFETIME,
        "claimed",
        "claimed|served|proven",
    ),
    Setting(
        "node-identity",
        read_node_identity,
        lambda _: "auto",
        "How nodes are told apart; auto: by a credential of their own, else by address.",
        LIFETIME,
        "auto",
        "credential|address|auto",
    ),
    Setting(
        "until",
        read_until,
        lambda _: False,
        "End when the first of --until-pulled and --idle-timeout is met, or when both are.",
        LIFETIME,
        "first",
        "first|all",
    ),
    Setting(
        "idle-timeout",
        parse_timeout,
        lambda _: None,
        "End after this long without a request or a transfer; counts from the first pull on.",
        LIFETIME,
        "never",
        "D",
    ),
    Setting(
        "unused-timeout",
        parse_timeout,
        lambda _: None,
        "End after this long without a request or a transfer before the first pull.",
        LIFETIME,
        "never",
        "D",
    ),
    Setting(
        "max-lifetime",
        parse_timeout,
        lambda _: None,
        "End after this long whatever happens; exit code 3 if coverage is incomplete.",
        LIFETIME,
        "never",
        "D",
    ),
    Setting(
        "drain-timeout",
        parse_duration,
        lambda _: 60.0,
        "Time that transfers under way have to finish at the end.",
        LIFETIME,
        "60s",
        "D",
    ),
    Setting(
        "stop-file",
        read_path,
        lambda _: None,
        "End when this file appears.",
        LIFETIME,
        "none",
        "FILE",
    ),
    Setting(
        "exit-with-parent",
        read_switch,
        lambda _: False,
        "End when the parent process does.",
        LIFETIME,
    ),
    Setting(
        "exit-on-stdin-eof",
        read_switch,
        lambda _: False,
        "End when standard input is closed.",
        LIFETIME,
    ),
    Setting(
        "gc-interval",
        parse_timeout,
        lambda _: 900.0,
        "Interval between garbage collections; never switches them off.",
        UPKEEP,
        "15m",
        "D",
    ),
    Setting(
        "gc-grace",
        parse_duration,
        lambda _: 3600.0,
        "Never collect content used within this time.",
        UPKEEP,
        "1h",
        "D",
    ),
    Setting(
        "upload-expiry",
        parse_timeout,
        lambda _: 7 * 24 * 3600.0,
        "Drop upload sessions that nobody wrote to for this long.",
        UPKEEP,
        "7d",
        "D",
    ),
    Setting(
        "reserve",
        read_size,
        lambda _: None,
        "Disk space that blobs leave free.",
        UPKEEP,
        "64MiB, or a hundredth of a small disk",
        "SIZE",
    ),
    Setting(
        "max-connections",
        read_count,
        lambda _: None,
        "Connections served at once; others wait to be accepted.",
        LIMITS,
        "what the limit on open files allows",
        "N",
    ),
    Setting(
        "header-timeout",
        parse_timeout,
        lambda _: 30.0,
        "Time limit for a request's header, a connection's first request, or a TLS handshake.",
        LIMITS,
        "30s",
        "D",
    ),
    Setting(
        "stall-timeout",
        parse_timeout,
        lambda _: 300.0,
        "Cut transfers that moved less than 1 KiB in this time.",
        LIMITS,
        "5m",
        "D",
    ),
    Setting(
        "vanished-timeout",
        parse_timeout,
        lambda _: 60.0,
        "Drop connections whose peer is unreachable for this long.",
        LIMITS,
        "1m",
        "D",
    ),
    Setting(
        "state-dir",
        read_path,
        _default_state_dir,
        "ready.json, CA, credentials, coverage and the report; survives a reboot.",
        OUTPUT,
        "/var/lib/mayfly/state as root, else $XDG_STATE_HOME/mayfly",
        "DIR",
    ),
    Setting(
        "report",
        read_path,
        lambda _: None,
        "File for the report, written at exit.",
        OUTPUT,
        "report.json in --state-dir",
        "FILE",
    ),
    Setting(
        "log-format",
        read_log_format,
        lambda _: "text",
        "Form of the log on standard error.",
        OUTPUT,
        "text",
        "text|json",
    ),
    Setting(
        "log-level",
        read_log_level,
        lambda _: "info",
        "Lowest level that is logged.",
        OUTPUT,
        "info",
        "debug|info|warning|error",
    ),
)


_BUNDLES = Setting(
    "bundles",
    read_path,
    lambda _: (),
    "Bundles to serve where they lie; the arguments BUNDLE... take their place.",
    STORAGE,
    "none",
    "FILE",
    repeatable=True,
)
"""An argument rather than an option, and otherwise a setting like the others."""


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
    tls_name: tuple[str, ...]
    tls_constrain: bool
    external_url: ExternalURL | None
    trusted_proxy: tuple[Network, ...]
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
    node_identity: str
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
    log_format: Literal["text", "json"] = "text"
    log_level: str = "info"
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
    lists = {setting.key: setting.repeatable for setting in SETTINGS} | {_BUNDLES.key: True}
    from_file = read_file(file, lists) if file else {}
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        found = _find(setting, flags, environment, from_file, file)
        if found is None:
            values[setting.key] = setting.default(environment)
        else:
            values[setting.key] = _read(setting, *found)
    flags = {_BUNDLES.key: tuple(map(str, bundles))} if bundles else {}
    named = _find(_BUNDLES, flags, environment, from_file, file)
    return Settings(**values, bundles=_read(_BUNDLES, *named) if named else ())


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
        texts = _split(text) if setting.repeatable else (text,)
        return texts, f"environment variable {setting.variable}"
    if setting.key in from_file:
        return from_file[setting.key], f"key {setting.key} in {file}"
    return None


def _split(text: str) -> tuple[str, ...]:
    """The entries of a list in a variable: words, quoted as in a shell where they hold blanks."""
    if not any(mark in text for mark in "'\"\\"):
        return tuple(text.split())
    import shlex

    try:
        return tuple(shlex.split(text))
    except ValueError:
        return (text,)


def _read(setting: Setting[Any], texts: tuple[str, ...], source: str) -> Any:
    try:
        values = tuple(setting.read(text) for text in texts)
        if setting.repeatable and not values:
            raise ValueError(f"expected {setting.metavar}")
    except ValueError as error:
        shown = ", ".join(repr(t[:200]) for t in texts)
        raise ConfigError(f"{source}: {shown} is not usable: {error}") from None
    return values if setting.repeatable else values[-1]
