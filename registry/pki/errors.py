"""The one error of this package."""

from __future__ import annotations


class TrustError(Exception):
    """A problem for the operator to mend, in one line: the fault, its place, and the remedy."""
