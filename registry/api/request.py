"""A request as handlers see it, and the route that it takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

from mayfly.registry.access.needs import AccessRequest, Need, Rule
from mayfly.registry.api.context import Context
from mayfly.registry.api.errors import ParameterInvalid
from mayfly.registry.coverage.pulls import Step
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.storage.digest import Digest

if TYPE_CHECKING:
    from mayfly.registry.telemetry.events import Action

MAX_QUERY_FIELDS = 64


NO_QUERY: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Request(NamedTuple):
    """One request, understood.

    Attributes:
        route: that it takes.
        method: one of the route's.
        repository: a valid repository name, or "" where the route has none.
        digest: of a blob, a referrers subject, or a manifest asked for by digest.
        tag: of a manifest asked for by tag.
        upload_id: of an upload session, not yet known to exist.
        node: a valid node name, or "" where the route has none.
        token: of a script, not yet known to exist.
        file: of the rollout page, not yet known to exist.
        query: parameter → its values in order, percent-decoded.
    """

    route: Route
    method: str
    repository: str = ""
    digest: Digest | None = None
    tag: str | None = None
    upload_id: str = ""
    query: Mapping[str, tuple[str, ...]] = NO_QUERY
    node: str = ""
    token: str = ""
    file: str = ""

    def __repr__(self) -> str:
        return f"Request({self.method} {self.route.path})"  # without the token, which is a secret

    @property
    def reference(self) -> Digest | str:
        """The digest or tag by which a manifest is asked for."""
        found = self.digest or self.tag
        assert found is not None, f"{self.route.path} has no reference"
        return found

    def parameter(self, name: str) -> str | None:
        """Return the first value of a query parameter; None without one."""
        values = self.query.get(name)
        return values[0] if values else None

    def access(self) -> AccessRequest:
        """Return the facts of the request that `registry.access` decides by."""
        route = self.route
        return AccessRequest(
            route.endpoint,
            self.method,
            route.rule,
            self.repository,
            route.optional_needs(self),
            self.parameter("ns") or "",
            self.node,
        )


Handler = Callable[[Context, HTTPRequest, Request], Awaitable[Response]]


def no_needs(request: Request) -> tuple[Need, ...]:
    """`Route.optional_needs` of most routes."""
    return ()


class Route(NamedTuple):
    """One endpoint by the methods that one handler serves.

    Defaults refuse: a route without ``rule`` to everyone, one without ``step`` while
    the registry drains.

    Attributes:
        endpoint: its name, in the audit and in docs/openapi.yaml.
        path: with ``{name}`` for the repository, and ``{reference}``, ``{digest}`` or ``{id}`` for
            the last part; or with ``{node}`` for a node and one word after it; or with ``{token}``
            or ``{file}`` at the end. A slash at the end of a path with ``{name}`` is optional in
            requests.
        methods: of HTTP.
        handler: answers it.
        rule: the rights that it needs.
        step: its part in a pull or push, for the drain. `Step.NEITHER` is always served; None, the
            default, is refused while the registry drains.
        optional_needs: returns the rights that a request can use but does not require.
        event: the action of its requests in the audit file and at webhooks; of a HEAD of pulled
            content it is ``check``. None, the default, has no event.
        counts: whether it counts as activity, which keeps an idle registry alive.
        listed_nodes_only: whether it refuses credentials for a node that ``--nodes`` lacks. Set it
            for routes of manifests and blobs, by which nodes pull: a pull of an unlisted node
            would succeed and never count.
    """

    endpoint: str
    path: str
    methods: tuple[str, ...]
    handler: Handler
    rule: Rule | None = None
    step: Step | None = None
    optional_needs: Callable[[Request], tuple[Need, ...]] = no_needs
    event: Action | None = None
    counts: bool = True
    listed_nodes_only: bool = False


def read_form(text: str) -> Mapping[str, tuple[str, ...]]:
    """Read ``name=value&…``: a query, or a form that was posted. The result cannot be changed.

    Raises:
        ParameterInvalid: it has too many fields or is not UTF-8.
    """
    try:
        # Unencoded bytes that are not UTF-8 are lone surrogates in the text.
        text.encode()
        pairs = parse_qsl(
            text, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS
        )
    except ValueError:
        raise ParameterInvalid("query or form cannot be read") from None
    found: dict[str, tuple[str, ...]] = {}
    for name, value in pairs:
        found[name] = (*found.get(name, ()), value)
    return MappingProxyType(found)
