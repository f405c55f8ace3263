"""Settings: every source, their order, every reader, and the documentation of each."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.registry.cli.options import with_settings
from mayfly.registry.http.bind import bound_sockets
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.settings.loading import MAX_FILE_BYTES, check, load
from mayfly.registry.settings.readers import Address, read_address, read_path
from mayfly.registry.settings.settings import SETTINGS, Setting
from tests.conftest import Record
from tests.support.process import REPO

TEXTS_OF_READERS: dict[str, tuple[str, str, str]] = {
    "parse": ("0s", "5m", "never"),
    "parse_timeout": ("90s", "never", "0s"),
    "read_address": ("127.0.0.1:1", "[::1]:2", "nowhere"),
    "read_auth": ("auto", "/dir", ""),
    "read_count": ("1", "5000", "0"),
    "read_external_url": ("https://a.example", "http://b.example:8080/hub", "a.example"),
    "read_host": ("docker.io", "quay.io:443", "no host"),
    "read_images": ("/one", "/two", ""),
    "read_metrics": ("on", "127.0.0.1:9090", "loud"),
    "read_network": ("10.0.0.0/8", "192.0.2.1", "10.0.0.1/8"),
    "read_path": ("/one", "/two", ""),
    "read_percent": ("85", "92.5%", "100"),
    "read_receiver": ("http://h/", "https://u:p@h:1/x?y", "ftp://h/"),
    "read_size": ("0", "2GiB", "2GB"),
    "read_switch": ("true", "off", "perhaps"),
    "read_text": ("one", "10.0.0.1", " "),
    "read_tls": ("auto", "/cert,/key", "/cert"),
    "read_upstream": ("docker.io", "quay.io:443=https://mirror.test:5000", "docker.io=mirror"),
}
"""Reader → two texts that it takes, and one that it does not."""


def _texts(setting: Setting[object]) -> tuple[str, str, str]:
    """Two texts that a setting takes, and one that it does not."""
    if setting.read.__qualname__.startswith("choice."):
        first, *_, last = (setting.metavar or "").split("|")
        return last, first, "perhaps"
    return TEXTS_OF_READERS[setting.read.__name__]


NONE_IS_A_VALUE = {"anonymous", "prefetch"}
"""Settings whose value can be the word "none"."""


def _file(directory: Path, text: str) -> Path:
    path = directory / "mayfly.toml"
    path.write_text(text)
    return path


def _value(setting: Setting[object], text: str) -> object:
    """What `load` makes of a text."""
    read = setting.read(text)
    return (read,) if setting.repeatable else read


def _toml(key: str, text: str) -> str:
    return f'{key} = "{text}"\n'


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.key)
def test_precedence(setting: Setting[object], tmp_path: Path) -> None:
    """Flag before environment before file before default, each setting by each source."""
    one, two, _ = _texts(setting)
    key, variable = setting.key, setting.variable
    file_one, default = _file(tmp_path, _toml(key, one)), getattr(load({}, {}, None), key)

    def found(flag: str | None, environment: str | None, file: Path | None) -> object:
        flags = {} if flag is None else {key: (flag,)}
        return getattr(
            load(flags, {} if environment is None else {variable: environment}, file), key
        )

    assert found(two, one, file_one) == _value(setting, two)
    assert found(one, two, file_one) == _value(setting, one)
    assert found(None, two, file_one) == _value(setting, two)
    assert found(None, None, file_one) == _value(setting, one)
    assert found(None, None, None) == default


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.key)
def test_bad_value_names_its_source(setting: Setting[object], tmp_path: Path) -> None:
    """The error says where the bad value stands: the flag, the variable, or the key and file."""
    _, _, bad = _texts(setting)
    file = _file(tmp_path, _toml(setting.key, bad))
    sources = {
        f"--{setting.name}": ({setting.key: (bad,)}, {}, None),
        f"environment variable {setting.variable}": ({}, {setting.variable: bad}, None),
        f"key {setting.key} in {file}": ({}, {}, file),
    }
    for source, (flags, environment, path) in sources.items():
        with pytest.raises(ConfigError) as refused:
            load(flags, environment, path)
        assert str(refused.value).startswith(f"{source}: ")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("setting", [one for one in SETTINGS if one.off], ids=lambda one: one.key)
def test_a_value_is_switched_off(setting: Setting[object]) -> None:
    """`none` or `never` is the default, against every weaker source; ``./none`` is a file."""
    assert setting.off is not None
    good, _, _ = _texts(setting)
    default = setting.default({})
    off = (setting.off,)
    packed = {setting.key: (good,)}
    assert getattr(load({}, {}, None, (), packed), setting.key) == _value(setting, good)
    assert getattr(load({setting.key: off}, {}, None, (), packed), setting.key) == default
    from_variable = load({}, {setting.variable: setting.off}, None, (), packed)
    assert getattr(from_variable, setting.key) == default
    check({setting.key: off})


def test_a_file_named_none() -> None:
    """Is not the word."""
    assert load({"until_pulled": ("./none",)}, {}, None).until_pulled == Path("none").absolute()


def test_bad_value_behind_a_good_one_is_not_looked_at() -> None:
    """A flag mends what the environment has wrong, without touching it."""
    assert load({"listen": ("127.0.0.1:1",)}, {"MAYFLY_LISTEN": "nowhere"}, None).listen


def test_every_reader_has_texts() -> None:
    """A setting that is read by another one's reader needs none of its own."""
    readers = {s.read.__name__ for s in SETTINGS if not s.read.__qualname__.startswith("choice.")}
    advice = "give `TEXTS_OF_READERS` two valid texts and an invalid one of each reader"
    assert TEXTS_OF_READERS.keys() == readers, advice


