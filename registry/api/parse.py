"""From method, path and query to one frozen request, by the table of routes. Pure: no I/O.

Paths are matched from their end, since a repository name may hold any of the fixed words. Each
part is percent-decoded once, by itself: an encoded slash never becomes a separator, it is a
character that no name, tag or digest has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from urllib.parse import unquote

from mayfly.auth.errors import InputInvalid
from mayfly.auth.identity import check_node
from mayfly.registry.api.errors import EndpointUnknown, MethodUnsupported
from mayfly.registry.api.request import NO_QUERY, Request, Route, read_form
from mayfly.registry.api.routes import ROUTES
from mayfly.registry.state.scripts import is_token
from mayfly.storage import digest as digests
from mayfly.storage.digest import Digest
from mayfly.storage.errors import NameInvalid
from mayfly.storage.reference import check_reference, check_repository

MAX_PATH_LENGTH = 2048

_MAX_CACHED_QUERY = 256
"""Longest query of a request that is cached; that for a token takes some 100 characters."""

_NAMED = "/v2/{name}/"
_NODES = "/mayfly/v1/nodes/"
_OF_NODE = _NODES + "{node}/"
_SCRIPTS = "/mayfly/v1/scripts/"
_FILES = "/mayfly/v1/page/"

Methods = dict[str, Route]
"""The routes of one path by method."""

Reference = tuple[Digest | None, str | None, str]
"""The digest, tag and upload ID in a path; each has one of them at most."""


def _read_reference(text: str) -> Reference:
    found = check_reference(text)
    return (None, found, "") if isinstance(found, str) else (found, None, "")


_VARIABLES: dict[str, Callable[[str], Reference]] = {
    "{reference}": _read_reference,
    "{digest}": lambda text: (digests.parse(text), None, ""),
    "{id}": lambda text: (None, None, text),
}


class Paths:
    """The paths of a table of routes, ready for look-up.

    Args:
        routes: in the order in which ``Allow`` lists their methods.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.fixed: dict[str, Methods] = {}
        """By the whole path."""
        self._words: dict[tuple[str, ...], Methods] = {}
        """By the parts after the repository, where all of them are fixed."""
        self._variable: dict[tuple[str, ...], tuple[str, Methods]] = {}
        """By the parts between the repository and a variable, and that variable."""
        self.of_node: dict[str, Methods] = {}
        """By the word after the node's name."""
        self.of_script: Methods = {}
        self.of_file: Methods = {}
        for route in routes:
            for path in dict.fromkeys((route.path, route.path.rstrip("/") or "/")):
                known = self._methods_of(path)
                known.update(dict.fromkeys(route.methods, route))
        sizes = {*map(len, self._words), *(len(words) + 1 for words in self._variable)}
        self._sizes = sorted(sizes, reverse=True)
        self.fewest = min(sizes) + 1
        """Parts after ``/v2/`` of the shortest path with a repository."""

    def _methods_of(self, path: str) -> Methods:
        if path.startswith(_OF_NODE):
            return self.of_node.setdefault(path.removeprefix(_OF_NODE), {})
        if path.startswith(_SCRIPTS):
            return self.of_script
        if path.startswith(_FILES):
            return self.of_file
        if not path.startswith(_NAMED):
            return self.fixed.setdefault(path, {})
        words = tuple(path.removeprefix(_NAMED).split("/"))
        if words[-1] not in _VARIABLES:
            return self._words.setdefault(words, {})
        variable, methods = self._variable.setdefault(words[:-1], (words[-1], {}))
        assert variable == words[-1], f"two variables in the place of {path}"
        return methods

    def find(self, parts: list[str]) -> tuple[Methods, list[str], Reference]:
        """Return the routes of a path, the parts of its repository, and its reference.

        Args:
            parts: of the path after ``/v2/``, decoded.

        Raises:
            EndpointUnknown: no route has such a path.
            TagInvalid, DigestInvalid: the reference is outside its grammar.
        """
        for size in self._sizes:
            words = tuple(parts[-size:])
            if methods := self._words.get(words):
                return methods, parts[:-size], (None, None, "")
            if found := self._variable.get(words[:-1]):
                variable, methods = found
                return methods, parts[:-size], _VARIABLES[variable](words[-1])
        raise EndpointUnknown("no such endpoint")


_PATHS = Paths(ROUTES)


def parse(method: str, path: str, query: str) -> Request:
    """Understand a request line.

    Args:
        method: as sent.
        path: still percent-encoded, without the query.
        query: still percent-encoded, without the question mark.

    Raises:
        EndpointUnknown, MethodUnsupported, ParameterInvalid: not a request of the protocol.
        NameInvalid, TagInvalid, DigestInvalid: a part is outside its grammar.
    """
    if len(path) > MAX_PATH_LENGTH:
        raise NameInvalid(f"path is longer than {MAX_PATH_LENGTH} characters")
    if len(query) > _MAX_CACHED_QUERY:
        return _parse(method, path, query)
    return _parse_cached(method, path, query)


def _parse(method: str, path: str, query: str) -> Request:
    parameters = read_form(query) if query else NO_QUERY
    fixed = _PATHS.fixed.get(path)
    if fixed is not None:
        return Request(_route(fixed, method), method, query=parameters)
    if not path.startswith("/v2/"):
        return _parse_own(method, path, parameters)
    parts = path[len("/v2/") :].split("/")
    if len(parts) < _PATHS.fewest:
        raise EndpointUnknown("no such endpoint")
    if "%" in path:
        parts = [_decode(part) for part in parts]
    methods, name, reference = _PATHS.find(parts)
    repository = check_repository("/".join(name))
    return Request(_route(methods, method), method, repository, *reference, query=parameters)


_parse_cached = lru_cache(maxsize=512)(_parse)
"""Cached, since a fleet asks for the same few: with the longest paths and queries 7 MiB."""


def _parse_own(method: str, path: str, parameters: Mapping[str, tuple[str, ...]]) -> Request:
    """Understand a request for one of Mayfly's own endpoints with a variable in its path."""
    if path.startswith(_NODES):
        node, _, word = path.removeprefix(_NODES).partition("/")
        if word in _PATHS.of_node and node:
            route = _route(_PATHS.of_node[word], method)
            return Request(route, method, query=parameters, node=_checked_node(_decode(node)))
    elif path.startswith(_SCRIPTS) and is_token(token := path.removeprefix(_SCRIPTS)):
        return Request(_route(_PATHS.of_script, method), method, query=parameters, token=token)
    elif path.startswith(_FILES) and (file := path.removeprefix(_FILES)):
        return Request(_route(_PATHS.of_file, method), method, query=parameters, file=file)
    raise EndpointUnknown("no such endpoint")


def _route(methods: Methods, method: str) -> Route:
    route = methods.get(method)
    if route is None:
        raise MethodUnsupported(method, tuple(methods))
    return route


def _checked_node(name: str) -> str:
    try:
        return check_node(name)
    except InputInvalid as error:
        raise NameInvalid(f"node: {error.message}") from None


def _decode(part: str) -> str:
    try:
        decoded = unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise NameInvalid("path is not UTF-8") from None
    if "/" in decoded:
        raise NameInvalid("path has an encoded slash")
    return decoded
