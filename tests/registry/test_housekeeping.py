"""Work that a server does beside its requests."""

from __future__ import annotations

import asyncio

import pytest

from mayfly.registry import housekeeping
from mayfly.registry.housekeeping import _renew_certificate
from tests.support.process import until


async def test_problem_of_renewing_is_told_once(
    monkeypatch: pytest.MonkeyPatch, may_log_errors: pytest.LogCaptureFixture
) -> None:
    """Each time that it is another one, not at each look."""
    monkeypatch.setattr(housekeeping, "_RENEW_CHECK_SECONDS", 0)
    answers = ["a", "a", None, "a", "b", "b"]
    looks = 0

    def renew() -> str | None:
        nonlocal looks
        looks += 1
        return answers[looks - 1] if looks <= len(answers) else "b"

    renewing = asyncio.create_task(_renew_certificate(renew))
    await until(lambda: looks > len(answers), "each has been looked at")
    renewing.cancel()
    told = [record.getMessage().rpartition(" ")[2] for record in may_log_errors.records]
    assert told == ["a", "a", "b"]