@pytest.mark.parametrize(
    "url", ["https://me:SECRET@mirror.test", "https://me:SECRET@[::1", "//a:SECRET@b"]
)
def test_a_login_in_a_url_is_refused_and_not_shown(url: str) -> None:
    """An error ends up in logs, where no password belongs."""
    with pytest.raises(ConfigError) as refused:
        load({"upstream": (f"docker.io={url}",)}, {}, None)
    assert "SECRET" not in str(refused.value)


def test_names_follow_from_one() -> None:
    """Flag, variable and key are one name, each in its own spelling."""
    for setting in SETTINGS:
        assert re.fullmatch("[a-z]+(-[a-z]+)*", setting.name)
        assert setting.key == setting.name.replace("-", "_")
        assert setting.variable == f"MAYFLY_{setting.key.upper()}"
        assert setting.help.endswith(".")


def test_every_setting_is_an_option() -> None:
    """The command line has each setting, and beside them the file and a short form."""
    command = click.command()(with_settings(lambda settings: settings))
    options = {name for p in command.params if isinstance(p, click.Option) for name in p.opts}
    assert options == {f"--{setting.name}" for setting in SETTINGS} | {"--config", "--json"}


PAGE = "docs/configuration.md"
RECORD = f"write {PAGE} anew by: .venv/bin/pytest tests/settings/test_config.py --record"


def _row(setting: Setting[object]) -> str:
    flag = f"--{setting.name}" + (f" {setting.metavar}" if setting.metavar else "")
    cells = [f"`{flag}`", f"`{setting.variable}`", f"`{setting.key}`", setting.shown, setting.help]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _with_tables(page: str) -> str:
    """The page with the tables of `SETTINGS`, each below the heading of its group."""
    for group in dict.fromkeys(setting.group for setting in SETTINGS):
        table = "| flag | variable | key | default | meaning |\n|---|---|---|---|---|\n"
        table += "".join(_row(setting) for setting in SETTINGS if setting.group == group)
        place = re.compile(rf"(?<=^## {re.escape(group)}\n\n)(\|.*\n)+", re.MULTILINE)
        assert place.search(page), f"{PAGE} has no heading {group!r} with a table below it"
        page = place.sub(lambda _, table=table: table, page)
    return page


def test_every_setting_is_documented(record: Record) -> None:
    """docs/configuration.md has a row for each, made of its field; ``--record`` writes them."""
    page = (REPO / PAGE).read_text()
    if record(REPO / PAGE, _with_tables(page)):
        return
    rows = page.splitlines(keepends=True)
    differing = [setting.key for setting in SETTINGS if _row(setting) not in rows]
    assert differing == [], f"{PAGE} lacks the rows of these settings as declared; {RECORD}"
    assert page == _with_tables(page), f"{PAGE} has other rows, or in another order; {RECORD}"


def test_help_has_every_default() -> None:
    """What --help shows as default is what a setting is without any source."""
    found = load({}, {}, None)
    for setting in SETTINGS:
        if setting.shown in ("off", "none", "never") and setting.key not in NONE_IS_A_VALUE:
            assert getattr(found, setting.key) in (False, None, ()), setting.name
        elif re.fullmatch("[0-9.:a-z]+", setting.shown):
            read = _value(setting, setting.shown)
            assert getattr(found, setting.key) == read, setting.name


def test_bundles_from_every_source(tmp_path: Path) -> None:
    """The arguments win over the variable, that over the file; a variable may quote blanks."""
    file = _file(tmp_path, 'bundles = ["/from/file.tar"]\n')
    variable = {"MAYFLY_BUNDLES": "/one.tar '/two three.tar'"}
    assert load({}, {}, None).bundles == ()
    assert load({}, {}, file).bundles == (Path("/from/file.tar"),)
    assert load({}, variable, file).bundles == (Path("/one.tar"), Path("/two three.tar"))
    assert load({}, variable, file, (Path("/x"),)).bundles == (Path("/x"),)


