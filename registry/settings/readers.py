"""From the text of a setting to its value. Each raises ValueError that names the expected form."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: ``host`` without brackets, "" for every address; ``port`` 0 picks one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can connect; a name other than localhost is taken to be open."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(text: str) -> Address:
    """Read ``HOST:PORT``, ``[IPV6]:PORT``, or ``:PORT`` for every address."""
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        separator = ""
    every = text.startswith(":") and not host
    good = bool(separator) and (every or _HOST.fullmatch(host))
    if not good or not port.isascii() or not port.isdigit():
        raise ValueError("expected HOST:PORT, as in 127.0.0.1:5000, [::1]:5000 or :5000")
    if int(port) > 65535:
        raise ValueError("a port is a number from 0 to 65535")
    return Address(host, int(port))


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def read_network(text: str) -> Network:
    """Read a network, ``10.0.0.0/8``, or one address."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("expected an address or a network, as in 10.1.0.0/16") from None


class ExternalURL(NamedTuple):
    """How clients reach a registry.

    Attributes:
        scheme: http or https.
        host: with port where that is not the scheme's.
        prefix: the path before ``/v2/``, without a slash at its end; "" for none.
    """

    scheme: str
    host: str
    prefix: str

    @property
    def origin(self) -> str:
        """Scheme and host."""
        return f"{self.scheme}://{self.host}"

    @property
    def hostname(self) -> str:
        """The host without port and brackets."""
        return (
            self.host.strip("[").partition("]")[0]
            if "]" in self.host
            else self.host.partition(":")[0]
        )


_EXTERNAL_URL = re.compile(
    r"(https?)://([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?((?:/[A-Za-z0-9._~-]+)*)/?"
)


def read_external_url(text: str) -> ExternalURL:
    """Read ``http[s]://HOST[:PORT][/PREFIX]``."""
    found = _EXTERNAL_URL.fullmatch(text) if len(text) <= 1024 else None
    if found is None:
        raise ValueError("expected a URL, as in https://registry.example:8443/prefix")
    scheme, host, port, prefix = found.groups()
    if port is not None and not 0 < int(port[1:]) <= 65535:
        raise ValueError("a port is a number from 1 to 65535")
    return ExternalURL(scheme, host + (port or ""), prefix)


def read_receiver(text: str) -> str:
    """Read ``http[s]://[USER:PASSWORD@]HOST[:PORT][/PATH][?QUERY]``."""
    expected = "expected a URL, as in https://events.example/mayfly"
    if len(text) > 2048 or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(expected)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        raise ValueError(expected)
    _ = parts.port  # a bad one is a ValueError, which says so
    return text


def read_switch(text: str) -> bool:
    """Read a switch from the environment or the file."""
    known = {"1": True, "true": True, "yes": True, "on": True}
    known |= {"0": False, "false": False, "no": False, "off": False}
    try:
        return known[text.lower()]
    except KeyError:
        raise ValueError("expected true or false") from None


def read_path(text: str) -> Path:
    """Read a path, which must not be empty."""
    if not text or "\0" in text:
        raise ValueError("expected a path")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError("its ~ names no home directory") from None


_SIZE = re.compile(r"([0-9]{1,15})(KiB|MiB|GiB|TiB)?")
_SIZE_UNITS = {None: 0, "KiB": 1, "MiB": 2, "GiB": 3, "TiB": 4}


def read_images(text: str) -> Path:
    """Read the path of a list of images; ``all`` stays as it is."""
    return Path(text) if text == "all" else read_path(text)


def read_size(text: str) -> int:
    """Read a number of bytes: ``0``, ``512MiB``, ``2GiB``."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError("expected a size: bytes, or a number and KiB, MiB, GiB or TiB")
    return int(found[1]) << 10 * _SIZE_UNITS[found[2]]


def read_percent(text: str) -> float:
    """Read a percentage above 0 and below 100."""
    if not re.fullmatch(r"[0-9]{1,2}(?:\.[0-9]{1,3})?%?", text) or not float(text.rstrip("%")):
        raise ValueError("expected a percentage between 0 and 100, such as 85")
    return float(text.rstrip("%"))


def read_count(text: str) -> int:
    """Read a number of one or more."""
    if not re.fullmatch("[0-9]{1,9}", text) or not int(text):
        raise ValueError("expected a number, 1 or more")
    return int(text)


def read_text(text: str) -> str:
    """Read a text that must not be empty."""
    if not text.strip():
        raise ValueError("expected a text")
    return text.strip()


def read_tls(text: str) -> Literal["auto", "off"] | tuple[Path, Path]:
    """Read ``auto``, ``off`` or ``CERT,KEY``."""
    match text:
        case "auto" | "off":
            return text
    certificate, comma, key = text.partition(",")
    if not comma or "," in key:
        raise ValueError("expected auto, off, or CERT,KEY: two files joined by a comma")
    return read_path(certificate), read_path(key)


def read_metrics(text: str) -> Literal["on"] | Address | None:
    """Read ``off``, which is None, ``on`` or an address."""
    match text:
        case "off":
            return None
        case "on":
            return text
    try:
        return read_address(text)
    except ValueError:
        raise ValueError("expected on, off, or HOST:PORT, as in 127.0.0.1:9090") from None


def read_auth(text: str) -> Literal["auto", "none"] | Path:
    """Read ``auto``, ``none`` or a directory."""
    match text:
        case "auto" | "none":
            return text
    return read_path(text)


_LONGEST_HOST, _LONGEST_URL = 255, 1024
_LABELS = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?"
_UPSTREAM_HOST = re.compile(rf"(?:{_LABELS}|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?")


class Upstream(NamedTuple):
    """A registry that this one mirrors.

    Attributes:
        host: as it stands in image names.
        url: where it is asked, without a slash at the end; None for the host itself.
    """

    host: str
    url: str | None

    def __str__(self) -> str:
        return self.host if self.url is None else f"{self.host}={self.url}"


def read_host(text: str) -> str:
    """Read a registry's ``HOST[:PORT]``, as it stands in image names."""
    if not _UPSTREAM_HOST.fullmatch(text) or len(text) > _LONGEST_HOST:
        raise ValueError("expected a registry's HOST or HOST:PORT, as in docker.io")
    return text.lower()


def read_upstream(text: str) -> Upstream:
    """Read ``HOST`` or ``HOST=URL``."""
    host, equals, url = text.partition("=")
    host = read_host(host)
    if not equals:
        return Upstream(host, None)
    if "@" in url:
        raise ValueError("a login belongs in the file of --upstream-auth, not in the URL")
    found = _EXTERNAL_URL.fullmatch(url) if len(url) <= _LONGEST_URL else None
    if found is None:
        raise ValueError("expected a URL after =, as in docker.io=https://mirror.example:5000")
    return Upstream(host, url.rstrip("/"))
