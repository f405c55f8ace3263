"""The one error of this package."""

from __future__ import annotations


class TrustError(Exception):
    """What an operator has to mend, in one line: what is wrong, where, and what to do."""
