"""Sends the proof that a node's script printed, since the node has no program to send it by."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from mayfly.registry.coverage.proofs import MAX_BODY, ProofInvalid, parse_proof
from mayfly.registry.errors import LifetimeError
from mayfly.registry.exit_codes import Exit
from mayfly.registry.nodes.target import Target
from mayfly.registry.pki.errors import TrustError

MAX_OUTPUT = 4 * MAX_BODY
"""Bytes of a script's output."""

MAX_AGE_SECONDS = 24 * 3600
"""Age of an output, by the node's clock: an older proof says little about the node's images now."""

_SECONDS = 60.0
_MAX_ANSWER = 64 * 1024


def printed_images(output: bytes, node: str, now: float) -> list[Any]:
    """Return the images of the last proof in the output of a node's script.

    Args:
        output: with ``--json`` or without.
        node: whose proof it is to be.
        now: Unix seconds.

    Raises:
        TrustError: no proof is in it, or one that the registry would refuse, of another node, or
            too old.
    """
    if len(output) > MAX_OUTPUT:
        raise TrustError(f"more than {MAX_OUTPUT} bytes: expected the output of a node's script")
    for line in reversed(output.splitlines()):
        if not line.startswith(b"{"):
            continue
        try:
            printed = json.loads(line)
            printed_by, document = printed["node"], printed["report"]
            proof = parse_proof(json.dumps(document).encode())
        except (LookupError, TypeError):
            raise TrustError(
                "the proof cannot be used: it does not say which node printed it"
            ) from None
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, ProofInvalid) else "it is not JSON"
            raise TrustError(f"the proof cannot be used: {reason}") from None
        if printed_by != node:
            raise TrustError(f"the script of node {str(printed_by)[:100]!r} printed it, not {node}")
        if proof.images and min(one.checked for one in proof.images) < now - MAX_AGE_SECONDS:
            raise TrustError(
                "the proof is older than a day, by the node's clock: run the script again"
            )
        images: list[Any] = document["images"]
        return images
    raise TrustError("no proof is in it: expected the output of a node's script for verify")


def send_proof(target: Target, node: str, images: list[Any]) -> None:
    """Send images as the proof of a node, by the target's credential, which is the node's.

    Raises:
        LifetimeError: the registry cannot be asked, or refuses it.
    """
    path = f"/mayfly/v1/nodes/{quote(node, safe='')}"
    nonce = _ask(target, f"{path}/nonce").get("nonce")
    document = {"version": 1, "nonce": nonce, "images": images}
    _ask(target, f"{path}/proof", json.dumps(document).encode())


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error: the credential is for one host."""

    def redirect_request(self, *_arguments: object) -> None:
        return None


def _ask(target: Target, path: str, body: bytes | None = None) -> dict[str, Any]:
    """Return the document that the registry answers a GET with, or a POST of a body.

    Raises:
        LifetimeError: it does not answer with one.
    """
    url = f"{target.url}{path}"
    context = ssl.create_default_context(cadata=target.ca.decode() if target.ca else None)
    opener = urllib.request.build_opener(
        # The registry is here: no proxy of the environment gets the credential.
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=context),
        _NoRedirects(),
    )
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if target.credential is not None:
        headers["Authorization"] = target.credential.authorization
    request = urllib.request.Request(url, body, headers)
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            found = json.loads(answer.read(_MAX_ANSWER))
    except urllib.error.HTTPError as error:
        with error:
            problem = f"{error.code}{_message(error.read(_MAX_ANSWER))}"
        raise LifetimeError(f"{url}: refused ({problem})", Exit.INCOMPLETE) from None
    except (OSError, HTTPException, ValueError, RecursionError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise LifetimeError(f"{url}: {reason}", Exit.INCOMPLETE) from None
    if not isinstance(found, dict):
        raise LifetimeError(f"{url}: the answer is not that of Mayfly", Exit.INCOMPLETE)
    return found


def _message(body: bytes) -> str:
    """Return the message of an OCI error document after a colon; "" of another body."""
    try:
        return f": {json.loads(body)['errors'][0]['message']}"
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
