"""Handlers of ``/mayfly/v1/``: a node downloads its script, asks for a nonce, and proves."""

from __future__ import annotations

import json

from mayfly.registry.api.context import COMMON_HEADERS, JSON, Context, answer
from mayfly.registry.api.errors import NonceInvalid, ParameterInvalid, ScriptUnknown
from mayfly.registry.api.request import Request
from mayfly.registry.coverage.proofs import MAX_BODY, NONCE_SECONDS, ProofInvalid, parse_proof
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.registry.threads import in_thread, in_turn, uncancelled


async def script(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET: send the script of a token, once."""
    scripts, token = context.scripts, request.token
    text = None if scripts is None else await in_turn(context.client, scripts.claim, token)
    if scripts is None or text is None:
        raise ScriptUnknown(
            "no script for this token: it was downloaded already, or is older than ten minutes"
        )
    headers = COMMON_HEADERS | {"Cache-Control": "no-store", "Content-Type": "text/x-shellscript"}
    response = Response(headers=headers, length=len(text))
    try:
        http.begin(response)
        await http.send_piece(text)
    except BaseException:
        await uncancelled(in_thread(scripts.give_back, token))
        raise
    await uncancelled(in_thread(scripts.spend, token))
    return response


async def nonce(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET: issue a nonce for the node's next proof."""
    issued = context.observer.nonces.issue(request.node)
    document = {"nonce": issued, "expires_in": NONCE_SECONDS}
    headers = {"Cache-Control": "no-store"}
    return answer(body=json.dumps(document).encode(), content_type=JSON, headers=headers)


async def prove(context: Context, http: HTTPRequest, request: Request) -> Response:
    """POST: record the node's proof, in place of its last one."""
    body = await http.read_body(MAX_BODY)
    try:
        proof = await in_turn(context.client, parse_proof, body)
    except ProofInvalid as error:
        raise ParameterInvalid(str(error)) from None
    if not context.observer.nonces.spend(request.node, proof.nonce):
        raise NonceInvalid(
            f"not a nonce of node {request.node}, or spent, or older than {NONCE_SECONDS} seconds; "
            "ask for another"
        )
    await context.observer.proved(context.peer, proof.images)
    document = {"node": context.peer.node, "images": len(proof.images)}
    return answer(body=json.dumps(document).encode(), content_type=JSON)
