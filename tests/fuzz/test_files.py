"""Files an operator writes: whatever is in them, they are taken or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mayfly.auth.grants import render
from mayfly.registry.access.errors import PolicyFileInvalid
from mayfly.registry.access.policy_files import load_grants, load_users
from mayfly.registry.settings.errors import ConfigError
from mayfly.registry.settings.loading import load
from mayfly.registry.settings.settings import SETTINGS, Settings
from tests.fuzz.budget import EXAMPLES
from tests.fuzz.documents import ANY_JSON, TEXTS

HASH = "$2y$04$" + "." * 21 + "O" + "." * 31
FIXTURE = (HealthCheck.function_scoped_fixture,)


def _toml(value: Any) -> str:
    """A value in TOML, as far as TOML has it."""
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return "{" + ", ".join(f"{_quoted(k)} = {_toml(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case str():
            return _quoted(value)
        case None:
            return "1979-05-27T07:32:00Z"
        case _:
            return str(value)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return (
        '"' + "".join(c if c.isprintable() else f"\\u{ord(c) % 0xD800:04x}" for c in escaped) + '"'
    )


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def _one_line(error: Exception) -> None:
    assert str(error) and "\n" not in str(error)


GRANTS = st.fixed_dictionaries(
    {},
    optional={
        "user": TEXTS | ANY_JSON,
        "group": st.just("operators") | TEXTS,
        "anonymous": st.booleans(),
        "role": st.sampled_from(["guest", "admin", "developer"]) | ANY_JSON,
        "repositories": st.sampled_from(["**", "a/*", "***"]) | ANY_JSON,
    },
)
POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "groups": st.dictionaries(TEXTS | st.just("operators"), ANY_JSON, max_size=2) | ANY_JSON,
        "grant": st.lists(GRANTS, max_size=3) | ANY_JSON,
        "x": ANY_JSON,
    },
).map(lambda table: "\n".join(f"{k} = {_toml(v)}" for k, v in table.items()).encode())


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=FIXTURE)
@given(data=POLICIES | st.binary(max_size=60))
@example(data=b'groups = {"a\\u000ab" = 1}')
def test_any_grants(tmp_path: Path, data: bytes) -> None:
    """A policy that is written back as it was read, or a refusal."""
    path = _written(tmp_path / "grants.toml", data)
    try:
        found = load_grants(path)
    except PolicyFileInvalid as error:
        _one_line(error)
        return
    again = load_grants(_written(path, render(found).encode()))
    assert (set(again.grants), again.groups) == (set(found.grants), found.groups)


LINES = st.tuples(TEXTS | st.sampled_from(["alice", "#", "robot+x"]), st.sampled_from(
    [f":{HASH}", f":{HASH}:x", ":", "", ":$apr1$x", ":{SHA}x", f":{HASH[:-1]}", f":{HASH} "]
)).map("".join)  # fmt: skip


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=FIXTURE)
@given(
    data=st.lists(LINES, max_size=4).map(
        lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
    )
    | st.binary(max_size=80)
)
def test_any_htpasswd(tmp_path: Path, data: bytes) -> None:
    """Users that each have a hash that bcrypt can check, or a refusal."""
    try:
        found = load_users(_written(tmp_path / "htpasswd", data))
    except PolicyFileInvalid as error:
        _one_line(error)
        return
    assert len(found.names) == len(found.costs)
    assert all(name and ":" not in name and found.hash_of(name) for name in found.names)


KEYS = st.sampled_from([setting.key for setting in SETTINGS]) | st.sampled_from(["x", "root.y"])
VALUES = st.sampled_from(["", "auto", "10m", "127.0.0.1:0", "first", "/tmp", "-1", "9" * 400, "~x"])


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=FIXTURE)
@given(
    data=st.dictionaries(KEYS, VALUES | ANY_JSON, max_size=3).map(
        lambda table: "\n".join(f"{k} = {_toml(v)}" for k, v in table.items()).encode()
    )
    | st.binary(max_size=60),
    environment=st.dictionaries(
        st.sampled_from([setting.variable for setting in SETTINGS]), VALUES | TEXTS, max_size=2
    ),
)
def test_any_configuration(tmp_path: Path, data: bytes, environment: dict[str, str]) -> None:
    """Settings, or a refusal that says where the fault is."""
    path = _written(tmp_path / "mayfly.toml", data)
    try:
        found = load({}, {"HOME": "/nonexistent", **environment}, path)
    except ConfigError as error:
        _one_line(error)
        assert str(path) in str(error) or "environment variable" in str(error)
    else:
        assert isinstance(found, Settings)


def test_no_configuration_at_all(tmp_path: Path) -> None:
    """What the strategies above are measured by: a file that is right is taken."""
    path = _written(tmp_path / "mayfly.toml", b'listen = ["127.0.0.1:0"]\n')
    assert load({}, {}, path).listen[0].port == 0
    with pytest.raises(ConfigError, match="unknown"):
        load({}, {}, _written(path, b"x = 1\n"))
