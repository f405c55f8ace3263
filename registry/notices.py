"""Warnings about the run's nodes and images, logged once and shown by ``status`` from then on.

A notice is data, so that programs read a code and fields; `text` makes the sentence for people.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mayfly.registry import log
from mayfly.registry.text import join_names

REMEDY = "give each node a credential of its own: mayfly credentials --node NAME"

Notice = dict[str, Any]
"""``code``, and fields that depend on it (docs/commands.schema.json, "warning")."""

_NAMES_SHOWN = 10


class Notices:
    """The notices of one part of the server.

    Args:
        event: name under which they are logged.
        most: further ones are dropped, so that clients cannot fill the memory or the log.
    """

    def __init__(self, event: str, most: int) -> None:
        self._event = event
        self._most = most
        self._found: dict[tuple[Any, ...], Notice] = {}

    def add(self, code: str, **fields: str | int | tuple[str, ...]) -> None:
        """Add and log a notice, unless it was added before."""
        key = code, *fields.items()
        if key not in self._found and len(self._found) < self._most:
            notice: Notice = {"code": code, **fields}
            self._found[key] = notice
            log.event(logging.WARNING, self._event, text(notice), **notice)

    def all(self) -> list[Notice]:
        """Return all notices so far."""
        return list(self._found.values())


def text(notice: Mapping[str, Any]) -> str:
    """Return a notice as a sentence for people: the fact, then the remedy."""
    match notice["code"]:
        case "address_shared":
            return (
                f"node {notice['node']} and a client without a node's credential both pull from "
                f"{notice['address']}, so the client cannot be told from other nodes there: "
                f"{REMEDY}"
            )
        case "node_not_listed":
            return f"refused: a credential for node {notice['node']}, which --nodes does not list"
        case "pull_not_listed":
            node, user, address = notice["node"], notice["user"], notice["address"]
            client = f"user {user} at {address}" if user else f"a client at {address}"
            remedy = "or list its address" if node == address else "or list that user"
            return (
                f"{client} pulls and counts as node {node}, which --nodes does not list. If it is "
                "one of the nodes, log it in with a credential of its own (mayfly credentials "
                f"--node NAME), {remedy}"
            )
        case "proxy_not_trusted":
            return (
                f"clients connect through {notice['url']}; a proxy there may hide their addresses, "
                "which identify nodes without a credential of their own: give --trusted-proxy "
                f"CIDR if the proxy forwards addresses, else {REMEDY}"
            )
        case "proxy_hides_addresses":
            return (
                f"the trusted proxy {notice['address']} does not say for which address it pulls, "
                "so the nodes behind it count as one: have it send X-Forwarded-For or Forwarded, "
                f"or {REMEDY}"
            )
        case "names_without_authentication":
            names = join_names(notice["nodes"], _NAMES_SHOWN)
            return (
                "without authentication nodes are known by address only, but --nodes lists "
                f"names: {names}; list addresses, or serve with --auth auto"
            )
        case "record_full_list":
            return (
                f"the coverage record is full: it holds {notice['most']} facts about the listed "
                "images and nodes, so coverage may stay incomplete"
            )
        case "record_full_node":
            return (
                f"{notice['node']} asked for more than {notice['most']} manifests and blobs that "
                "are not in the list of images; the report leaves out the others"
            )
        case "record_full_nodes":
            return (
                f"the coverage record holds {notice['most']} nodes that --nodes does not name; "
                "further ones are not recorded"
            )
        case "record_full_proofs":
            return (
                f"the coverage record holds {notice['most']} images that nodes say they have; "
                "further ones are not recorded"
            )
        case "record_full_others":
            return (
                f"the coverage record holds {notice['most']} facts about images and nodes that "
                "are not listed; the report leaves out further ones"
            )
        case code:
            # A newer server's, asked by an older client.
            return f"{code}: {', '.join(f'{k} {v}' for k, v in notice.items() if k != 'code')}"
