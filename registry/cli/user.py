"""``mayfly user``: the htpasswd file of ``--auth DIR``."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote

import click

from mayfly.registry.cli.help import Group
from mayfly.registry.cli.options import as_json, auth_directory, print_json
from mayfly.registry.text import echo


@click.group("user", cls=Group)
def command() -> None:
    """Users: add, remove, list."""


@command.command()
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@auth_directory
@as_json
def add(name: str, password_stdin: bool, auth: Path, json: bool) -> None:
    """Add a user, or change a user's password."""
    from mayfly.registry.access.policy_files import set_user

    if password_stdin:
        password = sys.stdin.readline().rstrip("\n")
    elif not sys.stdin.isatty():
        raise click.UsageError(
            "there is no terminal to ask for the password on; pipe it in with --password-stdin"
        )
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    auth.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = set_user(auth / "htpasswd", name, password)
    if json:
        print_json({"user": name, "action": "added" if new else "changed"})
        return
    echo(f"user {name} {'added' if new else 'changed'}")
    if new:
        echo(f"next: mayfly grant add --user {quote(name)} --role … --repositories …", err=True)


@command.command()
@click.argument("name")
@auth_directory
@as_json
def rm(name: str, auth: Path, json: bool) -> None:
    """Remove a user."""
    from mayfly.registry.access.policy_files import remove_user

    remove_user(auth / "htpasswd", name)
    if json:
        print_json({"user": name, "action": "removed"})
    else:
        echo(f"user {name} removed")


@command.command()
@auth_directory
@as_json
def ls(auth: Path, json: bool) -> None:
    """List the users."""
    from mayfly.registry.access.policy_files import load_users

    names = load_users(auth / "htpasswd").names
    if json:
        print_json({"users": names})
        return
    for name in names:
        echo(name)