def test_every_address() -> None:
    """:PORT is reached by IPv4, and by IPv6 where the host has it."""
    with bound_sockets([Address("", 0)]) as (bound,):
        port = bound.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 10).close()
        if bound.family == socket.AF_INET6:
            socket.create_connection(("::1", port), 10).close()


def test_port_in_use_is_said_plainly() -> None:
    """Without the address as Python writes it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError) as refused, bound_sockets([address]):
            pytest.fail("bound")
    expected = f"cannot listen on {address}: Address already in use; choose another with --listen"
    assert str(refused.value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:5000", Address("127.0.0.1", 5000)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
        ("localhost:65535", Address("localhost", 65535)),
        ("registry.example.com:443", Address("registry.example.com", 443)),
        ("[::1]:5000", Address("::1", 5000)),
        ("[::]:05000", Address("::", 5000)),
        (":5000", Address("", 5000)),
    ],
)
def test_address(text: str, expected: Address) -> None:
    """A host and a port; an IPv6 address stands in brackets, and is written back so."""
    assert read_address(text) == expected
    assert read_address(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "5000", "localhost", "localhost:", "localhost:x", "localhost:-1",
        ":x", "[]:5000", "localhost:65536", "localhost:99999999999", "::1:5000", "::1", "[::1]",
        "[::1", "[::1]5000", "localhost:5000:5000", "http://localhost:5000", "localhost:5000/",
        "localhost:\u0665", "localhost: 5000", "localhost:" + "9" * 5000,
    ],
)  # fmt: skip
def test_bad_address(text: str) -> None:
    """Anything else is refused in a few words that say what is expected."""
    with pytest.raises(ValueError) as refused:
        read_address(text)
    assert len(str(refused.value)) < 150


@given(st.text(max_size=20) | st.from_regex(r"\[?[a-z0-9.:]{0,9}\]?:?[0-9]{0,6}", fullmatch=True))
@settings(deadline=None)
def test_any_address(text: str) -> None:
    """Any text is an address that is written back readably, or a ValueError."""
    try:
        found = read_address(text)
    except ValueError:
        return
    assert found.host or text.startswith(":")
    assert 0 <= found.port < 65536
    assert read_address(str(found)) == found


@pytest.mark.parametrize(
    "host",
    ["203.0.113.1", "host.invalid", "a..b", "a" * 64, "\0", "a b", "a\nb", "::1%nowhere"],
)
def test_address_that_cannot_be_bound(host: str) -> None:
    """An address that is not this host's, or none at all: refused in one line, by its text."""
    addresses = [Address("127.0.0.1", 0), Address(host, 5000)]
    with pytest.raises(ConfigError, match="--listen") as refused, bound_sockets(addresses):
        pytest.fail("bound")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("localhost.example.com", False),
        ("registry", False), ("127.0.0.1.example.com", False), ("::ffff:10.0.0.1", False),
    ],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    """Only what is surely this host alone goes without users and TLS."""
    address = Address(host, 5000)
    assert address.is_loopback is loopback
    assert load({"listen": (str(address),)}, {}, None).exposed is not loopback
    assert load({"listen": ("127.0.0.1:1", "0.0.0.0:1")}, {}, None).exposed


@pytest.mark.parametrize("text", ["~nosuchuser-of-this-host/x", "\0", ""])
def test_bad_path(text: str) -> None:
    """A path that cannot be is a bad value like any other."""
    with pytest.raises(ValueError):
        read_path(text)


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is taken from where the process was started, ``~`` is the home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of/test")
    assert read_path("a/b") == tmp_path / "a/b"
    assert read_path("~/x") == Path("/home/of/test/x")


