"""The trace that a request belongs to, as its ``traceparent`` header names it.

Source: W3C Trace Context, 3.2. Mayfly makes no spans of its own: it puts the header into events and
log lines, by which they are found beside the spans of the client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

HEADER = "traceparent"

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.{0,200})?")
_LENGTH = 55
"""Characters of the part that every version of the header has."""


def traceparent(headers: Mapping[str, str]) -> str:
    """Return the header without additions of later versions; "" if it is missing or invalid."""
    found = _TRACEPARENT.fullmatch(headers.get(HEADER, ""))
    if found is None:
        return ""
    version, trace, parent, rest = found.groups()
    if version == "ff" or not trace.strip("0") or not parent.strip("0"):
        return ""
    if version == "00" and rest:
        return ""
    return found[0][:_LENGTH]


def trace_id(headers: Mapping[str, str]) -> str:
    """Return the ID of the trace; "" without one."""
    return traceparent(headers)[3:35]
