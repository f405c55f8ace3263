"""Every setting, declared once: `Settings` has a field for each.

The flag, the environment variable, the key in ``mayfly.toml``, ``--help`` and the tables of
docs/configuration.md follow from the field (CONTRIBUTING.md, "How to add a setting").
`registry.settings.loading` reads the values.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from mayfly.registry.durations import parse as parse_duration
from mayfly.registry.durations import parse_timeout
from mayfly.registry.settings.choices import (
    Accept,
    Anonymous,
    AuditLevel,
    LogFormat,
    LogLevel,
    NodeIdentity,
    OnCorrupt,
    PrefetchIncomplete,
    Until,
    Via,
    choice,
)
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.settings.readers import (
    Address,
    ExternalURL,
    Network,
    Upstream,
    read_address,
    read_auth,
    read_count,
    read_external_url,
    read_host,
    read_images,
    read_metrics,
    read_network,
    read_path,
    read_percent,
    read_receiver,
    read_size,
    read_switch,
    read_text,
    read_tls,
    read_upstream,
)

T = TypeVar("T")

_OFF = frozenset({"none", "never"})
"""Words for "no value": a default is shown so, and an option may be given so."""

ENVIRONMENT_PREFIX = "MAYFLY_"


@dataclass(frozen=True, kw_only=True)
class Setting(Generic[T]):
    """The sources, the type and the meaning of one setting.

    Attributes:
        key: the name in Python and in the file.
        read: from text to the value; raises ValueError that names the expected form.
        default: the value when no source has one, made from the environment.
        help: one line for ``--help`` and the documentation.
        group: the heading it stands under.
        shown: the default in words.
        metavar: the form of the value, or None for a switch.
        repeatable: whether several values make a list.
        argument: whether the command line has it as arguments, not as an option.
    """

    key: str = ""
    read: Callable[[str], T]
    default: Callable[[Mapping[str, str]], Any]
    help: str
    group: str
    shown: str
    metavar: str | None
    repeatable: bool
    argument: bool

    @property
    def name(self) -> str:
        """The flag without its dashes."""
        return self.key.replace("_", "-")

    @property
    def off(self) -> str | None:
        """The word that stands for no value, which is the default; None if there is no such word.

        A file of that name is ``./none``.
        """
        return self.shown if self.shown in _OFF and not self.argument else None

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + self.key.upper()


def setting(
    read: Callable[[str], Any],
    group: str,
    *,
    help: str,
    default: Any = None,
    default_from: Callable[[Mapping[str, str]], Any] | None = None,
    shown: str = "off",
    metavar: str | None = None,
    repeatable: bool = False,
    argument: bool = False,
) -> Any:
    """Declare a field of `Settings`; see `Setting`.

    Args:
        default: the value when no source has one.
        default_from: makes it from the environment instead.
    """
    declared = Setting(
        read=read,
        default=default_from or (lambda _: default),
        help=help,
        group=group,
        shown=shown,
        metavar=metavar,
        repeatable=repeatable,
        argument=argument,
    )
    return field(metadata={_DECLARED: declared})


_DECLARED = "setting"


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


STORAGE, UPSTREAMS, NETWORK, ACCESS, LIFETIME, UPKEEP, LIMITS, OUTPUT = (
    "Storage",
    "Mirrored registries",
    "Network and TLS",
    "Access",
    "When it ends",
    "Upkeep",
    "Limits",
    "State and output",
)
"""Headings of the settings in ``--help`` and the documentation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of `serve` and `run`. Times are in seconds; None is never."""

    root: Path = setting(
        read_path,
        STORAGE,
        help="Writable store, in the directory format of CNCF distribution (registry:2).",
        default_from=_default_root,
        shown="/var/lib/mayfly as root, otherwise $XDG_DATA_HOME/mayfly",
        metavar="DIR",
    )
    ephemeral: bool = setting(
        read_switch,
        STORAGE,
        help="Use a scratch root, removed at exit.",
        default=False,
    )
    read_only: bool = setting(
        read_switch,
        STORAGE,
        help="Refuse every change.",
        default=False,
    )
    allow_sparse: bool = setting(
        read_switch,
        STORAGE,
        help="Accept manifests that name content not in the repository.",
        default=False,
    )
    on_corrupt: OnCorrupt = setting(
        choice(OnCorrupt),
        STORAGE,
        help="When content of a bundle is found corrupt: report it and serve the rest, or stop "
        "with exit code 4.",
        default=OnCorrupt.REPORT,
        shown="report",
        metavar="report|stop",
    )
    upstream: tuple[Upstream, ...] = setting(
        read_upstream,
        UPSTREAMS,
        help="Fetch missing content of this registry on request, and keep it in the root; at URL, "
        "if one is given. Repeatable.",
        default=(),
        shown="none",
        metavar="HOST[=URL]",
        repeatable=True,
    )
    upstream_default: str | None = setting(
        read_host,
        UPSTREAMS,
        help="The --upstream that names without a host belong to, as docker's registry-mirrors "
        "ask.",
        default=None,
        shown="none",
        metavar="HOST",
    )
    upstream_ttl: float = setting(
        parse_duration,
        UPSTREAMS,
        help="Time for which a tag is served without asking its upstream where it points now.",
        default=60.0,
        shown="60s",
        metavar="D",
    )
    upstream_auth: Path | None = setting(
        read_path,
        UPSTREAMS,
        help="Logins for upstreams, as docker login and podman login write them.",
        default=None,
        shown="none: upstreams are asked anonymously",
        metavar="FILE",
    )
    upstream_ca: Path | None = setting(
        read_path,
        UPSTREAMS,
        help="Trust the CAs of this PEM file for upstreams, besides those of the system.",
        default=None,
        shown="none",
        metavar="FILE",
    )
    listen: tuple[Address, ...] = setting(
        read_address,
        NETWORK,
        help="Address to serve on; :5000 is every address, port 0 picks a free one. Repeatable. "
        "Sockets passed by systemd are used instead.",
        default=(Address("127.0.0.1", 5000),),
        shown="127.0.0.1:5000",
        metavar="HOST:PORT",
        repeatable=True,
    )
    tls: Literal["auto", "off"] | tuple[Path, Path] | None = setting(
        read_tls,
        NETWORK,
        help="auto makes a CA and certificates for every address; or give two PEM files.",
        default=None,
        shown="off on loopback, otherwise auto",
        metavar="auto|off|CERT,KEY",
    )
    hostname: tuple[str, ...] = setting(
        read_text,
        NETWORK,
        help="Another name or address for the certificate of --tls auto; the first is the one "
        "announced. Repeatable.",
        default=(),
        shown="none",
        metavar="NAME",
        repeatable=True,
    )
    tls_name: tuple[str, ...] = setting(
        read_text,
        NETWORK,
        help="Another name or address for the certificate of --tls auto, which is never announced. "
        "Repeatable.",
        default=(),
        shown="none",
        metavar="NAME",
        repeatable=True,
    )
    tls_constrain: bool = setting(
        read_switch,
        NETWORK,
        help="Make a CA that can sign the names of --listen, --hostname, --external-url and "
        "--tls-name only.",
        default=False,
    )
    external_url: ExternalURL | None = setting(
        read_external_url,
        NETWORK,
        help="How clients reach the registry, where that is not by an address of its own: behind a "
        "proxy, a NodePort, a path.",
        default=None,
        shown="the address that a client used",
        metavar="URL",
    )
    trusted_proxy: tuple[Network, ...] = setting(
        read_network,
        NETWORK,
        help="Proxies whose Forwarded or X-Forwarded-For, -Proto and -Host count. Repeatable.",
        default=(),
        shown="none",
        metavar="CIDR",
        repeatable=True,
    )
    client_ca: Path | None = setting(
        read_path,
        NETWORK,
        help="Accept client certificates signed by this CA as proof of identity.",
        default=None,
        shown="none",
        metavar="FILE",
    )
    auth: Literal["auto", "none"] | Path | None = setting(
        read_auth,
        ACCESS,
        help="auto makes an admin and a pull user for this run; DIR has htpasswd and grants.toml.",
        default=None,
        shown="none on loopback, otherwise auto",
        metavar="auto|none|DIR",
    )
    anonymous: Anonymous = setting(
        choice(Anonymous),
        ACCESS,
        help="Rights of callers without credentials.",
        default=Anonymous.NONE,
        shown="none",
        metavar="pull|none",
    )
    signing_key: Path | None = setting(
        read_path,
        ACCESS,
        help="Sign tokens and credentials with the key in this file.",
        default=None,
        shown="a new key for each run",
        metavar="FILE",
    )
    audit: Path | None = setting(
        read_path,
        ACCESS,
        help="Append events to this file, as JSON lines that are chained by hashes.",
        default=None,
        shown="none",
        metavar="FILE",
    )
    audit_level: AuditLevel = setting(
        choice(AuditLevel),
        ACCESS,
        help="Events of --audit: refused requests, these and all changes, or every request.",
        default=AuditLevel.DENIED,
        shown="denied",
        metavar="denied|writes|all",
    )
    until_pulled: Path | None = setting(
        read_images,
        LIFETIME,
        help="End when every node of --nodes has every image of this list, or of the bundles.",
        default=None,
        shown="none",
        metavar="LIST|all",
    )
    nodes: str | None = setting(
        read_text,
        LIFETIME,
        help="How many nodes, or a file of their names.",
        default=None,
        shown="none",
        metavar="N|FILE",
    )
    accept: Accept = setting(
        choice(Accept),
        LIFETIME,
        help="Weakest evidence that a node has an image: its container runtime's claim, bytes that "
        "reached it, or its own answer.",
        default=Accept.CLAIMED,
        shown="claimed",
        metavar="claimed|served|proven",
    )
    node_identity: NodeIdentity = setting(
        choice(NodeIdentity),
        LIFETIME,
        help="How nodes are told apart; auto: by a credential of their own, otherwise by address.",
        default=NodeIdentity.AUTO,
        shown="auto",
        metavar="credential|address|auto",
    )
    prefetch: Via = setting(
        choice(Via),
        LIFETIME,
        help="run: first have every node of --nodes pull and prove the images, over ssh or in a "
        "pod on each.",
        default=Via.NONE,
        shown="none",
        metavar="none|ssh|kubernetes",
    )
    prefetch_incomplete: PrefetchIncomplete = setting(
        choice(PrefetchIncomplete),
        LIFETIME,
        help="If a node has not proved every image then: stop with exit code 3 and do not start "
        "COMMAND, or continue with COMMAND.",
        default=PrefetchIncomplete.STOP,
        shown="stop",
        metavar="stop|continue",
    )
    ssh_config: Path | None = setting(
        read_path,
        LIFETIME,
        help="ssh's configuration for --prefetch.",
        default=None,
        shown="the user's and the system's",
        metavar="FILE",
    )
    until: Until = setting(
        choice(Until),
        LIFETIME,
        help="End when the first of --until-pulled and --idle-timeout is met, when both are, or by "
        "neither: at mayfly stop, or with the command of run.",
        default=Until.FIRST,
        shown="first",
        metavar="first|all|stop",
    )
    idle_timeout: float | None = setting(
        parse_timeout,
        LIFETIME,
        help="End after this long without a request or a transfer; counts from the first pull on.",
        default=None,
        shown="never",
        metavar="D",
    )
    unused_timeout: float | None = setting(
        parse_timeout,
        LIFETIME,
        help="End after this long without a request or a transfer before the first pull.",
        default=None,
        shown="never",
        metavar="D",
    )
    max_lifetime: float | None = setting(
        parse_timeout,
        LIFETIME,
        help="End after this long whatever happens; exit code 3 if coverage is incomplete.",
        default=None,
        shown="never",
        metavar="D",
    )
    drain_timeout: float = setting(
        parse_duration,
        LIFETIME,
        help="Time that transfers under way have to finish at the end.",
        default=60.0,
        shown="60s",
        metavar="D",
    )
    stop_file: Path | None = setting(
        read_path,
        LIFETIME,
        help="End when this file appears.",
        default=None,
        shown="none",
        metavar="FILE",
    )
    exit_with_parent: bool = setting(
        read_switch,
        LIFETIME,
        help="End when the parent process does.",
        default=False,
    )
    exit_on_stdin_eof: bool = setting(
        read_switch,
        LIFETIME,
        help="End when standard input is closed.",
        default=False,
    )
    gc_interval: float | None = setting(
        parse_timeout,
        UPKEEP,
        help="Interval between garbage collections; never switches them off.",
        default=900.0,
        shown="15m",
        metavar="D",
    )
    gc_grace: float = setting(
        parse_duration,
        UPKEEP,
        help="Never collect content used within this time.",
        default=3600.0,
        shown="1h",
        metavar="D",
    )
    gc_high: float | None = setting(
        read_percent,
        UPKEEP,
        help="Usage of the root's disk at which images of upstreams are evicted.",
        default=None,
        shown="never",
        metavar="P",
    )
    gc_low: float | None = setting(
        read_percent,
        UPKEEP,
        help="Usage to come down to then.",
        default=None,
        shown="5 below --gc-high",
        metavar="P",
    )
    protect: Path | None = setting(
        read_path,
        UPKEEP,
        help="Never evict the images of this list.",
        default=None,
        shown="none",
        metavar="LIST",
    )
    upload_expiry: float | None = setting(
        parse_timeout,
        UPKEEP,
        help="Drop upload sessions that nobody wrote to for this long.",
        default=7 * 24 * 3600.0,
        shown="7d",
        metavar="D",
    )
    reserve: int | None = setting(
        read_size,
        UPKEEP,
        help="Disk space that blobs leave free.",
        default=None,
        shown="64MiB, or a hundredth of a small disk",
        metavar="SIZE",
    )
    max_connections: int | None = setting(
        read_count,
        LIMITS,
        help="Connections served at once; others wait to be accepted.",
        default=None,
        shown="as the limit on open files allows",
        metavar="N",
    )
    header_timeout: float | None = setting(
        parse_timeout,
        LIMITS,
        help="Time limit for a request's header, a connection's first request, or a TLS handshake.",
        default=30.0,
        shown="30s",
        metavar="D",
    )
    stall_timeout: float | None = setting(
        parse_timeout,
        LIMITS,
        help="Cut transfers that moved less than 1 KiB in this time.",
        default=300.0,
        shown="5m",
        metavar="D",
    )
    vanished_timeout: float | None = setting(
        parse_timeout,
        LIMITS,
        help="Drop connections whose peer is unreachable for this long.",
        default=60.0,
        shown="1m",
        metavar="D",
    )
    state_dir: Path = setting(
        read_path,
        OUTPUT,
        help="ready.json, CA, credentials, coverage and the report; survives a reboot.",
        default_from=_default_state_dir,
        shown="/var/lib/mayfly/state as root, otherwise $XDG_STATE_HOME/mayfly",
        metavar="DIR",
    )
    report: Path | None = setting(
        read_path,
        OUTPUT,
        help="File for the report, written at exit.",
        default=None,
        shown="report.json in --state-dir",
        metavar="FILE",
    )
    metrics: Literal["on"] | Address | None = setting(
        read_metrics,
        OUTPUT,
        help="Metrics for Prometheus: at /metrics, which takes a login with a role on every "
        "repository, or without login on an address of their own.",
        default=None,
        shown="off",
        metavar="off|on|HOST:PORT",
    )
    log_format: LogFormat = setting(
        choice(LogFormat),
        OUTPUT,
        help="Form of the log on standard error.",
        default=LogFormat.TEXT,
        shown="text",
        metavar="text|json",
    )
    log_level: LogLevel = setting(
        choice(LogLevel),
        OUTPUT,
        help="Lowest level that is logged.",
        default=LogLevel.INFO,
        shown="info",
        metavar="debug|info|warning|error",
    )
    notify: tuple[str, ...] = setting(
        read_receiver,
        OUTPUT,
        help="Post events of pulls and changes to this URL, as distribution does. Repeatable.",
        default=(),
        shown="none",
        metavar="URL",
        repeatable=True,
    )
    notify_secret: Path | None = setting(
        read_path,
        OUTPUT,
        help="Sign posts to --notify with the key in this file.",
        default=None,
        shown="none",
        metavar="FILE",
    )
    bundles: tuple[Path, ...] = setting(
        read_path,
        STORAGE,
        help="Bundles to serve where they lie; the arguments BUNDLE... take their place.",
        default=(),
        shown="none",
        metavar="FILE",
        repeatable=True,
        argument=True,
    )

    @property
    def exposed(self) -> bool:
        """Whether anyone but this host can connect."""
        return not all(address.is_loopback for address in self.listen)


ALL: tuple[Setting[Any], ...] = tuple(
    replace(one.metadata[_DECLARED], key=one.name) for one in fields(Settings)
)
"""Every setting, the arguments included."""

SETTINGS = tuple(one for one in ALL if not one.argument)
"""The settings that are options of `serve` and `run`."""
