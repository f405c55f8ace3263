"""``mayfly grant``: the grants.toml of ``--auth DIR``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mayfly.registry.cli.help import Group
from mayfly.registry.cli.options import as_json, auth_directory, print_json
from mayfly.registry.text import echo

if TYPE_CHECKING:
    from mayfly.auth.policy import Subject


@click.group("grant", cls=Group)
def command() -> None:
    """Grants: roles of users, groups and anonymous callers on repositories.

    \b
    Roles: limitedGuest, guest (pull), developer (and push), maintainer, projectAdmin
    (and delete), admin (the same, on ** only).
    """


def _subject(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--anonymous", is_flag=True, help="Everyone, without credentials."),
        click.option("--group", metavar="NAME", help="A group under [groups] of grants.toml."),
        click.option("--user", metavar="NAME", help="A user."),
    ):
        function = option(function)
    return function


_repositories = click.option(
    "--repositories",
    metavar="GLOB",
    required=True,
    help="* is any text within a path part, ** any number of parts.",
)


@command.command()
@_subject
@click.option("--role", metavar="ROLE", required=True, help="One of the roles above.")
@_repositories
@auth_directory
@as_json
def add(auth: Path, role: str, repositories: str, json: bool, **subject: Any) -> None:
    """Add a grant, or change its role."""
    from mayfly.auth.globs import parse_glob
    from mayfly.auth.policy import Grant
    from mayfly.auth.roles import parse_role
    from mayfly.registry.access.policy_files import add_grant

    grant = Grant(_read_subject(**subject), parse_role(role), parse_glob(repositories))
    auth.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = add_grant(auth / "grants.toml", grant)
    if json:
        made = _record(grant.subject, repositories, role=grant.role)
        print_json({"action": "added" if new else "changed", "grant": made})
    else:
        echo(f"{'added' if new else 'changed'}: {grant.subject} is {role} on {repositories}")


@command.command()
@_subject
@_repositories
@auth_directory
@as_json
def rm(auth: Path, repositories: str, json: bool, **subject: Any) -> None:
    """Take a grant back."""
    from mayfly.registry.access.policy_files import remove_grant

    who = _read_subject(**subject)
    remove_grant(auth / "grants.toml", who, repositories)
    if json:
        print_json({"action": "removed", "grant": _record(who, repositories)})
    else:
        echo(f"removed: {who} on {repositories}")


@command.command()
@auth_directory
@as_json
def ls(auth: Path, json: bool) -> None:
    """List the grants."""
    from mayfly.registry.access.policy_files import load_grants

    policy = load_grants(auth / "grants.toml")
    rows = [(g.subject, g.role, g.repositories.pattern) for g in policy.grants]
    if json:
        grants = [_record(subject, pattern, role=role) for subject, role, pattern in rows]
        print_json({"grants": grants})
        return
    for subject, role, pattern in rows:
        echo(f"{subject!s:<32} {role:<14} {pattern}")


def _record(subject: Subject, repositories: str, **more: str) -> dict[str, str]:
    kind, name = subject
    return {"kind": kind, "name": name, "repositories": repositories, **more}


def _read_subject(user: str | None, group: str | None, anonymous: bool) -> Subject:
    from mayfly.auth.policy import ANYONE, Subject, SubjectKind

    given = [
        s
        for s in (
            user and Subject(SubjectKind.USER, user),
            group and Subject(SubjectKind.GROUP, group),
        )
        if s
    ]
    if anonymous:
        given.append(ANYONE)
    if len(given) != 1:
        raise click.UsageError("give exactly one of --user, --group and --anonymous")
    return given[0]
