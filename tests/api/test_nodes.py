"""Proofs without authentication: there is no credential that could speak for a node."""

from __future__ import annotations

from tests.support.pushing import refused
from tests.support.registry import Client


async def test_without_authentication_nobody_speaks_for_a_node(client: Client) -> None:
    """Not 401: there is nothing to log in with."""
    for method, word in (("GET", "nonce"), ("POST", "proof")):
        answer = await client.request(method, f"/mayfly/v1/nodes/worker-1/{word}")
        await refused(answer, 403, "DENIED")
