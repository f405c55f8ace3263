"""Handlers of ``/mayfly/v1/``: a node downloads its script, asks for a nonce, and proves."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing

from mayfly.registry.api.context import COMMON_HEADERS, JSON, Context, answer, read_document
from mayfly.registry.api.errors import NonceInvalid, ParameterInvalid, ScriptUnknown
from mayfly.registry.api.request import Request
from mayfly.registry.coverage.proofs import MAX_BODY, NONCE_SECONDS, ProofInvalid, parse_proof
from mayfly.registry.http.receipts import Receipts
from mayfly.registry.http.request import HTTPRequest
from mayfly.registry.http.response import Response
from mayfly.registry.state.scripts import Scripts
from mayfly.registry.threads import in_thread, in_turn, uncancelled


async def script(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET: send the script of a token, which is spent once the client has all but the last byte.

    That byte is withheld until then: a client that leaves before has not received the script, and
    one that leaves after it has, whatever of its end is acknowledged.
    """
    scripts, token = context.scripts, request.token
    text = None if scripts is None else await _claim(context, scripts, token)
    if scripts is None or text is None:
        raise ScriptUnknown(
            "no script for this token: it was downloaded already, or is older than ten minutes"
        )
    headers = COMMON_HEADERS | {"Cache-Control": "no-store", "Content-Type": "text/x-shellscript"}
    response = Response(headers=headers, length=len(text))
    try:
        with closing(Receipts(http.transport)) as receipts:
            http.begin(response)
            receipts.begin()
            await http.send_piece(text[:-1])
            await _all_received(http, receipts)
    except BaseException:
        await uncancelled(in_thread(scripts.give_back, token))
        raise
    await uncancelled(in_thread(scripts.spend, token))
    await http.send_piece(text[-1:])
    return response


async def _all_received(http: HTTPRequest, receipts: Receipts) -> None:
    """Wait until the client has acknowledged all that was sent.

    Raises:
        ConnectionResetError: the connection ended before.
    """
    received: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def done(left: int) -> None:
        if not received.done():
            received.set_result(left)

    # Bytes in the buffer of a connection that is closed are not counted any more.
    if not http.is_gone():
        receipts.on_received(done)
        if not await received:
            return
    raise ConnectionResetError("client is gone")


async def _claim(context: Context, scripts: Scripts, token: str) -> bytes | None:
    """Return the script of a token for this request; a request that is cancelled gives it back."""
    claiming = asyncio.ensure_future(in_turn(context.client, scripts.claim, token))

    def give_back(claimed: asyncio.Future[bytes | None]) -> None:
        if not claimed.cancelled() and not claimed.exception() and claimed.result() is not None:
            in_thread(scripts.give_back, token)

    try:
        return await uncancelled(claiming)
    except asyncio.CancelledError:
        claiming.add_done_callback(give_back)
        raise


async def nonce(context: Context, http: HTTPRequest, request: Request) -> Response:
    """GET: issue a nonce for the node's next proof."""
    issued = context.observer.nonces.issue(request.node)
    document = {"nonce": issued, "expires_in": NONCE_SECONDS}
    headers = {"Cache-Control": "no-store"}
    return answer(body=json.dumps(document).encode(), content_type=JSON, headers=headers)


async def prove(context: Context, http: HTTPRequest, request: Request) -> Response:
    """POST: record the node's proof, in place of its last one."""
    size = http.body.length if http.body is not None else 0
    async with context.manifests.gate.admit(context.client, size):
        body = await read_document(http, MAX_BODY)
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
