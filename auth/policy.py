"""Policies: grants, and the rule that chooses among them.

A grant gives a subject (a user, a group, or anonymous) a role over the repositories that a glob
matches. Without a grant everything is denied. For a caller and a repository:

1. *Within one subject the most specific glob wins*, and only its role counts, be it higher or
   lower: with ``developer`` on ``team/**`` and ``guest`` on ``team/prod/**``, a user pushes to
   ``team/api`` and only pulls ``team/prod/api``. Specificity is defined in `auth.globs`; different
   globs of equal specificity both count.
2. *Across subjects everything adds up*: the caller has the rights of the user, of each of the
   user's groups and of anonymous. Harbor does the same with the roles a member has directly and by
   groups (``ListRoles`` in its ``src/pkg/project/dao/dao.go``), and logging in never loses the
   rights of anonymous callers.

The permissions of a short-lived credential take the place of grants to its name and groups, by the
same rule. An access token grants its scopes and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple

from mayfly.auth.globs import Glob, parse_glob
from mayfly.auth.identity import Identity, Permission
from mayfly.auth.roles import PULL, ROLE_ACTIONS, Role
from mayfly.auth.scope import (
    ANY_ACTION,
    CATALOG,
    NODE,
    PROVE,
    REGISTRY,
    REPOSITORY,
    STATUS,
    STOP,
    Scope,
)

NOTHING: frozenset[str] = frozenset()
EVERYTHING = parse_glob("**")


class SubjectKind(StrEnum):
    """The kinds of subjects."""

    USER = "user"
    GROUP = "group"
    ANONYMOUS = "anonymous"


class Subject(NamedTuple):
    """The receiver of a grant; the name is "" for anonymous."""

    kind: SubjectKind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


ANYONE = Subject(SubjectKind.ANONYMOUS)


class Grant(NamedTuple):
    """A role for a subject over some repositories."""

    subject: Subject
    role: Role
    repositories: Glob


class NameRange(NamedTuple):
    """One repository name, or all names with one beginning."""

    text: str
    is_prefix: bool

    def holds(self, other: NameRange) -> bool:
        """Return whether every name of another range is in this one."""
        return other == self or (self.is_prefix and other.text.startswith(self.text))


class Policy:
    """All grants and groups at one moment. Immutable; a changed file becomes another object.

    Args:
        grants: in any order.
        groups: members of each group.
    """

    __slots__ = ("_groups_of", "_held", "grants", "groups")

    def __init__(
        self, grants: Iterable[Grant], groups: Mapping[str, frozenset[str]] | None = None
    ) -> None:
        self.grants = tuple(grants)
        self.groups = dict(groups or {})
        held: dict[Subject, list[Permission]] = {}
        for grant in self.grants:
            permission = Permission(grant.role, grant.repositories)
            held.setdefault(grant.subject, []).append(permission)
        self._held = {subject: _ordered(found) for subject, found in held.items()}
        groups_of: dict[str, list[Subject]] = {}
        for group, members in self.groups.items():
            for member in members:
                groups_of.setdefault(member, []).append(Subject(SubjectKind.GROUP, group))
        self._groups_of = groups_of

    def with_grants(self, *grants: Grant) -> Policy:
        """Return this policy with more grants."""
        return Policy((*self.grants, *grants), self.groups)

    def actions(self, identity: Identity, repository: str) -> frozenset[str]:
        """Return the actions that a caller may take in a repository."""
        if identity.access is not None:
            return _token_actions(identity.access, REPOSITORY, repository)
        found = NOTHING
        for permissions in self._permissions(identity):
            found |= _winning(permissions, repository)
        return found

    def allowed(self, identity: Identity, repository: str, action: str) -> bool:
        """Return whether a caller may take an action in a repository."""
        return action in self.actions(identity, repository)

    def registry_actions(self, identity: Identity, name: str) -> frozenset[str]:
        """Return the actions on a resource of the registry itself: ``*`` or none.

        ``catalog`` is for everyone with any permission; it shows each caller the repositories that
        `can_list` allows. ``status`` shows all nodes and images: it is for callers with a role on
        every repository, except `Role.LIMITED_GUEST`, which pull secrets have, and except nodes.
        ``stop`` is for `Role.ADMIN`, and never for anonymous callers: without users anybody could
        end the run.
        """
        if identity.access is not None:
            return _token_actions(identity.access, REGISTRY, name)
        if name == CATALOG:
            holds = any(self._permissions(identity))
        elif name == STATUS and identity.node is None:
            held = (one for permissions in self._permissions(identity) for one in permissions)
            holds = any(
                one.repositories == EVERYTHING and one.role is not Role.LIMITED_GUEST
                for one in held
            )
        elif name == STOP and not identity.anonymous:
            held = (one for permissions in self._permissions(identity) for one in permissions)
            holds = any(one.repositories == EVERYTHING and one.role is Role.ADMIN for one in held)
        else:
            holds = False
        return frozenset({ANY_ACTION}) if holds else NOTHING

    def node_actions(self, identity: Identity, name: str) -> frozenset[str]:
        """Return the actions on a node: `PROVE` for a credential issued for that node, or none.

        No grant gives it, an administrator's neither: only the node knows its images. A token does
        not hold it.
        """
        own = identity.node == name and identity.access is None
        return frozenset({PROVE}) if own else NOTHING

    def resource_actions(self, identity: Identity, kind: str, name: str) -> frozenset[str]:
        """Return the actions on a resource that a scope names; none for an unknown type."""
        if kind == REPOSITORY:
            return self.actions(identity, name)
        if kind == REGISTRY:
            return self.registry_actions(identity, name)
        if kind == NODE:
            return self.node_actions(identity, name)
        return NOTHING

    def can_list(self, identity: Identity, repository: str) -> bool:
        """Return whether the catalog names a repository to this caller.

        With a token for the catalog it names those that the token's owner may pull from now.
        """
        if identity.access is not None:
            if not self.registry_actions(identity, CATALOG):
                return False
            identity = replace(identity, access=None)
        return self.allowed(identity, repository, PULL)

    def readable(self, identity: Identity, *, listing: bool = False) -> list[NameRange]:
        """Return ranges, sorted, that hold every repository that a caller may pull from.

        No range holds another one.

        Args:
            listing: whether the catalog is asked for, see `can_list`.
        """
        if identity.access is not None and listing:
            identity = replace(identity, access=None)
        if identity.access is not None:
            scopes = (scope for scope in identity.access if scope.type == REPOSITORY)
            found = {NameRange(scope.name, is_prefix=False) for scope in scopes}
        else:
            held = (one for permissions in self._permissions(identity) for one in permissions)
            globs = [one.repositories for one in held if PULL in ROLE_ACTIONS[one.role]]
            found = {NameRange(glob.prefix, is_prefix=not glob.is_name) for glob in globs}
        widest: list[NameRange] = []
        # A prefix sorts before the name that it equals, and before all that begin with it.
        for one in sorted(found, key=lambda found: (found.text, not found.is_prefix)):
            if not (widest and widest[-1].holds(one)):
                widest.append(one)
        return widest

    def grant(self, identity: Identity, asked: Iterable[Scope]) -> tuple[Scope, ...]:
        """Return the requested scopes as far as a token may hold them: the actions the caller has.

        Scopes without an action left are dropped. ``*`` requests every action.
        """
        granted = []
        for scope in asked:
            if scope.type == NODE:
                continue  # only the credential itself speaks for a node
            held = self.resource_actions(identity, scope.type, scope.name)
            actions = held if ANY_ACTION in scope.actions else held & scope.actions
            if actions:
                is_whole = actions == scope.actions
                granted.append(scope if is_whole else replace(scope, actions=actions))
        return tuple(granted)

    def _permissions(self, identity: Identity) -> list[tuple[Permission, ...]]:
        """Return the permissions of each subject that a caller without a token belongs to."""
        anyone = self._held.get(ANYONE, ())
        if identity.anonymous:
            return [anyone]
        if identity.permissions is not None:
            return [anyone, _ordered(identity.permissions)]
        subjects = {
            Subject(SubjectKind.USER, identity.name),
            *self._groups_of.get(identity.name, ()),
            *(Subject(SubjectKind.GROUP, group) for group in identity.groups),
        }
        return [anyone, *(self._held.get(subject, ()) for subject in subjects)]


def _ordered(permissions: Iterable[Permission]) -> tuple[Permission, ...]:
    by_specificity = sorted(permissions, key=lambda held: held.repositories.specificity)
    return tuple(reversed(by_specificity))


def _winning(permissions: tuple[Permission, ...], repository: str) -> frozenset[str]:
    """Return the actions of one subject's most specific permissions; they are sorted by that."""
    found = NOTHING
    specificity = None
    for held in permissions:
        if specificity is not None and held.repositories.specificity < specificity:
            break
        if held.repositories.matches(repository):
            specificity = held.repositories.specificity
            found |= ROLE_ACTIONS[held.role]
    return found


def _token_actions(access: tuple[Scope, ...], kind: str, name: str) -> frozenset[str]:
    found = NOTHING
    for scope in access:
        if scope.type == kind and scope.name == name:
            found |= scope.actions
    return found


OPEN = Policy([Grant(ANYONE, Role.ADMIN, EVERYTHING)])
"""Everything is allowed to everyone: ``--auth none``."""
