"""The scope grammar of registry tokens: ``repository:team/app:pull,push``.

Source: distribution's "Token Scope Documentation" (``docs/content/spec/auth/scope.md``)::

    scope         := resourcescope [ ' ' resourcescope ]*
    resourcescope := resourcetype ':' resourcename ':' action [ ',' action ]*
    resourcetype  := value [ '(' value ')' ]           value := [a-z0-9]+
    resourcename  := [ hostname '/' ] component [ '/' component ]*
    hostname      := hostcomponent [ '.' hostcomponent ]* [ ':' port ]
    action        := [a-z]+ | '*'

A name may contain a colon (``registry.local:5000/app``), so the type ends at the first colon and
the actions begin after the last. Everything is matched against the grammar, so that no comma,
space, quote or control character of a name gets into a challenge or a token. The class in
``repository(plugin)`` is read and dropped, as in distribution's own registry: a plugin is stored
like any repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mayfly.auth.errors import ScopeInvalid

REPOSITORY = "repository"
REGISTRY = "registry"
CATALOG = "catalog"
STATUS = "status"
"""The state of the registry and of its run: of all nodes and all images."""
STOP = "stop"
"""The end of the registry's run."""
NODE = "node"
PROVE = "prove"
"""The only action on a node: to say which images it has."""
ANY_ACTION = "*"

MAX_SCOPES = 32
"""Most scopes in one request; a token with all of them fits in one header line."""

MAX_TEXT = 3072
"""Most characters of scope text in one request, for the same reason."""

MAX_NAME_LENGTH = 255 + 1 + 253 + 6
"""Longest resource name: a repository's 255, a slash, a host name's 253, a colon and a port."""

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST_PART = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"{_HOST_PART}(?:\.{_HOST_PART})*(?::[0-9]{{1,5}})?"
_NAME = re.compile(rf"(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*")
_TYPE = re.compile(r"([a-z0-9]{1,32})(?:\([a-z0-9]{1,32}\))?")
_ACTION = re.compile(r"[a-z]{1,32}|\*")


@dataclass(frozen=True, slots=True)
class Scope:
    """A resource and actions on it, always within the grammar.

    Raises:
        ScopeInvalid: a part is outside the grammar or too long.
    """

    type: str
    name: str
    actions: frozenset[str]

    def __post_init__(self) -> None:
        kind = _TYPE.fullmatch(self.type)
        if kind is None or kind[1] != self.type:
            raise ScopeInvalid(f"invalid resource type {self.type[:64]!r} in scope")
        if len(self.name) > MAX_NAME_LENGTH or not _NAME.fullmatch(self.name):
            raise ScopeInvalid(f"invalid resource name {self.name[:64]!r} in scope")
        for action in self.actions:
            if not _ACTION.fullmatch(action):
                raise ScopeInvalid(f"invalid action {action[:64]!r} in scope")

    def __str__(self) -> str:
        return f"{self.type}:{self.name}:{','.join(sorted(self.actions))}"


def parse_scopes(values: Iterable[str]) -> tuple[Scope, ...]:
    """Read the ``scope`` values of one request, each of one or more space-joined scopes.

    Scopes of the same resource are joined into one, in the order of first mention. Empty values
    are skipped: docker sends one when it only logs in.

    Raises:
        ScopeInvalid: a scope is outside the grammar, or there are too many.
    """
    found: dict[tuple[str, str], frozenset[str]] = {}
    length = 0
    for value in values:
        length += len(value)
        if length > MAX_TEXT:
            raise ScopeInvalid(f"scopes are longer than {MAX_TEXT} characters")
        for text in value.split(" "):
            if not text:
                continue
            kind, name, actions = _split(text)
            found[kind, name] = found.get((kind, name), frozenset()).union(actions)
            if len(found) > MAX_SCOPES:
                raise ScopeInvalid(f"more than {MAX_SCOPES} scopes in one request")
    return tuple(Scope(kind, name, actions) for (kind, name), actions in found.items())


def render_scopes(scopes: Iterable[Scope]) -> str:
    """Return scopes joined by spaces, actions in alphabetical order, as in challenges."""
    return " ".join(map(str, scopes))


def _split(text: str) -> tuple[str, str, list[str]]:
    """Return the type, name and actions of one scope; `Scope` checks them."""
    kind, first, rest = text.partition(":")
    name, second, actions = rest.rpartition(":")
    if not (first and second):
        raise ScopeInvalid(f"invalid scope {text[:64]!r}: expected type:name:action[,action]")
    matched = _TYPE.fullmatch(kind)
    if matched is None:
        raise ScopeInvalid(f"invalid resource type {kind[:64]!r} in scope")
    return matched[1], name, actions.split(",")