@pytest.mark.parametrize(
    ("uid", "environment", "root", "state_dir"),
    [
        (0, {}, "/var/lib/mayfly", "/var/lib/mayfly/state"),
        (
            0,
            {"XDG_DATA_HOME": "/x", "XDG_STATE_HOME": "/y", "XDG_RUNTIME_DIR": "/z"},
            "/var/lib/mayfly",
            "/var/lib/mayfly/state",
        ),
        (1000, {"XDG_DATA_HOME": "/x", "XDG_STATE_HOME": "/y"}, "/x/mayfly", "/y/mayfly"),
        (
            1000,
            {"XDG_DATA_HOME": "x", "XDG_STATE_HOME": "y"},
            "/home/of/test/.local/share/mayfly",
            "/home/of/test/.local/state/mayfly",
        ),
        (
            1000,
            {},
            "/home/of/test/.local/share/mayfly",
            "/home/of/test/.local/state/mayfly",
        ),
    ],
)
def test_default_directories(
    uid: int,
    environment: dict[str, str],
    root: str,
    state_dir: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The default directories are those of docs/configuration.md."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("HOME", "/home/of/test")
    found = load({}, environment, None)
    assert (str(found.root), str(found.state_dir)) == (root, state_dir)


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home, as containers have, is asked for both directories."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(Path, "home", no_home)
    given = {"root": ("/srv",), "state_dir": ("/state",)}
    assert load(given, {}, None).root == Path("/srv")
    for key, option in (("root", "--root DIR"), ("state_dir", "--state-dir DIR")):
        with pytest.raises(ConfigError, match=f"no home directory: give {option}"):
            load({k: v for k, v in given.items() if k != key}, {}, None)


def test_several_addresses(tmp_path: Path) -> None:
    """Repeatable settings: several flags, words of a variable, a list or one text in the file."""
    expected = (Address("127.0.0.1", 1), Address("::1", 2))
    texts = ("127.0.0.1:1", "[::1]:2")
    file = _file(tmp_path, 'listen = ["127.0.0.1:1", "[::1]:2"]')
    assert load({"listen": texts}, {}, None).listen == expected
    assert load({}, {"MAYFLY_LISTEN": " ".join(texts)}, None).listen == expected
    assert load({}, {}, file).listen == expected


@pytest.mark.parametrize(
    "text",
    [
        'Root = "x"', "read-only = true", "[serve]\nroot = 'x'", "unknown = 1", '"" = 1',
        '"a b" = 1', 'root = "x"\nrooot = "x"',
    ],
)  # fmt: skip
def test_unknown_key(tmp_path: Path, text: str) -> None:
    """An unknown key is fatal; the error names it, the file, and the known ones."""
    file = _file(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load({}, {}, file)
    assert str(file) in str(refused.value)
    assert "allow_sparse" in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        b"root = ", b"root = x", b"= 1", b"\xff\xfe", b'root = "\xff"', b"root = 'x'\nroot = 'y'",
        b"{}", b"\0", b"x = " + b"[" * 100_000, b"[" * 100_000, b'root = "a\\u0000b"',
        b"root = 1.5", b"root = ['a']", b"root = {a = 1}", b"root = 2020-01-01", b"listen = [1.5]",
        b"listen = []", b"listen = [['a']]", b"listen = {}", b"listen = 5000",
        b"read_only = 'perhaps'", b"ephemeral = 7",
    ],
    ids=lambda content: repr(content[:30]),
)  # fmt: skip
def test_bad_file(tmp_path: Path, content: bytes) -> None:
    """A file that is not TOML, or a value of the wrong kind: the error names the file."""
    file = tmp_path / "mayfly.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        load({}, {}, file)
    assert str(file) in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Absent, or a directory."""
    for path in (tmp_path / "absent", tmp_path, tmp_path / "absent/deep"):
        with pytest.raises(ConfigError) as refused:
            load({}, {}, path)
        assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("#" * (MAX_FILE_BYTES + 1), f"larger than {MAX_FILE_BYTES} bytes"),
        ("root" + ".a" * 40_000 + " = 1", "line 1: a key has more than 32 parts"),
    ],
    ids=["large", "deep"],
)
def test_file_beyond_a_bound(text: str, says: str, tmp_path: Path) -> None:
    """It is refused at once; the error names the bound."""
    with pytest.raises(ConfigError, match=says):
        load({}, {}, _file(tmp_path, text))


def test_every_setting_is_used() -> None:
    """Something outside this room reads it."""
    sources = [p for p in (REPO / "registry").rglob("*.py") if p.parent.name != "settings"]
    text = "".join(path.read_text() for path in sources)
    unused = [one.key for one in SETTINGS if not re.search(rf"\bsettings\.{one.key}\b", text)]
    assert unused == [], "nothing reads these fields of Settings"


def test_empty_file_sets_nothing(tmp_path: Path) -> None:
    """A file may be empty."""
    assert load({}, {}, _file(tmp_path, "# nothing\n")) == load({}, {}, None)


def test_variables_that_are_no_settings() -> None:
    """What Kubernetes sets for a Service of that name, and `mayfly run` for its command."""
    others = {
        "MAYFLY_PORT": "tcp://10.0.0.1:5000",
        "MAYFLY_SERVICE_HOST": "10.0.0.1",
        "MAYFLY_PORT_5000_TCP_ADDR": "10.0.0.1",
        "MAYFLY_URL": "http://127.0.0.1:5000",
        "MAYFLY_HOST": "127.0.0.1:5000",
        "MAYFLY_USERNAME": "pull",
        "MAYFLY_CA": "/run/mayfly/ca.crt",
    }
    assert load({}, others, None) == load({}, {}, None)
